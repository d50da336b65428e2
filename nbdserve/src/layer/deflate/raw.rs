//! One stream of raw deflate data with nothing around it.

use super::feed::{Beat, Feed};
use super::index::{DISTANCE, Index, is_possible};
use super::{Framing, Seen, Source};
use crate::layer::cut::cut_off;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// The name under which the index is kept.
const INDEX: &str = "deflate-index-1";

/// What is known of a stream from elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    /// Decoded bytes.
    pub(crate) size: Option<u64>,
    /// Of the decoded bytes.
    pub(crate) crc32: Option<u32>,
}

/// The one stream of raw deflate data that takes all of `range` of `below`, decoded, as a volume
/// called `name`. Its index is kept in `cx.place`, which must be that of this stream.
///
/// A stream that is short and has both of `expected` is opened without decoding it; any other is
/// decoded once, unless its index was kept.
///
/// # Errors
/// `Corrupt` for damage, truncation, bytes behind the stream, or other bytes than `expected`; what
/// `below` says. Where there is no pass, reading says so.
///
/// # Example
/// ```text
/// let expected = Expected { size: Some(entry.size), crc32: Some(entry.crc32) };
/// let volume = deflate::raw("zip", below, range_of_its_data, expected, &cx_of_the_entry)?;
/// ```
pub(crate) fn raw(
    name: &'static str,
    below: &Volume,
    range: ByteRange,
    expected: Expected,
    cx: &Cx,
) -> Result<Volume> {
    if range.end() > below.size() {
        let size = below.size();
        let what = format!("deflate data in {range}, of only {size}: the file is truncated");
        return Err(cut_off(what));
    }
    if let Some(size) = expected.size
        && !is_possible(range.len(), size)
    {
        let what = format!(
            "{} bytes of deflate data at {} cannot become {size}",
            range.len(),
            range.start()
        );
        return Err(Error::new(Kind::Corrupt, what));
    }
    let source = Source {
        below: below.clone(),
        range,
        framing: Raw { expected, range },
    };
    match expected {
        Expected {
            size: Some(size @ 1..=DISTANCE),
            crc32: Some(crc32),
        } => super::volume_of(name, source, Index::single(range, size, crc32), cx),
        _ => super::volume(name, source, INDEX, cx, |source| {
            super::pass(name, source, cx)
        }),
    }
}

/// Nothing around a stream.
#[derive(Debug)]
struct Raw {
    expected: Expected,
    range: ByteRange,
}

impl Framing for Raw {
    type Header = ();

    fn before(&self, feed: &mut Feed<'_>, start: u64, _beat: Beat<'_>) -> Result<Option<()>> {
        // An empty range has no stream, and is found to be cut short.
        Ok((feed.at() == start).then_some(()))
    }

