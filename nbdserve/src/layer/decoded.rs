//! What all formats that are cut into blocks have in common: a device that knows where its blocks
//! lie, has them decoded when they are read or about to be, and passes on which are zero.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::twins::Twins;
use twox_hash::XxHash3_64;

use crate::cache::{Blocks, Decode, Huge, Kept, Stored};
use crate::stats::BlockStats;
use crate::{
    Access, ByteRange, Cost, Cx, Device, Error, ExtentFlags, Extents, Geometry, Index, Keeping,
    Kind, Lent, Result, Volume,
};

/// An image up to this size is decoded as a whole in no time, so its access counts as random.
const SMALL: u64 = 1 << 20;
/// A first pass over fewer bytes than this is no worse than decoding a block.
const SHORT_PASS: u64 = 64 << 20;
/// A block that shrank by this much is a candidate for being all zero, in most formats.
const ZERO_RATIO: u64 = 1000;
/// Most candidates that one question for extents decodes, of those that are not like others.
const ZERO_TRIES: usize = 16;
/// So many of them at once, on all cores: what the first ones are tells which others may be zero.
const ZERO_BATCH: usize = 4;
/// Candidates are looked for among so many blocks at once.
const ZERO_STEP: u64 = 64;
/// A block of the first pass that shrank by this much is worth waiting for: most of it may be zero,
/// and who asks for holes is about to copy it.
const SPARSE_RATIO: u64 = 8;
/// Most candidates that one question compares with blocks that are known to be zero: a few KiB each.
const TWIN_TRIES: usize = 1 << 14;
/// Bytes that nothing is encoded in, at most: an xz block with the longest header and check, or some lzip
/// members.
const EMPTY_MOST: u64 = 4096;
/// Blocks that an earlier mount has kept take this part of the budget for what is noted of each, so
/// many bytes. Behind that they are decoded as if they were not there.
const TAKEN_PART: u64 = 32;
const TAKEN_BYTES: u64 = 512;
/// Bytes of data shrink to one part in about as many, where nothing better is known.
const USUAL_RATIO: u64 = 4;

/// The blocks of an image, in order and without gaps: how one is decoded ([`Decode`]), and where
/// they lie. A block should be worth the bookkeeping: formats with small ones take several as one.
pub(super) trait Layout: Decode + 'static {
    /// What is decoded.
    fn below(&self) -> &Volume;

    /// Decoded bytes of all blocks.
    fn size(&self) -> u64;

    /// How many blocks there are; they are numbered from zero.
    fn count(&self) -> u64;

    /// The block that holds the decoded byte at `offset`, which is below [`Self::size`].
    fn find(&self, offset: u64) -> u64;

    /// Bytes that the block takes below.
    fn encoded(&self, number: u64) -> u64;

    /// Whether the block is known to be all zero, from an index for example: then it is never
    /// decoded.
    fn is_zero(&self, _number: u64) -> bool {
        false
    }

    /// How many bytes of zeroes are encoded in one, at least: a block that shrank by less is data.
    fn zero_ratio(&self) -> u64 {
        ZERO_RATIO
    }

    /// Where all bytes lie below that the block is decoded from, and what else its meaning depends
    /// on: two blocks of the same length that agree in both decode to the same. `None` where that
    /// cannot be said.
    fn twin(&self, _number: u64) -> Option<(ByteRange, u64)> {
        None
    }

    /// Whether a block is decoded about as fast as its bytes are copied about, so that what was read
    /// in order is not worth much memory.
    fn is_fast(&self) -> bool {
        false
    }

    /// How it is known where the blocks lie.
    fn index(&self) -> Index {
        Index::Found
    }
}

/// A decoded image.
#[derive(Debug)]
pub(super) struct Decoded<L> {
    name: &'static str,
    layout: Arc<L>,
    blocks: Blocks,
    geometry: Geometry,
    /// Decoded bytes of the longest block.
    longest: u64,
    /// Where the latest prefetch ended: a block number.
    ahead: AtomicU64,
    twins: Twins,
    cost: Cost,
}

impl<L: Layout> Decoded<L> {
    /// The image as a volume called `name`. What earlier mounts have decoded is found in `cx.place`
    /// by that name: a layer that makes several images gives each a place of its own.
    ///
    /// # Errors
    /// As [`Blocks::new`].
    pub(super) fn volume(name: &'static str, layout: Arc<L>, cx: &Cx) -> Result<Volume> {
        Self::volume_with(name, layout, HashMap::new(), cx)
    }

