//! The headers of frames and blocks, as in RFC 8878 (section numbers below are its). Pure: bytes in,
//! values or an error out.

use crate::bytes::{array, le32};
use crate::layer::cut::cut_off;
use crate::{Error, Kind, Result};

/// Magic_Number of a Zstandard frame (3.1.1).
pub(super) const MAGIC: u32 = 0xfd2f_b528;
/// Magic_Number of skippable frames (3.1.2), without its last digit.
const SKIPPABLE: u32 = 0x184d_2a50;
/// Magic numbers of the formats before 0.8, without the last digit.
const LEGACY: std::ops::RangeInclusive<u32> = 0xfd2f_b522..=0xfd2f_b527;
/// That of 0.1.
const LEGACY_FIRST: u32 = 0xfd2f_b51e;
/// Longest header of a frame, magic included.
pub(super) const HEADER_MOST: u64 = 18;
/// Bytes of the header of a skippable frame.
pub(super) const SKIPPABLE_HEADER: u64 = 8;
/// Bytes of a Block_Header.
pub(super) const BLOCK_HEADER: u64 = 3;
/// No block has more content (3.1.1.2.4).
const BLOCK_MOST: u64 = 128 << 10;
/// libzstd refuses a larger window.
const WINDOW_MOST: u64 = 1 << 31;
/// What a decoder of libzstd takes beside its buffers, rounded up.
const DECODER: u64 = 192 << 10;
/// Smallest block that has content: a header and the byte of an RLE block.
const BLOCK_LEAST: u64 = 4;

/// What stands where a frame may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// A Zstandard frame.
    Frame(FrameHeader),
    /// A frame that a decoder skips.
    Skippable {
        /// The last digit of its magic.
        variant: u32,
        /// Bytes of all of it, header included.
        size: u64,
    },
}

/// A Frame_Header (3.1.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Bytes of the header, magic included.
    pub(super) size: u64,
    /// Frame_Content_Size, if it is there.
    pub(super) content: Option<u64>,
    /// Window_Size.
    pub(super) window: u64,
    /// Whether a Content_Checksum follows the last block.
    pub(super) checksum: bool,
}

impl FrameHeader {
    /// Block_Maximum_Size (3.1.1.2.4).
    pub(super) fn block_most(&self) -> u64 {
        self.window.min(BLOCK_MOST)
    }

    /// Memory that libzstd takes to decode the frame in a stream.
    pub(super) fn memory(&self) -> u64 {
        let window = self.window.saturating_add(2 * BLOCK_MOST + 64);
        let buffer = self.content.map_or(window, |content| content.min(window));
        buffer.saturating_add(BLOCK_MOST).saturating_add(DECODER)
    }

    /// Bytes of the Content_Checksum.
    pub(super) fn trailer(&self) -> u64 {
        if self.checksum { 4 } else { 0 }
    }
}

/// The memory of a decoder for frames that have at most `len` bytes and say so.
pub(super) fn memory_for(len: u64) -> u64 {
    len.saturating_add(BLOCK_MOST).saturating_add(DECODER)
}

/// No `encoded` bytes of frames decode to more than this.
pub(super) fn content_most(encoded: u64) -> u64 {
    (encoded / BLOCK_LEAST).saturating_mul(BLOCK_MOST)
}

/// Frames with `content` bytes take at most about this much, whoever made them.
pub(super) fn encoded_most(content: u64) -> u64 {
    content
        .saturating_add(content / 64)
        .saturating_add(64 << 10)
}

