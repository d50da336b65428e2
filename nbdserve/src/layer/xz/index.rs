//! Which block lies where: read once, at open, from the ends of the streams.

use super::header::{self, IndexParser, Record, STREAM_HEADER_SIZE, StreamFlags};
use crate::cx::Cancel;
use crate::layer::tail::{self, Tail};
use crate::{ByteRange, Error, Kind, Result, Volume};

/// First request for the end of a stream: most often all that is needed.
const WINDOW_FIRST: u64 = 64 << 10;
/// Longest request.
const WINDOW_LAST: u64 = tail::LONGEST;
/// Memory for a block while the index is being put together, in bytes.
const BYTES_PER_BLOCK: u64 = 64;
/// A stream that has blocks takes as much as this many of them.
const BLOCKS_PER_STREAM: u64 = 3;

/// One block of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Where its decoded bytes begin in the image.
    pub(super) start: u64,
    /// Decoded bytes.
    pub(super) len: u64,
    /// Where it begins in the file.
    pub(super) at: u64,
    /// Unpadded Size: header, compressed data and check, in bytes.
    pub(super) unpadded: u64,
    /// The Check ID of its stream.
    pub(super) check: u8,
}

impl Block {
    /// Bytes of the block in the file, padding included.
    pub(super) fn total(&self) -> u64 {
        self.unpadded.next_multiple_of(4)
    }

    /// Where they lie.
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::between(self.at, self.at.saturating_add(self.total()))
    }

    /// Its decoded bytes.
    pub(super) fn decoded(&self) -> ByteRange {
        ByteRange::between(self.start, self.start.saturating_add(self.len))
    }
}

/// All blocks of all streams, in order.
#[derive(Debug)]
pub(super) struct Index {
    blocks: Vec<Entry>,
    streams: Vec<Stream>,
    size: u64,
}

#[derive(Debug)]
struct Entry {
    start: u64,
    at: u64,
    unpadded: u64,
}

/// A stream with at least one block.
#[derive(Debug)]
struct Stream {
    /// Its first block in `Index::blocks`.
    first: usize,
    check: u8,
}

/// A stream as found on the way from the end of the file to its start.
#[derive(Debug)]
struct Found {
    start: u64,
    flags: StreamFlags,
    records: Vec<Record>,
}

impl Index {
    /// Reads the index of every stream of `below`, taking at most `memory` bytes.
    ///
    /// # Errors
    /// `NotThisFormat` when `below` does not start as an .xz file does; `Corrupt`, also for a
    /// file that is cut short or followed by anything but stream padding; `Unsupported`;
    /// `Limit`; what `below` says.
    pub(super) fn read(below: &Volume, memory: u64, cancel: &Cancel) -> Result<Self> {
        let mut tail = Tail::new(below, WINDOW_FIRST);
        check_start(&mut tail)?;
        let mut left = memory / BYTES_PER_BLOCK;
        let mut found = Vec::new();
        let mut end = below.size();
        while end > 0 {
            cancel.check()?;
            let footer_end = skip_padding(&mut tail, end)?;
            let stream = read_stream(&mut tail, footer_end, left)?;
            end = stream.start;
            // Empty streams are checked and need no memory, however many there are.
            if !stream.records.is_empty() {
                let blocks = wide(stream.records.len());
                left = left.saturating_sub(blocks.saturating_add(BLOCKS_PER_STREAM));
                found.push(stream);
            }
        }
        Self::assemble(found)
    }

    /// Puts streams, the last one first, in order.
    fn assemble(found: Vec<Found>) -> Result<Self> {
        let count = found.iter().map(|stream| stream.records.len()).sum();
        let mut index = Self {
            blocks: Vec::with_capacity(count),
            streams: Vec::with_capacity(found.len()),
            size: 0,
        };
        for stream in found.into_iter().rev() {
            index.streams.push(Stream {
                first: index.blocks.len(),
                check: stream.flags.check,
            });
            let mut at = stream.start.saturating_add(STREAM_HEADER_SIZE);
            for record in stream.records {
                index.blocks.push(Entry {
                    start: index.size,
                    at,
                    unpadded: record.unpadded,
                });
                // The sizes of the stream's blocks were summed up within the file's size.
                at = at.saturating_add(record.total());
                index.size = index
                    .size
                    .checked_add(record.uncompressed)
                    .filter(|size| *size <= u64::MAX >> 1)
                    .ok_or_else(|| {
                        Error::new(Kind::Corrupt, "the index claims more than 2^63 bytes")
                    })?;
            }
        }
        Ok(index)
    }

    /// Decoded bytes of all blocks.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Number of blocks.
    pub(super) fn count(&self) -> usize {
        self.blocks.len()
    }

    /// The Check IDs in use.
    pub(super) fn checks(&self) -> impl Iterator<Item = u8> {
        self.streams.iter().map(|stream| stream.check)
    }

