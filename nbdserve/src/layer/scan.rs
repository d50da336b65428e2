//! Reads forward through a volume, for headers that lie one behind the other.

use super::cut::cut_off;
use crate::{ByteRange, Result, Volume};

/// The first request, and that after a jump: headers only.
const FIRST: u64 = 4 << 10;
/// The longest request.
const LAST: u64 = 1 << 20;
/// Less than this is no jump: what lies between is read, or at least belongs to the same stream.
const NEAR: u64 = 256 << 10;
/// The volume below is told of this much in advance.
const AHEAD: u64 = 4 << 20;
/// What is longer would have to leave memory before it is read.
const PASSED: u64 = 16 << 20;

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

    /// The end of what begins at `at` and has `size` bytes.
    ///
    /// # Errors
    /// `Corrupt` when the volume ends before.
    pub(super) fn end(&self, at: u64, size: u64) -> Result<u64> {
        let file = self.size();
        let end = at.checked_add(size).filter(|end| *end <= file);
        end.ok_or_else(|| {
            cut_off(format!(
                "the file is truncated: what begins at {at} has {size} bytes, the file ends at {file}"
            ))
        })
    }

    /// What lies between two places that are looked at will be read by somebody else, soon. Where
    /// the next place is comes with it.
    pub(super) fn passes(&self, at: u64, next: u64) {
        if self.below.gathers() && next.saturating_sub(at) <= PASSED {
            let end = next.saturating_add(FIRST).min(self.size());
            self.below.will_need(ByteRange::between(at.min(end), end));
        }
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
            let known = !self.bytes.is_empty() && at >= self.start;
            let near = known && at <= here.saturating_add(NEAR);
            self.window = if near {
                self.window.saturating_mul(4).min(LAST)
            } else {
                FIRST
            };
            // What is there already stays.
            let kept = if near { here.saturating_sub(at) } else { 0 };
            let gone = self.bytes.len().saturating_sub(narrow(kept));
            self.bytes.drain(..gone);
            self.start = at;
            let from = at.saturating_add(kept);
            let want = self.window.max(end.saturating_sub(from));
            let until = from.saturating_add(want).min(size);
            let len = narrow(until.saturating_sub(at));
            self.bytes.resize(len, 0);
            let new = self.bytes.get_mut(narrow(kept)..).unwrap_or(&mut []);
            if let Err(error) = self.below.read_at(new, from) {
                self.bytes.clear();
                return Err(error);
            }
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
