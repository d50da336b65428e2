//! The pass over a file at its first opening: all of it is decoded, and what is decoded is kept.
//!
//! Only the decoder knows where a block ends. But each block begins with a magic, so the file is
//! searched for those, and what is between two of them is decoded by the pool as one block. That
//! may be wrong: the 48 bits of a magic may be there by chance, or be put there. So this thread
//! walks from block to block. It takes what was decoded for the block that it has come to, goes on
//! where that ends, and forgets what was begun at magics in between. When the bits between two
//! magics were no block, the decoder is asked where the block does end.

use std::collections::VecDeque;
use std::sync::Arc;

use super::bits::{self, byte, next_byte};
use super::header::{self, BLOCK_MOST, END_BITS, MAGIC_BITS, STREAM_HEADER, combine};
use super::index::{Block, Builder, Index};
use super::scan::{Mark, Scanner, Span, What};
use super::speculate::{Alike, Encoded, Outcome, Piece, Task, put_all};
use super::wrapped::{self, AHEAD, Failure, decoder_memory};
use crate::cache::{Shelf, Stored, Whole};
use crate::layer::INDEX_PART;
use crate::{Cx, Error, Kind, Result, Volume};

/// Of the memory budget, blocks that wait for their turn take at most one part in this many,
/// unless there is only one of them.
const AHEAD_PART: u64 = 4;
/// Encoded bytes of a block that are counted: most are shorter.
const ENCODED: u64 = 1 << 20;
/// Decoded bytes of a block that may wait are at least these, and at most those. Of zeroes any
/// number may.
const WAITING_LEAST: u64 = 256 << 10;
const WAITING_MOST: u64 = 16 << 20;
/// Enough for the bytes of nearly every block.
const WAITING: u64 = 1 << 20;
/// Bytes per request to the volume below, unless memory is short.
const REQUEST: u64 = 1 << 20;
const REQUEST_LEAST: u64 = 64 << 10;
/// What the pass takes beside, rounded up.
const REST: u64 = 512 << 10;
/// Of the memory budget, a request takes at most one part in this many.
const REQUEST_PART: u64 = 32;
/// More magics than this are not looked at in advance, of whatever sort.
const MARKS: usize = 256;

/// Decodes all of `below`, whose first stream has this level.
///
/// # Errors
/// `Corrupt`, also for a file that is cut short or followed by anything but streams; `Limit`,
/// `NoSpace`; what `below` says.
pub(super) fn run(below: &Volume, level: u8, cx: &Cx) -> Result<(Index, Stored)> {
    let memory = Memory::plan(cx);
    let mut shelf = Shelf::new("bzip2", cx)?;
    let whole = shelf.begin("the image", memory.total(), below.size())?;
    let mut pass = Pass {
        below,
        cx,
        scanner: Scanner::new(below, level, memory.request),
        memory,
        items: VecDeque::new(),
        tasks: 0,
        alike: Arc::default(),
        whole,
        builder: Builder::new(cx.cache.budget() / INDEX_PART),
        stream: Stream::at(0, level),
    };
    pass.walk()?;
    let Pass { whole, builder, .. } = pass;
    Ok((builder.finish(), whole.finish()?))
}

/// How much is done in advance, and in what portions.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// Blocks that are decoded or wait.
    tasks: usize,
    /// Decoded bytes that are kept of one.
    waiting: u64,
    /// Bytes of a request.
    request: u64,
}

impl Memory {
    fn plan(cx: &Cx) -> Self {
        let budget = cx.cache.budget();
        let request = (budget / REQUEST_PART).clamp(REQUEST_LEAST, REQUEST);
        let share = budget / AHEAD_PART;
        // One more than there are threads, so that none waits for this one, and one that is ready.
        let wanted = cx.pool.threads().saturating_add(2);
        let one = Self::fixed().saturating_add(WAITING);
        let fit = share.checked_div(one).unwrap_or(0);
        let tasks = usize::try_from(fit).unwrap_or(wanted).min(wanted);
        if tasks > 1 {
            let each = share.checked_div(u64::try_from(tasks).unwrap_or(1));
            let waiting = each.unwrap_or(0).saturating_sub(Self::fixed());
            return Self {
                tasks,
                waiting: waiting.clamp(WAITING, WAITING_MOST),
                request,
            };
        }
        let least = Self {
            tasks: 1,
            waiting: WAITING_LEAST,
            request,
        };
        let more = budget.saturating_sub(least.total().saturating_add(REST));
        let waiting = WAITING_LEAST.saturating_add(more / 2).min(WAITING);
        Self { waiting, ..least }
    }

