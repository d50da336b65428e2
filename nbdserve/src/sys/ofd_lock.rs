//! Record locks that belong to an open file description (fcntl(2), "Open file description
//! locks"): they go with the descriptor to another process and end with its last copy.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes a shared lock on the byte at `offset`. `false` when somebody holds an exclusive one.
///
/// # Errors
/// When the file system has no locks, or the descriptor is not open for reading.
pub(crate) fn share_byte(fd: BorrowedFd<'_>, offset: i64) -> io::Result<bool> {
    match call(fd, libc::F_OFD_SETLK, libc::F_RDLCK, offset) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Gives back a lock on the byte at `offset`, if there is one.
///
/// # Errors
/// When the file system has no locks.
pub(crate) fn release_byte(fd: BorrowedFd<'_>, offset: i64) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLK, libc::F_UNLCK, offset).map(drop)
}

/// Whether another open file description holds any lock on the byte at `offset`.
///
/// # Errors
/// When the file system has no locks.
pub(crate) fn byte_is_locked(fd: BorrowedFd<'_>, offset: i64) -> io::Result<bool> {
    // What would stand in the way of an exclusive lock is any lock at all.
    let found = call(fd, libc::F_OFD_GETLK, libc::F_WRLCK, offset)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn call(fd: BorrowedFd<'_>, command: i32, kind: i32, offset: i64) -> io::Result<libc::flock> {
    // SAFETY: a struct of integers; zero is a value of each (l_pid must be zero).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // F_RDLCK and F_WRLCK are 0 and 1, SEEK_SET is 0: they fit the short fields.
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = offset;
    lock.l_len = 1;
    // SAFETY: the descriptor is borrowed, so open; both commands take a pointer to a flock, which
    // outlives the call and which they may write.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock)
}
