//! Pure parsers of the parts of an Android sparse image (`sparse_format.h` of Android's libsparse,
//! format version 1): bytes in, values that hold the format's rules out. All numbers are
//! little-endian.

use crate::bytes::{has, le16, le32};
use crate::{Error, Kind, Result};

/// `0xed26ff3a`, little-endian.
pub(super) const MAGIC: [u8; 4] = [0x3a, 0xff, 0x26, 0xed];
/// Bytes of the file header of version 1; a later minor version may have more.
pub(super) const FILE_HEADER: u64 = 28;
/// Bytes of a chunk header of version 1; a later minor version may have more.
pub(super) const CHUNK_HEADER: u64 = 12;
/// Bytes of the value of a fill or checksum chunk.
const VALUE: u64 = 4;
/// A file has at most this many bytes.
const LARGEST: u64 = u64::MAX >> 1;

/// The file header (`sparse_header_t`). `image_checksum` is not kept: it is of the whole image, so
/// that no read of a part could check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    /// Bytes of the file header: where the first chunk begins.
    pub(super) file_hdr_sz: u64,
    /// Bytes of each chunk header.
    pub(super) chunk_hdr_sz: u64,
    /// Bytes of a block of the image. Not zero, a multiple of four.
    pub(super) blk_sz: u64,
    /// Blocks of the image.
    pub(super) total_blks: u64,
    /// Chunks of the file.
    pub(super) total_chunks: u64,
}

impl FileHeader {
    /// Bytes of the image.
    pub(super) fn size(&self) -> u64 {
        // Checked in file_header().
        self.blk_sz.saturating_mul(self.total_blks)
    }
}

/// What a chunk stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkKind {
    /// 0xCAC1: its blocks, as they are.
    Raw,
    /// 0xCAC2: a word of four bytes that fills its blocks.
    Fill,
    /// 0xCAC3: blocks that nobody cares about.
    DontCare,
    /// 0xCAC4: the CRC32 of the image up to here; no blocks.
    Crc32,
}

/// A chunk header (`chunk_header_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkHeader {
    pub(super) kind: ChunkKind,
    /// Blocks of the image.
    pub(super) chunk_sz: u64,
    /// Bytes in the file, the chunk header among them.
    pub(super) total_sz: u64,
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn unsupported(what: String) -> Error {
    Error::new(Kind::Unsupported, what)
}

/// The file header at the start of `bytes`.
///
/// # Errors
/// `NotThisFormat` without the magic; `Unsupported` for a major version but 1; `Corrupt`; `Limit` for
/// an image of more than 2^63 bytes.
pub(super) fn file_header(bytes: &[u8]) -> Result<FileHeader> {
    if !has(bytes, 0, &MAGIC) {
        let what = "the magic of an Android sparse image is not there";
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    let cut = || {
        corrupt(format!(
            "the file ends within its header of {FILE_HEADER} bytes"
        ))
    };
    let half = |at| le16(bytes, at).map(u64::from).ok_or_else(cut);
    let word = |at| le32(bytes, at).map(u64::from).ok_or_else(cut);
    // The last field, which is not used, belongs to the header all the same.
    word(24)?;
    let (major, minor) = (half(4)?, half(6)?);
    if major != 1 {
        let what = format!("version {major}.{minor} of the format, only 1 is known");
        return Err(unsupported(what));
    }
    let header = FileHeader {
        file_hdr_sz: half(8)?,
        chunk_hdr_sz: half(10)?,
        blk_sz: word(12)?,
        total_blks: word(16)?,
        total_chunks: word(20)?,
    };
    for (name, len, least) in [
        ("file", header.file_hdr_sz, FILE_HEADER),
        ("chunk", header.chunk_hdr_sz, CHUNK_HEADER),
    ] {
        if len < least {
            let what = format!("{name} headers of {len} bytes, they have at least {least}");
            return Err(corrupt(what));
        }
    }
    let blk_sz = header.blk_sz;
    if blk_sz == 0 || !blk_sz.is_multiple_of(VALUE) {
        let what = format!("a block size of {blk_sz}, which is no multiple of {VALUE}");
        return Err(corrupt(what));
    }
    let blocks = header.total_blks;
    if blk_sz.checked_mul(blocks).is_none_or(|size| size > LARGEST) {
        let what = format!("{blocks} blocks of {blk_sz} bytes are more than 2^63 bytes");
        return Err(Error::new(Kind::Limit, what));
    }
    Ok(header)
}

/// The chunk header at the start of `bytes`, which lies at `at` in the file.
///
/// # Errors
/// `Corrupt` when the chunk's length is not the one that its kind and its blocks make, or it has an
/// unknown kind.
pub(super) fn chunk_header(bytes: &[u8], at: u64, file: &FileHeader) -> Result<ChunkHeader> {
    let cut = || corrupt(format!("the file ends within the chunk header at {at}"));
    let chunk_type = le16(bytes, 0).ok_or_else(cut)?;
    let chunk_sz = le32(bytes, 4).map(u64::from).ok_or_else(cut)?;
    let total_sz = le32(bytes, 8).map(u64::from).ok_or_else(cut)?;
    let (kind, body) = match chunk_type {
        // Below 2^64: both factors are of 32 bits.
        0xcac1 => (ChunkKind::Raw, chunk_sz.saturating_mul(file.blk_sz)),
        0xcac2 => (ChunkKind::Fill, VALUE),
        0xcac3 => (ChunkKind::DontCare, 0),
        0xcac4 => (ChunkKind::Crc32, VALUE),
        other => {
            return Err(corrupt(format!(
                "a chunk of unknown type {other:#06x} at {at}"
            )));
        }
    };
    let expected = file.chunk_hdr_sz.saturating_add(body);
    if total_sz != expected {
        let what = format!(
            "the chunk at {at} says that it has {total_sz} bytes, with its type and its \
             {chunk_sz} blocks it has {expected}"
        );
        return Err(corrupt(what));
    }
    if kind == ChunkKind::Crc32 && chunk_sz != 0 {
        let what = format!("the checksum at {at} claims {chunk_sz} blocks");
        return Err(corrupt(what));
    }
    Ok(ChunkHeader {
        kind,
        chunk_sz,
        total_sz,
    })
}
