//! The 512 bytes of a header: POSIX.1-2017 pax "ustar Interchange Format", what came before it
//! (v7), and what GNU tar made of it (its manual, "Basic Tar Format"). Pure: bytes in, values out.

use super::sparse::Piece;
use crate::bytes::{has, slice};
use crate::{Error, Kind, Result};

/// Everything in an archive is a multiple of this.
pub(super) const BLOCK: u64 = 512;
/// The same in memory.
pub(super) const BLOCK_LEN: usize = 512;

/// Where the magic stands.
pub(super) const MAGIC_AT: usize = 257;
const POSIX: &[u8] = b"ustar\0";
const GNU: &[u8] = b"ustar  \0";

/// Who wrote a header, as far as that changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No magic: Unix version 7 and its heirs.
    V7,
    /// ustar and pax.
    Posix,
    /// ustar with a shorter prefix: star.
    Star,
    /// GNU tar, whose magic has blanks.
    Gnu,
}

/// A header whose checksum is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// typeflag.
    pub(super) kind: u8,
    /// name, behind prefix where there is one.
    pub(super) name: Vec<u8>,
    /// linkname.
    pub(super) link: Vec<u8>,
    /// size: bytes that follow, as far as this header knows.
    pub(super) size: u64,
    /// Who wrote it.
    pub(super) dialect: Dialect,
}

/// The magic of a header; `None` for one without.
pub(super) fn magic(block: &[u8]) -> Option<&'static [u8]> {
    [POSIX, GNU]
        .into_iter()
        .find(|magic| has(block, MAGIC_AT, magic))
}

/// Whether a block is nothing but zeroes, as at the end of an archive.
pub(super) fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Whether the checksum of a header is right: the sum of its bytes, its own taken as blanks. Some
/// old programs have summed signed bytes.
pub(super) fn is_checked(block: &[u8]) -> bool {
    let Some(stored) = slice(block, 148, 8).and_then(|field| octal(field).ok()) else {
        return false;
    };
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, byte) in block.iter().enumerate().take(BLOCK_LEN) {
        let byte = if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        };
        // 512 bytes: far from the end of the numbers.
        unsigned = unsigned.saturating_add(i64::from(byte));
        signed = signed.saturating_add(i64::from(i8::from_ne_bytes([byte])));
    }
    let stored = i64::try_from(stored).unwrap_or(i64::MAX);
    block.len() >= BLOCK_LEN && (stored == unsigned || stored == signed)
}

impl Header {
    /// The header in the block at `at`.
    ///
    /// # Errors
    /// `Corrupt` when the checksum is wrong or the size is no number.
    pub(super) fn parse(block: &[u8], at: u64) -> Result<Self> {
        let field = |from, len| slice(block, from, len).unwrap_or_default();
        if !is_checked(block) {
            let what = format!("no header at {at}: its checksum is wrong");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let kind = field(156, 1).first().copied().unwrap_or_default();
        let dialect = if has(block, MAGIC_AT, GNU) {
            Dialect::Gnu
        } else if !has(block, MAGIC_AT, POSIX) {
            Dialect::V7
        } else if has(block, 508, b"tar\0") {
            Dialect::Star
        } else {
            Dialect::Posix
        };
        let prefix = match dialect {
            // Other things stand in its place.
            Dialect::V7 | Dialect::Gnu => &[][..],
            Dialect::Posix => text(field(345, 155)),
            Dialect::Star => text(field(345, 131)),
        };
        let mut name = prefix.to_vec();
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend(text(field(0, 100)));
        Ok(Self {
            kind,
            name,
            link: text(field(157, 100)).to_vec(),
            size: number(field(124, 12), "the size", at)?,
            dialect,
        })
    }
}

/// What a header of type `S` says of its holes, in the place of the prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OldSparse {
    /// The first pieces.
    pub(super) pieces: Vec<Piece>,
    /// Whether a block with more of them follows.
    pub(super) more: bool,
    /// Bytes of the file, holes included.
    pub(super) real_size: u64,
}

/// The fields of GNU tar's header of type `S` at `at`.
///
/// # Errors
/// `Corrupt` for what is no number.
pub(super) fn old_sparse(block: &[u8], at: u64) -> Result<OldSparse> {
    let field = slice(block, 483, 12).unwrap_or_default();
    Ok(OldSparse {
        pieces: pieces(slice(block, 386, 96).unwrap_or_default(), at)?,
        more: has_more(block, 482),
        real_size: number(field, "the real size", at)?,
    })
}

