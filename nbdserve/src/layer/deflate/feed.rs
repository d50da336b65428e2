//! Encoded bytes for a decoder and for the parsers of what stands around its data.

use crate::layer::input::Input;
use crate::{ByteRange, Result, Volume};

/// Bytes per request to the volume below.
pub(crate) const REQUEST: u64 = 1 << 20;

/// Called for each request to the volume below: tells that there is progress, and hears when it is
/// time to stop.
pub(crate) type Beat<'a> = &'a dyn Fn() -> Result<()>;

/// A range of encoded bytes, read in order.
#[derive(Debug)]
pub(crate) struct Feed<'a> {
    input: Input<'a>,
}

impl<'a> Feed<'a> {
    /// Nothing is read yet.
    pub(crate) fn new(below: &'a Volume, range: ByteRange) -> Self {
        Self {
            input: Input::new(below, range),
        }
    }

    /// Where the next byte lies in the volume below.
    pub(crate) fn at(&self) -> u64 {
        self.input.at()
    }

    /// What was read and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.input.bytes()
    }

    /// `len` of [`Self::bytes`] were used.
    pub(crate) fn consume(&mut self, len: usize) {
        self.input.consume(len);
    }

    /// Takes back `len` bytes that were consumed; false when they are no longer here.
    pub(crate) fn back(&mut self, len: usize) -> bool {
        self.input.back(len)
    }

    /// Sees to it that [`Self::bytes`] has at least one; false when none is left.
    ///
    /// # Errors
    /// What the volume below or `beat` says.
    pub(crate) fn fill(&mut self, beat: Beat<'_>) -> Result<bool> {
        if self.input.bytes().is_empty() {
            if self.input.is_at_end() {
                return Ok(false);
            }
            beat()?;
            self.input.read(REQUEST)?;
        }
        Ok(true)
    }

    /// The next `N` bytes; `None` when the data ends before.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(crate) fn array<const N: usize>(&mut self, beat: Beat<'_>) -> Result<Option<[u8; N]>> {
        let mut array = [0; N];
        let mut rest = &mut array[..];
        while !rest.is_empty() {
            if !self.fill(beat)? {
                return Ok(None);
            }
            let bytes = self.input.bytes();
            let len = rest.len().min(bytes.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(bytes.get(..len).unwrap_or(&[]));
            self.input.consume(len);
            rest = later;
        }
        Ok(Some(array))
    }

    /// Reads over `len` bytes; false when the data ends before.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(crate) fn skip(&mut self, mut len: u64, beat: Beat<'_>) -> Result<bool> {
        while len > 0 {
            if !self.fill(beat)? {
                return Ok(false);
            }
            let here = self.input.bytes().len();
            let now = usize::try_from(len).unwrap_or(usize::MAX).min(here);
            self.input.consume(now);
            len = len.saturating_sub(u64::try_from(now).unwrap_or(u64::MAX));
        }
        Ok(true)
    }
}