    /// What one block takes beside its decoded bytes.
    fn fixed() -> u64 {
        decoder_memory(9).saturating_add(ENCODED)
    }

    fn total(self) -> u64 {
        let tasks = u64::try_from(self.tasks).unwrap_or(u64::MAX);
        let one = Self::fixed().saturating_add(self.waiting);
        let window = Scanner::memory(self.request);
        tasks.saturating_mul(one).saturating_add(window)
    }
}

/// A magic and what was begun at it.
#[derive(Debug)]
struct Item {
    at: u64,
    crc: u32,
    kind: ItemKind,
}

#[derive(Debug)]
enum ItemKind {
    Block {
        /// The level that was guessed.
        level: u8,
        /// The bit behind what is being decoded, and who does that.
        task: Option<(u64, Task)>,
    },
    End {
        next: Option<u8>,
    },
}

/// The stream that the walk is in.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The byte at which it begins.
    start: u64,
    level: u8,
    /// The check over the blocks so far.
    crc: u32,
    /// The bit at which the next block begins, or its end.
    at: u64,
}

impl Stream {
    fn at(start: u64, level: u8) -> Self {
        Self {
            start,
            level,
            crc: 0,
            at: start.saturating_add(STREAM_HEADER).saturating_mul(8),
        }
    }
}

struct Pass<'a> {
    below: &'a Volume,
    cx: &'a Cx,
    scanner: Scanner<'a>,
    memory: Memory,
    /// What lies ahead, in order.
    items: VecDeque<Item>,
    /// How many of these are being decoded.
    tasks: usize,
    alike: Arc<Alike>,
    whole: Whole<'a>,
    builder: Builder,
    stream: Stream,
}

