//! Which span lies where.

use crc32fast::Hasher;

use super::zeroes::Zeroes;
use crate::sys::zlib::WINDOW;
use crate::{ByteRange, Error, Kind, Result};

/// Decoded bytes between two checkpoints, as long as the index is small enough.
pub(super) const DISTANCE: u64 = 4 << 20;
/// Where a stream begins no window is needed, so less than a full distance is worth a checkpoint:
/// one part in this many.
const STREAM_PART: u64 = 4;
/// Memory that a span takes beside its window, in bytes: [`Span`], what the heap adds to the window.
const BYTES_PER_SPAN: u64 = 80;
/// The level at which windows are compressed.
const LEVEL: i32 = 1;
/// No deflate data expands by more: 258 bytes out of two bits.
const MAX_RATIO: u64 = 1032;

/// Where decoding can begin.
#[derive(Debug)]
pub(super) enum Entry {
    /// In front of what stands before a stream.
    Stream,
    /// At a block, with the bytes before it as a zstd frame.
    Block(Box<[u8]>),
}

impl Entry {
    /// At a block behind the bytes `window`.
    ///
    /// # Errors
    /// None that is expected.
    pub(super) fn block(window: &[u8]) -> Result<Self> {
        let mut packed = vec![0; zstd_safe::compress_bound(window.len())];
        let len = zstd_safe::compress(&mut packed[..], window, LEVEL).map_err(|code| {
            let what = "cannot compress the window of a checkpoint";
            Error::new(Kind::Io, format!("{what}: zstd error {code}"))
        })?;
        packed.truncate(len);
        Ok(Self::Block(packed.into_boxed_slice()))
    }

    fn memory(&self) -> u64 {
        match self {
            Self::Stream => 0,
            Self::Block(packed) => super::wide(packed.len()),
        }
    }
}

/// The bytes that [`Entry::block`] was given.
///
/// # Errors
/// `Corrupt` when it is not from there.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let mut window = vec![0; WINDOW];
    let len = zstd_safe::decompress(&mut window[..], packed);
    let len = len.map_err(|_| Error::new(Kind::Corrupt, "the window of its checkpoint is damaged"));
    window.truncate(len?);
    Ok(window)
}

/// The decoded bytes between two entries. Never empty.
#[derive(Debug)]
pub(super) struct Span {
    /// Where they begin in the image.
    pub(super) start: u64,
    /// Where decoding begins: a bit of the volume below.
    pub(super) bit: u64,
    /// Of the decoded bytes. `None` in an index that was made without decoding: there each span is
    /// made of whole streams, which have their own checks.
    pub(super) crc32: Option<u32>,
    /// Whether they are all zero.
    pub(super) zero: bool,
    pub(super) entry: Entry,
}

impl Span {
    fn memory(&self) -> u64 {
        BYTES_PER_SPAN.saturating_add(self.entry.memory())
    }
}

/// All spans, in order and without gaps.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(super) spans: Vec<Span>,
    /// Decoded bytes.
    pub(super) size: u64,
    /// Where the last stream ends in the volume below, with what stands behind it: padding beyond
    /// that is never read again.
    pub(super) end: u64,
}

impl Index {
    /// One span that is all there is.
    pub(super) fn single(range: ByteRange, size: u64, crc32: u32) -> Self {
        let span = Span {
            start: 0,
            bit: range.start().saturating_mul(8),
            crc32: Some(crc32),
            zero: false,
            entry: Entry::Stream,
        };
        Self {
            spans: vec![span],
            size,
            end: range.end(),
        }
    }

    /// Decoded bytes of all spans.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// A span by its number.
    pub(super) fn span(&self, number: u64) -> Option<&Span> {
        self.spans.get(usize::try_from(number).ok()?)
    }

    /// Where the decoded bytes of a span lie; empty when there is no such span.
    pub(super) fn decoded(&self, number: u64) -> ByteRange {
        let start = self.span(number).map_or(self.size, |span| span.start);
        let next = self.span(number.saturating_add(1));
        ByteRange::between(start, next.map_or(self.size, |next| next.start))
    }

    /// Where its encoded bytes lie in the volume below.
    pub(super) fn encoded(&self, number: u64) -> ByteRange {
        let start = self.span(number).map_or(self.end, |span| span.bit / 8);
        let next = self.span(number.saturating_add(1));
        ByteRange::between(start, next.map_or(self.end, |next| next.bit.div_ceil(8)))
    }

