//! Fetching a whole file once, into a temporary file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;
use super::answer::Source;
use super::failure::{Failure, Phase};
use super::headers::Validator;
use super::patience::Patience;
use super::store::PAGE;
use super::transport::{Ask, Transport, head};
use crate::cache::TempFile;
use crate::cx::Observer;
use crate::{ByteRange, Error, Kind};

/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// A server that cannot resume may break off this often before it has sent more than ever before.
const MOST_RESTARTS: u32 = 5;

/// Fetches all of `original` into `file`. An answer that breaks off is resumed where it ended, if
/// the server can do that, else everything is fetched anew.
///
/// # Errors
/// As when the file is opened for reading by ranges, except that a server that cannot send parts
/// will do; `NoSpace` when the file does not fit.
pub(super) async fn run(
    transport: Arc<Transport>,
    original: Address,
    file: TempFile,
    observer: Arc<dyn Observer>,
) -> Result<File, Error> {
    let room = file.room()?;
    let mut patience = Patience::new(transport.limit);
    let mut download = Download {
        transport: &transport,
        original: &original,
        file: &file,
        room,
        observer,
        told: Instant::now(),
        at: 0,
        furthest: 0,
        restarts: 0,
        source: None,
    };
    loop {
        match download.attempt(&mut patience).await {
            Ok(()) => break,
            Err(Failure::Transient(error, asked)) => {
                patience.pause(error, asked).await?;
                transport.retried();
            }
            Err(failure) => return Err(failure.into_error()),
        }
    }
    let (at, file) = (download.at, file.into_file());
    // An earlier attempt may have brought more, of a longer version.
    file.set_len(at).map_err(|error| storing(at, error))?;
    Ok(file)
}

struct Download<'a> {
    transport: &'a Transport,
    original: &'a Address,
    file: &'a TempFile,
    /// Bytes that it may take.
    room: u64,
    observer: Arc<dyn Observer>,
    told: Instant,
    /// One past the last byte stored.
    at: u64,
    /// The most that `at` ever was.
    furthest: u64,
    /// How often everything was fetched anew since then.
    restarts: u32,
    /// The version of which there are bytes, if its length is known.
    source: Option<Source>,
}

impl Download<'_> {
    /// One request, for all or for what is missing, and its body.
    async fn attempt(&mut self, patience: &mut Patience) -> Result<(), Failure> {
        let missing = self.missing();
        let ask = Ask {
            ranges: missing.as_slice(),
            // Who begins again may take another version.
            validator: missing
                .and(self.source.as_ref())
                .map(|source| &source.validator),
            phase: if self.furthest == 0 {
                Phase::Opening
            } else {
                Phase::Reading
            },
            stall: patience.stall(),
        };
        let (from, mut response) = self.transport.follow(self.original, ask).await?;
        let answer = head(&from, &response);
        let total = match (&self.source, missing) {
            (Some(source), Some(missing)) if response.status() != 200 => {
                let range = answer.part(missing, source)?;
                Some(range.end())
            }
            _ => {
                let total = answer.whole()?;
                if total.is_none() && !answer.has_an_end(response.version()) {
                    let what = format!(
                        "{from} is sent without its length: its end cannot be told \
                         from a broken connection"
                    );
                    return Err(Failure::Final(Error::new(Kind::Unsupported, what)));
                }
                self.source = total.map(|size| Source {
                    size,
                    validator: Validator::of(response.headers()),
                });
                self.restart(&from)?;
                total
            }
        };
        if total.is_some_and(|total| total > self.room) {
            return Err(Failure::Final(self.too_long(0)));
        }
        while let Some(bytes) = self
            .transport
            .next(&from, &mut response, patience.stall())
            .await?
        {
            self.store(bytes.as_ref(), total, patience)?;
        }
        let whole = self.source.as_ref().map_or(self.at, |source| source.size);
        if self.at == whole {
            self.observer.progress("downloading", self.at, self.at);
            return Ok(());
        }
        let what = format!("{from} broke off after {} of {whole} bytes", self.at);
        Err(Failure::transient(Error::new(Kind::Io, what)))
    }

    /// Everything is fetched anew, if that has not been in vain too often.
    fn restart(&mut self, from: &Address) -> Result<(), Failure> {
        if self.at > 0 {
            self.restarts += 1;
        }
        self.at = 0;
        if self.restarts <= MOST_RESTARTS {
            return Ok(());
        }
        let what = format!(
            "{from} cannot be resumed and broke off {} times, after {} bytes at most",
            self.restarts, self.furthest
        );
        Err(Failure::Final(Error::new(Kind::TimedOut, what)))
    }

    fn too_long(&self, at: u64) -> Error {
        let size = self.source.as_ref().map_or(0, |source| source.size);
        let (original, room) = (self.original, self.room);
        self.file.no_space(&format!(
            "cannot download {original}: {at} bytes are stored, it has {}, there is room for {room}",
            size.max(at)
        ))
    }

    /// The part to ask for, when there are bytes of a version that can be recognised again.
    fn missing(&self) -> Option<ByteRange> {
        let source = self.source.as_ref()?;
        let resumes = self.at > 0 && self.at < source.size && !source.validator.is_none();
        resumes.then(|| ByteRange::between(self.at, source.size))
    }

    fn store(
        &mut self,
        bytes: &[u8],
        end: Option<u64>,
        patience: &mut Patience,
    ) -> Result<(), Failure> {
        // More than was announced is no part of the file.
        let room = end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
        let len = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let at = self.at;
        if at.saturating_add(len as u64) > self.room {
            return Err(Failure::Final(self.too_long(at)));
        }
        self.file
            .as_file()
            .write_all_at(&bytes[..len], at)
            .map_err(|error| Failure::Final(storing(at, error)))?;
        self.at = at.saturating_add(len as u64);
        if self.at / PAGE > at / PAGE {
            patience.progressed();
        } else if patience.is_over() {
            let what = format!("bytes trickle in too slowly at {at}");
            let error = Error::new(Kind::TimedOut, what);
            return Err(Failure::Final(patience.give_up(error, None)));
        }
        if self.at > self.furthest {
            (self.furthest, self.restarts) = (self.at, 0);
        }
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            let total = self.source.as_ref().map_or(self.at, |source| source.size);
            self.observer.progress("downloading", self.at, total);
        }
        Ok(())
    }
}

fn storing(at: u64, error: io::Error) -> Error {
    Error::io(format!("cannot store the download at {at}"), error)
        .hint("TMPDIR names another folder for temporary files")
}
