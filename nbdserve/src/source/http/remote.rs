//! The file on the server: found once, then asked for parts.

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Response;

use super::ability::Ability;
use super::address::Address;
use super::answer::{Head, SetContent, Source};
use super::failure::{Failure, Phase};
use super::multipart::Multipart;
use super::patience::Patience;
use super::transport::{Ask, Transport, head};
use super::{HttpIdentity, HttpStats};
use crate::ByteRange;

impl Body {
    /// Who sends it.
    pub(super) fn from(&self) -> &Address {
        &self.from
    }
}

/// A file that was found, and where.
#[derive(Debug)]
pub(super) struct Remote {
    transport: Arc<Transport>,
    /// What the user named.
    original: Address,
    source: Source,
    target: Mutex<Target>,
    /// Held while the redirects are followed anew.
    resolving: tokio::sync::Mutex<()>,
}

/// Where the redirects led.
#[derive(Clone, Debug)]
struct Target {
    address: Address,
    /// Counts how often it was resolved.
    generation: u64,
}

/// An answer with bytes that may be used.
#[derive(Debug)]
pub(super) struct Body {
    from: Address,
    response: Response,
    /// What the body holds, from the start of the range asked for on.
    pub(super) range: ByteRange,
    /// It ends where a part of a larger file does, so that less than asked for is no fault.
    pub(super) ends_part: bool,
}

/// An answer to a request for several ranges.
#[derive(Debug)]
pub(super) struct SetBody {
    pub(super) body: Body,
    /// Where the file begins in what it is a part of.
    pub(super) start: u64,
    /// A body that is longer is not what was asked for.
    pub(super) most: u64,
    /// Bytes of the file.
    pub(super) size: u64,
}

/// How the ranges are sent.
#[derive(Debug)]
pub(super) enum SetParts {
    /// As one range.
    One(ByteRange),
    /// As parts, each with its place.
    Several(Multipart),
}

/// The longest body that is taken for `ranges`: they, their headers, and gaps that were not worth
/// leaving out.
fn set_limit(ranges: &[ByteRange]) -> u64 {
    let bytes: u64 = ranges.iter().map(|range| range.len()).sum();
    let parts = ranges.len() as u64;
    bytes.saturating_mul(2).saturating_add((parts + 1) * 1024)
}

