//! bzip2: any number of streams, each of blocks of up to 900 kB that can be decoded by themselves
//! but are nowhere listed.
//!
//! The first opening decodes all of the file on all cores (`pass.rs`: where blocks begin is found
//! by `scan.rs`, `speculate.rs` decodes ahead) and keeps the bytes, since it must make them anyway
//! to know how many there are. What it learns about the blocks is kept for later openings, and
//! their bytes as far as the cache on disk has room: without them a block is decoded when it is
//! read (`decode.rs`).

mod bits;
mod decode;
mod header;
mod index;
mod pass;
mod scan;
mod speculate;
mod wrapped;

use std::collections::HashMap;
use std::sync::Arc;

use decode::{Bzip2Blocks, WholeImage};
use header::Magic;
use index::Index;

use super::decoded::Decoded;
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::cache::{Kept, Stored};
use crate::{Cx, Error, Kind, Result, Volume};

/// The layer `bzip2`.
pub static BZIP2: LayerType = LayerType {
    name: NAME,
    summary: "bzip2 compressed data (.bz2, several streams; also of pbzip2 and lbzip2)",
    params: &[],
    probe,
    open,
};

const NAME: &str = "bzip2";
/// What is kept for later openings, beside the bytes themselves.
const KEPT: &str = "bzip2-index-1";

fn probe(sample: &Sample<'_>) -> Verdict {
    let Some((level, magic)) = header::level_and_magic(sample.head) else {
        return Verdict::No;
    };
    let what = match magic {
        Magic::Block => "a block",
        Magic::End => "the end of an empty stream",
    };
    Verdict::Yes {
        confidence: Confidence::MAGIC,
        evidence: format!("magic 42 5a 68 (BZh{level}) at 0, {what} at 4"),
    }
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let len = below.size().min(header::STREAM_HEADER);
    let head = below.read_vec(0, usize::try_from(len).unwrap_or(0))?;
    let Some(level) = header::level(&head) else {
        let what = "it does not start with BZh and a digit from 1 to 9";
        return Err(Error::new(Kind::NotThisFormat, what));
    };
    if let Some(index) = kept(below, cx) {
        // Its bytes may be there as well.
        let stored = Kept::find(NAME, 0, cx).take(0, 0, index.size(), false);
        let blocks = Bzip2Blocks::new(below.clone(), index);
        return match stored {
            Some(stored) => whole(blocks, stored, cx),
            None => Decoded::volume(NAME, Arc::new(blocks), cx),
        };
    }
    let (index, stored) = pass::run(below, level, cx)?;
    if let Some(place) = &cx.place {
        place.save(KEPT, &index.to_bytes(below.size()));
    }
    whole(Bzip2Blocks::new(below.clone(), index), stored, cx)
}

/// The image that is decoded already.
fn whole(blocks: Bzip2Blocks, stored: Stored, cx: &Cx) -> Result<Volume> {
    let stored = HashMap::from([(0, stored)]);
    Decoded::volume_with(NAME, Arc::new(WholeImage(blocks)), stored, cx)
}

/// The index that an earlier opening has kept.
fn kept(below: &Volume, cx: &Cx) -> Option<Index> {
    let most = Index::most_bytes(cx.cache.budget() / INDEX_PART);
    let bytes = cx.place.as_ref()?.load(KEPT, most)?;
    Index::from_bytes(&bytes, below.size())
}
