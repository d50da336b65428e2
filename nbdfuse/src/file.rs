//! A volume as one regular file, which is the root of its mount.

mod image;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use nbdserve::{Result, Volume};

use crate::Session;
use crate::fuse::FileServer;
pub(crate) use image::{Image, Whence};

/// How the file looks.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// What it is called in the log.
    pub name: String,
    /// Time of last modification: the image's own.
    pub mtime: SystemTime,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits. Write permission is removed from a file that is not writable.
    pub permissions: u16,
    /// Take writes, where the volume does.
    pub writable: bool,
    /// A regular file with the very bytes of the volume. Where the kernel agrees (Linux 6.9 and
    /// the right to administer the system) it reads this file by itself and asks the volume for
    /// nothing but holes; a change of the file is then not noticed. Not for a writable file, whose
    /// backing could grow.
    pub backing: Option<Arc<OwnedFd>>,
    /// A loop device stands on it, and nobody else sees it: its attributes are told to the kernel
    /// once. The loop driver looks at them whenever it is asked what it is (`LOOP_GET_STATUS`), and a
    /// dead server must not keep anybody from finding its device.
    pub under_device: bool,
}

impl FileOptions {
    /// A read-only file of the calling user, last modified now.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            mtime: SystemTime::now(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            permissions: 0o600,
            writable: false,
            backing: None,
            under_device: false,
        }
    }
}

/// Serves `volume` over `fd`, a connection mounted on a regular file
/// ([`MountOptions::is_dir`](crate::mount::MountOptions::is_dir) unset). Returns when the file is
/// usable.
///
/// The kernel keeps what it has read across opens; see [`Session::invalidate_all`].
///
/// # Errors
/// When the connection ends at once, or threads cannot be started.
pub fn serve_file(volume: Volume, fd: OwnedFd, opts: &FileOptions) -> Result<Session> {
    FileServer::serve(Image::new(volume, opts.writable), fd, opts)
}
