//! Which frames a file has: found from its start on, without decoding where that can be avoided.

use super::header::{self, BLOCK_HEADER, FrameHeader, HEADER_MOST, SKIPPABLE_HEADER, Start};
use crate::bytes::le32;
use crate::layer::INDEX_PART;
use crate::layer::scan::Scan;
use crate::{ByteRange, Cx, Error, Kind, Result};

/// So far the blocks of a frame are looked at before anything is assumed of it.
const LOOK: u64 = 4 << 20;
/// Units of fewer bytes than this are put together.
const SMALL: u64 = 1 << 20;
/// Not beyond this.
const MOST: u64 = 4 << 20;
/// Memory for a unit.
const BYTES_PER_UNIT: u64 = 96;
/// Progress is told each time this much was looked at.
const TELL_EACH: u64 = 64 << 20;

/// Some neighbouring frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Where the first one begins.
    pub(super) at: u64,
    /// Where the last one ends.
    pub(super) end: u64,
    pub(super) content: Content,
    /// What their decoder takes.
    pub(super) memory: u64,
}

impl Unit {
    /// Where it lies in the file.
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::between(self.at, self.end)
    }

    /// Encoded bytes.
    pub(super) fn len(&self) -> u64 {
        self.range().len()
    }
}

/// The decoded bytes of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Known(u64),
    /// Not known, at most so many.
    Most(u64),
    /// So many were decoded into a temp file.
    Stored(u64),
}

/// Finds out what only decoding tells, while the frames are looked for.
pub(super) trait Measure {
    /// Decodes the frame at `at`, whose end is not known, and keeps what it is: its decoded bytes,
    /// and where it ends.
    ///
    /// # Errors
    /// As decoding.
    fn measure(&mut self, at: u64, header: &FrameHeader) -> Result<(u64, u64)>;

    /// The unit with this number will not change any more.
    ///
    /// # Errors
    /// When it is no use to go on.
    fn settled(&mut self, index: usize, unit: &Unit) -> Result<()>;
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) units: Vec<Unit>,
    /// The last frame is only assumed to reach to the end of the file.
    pub(super) assumed: bool,
}

/// How a file is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Assume nothing.
    pub(super) walk: bool,
}

/// Finds the frames of the volume that `scan` looks at.
///
/// # Errors
/// `Corrupt` with the place where no frame is, `Unsupported`, `Limit`, what the volume below and
/// `measure` say.
pub(super) fn find(
    scan: &mut Scan<'_>,
    how: How,
    measure: &mut dyn Measure,
    cx: &Cx,
) -> Result<Found> {
    let mut finder = Finder {
        scan,
        how,
        measure,
        cx,
        found: Found::default(),
        told: 0,
    };
    let mut at = 0;
    let mut hint = None;
    while at < finder.scan.size() {
        cx.cancel.check()?;
        let bytes = finder.scan.get(at, HEADER_MOST)?;
        match header::start(bytes, at)? {
            Start::Skippable { variant, size } => {
                // pzstd says before each frame how many bytes it has.
                let says = (variant == 0 && size == SKIPPABLE_HEADER.saturating_add(4))
                    .then(|| le32(bytes, 8))
                    .flatten();
                hint = says.map(u64::from).filter(|_| !how.walk);
                at = finder.scan.end(at, size)?;
            }
            Start::Frame(header) => {
                at = finder.frame(at, &header, hint.take())?;
            }
        }
    }
    finder.settle()?;
    Ok(finder.found)
}

struct Finder<'a, 'b> {
    scan: &'a mut Scan<'b>,
    how: How,
    measure: &'a mut dyn Measure,
    cx: &'a Cx,
    found: Found,
    told: u64,
}

/// What the blocks of a frame say.
struct Blocks {
    /// Where the frame ends; `None` when that was not looked for further.
    end: Option<u64>,
    /// Decoded bytes of the blocks that were looked at: exact, or the most there can be.
    content: u64,
    exact: bool,
}

impl Finder<'_, '_> {
    /// Adds the frame at `at`; where it ends.
    fn frame(&mut self, at: u64, header: &FrameHeader, hint: Option<u64>) -> Result<u64> {
        let memory = header.memory();
        let size = self.scan.size();
        if let Some(end) = self.hinted(at, header, hint)? {
            let most = header::content_most(end.saturating_sub(at));
            let content = self.content(at, header, most, false)?;
            self.push(Unit {
                at,
                end,
                content,
                memory,
            })?;
            return Ok(end);
        }
        let mut blocks = self.blocks(at, header, !self.how.walk)?;
        if blocks.end.is_none() {
            let Some(content) = header.content else {
                let (len, end) = self.measure.measure(at, header)?;
                let content = Content::Stored(len);
                self.push(Unit {
                    at,
                    end,
                    content,
                    memory,
                })?;
                return Ok(end);
            };
            if at.saturating_add(header::encoded_most(content)) >= size {
                let most = header::content_most(size.saturating_sub(at));
                let content = self.content(at, header, most, false)?;
                self.push(Unit {
                    at,
                    end: size,
                    content,
                    memory,
                })?;
                self.found.assumed = true;
                return Ok(size);
            }
            // Something else must follow it: where?
            blocks = self.blocks(at, header, false)?;
        }
        let end = blocks.end.unwrap_or(size);
        let content = self.content(at, header, blocks.content, blocks.exact)?;
        self.push(Unit {
            at,
            end,
            content,
            memory,
        })?;
        Ok(end)
    }

