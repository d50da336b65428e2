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

use decode::XzBlocks;
use index::Index;

use super::decoded::Decoded;
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::cache::{Blocks, Decode};
use crate::{Cx, Kind, Result, Volume};

/// The layer `xz`.
pub static XZ: LayerType = LayerType {
    name: "xz",
    summary: "xz compressed data (.xz, several streams and blocks)",
    params: &[],
    probe,
    open,
};

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
    let index = Index::read(below, cx.cache.budget() / INDEX_PART, &cx.cancel)?;
    warn_of_checks(&index, cx.verify);
    let source = Arc::new(XzBlocks::new(below.clone(), index));
    check_first_block(&source, cx)?;
    Decoded::volume("xz", source, cx)
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
