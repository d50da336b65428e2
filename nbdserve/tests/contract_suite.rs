//! The conformance suite finds what it is there to find: devices that break the contract.

use std::panic::{AssertUnwindSafe, catch_unwind};

use nbdserve::source::Memory;
use nbdserve::testing::{conformance, noise};
use nbdserve::{
    ByteRange, Device, Error, ExtentFlags, Extents, Geometry, Kind, Result, Volume, WriteFeatures,
    Writer,
};

/// How a [`Broken`] device breaks the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    LastByteIsZero,
    EveryThousandthReadIsZero,
    SaysZeroForData,
    SaysOneByteMore,
    LosesTheKindOfErrors,
    ReadsZeroesInsteadOfErrors,
    LosesOddWrites,
    WritesOneByteTooFar,
}

#[derive(Debug)]
struct Broken {
    below: Volume,
    fault: Fault,
    reads: std::sync::atomic::AtomicU64,
}

impl Broken {
    fn volume(below: Volume, fault: Fault) -> Volume {
        Volume::new(Self {
            below,
            fault,
            reads: std::sync::atomic::AtomicU64::new(0),
        })
    }
}

impl Device for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn geometry(&self) -> Geometry {
        let more = u64::from(self.fault == Fault::SaysOneByteMore);
        Geometry::bytes(self.below.size() + more)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let result = self.below.read_at(buf, offset);
        let reads = self
            .reads
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match self.fault {
            Fault::LastByteIsZero if offset + buf.len() as u64 == self.below.size() => {
                *buf.last_mut().expect("no empty reads") = 0;
                result
            }
            Fault::EveryThousandthReadIsZero if reads % 1000 == 999 => {
                buf.fill(0);
                result
            }
            Fault::LosesTheKindOfErrors => result.map_err(|_| Error::new(Kind::Io, "failed")),
            Fault::ReadsZeroesInsteadOfErrors => {
                if result.is_err() {
                    buf.fill(0);
                }
                Ok(())
            }
            _ => result,
        }
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        if self.fault == Fault::SaysZeroForData {
            out.push_until(range.end(), ExtentFlags::ZERO);
        }
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl Writer for Broken {
    fn features(&self) -> WriteFeatures {
        WriteFeatures::default()
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<()> {
        let writer = self.below.need_writer()?;
        match self.fault {
            Fault::LosesOddWrites if offset % 2 == 1 => Ok(()),
            Fault::WritesOneByteTooFar if offset + (buf.len() as u64) < self.below.size() => {
                let mut more = buf.to_vec();
                more.push(0xff);
                writer.write_at(&more, offset, false)
            }
            _ => writer.write_at(buf, offset, false),
        }
    }

    fn flush(&self) -> Result<()> {
        self.below.need_writer()?.flush()
    }
}

/// Whether one of the three suites complains.
fn is_found(fault: Fault) -> bool {
    let bytes = || noise(50_001, 3);
    let open = || (Broken::volume(Memory::volume(bytes()), fault), bytes());
    let complains = |suite: &dyn Fn()| catch_unwind(AssertUnwindSafe(suite)).is_err();
    complains(&|| conformance::check(open))
        || complains(&|| conformance::check_writer(open))
        || complains(&|| {
            conformance::check_errors("broken", &bytes(), |below| {
                Ok(Broken::volume(below.clone(), fault))
            });
        })
}

#[test]
fn each_fault_is_found_and_a_device_without_one_passes() {
    assert!(!is_found(Fault::None));
    for fault in [
        Fault::LastByteIsZero,
        Fault::EveryThousandthReadIsZero,
        Fault::SaysZeroForData,
        Fault::SaysOneByteMore,
        Fault::LosesTheKindOfErrors,
        Fault::ReadsZeroesInsteadOfErrors,
        Fault::LosesOddWrites,
        Fault::WritesOneByteTooFar,
    ] {
        assert!(is_found(fault), "{fault:?}");
    }
}
