//! A file that was cut into several, on a web server: found by asking for one after the other, and
//! read as one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::ability::Ability;
use super::address::Address;
use super::failure::{Failure, Phase};
use super::patience::Patience;
use super::remote::{Body, Remote, SetBody, SetParts};
use super::store::PAGE;
use super::transport::{Ask, Transport, head};
use super::{HttpIdentity, HttpStats};
use crate::source::split::{self, Look, MOST_PARTS, Series};
use crate::{ByteRange, Error, Kind};

/// So many parts are asked for at once, first and later on.
const FIRST_BATCH: usize = 2;
const LONGEST_BATCH: usize = 8;

/// The files that an image consists of, mostly one.
#[derive(Debug)]
pub(super) struct Remotes {
    parts: Vec<Part>,
    size: u64,
}

#[derive(Debug)]
struct Part {
    start: u64,
    remote: Remote,
}

impl Remotes {
    /// As [`Remote::open`], with the parts that follow if `look` wants them.
    ///
    /// # Errors
    /// As [`Remote::open`]; also when a part is missing.
    pub(super) async fn open(
        transport: Arc<Transport>,
        original: Address,
        range: ByteRange,
        look: Look,
    ) -> Result<(Self, Body), Error> {
        let next = Next::new(&original, look)?;
        let first = Remote::open(Arc::clone(&transport), original, range);
        let (first, body) = first.await.map_err(Failure::into_error)?;
        let mut remotes = vec![first];
        if let Some(next) = next {
            let open = move |address: Address| open_next(Arc::clone(&transport), address);
            remotes.extend(next.all(look, open).await?);
        }
        Ok((Self::of(remotes)?, body))
    }

    fn of(remotes: Vec<Remote>) -> Result<Self, Error> {
        let mut size = 0_u64;
        let mut parts = Vec::with_capacity(remotes.len());
        for remote in remotes {
            let start = size;
            size = start
                .checked_add(remote.size())
                .filter(|size| *size <= u64::MAX >> 1)
                .ok_or_else(|| Error::new(Kind::Limit, "the parts have more than 2^63 bytes"))?;
            parts.push(Part { start, remote });
        }
        Ok(Self { parts, size })
    }

    /// As [`Remote::get`]; what is sent ends at the latest where a part does.
    pub(super) async fn get(&self, range: ByteRange, patience: &Patience) -> Result<Body, Failure> {
        // The last that begins there: those before it are empty.
        let after = self
            .parts
            .partition_point(|part| part.start <= range.start());
        let Some(part) = after.checked_sub(1).and_then(|at| self.parts.get(at)) else {
            let what = format!("there is no part for {range}");
            return Err(Failure::Final(Error::new(Kind::OutOfRange, what)));
        };
        let inner = ByteRange::between(
            range.start().saturating_sub(part.start),
            range
                .end()
                .saturating_sub(part.start)
                .min(part.remote.size()),
        );
        let mut body = part.remote.get(inner, patience).await?;
        body.ends_part = body.range.end() == part.remote.size();
        body.range = ByteRange::between(
            part.start.saturating_add(body.range.start()),
            part.start.saturating_add(body.range.end()),
        );
        Ok(body)
    }

    /// Sorts `ranges` by the file they lie in, those of each file in their order; one that lies in
    /// several is by itself.
    pub(super) fn by_file(&self, ranges: &[ByteRange]) -> Vec<Vec<ByteRange>> {
        let mut sets: Vec<(Option<usize>, Vec<ByteRange>)> = Vec::new();
        for range in ranges {
            let file = self.file_of(*range);
            match sets.last_mut() {
                Some((other, set)) if file.is_some() && file == *other => set.push(*range),
                _ => sets.push((file, vec![*range])),
            }
        }
        sets.into_iter().map(|(_, set)| set).collect()
    }

    /// The file that all of `range` lies in.
    fn file_of(&self, range: ByteRange) -> Option<usize> {
        let after = self
            .parts
            .partition_point(|part| part.start <= range.start());
        let at = after.checked_sub(1)?;
        let part = self.parts.get(at)?;
        let end = part.start.saturating_add(part.remote.size());
        (range.end() <= end).then_some(at)
    }

