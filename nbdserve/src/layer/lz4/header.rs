//! The headers of frames and blocks, as in "LZ4 Frame Format Description" 1.6, and the length of a
//! block as in "LZ4 Block Format". Pure: bytes in, values or an error out.

use twox_hash::XxHash32;

use crate::bytes::{array, le32, le64};
use crate::layer::cut::cut_off;
use crate::{Error, Kind, Result};

/// Magic number of a frame.
pub(super) const MAGIC: u32 = 0x184d_2204;
/// Magic number of a legacy frame.
pub(super) const LEGACY: u32 = 0x184c_2102;
/// Magic numbers of skippable frames, without the last digit.
const SKIPPABLE: u32 = 0x184d_2a50;
/// Longest header of a frame, magic included.
pub(super) const HEADER_MOST: u64 = 19;
/// Bytes of the header of a skippable frame.
const SKIPPABLE_HEADER: u64 = 8;
/// Bytes of a block's size, and of every checksum.
pub(super) const WORD: u64 = 4;
/// Decoded bytes of a block of a legacy frame, the last one excepted.
const LEGACY_BLOCK: u64 = 8 << 20;
/// The legacy block as a power of two, and the mark for it.
const LEGACY_LOG: u32 = 23;

/// What stands where a frame may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Frame(FrameHeader),
    /// A frame that a decoder skips, of so many bytes with its header.
    Skippable(u64),
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Bytes of the header, magic included.
    pub(super) size: u64,
    /// Content Size, if it is there.
    pub(super) content: Option<u64>,
    pub(super) kind: FrameKind,
}

/// What there is to know of a frame in the midst of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameKind {
    /// Blocks refer to the 64 KiB before them.
    pub(super) linked: bool,
    /// Each block is followed by a checksum.
    pub(super) block_sum: bool,
    /// The end mark is followed by a checksum of the content.
    pub(super) content_sum: bool,
    /// Block Maximum Size as a power of two.
    log: u32,
}

impl FrameKind {
    const LEGACY: Self = Self {
        linked: false,
        block_sum: false,
        content_sum: false,
        log: LEGACY_LOG,
    };

    pub(super) fn is_legacy(self) -> bool {
        self.log == LEGACY_LOG
    }

    /// Most decoded bytes of a block.
    pub(super) fn block_most(self) -> u64 {
        1_u64.checked_shl(self.log).unwrap_or(LEGACY_BLOCK)
    }

    /// Most encoded bytes of a block.
    pub(super) fn encoded_most(self) -> u64 {
        let most = self.block_most();
        if self.is_legacy() {
            // LZ4_COMPRESSBOUND: these are never stored as they are.
            most.saturating_add(most / 255).saturating_add(16)
        } else {
            most
        }
    }

    /// Bytes behind a block.
    pub(super) fn block_trailer(self) -> u64 {
        if self.block_sum { WORD } else { 0 }
    }

    /// Bytes behind the end mark.
    pub(super) fn trailer(self) -> u64 {
        if self.content_sum { WORD } else { 0 }
    }

    /// As a number, never zero.
    pub(super) fn to_bits(self) -> u64 {
        let flags = [self.linked, self.block_sum, self.content_sum];
        let flags = flags
            .iter()
            .fold(0, |bits, flag| bits << 1 | u64::from(*flag));
        u64::from(self.log) << 3 | flags
    }

    /// What [`Self::to_bits`] has made; `None` for anything else.
    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        let log = u32::try_from(bits >> 3).ok()?;
        matches!(log, 16 | 18 | 20 | 22 | LEGACY_LOG).then_some(Self {
            linked: bits & 4 != 0,
            block_sum: bits & 2 != 0,
            content_sum: bits & 1 != 0,
            log,
        })
    }
}

/// XXH32 as in the format.
pub(super) fn xxh32(bytes: &[u8]) -> u32 {
    XxHash32::oneshot(0, bytes)
}

