//! Everything that knows crate fuser: the session, who answers a request, and the two servers.

mod buffers;
mod file_server;
mod node_set;
mod session;
mod tree_server;
mod turns;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileHandle, FileType, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use nbdserve::Error;

pub(crate) use file_server::FileServer;
pub use session::Session;
pub(crate) use tree_server::TreeServer;

/// How long the kernel may believe what cannot change. It drops it anyway when memory is short.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Largest request: more than one page list of the kernel (256 pages by default) never comes.
const MAX_REQUEST: u32 = 1 << 20;
/// Requests of read-ahead and of asynchronous reads that the kernel keeps in flight.
const MAX_BACKGROUND: u16 = 128;

/// Asks the kernel for the large and parallel requests that every server here can answer.
fn configure(config: &mut KernelConfig, wanted: InitFlags) {
    for flag in (wanted | InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_MAX_PAGES).iter() {
        // What an old kernel does not have is done without.
        let _ = config.add_capabilities(flag);
    }
    // Both refuse only zero and far more than this. Read-ahead stays at the kernel's offer, which
    // is its maximum; see `mount::set_read_ahead`.
    let _ = config.set_max_write(MAX_REQUEST);
    let _ = config.set_max_background(MAX_BACKGROUND);
}

/// How the kernel is answered when it opens what cannot change. Where it understands, it is told
/// once that it need not ask: it then opens by itself, keeps its cache, and sends no release.
#[derive(Clone, Copy, Debug, Default)]
struct Opens {
    files_unasked: bool,
    dirs_unasked: bool,
}

impl Opens {
    /// What this kernel understands.
    fn of(config: &KernelConfig) -> Self {
        let has = |flag| config.capabilities().contains(flag);
        Self {
            files_unasked: has(InitFlags::FUSE_NO_OPEN_SUPPORT),
            dirs_unasked: has(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        }
    }

    fn reply_file(self, reply: ReplyOpen) {
        if self.files_unasked {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn reply_dir(self, reply: ReplyOpen) {
        if self.dirs_unasked {
            reply.error(Errno::ENOSYS);
        } else {
            let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
            reply.opened(FileHandle(0), flags);
        }
    }
}

/// The log of a mount's failures.
#[derive(Debug, Default)]
struct Failures {
    /// What was logged last.
    last: Mutex<String>,
}

impl Failures {
    /// The errno of a failure, which is logged here, at the one place that sees all of them. What
    /// every reader of a bad region meets again and again is logged once.
    fn errno(&self, what: &str, error: &Error) -> Errno {
        let text = error.report().to_string();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            tracing::warn!("{what}: {text}");
            *last = text;
        }
        Errno::from_i32(error.errno())
    }
}

/// Seconds and nanoseconds since 1970, before it too. Nanoseconds of a second and more carry.
fn system_time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// The type in the high bits of a mode, `None` for a value that is none.
fn file_type(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        _ => return None,
    })
}
