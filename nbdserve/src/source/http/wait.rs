//! A reader that waits for bytes on their way.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::engine::Limits;
use crate::{Error, Kind, Result};

/// A waiting reader looks this often whether it shall stop.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// One reader's wait, and when it ends.
pub(super) struct Wait {
    limits: Limits,
    began: Instant,
    /// The flight it waits for and how far that was, since when.
    seen: Option<(u64, u64)>,
    since: Instant,
    failed: Option<Arc<OnceLock<Error>>>,
}

impl Wait {
    pub(super) fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            began: now,
            seen: None,
            since: now,
            failed: None,
        }
    }

    /// What it waited for is there.
    pub(super) fn forget(&mut self) {
        self.seen = None;
        self.failed = None;
    }

    /// Fails as the flight did that this reader waited for.
    pub(super) fn check_failed(&self) -> Result<()> {
        match self.failed.as_ref().and_then(|failed| failed.get()) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Fails when the flight got no further for too long, which it would itself notice earlier
    /// unless it waits for others; or when the time for an answer is over.
    pub(super) fn check_time(
        &mut self,
        seen: (u64, u64),
        failed: Arc<OnceLock<Error>>,
    ) -> Result<()> {
        if self.seen != Some(seen) {
            self.seen = Some(seen);
            self.since = Instant::now();
        }
        self.failed = Some(failed);
        let late = |what: &str, limit: Duration| {
            Err(Error::new(
                Kind::TimedOut,
                format!("{what} within {limit:?}"),
            ))
        };
        // The flight itself has more to say about it, so it goes first.
        let most = self.limits.no_progress;
        let limit = most.saturating_add(most / 16).saturating_add(2 * LOOK);
        if self.since.elapsed() >= limit {
            return late("no byte has come", limit);
        }
        match self.limits.answer_within {
            Some(limit) if self.began.elapsed() >= limit => late("not all bytes came", limit),
            _ => Ok(()),
        }
    }
}
