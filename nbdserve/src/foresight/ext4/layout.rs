//! Pure reading of what a superblock and the group descriptors say about where things lie.
//!
//! Format: Documentation/filesystems/ext4, "Super Block" and "Block Group Descriptors". Nothing is
//! checked beyond what is needed to stay within bounds: whoever mounts the file system does that.

use crate::bytes::{has, le16, le32, slice};

/// Where the superblock is, whatever the block size.
pub(crate) const SUPERBLOCK_AT: u64 = 1024;
/// Bytes of it.
pub(crate) const SUPERBLOCK_LEN: usize = 1024;
/// `s_magic`.
const MAGIC: [u8; 2] = [0x53, 0xef];
const MAGIC_AT: usize = 0x38;
/// `s_log_block_size` counts from this.
const LEAST_BLOCK: u64 = 1024;
/// 64 KiB.
const MOST_LOG: u32 = 6;
/// Bytes of an inode in the first revision of the format, and the fewest of any.
const LEAST_INODE: u64 = 128;
/// Bytes of a group descriptor without, and the fewest with `64bit`.
const SHORT_DESCRIPTOR: u64 = 32;
const LONG_DESCRIPTOR: u64 = 64;
/// `s_feature_compat`: there are two backup superblocks, listed in `s_backup_bgs`.
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
/// `s_feature_ro_compat`: backup superblocks only in groups that are powers of 3, 5 and 7.
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
/// `s_feature_ro_compat`: descriptors say how much of their tables was never in use, under either
/// of two kinds of checksum.
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// `bg_flags`: nothing of the table was ever in use.
const INODE_UNINIT: u16 = 0x1;
/// `s_feature_incompat`: a journal's device, not a file system.
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
/// Descriptors lie in the groups that they describe.
const INCOMPAT_META_BG: u32 = 0x10;
/// Block numbers have 64 bits.
const INCOMPAT_64BIT: u32 = 0x80;

/// Where the parts of a file system are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of a block: 1 KiB to 64 KiB.
    pub(crate) block_size: u64,
    /// Blocks of the file system.
    pub(crate) blocks: u64,
    /// Bytes of an inode: at most a block.
    pub(crate) inode_size: u64,
    /// Inodes that are in the table of one group.
    pub(crate) inodes_per_group: u32,
    inodes: u32,
    first_data_block: u64,
    blocks_per_group: u64,
    groups: u64,
    descriptor_size: u64,
    /// Blocks of descriptors that lie together behind the superblock.
    descriptor_blocks: u64,
    backups: Backups,
    /// Descriptors say what of their tables is not in use.
    states_unused: bool,
}

/// An inode table, as its group's descriptor states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) group: u64,
    /// Its first block.
    pub(crate) start: u64,
    /// Blocks from there on that hold inodes which are or were in use.
    pub(crate) used: u64,
}

/// The groups that have a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Backups {
    All,
    Powers,
    Listed([u32; 2]),
}

