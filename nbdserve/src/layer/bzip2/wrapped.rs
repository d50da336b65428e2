//! Decoding of blocks that are wrapped as a stream of their own.

use bzip2::{Decompress, Status};

use super::bits;
use super::scan::Span;

/// What a decoder takes beside its table, in bytes.
const OVERHEAD: u64 = 128 << 10;
/// Bytes per symbol of a block in that table, and symbols per level.
const TABLE: u64 = 4 * 100_000;

/// The memory of a decoder for blocks of a level (1 to 9), in bytes.
pub(super) fn decoder_memory(level: u8) -> u64 {
    u64::from(level)
        .saturating_mul(TABLE)
        .saturating_add(OVERHEAD)
}

/// Why blocks cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// They are damaged, do not match their checks, or end elsewhere.
    Data,
    /// The system has no memory for the decoder.
    Memory,
}

/// What a step of decoding did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Bytes that were put out.
    pub(super) written: usize,
    /// All was put out, and the checks were right.
    pub(super) end: bool,
}

/// Consecutive blocks of a stream as a stream of their own, being decoded.
pub(super) struct Wrapped {
    decoder: Decompress,
    /// Behind the stream header: the blocks moved to whole bytes, the end of the stream.
    bytes: Vec<u8>,
    consumed: usize,
}

impl Wrapped {
    /// The blocks in `span`, of a stream of this level; `crc` is the check of a stream that has
    /// no others.
    ///
    /// # Errors
    /// `Memory`.
    pub(super) fn new(level: u8, span: Span, crc: u32) -> Result<Self, Failure> {
        let Span {
            mut bytes,
            skip,
            len,
        } = span;
        bits::shift(&mut bytes, skip);
        bits::end_stream(&mut bytes, len, crc);
        Ok(Self {
            decoder: begin(level)?,
            bytes,
            consumed: 0,
        })
    }

    /// Decodes on to `out`, which may be empty: then it only finds out whether this is the end.
    ///
    /// # Errors
    /// `Data` also when there is more behind the blocks than their end, or less.
    pub(super) fn step(&mut self, out: &mut [u8]) -> Result<Step, Failure> {
        let input = self.bytes.get(self.consumed..).unwrap_or(&[]);
        let done = self.decoder.total_out();
        let read = self.decoder.total_in();
        let status = decompress(&mut self.decoder, input, out)?;
        let read = self.decoder.total_in().saturating_sub(read);
        let written = self.decoder.total_out().saturating_sub(done);
        self.consumed = self.consumed.saturating_add(narrow(read));
        let step = Step {
            written: narrow(written),
            end: status == Status::StreamEnd,
        };
        let complete = self.consumed == self.bytes.len();
        if step.end && !complete || !step.end && complete && written == 0 && !out.is_empty() {
            return Err(Failure::Data);
        }
        Ok(step)
    }
}

/// Where a block was found to end: behind which of its bytes, and no more than so many before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Bits that the decoder has taken.
    pub(super) taken: u64,
}

/// A decoder takes bytes in words: of what it has taken, up to this many bits may not belong to
/// the block any more.
pub(super) const AHEAD: u64 = 72;

/// Decodes the block at the start of `bytes` as far as needed to know where it ends: `None` when
/// it does not end within them.
///
/// # Errors
/// Why it cannot be decoded.
pub(super) fn find_end(level: u8, bytes: &[u8]) -> Result<Option<End>, Failure> {
    let mut decoder = begin(level)?;
    let before = decoder.total_in();
    // With no room for what it puts out it stops where the block ends.
    decompress(&mut decoder, bytes, &mut [])?;
    let taken = decoder.total_in().saturating_sub(before).saturating_mul(8);
    // A block that has not ended puts nothing out.
    decompress(&mut decoder, &[], &mut [0])?;
    Ok((decoder.total_out() > 0).then_some(End { taken }))
}

/// A decoder that has seen the header of a stream.
fn begin(level: u8) -> Result<Decompress, Failure> {
    let mut decoder = Decompress::new(false);
    let digit = b'0'.saturating_add(level.clamp(1, 9));
    decompress(&mut decoder, &[b'B', b'Z', b'h', digit], &mut [])?;
    Ok(decoder)
}

fn decompress(decoder: &mut Decompress, input: &[u8], out: &mut [u8]) -> Result<Status, Failure> {
    match decoder.decompress(input, out) {
        Ok(Status::MemNeeded) => Err(Failure::Memory),
        Ok(status) => Ok(status),
        Err(_) => Err(Failure::Data),
    }
}

fn narrow(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

impl std::fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wrapped")
            .field("consumed", &self.consumed)
            .finish_non_exhaustive()
    }
}
