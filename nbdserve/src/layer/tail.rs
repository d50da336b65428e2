//! Formats that are read from their end.

use crate::{Result, Volume};

/// Longest request.
pub(super) const LONGEST: u64 = 1 << 20;

/// Reads from the end of a volume towards its start with few requests: what is asked for is read
/// together with what lies before it, and more of it while the requests stay close together.
#[derive(Debug)]
pub(super) struct Tail<'a> {
    below: &'a Volume,
    bytes: Vec<u8>,
    start: u64,
    first: u64,
    window: u64,
}

impl<'a> Tail<'a> {
    /// Requests have `first` bytes where they are far from those before.
    pub(super) fn new(below: &'a Volume, first: u64) -> Self {
        Self {
            below,
            bytes: Vec::new(),
            start: 0,
            first,
            window: first,
        }
    }

    /// What is read.
    pub(super) fn below(&self) -> &Volume {
        self.below
    }

    /// The `len` bytes (at most [`LONGEST`]) at `start`.
    ///
    /// # Errors
    /// What the volume says.
    pub(super) fn get(&mut self, start: u64, len: u64) -> Result<&[u8]> {
        let end = start.saturating_add(len);
        let here = self.start.saturating_add(wide(self.bytes.len()));
        if start < self.start || end > here {
            let near = !self.bytes.is_empty() && end >= self.start && end <= here;
            self.window = if near {
                self.window.saturating_mul(2).min(LONGEST)
            } else {
                self.first
            };
            let from = end.saturating_sub(self.window.max(len));
            let len = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
            self.bytes.resize(len, 0);
            self.start = from;
            self.below.read_at(&mut self.bytes, from)?;
        }
        let skip = usize::try_from(start.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        // Both were brought within `bytes` above.
        Ok(self
            .bytes
            .get(skip..skip.saturating_add(len))
            .unwrap_or(&[]))
    }
}

/// A length in memory as one in a file.
fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
