//! An index as bytes, to be kept for the next mount.
//!
//! All numbers but checksums are of variable length, seven bits in a byte, the lowest first, the
//! eighth bit set when more follow:
//!
//! ```text
//! encoded bytes with padding, encoded bytes of all streams, decoded bytes, spans; then each
//! span: decoded bytes
//!       bits from the entry of the span before
//!       flags: 1 all zero, 2 entered at a block, 4 with a checksum
//!       if it has a checksum: CRC32, four bytes, little-endian
//!       if entered at a block: bytes of the packed window, and these
//! ```

use super::index::{Entry, Index, Span, is_possible};
use super::wide;
use super::zeroes::Zeroes;
use crate::ByteRange;

const ZERO: u64 = 1;
const BLOCK: u64 = 2;
const CHECKED: u64 = 4;

/// The bytes of the index of streams that lie in `range`.
pub(super) fn bytes(index: &Index, range: ByteRange) -> Vec<u8> {
    let mut out = Vec::with_capacity(usize::try_from(index.memory()).unwrap_or(0));
    put(&mut out, range.len());
    put(&mut out, index.end.saturating_sub(range.start()));
    put(&mut out, index.size);
    put(&mut out, wide(index.spans.len()));
    let mut bit = range.start().saturating_mul(8);
    for (number, span) in (0..).zip(&index.spans) {
        put(&mut out, index.decoded(number).len());
        put(&mut out, span.bit.saturating_sub(bit));
        bit = span.bit;
        let zero = if span.zero { ZERO } else { 0 };
        let block = match &span.entry {
            Entry::Stream => 0,
            Entry::Block(_) => BLOCK,
        };
        let checked = span.crc32.map_or(0, |_| CHECKED);
        put(&mut out, zero | block | checked);
        if let Some(crc32) = span.crc32 {
            out.extend(crc32.to_le_bytes());
        }
        if let Entry::Block(packed) = &span.entry {
            put(&mut out, wide(packed.len()));
            out.extend_from_slice(packed);
        }
    }
    out
}