    /// As [`Self::volume`], where some blocks (by number) were decoded at opening, and their checks
    /// have passed.
    ///
    /// # Errors
    /// As [`Blocks::new`].
    pub(super) fn volume_with(
        name: &'static str,
        layout: Arc<L>,
        mut stored: HashMap<u64, Stored>,
        cx: &Cx,
    ) -> Result<Volume> {
        Kept::save(name, &stored, |number| layout.offset(number), cx);
        let place = fingerprint(&*layout);
        let kept = Kept::find(name, place, cx);
        let (mut longest, mut zero, mut empty) = (0, Vec::new(), Vec::new());
        let (mut taken, most) = (0_u64, cx.cache.budget() / TAKEN_PART / TAKEN_BYTES);
        let in_memory = Blocks::longest(layout.size(), layout.is_slow(), cx);
        let mut huge = Huge {
            layout: place,
            longest: Some(in_memory),
            ..Huge::default()
        };
        for number in 0..layout.count() {
            if stored.contains_key(&number) || layout.is_zero(number) {
                continue;
            }
            let len = layout.len(number);
            if len == 0 && layout.index() == Index::InImage {
                empty.push(number);
            }
            let is_huge = len > in_memory;
            let looked_for = is_huge || (layout.is_slow() && taken < most);
            if let Some(block) = kept.take(number, layout.offset(number), len, looked_for) {
                taken = taken.saturating_add(1);
                if block.is_zero() {
                    zero.push(number);
                }
                stored.insert(number, block);
                continue;
            }
            longest = len.max(longest);
            if is_huge {
                huge.encoded = huge.encoded.saturating_add(layout.encoded(number));
                huge.decoded = huge.decoded.saturating_add(len);
            }
        }
        let decode: Arc<L> = Arc::clone(&layout);
        let blocks = Blocks::with_stored(name, decode, huge, stored, cx)?;
        for number in empty {
            see_that_it_is_empty(&*layout, &blocks, number)?;
        }
        for number in (0..layout.count()).filter(|number| layout.is_zero(*number)) {
            blocks.note_zero(number);
        }
        let twins = Twins::default();
        for number in zero {
            blocks.note_zero(number);
            twins.note(&*layout, number);
        }
        let mut geometry = Geometry::bytes(layout.size());
        let own = if geometry.size <= SMALL {
            Access::Random
        } else if longest > in_memory && longest >= SHORT_PASS {
            Access::FirstPass
        } else if longest == 0 {
            // All of it is decoded already.
            Access::Random
        } else {
            Access::Block(longest)
        };
        geometry.access = own.max(layout.below().geometry().access);
        let in_file = longest == 0 || longest > in_memory;
        let cost = Cost {
            access: own,
            index: layout.index(),
            index_kept: Keeping::index(cx),
            kept: Keeping::decoded(cx, in_file, layout.is_slow()),
        };
        Ok(Volume::new(Self {
            name,
            layout,
            blocks,
            geometry,
            longest,
            ahead: AtomicU64::new(u64::MAX),
            twins,
            cost,
        }))
    }

    /// Where the decoded bytes of a block lie.
    fn range(&self, number: u64) -> ByteRange {
        let start = self.layout.offset(number);
        ByteRange::between(start, start.saturating_add(self.layout.len(number)))
    }

    /// The blocks that hold `range`, from the first on.
    fn covering(&self, range: ByteRange) -> impl Iterator<Item = (u64, ByteRange)> {
        let first = self.layout.find(range.start());
        (first..self.layout.count())
            .map(|number| (number, self.range(number)))
            .take_while(move |(_, block)| block.start() < range.end())
            .filter(|(_, block)| !block.is_empty())
    }

    /// Whether the block shrank so much that it may be all zero.
    fn may_be_zero(&self, number: u64, block: ByteRange) -> bool {
        let shrunk = block.len().checked_div(self.layout.zero_ratio());
        shrunk.is_some_and(|shrunk| shrunk >= self.layout.encoded(number))
    }

    /// Notes that a block is zero if that can be told without decoding it.
    fn settle(&self, number: u64, block: ByteRange) -> bool {
        let found = self.may_be_zero(number, block)
            && !self.blocks.is_begun(number)
            && self.twins.have(&*self.layout, number);
        if found {
            self.blocks.note_zero(number);
        }
        found
    }

