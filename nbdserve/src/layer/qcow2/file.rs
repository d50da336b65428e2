//! A file that clusters lie in: the image's own, or its data file.

use crate::layer::scan::{narrow, wide};
use crate::{ByteRange, Extents, Result, Volume};

/// A file of clusters. The last one may be cut short: what is missing reads as zeroes.
#[derive(Clone, Debug)]
pub(super) struct HostFile {
    volume: Volume,
}

impl HostFile {
    /// All of `volume`.
    pub(super) fn new(volume: &Volume) -> Self {
        Self {
            volume: volume.clone(),
        }
    }

    /// The volume itself.
    pub(super) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Bytes of it, at this moment.
    pub(super) fn size(&self) -> u64 {
        self.volume.size()
    }

    /// Fills `buf` with the bytes at `at`, with zeroes behind the end.
    ///
    /// # Errors
    /// What the volume says.
    pub(super) fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let here = self.size().saturating_sub(at).min(wide(buf.len()));
        let (now, beyond) = buf.split_at_mut(narrow(here));
        beyond.fill(0);
        if now.is_empty() {
            return Ok(());
        }
        self.volume.read_at(now, at)
    }

    /// What is known of the bytes `part`, which are shown at `shown`: up to where they or the file
    /// end.
    ///
    /// # Errors
    /// What the volume says.
    pub(super) fn extents(&self, part: ByteRange, shown: u64, out: &mut Extents) -> Result<()> {
        let part = ByteRange::between(part.start(), part.end().min(self.size()));
        self.volume.extents_placed(part, shown, out)
    }
}
