//! Reads forward through a volume, for headers that lie one behind the other.

use crate::{ByteRange, Result, Volume};

/// The first request, and that after a jump: headers only.
const FIRST: u64 = 4 << 10;
/// The longest request.
const LAST: u64 = 1 << 20;
/// Less than this is no jump: what lies between is read, or at least belongs to the same stream.
const NEAR: u64 = 256 << 10;
/// The volume below is told of this much in advance.
const AHEAD: u64 = 4 << 20;

/// A volume that is looked at from its start on. What lies close together is read in large requests,
/// what lies far apart in small ones.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    below: &'a Volume,
    bytes: Vec<u8>,
    start: u64,
    window: u64,
}

impl<'a> Scan<'a> {
    /// Nothing is read yet.
    pub(super) fn new(below: &'a Volume) -> Self {
        Self {
            below,
            bytes: Vec::new(),
            start: 0,
            window: FIRST,
        }
    }

    /// Bytes of the volume.
    pub(super) fn size(&self) -> u64 {
        self.below.size()
    }

    /// The `len` bytes at `at`; fewer where the volume ends.
    ///
    /// # Errors
    /// What the volume below says.
    pub(super) fn get(&mut self, at: u64, len: u64) -> Result<&[u8]> {
        let size = self.below.size();
        let end = at.saturating_add(len).min(size);
        let at = at.min(end);
        let here = self.start.saturating_add(wide(self.bytes.len()));
        if at < self.start || end > here {
            let near =
                !self.bytes.is_empty() && at >= self.start && at <= here.saturating_add(NEAR);
            self.window = if near {
                self.window.saturating_mul(4).min(LAST)
            } else {
                FIRST
            };
            let want = self.window.max(end.saturating_sub(at));
            let until = at.saturating_add(want).min(size);
            let len = usize::try_from(until.saturating_sub(at)).unwrap_or(usize::MAX);
            self.bytes.resize(len, 0);
            self.start = at;
            self.below.read_at(&mut self.bytes, at)?;
            let ahead = ByteRange::between(until, until.saturating_add(AHEAD).min(size));
            if self.window == LAST && !ahead.is_empty() {
                self.below.will_need(ahead);
            }
        }
        let skip = narrow(at.saturating_sub(self.start));
        let len = narrow(end.saturating_sub(at));
        // Both were brought within `bytes` above.
        Ok(self
            .bytes
            .get(skip..skip.saturating_add(len))
            .unwrap_or(&[]))
    }
}

/// A length in memory as one in a file.
pub(super) fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A length in a file as one in memory, where it is known to fit.
pub(super) fn narrow(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