    /// Remembers what a block looks like that has turned out to be zero.
    fn learn(&self, number: u64, block: ByteRange) {
        if self.may_be_zero(number, block)
            && self.twins.lacks(&*self.layout, number)
            && self.blocks.is_zero(number)
        {
            self.twins.learn(&*self.layout, number);
        }
    }

    /// Decodes some of the blocks in `range` that may be all zero, so that it is known whether they
    /// are.
    fn find_zeroes(&self, range: ByteRange, tries: &mut Tries) {
        let mut unknown = Vec::new();
        for (number, block) in self.covering(range) {
            if !self.may_be_zero(number, block)
                || self.blocks.is_begun(number)
                || self.blocks.is_long(block.len())
            {
                continue;
            }
            if tries.are_used_up() {
                break;
            }
            tries.compared = tries.compared.saturating_add(1);
            if self.settle(number, block) || !self.twins.may_be(&*self.layout, number) {
                continue;
            }
            if self.twins.lacks(&*self.layout, number) {
                // The first of its sort: most often all others are like it.
                if !self.try_all(&[number]) {
                    tries.decoded = tries.decoded.saturating_add(1);
                }
                self.learn(number, block);
                continue;
            }
            tries.decoded = tries.decoded.saturating_add(1);
            unknown.push(number);
            if unknown.len() >= ZERO_BATCH {
                self.try_all(&std::mem::take(&mut unknown));
            }
        }
        self.try_all(&unknown);
    }

    /// Decodes blocks that may be zero. Whether all of them are.
    fn try_all(&self, numbers: &[u64]) -> bool {
        for number in numbers {
            self.blocks.begin(*number);
        }
        let mut all = true;
        for number in numbers {
            // Who reads it will be told why it cannot be had.
            let is_sound = self.blocks.load(*number).is_ok();
            if self.blocks.is_zero(*number) {
                continue;
            }
            all = false;
            if is_sound {
                self.twins.is_data(&*self.layout, *number);
            }
        }
        all
    }

    /// Bytes of a block were given to a reader, who `passes` over it.
    fn served(&self, number: u64, block: ByteRange, passes: bool) {
        self.learn(number, block);
        if passes {
            self.blocks.passed(number);
        }
    }

    /// Begins to decode what this read needs and, when it belongs to a sequential stream, what
    /// the next ones will. Whether it does.
    fn begin(&self, range: ByteRange) -> bool {
        let ahead = self.blocks.note_read(range, self.longest);
        for (number, block) in self.covering(range) {
            self.settle(number, block);
        }
        let mut needed = self.covering(range).map(|(number, _)| number);
        let Some(first) = needed.next() else {
            return false;
        };
        let last = needed.last().unwrap_or(first);
        if first == last && ahead == 0 {
            return false;
        }
        // Before the prefetches. The others of a long request come in the course of the read.
        let window = self.blocks.window(self.longest);
        for number in first..=last.min(first.saturating_add(window)) {
            self.blocks.begin(number);
        }
        let next = last.saturating_add(1);
        let end = next.saturating_add(ahead).min(self.layout.count());
        // Streams that are interleaved take turns here and look again, which is cheap.
        if ahead > 0 && self.ahead.swap(end, Ordering::Relaxed) != end {
            for number in next..end {
                if !self.settle(number, self.range(number)) {
                    self.blocks.prefetch(number);
                }
            }
        }
        ahead > 0
    }
}

/// What one question for extents has done to find zeroes.
#[derive(Debug, Default)]
struct Tries {
    compared: usize,
    decoded: usize,
}

impl Tries {
    fn are_used_up(&self) -> bool {
        self.compared >= TWIN_TRIES || self.decoded >= ZERO_TRIES
    }
}

/// Decodes a block that has no bytes, if the image is right: nobody will ever read it, and what is in it
/// would be missing from the image.
fn see_that_it_is_empty(layout: &impl Layout, blocks: &Blocks, number: u64) -> Result<()> {
    let encoded = layout.encoded(number);
    if encoded > EMPTY_MOST {
        let what = format!(
            "{} is said to be empty, and has {encoded} bytes",
            layout.describe(number)
        );
        return Err(Error::new(Kind::Corrupt, what));
    }
    blocks.load(number)
}

