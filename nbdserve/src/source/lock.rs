//! Locks against a second writer of an image, those that QEMU takes.
//!
//! QEMU's `file-posix` driver tells other processes what it does with an image, and what it does
//! not let others do, by shared locks on single bytes of the file: byte 100 + n for each
//! permission n that it uses, byte 200 + n for each one that it does not share. Having taken its
//! own, it looks whether anybody holds a byte that contradicts them. (QEMU, `block/file-posix.c`,
//! `raw_apply_lock_bytes` and `raw_check_lock_bytes`; checked against qemu-nbd 10.0.)

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::OpenMode;
use crate::error::shell;
use crate::sys::ofd_lock;
use crate::{Error, Kind, Result};

/// Offset of the bytes that say what a process does.
const USED_BASE: i64 = 100;
/// Offset of the bytes that say what a process does not let others do.
const FORBIDDEN_BASE: i64 = 200;

/// A conflict that lasts less than this is none.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// What a process may do with an image, by QEMU's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    ConsistentRead = 0,
    Write = 1,
    Resize = 3,
}

/// Neither a reader nor a writer stands a second writer.
const FORBIDDEN: &[Permission] = &[Permission::Write, Permission::Resize];

impl Permission {
    fn used(self) -> i64 {
        USED_BASE + self as i64
    }

    fn forbidden(self) -> i64 {
        FORBIDDEN_BASE + self as i64
    }

    /// What is wrong when another process uses this permission.
    fn used_by_other(self) -> &'static str {
        match self {
            Self::ConsistentRead => "reads it",
            Self::Write => "writes it",
            Self::Resize => "may change its size",
        }
    }

    /// What is wrong when another process forbids this permission.
    fn forbidden_by_other(self) -> &'static str {
        match self {
            Self::ConsistentRead => "is changing it as a whole",
            Self::Write => "reads it and relies on its not being written",
            Self::Resize => "relies on its size",
        }
    }
}

/// Takes the locks for `mode` on the open file description of `fd`; they end when its last
/// descriptor is closed. On a file system without locks nothing happens.
///
/// # Errors
/// `Denied` when another process uses the image in a way that does not go together with this.
pub(super) fn take(fd: BorrowedFd<'_>, name: &str, mode: OpenMode) -> Result<()> {
    match patiently(|| try_take(fd, mode)) {
        Ok(None) => Ok(()),
        Ok(Some(conflict)) => Err(Error::new(
            Kind::Denied,
            format!("{name} is in use: another process {conflict}"),
        )
        .hint(format!(
            "end the other program first; fuser -v {} names it",
            shell(name)
        ))),
        Err(error) => {
            tracing::info!("{name}: opened without a lock: {error}");
            Ok(())
        }
    }
}

/// Tells others that the size changes from now on, as [`take`] has told that it is written.
///
/// # Errors
/// As [`take`].
pub(super) fn take_resize(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    let resize = Permission::Resize;
    let taken = patiently(|| {
        ofd_lock::share_byte(fd, resize.used())?;
        let forbidden = ofd_lock::byte_is_locked(fd, resize.forbidden())?;
        Ok(forbidden.then(|| resize.forbidden_by_other()))
    });
    match taken {
        Ok(None) => Ok(()),
        Ok(Some(conflict)) => {
            let what = format!("{name} is in use: another process {conflict}");
            Err(Error::new(Kind::Denied, what))
        }
        // There were no locks when it was opened, either.
        Err(_) => Ok(()),
    }
}

/// Tries until there is no conflict, for a moment: a child that was forked while somebody had the
/// image open holds his locks until it has become another program, and who is being ended holds them
/// until he is.
fn patiently(
    take: impl FnMut() -> io::Result<Option<&'static str>>,
) -> io::Result<Option<&'static str>> {
    repeat(take, |taken| matches!(taken, Ok(Some(_))))
}

/// As long as what comes of `attempt` says that another has the image, in `is_busy`'s view, tries again, for a
/// moment.
pub(super) fn repeat<T>(mut attempt: impl FnMut() -> T, is_busy: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = attempt();
        if !is_busy(&found) || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
}

/// `None` when the locks were taken, else what another process does; then none is held.
fn try_take(fd: BorrowedFd<'_>, mode: OpenMode) -> io::Result<Option<&'static str>> {
    let used: &[Permission] = match mode {
        OpenMode::ReadOnly => &[Permission::ConsistentRead],
        OpenMode::Write => &[Permission::ConsistentRead, Permission::Write],
    };
    let told = used.iter().map(|permission| permission.used());
    let told: Vec<_> = told
        .chain(FORBIDDEN.iter().map(|permission| permission.forbidden()))
        .collect();
    let conflict = tell_and_look(fd, used, &told);
    if !matches!(conflict, Ok(None)) {
        // Who tries again must not be in the way of others meanwhile.
        for byte in told {
            ofd_lock::release_byte(fd, byte)?;
        }
    }
    conflict
}

/// First tell, then look: of two that start at once at least one sees the other.
fn tell_and_look(
    fd: BorrowedFd<'_>,
    used: &[Permission],
    told: &[i64],
) -> io::Result<Option<&'static str>> {
    for byte in told {
        if !ofd_lock::share_byte(fd, *byte)? {
            return Ok(Some("has locked it for itself"));
        }
    }
    for permission in FORBIDDEN {
        if ofd_lock::byte_is_locked(fd, permission.used())? {
            return Ok(Some(permission.used_by_other()));
        }
    }
    for permission in used {
        if ofd_lock::byte_is_locked(fd, permission.forbidden())? {
            return Ok(Some(permission.forbidden_by_other()));
        }
    }
    Ok(None)
}
