//! Where the blocks of a format without an index of its own lie: neighbouring units (frames, small
//! blocks) are put together until decoding them is worth the bookkeeping.

use crate::{ByteRange, Cx, Error, Kind, Result};

use super::INDEX_PART;
use super::scan::wide;

/// A block is long enough when it has this many decoded bytes.
const ENOUGH: u64 = 1 << 20;
/// Units are not put together beyond this many decoded bytes.
const MOST: u64 = 4 << 20;
/// Nor beyond this many encoded bytes: units may be empty.
const MOST_ENCODED: u64 = 8 << 20;
/// Memory that a block takes while the index grows.
const BYTES_PER_SPAN: u64 = 64;
/// Bytes of a block in [`Spans::to_bytes`].
const SAVED: usize = 24;

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Where its decoded bytes begin in the image.
    pub(super) start: u64,
    /// Decoded bytes.
    pub(super) len: u64,
    /// Where its encoded bytes lie.
    pub(super) range: ByteRange,
    /// What the layer has noted about it.
    pub(super) note: u64,
}

impl Span {
    /// Where its encoded bytes begin, and its decoded bytes.
    pub(super) fn place(self) -> (u64, ByteRange) {
        let end = self.start.saturating_add(self.len);
        (self.range.start(), ByteRange::between(self.start, end))
    }
}

/// All blocks, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Spans {
    entries: Vec<Entry>,
    /// Decoded bytes.
    size: u64,
    /// Encoded bytes.
    end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    at: u64,
    note: u64,
}

impl Spans {
    /// Decoded bytes of all blocks.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Number of blocks.
    pub(super) fn count(&self) -> u64 {
        wide(self.entries.len())
    }

    /// A block by its number; `None` when there are not so many.
    pub(super) fn get(&self, number: u64) -> Option<Span> {
        let number = usize::try_from(number).ok()?;
        let entry = self.entries.get(number)?;
        let next = number
            .checked_add(1)
            .and_then(|next| self.entries.get(next));
        let (end, until) = next.map_or((self.size, self.end), |next| (next.start, next.at));
        Some(Span {
            start: entry.start,
            len: end.saturating_sub(entry.start),
            range: ByteRange::between(entry.at, until),
            note: entry.note,
        })
    }

    /// The number of the block that holds the byte `offset`, which must be less than
    /// [`Self::size`].
    pub(super) fn find(&self, offset: u64) -> u64 {
        // Of blocks that start at the same place all but the last one are empty.
        let after = self.entries.partition_point(|one| one.start <= offset);
        wide(after.saturating_sub(1))
    }

    /// In a form that [`Self::from_bytes`] reads.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len().saturating_mul(SAVED));
        for number in 0..self.count() {
            let Some(span) = self.get(number) else { break };
            for value in [span.len, span.range.len(), span.note] {
                bytes.extend(value.to_le_bytes());
            }
        }
        bytes
    }

    /// What [`Self::to_bytes`] has made for a file of `end` bytes; `None` for anything else.
    pub(super) fn from_bytes(bytes: &[u8], end: u64) -> Option<Self> {
        let mut spans = Self::default();
        let (parts, rest) = bytes.as_chunks::<SAVED>();
        for part in parts {
            let (numbers, _) = part.as_chunks::<8>();
            let [len, encoded, note] = numbers else {
                return None;
            };
            spans.entries.push(Entry {
                start: spans.size,
                at: spans.end,
                note: u64::from_le_bytes(*note),
            });
            spans.size = spans.size.checked_add(u64::from_le_bytes(*len))?;
            spans.end = spans.end.checked_add(u64::from_le_bytes(*encoded))?;
        }
        (rest.is_empty() && spans.end == end && spans.size <= u64::MAX >> 1).then_some(spans)
    }
}

/// Puts units together.
#[derive(Debug)]
pub(super) struct Builder {
    spans: Spans,
    /// The last entry may still grow.
    open: bool,
    most: u64,
    /// The note of a block, from that of the units before and that of the next one.
    merge: fn(u64, u64) -> u64,
}

/// A point to go back to.
#[derive(Debug)]
pub(super) struct Mark {
    count: usize,
    last: Option<Entry>,
    size: u64,
    open: bool,
}

impl Builder {
    /// Nothing yet; the index takes its part of the budget at most.
    pub(super) fn new(merge: fn(u64, u64) -> u64, cx: &Cx) -> Self {
        Self {
            spans: Spans::default(),
            open: false,
            most: cx.cache.budget() / INDEX_PART / BYTES_PER_SPAN,
            merge,
        }
    }