/// The index that [`bytes`] was given, if it is one of streams that lie in `range` and takes at most
/// `memory` bytes. Any bytes may come: nothing in them is believed, apart from checksums of bytes
/// that are not zero.
pub(super) fn parse(bytes: &[u8], range: ByteRange, memory: u64) -> Option<Index> {
    let mut rest = bytes;
    if get(&mut rest)? != range.len() {
        return None;
    }
    let len = get(&mut rest).filter(|len| *len <= range.len())?;
    let size = get(&mut rest).filter(|size| *size <= u64::MAX >> 1)?;
    let count = get(&mut rest)?;
    let mut index = Index {
        spans: Vec::new(),
        size,
        end: range.start().checked_add(len)?,
    };
    let mut zeroes = Zeroes::default();
    let mut start: u64 = 0;
    let mut bit = range.start().checked_mul(8)?;
    let end = index.end.checked_mul(8)?;
    for number in 0..count {
        let len = get(&mut rest).filter(|len| *len > 0)?;
        let step = get(&mut rest).filter(|step| *step > 0 || number == 0)?;
        bit = bit.checked_add(step).filter(|bit| *bit < end)?;
        let flags = get(&mut rest).filter(|flags| *flags <= ZERO | BLOCK | CHECKED)?;
        let crc32 = match flags & CHECKED {
            0 => None,
            _ => Some(u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?)),
        };
        let entry = if flags & BLOCK == 0 {
            if !bit.is_multiple_of(8) {
                return None;
            }
            Entry::Stream
        } else {
            let len = usize::try_from(get(&mut rest)?).ok()?;
            Entry::Block(take(&mut rest, len)?.into())
        };
        let zero = flags & ZERO != 0;
        // What cannot be checked later must not be said: bytes of zeroes are not decoded, and a
        // span that is entered in the middle of a stream has no checksum but its own.
        let provable = match crc32 {
            Some(crc32) => !zero || zeroes.crc32(len) == crc32,
            None => !zero && matches!(entry, Entry::Stream),
        };
        if !provable {
            return None;
        }
        index.spans.push(Span {
            start,
            bit,
            crc32,
            zero,
            entry,
        });
        start = start.checked_add(len).filter(|start| *start <= size)?;
    }
    let fits = start == size && rest.is_empty() && index.memory() <= memory;
    let possible = (0..count).all(|number| {
        let encoded = index.encoded(number).len();
        is_possible(encoded, index.decoded(number).len())
    });
    index.spans.shrink_to_fit();
    (fits && possible).then_some(index)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut number: u64 = 0;
    for shift in (0..63).step_by(7) {
        let [byte] = *take(bytes, 1)? else {
            return None;
        };
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;

    const MEMORY: u64 = 1 << 20;

    fn range() -> ByteRange {
        ByteRange::between(100, 90_000)
    }

    /// Start, bit, checksum, whether it is zero, window.
    type Row<'a> = (u64, u64, Option<u32>, bool, Option<&'a [u8]>);

    fn index(spans: Vec<Row<'_>>, size: u64) -> Index {
        let span = |(start, bit, crc32, zero, window): Row<'_>| Span {
            start,
            bit,
            crc32,
            zero,
            entry: match window {
                Some(window) => Entry::block(window).unwrap_or(Entry::Stream),
                None => Entry::Stream,
            },
        };
        Index {
            spans: spans.into_iter().map(span).collect(),
            size,
            end: 89_000,
        }
    }

    fn checked() -> Index {
        let zeroes = crc32fast::hash(&[0; 500_000]);
        let spans = vec![
            (0, 800, Some(1), false, None),
            (
                7_000_000,
                160_001,
                Some(zeroes),
                true,
                Some(&[7; 32768][..]),
            ),
            (7_500_000, 320_000, Some(3), false, None),
            (7_500_001, 320_007, Some(4), false, Some(&[])),
        ];
        index(spans, 8_000_000)
    }

    fn unchecked() -> Index {
        let spans = vec![
            (0, 800, None, false, None),
            (900_000, 8000, None, false, None),
        ];
        index(spans, 1_000_000)
    }

    #[test]
    fn what_was_kept_comes_back() {
        for index in [checked(), unchecked(), index(vec![], 0)] {
            let kept = bytes(&index, range());
            let found = parse(&kept, range(), MEMORY);
            let again = found.map(|found| bytes(&found, range()));
            assert_eq!(again, Some(kept));
        }
    }

    #[test]
    fn an_index_of_another_file_or_too_large_is_none() {
        let kept = bytes(&checked(), range());
        assert!(parse(&kept, ByteRange::between(100, 90_001), MEMORY).is_none());
        assert!(parse(&kept, ByteRange::between(100, 30_000), MEMORY).is_none());
        assert!(parse(&kept, range(), checked().memory() - 1).is_none());
        assert!(parse(&kept, range(), checked().memory()).is_some());
    }

    #[test]
    fn what_could_not_be_checked_later_is_none() {
        let zeroes = Some(crc32fast::hash(&[0; 10]));
        let of = |span| bytes(&index(vec![span], 10), range());
        let is_taken = |kept: Vec<u8>| parse(&kept, range(), MEMORY).is_some();
        assert!(is_taken(of((0, 800, zeroes, true, None))));
        assert!(!is_taken(of((0, 800, Some(1), true, None))));
        assert!(!is_taken(of((0, 800, None, true, None))));
        assert!(is_taken(of((0, 801, Some(1), false, Some(b"a")))));
        assert!(!is_taken(of((0, 801, Some(1), false, None))));
        assert!(!is_taken(of((0, 800, None, false, Some(b"a")))));
    }

    #[test]
    fn spans_that_cannot_be_are_none() {
        let of = |spans, size| bytes(&index(spans, size), range());
        let one = |start, bit| (start, bit, Some(1), false, None);
        for kept in [
            // More than can come out of these bytes.
            of(vec![one(0, 800)], 1 << 40),
            of(vec![one(0, 800)], u64::MAX >> 1),
            // Empty ones.
            of(vec![one(0, 800)], 0),
            of(vec![one(0, 800), one(0, 808)], 10),
            // In the same place, and beyond the end.
            of(vec![one(0, 800), one(5, 800)], 10),
            of(vec![one(0, 800), one(5, 720_000)], 10),
        ] {
            assert!(parse(&kept, range(), MEMORY).is_none());
        }
    }

    #[test]
    fn every_cut_is_none_and_every_flipped_bit_is_harmless() {
        for index in [checked(), unchecked()] {
            let kept = bytes(&index, range());
            for len in 0..kept.len() {
                assert!(parse(&kept[..len], range(), MEMORY).is_none(), "{len}");
            }
            let longer = [&kept[..], &[0]].concat();
            assert!(parse(&longer, range(), MEMORY).is_none());
            for bit in 0..kept.len() * 8 {
                let mut other = kept.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                let Some(found) = parse(&other, range(), MEMORY) else {
                    continue;
                };
                let mut at = 0;
                for number in 0..found.spans.len() as u64 {
                    let (decoded, encoded) = (found.decoded(number), found.encoded(number));
                    assert_eq!(decoded.start(), at, "bit {bit}");
                    assert!(!decoded.is_empty() && !encoded.is_empty(), "bit {bit}");
                    assert!(range().contains(encoded), "bit {bit}");
                    at = decoded.end();
                }
                assert_eq!(at, found.size);
            }
        }
    }
}
