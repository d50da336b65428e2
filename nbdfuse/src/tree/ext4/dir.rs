//! Directories: listed from any position, searched by name.
//!
//! Format: Documentation/filesystems/ext4, "Directory Entries".

use fs_ext4::dir::has_csum_tail;
use fs_ext4::features::Incompat;
use fs_ext4::htree;
use fs_ext4::inline_data;
use fs_ext4::inode::InodeFlags;

use super::inode::Node;
use super::map::run_at;
use super::{Ext4, error};
use crate::tree::{DirEntry, FsError, FsResult};

/// Longest name.
pub(super) const NAME_MAX: usize = 255;
/// Inode, record length, name length, type.
const HEADER: usize = 8;
/// From this block size on, record lengths do not fit their 16 bits and are folded.
const FOLDED_LENGTHS: usize = 65536;

/// Gives the entries of `dir` from position `from` on to `each`, until it says `false`. A position
/// is the offset of an entry in the directory file; in a directory inside its inode, its number.
///
/// # Errors
/// `NotADirectory`, `Unsupported` for encrypted names, `Corrupt`, or that of the volume.
pub(super) fn list(
    fs: &Ext4,
    dir: &Node,
    from: u64,
    each: &mut dyn FnMut(DirEntry<'_>) -> bool,
) -> FsResult<()> {
    check_readable(dir)?;
    if dir.inode.has_inline_data() {
        return list_inline(fs, dir, from, each);
    }
    let (size, block_size) = (dir.size(fs), fs.block_size());
    let mut at = from;
    while at < size {
        let block = at / block_size;
        let run = run_at(fs, dir, block)?;
        let Some(start) = run.start else {
            // The kernel steps over holes too.
            at = block.saturating_add(run.len).saturating_mul(block_size);
            continue;
        };
        for i in 0..run.len {
            let base = (block + i).saturating_mul(block_size);
            if base >= size {
                return Ok(());
            }
            let bytes = read_checked(fs, dir, block + i, start + i)?;
            let mut entries = Entries::new(fs, dir, &bytes);
            while let Some(entry) = entries.next()? {
                if base + (entry.at as u64) < at {
                    continue;
                }
                let shown = DirEntry {
                    ino: entry.ino,
                    name: entry.name,
                    next: base + entries.at as u64,
                };
                if !each(shown) {
                    return Ok(());
                }
            }
        }
        at = block.saturating_add(run.len).saturating_mul(block_size);
    }
    Ok(())
}

/// The inode called `name`.
///
/// # Errors
/// `NotFound`, else as [`list`].
pub(super) fn find(fs: &Ext4, dir: &Node, name: &[u8]) -> FsResult<u64> {
    check_readable(dir)?;
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    // A hash tree is a shortcut. It may miss a name whose hash collides across leaves, and it
    // hashes folded names in directories without case, so a miss is looked up the long way.
    if dir.has_flag(InodeFlags::INDEX)
        && !dir.inode.has_inline_data()
        && let Some(ino) = find_by_hash(fs, dir, name)?
    {
        return Ok(ino);
    }
    let mut found = None;
    list(fs, dir, 0, &mut |entry| {
        if entry.name == name {
            found = Some(entry.ino);
        }
        found.is_none()
    })?;
    found.ok_or(FsError::NotFound)
}

fn find_by_hash(fs: &Ext4, dir: &Node, name: &[u8]) -> FsResult<Option<u64>> {
    let Some(root) = read_logical(fs, dir, 0)? else {
        return Ok(None);
    };
    let superblock = &fs.inner.sb;
    let read = |block: u32| {
        let bytes = read_logical(fs, dir, block.into());
        match bytes {
            Ok(Some(bytes)) => Ok(bytes),
            // Whatever is wrong with it, the long way will find out.
            _ => Err(fs_ext4::Error::NotFound),
        }
    };
    let (seed, unsigned) = (&superblock.hash_seed, superblock.unsigned_hash());
    let Ok(Some(leaf)) = htree::lookup_leaf_with(name, &root, seed, unsigned, read) else {
        return Ok(None);
    };
    let Some(bytes) = read_logical(fs, dir, leaf.into())? else {
        return Ok(None);
    };
    let mut entries = Entries::new(fs, dir, &bytes);
    while let Some(entry) = entries.next()? {
        if entry.name == name {
            return Ok(Some(entry.ino));
        }
    }
    Ok(None)
}

fn check_readable(dir: &Node) -> FsResult<()> {
    if !dir.inode.is_dir() {
        return Err(FsError::NotADirectory);
    }
    Ok(fs_ext4::file_io::refuse_encrypted_names(&dir.inode).map_err(error)?)
}

/// Block `block` of the directory file, `None` when it is in a hole or behind the end.
fn read_logical(fs: &Ext4, dir: &Node, block: u64) -> FsResult<Option<Vec<u8>>> {
    if block >= dir.size(fs).div_ceil(fs.block_size()) {
        return Ok(None);
    }
    match run_at(fs, dir, block)?.start {
        Some(start) => read_checked(fs, dir, block, start).map(Some),
        None => Ok(None),
    }
}

/// Block `block` of `dir`, which is block `start` of the disk.
fn read_checked(fs: &Ext4, dir: &Node, block: u64, start: u64) -> FsResult<Vec<u8>> {
    let bytes = fs.read_block(start)?;
    let checksum = &fs.inner.csum;
    // An inner block of a hash tree has a checksum of its own kind, but may have kept the tail
    // from the time when it held entries. It is not checked: it only saves time.
    let is_leaf = !dir.has_flag(InodeFlags::INDEX) || !is_inner(&bytes, block);
    if is_leaf
        && has_csum_tail(&bytes)
        && !checksum.verify_dir_entry_tail(dir.ino, dir.inode.generation, &bytes)
    {
        let what = format!("directory block at {start} has a wrong checksum");
        return Err(dir.corrupt(what));
    }
    Ok(bytes)
}

/// Whether block `block` of an indexed directory is an inner one: the root is the first, and the
/// others look like one unused record.
fn is_inner(bytes: &[u8], block: u64) -> bool {
    let unused = match bytes {
        [0, 0, 0, 0, l0, l1, ..] => {
            record_len(u16::from_le_bytes([*l0, *l1]), bytes.len()) == bytes.len()
        }
        _ => false,
    };
    block == 0 || unused
}

fn list_inline(
    fs: &Ext4,
    dir: &Node,
    from: u64,
    each: &mut dyn FnMut(DirEntry<'_>) -> bool,
) -> FsResult<()> {
    let superblock = &fs.inner.sb;
    let entries = inline_data::read_dir(
        fs.inner.dev.as_ref(),
        dir.ino,
        &dir.inode,
        &dir.raw,
        superblock.inode_size,
        superblock.block_size(),
        has_types(fs),
    )
    .map_err(error)?;
    let skip = usize::try_from(from).unwrap_or(usize::MAX);
    for (next, entry) in (1..).zip(&entries).skip(skip) {
        check_name(dir, &entry.name)?;
        let ino = entry.inode.into();
        let name = &entry.name;
        if !each(DirEntry { ino, name, next }) {
            break;
        }
    }
    Ok(())
}

/// Whether the byte behind the name's length is a type rather than the length's high half.
fn has_types(fs: &Ext4) -> bool {
    fs.inner.sb.feature_incompat & Incompat::FILETYPE.bits() != 0
}

/// Names that no file can have would let a listing lead out of its directory.
fn check_name(dir: &Node, name: &[u8]) -> FsResult<()> {
    if name.is_empty() || name.len() > NAME_MAX || name.iter().any(|b| *b == 0 || *b == b'/') {
        let shown = nbdserve::error::escape(&String::from_utf8_lossy(name));
        return Err(dir.corrupt(format!("directory entry with the name {shown:?}")));
    }
    Ok(())
}

/// The records of one directory block.
struct Entries<'a> {
    dir: &'a Node,
    bytes: &'a [u8],
    has_types: bool,
    max_ino: u32,
    /// Where the next record starts.
    at: usize,
}

/// A record in use.
struct Entry<'a> {
    at: usize,
    ino: u64,
    name: &'a [u8],
}

