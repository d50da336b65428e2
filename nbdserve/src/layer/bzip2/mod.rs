//! bzip2: any number of streams, each of blocks of up to 900 kB that can be decoded by themselves
//! but are nowhere listed.
//!
//! The first opening decodes all of the file on all cores (`pass.rs`: where blocks begin is found
//! by `scan.rs`, `speculate.rs` decodes ahead) and keeps the bytes, since it must make them anyway
//! to know how many there are. What it learns about the blocks is kept for later openings, which
//! decode a block when it is read (`decode.rs`).

mod bits;
mod decode;
mod header;
mod index;
mod pass;
mod scan;
mod speculate;
mod wrapped;

use std::sync::Arc;

use decode::Bzip2Blocks;
use header::Magic;
use index::Index;

use super::decoded::Decoded;
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict, given};
use crate::{Cx, Error, Kind, Result, Volume};

/// The layer `bzip2`.
pub static BZIP2: LayerType = LayerType {
    name: "bzip2",
    summary: "bzip2 compressed data (.bz2, several streams; also of pbzip2 and lbzip2)",
    params: &[],
    probe,
    open,
};

/// What is kept for later openings.
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
        let layout = Arc::new(Bzip2Blocks::new(below.clone(), index));
        return Decoded::volume("bzip2", layout, cx);
    }
    let (index, stored) = pass::run(below, level, cx)?;
    if let Some(place) = &cx.place {
        place.save(KEPT, &index.to_bytes(below.size()));
    }
    given::volume("bzip2", below, stored, cx)
}

/// The index that an earlier opening has kept.
fn kept(below: &Volume, cx: &Cx) -> Option<Index> {
    let most = Index::most_bytes(cx.cache.budget() / INDEX_PART);
    let bytes = cx.place.as_ref()?.load(KEPT, most)?;
    Index::from_bytes(&bytes, below.size())
}