/// Decodes what stands at `at`: its first [`HEADER_MOST`] bytes, or all that are left.
///
/// # Errors
/// `Corrupt` when no frame begins there or its header is cut short; `Unsupported` for a dictionary,
/// a window beyond 2 GiB, reserved bits, and frames of the formats before 0.8.
pub(super) fn start(bytes: &[u8], at: u64) -> Result<Start> {
    let cut = || {
        let what = format!("the header of a frame at {at} is cut short");
        Error::new(Kind::Corrupt, what)
    };
    let magic = le32(bytes, 0).ok_or_else(cut)?;
    if magic & !0xf == SKIPPABLE {
        let size = le32(bytes, 4).ok_or_else(cut)?;
        return Ok(Start::Skippable {
            variant: magic & 0xf,
            size: u64::from(size).saturating_add(SKIPPABLE_HEADER),
        });
    }
    if LEGACY.contains(&magic) || magic == LEGACY_FIRST {
        let what = format!("the frame at {at} is of a format older than zstd 0.8");
        return Err(Error::new(Kind::Unsupported, what));
    }
    if magic != MAGIC {
        let what = format!(
            "no frame at {at}, but {magic:08x}: the file is damaged, or something else follows it"
        );
        return Err(Error::new(Kind::Corrupt, what));
    }
    frame(bytes, at).transpose().unwrap_or_else(|| Err(cut()))
}

/// The header of a Zstandard frame; `None` when it is cut short.
fn frame(bytes: &[u8], at: u64) -> Result<Option<Start>> {
    let unsupported = |what: String| {
        let what = format!("the frame at {at} {what}");
        Err(Error::new(Kind::Unsupported, what))
    };
    let Some(descriptor) = bytes.get(4).copied() else {
        return Ok(None);
    };
    if descriptor & 0x08 != 0 {
        return unsupported("has a reserved bit set: it is from a newer format".to_owned());
    }
    let single_segment = descriptor & 0x20 != 0;
    let mut next = 5_usize;
    let mut take = |len: usize| {
        let part = bytes.get(next..next.saturating_add(len));
        next = next.saturating_add(len);
        part.map(number)
    };
    let window = if single_segment {
        None
    } else {
        let Some(byte) = take(1) else { return Ok(None) };
        // The exponent is five bits.
        let base = 1024_u64 << (byte >> 3);
        Some(base.saturating_add((base / 8).saturating_mul(byte & 7)))
    };
    let Some(dictionary) = take([0, 1, 2, 4][usize::from(descriptor & 3)]) else {
        return Ok(None);
    };
    let len = match descriptor >> 6 {
        0 if single_segment => 1,
        0 => 0,
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let Some(content) = take(len) else {
        return Ok(None);
    };
    let content = match len {
        0 => None,
        2 => Some(content.saturating_add(256)),
        _ => Some(content),
    };
    // Single segments say their size: the field is at least a byte.
    let window = window.or(content).unwrap_or(0);
    if dictionary != 0 {
        let what = format!(
            "the frame at {at} needs the dictionary with ID {dictionary}: dictionaries are not supported"
        );
        let hint = "zstd -D DICTIONARY -dc IMAGE > NEW unpacks it";
        return Err(Error::new(Kind::Unsupported, what).hint(hint));
    }
    if window > WINDOW_MOST {
        return unsupported(format!(
            "needs a window of {window} bytes, more than the 2 GiB that libzstd has"
        ));
    }
    Ok(Some(Start::Frame(FrameHeader {
        size: u64::try_from(next).unwrap_or(u64::MAX),
        content,
        window,
        checksum: descriptor & 0x04 != 0,
    })))
}

/// Up to eight bytes, little-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// What a Block_Header (3.1.1.2) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHeader {
    /// Last_Block.
    pub(super) last: bool,
    /// Bytes that follow the header.
    pub(super) encoded: u64,
    /// Bytes of content: exact, or the most there can be.
    pub(super) content: u64,
    /// Whether `content` is exact.
    pub(super) exact: bool,
}

