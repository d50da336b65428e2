//! The mount point: opened once, checked, and held open.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nbdserve::error::shell;
use nbdserve::{Error, Kind, Result};
use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::MountOptions;
use super::place::{open_resolved, path_of};

/// A mount point that fits the options. The descriptor pins the file that was checked, so that a
/// symbolic link put in its place later changes nothing.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    fd: OwnedFd,
}

impl Target {
    /// # Errors
    /// When it does not exist, is behind a symbolic link, is of the wrong type or is not empty.
    pub(super) fn open(target: &Path, opts: &MountOptions) -> Result<Self> {
        let path = std::path::absolute(target).map_err(|cause| unreachable(target, cause))?;
        let fd = open_resolved(&path, OFlags::PATH).map_err(|cause| unreachable(&path, cause))?;
        let this = Self { path, fd };
        this.check(opts)?;
        Ok(this)
    }

    /// Absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to the checked file whatever happens to its name.
    pub(super) fn pinned(&self) -> PathBuf {
        path_of(&self.fd)
    }

    fn check(&self, opts: &MountOptions) -> Result<()> {
        let shown = self.path.display();
        let stat =
            rustix::fs::fstat(&self.fd).map_err(|cause| unreachable(&self.path, cause.into()))?;
        let found = FileType::from_raw_mode(stat.st_mode);
        let (wanted, noun) = if opts.is_dir {
            (FileType::Directory, "a directory")
        } else {
            (FileType::RegularFile, "a regular file")
        };
        if found != wanted {
            return Err(Error::new(
                Kind::Unsupported,
                format!("the mount point {shown} is not {noun}"),
            )
            .hint(format!("name {noun}")));
        }
        if opts.over_non_empty || self.is_empty(opts.is_dir, stat.st_size)? {
            return Ok(());
        }
        Err(Error::new(
            Kind::Denied,
            format!("the mount point {shown} is not empty"),
        )
        .hint("name an empty or a new mount point: what is there would be hidden"))
    }

    fn is_empty(&self, is_dir: bool, size: i64) -> Result<bool> {
        if !is_dir {
            return Ok(size == 0);
        }
        let failed = |cause| {
            let shown = self.path.display();
            Error::io(format!("cannot list the mount point {shown}"), cause)
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listing = match rustix::fs::openat(&self.fd, ".", flags, Mode::empty()) {
            Ok(listing) => listing,
            // A directory that we may not list is one that mount(2) or fusermount3 will judge.
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => return Ok(true),
            Err(errno) => return Err(failed(errno)),
        };
        for entry in Dir::new(listing).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Why `target` cannot be a mount point.
fn unreachable(target: &Path, cause: std::io::Error) -> Error {
    let shown = target.display();
    let number = cause.raw_os_error();
    let error = Error::io(format!("cannot mount on {shown}"), cause);
    match number {
        Some(libc::ENOTCONN) => error.hint(format!(
            "an earlier mount there has lost its server: loopmount -u {}",
            shell(&shown.to_string())
        )),
        Some(libc::ELOOP) => error.hint("a part of the path is a symbolic link"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_mount_point_must_be_empty_and_of_the_right_type() {
        let dir = tempfile::tempdir().unwrap();
        let tree = MountOptions::new("loopmount:1", true);
        let file = MountOptions::new("loopmount:1", false);
        Target::open(dir.path(), &tree).unwrap();
        let wrong = Target::open(dir.path(), &file).unwrap_err();
        assert!(wrong.to_string().contains("not a regular file"), "{wrong}");
        let inner = dir.path().join("f");
        fs::write(&inner, "").unwrap();
        let full = Target::open(dir.path(), &tree).unwrap_err();
        assert_eq!(full.kind(), Kind::Denied);
        assert!(full.to_string().contains("not empty"), "{full}");
        Target::open(&inner, &file).unwrap();
        fs::write(&inner, "x").unwrap();
        assert_eq!(
            Target::open(&inner, &file).unwrap_err().kind(),
            Kind::Denied
        );
        let anyway = MountOptions {
            over_non_empty: true,
            ..file
        };
        Target::open(&inner, &anyway).unwrap();
    }

    #[test]
    fn what_was_swapped_for_a_link_since_it_was_resolved_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("elsewhere/mnt")).unwrap();
        for (link, target) in [("mnt", "mnt"), ("folder", "folder/mnt")] {
            std::os::unix::fs::symlink(root.join("elsewhere"), root.join(link)).unwrap();
            let tree = MountOptions::new("loopmount:1", true);
            let refused = Target::open(&root.join(target), &tree).unwrap_err();
            let hint = refused.report().hint.unwrap();
            assert!(hint.contains("symbolic link"), "{refused} {hint}");
        }
    }
}
