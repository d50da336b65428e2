//! Android sparse images (`.simg`, `system.img` for fastboot): chunks that are stored, filled with
//! a word, or left out.
//!
//! The chunk headers are found at open (`index.rs`, parsers in `header.rs`): a few bytes of each
//! chunk, bodies are passed over. Nothing is decoded; a read goes to where its bytes lie. Blocks that
//! nobody cares about read as zeroes and are holes.

mod header;
mod index;

use index::{Body, Index};

use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::{ByteRange, Cx, Device, ExtentFlags, Extents, Geometry, Result, Volume};

const NAME: &str = "simg";

/// The layer `simg`.
pub static SIMG: LayerType = LayerType {
    name: NAME,
    summary: "Android sparse image (as img2simg and fastboot have it)",
    params: &[],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    if !sample.head.starts_with(&header::MAGIC) {
        return Verdict::No;
    }
    let magic = "magic 3a ff 26 ed at 0";
    Verdict::Yes {
        confidence: Confidence::MAGIC,
        evidence: match header::file_header(sample.head) {
            Ok(file) => {
                let (chunks, block) = (file.total_chunks, file.blk_sz);
                format!("{magic}, {chunks} chunks, blocks of {block}")
            }
            Err(error) => format!("{magic}, but {error}"),
        },
    }
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let index = Index::read(below, cx.cache.budget() / INDEX_PART, cx)?;
    let geometry = Geometry {
        size: index.size(),
        // Chunks begin anywhere in the file.
        min_block: 1,
        ..below.geometry()
    };
    Ok(Volume::new(Simg {
        below: below.clone(),
        index,
        geometry,
    }))
}

/// An Android sparse image.
#[derive(Debug)]
struct Simg {
    below: Volume,
    index: Index,
    geometry: Geometry,
}

impl Simg {
    /// The runs that hold `range`: which part of it, the run's first byte, what it is.
    fn covering(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, u64, Body)> {
        self.index
            .runs_from(range.start())
            .take_while(move |(start, ..)| *start < range.end())
            .map(move |(start, end, body)| {
                let part = ByteRange::between(start, end).intersect(range);
                (part, start, body)
            })
    }
}

/// Where the bytes `part` of the image lie in the file, for a run that begins at `start` in the
/// image and at `at` in the file.
fn below(part: ByteRange, start: u64, at: u64) -> ByteRange {
    // Within the file, which was checked at open.
    let first = at.saturating_add(part.start().saturating_sub(start));
    ByteRange::between(first, first.saturating_add(part.len()))
}

impl Device for Simg {
    fn name(&self) -> &'static str {
        NAME
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut rest = buf;
        for (part, start, body) in self.covering(range) {
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            match body {
                Body::Raw(at) => self.below.read_at(now, below(part, start, at).start())?,
                Body::Fill(word) => fill(now, word, part.start()),
                Body::Hole => now.fill(0),
            }
            rest = later;
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        for (part, start, body) in self.covering(range) {
            match body {
                Body::Raw(at) => {
                    self.below
                        .extents_placed(below(part, start, at), part.start(), out)?;
                }
                Body::Fill([0, 0, 0, 0]) => out.push_until(part.end(), ExtentFlags::ZERO),
                Body::Fill(_) => out.push_until(part.end(), ExtentFlags::DATA),
                Body::Hole => out.push_until(part.end(), ExtentFlags::HOLE),
            }
            if out.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let runs = ranges.iter().flat_map(|range| self.covering(*range));
        let raw = runs.filter_map(|(part, start, body)| match body {
            Body::Raw(at) => Some(below(part, start, at)),
            Body::Fill(_) | Body::Hole => None,
        });
        self.below.will_need_parts(&raw.collect::<Vec<_>>());
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        let parts = self.covering(range).map(|(part, start, body)| match body {
            Body::Raw(at) => {
                let raw = below(part, start, at);
                // Most blocks that are zero were left out.
                self.below.stored(raw).unwrap_or(raw.len())
            }
            Body::Fill([0, 0, 0, 0]) | Body::Hole => 0,
            Body::Fill(_) => part.len(),
        });
        Some(parts.fold(0, u64::saturating_add))
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}

/// Fills `buf`, which begins at `offset`, with a word that stands at every multiple of four: blocks
/// begin at such.
fn fill(buf: &mut [u8], word: [u8; 4], offset: u64) {
    let turn = usize::try_from(offset & 3).unwrap_or(0);
    for (byte, value) in buf.iter_mut().zip(word.iter().cycle().skip(turn)) {
        *byte = *value;
    }
}
