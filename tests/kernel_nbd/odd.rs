//! A volume that counts, and that hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nbdserve::{Device, Geometry, Result, Volume, WriteFeatures, Writer};

use crate::MIB;

/// Counts flushes; reads from `STUCK` on never end.
#[derive(Debug)]
pub(crate) struct Odd {
    flushes: Arc<AtomicUsize>,
    stuck: Arc<AtomicUsize>,
}

/// Where [`Odd`] begins to hang: beyond what the kernel reads by itself at the beginning, and not
/// where it looks for a partition table at the end.
pub(crate) const STUCK: u64 = 16 * MIB;
const STUCK_END: u64 = 32 * MIB;
const ODD_SIZE: u64 = 64 * MIB;

impl Odd {
    pub(crate) fn volume() -> (Volume, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let flushes = Arc::new(AtomicUsize::new(0));
        let stuck = Arc::new(AtomicUsize::new(0));
        let volume = Volume::new(Self {
            flushes: Arc::clone(&flushes),
            stuck: Arc::clone(&stuck),
        });
        (volume, flushes, stuck)
    }
}

impl Device for Odd {
    fn name(&self) -> &'static str {
        "odd"
    }

    fn geometry(&self) -> Geometry {
        Geometry::bytes(ODD_SIZE)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if (STUCK..STUCK_END).contains(&offset) {
            self.stuck.fetch_add(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        }
        buf.fill(1);
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl Writer for Odd {
    fn features(&self) -> WriteFeatures {
        WriteFeatures {
            fua: true,
            zero: false,
            trim: true,
        }
    }

    fn write_at(&self, _buf: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
