//! Encoded bytes as a decoder wants them: in order, read ahead.

use crate::{ByteRange, Result, Volume};

/// The volume below is told of this much in advance, and after a while of as much as was read
/// before, up to the most: over a network, a long pass shall be few requests.
const AHEAD: u64 = 4 << 20;
const AHEAD_MOST: u64 = 16 << 20;
/// It is told of more when no more than this is left of that.
const LEFT: u64 = 2 << 20;

/// A range of encoded bytes, read in order and in large pieces.
#[derive(Debug)]
pub(super) struct Input<'a> {
    below: &'a Volume,
    begin: u64,
    /// The volume below was told of what lies before this.
    told: u64,
    /// Where the next byte to consume lies in the volume below.
    at: u64,
    /// Where the range ends there.
    end: u64,
    buf: Vec<u8>,
    consumed: usize,
}

impl<'a> Input<'a> {
    /// Nothing is read yet.
    pub(super) fn new(below: &'a Volume, range: ByteRange) -> Self {
        Self {
            below,
            begin: range.start(),
            told: range.start(),
            at: range.start(),
            end: range.end(),
            buf: Vec::new(),
            consumed: 0,
        }
    }

    /// Where the next byte to consume lies in the volume below.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Reads up to `len` further bytes, after all that were read have been consumed; tells the
    /// volume below of those that will follow.
    ///
    /// # Errors
    /// What the volume below says.
    pub(super) fn read(&mut self, len: u64) -> Result<()> {
        let len = len.min(self.end.saturating_sub(self.at));
        self.buf.resize(usize::try_from(len).unwrap_or(0), 0);
        self.consumed = 0;
        self.below.read_at(&mut self.buf, self.at)?;
        self.announce(self.at.saturating_add(len));
        Ok(())
    }

    /// Tells the volume below of what lies behind `after`.
    fn announce(&mut self, after: u64) {
        let read = after.saturating_sub(self.begin);
        if after.saturating_add(LEFT) >= self.told {
            self.told = after.saturating_add(read.clamp(AHEAD, AHEAD_MOST));
        }
        // Again what it was told before: it may not have gone that far.
        let ahead = ByteRange::between(after, self.told.min(self.end).max(after));
        if !ahead.is_empty() {
            self.below.will_need(ahead);
        }
    }

    /// Sees to it that [`Self::bytes`] has `len` bytes, or all that are left; reads up to `step` at
    /// once. True when that took a request.
    ///
    /// # Errors
    /// What the volume below says.
    pub(super) fn need(&mut self, len: u64, step: u64) -> Result<bool> {
        let have = self.bytes().len();
        let here = u64::try_from(have).unwrap_or(u64::MAX);
        let left = self.end.saturating_sub(self.at);
        if here >= len.min(left) {
            return Ok(false);
        }
        self.buf.drain(..self.consumed.min(self.buf.len()));
        self.consumed = 0;
        let more = step
            .max(len.saturating_sub(here))
            .min(left.saturating_sub(here));
        let total = usize::try_from(here.saturating_add(more)).unwrap_or(usize::MAX);
        self.buf.resize(total, 0);
        let from = self.at.saturating_add(here);
        let new = self.buf.get_mut(have..).unwrap_or(&mut []);
        let result = self.below.read_at(new, from);
        if result.is_err() {
            self.buf.truncate(have);
        }
        result?;
        self.announce(from.saturating_add(more));
        Ok(true)
    }

    /// Goes on `len` bytes further; false when the range ends before that.
    pub(super) fn skip(&mut self, len: u64) -> bool {
        let to = self.at.saturating_add(len);
        if to > self.end {
            return false;
        }
        let inside = usize::try_from(len).unwrap_or(usize::MAX);
        self.consumed = self.consumed.saturating_add(inside).min(self.buf.len());
        self.at = to;
        true
    }

    /// What was read and not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buf.get(self.consumed..).unwrap_or(&[])
    }

    /// `len` of [`Self::bytes`] were used.
    pub(super) fn consume(&mut self, len: usize) {
        self.consumed = self.consumed.saturating_add(len);
        self.at = self
            .at
            .saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    }

    /// Takes back `len` bytes that were consumed; false when they are no longer here.
    pub(super) fn back(&mut self, len: usize) -> bool {
        let (Some(consumed), Some(at)) = (
            self.consumed.checked_sub(len),
            self.at.checked_sub(u64::try_from(len).unwrap_or(u64::MAX)),
        ) else {
            return false;
        };
        self.consumed = consumed;
        self.at = at;
        true
    }

    /// Bytes that are left, here and below.
    pub(super) fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Whether no byte is left, neither here nor below.
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.end
    }
}
