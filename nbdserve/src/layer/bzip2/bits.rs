//! Bytes as a row of bits, the highest of each byte first.

use std::sync::LazyLock;

use super::header::{BLOCK_MAGIC, END_MAGIC, MAGIC_BITS, Magic, magic};

/// `len` bits (at most 56) from the bit `at` of `bytes` on; zero bits beyond the end.
pub(super) fn peek(bytes: &[u8], at: u64, len: u64) -> u64 {
    let first = usize::try_from(at / 8).unwrap_or(usize::MAX);
    let rest = bytes.get(first..).unwrap_or(&[]);
    let word = match rest.first_chunk() {
        Some(word) => u64::from_be_bytes(*word),
        None => {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(rest) {
                *to = *from;
            }
            u64::from_be_bytes(word)
        }
    };
    let skip = u32::try_from(at % 8).unwrap_or(0);
    let back = u32::try_from(64_u64.saturating_sub(len)).unwrap_or(0);
    word.wrapping_shl(skip).wrapping_shr(back)
}

/// The byte in which the bit `at` lies.
pub(super) fn byte(at: u64) -> u64 {
    at / 8
}

/// The first whole byte at or after the bit `at`.
pub(super) fn next_byte(at: u64) -> u64 {
    at.div_ceil(8)
}

/// A bit for each pair of bytes that can be within a magic, whatever bit that begins at.
static PAIRS: LazyLock<Box<[u64]>> = LazyLock::new(|| {
    let mut pairs = vec![0_u64; 1024].into_boxed_slice();
    for magic in [BLOCK_MAGIC, END_MAGIC] {
        for before in 0..BEFORE {
            // Of the 48 bits, 16 are the pair.
            let behind = u32::try_from(32_u64.saturating_sub(before)).unwrap_or(0);
            let pair = magic.wrapping_shr(behind) & 0xffff;
            let word = usize::try_from(pair / 64).unwrap_or(0);
            if let Some(word) = pairs.get_mut(word) {
                *word |= 1_u64.wrapping_shl(u32::try_from(pair % 64).unwrap_or(0));
            }
        }
    }
    pairs
});

/// A magic covers five whole bytes at least, so of the pairs in it one begins at a multiple of this.
pub(super) const STEP: usize = 4;
/// Of the 48 bits, fewer than this are before the first such pair.
const BEFORE: u64 = 32;

/// Finds, in order, every magic of which one of the first `len` bytes is the first whole one that
/// has a multiple of [`STEP`] as its position; what follows those bytes belongs to the last of
/// them. `found` is told the bit at which it begins; one that begins before `bytes` is not seen.
///
/// One look-up for each four bytes: a random pair is one of those within a magic once in a
/// thousand times, and only then is anything compared.
pub(super) fn find(bytes: &[u8], len: usize, mut found: impl FnMut(u64, Magic)) {
    let pairs: &[u64] = &PAIRS;
    let (quads, _) = bytes.get(..len).unwrap_or(bytes).as_chunks::<STEP>();
    for (number, quad) in quads.iter().enumerate() {
        let [first, second, ..] = *quad;
        let pair = u16::from_be_bytes([first, second]);
        let word = pairs.get(usize::from(pair / 64)).copied().unwrap_or(0);
        if word.wrapping_shr(u32::from(pair)) & 1 == 1 {
            find_around(bytes, number, &mut found);
        }
    }
}

/// Finds the magics around the pair at the start of a quad.
#[cold]
fn find_around(bytes: &[u8], quad: usize, found: &mut impl FnMut(u64, Magic)) {
    let pair = u64::try_from(quad).unwrap_or(u64::MAX).saturating_mul(32);
    for before in (0..BEFORE).rev() {
        if let Some(at) = pair.checked_sub(before)
            && let Some(magic) = magic(peek(bytes, at, MAGIC_BITS))
        {
            found(at, magic);
        }
    }
}

