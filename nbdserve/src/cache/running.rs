//! The decoders of a layer that run, for whoever waits until none does.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Closing waits this long for decoders to stop.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How many decoders of a layer run. Apart from [`super::shared::Shared`], so that a thread counts until it holds
/// nothing of that any more: what is below is closed when the layer is.
#[derive(Debug, Default)]
pub(super) struct Running {
    count: Mutex<usize>,
    ended: Condvar,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until none runs, with a bound.
    pub(super) fn wait(&self) {
        let running = self.lock();
        let waited = self
            .ended
            .wait_timeout_while(running, STOP_LIMIT, |running| *running > 0);
        drop(waited);
    }
}

/// Counts as a running decoder while it lives, also when that panics.
#[derive(Debug)]
pub(super) struct Run(Arc<Running>);

impl Run {
    pub(super) fn begin(running: &Arc<Running>) -> Self {
        *running.lock() += 1;
        Self(Arc::clone(running))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.ended.notify_all();
    }
}
