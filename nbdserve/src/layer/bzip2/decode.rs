//! Decoding of blocks that an index from an earlier opening knows.

use super::bits::{byte, next_byte};
use super::index::{Group, Index};
use super::scan::Span;
use super::wrapped::{Failure, Wrapped};
use crate::cache::{Decode, Job};
use crate::layer::decoded::Layout;
use crate::layer::input::Input;
use crate::layer::numbered;
use crate::layer::scan::wide;
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
        let group = self.group(number);
        let place = group.map(|group| (byte(group.at), group.decoded()));
        numbered::called(number, place)
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let group = self
            .group(number)
            .ok_or_else(|| numbered::missing(number))?;
        if !job.start(group.decoder_memory().saturating_add(INPUT))? {
            return Ok(());
        }
        decode_group(&self.below, group, job)
    }

    fn is_slow(&self) -> bool {
        true
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
        wide(self.index.count())
    }

    fn find(&self, offset: u64) -> u64 {
        wide(self.index.find(offset))
    }

    fn encoded(&self, number: u64) -> u64 {
        self.group(number).map_or(0, Group::encoded)
    }

    fn is_zero(&self, number: u64) -> bool {
        self.group(number).is_some_and(|group| group.zero)
    }
}

/// Decodes the blocks of a group, no more than there is room for.
fn decode_group(below: &Volume, group: &Group, job: &mut Job<'_>) -> Result<()> {
    let failed = |failure| match failure {
        Failure::Data => {
            let at = byte(group.at);
            let what = "do not match their checks, or the index of an earlier opening";
            Error::new(
                Kind::Corrupt,
                format!("the blocks from byte {at} on {what}"),
            )
        }
        Failure::Memory => Error::new(Kind::Limit, "the system has no memory for a decoder"),
    };
    let range = ByteRange::between(byte(group.at), next_byte(group.end()));
    let mut input = Input::new(below, range);
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
    let mut left = group.len;
    loop {
        let spare = job.spare()?;
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(spare.len());
        let complete = room == 0;
        let step = wrapped
            .step(spare.get_mut(..room).unwrap_or(&mut []))
            .map_err(failed)?;
        left = left.saturating_sub(u64::try_from(step.written).unwrap_or(u64::MAX));
        job.advance(step.written)?;
        match (step.end, complete) {
            (true, _) if left == 0 => return Ok(()),
            // There are fewer or more bytes than the index says.
            (true, _) | (false, true) => return Err(failed(Failure::Data)),
            (false, false) => {}
        }
    }
}

/// The same blocks as one, which the pass of some opening has decoded as a whole. Only when the
/// cache on disk loses a part of it is it decoded again.
#[derive(Debug)]
pub(super) struct WholeImage(pub(super) Bzip2Blocks);

impl Decode for WholeImage {
    fn len(&self, _number: u64) -> u64 {
        self.0.index.size()
    }

    fn offset(&self, _number: u64) -> u64 {
        0
    }

    fn describe(&self, _number: u64) -> String {
        format!("the image of {} bytes", self.0.index.size())
    }

    fn decode(&self, _number: u64, job: &mut Job<'_>) -> Result<()> {
        let groups = self.0.index.groups();
        let memory = groups.iter().map(Group::decoder_memory).max();
        if !job.start(memory.unwrap_or(0).saturating_add(INPUT))? {
            return Ok(());
        }
        groups
            .iter()
            .try_for_each(|group| decode_group(&self.0.below, group, job))
    }
}

impl Layout for WholeImage {
    fn below(&self) -> &Volume {
        &self.0.below
    }

    fn size(&self) -> u64 {
        self.0.index.size()
    }

    fn count(&self) -> u64 {
        1
    }

    fn find(&self, _offset: u64) -> u64 {
        0
    }

    fn encoded(&self, _number: u64) -> u64 {
        self.0.below.size()
    }
}