impl<'a> Entries<'a> {
    fn new(fs: &Ext4, dir: &'a Node, bytes: &'a [u8]) -> Self {
        Self {
            dir,
            bytes,
            has_types: has_types(fs),
            max_ino: fs.inner.sb.inodes_count,
            at: 0,
        }
    }

    /// The next record that is in use.
    fn next(&mut self) -> FsResult<Option<Entry<'a>>> {
        loop {
            let at = self.at;
            // Fewer bytes than a header are padding.
            let Some(head) = self
                .bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk::<HEADER>())
            else {
                return Ok(None);
            };
            let [i0, i1, i2, i3, l0, l1, name_len, kind] = *head;
            let ino = u32::from_le_bytes([i0, i1, i2, i3]);
            let record = record_len(u16::from_le_bytes([l0, l1]), self.bytes.len());
            let name_len = if self.has_types {
                usize::from(name_len)
            } else {
                usize::from(u16::from_le_bytes([name_len, kind]))
            };
            let fits = record >= HEADER
                && record.is_multiple_of(4)
                && record <= self.bytes.len() - at
                && (ino == 0 || name_len <= record - HEADER);
            if !fits {
                let what = format!("directory record of {record} bytes for {name_len} at {at}");
                return Err(self.dir.corrupt(what));
            }
            // At least HEADER: the walk comes to an end.
            self.at = at + record;
            if ino == 0 {
                continue;
            }
            if ino > self.max_ino {
                return Err(self.dir.corrupt(format!("directory entry for inode {ino}")));
            }
            let name = &self.bytes[at + HEADER..at + HEADER + name_len];
            check_name(self.dir, name)?;
            let ino = ino.into();
            return Ok(Some(Entry { at, ino, name }));
        }
    }
}

/// The length of a record in a block of `block` bytes. In blocks of 64 KiB, 0 and 65535 mean the
/// whole block, and the two low bits, always zero else, are the high ones.
fn record_len(raw: u16, block: usize) -> usize {
    let len = usize::from(raw);
    if block < FOLDED_LENGTHS {
        len
    } else if raw == 0 || raw == u16::MAX {
        block
    } else {
        (len & 0xfffc) | ((len & 3) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_records_of_large_blocks_are_unfolded() {
        assert_eq!(record_len(4096, 4096), 4096);
        assert_eq!(record_len(0, 4096), 0);
        assert_eq!(record_len(u16::MAX, 65536), 65536);
        assert_eq!(record_len(12, 65536), 12);
    }
}
