//! One fetch: a range, streamed into the store, resumed until it is whole or hopeless.

use std::sync::Arc;

use super::engine::Engine;
use super::failure::Failure;
use super::patience::Patience;
use super::remote::Body;
use super::store::{CHUNK, Memory, PAGE, copy_in};
use crate::{ByteRange, Error, Kind};

/// Fetches `range` into `memories`, the chunks it touches, and tells the engine how far it is and
/// how it ended. `body` is the answer that was already received, if any.
pub(super) async fn run(
    engine: Arc<Engine>,
    id: u64,
    range: ByteRange,
    memories: Vec<Memory>,
    mut body: Option<Body>,
) {
    let mut fetch = Fetch {
        patience: engine.remote.patience(),
        engine: &engine,
        id,
        range,
        memories: &memories,
        at: range.start(),
    };
    let result = loop {
        let failure = match fetch.attempt(body.take()).await {
            Ok(()) if fetch.at == range.end() => break Ok(()),
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
    id: u64,
    range: ByteRange,
    memories: &'a [Memory],
    patience: Patience,
    /// One past the last byte that has arrived.
    at: u64,
}

impl Fetch<'_> {
    /// One request for what is missing, and its body up to the end or a failure.
    async fn attempt(&mut self, body: Option<Body>) -> Result<(), Failure> {
        let remote = &self.engine.remote;
        let mut body = match body {
            Some(body) => body,
            None => {
                let missing = ByteRange::between(self.at, self.range.end());
                remote.get(missing, &self.patience).await?
            }
        };
        let end = body.range.end();
        while self.at < end {
            match remote.next(&mut body, &self.patience).await? {
                Some(bytes) => self.take(bytes.as_ref(), end)?,
                None => {
                    let what = format!("the answer for {} ended at {}", body.range, self.at);
                    return Err(Failure::transient(Error::new(Kind::Io, what)));
                }
            }
        }
        if self.at < self.range.end() && body.range.len() < PAGE && !body.ends_part {
            // It may send less than it was asked for, but this would never end.
            let what = format!(
                "only {} are sent, asked for all up to {}",
                body.range,
                self.range.end()
            );
            return Err(Failure::transient(Error::new(Kind::Io, what)));
        }
        Ok(())
    }

    /// Stores what has arrived. What exceeds the answer's own range is left alone.
    ///
    /// Only a whole page is progress: else a server that sends a byte now and then would be
    /// waited for without end.
    fn take(&mut self, bytes: &[u8], end: u64) -> Result<(), Failure> {
        let room = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        let from = self.at;
        copy_in(self.memories, self.range.start() / CHUNK, from, bytes);
        self.at = from + bytes.len() as u64;
        self.engine.arrived(self.id, from, self.at);
        if from / PAGE < self.at / PAGE || self.at == self.range.end() {
            self.patience.progressed();
        } else if self.patience.is_over() {
            let what = format!("bytes trickle in too slowly at {}", self.at);
            let error = Error::new(Kind::TimedOut, what);
            return Err(Failure::Final(self.patience.give_up(error, None)));
        }
        Ok(())
    }
}
