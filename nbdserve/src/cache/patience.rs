//! How long and for what a reader of a block waits, and what that comes to.

use std::time::{Duration, Instant};

use crate::{Error, Kind, Result};

/// A wait looks this often whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// What a wait for bytes of a block has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    Ready,
    /// The block was dropped; the caller asks for it anew.
    Again,
}

/// How long and for what a reader waits.
pub(super) struct Patience<'a> {
    /// Ends the wait with an error.
    pub(super) stop: &'a dyn Fn() -> Result<()>,
    /// Grows when anything is decoded anywhere: a block in a queue counts that as progress.
    pub(super) elsewhere: &'a dyn Fn() -> u64,
    /// Longest time without progress.
    pub(super) limit: Duration,
    /// Wait for the check at the block's end.
    pub(super) verify: bool,
}

impl Patience<'_> {
    /// How long to wait before the next look.
    pub(super) fn look(&self) -> Duration {
        LOOK.min(self.limit)
    }

    /// No progress for too long: `ready` of the `len` bytes of the block are there.
    fn exhausted(&self, ready: u64, len: u64) -> Error {
        let seconds = self.limit.as_secs_f32();
        let what = format!(
            "no progress in decoding for {seconds} s ({ready} of {len} bytes of the block are there)"
        );
        Error::new(Kind::TimedOut, what)
    }
}

/// A wait that goes on.
pub(super) struct Wait<'a> {
    patience: &'a Patience<'a>,
    /// Signs of life that were seen last, of the block's decoder and elsewhere, and when they changed.
    seen: Option<(u64, u64)>,
    since: Instant,
}

impl<'a> Wait<'a> {
    pub(super) fn begin(patience: &'a Patience<'a>) -> Self {
        Self {
            patience,
            seen: None,
            since: Instant::now(),
        }
    }

    /// Whether to wait on for a block of which `ready` of `len` bytes are there; `signs` of life.
    ///
    /// # Errors
    /// `TimedOut` when these have not changed for too long, or what [`Patience::stop`] says.
    pub(super) fn check(&mut self, signs: (u64, u64), ready: u64, len: u64) -> Result<()> {
        (self.patience.stop)()?;
        if self.seen != Some(signs) {
            self.seen = Some(signs);
            self.since = Instant::now();
        } else if self.since.elapsed() >= self.patience.limit {
            return Err(self.patience.exhausted(ready, len));
        }
        Ok(())
    }
}
