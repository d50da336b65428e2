//! Files of bgzip: small members, each of which states its own size, so that the index can be made
//! without decoding.
//!
//! The sizes stand in the headers and trailers, some 20 KB apart. One could read only these; over
//! a network that is a round trip each, and on a disk not faster than reading all of it, which the
//! kernel's read-ahead does anyway. So all bytes are read in order, in large requests. A bgzip file
//! of 1 GB takes a second from a good disk and as long as its download from elsewhere; the index is
//! kept after that.

use std::time::{Duration, Instant};

use super::member::{Gzip, next, trailer};
use crate::layer::deflate::{Builder, Feed, Index, Source};
use crate::{Cx, Kind, Result};

/// Decoded bytes of a member, at most (the SAM/BAM format specification, 4.1).
const MOST: u32 = 1 << 16;
/// Bytes of a trailer.
const TRAILER: u64 = 8;
/// Progress is told this often.
const TELL: Duration = Duration::from_millis(300);

/// The index of `source`, of at most `memory` bytes. `None` when it is not made of blocks, or
/// not all of it: only decoding can tell what it is then.
///
/// # Errors
/// What the volume below says, and that the unit is being taken down.
pub(super) fn index(source: &Source<Gzip>, memory: u64, cx: &Cx) -> Result<Option<Index>> {
    match hop(source, memory, cx) {
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => Ok(None),
        result => result,
    }
}

fn hop(source: &Source<Gzip>, memory: u64, cx: &Cx) -> Result<Option<Index>> {
    let start = source.range.start();
    let mut feed = Feed::new(&source.below, source.range);
    let mut builder = Builder::new(start, memory);
    let beat = || cx.cancel.check();
    let mut told = Instant::now();
    while let Some(member) = next(&mut feed, start, &beat)? {
        let header = feed.at().saturating_sub(member.at);
        let around = header.saturating_add(TRAILER);
        let body = member
            .header
            .member
            .and_then(|size| size.checked_sub(around));
        let Some(body) = body else {
            return Ok(None);
        };
        if !feed.skip(body, &beat)? {
            return Ok(None);
        }
        let len = trailer(&mut feed, &beat)?.len;
        if len > MOST {
            return Ok(None);
        }
        // Nobody has looked whether it is zero.
        builder.extend(u64::from(len), false)?;
        if builder.is_stream_due() {
            builder.stream(feed.at(), None);
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            let done = feed.at().saturating_sub(start);
            let what = "gzip: reading once, to find the blocks";
            cx.indexing(what, done, source.range.len());
        }
    }
    let index = builder.finish(None);
    // Of a file that decodes to nothing no block would ever be looked into.
    Ok((index.size() > 0).then_some(index))
}
