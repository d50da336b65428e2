//! Half-open ranges of bytes whose end cannot overflow.

use std::fmt;

/// The bytes `start..end` of a device. `start <= end` always holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The `len` bytes from `start`; `None` when `start + len` exceeds `u64::MAX`.
    #[must_use]
    pub fn new(start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        Some(Self { start, end })
    }

    /// The bytes `start..end`; an `end` before `start` gives the empty range at `start`.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Self {
        Self {
            start,
            end: end.max(start),
        }
    }

    /// The bytes that `buf` takes up from `offset` on, which `Volume` has checked not to overflow.
    #[must_use]
    pub(crate) fn of(buf: &[u8], offset: u64) -> Self {
        Self::between(offset, offset.saturating_add(buf.len() as u64))
    }

    /// First byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the range holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The bytes in both ranges, empty at `self.start` when they do not meet.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end {
            Self { start, end }
        } else {
            Self::between(self.start, self.start)
        }
    }

    /// Whether every byte of `other` is in `self`.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start, self.end)
    }
}
