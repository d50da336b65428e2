//! Reads a file from its start and finds where blocks may begin.

use std::collections::VecDeque;

use super::bits::{self, STEP, byte, next_byte};
use super::header::{self, BLOCK_MOST, END_BITS, MAGIC_BITS, Magic, STREAM_HEADER};
use crate::layer::input::Input;
use crate::{ByteRange, Result, Volume};

/// What is said of a magic is read from up to this many bytes after its first one.
const BEHIND: usize = 32;
/// Bytes behind those that are needed no more are kept until there are as many as this.
const DRAIN: usize = 128 << 10;
/// No block has fewer bits: magic, check, and one symbol with the smallest tables.
const BLOCK_LEAST: u64 = 160;

/// A magic, which may also be there by chance.
#[derive(Debug)]
pub(super) struct Mark {
    /// The bit at which it begins.
    pub(super) at: u64,
    /// The check that follows it: of the block, or of the stream that ends.
    pub(super) crc: u32,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Block {
        /// That of the stream, if the magics before are not there by chance.
        level: u8,
        /// The bits up to the next magic; `None` when there is none within a block's length.
        encoded: Option<Span>,
    },
    End {
        /// The level of the stream that follows, if it begins as one.
        next: Option<u8>,
    },
}

/// The bits of a block.
#[derive(Debug)]
pub(super) struct Span {
    /// The bytes that hold them.
    pub(super) bytes: Vec<u8>,
    /// Bits in the first byte that belong to what is before.
    pub(super) skip: u32,
    /// How many bits.
    pub(super) len: u64,
}

/// A magic as it was found.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: u64,
    magic: Magic,
}

/// Finds the magics of a file in order, with the bits between them.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    input: Input<'a>,
    /// Bytes of a request.
    request: u64,
    size: u64,
    /// Bytes of the file from `base` on.
    window: Vec<u8>,
    base: u64,
    /// Up to here in the window magics were looked for: a multiple of `STEP` from its start.
    scanned: usize,
    /// The bit behind the start of the last magic found.
    after_last: u64,
    /// All of the file is in the window, with zeroes behind it.
    complete: bool,
    found: VecDeque<Found>,
    /// The level of the latest stream header.
    level: u8,
}

impl<'a> Scanner<'a> {
    /// From the first byte of `below` on, which begins a stream of this level, with requests of
    /// this many bytes.
    pub(super) fn new(below: &'a Volume, level: u8, request: u64) -> Self {
        let size = below.size();
        Self {
            input: Input::new(below, ByteRange::between(0, size)),
            request,
            size,
            window: Vec::new(),
            base: 0,
            scanned: 0,
            after_last: 0,
            complete: false,
            found: VecDeque::new(),
            level,
        }
    }

    /// The memory that is taken at most with requests of this many bytes.
    pub(super) fn memory(request: u64) -> u64 {
        BLOCK_MOST.saturating_add(request.saturating_mul(2))
    }

    /// The next magic; `None` after the last one.
    ///
    /// # Errors
    /// What the volume below says.
    pub(super) fn next(&mut self) -> Result<Option<Mark>> {
        while self.found.is_empty() && self.scan()? {}
        let Some(found) = self.found.pop_front() else {
            return Ok(None);
        };
        let crc = self.peek(found.at.saturating_add(MAGIC_BITS), 32);
        let crc = u32::try_from(crc).unwrap_or(0);
        let what = match found.magic {
            Magic::End => {
                let next = self.level_at(next_byte(found.at.saturating_add(END_BITS)));
                self.level = next.unwrap_or(self.level);
                What::End { next }
            }
            Magic::Block => What::Block {
                level: self.level,
                encoded: self.span(found.at)?,
            },
        };
        let at = found.at;
        Ok(Some(Mark { at, crc, what }))
    }

    /// The bits from `at` up to the next magic.
    fn span(&mut self, at: u64) -> Result<Option<Span>> {
        let most = BLOCK_MOST.saturating_mul(8);
        let first = byte(at);
        while self.found.is_empty() {
            let here = self.base.saturating_add(wide(self.window.len()));
            if here.saturating_sub(first) > BLOCK_MOST || !self.scan_keeping(first)? {
                break;
            }
        }
        let Some(next) = self.found.front() else {
            return Ok(None);
        };
        let len = next.at.saturating_sub(at);
        if len < BLOCK_LEAST || len > most {
            return Ok(None);
        }
        let from = self.index(first);
        let to = self.index(next_byte(next.at));
        let bytes = self.window.get(from..to).unwrap_or(&[]).to_vec();
        let skip = u32::try_from(at % 8).unwrap_or(0);
        Ok(Some(Span { bytes, skip, len }))
    }

    /// Where a byte of the file lies in the window.
    fn index(&self, at: u64) -> usize {
        usize::try_from(at.saturating_sub(self.base)).unwrap_or(usize::MAX)
    }

    fn peek(&self, at: u64, len: u64) -> u64 {
        let base = self.base.saturating_mul(8);
        bits::peek(&self.window, at.saturating_sub(base), len)
    }

    /// The level that a stream header at this byte states.
    fn level_at(&self, at: u64) -> Option<u8> {
        if at.saturating_add(STREAM_HEADER) > self.size {
            return None;
        }
        header::level(self.window.get(self.index(at)..)?)
    }

    /// As [`Self::scan_keeping`], where nothing before what was scanned is needed any more.
    fn scan(&mut self) -> Result<bool> {
        // What is around the first new quad is looked at once more.
        let kept = self.scanned.saturating_sub(STEP);
        self.scan_keeping(self.base.saturating_add(wide(kept)))
    }

    /// Reads on and looks for magics. False when there is nothing more to read. Bytes from `from`
    /// on stay in the window.
    fn scan_keeping(&mut self, from: u64) -> Result<bool> {
        if self.complete {
            return Ok(false);
        }
        let spare = self.index(from).min(self.scanned.saturating_sub(STEP));
        if spare >= DRAIN {
            // Quads stay quads.
            let spare = spare.saturating_sub(spare % STEP);
            self.window.drain(..spare);
            self.base = self.base.saturating_add(wide(spare));
            self.scanned = self.scanned.saturating_sub(spare);
        }
        if !self.input.is_at_end() {
            self.input.read(self.request)?;
            let bytes = self.input.bytes();
            let len = bytes.len();
            self.window.extend_from_slice(bytes);
            self.input.consume(len);
        }
        if self.input.is_at_end() {
            self.complete = true;
            self.window
                .resize(self.window.len().saturating_add(BEHIND), 0);
        }
        let start = self.scanned.saturating_sub(STEP);
        // What is said of a magic is here as well.
        let end = self.window.len().saturating_sub(BEHIND);
        let end = end.next_multiple_of(STEP);
        let part = self.window.get(start..).unwrap_or(&[]);
        let base = self.base.saturating_add(wide(start)).saturating_mul(8);
        let last_bit = self.size.saturating_mul(8);
        let Self {
            after_last, found, ..
        } = self;
        bits::find(part, end.saturating_sub(start), |at, magic| {
            let at = base.saturating_add(at);
            let whole = at.saturating_add(MAGIC_BITS) <= last_bit;
            if at >= *after_last && whole {
                *after_last = at.saturating_add(1);
                found.push_back(Found { at, magic });
            }
        });
        self.scanned = end;
        Ok(true)
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