/// Decodes what stands at `at`: its first [`HEADER_MOST`] bytes, or all that are left.
///
/// # Errors
/// `Corrupt` when no frame begins there, its header is cut short or has a wrong checksum;
/// `Unsupported` for a dictionary and for what newer formats may have.
pub(super) fn start(bytes: &[u8], at: u64) -> Result<Start> {
    let cut = || {
        let what = format!("the header of a frame at {at} is cut short");
        Error::new(Kind::Corrupt, what)
    };
    let magic = le32(bytes, 0).ok_or_else(cut)?;
    if magic & !0xf == SKIPPABLE {
        let size = le32(bytes, 4).ok_or_else(cut)?;
        return Ok(Start::Skippable(
            u64::from(size).saturating_add(SKIPPABLE_HEADER),
        ));
    }
    match magic {
        LEGACY => Ok(Start::Frame(FrameHeader {
            size: WORD,
            content: None,
            kind: FrameKind::LEGACY,
        })),
        MAGIC => frame(bytes, at).transpose().unwrap_or_else(|| Err(cut())),
        _ => {
            let what = format!(
                "no frame at {at}, but {magic:08x}: the file is damaged, or something else \
                 follows it"
            );
            Err(Error::new(Kind::Corrupt, what))
        }
    }
}

/// Whether a frame begins with these four bytes, and not a legacy block.
pub(super) fn is_magic(word: u32) -> bool {
    word == MAGIC || word == LEGACY || word & !0xf == SKIPPABLE
}

/// The header of a frame; `None` when it is cut short.
fn frame(bytes: &[u8], at: u64) -> Result<Option<Start>> {
    let unsupported = |what: String| {
        let what = format!("the frame at {at} {what}");
        Err(Error::new(Kind::Unsupported, what))
    };
    let Some([flags, block]) = array::<2>(bytes, 4) else {
        return Ok(None);
    };
    let (has_content, has_dictionary) = (flags & 0x08 != 0, flags & 0x01 != 0);
    let mut next = 6_usize;
    let mut content = None;
    if has_content {
        content = le64(bytes, next);
        next = next.saturating_add(8);
    }
    let mut dictionary = None;
    if has_dictionary {
        dictionary = le32(bytes, next);
        next = next.saturating_add(4);
    }
    let (Some(descriptor), Some([sum])) = (bytes.get(4..next), array::<1>(bytes, next)) else {
        return Ok(None);
    };
    let [_, right, ..] = xxh32(descriptor).to_le_bytes();
    if sum != right {
        let what = format!("wrong checksum of the header of the frame at {at}");
        return Err(Error::new(Kind::Corrupt, what));
    }
    if flags >> 6 != 1 {
        return unsupported(format!("has version {}, not 1", flags >> 6));
    }
    if flags & 0x02 != 0 || block & 0x8f != 0 {
        return unsupported("has a reserved bit set: it is from a newer format".to_owned());
    }
    if let Some(dictionary) = dictionary {
        let what = format!(
            "the frame at {at} needs the dictionary with ID {dictionary}: dictionaries are not supported"
        );
        let hint = "lz4 -D DICTIONARY -dc IMAGE > NEW unpacks it";
        return Err(Error::new(Kind::Unsupported, what).hint(hint));
    }
    let log = match block >> 4 {
        4 => 16,
        5 => 18,
        6 => 20,
        7 => 22,
        other => return unsupported(format!("has the reserved block size {other}")),
    };
    Ok(Some(Start::Frame(FrameHeader {
        size: u64::try_from(next).unwrap_or(u64::MAX).saturating_add(1),
        content,
        kind: FrameKind {
            linked: flags & 0x20 == 0,
            block_sum: flags & 0x10 != 0,
            content_sum: flags & 0x04 != 0,
            log,
        },
    })))
}

/// What stands where a block may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// A block of so many encoded bytes, stored as they are or compressed.
    Data { size: u64, raw: bool },
    /// The end mark; in a legacy frame the magic of the next one.
    End,
}

/// Decodes the four bytes before a block, read at `at`.
///
/// # Errors
/// `Corrupt`.
pub(super) fn block(word: Option<u32>, at: u64, kind: FrameKind) -> Result<Block> {
    let corrupt = |what: String| Err(Error::new(Kind::Corrupt, what));
    let Some(word) = word else {
        return Err(cut_off(format!(
            "the file is truncated: there is no block at {at}"
        )));
    };
    let raw = word >> 31 == 1 && !kind.is_legacy();
    let size = u64::from(if raw { word & 0x7fff_ffff } else { word });
    if kind.is_legacy() {
        if is_magic(word) {
            return Ok(Block::End);
        }
    } else if word == 0 {
        return Ok(Block::End);
    }
    if size > kind.encoded_most() || size == 0 {
        return corrupt(format!(
            "a block of {size} bytes at {at}, where at most {} are allowed",
            kind.encoded_most()
        ));
    }
    Ok(Block::Data { size, raw })
}

