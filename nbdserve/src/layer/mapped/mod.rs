//! What all formats have in common that say, piece by piece, where the bytes of a disk lie: a device
//! made of runs, each stored in some volume below, packed by itself, or not stored at all.
//!
//! A format says what there is at an offset ([`Map`]); everything else is done here: neighbours are
//! read with one request, packed pieces are decoded on all cores and ahead of a reader, and holes are
//! passed up.

mod map;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use map::{Map, Place, Run};

use crate::cache::{Blocks, Decode, Huge};
use crate::hints::Hints;
use crate::stats::BlockStats;
use crate::{
    Access, ByteRange, Cost, Cx, Device, Error, ExtentFlags, Extents, Geometry, Index, Keeping,
    Kind, Result, Volume,
};

/// Runs that are looked at behind a read for packed pieces that may be wanted next.
const LOOK_AHEAD: usize = 64;
/// Most runs that a hint is passed on for.
const HINTS: usize = 256;

/// The packed pieces of a disk: how one is decoded.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Decodes the block that [`Place::Packed`] names.
    pub(crate) decode: Arc<dyn Decode>,
    /// Decoded bytes of the longest.
    pub(crate) longest: u64,
}

/// A disk made of runs. It cannot be written.
#[derive(Debug)]
pub(crate) struct Mapped<M> {
    name: String,
    map: Arc<M>,
    geometry: Geometry,
    packed: Option<Pieces>,
}

/// Packed pieces that are decoded when they are read.
#[derive(Debug)]
struct Pieces {
    blocks: Blocks,
    longest: u64,
    cost: Cost,
    /// Where the latest prefetch ended: an offset.
    ahead: AtomicU64,
}

/// A run that a read needs.
type Part<'a> = (ByteRange, Place<'a>);

impl<M: Map> Mapped<M> {
    /// The disk as a volume called `name`.
    ///
    /// # Errors
    /// `Limit` for packed pieces that are too long for the memory there is.
    pub(crate) fn volume(
        name: impl Into<String>,
        map: Arc<M>,
        packed: Option<Packed>,
        cx: &Cx,
    ) -> Result<Volume> {
        let name = name.into();
        let mut geometry = Geometry::bytes(map.size());
        for below in map.below() {
            let below = below.geometry();
            geometry.access = geometry.access.max(below.access);
            geometry.preferred_block = geometry.preferred_block.max(below.preferred_block);
        }
        let mut pieces = None;
        if let Some(Packed { decode, longest }) = packed {
            if Blocks::is_huge(longest, cx) {
                let what = format!("pieces of {longest} bytes each, too many for the cache");
                return Err(Error::new(Kind::Limit, what).hint("a larger --cache-size"));
            }
            let access = Access::Block(longest);
            geometry.access = geometry.access.max(access);
            pieces = Some(Pieces {
                blocks: Blocks::new(&name, decode, Huge::default(), cx)?,
                longest,
                cost: Cost {
                    access,
                    index: Index::InImage,
                    index_kept: Keeping::Memory,
                    kept: Keeping::Memory,
                },
                ahead: AtomicU64::new(u64::MAX),
            });
        }
        Ok(Volume::new(Self {
            name,
            map,
            geometry,
            packed: pieces,
        }))
    }

    /// The run at `offset`, cut at `until`.
    fn run(&self, offset: u64, until: u64) -> Result<Part<'_>> {
        let run = self.map.run(offset, until)?;
        if run.end <= offset {
            let what = format!("the map says nothing about the byte at {offset}");
            return Err(Error::new(Kind::Io, what));
        }
        let range = ByteRange::between(offset, run.end.min(until));
        Ok((range, run.place))
    }

    /// The runs of `range`, up to the first that the map cannot tell.
    fn runs(&self, range: ByteRange) -> impl Iterator<Item = Part<'_>> {
        let mut at = range.start();
        std::iter::from_fn(move || {
            let part = (at < range.end()).then(|| self.run(at, range.end()).ok())??;
            at = part.0.end();
            Some(part)
        })
    }

    /// What `range` is made of: neighbours that belong together are one part.
    fn parts(&self, range: ByteRange) -> Result<Vec<Part<'_>>> {
        let mut parts: Vec<Part<'_>> = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let (part, place) = self.run(at, range.end())?;
            at = part.end();
            match parts.last_mut() {
                Some((last, before)) if continues(*before, *last, place) => {
                    *last = ByteRange::between(last.start(), part.end());
                }
                _ => parts.push((part, place)),
            }
        }
        Ok(parts)
    }

    /// Begins to decode what a sequential reader of `range` will want next.
    fn look_ahead(&self, pieces: &Pieces, range: ByteRange) {
        let mut wanted = pieces.blocks.note_read(range, pieces.longest);
        if wanted == 0 {
            return;
        }
        let mut at = range.end();
        let end = pieces.longest.saturating_mul(wanted.saturating_add(1));
        let end = at.saturating_add(end).min(self.map.size());
        // Streams that are interleaved take turns here and look again, which is cheap.
        if pieces.ahead.swap(end, Ordering::Relaxed) == end {
            return;
        }
        for _ in 0..LOOK_AHEAD {
            if at >= end || wanted == 0 {
                break;
            }
            // Who reads it will be told why it cannot be had.
            let Ok((part, place)) = self.run(at, end) else {
                break;
            };
            if let Place::Packed(number) = place {
                pieces.blocks.prefetch(number);
                wanted = wanted.saturating_sub(1);
            }
            at = part.end();
        }
    }

    /// The packed pieces.
    fn pieces(&self) -> Result<&Pieces> {
        self.packed.as_ref().ok_or_else(|| {
            let what = "the map names a packed piece where there are none";
            Error::new(Kind::Corrupt, what)
        })
    }

    /// Where the first byte of `part` lies in the packed block.
    fn skip(pieces: &Pieces, number: u64, part: ByteRange) -> u64 {
        part.start().saturating_sub(pieces.blocks.offset(number))
    }
}

