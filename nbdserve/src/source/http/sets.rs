//! One fetch of several ranges: asked for with one request, streamed into the store as they come,
//! and given back to be fetched one by one where the server does not go along.

use std::sync::Arc;

use super::answer::same_length;
use super::engine::Engine;
use super::failure::Failure;
use super::fetch::{Landing, judge};
use super::multipart::{Event, Multipart};
use super::patience::Patience;
use super::remote::{SetBody, SetParts};
use crate::{ByteRange, Error, Kind};

/// Answers in a row that bring nothing; then the ranges are asked for one by one.
const MOST_IN_VAIN: u32 = 2;
/// Behind the last byte that is wanted, so much is read in order to keep the connection.
const MOST_DRAINED: u64 = 4096;

/// Fetches all that is missing of `landings`, which are in order and lie in one file, and tells the
/// engine how far each is and how it ended. What cannot be had this way is given back.
pub(super) async fn run(engine: Arc<Engine>, landings: Vec<Landing>) {
    let mut fetch = SetFetch {
        patience: engine.remote.patience(),
        engine: &engine,
        landings,
        in_vain: 0,
    };
    if let Err(error) = fetch.all().await {
        for landing in fetch.landings {
            engine.ended(landing.id, Err(error.clone()));
        }
    } else {
        engine.released(fetch.landings.iter().map(|landing| landing.id));
    }
}

struct SetFetch<'a> {
    engine: &'a Arc<Engine>,
    /// Those that are not complete.
    landings: Vec<Landing>,
    patience: Patience,
    /// Failures in a row without progress.
    in_vain: u32,
}

impl SetFetch<'_> {
    /// Asks until no more than one range is missing, or it is better to ask for each by itself.
    async fn all(&mut self) -> Result<(), Error> {
        let sets = self.engine.remote.sets();
        while self.landings.len() > 1 {
            match self.attempt().await {
                Ok(Go::On) => {}
                Ok(Go::OneByOne) => break,
                Err(Failure::Transient(error, asked)) => {
                    self.in_vain += 1;
                    if self.in_vain >= MOST_IN_VAIN {
                        tracing::debug!("several ranges at once, in vain: {error}");
                        sets.doubted();
                        break;
                    }
                    self.patience.pause(error, asked).await?;
                    self.engine.remote.retried();
                }
                Err(Failure::Changed(error)) => {
                    tracing::error!("{error}");
                    self.engine.die(error.clone());
                    return Err(error);
                }
                // Asked for one by one, the ranges tell whether it is for good.
                Err(failure) => {
                    tracing::debug!("several ranges at once: {}", failure.into_error());
                    sets.doubted();
                    break;
                }
            }
        }
        Ok(())
    }

    /// One request for what is missing, and its body up to the end or a failure.
    async fn attempt(&mut self) -> Result<Go, Failure> {
        let remote = &self.engine.remote;
        let missing: Vec<_> = self.landings.iter().map(Landing::missing).collect();
        let Some((mut body, content)) = remote.get_set(&missing, &self.patience).await? else {
            return Ok(Go::OneByOne);
        };
        let useless = match content {
            SetParts::One(range) => self.one(&mut body, range).await?,
            SetParts::Several(parser) => self.several(&mut body, parser).await?,
        };
        let complete = missing.len().saturating_sub(self.landings.len());
        let why = match useless {
            Some(why) => why,
            None if self.landings.is_empty() || complete > 1 => {
                remote.sets().shown();
                return Ok(Go::On);
            }
            // It may send less than it was asked for, but then it takes as many requests.
            None => "it sends one range at a time",
        };
        tracing::info!("ranges are asked for one by one from now on: {why}");
        remote.sets().missing();
        Ok(Go::OneByOne)
    }

    /// Takes a body that is one range. Returns what is wrong with the answer.
    async fn one(
        &mut self,
        body: &mut SetBody,
        range: ByteRange,
    ) -> Result<Option<&'static str>, Failure> {
        let mut at = body.start.saturating_add(range.start());
        let end = body.start.saturating_add(range.end());
        while at < end && !self.landings.is_empty() {
            let Some(bytes) = self
                .engine
                .remote
                .next(&mut body.body, &self.patience)
                .await?
            else {
                return Err(ended(at));
            };
            let bytes = bytes.as_ref();
            let room = usize::try_from(end - at).unwrap_or(usize::MAX);
            let bytes = &bytes[..bytes.len().min(room)];
            self.take(at, bytes)?;
            at = at.saturating_add(bytes.len() as u64);
        }
        Ok(None)
    }

    /// Takes a body of several parts. Returns what is wrong with it.
    async fn several(
        &mut self,
        body: &mut SetBody,
        mut parser: Multipart,
    ) -> Result<Option<&'static str>, Failure> {
        let (mut at, mut left, mut drained) = (body.start, body.most, 0_u64);
        loop {
            if self.landings.is_empty() && drained > MOST_DRAINED {
                return Ok(None);
            }
            let bytes = match self
                .engine
                .remote
                .next(&mut body.body, &self.patience)
                .await
            {
                Ok(Some(bytes)) => bytes,
                Ok(None) if self.landings.is_empty() || parser.is_whole() => return Ok(None),
                Ok(None) => return Err(ended(at)),
                // All that was wanted is there.
                Err(_) if self.landings.is_empty() => return Ok(None),
                Err(failure) => return Err(failure),
            };
            let mut bytes = bytes.as_ref();
            let len = bytes.len() as u64;
            if self.landings.is_empty() {
                drained = drained.saturating_add(len);
            }
            if left < len {
                return Ok(Some("it sends too much"));
            }
            left = left.saturating_sub(len);
            loop {
                match parser.next(&mut bytes) {
                    Ok(Some(Event::Part { range, total })) => {
                        same_length(body.body.from(), total, body.size)?;
                        at = body.start.saturating_add(range.start());
                    }
                    Ok(Some(Event::Bytes(bytes))) => {
                        self.take(at, bytes)?;
                        at = at.saturating_add(bytes.len() as u64);
                    }
                    Ok(Some(Event::End) | None) => break,
                    Err(why) => return Ok(Some(why)),
                }
            }
        }
    }

    /// Stores of `bytes`, which belong at `at`, what continues a range that is missing. The rest was
    /// not asked for, is there already, or will be asked for again.
    fn take(&mut self, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        let got = ByteRange::of(bytes, at);
        let mut progress = false;
        self.landings.retain_mut(|landing| {
            let missing = landing.missing();
            let new = missing.intersect(got);
            if new.start() == missing.start() && !new.is_empty() {
                // Within `bytes`.
                let from = (new.start() - at) as usize;
                let new = &bytes[from..from + new.len() as usize];
                progress |= landing.store(self.engine, new);
            }
            let whole = landing.missing().is_empty();
            if whole {
                self.engine.ended(landing.id, Ok(()));
            }
            !whole
        });
        if progress {
            self.in_vain = 0;
        }
        judge(&mut self.patience, progress, at)
    }
}

/// How to get what is still missing.
enum Go {
    On,
    OneByOne,
}

fn ended(at: u64) -> Failure {
    let what = format!("an answer of several ranges ended at {at}");
    Failure::transient(Error::new(Kind::Io, what))
}
