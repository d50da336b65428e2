//! One inode: read, checked, and put into the terms of stat(2).

use std::fmt::Display;

use fs_ext4::features::{Incompat, RoCompat};
use fs_ext4::inode::{Inode, InodeFlags};

use super::{Ext4, ROOT, error};
use crate::tree::{Attr, FsError, FsResult, Time};

/// What st_blocks counts in.
const SECTOR: u64 = 512;

/// An inode with its bytes, which hold the extended attributes behind the fields.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: u32,
    pub(super) inode: Inode,
    pub(super) raw: Vec<u8>,
}

impl Node {
    /// Reads inode `ino`, one that a directory may lead to.
    ///
    /// # Errors
    /// `Corrupt` for a number out of range or reserved, a wrong checksum or a deleted inode, or
    /// that of the volume.
    pub(super) fn read(fs: &Ext4, ino: u64) -> FsResult<Self> {
        let superblock = &fs.inner.sb;
        let valid = u32::try_from(ino).ok().filter(|ino| {
            *ino <= superblock.inodes_count
                && (u64::from(*ino) == ROOT || *ino >= superblock.first_inode.max(1))
        });
        let Some(number) = valid else {
            let what = format!("inode {ino} cannot be in a directory");
            return Err(FsError::corrupt(what));
        };
        let (inode, raw) = fs.inner.read_inode_verified(number).map_err(error)?;
        let node = Self {
            ino: number,
            inode,
            raw,
        };
        if node.inode.links_count == 0 || node.inode.mode == 0 {
            return Err(node.corrupt("it is deleted, but a directory leads to it"));
        }
        Ok(node)
    }

    /// Damage in this inode.
    pub(super) fn corrupt(&self, what: impl Display) -> FsError {
        FsError::corrupt(format!("inode {}: {what}", self.ino))
    }

    /// Bytes. Only regular files, and directories where the feature says so, have the high half;
    /// elsewhere it has other uses.
    pub(super) fn size(&self, fs: &Ext4) -> u64 {
        let large_dirs = fs.inner.sb.feature_incompat & Incompat::LARGEDIR.bits() != 0;
        if self.inode.is_file() || (large_dirs && self.inode.is_dir()) {
            self.inode.size
        } else {
            self.inode.size & u64::from(u32::MAX)
        }
    }

    pub(super) fn has_flag(&self, flag: InodeFlags) -> bool {
        self.inode.flags & flag.bits() != 0
    }

    /// What stat(2) says.
    pub(super) fn attr(&self, fs: &Ext4) -> Attr {
        let inode = &self.inode;
        let time = |seconds, nanoseconds| Time {
            seconds,
            nanoseconds,
        };
        Attr {
            ino: self.ino.into(),
            mode: inode.mode.into(),
            nlink: inode.links_count.into(),
            uid: inode.uid,
            gid: inode.gid,
            rdev: self.rdev(),
            size: self.size(fs),
            blocks: self.blocks(fs),
            atime: time(inode.atime, inode.atime_nsec),
            mtime: time(inode.mtime, inode.mtime_nsec),
            ctime: time(inode.ctime, inode.ctime_nsec),
        }
    }

    /// Allocated units of 512 bytes. With `huge_file`, the count has 48 bits, and an inode's flag
    /// makes its unit the block. As in the kernel, a file within its inode is given the units that
    /// its size would take, so that it does not look like a hole.
    fn blocks(&self, fs: &Ext4) -> u64 {
        let huge = fs.inner.sb.feature_ro_compat & RoCompat::HUGE_FILE.bits() != 0;
        let stored = match (huge, self.has_flag(InodeFlags::HUGE_FILE)) {
            (false, _) => self.inode.blocks & u64::from(u32::MAX),
            (true, false) => self.inode.blocks,
            (true, true) => self.inode.blocks.saturating_mul(fs.block_size() / SECTOR),
        };
        if self.inode.is_file() && self.inode.has_inline_data() {
            stored.saturating_add(self.size(fs).div_ceil(SECTOR))
        } else {
            stored
        }
    }

    /// The number of a device node: 8 bits each in the first pointer, or if that is zero the
    /// kernel's own encoding in the second.
    fn rdev(&self) -> u32 {
        let word = |at: usize| {
            let raw = self
                .inode
                .block
                .get(at..)
                .and_then(|rest| rest.first_chunk());
            raw.map_or(0, |raw| u32::from_le_bytes(*raw))
        };
        let kind = u32::from(self.inode.mode) & libc::S_IFMT;
        if kind != libc::S_IFCHR && kind != libc::S_IFBLK {
            return 0;
        }
        match word(0) & 0xffff {
            0 => word(4),
            // Minor in the low byte, major above it, in both encodings.
            old => old,
        }
    }
}