    /// As [`Remote::get_set`]; `ranges` lie in one file.
    pub(super) async fn get_set(
        &self,
        ranges: &[ByteRange],
        patience: &Patience,
    ) -> Result<Option<(SetBody, SetParts)>, Failure> {
        let file = ranges.first().and_then(|first| self.file_of(*first));
        let Some(part) = file.and_then(|at| self.parts.get(at)) else {
            return Ok(None);
        };
        let inner = ranges.iter().map(|range| {
            ByteRange::between(
                range.start().saturating_sub(part.start),
                range.end().saturating_sub(part.start),
            )
        });
        let inner: Vec<_> = inner.collect();
        let answer = part.remote.get_set(&inner, patience).await?;
        Ok(answer.map(|(mut body, content)| {
            body.start = part.start;
            (body, content)
        }))
    }

    /// What is known of the server's answers to requests for several ranges.
    pub(super) fn sets(&self) -> &Ability {
        self.first().sets()
    }

    /// As [`Remote::next`].
    pub(super) async fn next(
        &self,
        body: &mut Body,
        patience: &Patience,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        self.first().next(body, patience).await
    }

    /// As [`Remote::patience`].
    pub(super) fn patience(&self) -> Patience {
        self.first().patience()
    }

    /// Notes that a request is repeated.
    pub(super) fn retried(&self) {
        self.first().retried();
    }

    /// Number of bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many files there are.
    pub(super) fn count(&self) -> usize {
        self.parts.len()
    }

    /// What is read: of several files, what tells their versions is put together.
    pub(super) fn identity(&self) -> HttpIdentity {
        let mut identity = self.first().identity();
        for part in self.parts.iter().skip(1) {
            let next = part.remote.identity();
            identity.strong_etag = both(identity.strong_etag, next.strong_etag);
            identity.last_modified = both(identity.last_modified, next.last_modified);
            identity.size = identity.size.saturating_add(next.size);
        }
        identity
    }

    /// What it has cost.
    pub(super) fn stats(&self) -> HttpStats {
        self.first().stats()
    }

    /// All share one way to the server.
    fn first(&self) -> &Remote {
        // of() is given at least one.
        &self.parts[0].remote
    }
}

fn both(a: Option<String>, b: Option<String>) -> Option<String> {
    Some(format!("{}, {}", a?, b?))
}

/// The addresses of the parts after the first of an image that is not read by ranges.
///
/// # Errors
/// What the server says; when a part is missing.
pub(super) async fn addresses(
    transport: Arc<Transport>,
    original: Address,
    look: Look,
) -> Result<Vec<Address>, Error> {
    let Some(next) = Next::new(&original, look)? else {
        return Ok(Vec::new());
    };
    let ask = move |address: Address| is_there(Arc::clone(&transport), address);
    next.all(look, ask).await
}

/// What a question for a part comes to: `None` when it is not there.
type Asking<T> = Pin<Box<dyn Future<Output = Result<Option<T>, Error>> + Send>>;

fn open_next(transport: Arc<Transport>, address: Address) -> Asking<Remote> {
    Box::pin(async move {
        let range = ByteRange::between(0, PAGE);
        match Remote::open(transport, address, range).await {
            Ok((remote, mut body)) => {
                // A connection serves again once its answer was read.
                let patience = remote.patience();
                while let Ok(Some(_)) = remote.next(&mut body, &patience).await {}
                Ok(Some(remote))
            }
            Err(Failure::Absent(_)) => Ok(None),
            Err(failure) => Err(failure.into_error()),
        }
    })
}

fn is_there(transport: Arc<Transport>, address: Address) -> Asking<Address> {
    Box::pin(async move {
        let patience = Patience::new(transport.limit);
        let ask = Ask {
            ranges: &[ByteRange::between(0, 1)],
            validator: None,
            phase: Phase::Reading,
            stall: patience.stall(),
        };
        let answer = transport.follow(&address, ask).await;
        let (from, response) = answer.map_err(Failure::into_error)?;
        match head(&from, &response).is_there() {
            Ok(()) => Ok(Some(address)),
            Err(Failure::Absent(_)) => Ok(None),
            Err(failure) => Err(failure.into_error()),
        }
    })
}