    /// A block by its number; `None` when there are not so many.
    pub(super) fn block(&self, number: usize) -> Option<Block> {
        let entry = self.blocks.get(number)?;
        let next = number.checked_add(1).and_then(|next| self.blocks.get(next));
        let end = next.map_or(self.size, |next| next.start);
        let after = self.streams.partition_point(|one| one.first <= number);
        let stream = self.streams.get(after.checked_sub(1)?)?;
        Some(Block {
            start: entry.start,
            len: end.saturating_sub(entry.start),
            at: entry.at,
            unpadded: entry.unpadded,
            check: stream.check,
        })
    }

    /// The number of the block that holds the byte `offset`, which must be less than
    /// [`Self::size`].
    pub(super) fn find(&self, offset: u64) -> usize {
        // Of blocks that start at the same place all but the last one are empty.
        self.blocks
            .partition_point(|block| block.start <= offset)
            .saturating_sub(1)
    }
}

/// # Errors
/// `NotThisFormat` when the magic is missing, else why the first header is wrong.
fn check_start(tail: &mut Tail<'_>) -> Result<()> {
    let size = tail.below().size();
    if size < STREAM_HEADER_SIZE {
        return Err(Error::new(
            Kind::NotThisFormat,
            format!("{size} bytes are too few for an xz file"),
        ));
    }
    let bytes = tail.get(0, STREAM_HEADER_SIZE)?;
    if !bytes.starts_with(&header::HEADER_MAGIC) {
        return Err(Error::new(
            Kind::NotThisFormat,
            "it does not start with the magic fd 37 7a 58 5a 00",
        ));
    }
    header::stream_header(bytes, 0).map(drop)
}

/// Skips the Stream Padding (2.2) before `end`; where the footer before it ends.
fn skip_padding(tail: &mut Tail<'_>, end: u64) -> Result<u64> {
    let mut at = end;
    // Most streams have none or little of it, some have megabytes.
    let mut step = STREAM_HEADER_SIZE;
    while at > 0 {
        let len = at.min(step);
        step = step.saturating_mul(64).min(WINDOW_LAST);
        let start = at.saturating_sub(len);
        let bytes = tail.get(start, len)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            let footer_end = start.saturating_add(wide(last)).saturating_add(1);
            if !end.saturating_sub(footer_end).is_multiple_of(4) {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!(
                        "{} zero bytes at {footer_end}: stream padding comes in fours (the file \
                         is truncated or damaged)",
                        end.saturating_sub(footer_end)
                    ),
                ));
            }
            return Ok(footer_end);
        }
        at = start;
    }
    Err(Error::new(Kind::Corrupt, "nothing but zeroes"))
}

/// Reads the stream that ends at `end`.
fn read_stream(tail: &mut Tail<'_>, end: u64, max_records: u64) -> Result<Found> {
    let truncated = || {
        Error::new(
            Kind::Corrupt,
            format!("the {end} bytes before {end} are too few for a stream"),
        )
    };
    let footer_at = end.checked_sub(STREAM_HEADER_SIZE).ok_or_else(truncated)?;
    let footer = header::stream_footer(tail.get(footer_at, STREAM_HEADER_SIZE)?, footer_at)?;
    let index_at = footer_at
        .checked_sub(footer.index_size)
        .filter(|at| *at >= STREAM_HEADER_SIZE)
        .ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                format!(
                    "the stream footer at {footer_at} claims an index of {} bytes",
                    footer.index_size
                ),
            )
        })?;
    let (records, blocks) = read_index(tail, index_at, footer.index_size, max_records)?;
    let start = index_at
        .checked_sub(blocks)
        .and_then(|at| at.checked_sub(STREAM_HEADER_SIZE))
        .ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                format!("the index at {index_at} claims {blocks} bytes of blocks before it"),
            )
        })?;
    let flags = header::stream_header(tail.get(start, STREAM_HEADER_SIZE)?, start)?;
    if flags != footer.flags {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "the stream header at {start} says check {}, its footer at {footer_at} says {}",
                flags.check, footer.flags.check
            ),
        ));
    }
    Ok(Found {
        start,
        flags,
        records,
    })
}

/// The records of the Index at `at`, and the bytes that their blocks take in the file.
fn read_index(
    tail: &mut Tail<'_>,
    at: u64,
    size: u64,
    max_records: u64,
) -> Result<(Vec<Record>, u64)> {
    let mut parser = IndexParser::new(size, max_records);
    let mut records = Vec::new();
    let mut blocks: u64 = 0;
    let mut done: u64 = 0;
    while done < size {
        let len = size.saturating_sub(done).min(WINDOW_LAST);
        let bytes = tail.get(at.saturating_add(done), len)?;
        parser.take(bytes, |record| {
            blocks = blocks.saturating_add(record.total());
            records.push(record);
            Ok(())
        })?;
        done = done.saturating_add(len);
    }
    parser
        .finish()
        .map_err(|error| Error::new(error.kind(), format!("{error} (it begins at {at})")))?;
    records.shrink_to_fit();
    Ok((records, blocks))
}

/// A length in memory as one in a file.
fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
