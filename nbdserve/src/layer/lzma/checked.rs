//! A sink that makes the CRC of what goes through it.

use crate::cache::Sink;
use crate::layer::scan::wide;
use crate::{Error, Kind, Result};

/// Hands everything on to another sink, the last bytes not before the CRC is known to be right.
#[derive(Debug)]
pub(super) struct Checked<'a, S> {
    sink: &'a mut S,
    crc32: crc32fast::Hasher,
    /// Bytes that are still to come.
    left: u64,
    /// The last of them, which were not handed on.
    held: usize,
}

impl<'a, S: Sink> Checked<'a, S> {
    /// For `len` bytes.
    pub(super) fn new(sink: &'a mut S, len: u64) -> Self {
        Self {
            sink,
            crc32: crc32fast::Hasher::new(),
            left: len,
            held: 0,
        }
    }

    pub(super) fn sink(&mut self) -> &mut S {
        self.sink
    }

    /// Compares what all bytes have with what they must have.
    ///
    /// # Errors
    /// `Corrupt`, and when the last bytes cannot be stored.
    pub(super) fn check(self, expected: u32) -> Result<()> {
        let found = self.crc32.finalize();
        if found == expected {
            return match self.held {
                0 => Ok(()),
                held => self.sink.advance(held),
            };
        }
        let what = format!("its CRC is {found:08x}, {expected:08x} was promised");
        Err(Error::new(Kind::Corrupt, what))
    }
}

impl<S: Sink> Sink for Checked<'_, S> {
    fn spare(&mut self) -> Result<&mut [u8]> {
        let spare = self.sink.spare()?;
        Ok(if self.held > 0 { &mut [] } else { spare })
    }

    fn advance(&mut self, len: usize) -> Result<()> {
        // What was filled is still where the next bytes would go.
        let filled = self.sink.spare()?;
        self.crc32.update(filled.get(..len).unwrap_or(&[]));
        self.left = self.left.saturating_sub(wide(len));
        if self.left == 0 {
            self.held = len;
            return Ok(());
        }
        self.sink.advance(len)
    }

    fn beat(&self) -> Result<()> {
        self.sink.beat()
    }
}
