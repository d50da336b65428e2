//! One fetch: a range, streamed into the store, resumed until it is whole or hopeless.

use std::sync::Arc;

use super::engine::Engine;
use super::failure::Failure;
use super::patience::Patience;
use super::remote::Body;
use super::store::{CHUNK, Memory, PAGE, copy_in};
use crate::{ByteRange, Error, Kind};

/// Where the bytes of a flight go, and how many have arrived.
#[derive(Debug)]
pub(super) struct Landing {
    /// The flight.
    pub(super) id: u64,
    range: ByteRange,
    /// The chunks that `range` touches.
    memories: Vec<Memory>,
    /// One past the last byte that has arrived.
    at: u64,
}

impl Landing {
    /// Nothing of `range` has arrived.
    pub(super) fn new(id: u64, range: ByteRange, memories: Vec<Memory>) -> Self {
        let at = range.start();
        Self {
            id,
            range,
            memories,
            at,
        }
    }

    /// What has not arrived.
    pub(super) fn missing(&self) -> ByteRange {
        ByteRange::between(self.at, self.range.end())
    }

    /// Stores `bytes`, which continue what has arrived and do not exceed it, and tells `engine`.
    ///
    /// True when there is progress, which only a whole page is: else a server that sends a byte now
    /// and then would be waited for without end.
    pub(super) fn store(&mut self, engine: &Engine, bytes: &[u8]) -> bool {
        let from = self.at;
        copy_in(&self.memories, self.range.start() / CHUNK, from, bytes);
        self.at = from.saturating_add(bytes.len() as u64);
        engine.arrived(self.id, from, self.at);
        from / PAGE < self.at / PAGE || self.at == self.range.end()
    }
}

/// Takes note that bytes have arrived at `at`.
///
/// # Errors
/// When there was no progress for too long.
pub(super) fn judge(patience: &mut Patience, progress: bool, at: u64) -> Result<(), Failure> {
    if progress {
        patience.progressed();
    } else if patience.is_over() {
        let what = format!("bytes trickle in too slowly at {at}");
        let error = Error::new(Kind::TimedOut, what);
        return Err(Failure::Final(patience.give_up(error, None)));
    }
    Ok(())
}

/// Fetches all that is missing and tells the engine how far it is and how it ended. `body` is the
/// answer that was already received, if any.
pub(super) async fn run(engine: Arc<Engine>, landing: Landing, mut body: Option<Body>) {
    let id = landing.id;
    let mut fetch = Fetch {
        patience: engine.remote.patience(),
        engine: &engine,
        landing,
    };
    let result = loop {
        let failure = match fetch.attempt(body.take()).await {
            Ok(()) if fetch.landing.missing().is_empty() => break Ok(()),
            // The server sent less than it was asked for, as it may.
            Ok(()) => continue,
            Err(failure) => failure,
        };
        match failure {
            Failure::Transient(error, asked) => {
                if let Err(error) = fetch.patience.pause(error, asked).await {
                    break Err(error);
                }
                engine.remote.retried();
            }
            Failure::Changed(error) => {
                tracing::error!("{error}");
                engine.die(error.clone());
                break Err(error);
            }
            Failure::Final(error) | Failure::Expired(error) | Failure::Absent(error) => {
                break Err(error);
            }
        }
    };
    engine.ended(id, result);
}

struct Fetch<'a> {
    engine: &'a Arc<Engine>,
    landing: Landing,
    patience: Patience,
}

impl Fetch<'_> {
    /// One request for what is missing, and its body up to the end or a failure.
    async fn attempt(&mut self, body: Option<Body>) -> Result<(), Failure> {
        let remote = &self.engine.remote;
        let mut body = match body {
            Some(body) => body,
            None => remote.get(self.landing.missing(), &self.patience).await?,
        };
        let end = body.range.end();
        while self.landing.at < end {
            match remote.next(&mut body, &self.patience).await? {
                Some(bytes) => self.take(bytes.as_ref(), end)?,
                None => {
                    let what =
                        format!("the answer for {} ended at {}", body.range, self.landing.at);
                    return Err(Failure::transient(Error::new(Kind::Io, what)));
                }
            }
        }
        let missing = self.landing.missing();
        if !missing.is_empty() && body.range.len() < PAGE && !body.ends_part {
            // It may send less than it was asked for, but this would never end.
            let what = format!(
                "only {} are sent, asked for all up to {}",
                body.range,
                missing.end()
            );
            return Err(Failure::transient(Error::new(Kind::Io, what)));
        }
        Ok(())
    }

    /// Stores what has arrived. What exceeds the answer's own range is left alone.
    fn take(&mut self, bytes: &[u8], end: u64) -> Result<(), Failure> {
        let room = usize::try_from(end - self.landing.at).unwrap_or(usize::MAX);
        let progress = self
            .landing
            .store(self.engine, &bytes[..bytes.len().min(room)]);
        judge(&mut self.patience, progress, self.landing.at)
    }
}
