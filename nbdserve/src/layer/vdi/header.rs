//! Pure parser of the header of a VirtualBox disk image (VDI 1.1): bytes in, values that hold the
//! format's rules out. All numbers are little-endian.

use crate::bytes::{array, has, le32, le64};
use crate::layer::cut::cut_off;
use crate::{Error, Kind, Result};

/// `u32Signature`, at [`MAGIC_AT`].
pub(super) const MAGIC: [u8; 4] = [0x7f, 0x10, 0xda, 0xbe];
/// Behind a text of 64 bytes.
pub(super) const MAGIC_AT: usize = 0x40;
/// Bytes of the header that are looked at.
pub(super) const HEADER: usize = 0x1c8;
/// The only version that is known: 1.1.
const VERSION: u32 = 0x0001_0001;
/// Bytes of an entry of the block map.
pub(super) const ENTRY: u64 = 4;
/// Most bytes of a block; VirtualBox makes blocks of one MiB.
const LONGEST_BLOCK: u64 = 1 << 30;

/// An entry of the block map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// `VDI_IMAGE_BLOCK_FREE`: never written.
    Free,
    /// `VDI_IMAGE_BLOCK_ZERO`: discarded, reads as zeroes.
    Zero,
    /// The block of this number.
    Block(u32),
}

impl Entry {
    pub(super) fn of(value: u32) -> Self {
        match value {
            u32::MAX => Self::Free,
            0xffff_fffe => Self::Zero,
            number => Self::Block(number),
        }
    }
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whether it is of type 2: all blocks are stored.
    pub(super) fixed: bool,
    /// Where the block map begins.
    pub(super) off_blocks: u64,
    /// Where the first block begins.
    pub(super) off_data: u64,
    /// Bytes of the disk.
    pub(super) disk_size: u64,
    /// Bytes of a block: a power of two, at least 512.
    pub(super) block_size: u64,
    /// Blocks of the disk, enough for its size.
    pub(super) blocks: u64,
    /// Blocks that are stored.
    pub(super) allocated: u64,
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, what)
}

/// The header at the start of `bytes`.
///
/// # Errors
/// `NotThisFormat` without the magic; `Unsupported` for another version, a snapshot or a feature that
/// is not known; `Corrupt`.
pub(super) fn header(bytes: &[u8]) -> Result<Header> {
    if !has(bytes, MAGIC_AT, &MAGIC) {
        let what = "the magic of a VirtualBox disk image is not there";
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    let cut = || cut_off(format!("the file ends within its header of {HEADER} bytes"));
    let word = |at| le32(bytes, at).ok_or_else(cut);
    let version = word(0x44)?;
    if version != VERSION {
        let (major, minor) = (version >> 16, version & 0xffff);
        let what = format!("version {major}.{minor} of the format, only 1.1 is known");
        return Err(unsupported(what));
    }
    let own = word(0x48)?;
    let kind = word(0x4c)?;
    let off_blocks = u64::from(word(0x154)?);
    let off_data = u64::from(word(0x158)?);
    let sector = word(0x168)?;
    let disk_size = le64(bytes, 0x170).ok_or_else(cut)?;
    let block_size = u64::from(word(0x178)?);
    let extra = word(0x17c)?;
    let blocks = u64::from(word(0x180)?);
    let allocated = u64::from(word(0x184)?);
    let uuid = |at| array::<16>(bytes, at).ok_or_else(cut);
    let (link, parent) = (uuid(0x1a8)?, uuid(0x1b8)?);
    let fixed = match kind {
        1 => false,
        2 => true,
        3 | 4 => return Err(differencing()),
        other => return Err(corrupt(format!("an image of unknown type {other}"))),
    };
    if link != [0; 16] || parent != [0; 16] {
        return Err(differencing());
    }
    if own < 0x180 {
        return Err(corrupt(format!("a header of only {own} bytes")));
    }
    if sector != 512 {
        return Err(unsupported(format!("sectors of {sector} bytes, not 512")));
    }
    if extra != 0 {
        let what = format!("{extra} bytes of other data before each block, which nobody makes");
        return Err(unsupported(what));
    }
    if !block_size.is_power_of_two() || !(512..=LONGEST_BLOCK).contains(&block_size) {
        let what = format!("blocks of {block_size} bytes, no power of two from 512 to 2^30");
        return Err(corrupt(what));
    }
    // At least 512.
    let needed = disk_size.div_ceil(block_size);
    if needed > blocks {
        let what = format!(
            "{blocks} blocks of {block_size} bytes for a disk of {disk_size}, which takes {needed}"
        );
        return Err(corrupt(what));
    }
    let map_end = off_blocks.saturating_add(needed.saturating_mul(ENTRY));
    if off_blocks < 0x180 || (needed > 0 && off_data < map_end) {
        let what = format!(
            "the block map at {off_blocks} is in the way of the header or of the blocks at {off_data}"
        );
        return Err(corrupt(what));
    }
    Ok(Header {
        fixed,
        off_blocks,
        off_data,
        disk_size,
        block_size,
        blocks,
        allocated,
    })
}

fn differencing() -> Error {
    unsupported(
        "a differencing image (a snapshot): it says by its UUID which image it belongs to, but not \
         where that is",
    )
    .hint("VBoxManage clonemedium disk SNAPSHOT.vdi WHOLE.vdi puts them together")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart() {
        assert_eq!(Entry::of(u32::MAX), Entry::Free);
        assert_eq!(Entry::of(0xffff_fffe), Entry::Zero);
        assert_eq!(Entry::of(0xffff_fffd), Entry::Block(0xffff_fffd));
        assert_eq!(Entry::of(0), Entry::Block(0));
    }
}