    fn after(&self, feed: &mut Feed<'_>, seen: Option<Seen<()>>, _beat: Beat<'_>) -> Result<()> {
        let at = feed.at();
        let corrupt = |what: String| Err(Error::new(Kind::Corrupt, what));
        if at < self.range.end() {
            let more = self.range.end().saturating_sub(at);
            return corrupt(format!("{more} bytes follow the deflate data, at {at}"));
        }
        let Some(seen) = seen else {
            return Ok(());
        };
        if let Some(size) = self.expected.size.filter(|size| *size != seen.len) {
            return corrupt(format!(
                "the deflate data decodes to {} bytes, {size} were promised",
                seen.len
            ));
        }
        if let Some(crc32) = self.expected.crc32.filter(|crc32| *crc32 != seen.crc32) {
            return corrupt(format!(
                "the CRC32 of the decoded bytes is {:08x}, {crc32:08x} was promised",
                seen.crc32
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;
    use crate::source::Memory;

    /// Deflate data of "abcabc", from the ninth byte on.
    const FILE: [u8; 22] = [
        9, 9, 9, 9, 9, 9, 9, 9, 0, 3, 0, 0xfc, 0xff, b'a', b'b', b'c', 0x02, 0x22, 0xc0, 0, 9, 9,
    ];

    fn open(file: &[u8], start: u64, end: u64, expected: Expected) -> Result<Vec<u8>> {
        let below = Memory::volume(file.to_vec());
        let range = ByteRange::between(start, end);
        let volume = raw("zip", &below, range, expected, &Cx::new(1 << 20))?;
        volume.read_vec(0, usize::try_from(volume.size()).unwrap_or(usize::MAX))
    }

    fn expected(size: u64, crc32: u32) -> Expected {
        let (size, crc32) = (Some(size), Some(crc32));
        Expected { size, crc32 }
    }

    #[test]
    fn a_stream_is_decoded_with_and_without_a_promise() {
        let crc32 = crc32fast::hash(b"abcabc");
        let only_size = Expected {
            size: Some(6),
            crc32: None,
        };
        for promise in [Expected::default(), only_size, expected(6, crc32)] {
            let found = open(&FILE, 8, 20, promise);
            assert_eq!(found.ok().as_deref(), Some(&b"abcabc"[..]), "{promise:?}");
        }
        // An empty stream.
        let empty = open(&[3, 0], 0, 2, expected(0, 0));
        assert_eq!(empty.ok().as_deref(), Some(&[][..]));
    }

    #[test]
    fn every_lie_about_a_stream_is_corrupt() {
        let crc32 = crc32fast::hash(b"abcabc");
        let none = Expected::default();
        let crc_only = |crc32| Expected {
            size: None,
            crc32: Some(crc32),
        };
        for (start, end, promise) in [
            (8, 19, none),
            (8, 21, none),
            (8, 23, none),
            (8, 8, none),
            (9, 20, none),
            (8, 20, expected(5, crc32)),
            (8, 20, expected(7, crc32)),
            (8, 20, expected(0, 0)),
            (8, 20, expected(u64::MAX, crc32)),
            (8, 20, expected(1 << 40, crc32)),
            (8, 20, expected(6, 1)),
            (8, 20, crc_only(1)),
            (8, 19, expected(6, crc32)),
            (8, 21, expected(6, crc32)),
            (8, 20, expected(3, crc32fast::hash(b"abc"))),
        ] {
            let found = open(&FILE, start, end, promise).map_err(|error| error.kind());
            assert_eq!(found, Err(Kind::Corrupt), "{start}..{end} {promise:?}");
        }
    }

    /// `times` times eight blocks of zeroes as gzip makes them, and how many zeroes those are.
    fn blocks_of_zeroes(times: usize) -> (Vec<u8>, u64) {
        let gzip = crate::testing::tools::filter("gzip", &["-nc"], &vec![0; 10 << 20]);
        // Behind a header of ten bytes.
        let data = gzip.get(10..).unwrap_or_default();
        let block = super::super::blank::blank(data, 0, 1);
        assert!(block.len > 4 << 20, "{block:?}");
        let bit = |at: u64| data[(at / 8) as usize] >> (at % 8) & 1;
        let mut eight = vec![0; block.bits as usize];
        for (at, from) in (0..8).flat_map(|_| 0..block.bits).enumerate() {
            eight[at / 8] |= bit(from) << (at % 8);
        }
        let len = block.len * 8 * times as u64;
        (eight.repeat(times), len)
    }

    #[test]
    fn long_runs_of_zeroes_are_not_decoded_and_what_is_between_them_is() {
        let noise = crate::testing::noise(60_000, 1);
        let mut stored = vec![0, 0x60, 0xea, 0x9f, 0x15];
        stored.extend(&noise);
        let (first, before) = blocks_of_zeroes(200);
        let (second, behind) = blocks_of_zeroes(150);
        let empty_and_last = [3, 0];
        let file = [&first[..], &stored, &second, &empty_and_last].concat();
        let mut zeroes = super::super::zeroes::Zeroes::default();
        let mut crc32 = crc32fast::Hasher::new_with_initial_len(zeroes.crc32(before), before);
        crc32.update(&noise);
        let rest = crc32fast::Hasher::new_with_initial_len(zeroes.crc32(behind), behind);
        crc32.combine(&rest);
        let promise = expected(before + 60_000 + behind, crc32.finalize());
        assert!(before > 10 << 30);
        let below = Memory::volume(file);
        let range = ByteRange::between(0, below.size());
        let cx = Cx::new(64 << 20);
        let volume = raw("zip", &below, range, promise, &cx).unwrap();
        assert_eq!(volume.read_vec(before, 60_000).unwrap(), noise);
        assert_eq!(volume.read_vec(before - 5, 5).unwrap(), [0; 5]);
        let found = volume.extents(ByteRange::between(0, volume.size()));
        let runs = found.unwrap().runs().to_vec();
        let data = runs.iter().filter(|run| !run.flags.zero);
        let data: u64 = data.map(|run| run.range.len()).sum();
        assert!((60_000..20 << 20).contains(&data), "{runs:?}");
        for wrong in [
            expected(before + 60_000 + behind, 1),
            expected(before + 60_001 + behind, promise.crc32.unwrap()),
        ] {
            let error = raw("zip", &below, range, wrong, &cx).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
        }
    }
}
