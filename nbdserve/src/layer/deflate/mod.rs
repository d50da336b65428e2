//! Deflate data (RFC 1951) that can be entered in the middle: what gzip and zip have in common.
//!
//! A deflate stream has no index, and each byte of it may refer to the 32 KiB decoded before. So it
//! is decoded once at opening (`pass.rs`), and about every 4 MiB of output a *checkpoint* is kept:
//! the bit at which a block begins, and the window before it. What lies between two checkpoints is
//! a *span* (`index.rs`), the unit in which bytes are decoded later (`spans.rs`): on all cores, and
//! one span for a cold read. Each span has its own CRC32, so that what is decoded later is verified
//! although the checksum of its stream covers all of it. The index can be kept on disk
//! (`stored.rs`); with it there is no pass.
//!
//! Where the window is nothing but zeroes, blocks that are so too are not decoded: see `blank.rs`.
//!
//! The distance of 4 MiB is a compromise: half a span, decoded in about 6 ms, is what a random read
//! costs; a window of 32 KiB is 0.8 % of it, before the window itself is compressed.
//!
//! # For a layer with one stream of raw deflate data
//!
//! ```text
//! // `cx.place` must be that of this entry: `place.inside("zip:NAME")`.
//! let expected = Expected { size: Some(entry.size), crc32: Some(entry.crc32) };
//! let volume = deflate::raw("zip", below, range_of_its_data, expected, cx)?;
//! ```
//!
//! A layer with more around its streams implements [`Framing`] and says with [`volume`] how the
//! index is to be found.

mod blank;
mod cursor;
mod feed;
mod index;
mod pass;
mod raw;
mod spans;
mod stored;
mod zeroes;

use std::fmt::Debug;
use std::sync::Arc;

#[cfg(feature = "testing")]
pub(crate) use blank::blank;
pub(super) use feed::{Beat, Feed};
pub(super) use index::{Builder, Index};
pub(super) use pass::pass;
pub(super) use raw::{Expected, raw};

use super::INDEX_PART;
use super::decoded::Decoded;
use crate::{ByteRange, Cx, Result, Volume};

/// An index that was kept by someone with more memory may be this many times larger than what is
/// allowed here. It is thinned out: better than to make another one.
const KEPT_MOST: u64 = 4;

/// What stands around the deflate streams of a file.
pub(crate) trait Framing: Send + Sync + Debug + 'static {
    /// What is known of a stream before it is decoded.
    type Header: Send + Debug;

    /// Reads what stands before the next stream; `None` when there is no further one. `start` is
    /// where the first one begins in the volume below.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`; what the volume below or `beat` says.
    fn before(
        &self,
        feed: &mut Feed<'_>,
        start: u64,
        beat: Beat<'_>,
    ) -> Result<Option<Self::Header>>;

    /// Reads what stands behind a stream, and compares it with what was decoded; that is `None`
    /// when the stream was entered in the middle.
    ///
    /// # Errors
    /// As [`Self::before`].
    fn after(
        &self,
        feed: &mut Feed<'_>,
        seen: Option<Seen<Self::Header>>,
        beat: Beat<'_>,
    ) -> Result<()>;
}

/// A stream that was decoded from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Seen<H> {
    /// What [`Framing::before`] has read.
    pub(crate) header: H,
    /// Of the decoded bytes.
    pub(crate) crc32: u32,
    /// Decoded bytes.
    pub(crate) len: u64,
}

/// Where the streams are.
#[derive(Debug)]
pub(crate) struct Source<F> {
    /// What holds them.
    pub(crate) below: Volume,
    /// The part of it that is theirs.
    pub(crate) range: ByteRange,
    /// What stands around them.
    pub(crate) framing: F,
}

/// The decoded bytes of `source` as a volume called `name`. The index is what was kept as `kept_as`
/// in `cx.place`, or else what `find` finds, which is then kept.
///
/// # Errors
/// What `find` says; `Limit`, `NoSpace` as `Blocks::new`.
pub(super) fn volume<F: Framing>(
    name: &'static str,
    source: Source<F>,
    kept_as: &str,
    cx: &Cx,
    find: impl FnOnce(&Source<F>) -> Result<Index>,
) -> Result<Volume> {
    let kept = cx.place.as_ref().and_then(|place| {
        let most = memory(cx).saturating_mul(KEPT_MOST);
        let bytes = place.load(kept_as, most)?;
        let Some(mut index) = stored::parse(&bytes, source.range, most) else {
            tracing::warn!("{name}: the index in the cache is not that of this image");
            return None;
        };
        index.thin_out(memory(cx));
        Some(index)
    });
    let index = match kept {
        Some(index) => index,
        None => {
            let index = find(&source)?;
            if let Some(place) = &cx.place {
                place.save(kept_as, &stored::bytes(&index, source.range));
            }
            index
        }
    };
    volume_of(name, source, index, cx)
}

fn volume_of<F: Framing>(
    name: &'static str,
    source: Source<F>,
    index: Index,
    cx: &Cx,
) -> Result<Volume> {
    Decoded::volume(name, Arc::new(spans::Spans::new(source, index)), cx)
}

/// [`volume`] with `kept` as what was kept; `None` when it is not taken for an index of `source`.
#[cfg(feature = "testing")]
pub(super) fn volume_with<F: Framing>(
    name: &'static str,
    source: Source<F>,
    kept: &[u8],
    cx: &Cx,
) -> Option<Result<Volume>> {
    let index = stored::parse(kept, source.range, memory(cx))?;
    Some(volume_of(name, source, index, cx))
}

/// What would be kept of `source` with a checkpoint after each `distance` decoded bytes.
///
/// # Errors
/// As [`pass()`].
#[cfg(feature = "testing")]
pub(super) fn to_keep<F: Framing>(source: &Source<F>, distance: u64, cx: &Cx) -> Result<Vec<u8>> {
    let index = pass::pass_each("test", source, distance, cx)?;
    Ok(stored::bytes(&index, source.range))
}

/// Most bytes that an index takes.
fn memory(cx: &Cx) -> u64 {
    cx.cache.budget() / INDEX_PART
}

/// A length in memory as one in a file.
fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