/// A hash of where all blocks lie.
fn fingerprint(layout: &impl Layout) -> u64 {
    let mut hasher = XxHash3_64::with_seed(layout.size());
    for number in 0..layout.count() {
        hasher.write_u64(layout.offset(number));
        hasher.write_u64(layout.len(number));
        hasher.write_u64(layout.encoded(number));
    }
    hasher.finish()
}

impl<L: Layout> Device for Decoded<L> {
    fn name(&self) -> &str {
        self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let passes = self.begin(range) && self.layout.is_fast();
        let mut rest = buf;
        for (number, block) in self.covering(range) {
            let part = block.intersect(range);
            let skip = part.start().saturating_sub(block.start());
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            self.blocks.read(number, skip, now)?;
            self.served(number, block, passes);
            rest = later;
        }
        Ok(())
    }

    fn lend(&self, range: ByteRange) -> Result<Option<Lent>> {
        let lends =
            |block: &(u64, ByteRange)| block.1.contains(range) && self.blocks.lends(block.0);
        let Some((number, block)) = self.covering(range).next().filter(lends) else {
            return Ok(None);
        };
        let passes = self.begin(range) && self.layout.is_fast();
        let skip = range.start().saturating_sub(block.start());
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let lent = self.blocks.lend(number, skip, len)?;
        if lent.is_some() {
            self.served(number, block, passes);
        }
        Ok(lent)
    }

    /// What is decoded is known piece by piece. Of the rest, blocks that shrank so much that they
    /// may be all zero are decoded, a few per question; the others count as data. A huge block that
    /// shrank is decoded up to the first change from data to zero or back, which is what SEEK_HOLE and
    /// SEEK_DATA want to know.
    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        let mut tries = Tries::default();
        let mut looked = range.start();
        for (number, block) in self.covering(range) {
            // Not all of them first: an answer of few runs ends after few blocks.
            if block.end() > looked && !tries.are_used_up() {
                let last = number.saturating_add(ZERO_STEP).saturating_sub(1);
                let last = last.min(self.layout.count().saturating_sub(1));
                looked = self.range(last).end().max(block.end()).min(range.end());
                let start = block.start().max(range.start());
                self.find_zeroes(ByteRange::between(start, looked), &mut tries);
            }
            let sparse = self.blocks.is_long(block.len())
                && block.len() / SPARSE_RATIO >= self.layout.encoded(number);
            while !out.is_full() && out.next_offset() < block.end() {
                let skip = out.next_offset().saturating_sub(block.start());
                let wait = sparse && out.runs().len() < 2;
                if wait && self.blocks.reach(number, skip.saturating_add(1)).is_err() {
                    out.push_until(block.end(), ExtentFlags::DATA);
                    break;
                }
                let until = range.end().saturating_sub(block.start());
                let (end, zero) = self.blocks.known(number, skip, until);
                let flags = if zero {
                    ExtentFlags::ZERO
                } else {
                    ExtentFlags::DATA
                };
                out.push_until(block.start().saturating_add(end), flags);
            }
            if out.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let window = usize::try_from(self.blocks.window(self.longest)).unwrap_or(usize::MAX);
        let blocks = ranges.iter().flat_map(|range| self.covering(*range));
        for (number, _) in blocks.take(window) {
            self.blocks.prefetch(number);
        }
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        let mut sum = 0_u64;
        for (number, block) in self.covering(range) {
            let part = block.intersect(range);
            let skip = part.start().saturating_sub(block.start());
            let until = part.end().saturating_sub(block.start());
            let (data, unknown) = self.blocks.tally(number, skip, until);
            // Of a huge block some is data, however much it shrank.
            let is_huge = self.blocks.is_long(block.len());
            let guess = if self.may_be_zero(number, block) && !is_huge {
                0
            } else {
                self.layout.encoded(number).saturating_mul(USUAL_RATIO)
            };
            let rest = guess.saturating_sub(data).min(unknown);
            sum = sum.saturating_add(data).saturating_add(rest);
        }
        Some(sum)
    }

    fn cost(&self) -> Option<Cost> {
        Some(self.cost)
    }

    fn block_stats(&self) -> Option<BlockStats> {
        Some(self.blocks.stats())
    }

    fn close(&self) -> Result<()> {
        self.blocks.close();
        self.layout.below().close()
    }
}
