//! A file on a web server, read by ranges, without downloading it.
//!
//! ```text
//!  readers (threads) -> engine: what is there, what is on its way, what must be asked for
//!                         |  streams: how much to ask for       store: pages in memory
//!                         |  flights: what goes together        disk: pages kept on disk
//!  tokio, one thread  -> fetch: one range, resumed when it breaks off
//!                        sets: several ranges with one request, as far as the server does that
//!                          -> remote: the redirect's target, and is it still the same file?
//!                               -> transport: one request, credentials, TLS
//!                                    -> answer, headers, version: may these bytes be used? (pure)
//!                                       multipart: bodies of several parts (pure)
//! ```
//!
//! What must hold: a byte that is in memory or on its way is not asked for again, a byte of
//! another version of the file is never returned, and credentials go to nobody but the host that
//! the user named.

mod ability;
mod address;
mod answer;
mod credentials;
mod disk;
mod download;
mod engine;
mod failure;
mod fetch;
mod flights;
mod headers;
mod locality;
pub(crate) mod multipart;
mod netrc;
mod options;
mod parts;
mod patience;
mod remote;
mod runtime;
mod sets;
mod store;
mod streams;
mod tls;
mod transport;
mod version;
mod wait;

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use options::{HttpIdentity, HttpOptions, HttpStats};

use self::address::Address;
use self::credentials::Credentials;
use self::disk::Disk;
use self::engine::{Engine, Limits, MOST_IN_FLIGHT};
use self::parts::Remotes;
use self::runtime::Worker;
use self::store::CHUNK;
use self::transport::Transport;
use crate::bytes::hex;
use crate::cache::TempFile;
use crate::source::split::Look;
use crate::{Access, ByteRange, Cx, Device, Error, Geometry, Kind, Result};

/// A file on a web server, as a read-only device.
pub struct Http {
    engine: Arc<Engine>,
    worker: Worker,
    geometry: Geometry,
    identity: Option<String>,
}

impl Http {
    /// Finds the file, with one request (and one for each redirect) that also fetches its first
    /// bytes. What is fetched is kept in `cx.store`, when the server sends a strong validator.
    ///
    /// From then on, a request that gets no further for `cx.no_progress` is given up, however
    /// often it was repeated; a read that waits for it ends a sixteenth of that and a tenth of a
    /// second later at most.
    ///
    /// # Errors
    /// `Unsupported` for a URL that is not http(s), a server that cannot send parts of a file, or
    /// an encoded body; `NotThisFormat` for an HTML page; `Denied` for refused credentials or a
    /// forbidden redirect; `Io` and `TimedOut` for a server that cannot be reached.
    pub fn open(url: &str, options: &HttpOptions, cx: &Cx) -> Result<Self> {
        Self::open_split(url, options, Look::Never, cx)
    }

    /// As [`Self::open`], for a file that may be the first of several into which an image was cut:
    /// they are asked for until one is not found, and read as one file.
    ///
    /// # Errors
    /// As [`Self::open`]; also when a part is missing or the server does not tell.
    pub fn open_split(url: &str, options: &HttpOptions, look: Look, cx: &Cx) -> Result<Self> {
        let (address, transport) = prepare(url, options, cx)?;
        let worker = Worker::start()?;
        let first = ByteRange::between(0, CHUNK);
        let opening = Remotes::open(transport, address, first, look);
        let (remote, body) = worker.wait(opening, &cx.cancel)?;
        let limits = Limits {
            no_progress: cx.no_progress,
            answer_within: options.answer_within,
            memory: options.memory.max(HttpOptions::LEAST_MEMORY),
        };
        let geometry = Geometry {
            size: remote.size(),
            min_block: 1,
            preferred_block: CHUNK as u32,
            max_request: limits.longest_get(),
            access: Access::Random,
        };
        let handle = worker.handle()?;
        let identity = identity(&remote, url);
        let place = cx.store.as_ref().zip(identity.as_ref());
        let place = place.map(|(store, identity)| store.place(identity, &remote.identity().url));
        let disk = place.and_then(|place| Disk::open(&place, remote.size(), limits.memory));
        let engine = Engine::start(remote, body, handle, cx.cancel.clone(), limits, disk);
        Ok(Self {
            engine,
            worker,
            geometry,
            identity,
        })
    }

