//! zstd: any number of frames, each decoded by itself; the seekable format; skippable frames.
//!
//! Which frames there are is read from a seek table at the end of the file (`table.rs`), or found
//! from its start on (`frames.rs`, parsers in `header.rs`). Small frames are put together, frames
//! that do not say their size are measured once (`measure.rs`), and what was learnt is kept for the
//! next mount. A frame that is too large for the cache is decoded once into a temp file; what is
//! behind that pass is read without waiting.

mod decode;
mod frames;
mod header;
mod measure;
mod stream;
mod table;

use std::collections::HashMap;
use std::sync::Arc;

use decode::{INDEX, Known, WALK, ZstdBlocks};
use frames::{Content, Found, How};
use header::{HEADER_MOST, Start};
use measure::Store;

use super::decoded::Decoded;
use super::scan::narrow;
use super::spans::{Builder, Spans};
use super::{Args, Confidence, INDEX_PART, LayerType, Param, Sample, Verdict};
use crate::cache::{Blocks, Decode, Stored};
use crate::{Cx, Error, Kind, Result, Volume};

/// The layer `zstd`.
pub static ZSTD: LayerType = LayerType {
    name: "zstd",
    summary: "zstd compressed data (.zst, several frames, seekable format)",
    params: &[Param {
        name: "walk",
        summary: "yes to look at every block header, whatever a seek table or the first frame says",
    }],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    let mut at = 0_u64;
    loop {
        let Some(rest) = sample.head.get(narrow(at)..).filter(|rest| rest.len() >= 4) else {
            // Skippable frames and nothing else, as far as can be seen; lz4 has the same.
            let seen = at > 0 && sample.size > at;
            return if seen {
                Verdict::Yes {
                    confidence: Confidence::SHORT_MAGIC,
                    evidence: format!("a skippable frame of {at} bytes at 0"),
                }
            } else {
                Verdict::No
            };
        };
        let magic = rest.starts_with(&header::MAGIC.to_le_bytes());
        match header::start(rest, at) {
            Ok(Start::Skippable { size, .. }) => at = at.saturating_add(size),
            Ok(Start::Frame(header)) => {
                let content = header.content.map_or_else(
                    || "content size not given".to_owned(),
                    |content| format!("{content} bytes of content"),
                );
                return Verdict::Yes {
                    confidence: Confidence::MAGIC,
                    evidence: format!(
                        "magic 28 b5 2f fd at {at}, window {}, {content}",
                        header.window
                    ),
                };
            }
            Err(error) if magic => {
                return Verdict::Yes {
                    confidence: Confidence::MAGIC,
                    evidence: format!("magic 28 b5 2f fd at {at}, but {error}"),
                };
            }
            Err(_) => return Verdict::No,
        }
    }
}

fn open(below: &Volume, args: &Args, cx: &Cx) -> Result<Volume> {
    check_start(below)?;
    let walk = match args.get("walk").map(String::as_str) {
        None | Some("no") => false,
        Some("yes") => true,
        Some(other) => {
            let what = format!("walk={other} is neither yes nor no");
            return Err(Error::new(Kind::Unsupported, what));
        }
    };
    if !walk && let Some(spans) = load(below, cx) {
        return volume(below, spans, Known::Seen, HashMap::new(), cx);
    }
    let place = cx.place.as_ref();
    let walk = walk || place.is_some_and(|place| place.load(WALK, 0).is_some());
    if !walk && let Some(table) = table::read(below, cx)? {
        let known = Known::Table(table.checks);
        return volume(below, table.spans, known, HashMap::new(), cx);
    }
    find(below, How { walk }, cx)
}

/// # Errors
/// `NotThisFormat` when the file begins with neither magic.
fn check_start(below: &Volume) -> Result<()> {
    let len = below.size().min(HEADER_MOST);
    let bytes = below.read_vec(0, narrow(len))?;
    match header::start(&bytes, 0) {
        Ok(_) => Ok(()),
        Err(error) if bytes.starts_with(&header::MAGIC.to_le_bytes()) => Err(error),
        Err(error) if error.kind() == Kind::Unsupported => Err(error),
        Err(_) => Err(Error::new(
            Kind::NotThisFormat,
            "it does not start with the magic 28 b5 2f fd or a skippable frame",
        )),
    }
}

/// What an earlier mount has found.
fn load(below: &Volume, cx: &Cx) -> Option<Spans> {
    let place = cx.place.as_ref()?;
    let bytes = place.load(INDEX, cx.cache.budget() / INDEX_PART)?;
    Spans::from_bytes(&bytes, below.size())
}

/// Finds the frames, and the size of those that do not say it.
fn find(below: &Volume, how: How, cx: &Cx) -> Result<Volume> {
    let mut store = Store::new(below, cx);
    let Found { units, assumed } = measure::find(&mut store, how)?;
    let mut builder = Builder::new(u64::max, cx);
    let mut stored: HashMap<u64, Stored> = HashMap::new();
    for unit in units {
        match unit.content {
            Content::Known(len) | Content::Most(len) => {
                builder.unit(unit.at, len, unit.memory)?;
            }
            Content::Stored(len) => {
                let number = builder.close();
                builder.unit(unit.at, len, unit.memory)?;
                builder.close();
                if let Some(one) = store.stored.remove(&unit.at) {
                    stored.insert(number, one);
                }
            }
        }
    }
    let spans = builder.finish(below.size());
    let known = if assumed {
        Known::Assumed(cx.place.clone())
    } else {
        if let Some(place) = &cx.place {
            place.save(INDEX, &spans.to_bytes());
        }
        Known::Seen
    };
    volume(below, spans, known, stored, cx)
}

fn volume(
    below: &Volume,
    spans: Spans,
    known: Known,
    stored: HashMap<u64, Stored>,
    cx: &Cx,
) -> Result<Volume> {
    let blocks = Arc::new(ZstdBlocks::new(below.clone(), spans, known));
    if !stored.contains_key(&0) {
        check_first_block(&blocks, cx)?;
    }
    Decoded::volume_with("zstd", blocks, stored, cx)
}

/// Fails early when the first block cannot be decoded for a reason that is likely to hold for all;
/// damage is left to be found where it is.
fn check_first_block(blocks: &ZstdBlocks, cx: &Cx) -> Result<()> {
    match blocks.decoder_memory(0) {
        Ok(memory) => Blocks::check_decoder_memory(&blocks.describe(0), memory, cx),
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::OutOfRange) => Ok(()),
        Err(error) => Err(error),
    }
}