/// The pieces in a block of them at `at`, and whether another one follows.
///
/// # Errors
/// `Corrupt` for what is no number.
pub(super) fn more_pieces(block: &[u8], at: u64) -> Result<(Vec<Piece>, bool)> {
    let field = slice(block, 0, 504).unwrap_or_default();
    Ok((pieces(field, at)?, has_more(block, 504)))
}

fn has_more(block: &[u8], at: usize) -> bool {
    block.get(at).is_some_and(|byte| *byte != 0)
}

/// Pairs of 12 bytes each, up to the first that is not used.
fn pieces(field: &[u8], at: u64) -> Result<Vec<Piece>> {
    let mut found = Vec::new();
    for pair in field.chunks_exact(24) {
        let (offset, len) = pair.split_at_checked(12).unwrap_or_default();
        if len.first() == Some(&0) {
            break;
        }
        found.push(Piece {
            offset: number(offset, "the offset of a piece", at)?,
            len: number(len, "the length of a piece", at)?,
        });
    }
    Ok(found)
}

/// Up to the first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits, or with the highest bit of the first byte set a big-endian
/// number (GNU and star, for what eleven digits cannot hold).
fn number(field: &[u8], what: &str, at: u64) -> Result<u64> {
    let wrong = |why: &str| {
        let what = format!("{what} in the header at {at} {why}");
        Error::new(Kind::Corrupt, what)
    };
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            if first & 0x40 != 0 {
                return Err(wrong("is negative"));
            }
            let mut value = u64::from(first & 0x3f);
            for byte in field.iter().skip(1) {
                value = value
                    .checked_mul(256)
                    .and_then(|value| value.checked_add(u64::from(*byte)))
                    .ok_or_else(|| wrong("exceeds 2^64"))?;
            }
            Ok(value)
        }
        _ => octal(field).map_err(wrong),
    }
}

/// Octal digits after blanks, up to a blank, a zero byte or the end; nothing at all is zero.
fn octal(field: &[u8]) -> Result<u64, &'static str> {
    let mut value = 0_u64;
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    for byte in digits.take_while(|byte| !matches!(byte, b' ' | 0)) {
        let digit = match byte {
            b'0'..=b'7' => byte.saturating_sub(b'0'),
            _ => return Err("is no octal number"),
        };
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or("exceeds 2^64")?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, expected) in [
            (&b"00000001000\0"[..], Ok(512)),
            (b"       1000 ", Ok(512)),
            (b"\0\0\0\0", Ok(0)),
            (b"            ", Ok(0)),
            (b"777777777777", Ok(0o777_777_777_777)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x02\0", Ok(512)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", Ok(u64::MAX)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", Err("exceeds 2^64")),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                Err("is negative"),
            ),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", Err("is negative")),
            (b"00000000008\0", Err("is no octal number")),
            (b"-0000000001\0", Err("is no octal number")),
            (b"0x10", Err("is no octal number")),
        ] {
            let found = number(field, "it", 7);
            match expected {
                Ok(value) => assert_eq!(found.unwrap(), value, "{field:?}"),
                Err(why) => {
                    let text = found.unwrap_err().to_string();
                    assert_eq!(text, format!("it in the header at 7 {why}"));
                }
            }
        }
    }

    /// A header of type `0` with the given sum.
    fn block(sum: impl Fn(i64, i64) -> i64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_LEN];
        block[..4].copy_from_slice("Ä.x".as_bytes());
        block[148..156].fill(b' ');
        let unsigned = block.iter().map(|byte| i64::from(*byte)).sum();
        let signed = block
            .iter()
            .map(|byte| i64::from(i8::from_ne_bytes([*byte])))
            .sum();
        let sum = format!("{:06o}\0 ", sum(unsigned, signed));
        block[148..156].copy_from_slice(sum.as_bytes());
        block
    }

    #[test]
    fn the_checksum_is_a_sum_of_unsigned_or_of_signed_bytes() {
        assert!(is_checked(&block(|unsigned, _| unsigned)));
        assert!(is_checked(&block(|_, signed| signed)));
        assert!(!is_checked(&block(|unsigned, _| unsigned + 1)));
        assert!(!is_checked(&block(|unsigned, _| unsigned)[..511]));
        assert!(!is_checked(&[0; 512]));
    }
}