/// The parts after the first.
struct Next {
    original: Address,
    series: Series,
}

impl Next {
    /// `None` when there are none or none are wanted.
    fn new(original: &Address, look: Look) -> Result<Option<Self>, Error> {
        if matches!(look, Look::Never | Look::Exactly(0 | 1)) {
            return Ok(None);
        }
        let Some(series) = Series::of(original.file_name()) else {
            return match look {
                Look::Auto => Ok(None),
                _ => Err(split::no_first_part(&original.to_string())),
            };
        };
        Ok(Some(Self {
            original: original.clone(),
            series,
        }))
    }

    /// All of them, in order, as `ask` finds them, a few at once.
    async fn all<T: Send + 'static>(
        &self,
        look: Look,
        ask: impl Fn(Address) -> Asking<T>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        let mut batch = FIRST_BATCH;
        let most = match look {
            Look::Exactly(count) => count,
            _ => MOST_PARTS.saturating_add(1),
        };
        loop {
            let first = found.len().saturating_add(1);
            let indexes = first..first.saturating_add(batch).min(most);
            if indexes.is_empty() {
                break;
            }
            let mut answers = self.ask(indexes.clone(), &ask).await?.into_iter();
            found.extend(answers.by_ref().map_while(|answer| answer));
            let gap = found.len().saturating_add(1);
            if gap >= indexes.end {
                batch = LONGEST_BATCH.min(batch.saturating_mul(2));
                continue;
            }
            self.check_end(gap, answers.as_slice(), look, &ask).await?;
            break;
        }
        if found.len() >= MOST_PARTS {
            return Err(split::too_many());
        }
        Ok(found)
    }

    /// Whether the parts may end before the part `gap`; `after` are the answers for those behind it.
    async fn check_end<T: Send + 'static>(
        &self,
        gap: usize,
        after: &[Option<T>],
        look: Look,
        ask: &impl Fn(Address) -> Asking<T>,
    ) -> Result<(), Error> {
        let name = |index| self.series.name(index).unwrap_or_default();
        if matches!(look, Look::Exactly(_)) {
            let what = format!("there is no part {}", name(gap));
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let behind = gap.saturating_add(1);
        let later = if after.is_empty() {
            self.ask(behind..behind.saturating_add(1), ask).await?
        } else {
            Vec::new()
        };
        let later = after.iter().chain(&later);
        match later.map(Option::is_some).position(|is_there| is_there) {
            Some(at) => Err(split::missing(&name(gap), &name(behind.saturating_add(at)))),
            None => Ok(()),
        }
    }

    /// Asks for some parts at once; the answers are in order. Beyond the last name there is nothing.
    async fn ask<T: Send + 'static>(
        &self,
        indexes: std::ops::Range<usize>,
        ask: &impl Fn(Address) -> Asking<T>,
    ) -> Result<Vec<Option<T>>, Error> {
        let mut tasks = JoinSet::new();
        let mut answers: Vec<Result<Option<T>, Error>> = Vec::new();
        for (slot, index) in indexes.enumerate() {
            answers.push(Ok(None));
            let Some(name) = self.series.name(index) else {
                continue;
            };
            let asking = ask(self.original.beside(&name));
            tasks.spawn(async move {
                let answer = asking.await;
                (slot, answer.map_err(|error| unclear(&name, error)))
            });
        }
        while let Some(done) = tasks.join_next().await {
            let (slot, answer) =
                done.map_err(|error| Error::new(Kind::Io, "a task has ended").caused_by(error))?;
            answers[slot] = answer;
        }
        answers.into_iter().collect()
    }
}

/// The server says neither that the part is there nor that it is not.
fn unclear(name: &str, error: Error) -> Error {
    let what = format!("whether there is a part {name} cannot be told");
    Error::new(error.kind(), what)
        .caused_by(error)
        .hint("--layer split:parts=N says how many there are, 1 that it is not split")
}