    /// Fetches the whole file, once, into an unlinked file in `cx.temp_dir`: for a server that
    /// cannot send parts. The observer is told of the progress.
    ///
    /// # Errors
    /// As [`Self::open`], except that the server need not send parts; `NoSpace` when the file
    /// does not fit.
    pub fn download(url: &str, options: &HttpOptions, cx: &Cx) -> Result<File> {
        let mut files = Self::download_split(url, options, Look::Never, cx)?;
        // There is always the first.
        let none = || Error::new(Kind::Io, "nothing was fetched");
        files.pop().ok_or_else(none)
    }

    /// As [`Self::download`], for all files of an image that may have been cut into several.
    ///
    /// # Errors
    /// As [`Self::download`] and [`Self::open_split`].
    pub fn download_split(
        url: &str,
        options: &HttpOptions,
        look: Look,
        cx: &Cx,
    ) -> Result<Vec<File>> {
        let (address, transport) = prepare(url, options, cx)?;
        let worker = Worker::start()?;
        let finding = parts::addresses(Arc::clone(&transport), address.clone(), look);
        let mut all = vec![address];
        all.extend(worker.wait(finding, &cx.cancel)?);
        let fetch = |address: Address| {
            let file = TempFile::create(&cx.temp_dir, cx.temp_limit)?;
            let (transport, observer) = (Arc::clone(&transport), Arc::clone(&cx.observer));
            worker.wait(
                download::run(transport, address, file, observer),
                &cx.cancel,
            )
        };
        all.into_iter().map(fetch).collect()
    }

    /// A URL as messages show it: without credentials and without its query.
    ///
    /// # Errors
    /// `Unsupported` for what is no http or https URL.
    pub fn shown(url: &str) -> Result<String> {
        Address::parse(url).map(|(address, _)| address.to_string())
    }

    /// Which file is read, and which version of it.
    #[must_use]
    pub fn identity(&self) -> HttpIdentity {
        self.engine.remote.identity()
    }

    /// What reading has cost so far.
    #[must_use]
    pub fn stats(&self) -> HttpStats {
        self.engine.remote.stats()
    }

    fn stop(&self) {
        self.engine.die(Error::new(Kind::Io, "it is closed"));
        self.worker.stop();
        self.engine.flush();
    }
}

/// This version of the file. Only a strong ETag promises that the same bytes are met again.
fn identity(remote: &Remotes, url: &str) -> Option<String> {
    let HttpIdentity {
        url: shown,
        strong_etag,
        size,
        ..
    } = remote.identity();
    let Some(etag) = strong_etag else {
        tracing::info!("{shown}: no strong ETag, so nothing is kept on disk");
        return None;
    };
    // The query may tell files apart, and may hold what nobody else shall see. Credentials do
    // not: who has others gets another ETag or the same bytes.
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let digest = Sha256::digest(query.as_bytes());
    let query = hex(&digest);
    Some(format!(
        "http\nurl {shown}\nquery {query}\netag {etag}\nsize {size}"
    ))
}

/// Whom to ask, and with what.
fn prepare(url: &str, options: &HttpOptions, cx: &Cx) -> Result<(Address, Arc<Transport>)> {
    let (address, login) = Address::parse(url)?;
    let credentials = Credentials::new(&address, login, options)?;
    let transport = Transport::new(credentials, options, cx.no_progress, MOST_IN_FLIGHT)?;
    Ok((address, Arc::new(transport)))
}

impl Device for Http {
    fn name(&self) -> &'static str {
        "http"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn parts(&self) -> Option<usize> {
        Some(self.engine.remote.count())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.engine.read(buf, offset)
    }

    fn will_need(&self, range: ByteRange) {
        self.engine.hint(&[range]);
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        self.engine.hint(ranges);
    }

    fn gathers(&self) -> bool {
        self.engine.remote.sets().may_be()
    }

    fn source_identity(&self) -> Option<String> {
        self.identity.clone()
    }

    fn close(&self) -> Result<()> {
        self.stop();
        Ok(())
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Http({})", self.engine.remote.identity().url)
    }
}