/// Whether `next` goes on where the part `part`, which lies at `before`, ends.
fn continues(before: Place<'_>, part: ByteRange, next: Place<'_>) -> bool {
    match (before, next) {
        (Place::Hole, Place::Hole) | (Place::Zero, Place::Zero) => true,
        (
            Place::Stored { volume, at },
            Place::Stored {
                volume: other,
                at: then,
            },
        ) => std::ptr::eq(volume, other) && at.checked_add(part.len()) == Some(then),
        _ => false,
    }
}

/// Where the bytes of `part` lie in a volume, the first of them at `at`.
fn placed(part: ByteRange, at: u64) -> ByteRange {
    ByteRange::between(at, at.saturating_add(part.len()))
}

impl<M: Map> Device for Mapped<M> {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let parts = self.parts(range)?;
        let packed = |part: &Part<'_>| match part.1 {
            Place::Packed(number) => Some(number),
            _ => None,
        };
        let mut coming = parts.iter().filter_map(packed);
        if let Some(pieces) = &self.packed
            && parts.iter().filter_map(packed).nth(1).is_some()
        {
            // Before the prefetches; the others follow as the read goes on.
            for number in coming.by_ref().take(window(pieces)) {
                pieces.blocks.begin(number);
            }
        }
        if let Some(pieces) = &self.packed {
            self.look_ahead(pieces, range);
        }
        let mut rest = buf;
        for (part, place) in &parts {
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            match *place {
                Place::Hole | Place::Zero => now.fill(0),
                Place::Stored { volume, at } => volume.read_at(now, at)?,
                Place::Packed(number) => {
                    let pieces = self.pieces()?;
                    let skip = Self::skip(pieces, number, *part);
                    pieces.blocks.read(number, skip, now)?;
                    if let Some(next) = coming.next() {
                        pieces.blocks.begin(next);
                    }
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        while !out.is_full() && out.next_offset() < range.end() {
            let (part, place) = self.run(out.next_offset(), range.end())?;
            match place {
                Place::Hole => out.push_until(part.end(), ExtentFlags::HOLE),
                Place::Zero => out.push_until(part.end(), ExtentFlags::ZERO),
                Place::Stored { volume, at } => {
                    volume.extents_placed(placed(part, at), part.start(), out)?;
                }
                Place::Packed(number) => {
                    let pieces = self.pieces()?;
                    let skip = Self::skip(pieces, number, part);
                    let until = skip.saturating_add(part.len());
                    let (end, zero) = pieces.blocks.known(number, skip, until);
                    let end = part.start().saturating_add(end.saturating_sub(skip));
                    let flags = match zero {
                        true => ExtentFlags::ZERO,
                        false => ExtentFlags::DATA,
                    };
                    out.push_until(end.min(part.end()), flags);
                }
            }
        }
        Ok(())
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let mut hints = Hints::new();
        let mut pieces_left = self.packed.as_ref().map_or(0, window);
        let runs = ranges.iter().flat_map(|range| self.runs(*range));
        for (part, place) in runs.take(HINTS) {
            match (place, &self.packed) {
                (Place::Stored { volume, at }, _) => hints.add(volume, placed(part, at)),
                (Place::Packed(number), Some(pieces)) if pieces_left > 0 => {
                    pieces.blocks.prefetch(number);
                    pieces_left = pieces_left.saturating_sub(1);
                }
                _ => {}
            }
        }
        hints.send();
    }

    /// The tables would have to be read to know better: what is stored is taken for evenly spread.
    fn stored(&self, range: ByteRange) -> Option<u64> {
        let size = self.map.size().max(1);
        let all = self.map.allocated()?.min(size);
        let part = u128::from(all)
            .saturating_mul(u128::from(range.len()))
            .checked_div(u128::from(size))?;
        u64::try_from(part).ok()
    }

    fn cost(&self) -> Option<Cost> {
        self.packed.as_ref().map(|pieces| pieces.cost)
    }

    fn notes(&self) -> Vec<String> {
        self.map.notes()
    }

    fn block_stats(&self) -> Option<BlockStats> {
        self.packed.as_ref().map(|pieces| pieces.blocks.stats())
    }

    fn close(&self) -> Result<()> {
        if let Some(pieces) = &self.packed {
            pieces.blocks.close();
        }
        for below in self.map.below() {
            below.close()?;
        }
        Ok(())
    }
}

/// Packed pieces that are decoded at once for one reader.
fn window(pieces: &Pieces) -> usize {
    let window = pieces.blocks.window(pieces.longest).saturating_add(1);
    usize::try_from(window).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Job;
    use crate::source::Memory;

    /// Pieces of four bytes: `.` a hole, `0` zeroes, `a` and `b` in order in two volumes, `p` packed.
    #[derive(Debug)]
    struct Pattern {
        pattern: &'static [u8],
        volumes: [Volume; 2],
    }

    impl Map for Pattern {
        fn size(&self) -> u64 {
            u64::try_from(self.pattern.len()).unwrap_or(0) << 2
        }

        fn below(&self) -> Vec<&Volume> {
            self.volumes.iter().collect()
        }

        fn run(&self, offset: u64, _until: u64) -> Result<Run<'_>> {
            let number = usize::try_from(offset >> 2).unwrap();
            let end = (offset | 3).saturating_add(1);
            let [a, b] = &self.volumes;
            Ok(match self.pattern[number] {
                b'.' => Run::hole(end),
                b'0' => Run::zero(end),
                b'a' => Run::stored(end, a, offset),
                b'b' => Run::stored(end, b, offset),
                b'p' => Run {
                    end,
                    place: Place::Packed(offset >> 2),
                },
                _ => return Err(Error::new(Kind::Corrupt, "a table that lies")),
            })
        }
    }

    #[derive(Debug)]
    struct Number;

    impl Decode for Number {
        fn len(&self, _number: u64) -> u64 {
            4
        }

        fn offset(&self, number: u64) -> u64 {
            number << 2
        }

        fn describe(&self, number: u64) -> String {
            format!("piece {number}")
        }

        fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
            if job.start(0)? {
                let byte = u8::try_from(number).unwrap_or(0);
                job.spare()?.fill(byte);
                job.advance(4)?;
            }
            Ok(())
        }
    }

    fn open(pattern: &'static [u8]) -> Volume {
        let volumes = [1, 2].map(|byte| Memory::volume(vec![byte; pattern.len() << 2]));
        let map = Arc::new(Pattern { pattern, volumes });
        let packed = Packed {
            decode: Arc::new(Number),
            longest: 4,
        };
        Mapped::volume("pattern", map, Some(packed), &Cx::new(1 << 20)).unwrap()
    }

    fn expected(pattern: &[u8]) -> Vec<u8> {
        let byte = |(number, what): (usize, &u8)| match what {
            b'a' => 1,
            b'b' => 2,
            b'p' => u8::try_from(number).unwrap(),
            _ => 0,
        };
        let pieces = pattern.iter().enumerate();
        pieces.flat_map(|piece| [byte(piece); 4]).collect()
    }

    #[test]
    fn every_range_reads_as_its_pieces_say() {
        let pattern = b"..aab0pppb.apa0p";
        let whole = expected(pattern);
        for start in 0..whole.len() {
            for end in start..whole.len() {
                let volume = open(pattern);
                let at = u64::try_from(start).unwrap();
                let found = volume.read_vec(at, end.saturating_sub(start)).unwrap();
                assert_eq!(found, whole[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn holes_and_zeroes_are_passed_up_and_data_is_not_guessed() {
        let volume = open(b"..aab0pp.");
        let extents = volume.extents(ByteRange::between(1, 36)).unwrap();
        let runs: Vec<_> = extents.runs().iter().collect();
        let ends: Vec<_> = runs.iter().map(|run| run.range.end()).collect();
        assert_eq!(ends, [8, 20, 24, 32, 36]);
        let flags: Vec<_> = runs.iter().map(|run| run.flags).collect();
        let (hole, data) = (ExtentFlags::HOLE, ExtentFlags::DATA);
        assert_eq!(flags, [hole, data, ExtentFlags::ZERO, data, hole]);
    }

    #[test]
    fn one_bad_piece_does_not_hide_the_others() {
        let volume = open(b"ab?a");
        assert_eq!(volume.read_vec(4, 4).unwrap(), [2; 4]);
        assert_eq!(volume.read_vec(12, 4).unwrap(), [1; 4]);
        let error = volume.read_vec(6, 4).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}
