//! The few fields that bzip2 files have: stream headers and the magics of blocks and ends.
//!
//! There is no specification; the names are those of the sources of bzip2 1.0. Fields are big
//! endian, and all but the stream header may begin at any bit.

use super::bits;

/// Bytes of a stream header: `BZh` and the level.
pub(super) const STREAM_HEADER: u64 = 4;
/// The 48 bits that a block begins with: pi.
pub(super) const BLOCK_MAGIC: u64 = 0x3141_5926_5359;
/// The 48 bits behind the last block of a stream: the square root of pi.
pub(super) const END_MAGIC: u64 = 0x1772_4538_5090;
/// Bits of either magic.
pub(super) const MAGIC_BITS: u64 = 48;
/// Bits of the end of a stream: its magic and the check over all blocks. Zero bits follow up to
/// the next whole byte.
pub(super) const END_BITS: u64 = 80;
/// Longest block in bytes. 900 000 symbols of at most 20 bits, 32767 selectors of at most 6, six
/// tables of 258 lengths with at most 39 bits each, and what is before them.
pub(super) const BLOCK_MOST: u64 = 2_300_000;

/// What a magic begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Magic {
    Block,
    End,
}

/// What the 48 bits mean.
pub(super) fn magic(bits: u64) -> Option<Magic> {
    match bits {
        BLOCK_MAGIC => Some(Magic::Block),
        END_MAGIC => Some(Magic::End),
        _ => None,
    }
}

/// The level (1 to 9: hundred thousands of symbols that a block has at most) of the stream that
/// begins with these bytes; `None` when they are no stream header.
pub(super) fn level(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'B', b'Z', b'h', digit @ b'1'..=b'9', ..] => Some(digit & 0xf),
        _ => None,
    }
}

/// As [`level`], where a block or the end of the stream follows as well.
pub(super) fn level_and_magic(bytes: &[u8]) -> Option<(u8, Magic)> {
    let level = level(bytes)?;
    // No byte beyond the end looks like a part of a magic: none of theirs is zero.
    let magic = magic(bits::peek(
        bytes,
        STREAM_HEADER.saturating_mul(8),
        MAGIC_BITS,
    ))?;
    Some((level, magic))
}

/// The check of a stream, continued by that of a block.
pub(super) fn combine(stream: u32, block: u32) -> u32 {
    stream.rotate_left(1) ^ block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_from_what_is_none() {
        for (bytes, expected) in [
            (&b"BZh9"[..], Some(9)),
            (b"BZh1rest", Some(1)),
            (b"BZh0", None),
            (b"BZh:", None),
            (b"BZ09", None),
            (b"BZh", None),
            (b"", None),
        ] {
            assert_eq!(level(bytes), expected, "{bytes:?}");
        }
        let block = b"BZh51AY&SY";
        assert_eq!(level_and_magic(block), Some((5, Magic::Block)));
        assert_eq!(level_and_magic(&block[..9]), None);
        let end = b"BZh1\x17\x72\x45\x38\x50\x90\0\0\0\0";
        assert_eq!(level_and_magic(end), Some((1, Magic::End)));
    }
}
