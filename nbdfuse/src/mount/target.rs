//! The mount point: resolved once, checked, and held open.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nbdserve::error::shell;
use nbdserve::{Error, Kind, Result};
use rustix::fs::{FileType, Mode, OFlags};

use super::MountOptions;

/// A mount point that fits the options. The descriptor pins the file that was checked, so that a
/// symbolic link put in its place later changes nothing.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    fd: OwnedFd,
}

impl Target {
    /// # Errors
    /// When it does not exist, is of the wrong type or is not empty.
    pub(super) fn open(target: &Path, opts: &MountOptions) -> Result<Self> {
        let path = fs::canonicalize(target).map_err(|cause| unreachable(target, cause))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|cause| unreachable(&path, cause.into()))?;
        let this = Self { path, fd };
        this.check(opts)?;
        Ok(this)
    }

    /// Absolute, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to the checked file whatever happens to its name.
    pub(super) fn pinned(&self) -> PathBuf {
        let pinned = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        // Without a mounted /proc only the name is left.
        if pinned.exists() {
            pinned
        } else {
            self.path.clone()
        }
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
        match fs::read_dir(&self.path) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            // A directory that we may not list is one that mount(2) or fusermount3 will judge.
            Err(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => Ok(true),
            Err(cause) => Err(Error::io(
                format!("cannot list the mount point {}", self.path.display()),
                cause,
            )),
        }
    }
}

/// Why `target` cannot be a mount point.
fn unreachable(target: &Path, cause: std::io::Error) -> Error {
    let shown = target.display();
    let is_dead = cause.raw_os_error() == Some(libc::ENOTCONN);
    let error = Error::io(format!("cannot mount on {shown}"), cause);
    if is_dead {
        error.hint(format!(
            "an earlier mount there has lost its server: loopmount -u {}",
            shell(&shown.to_string())
        ))
    } else {
        error
    }
}

/// The absolute path of a mount point, found without touching what is mounted there: only the
/// folder around it is resolved.
///
/// # Errors
/// When that folder cannot be resolved.
pub(super) fn without_touching(target: &Path) -> Result<PathBuf> {
    let failed = |cause| Error::io(format!("cannot find {}", target.display()), cause);
    let Some(name) = target.file_name().filter(|name| *name != OsStr::new("..")) else {
        return fs::canonicalize(target).map_err(failed);
    };
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    Ok(fs::canonicalize(folder).map_err(failed)?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_component_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        std::os::unix::fs::symlink("/nowhere", real.join("-a b\n")).unwrap();
        let found = without_touching(&dir.path().join("-a b\n")).unwrap();
        assert_eq!(found, real.join("-a b\n"));
    }

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
}
