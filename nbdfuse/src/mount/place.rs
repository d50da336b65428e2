//! Paths in folders of others. Where a path was resolved once, nothing on it is a symbolic link any
//! more: one that is there now was put there since, to lead root elsewhere.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens `path`, on which nothing may be a symbolic link (`RESOLVE_NO_SYMLINKS`). Before Linux 5.6
/// that holds for its last part alone. `O_CLOEXEC` is always set.
///
/// # Errors
/// `ELOOP` at a symbolic link, else what the system says.
pub fn open_resolved(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match without_links(path, flags) {
        // A file system on the way may give any error; only the root folder tells what the kernel
        // can do.
        Err(Errno::NOSYS | Errno::PERM)
            if without_links(Path::new("/"), OFlags::PATH | OFlags::CLOEXEC).is_err() =>
        {
            Ok(last_part_no_link(path, flags)?)
        }
        result => Ok(result?),
    }
}

fn without_links(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
}

fn last_part_no_link(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::fs::open(path, flags | OFlags::NOFOLLOW, Mode::empty())?;
    // With O_PATH the link itself is opened.
    let mode = rustix::fs::fstat(&fd)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(mode).is_symlink() {
        return Err(Errno::LOOP);
    }
    Ok(fd)
}

/// A name in a folder that is held open: whatever becomes of the path, it stays that folder. What
/// the name stands for is not looked at.
#[derive(Debug)]
pub struct Place {
    folder: OwnedFd,
    name: OsString,
}

impl Place {
    /// Opens the folder around the last part of `path`, as [`open_resolved`] does.
    ///
    /// # Errors
    /// `EINVAL` when the path ends in no name (`/`, `..`), else as [`open_resolved`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(Errno::INVAL)?.to_owned();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = open_resolved(folder, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Self { folder, name })
    }

    /// The folder, by `O_PATH`.
    #[must_use]
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// A path to it, for calls that take no descriptor. Needs /proc.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path_of(&self.folder).join(&self.name)
    }
}

/// The number of the mount that an open file is on, as in the mount table. Asks nothing of the
/// file system, so it does not hang where that does.
///
/// # Errors
/// What the system says.
pub fn mount_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not tell the mount of a descriptor"))
}

/// A path that leads to an open file, whatever became of its name. Needs /proc.
pub(super) fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const FLAGS: OFlags = OFlags::PATH;

    #[test]
    fn a_link_anywhere_on_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("real/inner")).unwrap();
        symlink("real", root.join("link")).unwrap();
        open_resolved(&root.join("real/inner"), FLAGS).unwrap();
        for path in ["link", "link/inner", "link/"] {
            let refused = open_resolved(&root.join(path), FLAGS).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ELOOP), "{path}");
        }
        assert!(Place::open(&root.join("link/new")).is_err());
        // The last part is not looked at.
        Place::open(&root.join("link")).unwrap();
    }

    #[test]
    fn without_openat2_the_last_part_at_least_is_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        symlink("/", root.join("link")).unwrap();
        let refused = last_part_no_link(&root.join("link"), FLAGS).unwrap_err();
        assert_eq!(refused, Errno::LOOP);
        last_part_no_link(&root, FLAGS).unwrap();
    }

    #[test]
    fn a_place_stays_where_it_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(root.join("a")).unwrap();
        let place = Place::open(&root.join("a/-x y\n")).unwrap();
        fs::rename(root.join("a"), root.join("b")).unwrap();
        fs::create_dir(root.join("a")).unwrap();
        fs::write(place.path(), "here").unwrap();
        assert!(root.join("b/-x y\n").exists());
        assert!(!root.join("a/-x y\n").exists());
    }

    #[test]
    fn what_has_no_name_is_no_place() {
        for path in ["/", "", "..", "/tmp/.."] {
            assert!(Place::open(Path::new(path)).is_err(), "{path:?}");
        }
    }
}