impl Remote {
    /// Asks for `range` (from 0 on), and learns from the answer where the file is, how long it
    /// is, which version it has and whether parts of it can be had.
    ///
    /// One GET does what would take a HEAD and a GET, its bytes are needed anyway, and URLs that
    /// are signed for GET only answer HEAD with 403.
    ///
    /// # Errors
    /// `Unsupported` when the server does not send parts; `Denied`, `Io`, `TimedOut`,
    /// `NotThisFormat`.
    pub(super) async fn open(
        transport: Arc<Transport>,
        original: Address,
        range: ByteRange,
    ) -> Result<(Self, Body), Failure> {
        let mut patience = Patience::new(transport.limit);
        loop {
            let ask = Ask {
                ranges: &[range],
                validator: None,
                phase: Phase::Opening,
                stall: patience.stall(),
            };
            let found = match transport.follow(&original, ask).await {
                Ok((address, response)) => head(&address, &response)
                    .first(range)
                    .map(|(source, range)| (address.clone(), response, source, range)),
                Err(failure) => Err(failure),
            };
            match found {
                Ok((address, response, source, range)) => {
                    if source.validator.is_none() {
                        tracing::warn!("{original}: no ETag, no date: a change may go unnoticed");
                    }
                    let body = Body {
                        from: address.clone(),
                        response,
                        range,
                        ends_part: false,
                    };
                    let target = Target {
                        address,
                        generation: 0,
                    };
                    let remote = Self {
                        transport,
                        original,
                        source,
                        target: Mutex::new(target),
                        resolving: tokio::sync::Mutex::new(()),
                    };
                    return Ok((remote, body));
                }
                Err(Failure::Transient(error, asked)) => {
                    let paused = patience.pause(error, asked).await;
                    paused.map_err(Failure::Final)?;
                    transport.retried();
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Asks for `range`, of the version that was opened.
    pub(super) async fn get(&self, range: ByteRange, patience: &Patience) -> Result<Body, Failure> {
        let check = |head: Head<'_>| head.part(range, &self.source);
        let (from, response, range) = self.answer(&[range], patience, check).await?;
        Ok(Body {
            from,
            response,
            range,
            ends_part: false,
        })
    }

    /// Asks for several ranges at once, of the version that was opened. `None` when that is not
    /// how this server answers: they can be had one by one.
    pub(super) async fn get_set(
        &self,
        ranges: &[ByteRange],
        patience: &Patience,
    ) -> Result<Option<(SetBody, SetParts)>, Failure> {
        let most = set_limit(ranges);
        let check = |head: Head<'_>| head.set(most, &self.source);
        let (from, response, content) = self.answer(ranges, patience, check).await?;
        let parts = match content {
            SetContent::Useless(why) => {
                tracing::info!("{from}: ranges are asked for one by one from now on: {why}");
                self.transport.sets.missing();
                // Whatever else it sends is not waited for.
                return Ok(None);
            }
            SetContent::One(range) => SetParts::One(range),
            SetContent::Several(boundary) => SetParts::Several(Multipart::new(boundary)),
        };
        let body = Body {
            from,
            response,
            range: ByteRange::between(0, 0),
            ends_part: false,
        };
        let body = SetBody {
            body,
            start: 0,
            most,
            size: self.source.size,
        };
        Ok(Some((body, parts)))
    }

    /// What is known of its answers to requests for several ranges.
    pub(super) fn sets(&self) -> &Ability {
        &self.transport.sets
    }

    /// Asks for `ranges`. Returns who answers, the answer, and what `check` says of it. When the
    /// target refuses, the redirects are followed anew, once.
    async fn answer<T>(
        &self,
        ranges: &[ByteRange],
        patience: &Patience,
        check: impl Fn(Head<'_>) -> Result<T, Failure>,
    ) -> Result<(Address, Response, T), Failure> {
        let target = self.target();
        let ask = || self.ask(ranges, patience);
        let failure = match self.answer_of(target.address, ask(), &check).await {
            Err(Failure::Expired(error) | Failure::Absent(error)) => error,
            other => return other,
        };
        tracing::info!("the redirects are followed anew: {failure}");
        let alone = self.resolving.lock().await;
        let now = self.target();
        let again = if now.generation == target.generation {
            self.resolve(ask(), &check).await
        } else {
            // Another request has done it while this one waited.
            drop(alone);
            self.answer_of(now.address, ask(), &check).await
        };
        match again {
            Err(Failure::Expired(error) | Failure::Absent(error)) => Err(Failure::Final(error)),
            other => other,
        }
    }

    async fn answer_of<T>(
        &self,
        address: Address,
        ask: Ask<'_>,
        check: impl Fn(Head<'_>) -> Result<T, Failure>,
    ) -> Result<(Address, Response, T), Failure> {
        let response = self.transport.send(&address, ask).await?;
        let found = check(head(&address, &response))?;
        Ok((address, response, found))
    }

    async fn resolve<T>(
        &self,
        ask: Ask<'_>,
        check: impl Fn(Head<'_>) -> Result<T, Failure>,
    ) -> Result<(Address, Response, T), Failure> {
        let (address, response) = self.transport.follow(&self.original, ask).await?;
        let found = check(head(&address, &response))?;
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.generation += 1;
        target.address = address.clone();
        drop(target);
        Ok((address, response, found))
    }

    fn ask<'a>(&'a self, ranges: &'a [ByteRange], patience: &Patience) -> Ask<'a> {
        Ask {
            ranges,
            validator: Some(&self.source.validator),
            phase: Phase::Reading,
            stall: patience.stall(),
        }
    }

    /// The next bytes of a body, `None` at its end. A body that is cut short is an error there.
    pub(super) async fn next(
        &self,
        body: &mut Body,
        patience: &Patience,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        self.transport
            .next(&body.from, &mut body.response, patience.stall())
            .await
    }

    /// Patience for one fetch.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.transport.limit)
    }

    /// Notes that a request is repeated.
    pub(super) fn retried(&self) {
        self.transport.retried();
    }

    /// Number of bytes.
    pub(super) fn size(&self) -> u64 {
        self.source.size
    }

    /// What is read.
    pub(super) fn identity(&self) -> HttpIdentity {
        HttpIdentity {
            url: self.original.to_string(),
            strong_etag: self.source.validator.strong_text(),
            last_modified: self.source.validator.date_text(),
            size: self.source.size,
        }
    }

    /// What it has cost.
    pub(super) fn stats(&self) -> HttpStats {
        self.transport.stats()
    }

    fn target(&self) -> Target {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.clone()
    }
}
