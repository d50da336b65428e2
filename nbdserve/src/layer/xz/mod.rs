//! xz: any number of streams and blocks, each block decoded by itself.
//!
//! The index is read from the end of the file at open (`index.rs`, parsers in `header.rs`), so
//! opening costs a few requests whatever the size. A block is decoded when it is read or about to
//! be (`decode.rs`), kept in the unit's cache, and checked. Blocks that are too large for the
//! cache, as in files of the older `xz` which wrote a single one, are decoded once into a temp
//! file; what is behind that pass is read without waiting.

mod decode;
mod header;
mod index;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use decode::XzBlocks;
use index::{Block, Index};

use super::{Args, Confidence, LayerType, Sample, Verdict};
use crate::cache::{Blocks, Decode, Huge};
use crate::stats::BlockStats;
use crate::{Access, ByteRange, Cx, Device, ExtentFlags, Extents, Geometry, Kind, Result, Volume};

/// The layer `xz`.
pub static XZ: LayerType = LayerType {
    name: "xz",
    summary: "xz compressed data (.xz, several streams and blocks)",
    params: &[],
    probe,
    open,
};

/// Of the memory budget, the index takes at most one part in this many.
const INDEX_PART: u64 = 8;
/// An image up to this size is decoded as a whole in no time, so its access counts as random.
const SMALL: u64 = 1 << 20;
/// A first pass over fewer bytes than this is no worse than decoding a block.
const SHORT_PASS: u64 = 64 << 20;
/// A block that shrank by this much is a candidate for being all zero.
const ZERO_RATIO: u64 = 1000;
/// Most candidates that one question for extents decodes.
const ZERO_TRIES: usize = 16;

fn probe(sample: &Sample<'_>) -> Verdict {
    if !sample.head.starts_with(&header::HEADER_MAGIC) {
        return Verdict::No;
    }
    let magic = "magic fd 37 7a 58 5a 00 at 0";
    match header::stream_header(sample.head, 0) {
        Ok(flags) => {
            let (name, _) = header::check_name(flags.check);
            Verdict::Yes {
                confidence: Confidence::CHECKED,
                evidence: format!("{magic}, header CRC right, check {name}"),
            }
        }
        Err(error) => Verdict::Yes {
            confidence: Confidence::MAGIC,
            evidence: format!("{magic}, but {error}"),
        },
    }
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    Xz::open(below, cx).map(Volume::new)
}

/// The decoded image.
#[derive(Debug)]
struct Xz {
    source: Arc<XzBlocks>,
    blocks: Blocks,
    cx: Cx,
    geometry: Geometry,
    /// Decoded bytes of the longest block.
    longest: u64,
    /// Where the latest prefetch ended: a block number.
    ahead: AtomicU64,
}

impl Xz {
    fn open(below: &Volume, cx: &Cx) -> Result<Self> {
        let index = Index::read(below, cx.cache.budget() / INDEX_PART, &cx.cancel)?;
        warn_of_checks(&index, cx.verify);
        let longest = index.blocks().map(|block| block.len).max().unwrap_or(0);
        let source = Arc::new(XzBlocks::new(below.clone(), index));
        check_first_block(&source, cx)?;
        let mut huge = Huge::default();
        for block in source.index().blocks() {
            if Blocks::is_huge(block.len, cx) {
                huge.encoded = huge.encoded.saturating_add(block.unpadded);
                huge.decoded = huge.decoded.saturating_add(block.len);
            }
        }
        let decode: Arc<XzBlocks> = Arc::clone(&source);
        let blocks = Blocks::new("xz", decode, huge, cx)?;
        let mut geometry = Geometry::bytes(source.index().size());
        let own = if geometry.size <= SMALL {
            Access::Random
        } else if Blocks::is_huge(longest, cx) && longest >= SHORT_PASS {
            Access::FirstPass
        } else {
            Access::Block(longest)
        };
        geometry.access = own.max(below.geometry().access);
        Ok(Self {
            source,
            blocks,
            cx: cx.clone(),
            geometry,
            longest,
            ahead: AtomicU64::new(u64::MAX),
        })
    }

    fn index(&self) -> &Index {
        self.source.index()
    }

    /// The blocks that hold `range`, from the first on.
    fn covering(&self, range: ByteRange) -> impl Iterator<Item = (u64, Block)> {
        let first = self.index().find(range.start());
        (first..self.index().count())
            .map_while(|number| Some((u64::try_from(number).ok()?, self.index().block(number)?)))
            .take_while(move |(_, block)| block.start < range.end())
            .filter(|(_, block)| block.len > 0)
    }

