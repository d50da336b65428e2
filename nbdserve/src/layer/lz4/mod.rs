//! lz4: frames of blocks, each block decoded by itself, or from a checkpoint where blocks are
//! linked; legacy frames; skippable frames.
//!
//! The blocks are found when the file is opened (`frames.rs`, parsers in `header.rs`), and kept for
//! the next mount. Small ones are put together.

mod decode;
mod frames;
mod header;
mod stream;

use std::sync::Arc;

use decode::Lz4Blocks;
use frames::Found;
use header::{HEADER_MOST, Start};

use super::decoded::Decoded;
use super::scan::{Scan, narrow};
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::cache::{Blocks, Decode};
use crate::{Cx, Error, Kind, Result, Volume};

/// The name under which blocks are kept for the next mount.
const INDEX: &str = "lz4-index-1";

/// The layer `lz4`.
pub static LZ4: LayerType = LayerType {
    name: "lz4",
    summary: "lz4 compressed data (.lz4, several frames, legacy frames)",
    params: &[],
    probe,
    open,
};

/// Whether a frame begins here, whatever is wrong with it.
fn is_frame(bytes: &[u8]) -> bool {
    [header::MAGIC, header::LEGACY]
        .iter()
        .any(|magic| bytes.starts_with(&magic.to_le_bytes()))
}

fn probe(sample: &Sample<'_>) -> Verdict {
    let mut at = 0_u64;
    while let Some(rest) = sample.head.get(narrow(at)..) {
        match header::start(rest, at) {
            Ok(Start::Skippable(size)) => at = at.saturating_add(size),
            Ok(Start::Frame(header)) if header.kind.is_legacy() => {
                return Verdict::Yes {
                    confidence: Confidence::MAGIC,
                    evidence: format!("magic 02 21 4c 18 at {at}, a legacy frame"),
                };
            }
            Ok(Start::Frame(header)) => {
                let linked = if header.kind.linked {
                    "linked"
                } else {
                    "independent"
                };
                return Verdict::Yes {
                    confidence: Confidence::CHECKED,
                    evidence: format!(
                        "magic 04 22 4d 18 at {at}, header checksum right, {linked} blocks of {}",
                        header.kind.block_most()
                    ),
                };
            }
            Err(error) if is_frame(rest) => {
                return Verdict::Yes {
                    confidence: Confidence::MAGIC,
                    evidence: format!("magic 04 22 4d 18 at {at}, but {error}"),
                };
            }
            Err(_) => return Verdict::No,
        }
    }
    Verdict::No
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    check_start(below)?;
    let found = match load(below, cx) {
        Some(found) => found,
        None => {
            let found = frames::find(&mut Scan::new(below), cx)?;
            if let Some(place) = &cx.place {
                place.save(INDEX, &found.to_bytes());
            }
            found
        }
    };
    if found.unverified {
        tracing::info!(
            "lz4: the checksum of a frame of many blocks is verified only with --verify"
        );
    }
    let blocks = Arc::new(Lz4Blocks::new(below.clone(), found));
    Blocks::check_decoder_memory(&blocks.describe(0), blocks.decoder_memory(0), cx)?;
    Decoded::volume("lz4", blocks, cx)
}

/// # Errors
/// `NotThisFormat` when the file begins with neither magic.
fn check_start(below: &Volume) -> Result<()> {
    let len = below.size().min(HEADER_MOST);
    let bytes = below.read_vec(0, narrow(len))?;
    match header::start(&bytes, 0) {
        Ok(_) => Ok(()),
        Err(error) if is_frame(&bytes) => Err(error),
        Err(_) => Err(Error::new(
            Kind::NotThisFormat,
            "it does not start with the magic 04 22 4d 18, 02 21 4c 18 or a skippable frame",
        )),
    }
}

/// What an earlier mount has found, if it verified what is to be verified.
fn load(below: &Volume, cx: &Cx) -> Option<Found> {
    let place = cx.place.as_ref()?;
    let bytes = place.load(INDEX, cx.cache.budget() / INDEX_PART)?;
    let found = Found::from_bytes(&bytes, below.size())?;
    (found.verified || !cx.verify).then_some(found)
}