/// Decodes the Block_Header that was read at `at`, in a frame with this header.
///
/// # Errors
/// `Corrupt`.
pub(super) fn block(bytes: &[u8], at: u64, frame: &FrameHeader) -> Result<BlockHeader> {
    let corrupt = |what: &str| {
        let what = format!("{what} at {at}");
        Err(Error::new(Kind::Corrupt, what))
    };
    let Some([b0, b1, b2]) = array::<3>(bytes, 0) else {
        return Err(cut_off(format!(
            "the file is truncated: there is no block at {at}"
        )));
    };
    let value = u32::from_le_bytes([b0, b1, b2, 0]);
    let size = u64::from(value >> 3);
    let most = frame.block_most();
    if size > most {
        return corrupt("a block larger than its frame allows");
    }
    let (encoded, content, exact) = match value >> 1 & 3 {
        0 => (size, size, true),
        1 => (1, size, true),
        2 => (size, most, false),
        _ => return corrupt("a block of the reserved type"),
    };
    Ok(BlockHeader {
        last: value & 1 == 1,
        encoded,
        content,
        exact,
    })
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;

    fn header(descriptor: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.push(descriptor);
        bytes.extend(rest);
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
    fn every_width_of_every_field_is_read() {
        // Content size: none, 1, 2, 4 and 8 bytes.
        for (descriptor, rest, content, window) in [
            (0x00, &[0x08][..], None, 2 << 10),
            (0x20, &[7], Some(7), 7),
            (0x40, &[0x0f, 1, 1], Some(513), (2 << 10) / 8 * 15),
            (0x80, &[0x58, 0, 0, 0, 1], Some(1 << 24), 2 << 20),
            (
                0xc0,
                &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0],
                Some(1 << 32),
                2 << 30,
            ),
            (0x43, &[0x08, 0, 0, 0, 0, 1, 0], Some(257), 2 << 10),
        ] {
            let bytes = header(descriptor, rest);
            let found = parse(&bytes).unwrap_or_else(|kind| panic!("{descriptor:x}: {kind:?}"));
            assert_eq!((found.content, found.window), (content, window));
            assert_eq!(found.size as usize, bytes.len());
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Err(Kind::Corrupt), "cut at {len}");
            }
        }
    }

    #[test]
    fn what_is_valid_but_not_here_is_unsupported() {
        for (descriptor, rest) in [
            (0x08, &[0][..]),
            (0x01, &[0, 5]),
            (0x02, &[0, 0, 5]),
            (0x03, &[0, 0, 0, 0, 5]),
            (0x00, &[0xa9]),
            (0x00, &[0xff]),
            (0xe0, &[0, 0, 0, 0, 0, 0, 0, 1]),
        ] {
            let bytes = header(descriptor, rest);
            assert_eq!(parse(&bytes), Err(Kind::Unsupported), "{descriptor:x}");
        }
        let old = 0xfd2f_b524_u32.to_le_bytes();
        assert_eq!(parse(&old), Err(Kind::Unsupported));
        assert_eq!(parse(b"garbage"), Err(Kind::Corrupt));
    }

    #[test]
    fn blocks_are_bounded_by_the_window() {
        let frame = FrameHeader {
            size: 6,
            content: None,
            window: 1 << 10,
            checksum: false,
        };
        let bytes = |size: u32, kind: u32, last: u32| (size << 3 | kind << 1 | last).to_le_bytes();
        let parse = |size, kind, last| {
            block(&bytes(size, kind, last)[..3], 0, &frame).map_err(|error| error.kind())
        };
        let fine = |last, encoded, content, exact| {
            Ok(BlockHeader {
                last,
                encoded,
                content,
                exact,
            })
        };
        assert_eq!(parse(1024, 0, 1), fine(true, 1024, 1024, true));
        assert_eq!(parse(1024, 1, 0), fine(false, 1, 1024, true));
        assert_eq!(parse(10, 2, 0), fine(false, 10, 1024, false));
        for (size, kind) in [(1025, 0), (1025, 1), (1025, 2), (1, 3)] {
            assert_eq!(parse(size, kind, 0), Err(Kind::Corrupt));
        }
    }
}
