//! Decoding of one block, independent of all others.

use super::index::{Block, Index};
use crate::cache::{Decode, Job};
use crate::layer::decoded::Layout;
use crate::layer::input::Input;
use crate::layer::numbered;
use crate::layer::scan::wide;
use crate::sys::lzma::{BlockDecoder, BlockHeader, Failure};
use crate::{ByteRange, Error, Index as IndexIn, Kind, Result, Volume};

/// Compressed bytes per request to the volume below.
const INPUT: u64 = 1 << 20;
/// What a decoder takes beside what liblzma states: its own bookkeeping, the Block Header.
const OVERHEAD: u64 = 64 << 10;

/// The blocks of an .xz file.
#[derive(Debug)]
pub(super) struct XzBlocks {
    below: Volume,
    index: Index,
}

impl XzBlocks {
    pub(super) fn new(below: Volume, index: Index) -> Self {
        Self { below, index }
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    fn block(&self, number: u64) -> Option<Block> {
        self.index.block(usize::try_from(number).ok()?)
    }

    /// The memory that the decoder of a block takes, from its Block Header.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, what the volume below says.
    pub(super) fn decoder_memory(&self, number: u64) -> Result<u64> {
        let block = self.existing(number)?;
        let len = block.total().min(u64::from(BlockHeader::MAX));
        // All of it will be read: over a network, one request in place of several.
        self.below.will_need(block.range());
        let mut input = Input::new(&self.below, block.range());
        input.read(len)?;
        self.header(number, block, input.bytes())
            .map(|(_, _, memory)| memory)
    }

    fn existing(&self, number: u64) -> Result<Block> {
        self.block(number).ok_or_else(|| numbered::missing(number))
    }

    /// Decodes the Block Header at the start of `bytes`: the header, its size, and the memory of
    /// a decoder for it.
    fn header(&self, number: u64, block: Block, bytes: &[u8]) -> Result<(BlockHeader, usize, u64)> {
        let name = || self.describe(number);
        let size = bytes.first().and_then(|first| BlockHeader::size(*first));
        let Some(size) = size else {
            return Err(Error::new(
                Kind::Corrupt,
                format!("{}: an index is there instead", name()),
            ));
        };
        let header = BlockHeader::decode(bytes, block.check, block.unpadded, block.len);
        let header = header.map_err(|failure| {
            let what = match failure {
                Failure::Options => "its header asks for an unknown filter or option",
                _ => "its header is corrupt or disagrees with the index",
            };
            Error::new(kind(failure), format!("{}: {what}", name())).caused_by(failure)
        })?;
        let memory = header.decoder_memory().ok_or_else(|| {
            let what = format!("{}: its filters do not go together", name());
            Error::new(Kind::Unsupported, what)
        })?;
        Ok((
            header,
            size,
            memory
                .saturating_add(INPUT.min(block.total()))
                .saturating_add(OVERHEAD),
        ))
    }

    /// Why decoding broke off.
    fn failed(&self, number: u64, failure: Failure, input: &Input<'_>, out: u64) -> Error {
        let name = self.describe(number);
        let complete = input.is_at_end() && out == self.len(number);
        let what = if failure == Failure::Data && complete {
            format!("{name}: its check does not match")
        } else {
            format!(
                "{name}: cannot be decoded beyond byte {out} of it, near {} in the file",
                input.at()
            )
        };
        Error::new(kind(failure), what).caused_by(failure)
    }
}

fn kind(failure: Failure) -> Kind {
    match failure {
        Failure::Data => Kind::Corrupt,
        Failure::Options => Kind::Unsupported,
        Failure::Memory => Kind::Limit,
        Failure::Misuse(_) => Kind::Io,
    }
}

impl Decode for XzBlocks {
    fn len(&self, number: u64) -> u64 {
        self.block(number).map_or(0, |block| block.len)
    }

    fn offset(&self, number: u64) -> u64 {
        self.block(number).map_or(0, |block| block.start)
    }

    fn describe(&self, number: u64) -> String {
        let block = self.block(number);
        let place = block.map(|block| (block.at, block.decoded()));
        numbered::called(number, place)
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let block = self.existing(number)?;
        // All of it will be read: over a network, one request in place of several.
        self.below.will_need(block.range());
        let mut input = Input::new(&self.below, block.range());
        input.read(INPUT)?;
        job.beat()?;
        let (header, header_size, memory) = self.header(number, block, input.bytes())?;
        if !job.start(memory)? {
            return Ok(());
        }
        input.consume(header_size);
        let mut decoder = job
            .take_spare_decoder()
            .unwrap_or_else(|| Box::new(BlockDecoder::new()));
        let mut out: u64 = 0;
        decoder
            .start(header)
            .map_err(|failure| self.failed(number, failure, &input, out))?;
        loop {
            if input.bytes().is_empty() && !input.is_at_end() {
                input.read(INPUT)?;
                job.beat()?;
            }
            let last = input.is_at_end();
            let step = decoder.step(input.bytes(), job.spare()?);
            input.consume(step.read);
            out = out.saturating_add(u64::try_from(step.written).unwrap_or(u64::MAX));
            let end = step
                .end
                .map_err(|failure| self.failed(number, failure, &input, out))?;
            job.advance(step.written)?;
            if end {
                break;
            }
            if last && step.read == 0 && step.written == 0 {
                return Err(self.failed(number, Failure::Data, &input, out));
            }
        }
        job.leave_decoder(decoder);
        Ok(())
    }

    fn is_slow(&self) -> bool {
        true
    }
}

impl Layout for XzBlocks {
    fn below(&self) -> &Volume {
        &self.below
    }

    fn size(&self) -> u64 {
        self.index.size()
    }

    fn count(&self) -> u64 {
        wide(self.index.count())
    }

    fn find(&self, offset: u64) -> u64 {
        wide(self.index.find(offset))
    }

    fn encoded(&self, number: u64) -> u64 {
        self.block(number).map_or(0, |block| block.unpadded)
    }

    fn twin(&self, number: u64) -> Option<(ByteRange, u64)> {
        let block = self.block(number)?;
        // The Check ID stands in the stream's header.
        Some((block.range(), u64::from(block.check)))
    }

    fn index(&self) -> IndexIn {
        IndexIn::InImage
    }
}
