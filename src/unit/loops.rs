//! Which loop devices can be asked whose they are.
//!
//! Our id is in the name that a loop device was attached with. Only an ioctl tells it, and that asks
//! the file system of the file behind the device too: over an sshfs that hangs, it hangs. The file's
//! path, from `/sys`, is told by the kernel alone.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::path::Path;

use super::record::Record;
use super::state::StateDir;
use crate::sys::mountinfo::Mount;

/// File systems without a device that answer by themselves. Those on a device do, except for what
/// FUSE mounts from one.
const LOCAL: [&str; 10] = [
    "aufs", "bcachefs", "btrfs", "devtmpfs", "hostfs", "overlay", "ramfs", "rootfs", "tmpfs", "zfs",
];

/// Knows which loop devices can be ours.
#[derive(Debug)]
pub(super) struct Guess<'a> {
    mounts: &'a [Mount],
    state: StateDir,
    /// Read when they are needed.
    records: OnceCell<Vec<Record>>,
}

impl<'a> Guess<'a> {
    /// With all mounts.
    pub(super) fn new(mounts: &'a [Mount]) -> Self {
        Self {
            mounts,
            state: StateDir::of_user(),
            records: OnceCell::new(),
        }
    }

    /// Whether the loop device with this number, over `file`, is to be asked: when that is answered
    /// at once, or when a unit's record names it.
    pub(super) fn is_worth_asking(&self, number: u32, file: &Path) -> bool {
        self.is_in_unit(file)
            || answers_by_itself(self.mounts, file)
            || self.records().iter().any(|it| is_of(it, number, file))
    }

    /// Whether it is what a server of ours shows to a loop device: what there is to know of it was told
    /// once, for ever.
    fn is_in_unit(&self, file: &Path) -> bool {
        file.parent().is_some_and(|dir| {
            let id = dir.file_name().and_then(OsStr::to_str);
            id.is_some_and(|id| self.state.unit(id).path() == dir)
        })
    }

    fn records(&self) -> &[Record] {
        self.records.get_or_init(|| {
            let units = self.state.units();
            units
                .iter()
                .filter_map(|dir| dir.read().ok().flatten())
                .collect()
        })
    }
}

/// Whether a record has such a loop device.
fn is_of(record: &Record, number: u32, file: &Path) -> bool {
    let node = format!("loop{number}");
    let device = record.device.as_deref().and_then(Path::file_name);
    record.request.image == file || device.is_some_and(|name| name == &*node)
}

/// Whether the file systems on the way to `file`, and its own, need nobody to answer. The path may
/// be that in a mount which is in no table any more (`umount -l`), and lead nowhere or elsewhere
/// then.
fn answers_by_itself(mounts: &[Mount], file: &Path) -> bool {
    let is_local = |mount: &Mount| {
        let fstype = mount.fstype.to_string_lossy();
        // Were the root folder not to answer, nothing would.
        mount.target == Path::new("/")
            || LOCAL.contains(&&*fstype)
            || (mount.device.0 != 0 && !fstype.starts_with("fuse"))
    };
    let mut on_the_way = mounts
        .iter()
        .filter(|mount| file.starts_with(&mount.target))
        .peekable();
    on_the_way.peek().is_some()
        && on_the_way.all(is_local)
        && std::fs::symlink_metadata(file).is_ok_and(|meta| !meta.is_symlink())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mountinfo::parse;

    #[test]
    fn only_what_lies_on_local_file_systems_answers_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("far/near")).unwrap();
        for name in ["image", "far/image", "far/near/image"] {
            std::fs::write(root.join(name), "").unwrap();
        }
        let table = |far: &str| {
            let shown = root.display();
            let table = format!(
                "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                 2 1 {far} rw\n\
                 3 2 8:2 / {shown}/far/near rw - xfs /dev/b rw\n"
            );
            parse(table.replace("FAR", &format!("{shown}/far")).as_bytes())
        };
        for far in [
            "0:40 / FAR rw - fuse.sshfs host:",
            "0:40 / FAR rw - nfs4 host:/",
            "8:3 / FAR rw - fuseblk /dev/c",
        ] {
            let mounts = table(far);
            assert_eq!(mounts.len(), 3);
            let answers = |name: &str| answers_by_itself(&mounts, &root.join(name));
            assert!(answers("image"), "{far}");
            assert!(!answers("far/image"), "{far}");
            // To look at it one has to pass through the other.
            assert!(!answers("far/near/image"), "{far}");
            assert!(!answers("image (deleted)"), "{far}");
        }
        for near in ["8:3 / FAR rw - ext4 /dev/c", "0:40 / FAR rw - tmpfs none"] {
            let mounts = table(near);
            assert!(answers_by_itself(&mounts, &root.join("far/image")));
        }
        assert!(!answers_by_itself(&[], &root.join("image")));
    }
}
