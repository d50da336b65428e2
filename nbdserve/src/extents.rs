//! Which parts of a device are allocated, and which are known to be zero.

use crate::ByteRange;

/// Two independent facts about a range, as in NBD's `base:allocation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExtentFlags {
    /// Nothing is stored for the range.
    pub hole: bool,
    /// The range is proven to read as zeroes.
    pub zero: bool,
}

impl ExtentFlags {
    /// Stored bytes of unknown value.
    pub const DATA: Self = Self {
        hole: false,
        zero: false,
    };
    /// Stored or computed bytes that are all zero.
    pub const ZERO: Self = Self {
        hole: false,
        zero: true,
    };
    /// Nothing stored, reads as zeroes.
    pub const HOLE: Self = Self {
        hole: true,
        zero: true,
    };
}

/// A run of bytes with the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where; never empty.
    pub range: ByteRange,
    /// What is known of it.
    pub flags: ExtentFlags,
}

/// The answer to an extents query: neighbouring runs from the start of the asked range on.
/// Equal neighbours are merged; the number of runs is bounded.
#[derive(Clone, Debug)]
pub struct Extents {
    asked: ByteRange,
    runs: Vec<Extent>,
    max_runs: usize,
    /// A run was refused: nothing after it may be taken, or it would be taken for its bytes.
    closed: bool,
}

impl Extents {
    /// An empty answer for `asked`, of at most `max_runs` runs (at least one).
    #[must_use]
    pub fn new(asked: ByteRange, max_runs: usize) -> Self {
        Self {
            asked,
            runs: Vec::new(),
            max_runs: max_runs.max(1),
            closed: false,
        }
    }

    /// Where the next run starts.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.runs
            .last()
            .map_or(self.asked.start(), |run| run.range.end())
    }

    /// The range that was asked for.
    #[must_use]
    pub fn asked(&self) -> ByteRange {
        self.asked
    }

    /// Whether the asked range is covered or a run was refused because there are too many.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.closed || self.next_offset() >= self.asked.end()
    }

    /// Adds a run up to `end` (cut at the end of the asked range), or continues the last one when
    /// the flags are the same. Does nothing when `end` is not beyond [`Self::next_offset`]. The
    /// first run that is one too many is refused, and so is everything after it.
    pub fn push_until(&mut self, end: u64, flags: ExtentFlags) {
        let start = self.next_offset();
        let end = end.min(self.asked.end());
        if end <= start || self.closed {
            return;
        }
        if let Some(last) = self.runs.last_mut()
            && last.flags == flags
        {
            last.range = ByteRange::between(last.range.start(), end);
            return;
        }
        if self.runs.len() >= self.max_runs {
            self.closed = true;
            return;
        }
        self.runs.push(Extent {
            range: ByteRange::between(start, end),
            flags,
        });
    }

    /// The runs, in order, without gaps.
    #[must_use]
    pub fn runs(&self) -> &[Extent] {
        &self.runs
    }

    /// How many more runs are taken.
    #[must_use]
    pub(crate) fn room(&self) -> usize {
        self.max_runs.saturating_sub(self.runs.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_merge_and_the_end_is_cut() {
        let mut out = Extents::new(ByteRange::between(10, 100), 8);
        out.push_until(20, ExtentFlags::HOLE);
        out.push_until(30, ExtentFlags::HOLE);
        out.push_until(30, ExtentFlags::DATA);
        out.push_until(500, ExtentFlags::DATA);
        let runs: Vec<_> = out
            .runs()
            .iter()
            .map(|run| (run.range.start(), run.range.end()))
            .collect();
        assert_eq!(runs, [(10, 30), (30, 100)]);
        assert!(out.is_full());
    }

    #[test]
    fn a_hole_after_refused_data_does_not_cover_the_data() {
        let mut out = Extents::new(ByteRange::between(0, 100), 1);
        out.push_until(10, ExtentFlags::HOLE);
        out.push_until(15, ExtentFlags::HOLE);
        assert!(!out.is_full());
        out.push_until(20, ExtentFlags::DATA);
        assert!(out.is_full());
        out.push_until(30, ExtentFlags::HOLE);
        assert_eq!(out.next_offset(), 15);
    }
}