    /// The next unit begins at `at` and has `len` decoded bytes.
    ///
    /// # Errors
    /// `Limit` when there are too many blocks, `Corrupt` when they sum up to more than there can be.
    pub(super) fn unit(&mut self, at: u64, len: u64, note: u64) -> Result<()> {
        let merge = self.merge;
        let size = self.spans.size;
        if let Some(last) = self.spans.entries.last_mut().filter(|_| self.open) {
            let so_far = size.saturating_sub(last.start);
            let encoded = at.saturating_sub(last.at);
            let fits = so_far.saturating_add(len) <= MOST && so_far < ENOUGH || len == 0;
            if fits && encoded < MOST_ENCODED {
                last.note = merge(last.note, note);
                return self.grow(len);
            }
        }
        if self.spans.count() >= self.most {
            let what = format!(
                "an index of more than {} blocks, which is what the memory that is allowed can \
                 hold",
                self.most
            );
            return Err(
                Error::new(Kind::Limit, what).hint("give more memory with --cache-size=SIZE")
            );
        }
        // What lies before the first unit goes with it.
        let at = if self.spans.entries.is_empty() { 0 } else { at };
        self.spans.entries.push(Entry {
            start: size,
            at,
            note,
        });
        self.open = true;
        self.grow(len)
    }

    /// The next unit begins a block of its own; the number of that block if it comes.
    pub(super) fn close(&mut self) -> u64 {
        self.open = false;
        self.spans.count()
    }

    /// What there is so far, for [`Self::rewind`].
    pub(super) fn mark(&self) -> Mark {
        Mark {
            count: self.spans.entries.len(),
            last: self.spans.entries.last().copied(),
            size: self.spans.size,
            open: self.open,
        }
    }

    /// Forgets all units that came after `mark`.
    pub(super) fn rewind(&mut self, mark: &Mark) {
        self.spans.entries.truncate(mark.count);
        if let (Some(entry), Some(last)) = (self.spans.entries.last_mut(), mark.last) {
            *entry = last;
        }
        self.spans.size = mark.size;
        self.open = mark.open;
    }

    fn grow(&mut self, len: u64) -> Result<()> {
        let size = self.spans.size.checked_add(len);
        self.spans.size = size
            .filter(|size| *size <= u64::MAX >> 1)
            .ok_or_else(|| Error::new(Kind::Corrupt, "the frames claim more than 2^63 bytes"))?;
        Ok(())
    }

    /// The file ends at `end`.
    pub(super) fn finish(mut self, end: u64) -> Spans {
        self.spans.end = end;
        self.spans.entries.shrink_to_fit();
        self.spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(units: &[(u64, u64)], end: u64) -> Spans {
        let mut builder = Builder::new(u64::max, &Cx::new(64 << 20));
        for (at, len) in units {
            builder
                .unit(*at, *len, *at)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        builder.finish(end)
    }

    #[test]
    fn small_units_share_a_block_and_empty_ones_never_have_their_own() {
        let units: Vec<_> = (0..100).map(|n| (n * 10, 100_000 * (n % 2))).collect();
        let spans = build(&units, 1000);
        assert_eq!((spans.size(), spans.count()), (5_000_000, 5));
        for number in 0..5 {
            let span = spans.get(number);
            let span = span.unwrap_or_else(|| panic!("{number}"));
            assert_eq!(span.start, number * 1_100_000);
            assert_eq!(spans.find(span.start), number);
            assert_eq!(spans.find(span.start + span.len - 1), number);
        }
        assert_eq!(spans.get(4).map(|span| span.range.end()), Some(1000));
    }

    #[test]
    fn many_empty_units_do_not_make_a_block_of_any_length() {
        let units: Vec<_> = (0..100).map(|n| (n << 20, 0)).collect();
        assert!(build(&units, 100 << 20).count() > 10);
    }

    #[test]
    fn what_was_saved_is_found_again_and_nothing_else_is() {
        let spans = build(&[(5, 3 << 20), (70, 2 << 20), (90, 9)], 100);
        let bytes = spans.to_bytes();
        assert_eq!(Spans::from_bytes(&bytes, 100), Some(spans));
        assert_eq!(Spans::from_bytes(&bytes, 101), None);
        assert_eq!(Spans::from_bytes(&bytes[1..], 100), None);
        let mut bytes = bytes;
        bytes[..8].fill(0xff);
        assert_eq!(Spans::from_bytes(&bytes, 100), None);
    }

    #[test]
    fn units_can_be_taken_back() {
        let mut builder = Builder::new(u64::max, &Cx::new(64 << 20));
        let take = |builder: &mut Builder, units: &[(u64, u64)]| {
            for (at, len) in units {
                builder
                    .unit(*at, *len, *at)
                    .unwrap_or_else(|error| panic!("{error}"));
            }
        };
        take(&mut builder, &[(0, 100), (10, 100)]);
        let mark = builder.mark();
        take(&mut builder, &[(20, 100), (30, 5 << 20), (40, 7)]);
        builder.rewind(&mark);
        take(&mut builder, &[(20, 7)]);
        assert_eq!(
            builder.finish(50),
            build(&[(0, 100), (10, 100), (20, 7)], 50)
        );
    }

    #[test]
    fn more_blocks_than_memory_are_refused() {
        let mut builder = Builder::new(u64::max, &Cx::new(64 << 10));
        let result = (0..200).try_for_each(|n| builder.unit(n * 10, 5 << 20, 0));
        assert_eq!(result.map_err(|error| error.kind()), Err(Kind::Limit));
    }
}
