//! Bytes in memory: for tests and small fixed parts.

use std::sync::{PoisonError, RwLock};

use crate::{Device, Done, Error, Geometry, Kind, Result, Volume, WriteFeatures, Writer};

/// A writable device over a `Vec<u8>`.
#[derive(Debug)]
pub struct Memory {
    writable: bool,
    bytes: RwLock<Vec<u8>>,
}

impl Memory {
    /// A device with these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            writable: true,
            bytes: RwLock::new(bytes),
        }
    }

    /// The same, as a volume.
    #[must_use]
    pub fn volume(bytes: Vec<u8>) -> Volume {
        Volume::new(Self::new(bytes))
    }

    /// A volume with these bytes that cannot be written.
    #[must_use]
    pub fn read_only(bytes: Vec<u8>) -> Volume {
        Volume::new(Self {
            writable: false,
            ..Self::new(bytes)
        })
    }
}

impl Device for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn geometry(&self) -> Geometry {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        Geometry::bytes(bytes.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        // Volume has checked the range against a size that came from a Vec.
        let start = offset as usize;
        buf.copy_from_slice(&bytes[start..start + buf.len()]);
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.writable.then_some(self)
    }
}

impl Writer for Memory {
    fn features(&self) -> WriteFeatures {
        WriteFeatures {
            fua: true,
            zero: false,
            trim: false,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let start = offset as usize;
        bytes[start..start + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn grow(&self, size: u64) -> Result<Done> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let more = size.saturating_sub(bytes.len() as u64);
        let no_room = || Error::new(Kind::NoSpace, format!("no memory for {size} bytes"));
        let more = usize::try_from(more).map_err(|_| no_room())?;
        bytes.try_reserve(more).map_err(|_| no_room())?;
        let len = bytes.len() + more;
        bytes.resize(len, 0);
        Ok(Done::Yes)
    }
}
