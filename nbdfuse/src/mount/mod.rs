//! Attaching a FUSE connection to a mount point, and taking it away.
//!
//! With the right to mount, mount(2) is called here; without it, `fusermount3` (package fuse3,
//! setuid root) does it on the user's behalf.

mod direct;
mod fusermount;
mod place;
mod read_ahead;
mod target;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nbdserve::{Error, Kind, Result};
use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;

pub use place::{Place, mount_id, open_resolved};
pub use read_ahead::set_read_ahead;

/// What to mount and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The source in the mount table, by which the unit is found again: `loopmount:ID`.
    pub source: String,
    /// The part after `fuse.` in the type of the mount table.
    pub subtype: String,
    /// No write reaches the server.
    pub read_only: bool,
    /// Whether the root of the mount is a directory; else it is a regular file. The mount point
    /// must be of the same type.
    pub is_dir: bool,
    /// Let other users in, within what owners and modes allow: these count for everybody then.
    /// As a user this needs `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// No program on it can be run.
    pub no_exec: bool,
    /// Mount over a directory with entries or over a file with bytes, which are hidden then.
    pub over_non_empty: bool,
}

impl MountOptions {
    /// Read-only, for the mounting user alone, over an empty mount point.
    #[must_use]
    pub fn new(source: impl Into<String>, is_dir: bool) -> Self {
        Self {
            source: source.into(),
            subtype: "loopmount".to_owned(),
            read_only: true,
            is_dir,
            allow_other: false,
            no_exec: false,
            over_non_empty: false,
        }
    }
}

/// Mounts a new FUSE connection on `target` and gives the descriptor to serve it with; nosuid and
/// nodev always. Nothing on the mount answers before the descriptor is served, and the mount is
/// dead as soon as the descriptor is closed.
///
/// `target` may be relative and hold any byte. Symbolic links are not followed: the caller resolves
/// what was typed, once. Where the mount is made here, it is made on the very file that was checked.
///
/// # Errors
/// `Io` when a part of `target` is a symbolic link, `Denied` where a right is missing, `Unsupported` where FUSE or its helper is, `Io` else; the
/// hint says what to do.
pub fn mount(target: &Path, opts: &MountOptions) -> Result<OwnedFd> {
    check_name(&opts.source)?;
    check_name(&opts.subtype)?;
    let target = target::Target::open(target, opts)?;
    match direct::mount(&target, opts)? {
        direct::Outcome::Mounted(fd) => Ok(fd),
        direct::Outcome::NotPermitted => fusermount::mount(target.path(), opts),
    }
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only when nobody uses it.
    Normal,
    /// Take it out of the mount table now; it vanishes with its last user.
    Lazy,
}

/// What became of an unmount that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Unmounted {
    /// It is out of the mount table.
    Done,
    /// Somebody uses it; nothing was changed. Never with [`Mode::Lazy`].
    Busy,
    /// Nothing is mounted there.
    NotMounted,
}

/// Unmounts what is mounted on `target`, without asking the file system behind it anything: its
/// server may be dead. No part of `target` may be a symbolic link, which in the mount table none is.
///
/// # Errors
/// `Denied` where a right is missing, `Io` else.
pub fn unmount(target: &Path, mode: Mode) -> Result<Unmounted> {
    take_away(target, None, mode)
}

/// As [`unmount`], of the mount with this number in the mount table and of no other: where it is not
/// the one on top there, nothing is changed and the answer is [`Unmounted::NotMounted`].
///
/// The number is asked for right before the call that unmounts; the kernel has none that takes it.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_only(target: &Path, id: u64, mode: Mode) -> Result<Unmounted> {
    take_away(target, Some(id), mode)
}

fn take_away(target: &Path, id: Option<u64>, mode: Mode) -> Result<Unmounted> {
    let shown = target.display();
    let place = match Place::open(target) {
        Ok(place) => place,
        Err(error) if is_elsewhere(&error) => return Ok(Unmounted::NotMounted),
        Err(cause) => return Err(Error::io(format!("cannot find {shown}"), cause)),
    };
    let mut flags = rustix::mount::UnmountFlags::NOFOLLOW;
    if mode == Mode::Lazy {
        flags |= rustix::mount::UnmountFlags::DETACH;
    }
    let path = place.path();
    if id.is_some_and(|id| top_mount(&place).is_some_and(|top| top != id)) {
        return Ok(Unmounted::NotMounted);
    }
    match rustix::mount::unmount(&path, flags) {
        Ok(()) => Ok(Unmounted::Done),
        Err(Errno::BUSY) => Ok(Unmounted::Busy),
        Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(Unmounted::NotMounted),
        Err(Errno::PERM) => {
            let absolute = std::path::absolute(target)
                .map_err(|cause| Error::io(format!("cannot find {shown}"), cause))?;
            fusermount::unmount(&absolute, mode)
        }
        Err(errno) => Err(Error::io(format!("cannot unmount {shown}"), errno)),
    }
}

/// Whether the folder around a mount point is gone, or a symbolic link by now: then the mount is not
/// there.
fn is_elsewhere(error: &std::io::Error) -> bool {
    let number = error.raw_os_error();
    [libc::ENOENT, libc::ENOTDIR, libc::ELOOP]
        .map(Some)
        .contains(&number)
}

/// The number of the mount that is on top at `place`; `None` when the kernel does not tell. The
/// file system is not asked, and nothing is held open afterwards.
fn top_mount(place: &Place) -> Option<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::MNT_ID;
    if let Ok(found) = rustix::fs::statx(place.folder(), place.name(), flags, wanted)
        // The kernel says which fields it has filled in: this one since Linux 5.8.
        && StatxFlags::from_bits_retain(found.stx_mask).contains(wanted)
    {
        return Some(found.stx_mnt_id);
    }
    // Some file systems refuse even that once they have failed. Not the first choice, since the
    // mount is busy while it is open.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(
        place.folder(),
        place.name(),
        flags,
        rustix::fs::Mode::empty(),
    );
    mount_id(fd.ok()?.as_fd()).ok()
}

/// Source and subtype become part of an option string and of the mount table: nothing in them may
/// end an option or a field.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:+@".contains(c);
    if !name.is_empty() && name.len() <= 128 && name.chars().all(good) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsupported,
        format!("{name:?} cannot be the name of a mount: 1 to 128 of a-z A-Z 0-9 - _ . : + @"),
    ))
}
