//! Decoding of blocks that an index from an earlier opening knows.

use super::bits::{byte, next_byte};
use super::index::{Group, Index};
use super::scan::Span;
use super::wrapped::{Failure, Wrapped};
use crate::cache::{Decode, Job};
use crate::layer::decoded::Layout;
use crate::layer::input::Input;
use crate::{ByteRange, Error, Kind, Result, Volume};

/// Bytes per request to the volume below.
const INPUT: u64 = 1 << 20;

/// The blocks of a bzip2 file, in groups.
#[derive(Debug)]
pub(super) struct Bzip2Blocks {
    below: Volume,
    index: Index,
}

impl Bzip2Blocks {
    pub(super) fn new(below: Volume, index: Index) -> Self {
        Self { below, index }
    }

    fn group(&self, number: u64) -> Option<&Group> {
        self.index.group(usize::try_from(number).ok()?)
    }
}

impl Decode for Bzip2Blocks {
    fn len(&self, number: u64) -> u64 {
        self.group(number).map_or(0, |group| group.len)
    }

    fn offset(&self, number: u64) -> u64 {
        self.group(number).map_or(0, |group| group.start)
    }

    fn describe(&self, number: u64) -> String {
        self.group(number).map_or_else(
            || format!("block {number}"),
            |group| {
                format!(
                    "block {number} at {} (bytes {}..{} of the image)",
                    byte(group.at),
                    group.start,
                    group.start.saturating_add(group.len)
                )
            },
        )
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let group = self
            .group(number)
            .ok_or_else(|| Error::new(Kind::OutOfRange, format!("there is no block {number}")))?;
        let failed = |failure| match failure {
            Failure::Data => {
                let what = "does not match its check, or the index of an earlier opening";
                Error::new(Kind::Corrupt, format!("{}: {what}", self.describe(number)))
            }
            Failure::Memory => Error::new(Kind::Limit, "the system has no memory for a decoder"),
        };
        let range = ByteRange::between(byte(group.at), next_byte(group.end()));
        if !job.start(group.decoder_memory().saturating_add(INPUT))? {
            return Ok(());
        }
        let mut input = Input::new(&self.below, range);
        let mut bytes = Vec::with_capacity(usize::try_from(range.len()).unwrap_or(0));
        while !input.is_at_end() {
            input.read(INPUT)?;
            job.beat()?;
            bytes.extend_from_slice(input.bytes());
            input.consume(input.bytes().len());
        }
        let span = Span {
            bytes,
            skip: u32::try_from(group.at % 8).unwrap_or(0),
            len: group.bits,
        };
        let mut wrapped = Wrapped::new(group.level, span, group.crc).map_err(failed)?;
        loop {
            let spare = job.spare()?;
            let complete = spare.is_empty();
            let step = wrapped.step(spare).map_err(failed)?;
            job.advance(step.written)?;
            if step.end {
                return Ok(());
            }
            if complete {
                // There is more than the index says.
                return Err(failed(Failure::Data));
            }
        }
    }
}

impl Layout for Bzip2Blocks {
    fn below(&self) -> &Volume {
        &self.below
    }

    fn size(&self) -> u64 {
        self.index.size()
    }

    fn count(&self) -> u64 {
        u64::try_from(self.index.count()).unwrap_or(u64::MAX)
    }

    fn find(&self, offset: u64) -> u64 {
        u64::try_from(self.index.find(offset)).unwrap_or(u64::MAX)
    }

    fn encoded(&self, number: u64) -> u64 {
        self.group(number).map_or(0, Group::encoded)
    }
}
