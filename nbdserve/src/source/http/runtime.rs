//! The thread that does the waiting for the network.

use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::cx::Cancel;
use crate::{Error, Kind, Result};

/// A wait looks this often whether it shall stop.
const LOOK: Duration = Duration::from_millis(20);

/// A tokio runtime that nobody waits for when it ends: a name server may keep a thread of it
/// blocked for a long time.
#[derive(Debug)]
pub(super) struct Worker(Mutex<Option<Runtime>>);

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Io` when the system has no more threads or descriptors.
    pub(super) fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            // For name look-ups.
            .max_blocking_threads(2)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot start a thread for the network", error))?;
        Ok(Self(Mutex::new(Some(runtime))))
    }

    /// What starts tasks on the thread.
    ///
    /// # Errors
    /// `Io` after [`Self::stop`].
    pub(super) fn handle(&self) -> Result<Handle> {
        let runtime = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = runtime.as_ref().ok_or_else(stopped)?;
        Ok(runtime.handle().clone())
    }

    /// Runs `task` to its end, from a thread that may itself belong to another runtime.
    ///
    /// # Errors
    /// What the task says; `Io` when `cancel` is set meanwhile.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T>> + Send + 'static,
        cancel: &Cancel,
    ) -> Result<T> {
        let (sender, receiver) = sync_channel(1);
        self.handle()?.spawn(async move {
            // Nobody listens any more after a cancel.
            let _ = sender.send(task.await);
        });
        loop {
            cancel.check()?;
            match receiver.recv_timeout(LOOK) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
            }
        }
    }

    /// Ends all tasks, without waiting for them.
    pub(super) fn stop(&self) {
        let mut runtime = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

fn stopped() -> Error {
    Error::new(Kind::Io, "the thread for the network has ended")
}