    /// Begins to decode what this read needs and, when it belongs to a sequential stream, what
    /// the next ones will.
    fn begin(&self, range: ByteRange) {
        let ahead = self.blocks.note_read(range, self.longest);
        let mut needed = self.covering(range).map(|(number, _)| number);
        let Some(first) = needed.next() else {
            return;
        };
        let last = needed.last().unwrap_or(first);
        if first == last && ahead == 0 {
            return;
        }
        // Before the prefetches. The others of a long request come in the course of the read.
        let window = self.blocks.window(self.longest);
        for number in first..=last.min(first.saturating_add(window)) {
            self.blocks.begin(number);
        }
        let count = u64::try_from(self.index().count()).unwrap_or(u64::MAX);
        let next = last.saturating_add(1);
        let end = next.saturating_add(ahead).min(count);
        // Streams that are interleaved take turns here and look again, which is cheap.
        if ahead > 0 && self.ahead.swap(end, Ordering::Relaxed) != end {
            for number in next..end {
                self.blocks.prefetch(number);
            }
        }
    }
}

/// Fails early when the first block cannot be decoded for a reason that is likely to hold for
/// all; damage is left to be found where it is.
fn check_first_block(source: &XzBlocks, cx: &Cx) -> Result<()> {
    if source.index().count() == 0 {
        return Ok(());
    }
    match source.decoder_memory(0) {
        Ok(memory) => Blocks::check_decoder_memory(&source.describe(0), memory, cx),
        Err(error) if error.kind() == Kind::Corrupt => Ok(()),
        Err(error) => Err(error),
    }
}

/// Says in the log what will not be verified.
fn warn_of_checks(index: &Index, verify: bool) {
    let mut told = [false; 16];
    for id in index.checks() {
        let (name, verified) = header::check_name(id);
        let Some(told) = told.get_mut(usize::from(id)) else {
            continue;
        };
        if *told || verified {
            continue;
        }
        *told = true;
        if id != 0 {
            tracing::warn!(
                check = id,
                name,
                "xz: a check of this type cannot be verified"
            );
        } else if verify {
            tracing::warn!("xz: blocks carry no check, so there is nothing to verify");
        }
    }
}

impl Device for Xz {
    fn name(&self) -> &'static str {
        "xz"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        let range = ByteRange::between(offset, offset.saturating_add(len));
        self.begin(range);
        let mut rest = buf;
        for (number, block) in self.covering(range) {
            let part = ByteRange::between(block.start, block.start.saturating_add(block.len))
                .intersect(range);
            let skip = part.start().saturating_sub(block.start);
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            self.blocks.read(number, skip, now)?;
            rest = later;
        }
        Ok(())
    }

    /// What is decoded is known piece by piece. Of the rest, blocks that shrank so much that they
    /// may be all zero are decoded, a few per question; the others count as data.
    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        let candidates: Vec<_> = self
            .covering(range)
            .filter(|(number, block)| {
                block.len / ZERO_RATIO >= block.unpadded && !self.blocks.is_begun(*number)
            })
            .filter(|(_, block)| !Blocks::is_huge(block.len, &self.cx))
            .take(ZERO_TRIES)
            .map(|(number, _)| number)
            .collect();
        for number in &candidates {
            self.blocks.begin(*number);
        }
        for (number, block) in self.covering(range) {
            if candidates.contains(&number) && self.blocks.load(number).is_err() {
                // Who reads it will be told why.
                out.push_until(block.start.saturating_add(block.len), ExtentFlags::DATA);
            }
            while !out.is_full() && out.next_offset() < block.start.saturating_add(block.len) {
                let skip = out.next_offset().saturating_sub(block.start);
                let until = range.end().saturating_sub(block.start);
                let (end, zero) = self.blocks.known(number, skip, until);
                let flags = if zero {
                    ExtentFlags::ZERO
                } else {
                    ExtentFlags::DATA
                };
                out.push_until(block.start.saturating_add(end), flags);
            }
            if out.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn will_need(&self, range: ByteRange) {
        let window = usize::try_from(self.blocks.window(self.longest)).unwrap_or(usize::MAX);
        for (number, _) in self.covering(range).take(window) {
            self.blocks.prefetch(number);
        }
    }

    fn block_stats(&self) -> Option<BlockStats> {
        Some(self.blocks.stats())
    }

    fn close(&self) -> Result<()> {
        self.blocks.close();
        self.source.below().close()
    }
}