    /// The number of the span that holds the byte `offset`.
    pub(super) fn find(&self, offset: u64) -> u64 {
        let after = self.spans.partition_point(|span| span.start <= offset);
        super::wide(after).saturating_sub(1)
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> u64 {
        memory(&self.spans)
    }

    /// Drops every second entry until it takes at most `limit` bytes of memory.
    pub(super) fn thin_out(&mut self, limit: u64) {
        while self.memory() > limit && self.spans.len() > 1 {
            self.spans = thin_out(std::mem::take(&mut self.spans), self.size);
        }
    }
}

/// Whether `encoded` bytes can become `decoded` ones.
pub(super) fn is_possible(encoded: u64, decoded: u64) -> bool {
    // A window size more, for what the ends of blocks hold in odd bits.
    decoded / MAX_RATIO <= encoded.saturating_add(2)
}

/// Puts an index together from its beginning on, within a bound of memory: when it is reached,
/// every second entry is dropped and the distance doubled.
#[derive(Debug)]
pub(crate) struct Builder {
    spans: Vec<Span>,
    /// Where the open span began.
    start: u64,
    bit: u64,
    entry: Entry,
    /// Whether the open span is all zero so far.
    zero: bool,
    zeroes: Zeroes,
    /// Decoded bytes so far.
    size: u64,
    distance: u64,
    memory: u64,
    limit: u64,
}

impl Builder {
    /// For an index of at most `limit` bytes of memory over streams that begin at the byte `at` of
    /// the volume below.
    pub(crate) fn new(at: u64, limit: u64) -> Self {
        Self::with_distance(at, DISTANCE, limit)
    }

    /// As [`Self::new`], with another distance at first.
    pub(super) fn with_distance(at: u64, distance: u64, limit: u64) -> Self {
        Self {
            spans: Vec::new(),
            start: 0,
            bit: at.saturating_mul(8),
            entry: Entry::Stream,
            zero: true,
            zeroes: Zeroes::default(),
            size: 0,
            distance,
            memory: 0,
            limit,
        }
    }

    /// Decoded bytes until an entry in the middle of a stream is due.
    pub(super) fn until_block(&self) -> u64 {
        self.distance.saturating_sub(self.open())
    }

    /// Whether an entry at the beginning of a stream would be good here.
    pub(crate) fn is_stream_due(&self) -> bool {
        self.open() >= self.distance / STREAM_PART
    }

    /// Decoded bytes of the open span.
    fn open(&self) -> u64 {
        self.size.saturating_sub(self.start)
    }

    /// The open span goes on with `len` bytes that are known to be all zero, or not.
    ///
    /// # Errors
    /// `Limit` beyond what an image can have.
    pub(crate) fn extend(&mut self, len: u64, zero: bool) -> Result<()> {
        self.zero &= zero;
        let size = self.size.checked_add(len);
        let size = size.filter(|size| *size <= u64::MAX >> 1);
        self.size = size.ok_or_else(|| {
            let what = format!("more than {} decoded bytes", self.size);
            Error::new(Kind::Limit, what)
        })?;
        Ok(())
    }

    /// Whether the open span is all zero so far.
    pub(super) fn is_zero(&self) -> bool {
        self.zero
    }

    /// A stream begins at the byte `at` of the volume below: closes the open span, whose checksum
    /// is given where it is known. That of zeroes always is.
    pub(crate) fn stream(&mut self, at: u64, crc32: Option<u32>) {
        self.enter(at.saturating_mul(8), Entry::Stream, crc32);
    }

    /// As [`Self::stream`], for an entry at any bit.
    pub(super) fn enter(&mut self, bit: u64, entry: Entry, crc32: Option<u32>) {
        let entry = std::mem::replace(&mut self.entry, entry);
        let zero = std::mem::replace(&mut self.zero, true);
        let len = self.open();
        let of_zeroes = || zero.then(|| self.zeroes.crc32(len));
        let crc32 = crc32.or_else(of_zeroes);
        let span = Span {
            start: self.start,
            bit: std::mem::replace(&mut self.bit, bit),
            crc32,
            zero,
            entry,
        };
        if len > 0 {
            self.memory = self.memory.saturating_add(span.memory());
            self.spans.push(span);
        }
        self.start = self.size;
        while self.memory > self.limit && self.spans.len() > 1 {
            self.spans = thin_out(std::mem::take(&mut self.spans), self.start);
            self.memory = memory(&self.spans);
            self.distance = self.distance.saturating_mul(2);
        }
    }

    /// All streams have ended, the last one at the byte `end` of the volume below.
    pub(crate) fn finish(mut self, end: u64, crc32: Option<u32>) -> Index {
        self.stream(end, crc32);
        self.spans.shrink_to_fit();
        Index {
            spans: self.spans,
            size: self.size,
            end,
        }
    }
}

/// Makes one span of two, each time; one that is left over stays. `end` is where the last one ends.
fn thin_out(spans: Vec<Span>, end: u64) -> Vec<Span> {
    let mut kept = Vec::with_capacity(spans.len().div_ceil(2));
    let mut old = spans.into_iter().peekable();
    while let Some(mut first) = old.next() {
        if let Some(second) = old.next() {
            let end = old.peek().map_or(end, |next| next.start);
            let len = end.saturating_sub(second.start);
            let before = second.start.saturating_sub(first.start);
            first.zero &= second.zero;
            first.crc32 = first.crc32.zip(second.crc32).map(|(one, two)| {
                let mut crc = Hasher::new_with_initial_len(one, before);
                crc.combine(&Hasher::new_with_initial_len(two, len));
                crc.finalize()
            });
        }
        kept.push(first);
    }
    kept
}

fn memory(spans: &[Span]) -> u64 {
    let each = spans.iter().map(Span::memory);
    each.fold(0, u64::saturating_add)
}