impl Pass<'_> {
    fn walk(&mut self) -> Result<()> {
        loop {
            self.cx.cancel.check()?;
            self.look_ahead()?;
            let Some(item) = self.items.pop_front() else {
                return Err(self.nothing_here());
            };
            if let ItemKind::Block { task: Some(_), .. } = &item.kind {
                self.tasks = self.tasks.saturating_sub(1);
            }
            if item.at < self.stream.at {
                // Within a block, by chance.
                continue;
            }
            if item.at > self.stream.at {
                return Err(self.nothing_here());
            }
            match item.kind {
                ItemKind::Block { level, task } => {
                    // With another level the decoder has kept to wrong bounds.
                    let task = task.filter(|_| level == self.stream.level);
                    self.block(item.crc, task)?;
                }
                ItemKind::End { next } => {
                    if self.end(item.at, item.crc, next)? {
                        self.whole.reached(self.below.size());
                        return Ok(());
                    }
                }
            }
            self.whole.reached(byte(self.stream.at));
        }
    }

    /// Has blocks decoded that probably come next.
    fn look_ahead(&mut self) -> Result<()> {
        while self.tasks < self.memory.tasks && self.items.len() < MARKS {
            let Some(mark) = self.scanner.next()? else {
                return Ok(());
            };
            let Mark { at, crc, what } = mark;
            let kind = match what {
                What::End { next } => ItemKind::End { next },
                What::Block { level, encoded } => ItemKind::Block {
                    level,
                    task: encoded.map(|span| {
                        self.tasks = self.tasks.saturating_add(1);
                        let end = at.saturating_add(span.len);
                        let encoded = Encoded { level, span, crc };
                        (end, Task::begin(encoded, self.most(), &self.alike, self.cx))
                    }),
                },
            };
            self.items.push_back(Item { at, crc, kind });
        }
        Ok(())
    }

    /// Decoded bytes that may wait.
    fn most(&self) -> usize {
        usize::try_from(self.memory.waiting).unwrap_or(usize::MAX)
    }

    /// The walk has come to a block, at which `task` was begun.
    fn block(&mut self, crc: u32, task: Option<(u64, Task)>) -> Result<()> {
        let mut done = None;
        if let Some((end, task)) = task {
            done = match task.wait(self.cx)? {
                Outcome::Failed(_) => None,
                outcome => Some((end, outcome)),
            };
        }
        let (end, outcome) = match done {
            Some(done) => done,
            None => self.alone(crc)?,
        };
        let (len, zero) = match outcome {
            Outcome::Decoded(pieces) => {
                let zero = pieces.iter().all(|piece| matches!(piece, Piece::Zero(_)));
                (put_all(&mut self.whole, &pieces)?, zero)
            }
            Outcome::Long(encoded) => (encoded.decode_to(&mut self.whole)?, false),
            Outcome::Failed(failure) => return Err(self.failed(failure)),
        };
        let Stream { at, level, .. } = self.stream;
        self.builder.push(Block {
            at,
            end,
            len,
            crc,
            level,
            zero,
        })?;
        self.stream.crc = combine(self.stream.crc, crc);
        self.stream.at = end;
        Ok(())
    }

    /// Decodes the block that the walk has come to, whose end is not known: that end, and what it
    /// has become.
    fn alone(&self, crc: u32) -> Result<(u64, Outcome)> {
        let Stream { at, level, .. } = self.stream;
        let first = byte(at);
        let left = self.below.size().saturating_sub(first);
        let len = left.min(BLOCK_MOST);
        let bytes = self
            .below
            .read_vec(first, usize::try_from(len).unwrap_or(0))?;
        let skip = u32::try_from(at % 8).unwrap_or(0);
        let mut shifted = bytes.clone();
        bits::shift(&mut shifted, skip);
        let found = wrapped::find_end(level, &shifted).map_err(|failure| self.failed(failure))?;
        let Some(found) = found else {
            if len == left {
                return Err(self.cut_short());
            }
            let what = format!("{} does not end within {len} bytes", self.here());
            return Err(Error::new(Kind::Corrupt, what));
        };
        let mut followed = false;
        for end in found.taken.saturating_sub(AHEAD)..=found.taken {
            if header::magic(bits::peek(&shifted, end, MAGIC_BITS)).is_none() {
                continue;
            }
            followed = true;
            let until = usize::try_from(next_byte(end.saturating_add(8))).unwrap_or(usize::MAX);
            let span = Span {
                bytes: bytes.get(..until).unwrap_or(&bytes).to_vec(),
                skip,
                len: end,
            };
            let outcome = Encoded { level, span, crc }.decode(self.most());
            if !matches!(outcome, Outcome::Failed(_)) {
                return Ok((at.saturating_add(end), outcome));
            }
        }
        let size = self.below.size();
        let end = next_byte(at.saturating_add(found.taken));
        if !followed && end.saturating_add(MAGIC_BITS / 8) > size {
            return Err(self.cut_short());
        }
        let what = match followed {
            true => "does not match its check",
            false => "is followed by neither a block nor the end of its stream",
        };
        Err(Error::new(Kind::Corrupt, format!("{} {what}", self.here())))
    }

    /// The walk has come to the end of a stream, with the check `crc`. Whether this is the end of
    /// the file; if not, `next` is the level of the stream that follows.
    fn end(&mut self, at: u64, crc: u32, next: Option<u8>) -> Result<bool> {
        let size = self.below.size();
        let end = next_byte(at.saturating_add(END_BITS));
        if end > size {
            return Err(self.cut_short());
        }
        let Stream {
            start, crc: ours, ..
        } = self.stream;
        if crc != ours {
            let what = format!(
                "the stream at {start} does not match its check: {crc:08x} is stored before \
                 {end}, its blocks give {ours:08x}"
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        if end == size {
            return Ok(true);
        }
        let Some(level) = next else {
            let garbage = size.saturating_sub(end);
            let what = format!("trailing garbage: {garbage} bytes at {end}, after the last stream");
            return Err(Error::new(Kind::Corrupt, what));
        };
        self.stream = Stream::at(end, level);
        Ok(false)
    }

    /// `the block at byte 4, bit 0`.
    fn here(&self) -> String {
        let at = self.stream.at;
        format!("the block at byte {}, bit {},", byte(at), at % 8)
    }

    fn failed(&self, failure: Failure) -> Error {
        match failure {
            Failure::Data => Error::new(Kind::Corrupt, format!("{} is damaged", self.here())),
            Failure::Memory => Error::new(Kind::Limit, "the system has no memory for a decoder"),
        }
    }

    fn cut_short(&self) -> Error {
        let Stream { start, .. } = self.stream;
        let size = self.below.size();
        let what = format!("it is cut short: the stream at {start} has no end in {size} bytes");
        Error::new(Kind::Corrupt, what)
    }

    /// Why there is no magic where there should be one: after the header of a stream.
    fn nothing_here(&self) -> Error {
        let Stream { start, at, .. } = self.stream;
        if at.saturating_add(MAGIC_BITS) > self.below.size().saturating_mul(8) {
            return self.cut_short();
        }
        let what = format!(
            "neither a block nor the end of the stream at {start} begins at byte {}, bit {}",
            byte(at),
            at % 8
        );
        Error::new(Kind::Corrupt, what)
    }
}