impl Layout {
    /// From the bytes of the superblock; `None` when they are not one that can be used.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if !has(bytes, MAGIC_AT, &MAGIC) {
            return None;
        }
        let log = le32(bytes, 0x18).filter(|log| *log <= MOST_LOG)?;
        let block_size = LEAST_BLOCK.checked_shl(log)?;
        let (compat, incompat) = (le32(bytes, 0x5c)?, le32(bytes, 0x60)?);
        let ro_compat = le32(bytes, 0x64)?;
        if incompat & INCOMPAT_JOURNAL_DEV != 0 {
            return None;
        }
        let long = incompat & INCOMPAT_64BIT != 0;
        let high = if long { le32(bytes, 0x150)? } else { 0 };
        let blocks = wide(le32(bytes, 0x4)?, high);
        let (least, size) = if long {
            (LONG_DESCRIPTOR, u64::from(le16(bytes, 0xfe)?))
        } else {
            (SHORT_DESCRIPTOR, SHORT_DESCRIPTOR)
        };
        let descriptor_size = within(size, least, block_size)?;
        let inode_size = match le32(bytes, 0x4c)? {
            0 => LEAST_INODE,
            _ => within(u64::from(le16(bytes, 0x58)?), LEAST_INODE, block_size)?,
        };
        let first_data_block = u64::from(le32(bytes, 0x14)?);
        let blocks_per_group = Some(u64::from(le32(bytes, 0x20)?)).filter(|count| *count > 0)?;
        let inodes_per_group = le32(bytes, 0x28).filter(|count| *count > 0)?;
        let groups = blocks
            .checked_sub(first_data_block)?
            .div_ceil(blocks_per_group);
        let all = groups.div_ceil(block_size.checked_div(descriptor_size)?);
        let descriptor_blocks = if incompat & INCOMPAT_META_BG != 0 {
            all.min(le32(bytes, 0x104)?.into())
        } else {
            all
        };
        let backups = if compat & COMPAT_SPARSE_SUPER2 != 0 {
            Backups::Listed([le32(bytes, 0x24c)?, le32(bytes, 0x250)?])
        } else if ro_compat & RO_COMPAT_SPARSE_SUPER != 0 {
            Backups::Powers
        } else {
            Backups::All
        };
        Some(Self {
            block_size,
            blocks,
            inode_size,
            inodes_per_group,
            inodes: le32(bytes, 0)?,
            first_data_block,
            blocks_per_group,
            groups,
            descriptor_size,
            descriptor_blocks,
            backups,
            states_unused: ro_compat & (RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM) != 0,
        })
    }

    /// The group whose descriptor is the first in `block`; `None` when it holds none.
    pub(crate) fn first_group_in(&self, block: u64) -> Option<u64> {
        let behind = block.checked_sub(self.first_data_block)?;
        let each = self.descriptors_per_block();
        let number = behind.checked_sub(1)?;
        if number < self.descriptor_blocks {
            return number.checked_mul(each);
        }
        // With meta_bg, at the start of the first of the groups that a block describes.
        let number = behind.checked_div(self.blocks_per_group.checked_mul(each)?)?;
        let group = number.checked_mul(each)?;
        let start = group.checked_mul(self.blocks_per_group)?;
        let place = start.checked_add(u64::from(self.has_superblock(group)))?;
        let is_one = number >= self.descriptor_blocks && group < self.groups && place == behind;
        is_one.then_some(group)
    }

    /// The inode tables that the descriptors in a block state.
    pub(crate) fn tables<'a>(
        &'a self,
        first_group: u64,
        block: &'a [u8],
    ) -> impl Iterator<Item = Table> + 'a {
        let size = usize::try_from(self.descriptor_size).unwrap_or(usize::MAX);
        let groups = first_group..self.groups;
        groups
            .zip(block.chunks_exact(size))
            .filter_map(|(group, raw)| {
                let high = if self.descriptor_size >= LONG_DESCRIPTOR {
                    le32(raw, 0x28)?
                } else {
                    0
                };
                let start = wide(le32(raw, 0x8)?, high);
                (start > 0 && start < self.blocks).then_some(Table {
                    group,
                    start,
                    used: self.used_blocks(raw)?,
                })
            })
    }

    /// Blocks at the start of a table that hold inodes which were ever in use, by its descriptor.
    fn used_blocks(&self, raw: &[u8]) -> Option<u64> {
        let unused = if !self.states_unused {
            0
        } else if le16(raw, 0x12)? & INODE_UNINIT != 0 {
            self.inodes_per_group
        } else {
            let high = if self.descriptor_size >= LONG_DESCRIPTOR {
                u32::from(le16(raw, 0x32)?)
            } else {
                0
            };
            u32::from(le16(raw, 0x1c)?) | (high << 16)
        };
        let used = self.inodes_per_group.saturating_sub(unused);
        let bytes = u64::from(used).saturating_mul(self.inode_size);
        Some(bytes.div_ceil(self.block_size))
    }

    /// Blocks of the inode table of a group.
    pub(crate) fn table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group).saturating_mul(self.inode_size);
        bytes.div_ceil(self.block_size)
    }

    /// The inodes in block `number` of the table of `group`, each with its bytes.
    pub(crate) fn inodes<'a>(
        &'a self,
        group: u64,
        number: u64,
        block: &'a [u8],
    ) -> impl Iterator<Item = (u32, &'a [u8])> + 'a {
        let each = self.block_size.checked_div(self.inode_size).unwrap_or(0);
        let first = number.saturating_mul(each);
        let before = group.saturating_mul(self.inodes_per_group.into());
        let size = usize::try_from(self.inode_size).unwrap_or(usize::MAX);
        let indices = first..u64::from(self.inodes_per_group);
        indices
            .zip(block.chunks_exact(size))
            .filter_map(move |(index, raw)| {
                // They are counted from 1.
                let ino = before.checked_add(index)?.checked_add(1)?;
                let ino = u32::try_from(ino).ok().filter(|ino| *ino <= self.inodes)?;
                Some((ino, raw))
            })
    }

    /// The blocks that lie wholly in `bytes`, which are at `offset`: numbers and contents.
    pub(crate) fn blocks_in<'a>(
        &self,
        offset: u64,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = (u64, &'a [u8])> + 'a {
        let first = offset.div_ceil(self.block_size);
        let skip = first.saturating_mul(self.block_size).saturating_sub(offset);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let whole = slice(bytes, skip, bytes.len().saturating_sub(skip)).unwrap_or_default();
        let size = usize::try_from(self.block_size).unwrap_or(usize::MAX);
        (first..).zip(whole.chunks_exact(size))
    }

    fn descriptors_per_block(&self) -> u64 {
        self.block_size
            .checked_div(self.descriptor_size)
            .unwrap_or(1)
    }

    fn has_superblock(&self, group: u64) -> bool {
        match self.backups {
            _ if group == 0 => true,
            Backups::All => true,
            Backups::Powers => [3, 5, 7].iter().any(|base| is_power(group, *base)),
            Backups::Listed(groups) => groups.iter().any(|listed| u64::from(*listed) == group),
        }
    }
}

/// Whether `number` is a power of `base`, 1 among them.
fn is_power(mut number: u64, base: u64) -> bool {
    while number > 1 && number.is_multiple_of(base) {
        number = number.checked_div(base).unwrap_or(0);
    }
    number == 1
}

/// A power of two from `least` to `most`.
fn within(size: u64, least: u64, most: u64) -> Option<u64> {
    (size.is_power_of_two() && (least..=most).contains(&size)).then_some(size)
}

/// A number whose halves are stored apart.
pub(crate) fn wide(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}
