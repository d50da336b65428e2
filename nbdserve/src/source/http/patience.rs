//! When to ask again, and when to give up.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use crate::{Error, Kind};

/// The pause before the first repetition; each further one is up to twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer, unless the server asks for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A single wait for the server to say something ends after this part of the limit ...
const STALL_PART: u32 = 4;
/// ... or after this time: a fresh connection is then more likely to help than more waiting.
const LONGEST_STALL: Duration = Duration::from_secs(15);
/// An attempt that has less than this part of such a wait to itself is not made: it would fail for want of time,
/// and that would be told in place of what is wrong.
const LEAST_PART: u32 = 4;

/// Repeats something until it gets no further for a time. However long the whole takes does not
/// matter.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    since: Instant,
    failures: u32,
}

impl Patience {
    /// Gives up after `limit` without progress.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Instant::now(),
            failures: 0,
        }
    }

    /// There was progress: time and pauses start anew.
    pub(super) fn progressed(&mut self) {
        self.since = Instant::now();
        self.failures = 0;
    }

    /// How long to wait for the server's next word, at least a moment.
    pub(super) fn stall(&self) -> Duration {
        let most = self.longest_stall();
        most.min(self.left()).max(Duration::from_millis(1))
    }

    fn longest_stall(&self) -> Duration {
        (self.limit / STALL_PART).min(LONGEST_STALL)
    }

    /// Whether the time is over.
    pub(super) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.since.elapsed())
    }

    /// Waits before the next attempt: longer after each failure, by chance so that many waiting
    /// clients do not come back at once, and never shorter than the server asks.
    ///
    /// # Errors
    /// `TimedOut`, because of `error`, when the limit would pass before the wait is over, or so soon after it
    /// that no answer could come.
    pub(super) async fn pause(
        &mut self,
        error: Error,
        asked: Option<Duration>,
    ) -> Result<(), Error> {
        let backoff = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_PAUSE);
        let pause = jitter(backoff).max(asked.unwrap_or_default());
        self.failures = self.failures.saturating_add(1);
        let least = self.longest_stall() / LEAST_PART;
        if pause.saturating_add(least) >= self.left() {
            return Err(self.give_up(error, asked));
        }
        tracing::warn!(
            "attempt {} failed, next in {pause:?}: {error}",
            self.failures
        );
        tokio::time::sleep(pause).await;
        // It may have taken longer, on a busy machine or one that was suspended.
        if self.left() < least / 2 {
            return Err(self.give_up(error, asked));
        }
        Ok(())
    }

    /// The end of the patience.
    pub(super) fn give_up(&self, error: Error, asked: Option<Duration>) -> Error {
        let (attempts, time) = (self.failures.max(1), self.since.elapsed());
        let what = match asked {
            Some(asked) if asked > self.limit => format!(
                "the server wants to be left alone for {asked:?}, the limit is {:?}",
                self.limit
            ),
            _ => format!(
                "no progress for {time:.1?} in {attempts} attempts, the limit is {:?}",
                self.limit
            ),
        };
        Error::new(Kind::TimedOut, what).caused_by(error)
    }
}

/// Between half of `pause` and all of it.
fn jitter(pause: Duration) -> Duration {
    // The standard library's only source of chance: each RandomState hashes with other keys.
    let chance = RandomState::new().build_hasher().finish() % 1024;
    pause / 2 + (pause / 2048).saturating_mul(u32::try_from(chance).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_vary_within_their_bounds() {
        let pause = Duration::from_secs(2);
        let found: Vec<_> = (0..100).map(|_| jitter(pause)).collect();
        assert!(found.iter().all(|it| *it >= pause / 2 && *it <= pause));
        assert!(found.iter().any(|it| *it != found[0]));
    }

    #[test]
    fn a_wait_that_is_too_long_is_not_begun() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let mut patience = Patience::new(Duration::from_secs(60));
        let busy = Error::new(Kind::Io, "busy");
        let asked = Some(Duration::from_secs(3600));
        let error = runtime
            .unwrap()
            .block_on(patience.pause(busy, asked))
            .unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
        assert!(error.to_string().contains("3600"), "{error}");
    }

    #[test]
    fn an_attempt_that_has_no_time_for_an_answer_is_not_begun() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        // The wait would be over before the limit, by much less than a server needs to answer.
        let limit = Duration::from_secs(60);
        let mut patience = Patience::new(limit);
        let broken = Error::new(Kind::Io, "502 Bad Gateway");
        let asked = Some(limit.checked_sub(Duration::from_secs(3)).unwrap());
        let wait = async {
            let wait = patience.pause(broken, asked);
            tokio::time::timeout(Duration::from_secs(10), wait).await
        };
        let ended = runtime.block_on(wait);
        let error = ended.expect("it waits").unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
        let said = error.report().to_string();
        assert!(said.contains("502 Bad Gateway"), "{said}");
    }
}