    /// What the header says of the content, held against what can be.
    fn content(&self, at: u64, header: &FrameHeader, most: u64, exact: bool) -> Result<Content> {
        let Some(content) = header.content else {
            return Ok(if exact {
                Content::Known(most)
            } else {
                Content::Most(most)
            });
        };
        if content > most || (exact && content != most) {
            let what = format!(
                "the frame at {at} claims {content} bytes of content, its blocks have {}{most}",
                if exact { "" } else { "at most " }
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        if content == 0 && !exact {
            // Nobody would ever decode it, and see whether that is true.
            return Ok(Content::Most(most));
        }
        Ok(Content::Known(content))
    }

    /// The end that a hint gives, if a frame or the end of the file is there.
    fn hinted(&mut self, at: u64, header: &FrameHeader, hint: Option<u64>) -> Result<Option<u64>> {
        let Some(end) = hint.and_then(|len| at.checked_add(len)) else {
            return Ok(None);
        };
        let size = self.scan.size();
        if end == size {
            return Ok(Some(end));
        }
        if end > size {
            // Truncated, or no hint: the blocks will tell.
            return Ok(None);
        }
        if header.content.is_none() {
            // It will be decoded at once.
            self.scan.passes(at, end);
        }
        let next = self.scan.get(end, HEADER_MOST)?;
        Ok(header::start(next, end).is_ok().then_some(end))
    }

    /// Goes from block to block of the frame at `at`; when `bounded`, not for ever.
    fn blocks(&mut self, at: u64, header: &FrameHeader, bounded: bool) -> Result<Blocks> {
        let mut blocks = Blocks {
            end: None,
            content: 0,
            exact: true,
        };
        let mut next = at.saturating_add(header.size);
        loop {
            if bounded && next.saturating_sub(at) > LOOK {
                return Ok(blocks);
            }
            self.cx.cancel.check()?;
            let bytes = self.scan.get(next, BLOCK_HEADER)?;
            let block = header::block(bytes, next, header)?;
            blocks.content = blocks.content.saturating_add(block.content);
            blocks.exact &= block.exact;
            next = self
                .scan
                .end(next, BLOCK_HEADER.saturating_add(block.encoded))?;
            self.tell(next);
            if block.last {
                blocks.end = Some(self.scan.end(next, header.trailer())?);
                return Ok(blocks);
            }
        }
    }

    fn tell(&mut self, at: u64) {
        let size = self.scan.size();
        if at.saturating_sub(self.told) >= TELL_EACH {
            self.told = at;
            self.cx.indexing("zstd: looking for frames", at, size);
        }
    }

    /// Adds a unit, to the last one where both are small.
    fn push(&mut self, unit: Unit) -> Result<()> {
        let small =
            |content: u64, more: u64| content < SMALL && content.saturating_add(more) <= MOST;
        if let Some(last) = self.found.units.last_mut() {
            let content = match (last.content, unit.content) {
                (Content::Known(a), Content::Known(b)) if small(a, b) => {
                    Some(Content::Known(a.saturating_add(b)))
                }
                (Content::Most(a), Content::Most(b)) if small(a, b) => {
                    Some(Content::Most(a.saturating_add(b)))
                }
                _ => None,
            };
            if let Some(content) = content.filter(|_| unit.end.saturating_sub(last.at) <= MOST) {
                last.content = content;
                last.end = unit.end;
                last.memory = last.memory.max(unit.memory);
                return Ok(());
            }
        }
        let most = self.cx.cache.budget() / INDEX_PART / BYTES_PER_UNIT;
        let count = u64::try_from(self.found.units.len()).unwrap_or(u64::MAX);
        if count >= most {
            let what = format!(
                "more than {most} frames, which is what the memory that is allowed can hold"
            );
            return Err(
                Error::new(Kind::Limit, what).hint("give more memory with --cache-size=SIZE")
            );
        }
        self.settle()?;
        self.found.units.push(unit);
        Ok(())
    }

    /// Nothing is added to the last unit any more.
    fn settle(&mut self) -> Result<()> {
        let Some(index) = self.found.units.len().checked_sub(1) else {
            return Ok(());
        };
        match self.found.units.get(index) {
            Some(unit) => self.measure.settled(index, unit),
            None => Ok(()),
        }
    }
}
