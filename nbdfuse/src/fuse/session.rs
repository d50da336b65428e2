//! A served connection: its threads, its end, and what can be told to the kernel meanwhile.

use std::fs::OpenOptions;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, INodeNo, Notifier, SessionACL};
use nbdserve::{Error, Kind, Result};

/// A FUSE connection being served by background threads of this process.
///
/// Dropping it stops nothing: a connection ends with its unmount, or with the process. Its
/// descriptors are close-on-exec and held by this process alone.
pub struct Session {
    state: Arc<State>,
    notifier: Notifier,
    /// Drops what the server itself has cached, and says which nodes the kernel may have.
    stale: Arc<dyn Fn() -> Vec<u64> + Send + Sync>,
    invalidating: Arc<AtomicBool>,
    /// At end of file as soon as the session has ended.
    ended: PipeReader,
}

#[derive(Default)]
struct State {
    /// How the session ended, once it has.
    end: Mutex<Option<Result<()>>>,
    changed: Condvar,
}

impl Session {
    /// Serves `fd` with `filesystem` on `loops` threads. The kernel's first request has been
    /// answered when this returns, so the mount is usable.
    pub(crate) fn start<F: Filesystem>(
        filesystem: F,
        fd: OwnedFd,
        loops: usize,
        stale: impl Fn() -> Vec<u64> + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(loops);
        // A queue of its own for each loop, where we may open one.
        config.clone_fd = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .is_ok();
        // Who may come in is the kernel's affair: it knows the mount's owner and allow_other.
        let session = fuser::Session::from_fd(filesystem, fd, SessionACL::All, config)
            .map_err(|cause| Error::io("the FUSE connection ended before it began", cause))?;
        let (ended, end) = std::io::pipe()
            .map_err(|cause| Error::io("cannot make a pipe for a FUSE session", cause))?;
        let notifier = session.notifier();
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        thread::Builder::new()
            .name("fuse-session".to_owned())
            .spawn(move || run(session, &shared, end))
            .map_err(|cause| Error::io("cannot start a thread for FUSE", cause))?;
        Ok(Self {
            state,
            notifier,
            stale: Arc::new(stale),
            invalidating: Arc::default(),
            ended,
        })
    }

    /// Whether the kernel has ended the connection: it is unmounted, and nobody uses it any more.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.lock().is_some()
    }

    /// Waits until the connection has ended, at most `limit`; how it ended, or `None` when it has
    /// not. [`AsFd`] gives a descriptor for poll(2), readable from the end on.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<Result<()>> {
        let deadline = Instant::now().checked_add(limit);
        let mut end = self.lock();
        while end.is_none() {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => limit,
            };
            if left.is_zero() {
                break;
            }
            (end, _) = self
                .state
                .changed
                .wait_timeout(end, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        end.clone()
    }

    /// Waits for the end as [`Self::wait`] does. To be called once the mount is out of the mount
    /// table: only the kernel can end a connection whose descriptor is open.
    ///
    /// # Errors
    /// `TimedOut` when somebody still uses the mount at the deadline; the threads go on serving.
    pub fn shutdown(&self, limit: Duration) -> Result<()> {
        self.wait(limit).unwrap_or_else(|| {
            Err(Error::new(
                Kind::TimedOut,
                format!("the mount is still in use after {} s", limit.as_secs()),
            ))
        })
    }

    /// Drops what was cached of this mount, here and in the kernel: data, attributes, listings,
    /// symbolic links. (Names that the kernel has looked up stay; their inodes are read again.)
    /// Returns at once and works in a thread of its own, because the kernel waits for reads
    /// in flight: so it may be called from within one. Calls during the work cause one more round.
    pub fn invalidate_all(&self) {
        if self.invalidating.swap(true, Ordering::AcqRel) {
            return;
        }
        let (notifier, stale) = (self.notifier.clone(), Arc::clone(&self.stale));
        let pending = Arc::clone(&self.invalidating);
        let started = thread::Builder::new()
            .name("fuse-invalidate".to_owned())
            .spawn(move || {
                // Reset first: what is poisoned from here on needs another round.
                pending.store(false, Ordering::Release);
                for node in stale() {
                    // Only fails when the mount is gone, and its cache with it.
                    if notifier.inval_inode(INodeNo(node), 0, 0).is_err() {
                        break;
                    }
                }
            });
        if let Err(cause) = started {
            self.invalidating.store(false, Ordering::Release);
            tracing::error!("cannot drop the kernel's cache: {cause}");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Result<()>>> {
        self.state
            .end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Runs the loops until the kernel ends the connection, then wakes whoever waits for that.
fn run<F: Filesystem>(session: fuser::Session<F>, state: &State, end: PipeWriter) {
    let result = session
        .run()
        .map_err(|cause| Error::io("the FUSE connection failed", cause));
    if let Err(error) = &result {
        tracing::error!("{}", error.report());
    }
    *state.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    state.changed.notify_all();
    drop(end);
}
