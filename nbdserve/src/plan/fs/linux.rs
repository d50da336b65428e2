//! The file systems of Linux.

use super::{BEHIND, Class, FIRST, Found, evidence, text, uuid};
use crate::bytes::{array, has, le16, le32, le64};
use crate::layer::Sample;

pub(super) fn probe(sample: &Sample<'_>) -> Option<Found> {
    let head = sample.head;
    xfs(head)
        .or_else(|| squashfs(head))
        .or_else(|| first_sector(head))
        .or_else(|| ext(head))
        .or_else(|| erofs(head))
        .or_else(|| f2fs(head))
        .or_else(|| btrfs(head))
        .or_else(|| bcachefs(head))
        .or_else(|| others(head))
}

/// `fs/xfs/libxfs/xfs_format.h`, `struct xfs_dsb`; big-endian.
fn xfs(head: &[u8]) -> Option<Found> {
    let magic = b"XFSB";
    let block = array(head, 4).map(u32::from_be_bytes)?;
    let blocks = array(head, 8).map(u64::from_be_bytes);
    (has(head, 0, magic) && block.is_power_of_two() && (512..=65536).contains(&block)).then(|| {
        Found::file_system("xfs", FIRST, magic, 0)
            .label(text(head, 108, 12))
            .uuid(uuid(head, 32))
            .states(blocks.and_then(|blocks| blocks.checked_mul(u64::from(block))))
    })
}

/// `fs/squashfs/squashfs_fs.h`, `struct squashfs_super_block`.
fn squashfs(head: &[u8]) -> Option<Found> {
    let magic = b"hsqs";
    let major = le16(head, 28)?;
    (has(head, 0, magic) && (1..=4).contains(&major)).then(|| {
        let found = Found::file_system("squashfs", FIRST, magic, 0);
        match major {
            4 => found.states(le64(head, 40)),
            old => found.detail(format!("squashfs {old}")),
        }
    })
}

/// Others that have nothing but a magic at the start.
fn first_sector(head: &[u8]) -> Option<Found> {
    let known: [(&str, &[u8]); 2] = [
        ("cramfs", &[0x45, 0x3d, 0xcd, 0x28]),
        ("romfs", b"-rom1fs-"),
    ];
    known
        .iter()
        .find(|(_, magic)| has(head, 0, magic))
        .map(|(name, magic)| Found::file_system(name, FIRST, magic, 0))
}

/// `Documentation/filesystems/ext4/super.rst`. Which of the three it is follows from the features
/// that the drivers of ext2 and ext3 knew.
fn ext(head: &[u8]) -> Option<Found> {
    const START: usize = 1024;
    const COMPAT_HAS_JOURNAL: u32 = 0x4;
    const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
    const INCOMPAT_64BIT: u32 = 0x80;
    /// filetype, recover, meta_bg.
    const INCOMPAT_EXT3: u32 = 0x2 | 0x4 | 0x10;
    /// sparse_super, large_file, btree_dir.
    const RO_COMPAT_EXT3: u32 = 0x1 | 0x2 | 0x4;
    let head = head.get(START..)?;
    let magic = [0x53, 0xef];
    if !has(head, 56, &magic) {
        return None;
    }
    // Two bytes are little: the block size must be one that exists, and there must be inodes.
    let log_block_size = le32(head, 24)?;
    if log_block_size > 6 || le32(head, 4)? == 0 {
        return None;
    }
    let (compat, incompat, ro_compat) = (le32(head, 92)?, le32(head, 96)?, le32(head, 100)?);
    let evidence = evidence(&magic, 1080);
    let found = if incompat & INCOMPAT_JOURNAL_DEV != 0 {
        Found::new("jbd", Class::Member, BEHIND, evidence)
    } else {
        let ext4 = incompat & !INCOMPAT_EXT3 != 0 || ro_compat & !RO_COMPAT_EXT3 != 0;
        let name = match (ext4, compat & COMPAT_HAS_JOURNAL != 0) {
            (true, _) => "ext4",
            (false, true) => "ext3",
            (false, false) => "ext2",
        };
        // The upper half is one of the feature 64bit.
        let above = match incompat & INCOMPAT_64BIT {
            0 => 0,
            _ => le32(head, 336)?,
        };
        let blocks = u64::from(above) << 32 | u64::from(le32(head, 4)?);
        let block_size = 1024_u64.checked_shl(log_block_size)?;
        let bytes = blocks.checked_mul(block_size);
        Found::new(name, Class::FileSystem, BEHIND, evidence).states(bytes)
    };
    Some(found.label(text(head, 120, 16)).uuid(uuid(head, 104)))
}

