//! A disk in memory that holds [`Volume`] to its promises.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Access, ByteRange, Device, Done, ExtentFlags, Extents, Geometry, Result, Volume, WriteFeatures,
    Writer, ZeroOpts,
};

/// A disk in memory that panics when a request breaks what [`Device`] is promised: range within
/// the device, not empty, aligned to the block, no longer than the limit, FUA only when it is
/// native. A write stays in a volatile cache until a flush, as on a real disk.
#[derive(Clone, Debug)]
pub struct StrictDisk {
    /// What the device says of itself; `size` is set from the bytes.
    pub geometry: Geometry,
    /// What the device does by itself.
    pub features: WriteFeatures,
    /// Says Declined to every request to zero although it claims the feature.
    pub declines: bool,
}

impl StrictDisk {
    /// A disk that takes whole multiples of `min_block`, at most four blocks at a time, and does
    /// nothing natively.
    #[must_use]
    pub fn new(min_block: u32) -> Self {
        let geometry = Geometry {
            min_block,
            max_request: u64::from(min_block) * 4,
            ..Geometry::bytes(0)
        };
        Self {
            geometry,
            features: WriteFeatures::default(),
            declines: false,
        }
    }

    /// The same with these native features.
    #[must_use]
    pub fn features(mut self, features: WriteFeatures) -> Self {
        self.features = features;
        self
    }

    /// The same with this cost of a jump.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.geometry.access = access;
        self
    }

    /// A disk with these bytes, and a handle that looks past the volume.
    #[must_use]
    pub fn volume(mut self, bytes: Vec<u8>) -> (Volume, Strict) {
        self.geometry.size = bytes.len() as u64;
        let device = Strict {
            disk: Arc::new(self),
            state: Arc::new(Mutex::new(State {
                durable: bytes.clone(),
                bytes,
                flushes: 0,
            })),
        };
        (Volume::new(device.clone()), device)
    }
}

/// The device made by a [`StrictDisk`]; clones are the same disk.
#[derive(Clone, Debug)]
pub struct Strict {
    disk: Arc<StrictDisk>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    flushes: u64,
}

impl Strict {
    /// What a reader sees.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// What would be left after a power failure.
    #[must_use]
    pub fn durable(&self) -> Vec<u8> {
        self.state().durable.clone()
    }

    /// How many flushes there were.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, range: ByteRange) -> std::ops::Range<usize> {
        let geometry = &self.disk.geometry;
        let block = u64::from(geometry.min_block);
        assert!(!range.is_empty(), "empty request");
        assert!(range.end() <= geometry.size, "{range} leaves the device");
        assert!(
            range.start().is_multiple_of(block)
                && (range.end().is_multiple_of(block) || range.end() == geometry.size),
            "{range} is not aligned to {block}"
        );
        // Within a Vec, as just checked.
        range.start() as usize..range.end() as usize
    }

    fn check_data(&self, offset: u64, len: usize) -> std::ops::Range<usize> {
        let range = ByteRange::new(offset, len as u64).expect("Volume checks for overflow");
        assert!(
            range.len() <= self.disk.geometry.max_request,
            "{range} is too long"
        );
        self.check(range)
    }

    fn fill(&self, range: ByteRange, byte: u8, fua: bool) {
        assert!(!fua || self.disk.features.fua, "FUA is not native here");
        let range = self.check(range);
        let state = &mut *self.state();
        state.bytes[range.clone()].fill(byte);
        if fua {
            state.durable[range].fill(byte);
        }
    }
}

impl Device for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = self.check_data(offset, buf.len());
        buf.copy_from_slice(&self.state().bytes[range]);
        Ok(())
    }

    /// Every block of zeroes, until no further run is taken.
    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        assert!(!range.is_empty() && range.end() <= self.disk.geometry.size);
        let block = self.disk.geometry.min_block.max(512) as usize;
        let state = self.state();
        let first = range.start() as usize / block;
        for (index, bytes) in state.bytes.chunks(block).enumerate().skip(first) {
            if out.is_full() {
                break;
            }
            let end = (index * block + bytes.len()) as u64;
            let zero = bytes.iter().all(|&byte| byte == 0);
            let flags = if zero {
                ExtentFlags::ZERO
            } else {
                ExtentFlags::DATA
            };
            out.push_until(end, flags);
        }
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl Writer for Strict {
    fn features(&self) -> WriteFeatures {
        self.disk.features
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        assert!(!fua || self.disk.features.fua, "FUA is not native here");
        let range = self.check_data(offset, buf.len());
        let state = &mut *self.state();
        state.bytes[range.clone()].copy_from_slice(buf);
        if fua {
            state.durable[range].copy_from_slice(buf);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let state = &mut *self.state();
        state.durable.clone_from(&state.bytes);
        state.flushes += 1;
        Ok(())
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        assert!(self.disk.features.zero, "zero is not native here");
        if self.disk.declines {
            return Ok(Done::Declined);
        }
        self.fill(range, 0, opts.fua);
        Ok(Done::Yes)
    }

    /// Fills with `TRIMMED`: whoever relies on zeroes, or on the old bytes, is found out.
    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        assert!(self.disk.features.trim, "trim is not native here");
        self.fill(range, Self::TRIMMED, fua);
        Ok(())
    }
}

impl Strict {
    /// What trimmed bytes read as.
    pub const TRIMMED: u8 = 0xa5;
}
