//! mount(2) by ourselves, for whoever holds CAP_SYS_ADMIN over the mount namespace: root, or the
//! owner of a user namespace.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use nbdserve::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::MountOptions;
use super::target::Target;

/// The device of which every open file is one FUSE connection.
pub(super) const DEV_FUSE: &str = "/dev/fuse";

/// What mount(2) said.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Mounted; the descriptor of the connection.
    Mounted(OwnedFd),
    /// This process may not mount.
    NotPermitted,
}

/// Opens a connection and mounts it on `target`.
///
/// # Errors
/// Without FUSE, without the right to open it, or what mount(2) says.
pub(super) fn mount(target: &Target, opts: &MountOptions) -> Result<Outcome> {
    let fd = open_device()?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if opts.read_only {
        flags |= MountFlags::RDONLY;
    }
    if opts.no_exec {
        flags |= MountFlags::NOEXEC;
    }
    let fstype = format!("fuse.{}", opts.subtype);
    let data = option_string(&fd, opts)?;
    match rustix::mount::mount(
        opts.source.as_str(),
        target.pinned(),
        fstype.as_str(),
        flags,
        Some(data.as_c_str()),
    ) {
        Ok(()) => Ok(Outcome::Mounted(fd)),
        Err(Errno::PERM) => Ok(Outcome::NotPermitted),
        Err(Errno::NODEV) => Err(no_fuse()),
        Err(errno) => Err(Error::io(
            format!("cannot mount on {}", target.path().display()),
            errno,
        )),
    }
}

/// Opens a fresh connection, not yet tied to a mount.
fn open_device() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(DEV_FUSE, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => no_fuse(),
        Errno::ACCESS | Errno::PERM => Error::io("cannot open /dev/fuse", errno)
            .hint("an administrator can allow it: chmod 666 /dev/fuse"),
        _ => Error::io("cannot open /dev/fuse", errno),
    })
}

fn no_fuse() -> Error {
    Error::new(Kind::Unsupported, "this kernel offers no FUSE")
        .hint("load it with: modprobe fuse; in a container, pass it in with: --device /dev/fuse")
}

/// The data of mount(2); the identifiers are in the terms of our own user namespace.
fn option_string(fd: &OwnedFd, opts: &MountOptions) -> Result<CString> {
    let root_mode = if opts.is_dir { 0o40000 } else { 0o100_000 };
    let mut data = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={}",
        fd.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if opts.allow_other {
        data.push_str(",allow_other,default_permissions");
    }
    CString::new(data).map_err(|cause| Error::new(Kind::Io, "bad mount options").caused_by(cause))
}
