//! The folder of a store: private, ours, and not on a file system that we may be serving.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Kind, Result};

/// What statfs(2) says of every FUSE file system.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
/// What new files are called until they are complete.
pub(super) const NEW: &str = "new-";

/// Sees to it that `folder` can be used.
///
/// # Errors
/// See [`super::Store::with_limit`].
pub(super) fn make(folder: &Path) -> Result<()> {
    let shown = folder.display();
    let cannot = |error: io::Error| Error::io(format!("cannot use {shown}"), error);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Error::io(format!("cannot make {shown}"), error))?;
    let meta = fs::symlink_metadata(folder).map_err(cannot)?;
    let owner = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != owner {
        let what = format!("{shown} is not a folder of user {owner}");
        return Err(Error::new(Kind::Denied, what));
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(cannot)?;
    }
    // A server that waits for an answer of its own would wait for ever.
    let kind = rustix::fs::statfs(folder).map_err(|errno| cannot(errno.into()))?;
    if u64::try_from(kind.f_type) == Ok(FUSE_SUPER_MAGIC) {
        let what = format!("{shown} is on a FUSE file system");
        return Err(Error::new(Kind::Unsupported, what));
    }
    private(&folder.join("images")).map_err(cannot)
}

/// Makes a private folder, if it is not there.
pub(super) fn private(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A new private file beside `file`, to be renamed when it is complete.
pub(super) fn new_beside(file: &Path) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = file.with_file_name(format!("{NEW}{}-{number}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    Ok((file, path))
}

/// Makes `write` fill a new file that replaces `file` in one step.
pub(super) fn replace(
    file: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let (mut new, path) = new_beside(file)?;
    let result = write(&mut new).and_then(|()| fs::rename(&path, file));
    if result.is_err() {
        let _ = fs::remove_file(&path);
    }
    result
}
