//! Extended attributes: behind the inode's fields, in a block of their own, or with large values
//! in inodes of their own.
//!
//! Format: Documentation/filesystems/ext4, "Extended Attributes".

use fs_ext4::ea_inode;
use fs_ext4::xattr::EXT4_XATTR_MAGIC;

use super::inode::Node;
use super::{Ext4, error};
use crate::tree::{FsError, FsResult};
use nbdserve::{Error, Kind};

/// Where `i_extra_isize` is, and where the fields it counts begin.
const GOOD_OLD_INODE: usize = 128;
/// Magic in front of the entries in an inode, and of the header in a block.
const MAGIC: usize = 4;
/// Header of an attribute block.
const BLOCK_HEADER: usize = 32;
/// An entry without its name.
const ENTRY: usize = 16;
/// Longest value that getxattr(2) gives.
const VALUE_MAX: u32 = 65536;
/// `system.posix_acl_access` and `system.posix_acl_default`, which have no name of their own.
const ACL_INDEXES: [u8; 2] = [2, 3];

/// The names' first parts, as the kernel shows them. What it does not show, among it the data of
/// small files, has no place here.
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        10 => b"gnu.",
        _ => return None,
    })
}

/// The full names.
///
/// # Errors
/// `Corrupt`, or that of the volume.
pub(super) fn names(fs: &Ext4, node: &Node) -> FsResult<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    visit(fs, node, &mut |entry| {
        out.push(entry.name);
        Ok(true)
    })?;
    Ok(out)
}

/// The value of `name`; access control lists in the form of getxattr(2), not of the disk.
///
/// # Errors
/// `NoData`, `Limit` for a value longer than the kernel gives, else as [`names`].
pub(super) fn value(fs: &Ext4, node: &Node, name: &[u8]) -> FsResult<Vec<u8>> {
    let mut found = None;
    visit(fs, node, &mut |entry| {
        if entry.name != name {
            return Ok(true);
        }
        let raw = match entry.value {
            Value::Here(bytes) => bytes.to_vec(),
            Value::InInode(_, size) if size > VALUE_MAX => {
                let what = format!("inode {}: attribute of {size} bytes", node.ino);
                return Err(Error::new(Kind::Limit, what).into());
            }
            Value::InInode(ino, size) => {
                ea_inode::read_value_inode(&fs.inner, ino, size).map_err(error)?
            }
        };
        found = Some(if ACL_INDEXES.contains(&entry.index) {
            acl_to_user(node, &raw)?
        } else {
            raw
        });
        Ok(false)
    })?;
    found.ok_or(FsError::NoData)
}

struct Entry<'a> {
    index: u8,
    name: Vec<u8>,
    value: Value<'a>,
}

enum Value<'a> {
    Here(&'a [u8]),
    /// Inode and length.
    InInode(u32, u32),
}

type Visit<'v> = &'v mut dyn FnMut(Entry<'_>) -> FsResult<bool>;

/// Gives every attribute that is shown to `each`, until it says `false`: those in the inode first.
fn visit(fs: &Ext4, node: &Node, each: Visit<'_>) -> FsResult<()> {
    let in_inode = node.raw.get(GOOD_OLD_INODE..).and_then(|extra| {
        let size = u16::from_le_bytes(*extra.first_chunk()?);
        // Zero means that there is nothing behind the old fields.
        let area = extra.get(usize::from(size)..).filter(|_| size != 0)?;
        (magic(area)? == EXT4_XATTR_MAGIC).then(|| area.get(MAGIC..))?
    });
    if let Some(area) = in_inode
        && !visit_area(node, area, 0, each)?
    {
        return Ok(());
    }
    if node.inode.file_acl == 0 {
        return Ok(());
    }
    let number = node.inode.file_acl;
    let block = fs.read_block(number)?;
    if magic(&block) != Some(EXT4_XATTR_MAGIC) {
        return Err(node.corrupt(format!("attribute block {number} has no magic number")));
    }
    if !fs.inner.csum.verify_xattr_block(number, &block) {
        return Err(node.corrupt(format!("attribute block {number} has a wrong checksum")));
    }
    visit_area(node, &block, BLOCK_HEADER, each).map(|_| ())
}

/// The entries from byte `at` of `area` on; their values' offsets count from its start. Says
/// whether to go on.
fn visit_area(node: &Node, area: &[u8], mut at: usize, each: Visit<'_>) -> FsResult<bool> {
    let damaged = |at: usize| node.corrupt(format!("attribute entry at {at} leaves its area"));
    loop {
        let rest = area.get(at..).unwrap_or_default();
        // Four zero bytes end the list; so does the end of an area without room for them.
        if magic(rest).is_none_or(|word| word == 0) {
            return Ok(true);
        }
        let entry: &[u8; ENTRY] = rest.first_chunk().ok_or_else(|| damaged(at))?;
        let [name_len, index, o0, o1, i0, i1, i2, i3, s0, s1, s2, s3, ..] = *entry;
        let name_len = usize::from(name_len);
        let inum = u32::from_le_bytes([i0, i1, i2, i3]);
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        let suffix = rest
            .get(ENTRY..ENTRY + name_len)
            .ok_or_else(|| damaged(at))?;
        let value = if inum != 0 {
            Value::InInode(inum, size)
        } else {
            let offset = usize::from(u16::from_le_bytes([o0, o1]));
            let bytes = usize::try_from(size)
                .ok()
                .and_then(|size| area.get(offset..)?.get(..size));
            // The offset of an empty value means nothing.
            Value::Here(match bytes {
                Some(bytes) => bytes,
                None if size == 0 => &[],
                None => return Err(damaged(at)),
            })
        };
        if let Some(prefix) = prefix(index) {
            let name = [prefix, suffix].concat();
            if !each(Entry { index, name, value })? {
                return Ok(false);
            }
        }
        // At least ENTRY further.
        at += ENTRY + name_len.next_multiple_of(4);
    }
}

/// The first four bytes.
fn magic(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|raw| u32::from_le_bytes(*raw))
}

/// From the disk's form of an access control list (version 1, identifiers only where there are
/// any) to that of getxattr(2) (version 2, all entries of eight bytes).
fn acl_to_user(node: &Node, raw: &[u8]) -> FsResult<Vec<u8>> {
    const ON_DISK: u32 = 1;
    const FOR_USER: u32 = 2;
    const NO_ID: u32 = u32::MAX;
    let damaged = || node.corrupt("bad access control list");
    if magic(raw) != Some(ON_DISK) {
        return Err(damaged());
    }
    let mut out = FOR_USER.to_le_bytes().to_vec();
    let mut rest = &raw[4..];
    while let Some((entry, after)) = rest.split_first_chunk::<4>() {
        rest = after;
        let [tag, 0, _, _] = *entry else {
            return Err(damaged());
        };
        out.extend_from_slice(entry);
        let id = match tag {
            // ACL_USER and ACL_GROUP
            0x02 | 0x08 => {
                let (id, after) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
                rest = after;
                u32::from_le_bytes(*id)
            }
            // ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER
            0x01 | 0x04 | 0x10 | 0x20 => NO_ID,
            _ => return Err(damaged()),
        };
        out.extend_from_slice(&id.to_le_bytes());
    }
    if rest.is_empty() {
        Ok(out)
    } else {
        Err(damaged())
    }
}