/// Moves all bits `by` (less than 8) places towards the start. Zeroes come in at the end.
pub(super) fn shift(bytes: &mut [u8], by: u32) {
    if by == 0 {
        return;
    }
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let mut carry = 0_u64;
    for byte in rest.iter_mut().rev() {
        let wide = u64::from(*byte).wrapping_shl(by) | carry;
        carry = wide.wrapping_shr(8);
        *byte = wide.to_le_bytes()[0];
    }
    let back = 64_u32.saturating_sub(by);
    for word in words.iter_mut().rev() {
        let value = u64::from_be_bytes(*word);
        *word = (value.wrapping_shl(by) | carry).to_be_bytes();
        carry = value.wrapping_shr(back);
    }
}

/// Cuts off all but the first `len` bits and appends the end of a stream with the check `crc`,
/// with zero bits up to a whole byte.
pub(super) fn end_stream(bytes: &mut Vec<u8>, len: u64, crc: u32) {
    bytes.truncate(usize::try_from(next_byte(len)).unwrap_or(usize::MAX));
    let end = u128::from(END_MAGIC).wrapping_shl(32) | u128::from(crc);
    let used = u32::try_from(len % 8).unwrap_or(0);
    if used == 0 {
        bytes.extend(end.to_be_bytes().iter().skip(6));
        return;
    }
    let free = 8_u32.saturating_sub(used);
    let last = bytes.pop().unwrap_or(0);
    let kept = last.wrapping_shr(free).wrapping_shl(free);
    let all = u128::from(kept).wrapping_shl(80) | end.wrapping_shl(free);
    bytes.extend(all.to_be_bytes().iter().skip(5));
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bits of `bytes` as `0` and `1`.
    fn text(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:08b}")).collect()
    }

    fn found(bytes: &[u8]) -> Vec<(u64, Magic)> {
        let mut all = Vec::new();
        find(bytes, bytes.len(), |at, magic| all.push((at, magic)));
        all
    }

    /// `bytes` with the 48 bits put in at a bit.
    fn with_magic(bytes: &[u8], at: usize, value: u64) -> Vec<u8> {
        let mut bits = text(bytes);
        bits.replace_range(at..at + 48, &format!("{value:048b}"));
        let byte = |at: usize| u8::from_str_radix(&bits[at..at + 8], 2).unwrap();
        (0..bits.len()).step_by(8).map(byte).collect()
    }

    proptest! {
        #[test]
        fn a_magic_is_found_once_at_any_bit(
            noise in prop::collection::vec(any::<u8>(), 40..80),
            at in 0..200_usize,
            end: bool,
        ) {
            let (value, magic) = match end {
                true => (END_MAGIC, Magic::End),
                false => (BLOCK_MAGIC, Magic::Block),
            };
            let bytes = with_magic(&noise, at, value);
            prop_assert_eq!(found(&bytes), [(at as u64, magic)]);
        }

        #[test]
        fn bits_are_moved_and_cut_as_text_would_be(
            bytes in prop::collection::vec(any::<u8>(), 1..40),
            by in 0..8_u32,
            cut in 0..8_u64,
            crc: u32,
        ) {
            let mut moved = bytes.clone();
            shift(&mut moved, by);
            let mut expected = text(&bytes)[by as usize..].to_owned();
            expected.push_str(&"0".repeat(by as usize));
            prop_assert_eq!(text(&moved), expected.clone());

            let len = expected.len() as u64 - cut;
            end_stream(&mut moved, len, crc);
            expected.truncate(len as usize);
            expected.push_str(&format!("{END_MAGIC:048b}{crc:032b}"));
            let padding = expected.len().next_multiple_of(8) - expected.len();
            expected.push_str(&"0".repeat(padding));
            prop_assert_eq!(text(&moved), expected);
        }

        #[test]
        fn bits_are_read_as_text_would_be(
            bytes in prop::collection::vec(any::<u8>(), 0..12),
            at in 0..80_usize,
            len in 1..57_usize,
        ) {
            let bits = text(&bytes) + &"0".repeat(160);
            let expected = u64::from_str_radix(&bits[at..at + len], 2).unwrap();
            prop_assert_eq!(peek(&bytes, at as u64, len as u64), expected);
        }
    }

    #[test]
    fn two_magics_that_touch_are_both_found() {
        let bytes = with_magic(&[0; 30], 13, BLOCK_MAGIC);
        let bytes = with_magic(&bytes, 61, END_MAGIC);
        assert_eq!(found(&bytes), [(13, Magic::Block), (61, Magic::End)]);
    }
}
