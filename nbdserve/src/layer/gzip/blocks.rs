//! Files of bgzip: small members, each of which states its own size, so that the index can be made
//! without decoding.
//!
//! The sizes stand in the headers and trailers, some 20 KB apart. One could read only these; over
//! a network that is a round trip each, and on a disk not faster than reading all of it, which the
//! kernel's read-ahead does anyway. So all bytes are read in order, in large requests. A bgzip file
//! of 1 GB takes a second from a good disk and as long as its download from elsewhere; the index is
//! kept after that.

use std::time::{Duration, Instant};

use super::member::{Gzip, Trailer, next, trailer};
use crate::bytes::is_zero;
use crate::layer::deflate::{Beat, Builder, Feed, Index, Source};
use crate::sys::zlib::{Inflate, Place, Stop};
use crate::{Cx, Kind, Result};

/// Decoded bytes of a member, at most (the SAM/BAM format specification, 4.1).
const MOST: u32 = 1 << 16;
/// Bytes of a trailer.
const TRAILER: u64 = 8;
/// Bytes of deflate data that may hold a whole block of zeroes: bgzip needs about 90 of them.
const SMALL: u64 = 512;
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
    let mut small = Small::default();
    let beat = || cx.cancel.check();
    let mut end = start;
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
        if !small.take(&mut feed, body, &beat)? {
            return Ok(None);
        }
        let trailer = trailer(&mut feed, &beat)?;
        if trailer.len > MOST {
            return Ok(None);
        }
        builder.extend(u64::from(trailer.len), small.is_zero(trailer))?;
        end = feed.at();
        if builder.is_stream_due() {
            builder.stream(end, None);
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            let done = end.saturating_sub(start);
            let what = "gzip: reading once, to find the blocks";
            cx.indexing(what, done, source.range.len());
        }
    }
    // Zeroes behind the last member could be a part of it, if it is longer than it says.
    if end < source.range.end() {
        return Ok(None);
    }
    let index = builder.finish(end, None);
    // Of a file that decodes to nothing no block would ever be looked into.
    Ok((index.size() > 0).then_some(index))
}

/// The deflate data of a member, if it is so short that it may decode to nothing but zeroes. In a
/// sparse image most are, and the same bytes: one look at the first of them is enough.
#[derive(Debug, Default)]
struct Small {
    data: Vec<u8>,
    latest: Option<(Vec<u8>, Trailer, bool)>,
}

impl Small {
    /// Reads over the `len` bytes of a member; false when the file ends before.
    fn take(&mut self, feed: &mut Feed<'_>, len: u64, beat: Beat<'_>) -> Result<bool> {
        self.data.clear();
        if len > SMALL {
            return feed.skip(len, beat);
        }
        for _ in 0..len {
            let Some([byte]) = feed.array(beat)? else {
                return Ok(false);
            };
            self.data.push(byte);
        }
        Ok(true)
    }

    /// Whether what was read decodes to zeroes, as many as `trailer` says, with the right checksum.
    fn is_zero(&mut self, trailer: Trailer) -> bool {
        // Data that is longer, or that decodes to little, is not worth a look.
        if self.data.is_empty() || u64::from(trailer.len) < SMALL {
            return trailer.len == 0;
        }
        if let Some((data, known, zero)) = &self.latest
            && *known == trailer
            && *data == self.data
        {
            return *zero;
        }
        let zero = decodes_to_zero(&self.data, trailer);
        self.latest = Some((self.data.clone(), trailer, zero));
        zero
    }
}

fn decodes_to_zero(data: &[u8], trailer: Trailer) -> bool {
    let (Ok(mut inflate), Ok(len)) = (Inflate::new(), usize::try_from(trailer.len)) else {
        return false;
    };
    // One byte more, so that a longer stream shows.
    let mut out = vec![0; len.saturating_add(1)];
    let step = inflate.step(data, &mut out, Stop::Never);
    let decoded = out.get(..step.written).unwrap_or(&[]);
    step.place == Ok(Place::End)
        && step.read == data.len()
        && step.written == len
        && is_zero(decoded)
        && crc32fast::hash(decoded) == trailer.crc32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_right_in_all_respects_counts_as_zero() {
        // Ten zeroes in a stored block.
        let mut data = vec![1, 10, 0, 0xf5, 0xff];
        data.resize(15, 0);
        let right = Trailer {
            crc32: crc32fast::hash(&[0; 10]),
            len: 10,
        };
        assert!(decodes_to_zero(&data, right));
        for zeroes in [&[][..], &[0; 9], &[0; 11]] {
            let crc32 = crc32fast::hash(zeroes);
            let len = u32::try_from(zeroes.len()).unwrap_or(0);
            assert!(!decodes_to_zero(&data, Trailer { crc32, len }), "{len}");
        }
        let crc32 = 1;
        assert!(!decodes_to_zero(&data, Trailer { crc32, ..right }));
        assert!(!decodes_to_zero(&[&data[..], &[0]].concat(), right));
        assert!(!decodes_to_zero(&data[..14], right));
        let last = data.len() - 1;
        data[last] = 1;
        assert!(!decodes_to_zero(&data, right));
    }
}