/// How many bytes a compressed block decodes to, without decoding it: its sequences are summed up.
/// `None` when they do not end with the block.
pub(super) fn decoded_len(block: &[u8]) -> Option<u64> {
    let mut rest = block;
    let mut len = 0_u64;
    loop {
        let (token, after) = rest.split_first()?;
        rest = after;
        let mut literals = usize::from(token >> 4);
        if literals == 15 {
            literals = literals.checked_add(more(&mut rest)?)?;
        }
        rest = rest.get(literals..)?;
        len = len.checked_add(u64::try_from(literals).ok()?)?;
        if rest.is_empty() {
            return Some(len);
        }
        // The offset says from where to copy, not how much.
        rest = rest.get(2..)?;
        let mut copied = usize::from(token & 15);
        if copied == 15 {
            copied = copied.checked_add(more(&mut rest)?)?;
        }
        len = len
            .checked_add(u64::try_from(copied).ok()?)?
            .checked_add(4)?;
    }
}

/// The further bytes of a length: as long as they are 255.
fn more(rest: &mut &[u8]) -> Option<usize> {
    let mut sum = 0_usize;
    loop {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        sum = sum.checked_add(usize::from(*byte))?;
        if *byte != 255 {
            return Some(sum);
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;

    fn header(flags: u8, block: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([flags, block]);
        bytes.extend(rest);
        bytes.push((xxh32(&bytes[4..]) >> 8) as u8);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<FrameHeader, Kind> {
        match start(bytes, 0) {
            Ok(Start::Frame(header)) => Ok(header),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.kind()),
        }
    }

    #[test]
    fn every_field_is_read_and_every_cut_is_noticed() {
        for (flags, block, rest, content) in [
            (0x60, 0x40, &[][..], None),
            (0x40, 0x70, &[], None),
            (0x7c, 0x50, &[1, 0, 0, 0, 0, 0, 0, 1], Some(1 << 56 | 1)),
        ] {
            let bytes = header(flags, block, rest);
            let found = parse(&bytes).unwrap_or_else(|kind| panic!("{flags:x}: {kind:?}"));
            assert_eq!((found.content, found.size as usize), (content, bytes.len()));
            assert_eq!(found.kind.linked, flags & 0x20 == 0);
            assert_eq!(found.kind.block_most(), 1 << (8 + 2 * (block >> 4)));
            assert_eq!(FrameKind::from_bits(found.kind.to_bits()), Some(found.kind));
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Err(Kind::Corrupt), "cut at {len}");
            }
            for bit in 32..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(parse(&bad), Err(Kind::Corrupt), "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_valid_but_not_here_is_unsupported() {
        for (flags, block, rest) in [
            (0x20, 0x40, &[][..]),
            (0xa0, 0x40, &[]),
            (0x62, 0x40, &[]),
            (0x60, 0xc0, &[]),
            (0x60, 0x41, &[]),
            (0x60, 0x30, &[]),
            (0x61, 0x40, &[1, 2, 3, 4]),
        ] {
            let bytes = header(flags, block, rest);
            assert_eq!(parse(&bytes), Err(Kind::Unsupported), "{flags:x} {block:x}");
        }
    }

    #[test]
    fn the_length_of_a_block_is_told_by_its_sequences() {
        for content in [
            vec![],
            vec![7],
            vec![0; 100_000],
            (0..70_000_u32)
                .map(|n| (n.wrapping_mul(n) >> 7) as u8)
                .collect(),
        ] {
            let block = lz4_flex::block::compress(&content);
            assert_eq!(decoded_len(&block), Some(content.len() as u64));
            for len in 0..block.len().min(300) {
                // It may end with the literals of a sequence by chance, but not with more bytes.
                let found = decoded_len(&block[..len]);
                assert!(found.is_none_or(|found| found <= content.len() as u64));
            }
        }
        assert_eq!(decoded_len(&[]), None);
        assert_eq!(decoded_len(&[0xf0, 255, 255]), None);
        assert_eq!(decoded_len(&[0x10, 7, 1]), None);
    }
}
