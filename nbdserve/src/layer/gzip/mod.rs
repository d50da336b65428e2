//! gzip (RFC 1952): any number of members, one after the other, are one image.
//!
//! Its size is not known before all of it was decoded: the trailer has it modulo 2^32, and of the
//! last member only. So it is decoded once at opening, which also makes an index with which any
//! part is decoded by itself later; see `deflate/`. Files of bgzip are made of small members that
//! state their sizes: there the index is made without decoding (`blocks.rs`). The index is kept for
//! the next mount.

mod blocks;
mod header;
mod member;

use header::HeaderParser;
use member::Gzip;

use super::deflate::{self, Source};
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// The name under which the index is kept.
const INDEX: &str = "gzip-index-1";

/// The layer `gzip`.
pub static GZIP: LayerType = LayerType {
    name: "gzip",
    summary: "gzip compressed data (.gz, also of pigz and bgzip, several members)",
    params: &[],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    if !sample.head.starts_with(&header::MAGIC) {
        return Verdict::No;
    }
    let magic = "magic 1f 8b 08 at 0";
    let (confidence, evidence) = match HeaderParser::new(0).take(sample.head) {
        Ok((_, Some(header))) => {
            let blocks = match header.member {
                Some(_) => ", in blocks as bgzip makes them",
                None => "",
            };
            match header.checked {
                true => (
                    Confidence::CHECKED,
                    format!("{magic}, header CRC right{blocks}"),
                ),
                false => (Confidence::MAGIC, format!("{magic}{blocks}")),
            }
        }
        // The name in it is longer than the sample.
        Ok((_, None)) => (Confidence::MAGIC, magic.to_owned()),
        Err(error) => (Confidence::SHORT_MAGIC, format!("{magic}, but {error}")),
    };
    Verdict::Yes {
        confidence,
        evidence,
    }
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let may_be_blocks = check_start(below)?;
    deflate::volume("gzip", source(below), INDEX, cx, |source| {
        let memory = cx.cache.budget() / INDEX_PART;
        let blocks = match may_be_blocks {
            true => blocks::index(source, memory, cx)?,
            false => None,
        };
        match blocks {
            Some(index) => Ok(index),
            None => deflate::pass("gzip", source, cx),
        }
    })
}

fn source(below: &Volume) -> Source<Gzip> {
    Source {
        below: below.clone(),
        range: ByteRange::between(0, below.size()),
        framing: Gzip,
    }
}

/// Opens with `kept` as the index that an earlier opening has kept; `None` when it is not taken
/// for that.
#[cfg(feature = "testing")]
pub(crate) fn open_with(below: &Volume, kept: &[u8], cx: &Cx) -> Option<Result<Volume>> {
    deflate::volume_with("gzip", source(below), kept, cx)
}

/// What opening would keep, if checkpoints were `distance` decoded bytes apart.
///
/// # Errors
/// As opening.
#[cfg(feature = "testing")]
pub(crate) fn to_keep(below: &Volume, distance: u64, cx: &Cx) -> Result<Vec<u8>> {
    deflate::to_keep(&source(below), distance, cx)
}

/// Whether the first member has an extra field, as those of bgzip do.
///
/// # Errors
/// `NotThisFormat` when the magic is missing; what the volume below says.
fn check_start(below: &Volume) -> Result<bool> {
    let size = usize::try_from(below.size()).unwrap_or(usize::MAX);
    let start = below.read_vec(0, size.min(4))?;
    let [magic @ .., _] = header::MAGIC;
    if !start.starts_with(&magic) {
        return Err(Error::new(
            Kind::NotThisFormat,
            "it does not start with the magic 1f 8b",
        ));
    }
    Ok(start
        .get(3)
        .is_some_and(|flags| flags & header::FEXTRA != 0))
}
