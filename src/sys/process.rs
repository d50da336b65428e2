//! What this process can wait for, and say about itself.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nbdserve::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// `linux/prctl.h`
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Waits until `fd` is readable or hung up; false when it is not within `limit`.
///
/// # Errors
/// What the system says.
pub fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    wait_for(fd, PollFlags::POLLIN, limit)
}

/// Waits for `events` on `fd`; false when there are none within `limit`.
pub(super) fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last wait is not one of zero in a loop.
        let millis = u32::try_from(left.as_millis().saturating_add(1)).unwrap_or(u32::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let timeout = if left.is_zero() {
            PollTimeout::ZERO
        } else {
            timeout
        };
        match poll(&mut [PollFd::new(fd, events)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// From now on children of a child of ours that has ended become ours (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// What the system says.
pub fn adopt_orphans() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Waits until this process has no children any more; false when it still has at the end of `limit`.
/// How they ended is lost.
pub fn wait_for_children(limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() >= deadline => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(2)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
}

/// Keeps what the process takes close to what its budget counts. Decoded pieces have mappings of
/// their own and do not come here. Large decoders get one each, too, so that no hole in a heap is
/// left of them; of smaller ones (a table of bzip2, a window of zstd) the heap keeps a few, since
/// new memory costs a page fault for each page, for each block again. Two heaps serve all threads.
/// Left alone, glibc moves these bounds as it goes. To be called before threads are started.
pub fn bound_heap() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 4 << 20;
        const KEPT: libc::c_int = 8 << 20;
        const HEAPS: libc::c_int = 2;
        // SAFETY: the calls take integers and set parameters of the allocator under its own lock.
        // A refused one leaves the default in place.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
            libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        }
    }
}

/// `PR_SET_IO_FLUSHER` (Linux 5.6): this thread, and all it starts from now on, serve block
/// devices of this machine. Their memory allocations will not wait for such a device to be
/// written back, which could be waiting for us. To be called before threads are started.
///
/// # Errors
/// `Denied` without `CAP_SYS_RESOURCE`, else what the system says.
pub fn set_io_flusher() -> Result<()> {
    // SAFETY: the call takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    Errno::result(result).map(drop).map_err(|errno| {
        Error::io(
            "cannot mark this process as one that serves block devices",
            errno,
        )
        .hint(
            "with writes under memory pressure such a mount can hang; CAP_SYS_RESOURCE prevents it",
        )
    })
}

/// From now on nobody can look into the memory of this process: no core dump is written of it, and
/// processes of the same user cannot trace it or read its /proc/PID/mem. It can still look at itself.
/// A program that it executes is not affected.
pub fn forbid_dumps() {
    // Cannot fail with this value.
    let _ = nix::sys::prctl::set_dumpable(false);
}

/// Beside [`forbid_dumps`], for a process that starts no programs of others: no core dumps either of
/// what it executes.
pub fn forbid_core_files() {
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // To lower a limit needs no right.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
}

/// Takes over a descriptor that was passed by its number, so that no program that is started from
/// now on gets it. The first three stay open beside.
///
/// # Errors
/// When it is not open.
pub fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers; a wrong number is an error.
    let taken = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    let taken = Errno::result(taken)?;
    if number > 2 {
        // SAFETY: the number was passed to this process for this use; nothing here knows it.
        unsafe { libc::close(number) };
    }
    // SAFETY: it was just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(taken) })
}

/// Closes every descriptor from `first` on. To be called before this process has made any of its
/// own: those it has are what a parent of it left open without close-on-exec.
pub fn close_inherited(first: RawFd) {
    // SAFETY: the call takes integers; nothing in this process knows these numbers.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, RawFd::MAX, 0) };
    if closed != 0 {
        // Before Linux 5.9, or forbidden by a filter of system calls.
        close_each(first);
    }
}

fn close_each(first: RawFd) {
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let number = |name: fs::DirEntry| name.file_name().to_str()?.parse::<RawFd>().ok();
    // All are read before the first is closed: one of them is what they are read from.
    let open: Vec<_> = open.flatten().filter_map(number).collect();
    for fd in open.into_iter().filter(|fd| *fd >= first) {
        // SAFETY: as above; a number that is closed already is an error.
        unsafe { libc::close(fd) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_was_inherited_is_closed_from_a_number_on() {
        // Numbers that no other test of this process gets.
        for (first, close) in [(900, close_inherited as fn(RawFd)), (950, close_each)] {
            let file = tempfile::tempfile().unwrap();
            let open_at = |number: RawFd| {
                // SAFETY: the call takes integers and closes nothing.
                let fd = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, number) };
                assert_eq!(fd, number);
            };
            // SAFETY: the call takes integers and changes nothing.
            let is_open = |number: RawFd| unsafe { libc::fcntl(number, libc::F_GETFD) } != -1;
            for number in [first - 1, first, first + 7] {
                open_at(number);
            }
            close(first);
            let left = [first - 1, first, first + 7].map(is_open);
            assert_eq!(left, [true, false, false], "from {first} on");
        }
    }
}
