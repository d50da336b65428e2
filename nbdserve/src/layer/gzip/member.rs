//! What stands around the deflate streams of a gzip file: a header and a trailer each, and zeroes
//! behind the last one.

use super::header::{Header, HeaderParser};
use crate::layer::cut::cut_off;
use crate::layer::deflate::{Beat, Feed, Framing, Seen};
use crate::{Error, Kind, Result};

/// The framing of gzip files.
#[derive(Debug)]
pub(super) struct Gzip;

/// A member whose header was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Where its header begins.
    pub(super) at: u64,
    pub(super) header: Header,
}

/// The trailer of a member (RFC 1952, 2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) crc32: u32,
    /// ISIZE: the decoded bytes modulo 2^32.
    pub(super) len: u32,
}

/// Reads the header of the next member; `None` when there is no further one. Zeroes may follow the
/// last one, as on tapes; gzip ignores these too.
///
/// # Errors
/// `NotThisFormat` when the first member does not begin as one; `Corrupt`, also for anything else
/// behind the last one; `Unsupported`; what the volume below or `beat` says.
pub(super) fn next(feed: &mut Feed<'_>, start: u64, beat: Beat<'_>) -> Result<Option<Member>> {
    let at = feed.at();
    if at > start && !skip_padding(feed, beat)? {
        return Ok(None);
    }
    let mut parser = HeaderParser::new(at);
    while feed.fill(beat)? {
        let taken = parser.take(feed.bytes());
        let (used, header) = taken.map_err(|error| match error.kind() {
            Kind::NotThisFormat if at > start => garbage(at),
            _ => error,
        })?;
        feed.consume(used);
        if let Some(header) = header {
            return Ok(Some(Member { at, header }));
        }
    }
    Err(truncated("header", at, feed.at()))
}

/// Skips zeroes behind a member; false when that is all there is.
fn skip_padding(feed: &mut Feed<'_>, beat: Beat<'_>) -> Result<bool> {
    let at = feed.at();
    while feed.fill(beat)? {
        let bytes = feed.bytes();
        let zeroes = bytes.iter().take_while(|byte| **byte == 0).count();
        let more = zeroes < bytes.len();
        feed.consume(zeroes);
        if more {
            return match feed.at() == at {
                true => Ok(true),
                false => Err(garbage(feed.at())),
            };
        }
    }
    Ok(false)
}

/// Reads the trailer of `member`.
///
/// # Errors
/// `Corrupt` when the file ends before; what the volume below or `beat` says.
pub(super) fn trailer(feed: &mut Feed<'_>, beat: Beat<'_>) -> Result<Trailer> {
    let at = feed.at();
    let bytes = feed.array::<8>(beat)?;
    let [c0, c1, c2, c3, l0, l1, l2, l3] =
        bytes.ok_or_else(|| truncated("trailer", at, feed.at()))?;
    Ok(Trailer {
        crc32: u32::from_le_bytes([c0, c1, c2, c3]),
        len: u32::from_le_bytes([l0, l1, l2, l3]),
    })
}

fn truncated(what: &str, at: u64, end: u64) -> Error {
    let what = format!("the gzip {what} at {at} is cut short at {end}: the file is truncated");
    cut_off(what)
}

fn garbage(at: u64) -> Error {
    let what = format!("trailing garbage: what follows the last gzip member, at {at}, is no other");
    Error::new(Kind::Corrupt, what)
}

impl Framing for Gzip {
    type Header = Member;

    fn before(&self, feed: &mut Feed<'_>, start: u64, beat: Beat<'_>) -> Result<Option<Member>> {
        next(feed, start, beat)
    }

    fn after(&self, feed: &mut Feed<'_>, seen: Option<Seen<Member>>, beat: Beat<'_>) -> Result<()> {
        let trailer = trailer(feed, beat)?;
        let Some(Seen { header, crc32, len }) = seen else {
            return Ok(());
        };
        let at = header.at;
        let corrupt = |what: String| Err(Error::new(Kind::Corrupt, what));
        if trailer.crc32 != crc32 {
            return corrupt(format!(
                "the CRC32 of the gzip member at {at} is {crc32:08x}, {:08x} is stored",
                trailer.crc32
            ));
        }
        // ISIZE says nothing more about a member of 4 GiB or longer.
        if u64::from(trailer.len) != len % (1 << 32) {
            return corrupt(format!(
                "the gzip member at {at} has {len} bytes, {} (modulo 2^32) are stored",
                trailer.len
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Memory;
    use crate::{ByteRange, Volume};

    fn after(below: &Volume, len: u64) -> Option<Kind> {
        let mut feed = Feed::new(below, ByteRange::between(0, below.size()));
        let header = Member {
            at: 0,
            header: Header::default(),
        };
        let crc32 = 0x0403_0201;
        let seen = Seen { header, crc32, len };
        let result = Gzip.after(&mut feed, Some(seen), &|| Ok(()));
        result.err().map(|error| error.kind())
    }

    #[test]
    fn the_stored_length_is_one_modulo_two_to_the_power_of_32() {
        let below = Memory::volume(vec![1, 2, 3, 4, 9, 0, 0, 0]);
        for len in [9, (1 << 32) | 9, (1 << 40) | 9] {
            assert_eq!(after(&below, len), None, "{len}");
        }
        for len in [0, 8, 10, 1 << 32, (1 << 32) | 8, u64::MAX] {
            assert_eq!(after(&below, len), Some(Kind::Corrupt), "{len}");
        }
    }
}