/// `fs/erofs/erofs_fs.h`, `struct erofs_super_block`.
fn erofs(head: &[u8]) -> Option<Found> {
    let magic = 0xe0f5_e1e2_u32.to_le_bytes();
    has(head, 1024, &magic).then(|| {
        Found::file_system("erofs", BEHIND, &magic, 1024)
            .label(text(head, 1088, 16))
            .uuid(uuid(head, 1072))
    })
}

/// `include/linux/f2fs_fs.h`, `struct f2fs_super_block`.
fn f2fs(head: &[u8]) -> Option<Found> {
    let magic = 0xf2f5_2010_u32.to_le_bytes();
    has(head, 1024, &magic).then(|| {
        let units = head.get(1148..2172).unwrap_or_default().as_chunks::<2>().0;
        let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
        let label: String = char::decode_utf16(units.take_while(|&unit| unit != 0))
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        Found::file_system("f2fs", BEHIND, &magic, 1024)
            .label((!label.is_empty()).then_some(label))
            .uuid(uuid(head, 1132))
    })
}

/// `include/uapi/linux/btrfs_tree.h`, `struct btrfs_super_block`, at 64 KiB.
fn btrfs(head: &[u8]) -> Option<Found> {
    let magic = b"_BHRfS_M";
    has(head, 0x1_0040, magic).then(|| {
        Found::file_system("btrfs", BEHIND, magic, 0x1_0040)
            .label(text(head, 0x1_012b, 256))
            .uuid(uuid(head, 0x1_0020))
            // Of this device, in the item about it: there may be others.
            .states(le64(head, 0x1_00d1))
    })
}

/// `fs/bcachefs/bcachefs_format.h`, `struct bch_sb`; bcache proper has the same magic and a
/// version below 7.
fn bcachefs(head: &[u8]) -> Option<Found> {
    const START: usize = 4096;
    let old = [
        0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7,
        0xef,
    ];
    let new = [
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d,
        0x81,
    ];
    let head = head.get(START..)?;
    let is_old = has(head, 24, &old);
    if !is_old && !has(head, 24, &new) {
        return None;
    }
    let magic = if is_old { &old } else { &new };
    if is_old && le16(head, 16)? < 7 {
        let evidence = evidence(magic, 4120);
        return Some(Found::new("bcache", Class::Member, BEHIND, evidence));
    }
    let found = Found::file_system("bcachefs", BEHIND, magic, 4120);
    Some(found.label(text(head, 72, 32)).uuid(uuid(head, 56)))
}

/// Others behind the first sector.
fn others(head: &[u8]) -> Option<Found> {
    let known: [(&str, usize, &[u8]); 5] = [
        ("nilfs2", 1030, &[0x34, 0x34]),
        ("jfs", 32768, b"JFS1"),
        ("reiserfs", 65588, b"ReIsErFs"),
        ("reiserfs", 65588, b"ReIsEr2Fs"),
        ("reiserfs", 65588, b"ReIsEr3Fs"),
    ];
    known
        .iter()
        .find(|(_, at, magic)| has(head, *at, magic))
        .map(|(name, at, magic)| Found::file_system(name, BEHIND, magic, *at))
}
