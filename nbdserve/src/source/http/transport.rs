//! One request and its answer, with redirects when asked for.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};

use super::ability::Ability;
use super::address::Address;
use super::answer::Head;
use super::credentials::Credentials;
use super::failure::{Failure, Phase, no_answer};
use super::headers::Validator;
use super::{HttpOptions, HttpStats, tls};
use crate::{ByteRange, Error, Kind, Result};

/// A chain of redirects is followed this far.
const MOST_REDIRECTS: usize = 10;
/// A TCP connection and its TLS handshake that take longer are tried again.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Most bytes of header fields in an answer over HTTP/2; for HTTP/1 hyper itself stops at about
/// 400 KiB and a hundred fields.
const MOST_HEADER_BYTES: u32 = 64 << 10;
/// What an HTTP/2 server may send ahead of us reading it, for one answer and for all: at a round
/// trip of 30 ms enough for 60 and 240 MB/s.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// A silent HTTP/2 connection is asked whether it lives: a lost one would block all requests.
const PING_AFTER: Duration = Duration::from_secs(10);

/// The client, what it may send to whom, and the count of its work.
#[derive(Debug)]
pub(super) struct Transport {
    client: Client,
    credentials: Credentials,
    /// Longest time without progress.
    pub(super) limit: Duration,
    /// Whether several parts can be had with one request.
    pub(super) sets: Ability,
    requests: AtomicU64,
    bytes: AtomicU64,
    retries: AtomicU64,
}

/// What to ask for, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    /// Some parts, none of them empty; all when there are none.
    pub(super) ranges: &'a [ByteRange],
    /// Only of this version.
    pub(super) validator: Option<&'a Validator>,
    /// Whether the server has ever answered.
    pub(super) phase: Phase,
    /// How long the head of the answer may take.
    pub(super) stall: Duration,
}

impl Transport {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// When the certificates cannot be read or an option makes no sense.
    pub(super) fn new(
        credentials: Credentials,
        options: &HttpOptions,
        limit: Duration,
        parallel: usize,
    ) -> Result<Self> {
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls::config(options.ca.as_deref())?)
            // Followed here, so that each step can be checked.
            .redirect(Policy::none())
            .referer(false)
            .user_agent(&options.user_agent)
            .connect_timeout(CONNECT_LIMIT.min(limit))
            .pool_max_idle_per_host(parallel)
            .tcp_nodelay(true)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MOST_HEADER_BYTES)
            .http2_keep_alive_interval(PING_AFTER)
            .http2_keep_alive_timeout(PING_AFTER);
        if !options.proxy_from_env {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            Error::new(Kind::Unsupported, "the HTTP client cannot be set up")
                .caused_by(error.without_url())
        })?;
        Ok(Self {
            client,
            credentials,
            limit,
            sets: Ability::new(),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        })
    }

    /// Sends one request. Whatever the server answers is returned, its body unread.
    pub(super) async fn send(&self, to: &Address, ask: Ask<'_>) -> Result<Response, Failure> {
        let mut request = self.client.get(to.url().clone());
        request = self.credentials.add(to, request);
        // A coded body has other bytes than the file.
        request = request.header(ACCEPT_ENCODING, "identity");
        if !ask.ranges.is_empty() {
            request = request.header(RANGE, range_field(ask.ranges));
        }
        if let Some((name, value)) = ask.validator.and_then(Validator::precondition) {
            request = request.header(name, value);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        tracing::debug!("GET {to} {:?}", ask.ranges);
        match tokio::time::timeout(ask.stall, request.send()).await {
            Ok(Ok(response)) => {
                tracing::debug!("{} from {to}", response.status());
                Ok(response)
            }
            Ok(Err(error)) => Err(no_answer(error, to, ask.phase)),
            Err(_) => Err(silent(to, ask.stall)),
        }
    }

    /// Sends a request to `from` and wherever that leads. Returns who answered at last.
    pub(super) async fn follow(
        &self,
        from: &Address,
        ask: Ask<'_>,
    ) -> Result<(Address, Response), Failure> {
        let mut to = from.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send(&to, ask).await?;
            match head(&to, &response).redirect() {
                None => return Ok((to, response)),
                Some(next) => to = next?,
            }
        }
        Err(Failure::Final(Error::new(
            Kind::Io,
            format!("{from} leads through more than {MOST_REDIRECTS} redirects"),
        )))
    }

    /// The next bytes of a body; `None` at its end.
    pub(super) async fn next(
        &self,
        from: &Address,
        response: &mut Response,
        stall: Duration,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(bytes)) => {
                let len = bytes.as_ref().map_or(0, |bytes| bytes.len());
                self.bytes.fetch_add(len as u64, Ordering::Relaxed);
                Ok(bytes)
            }
            Ok(Err(error)) => Err(no_answer(error, from, Phase::Reading)),
            Err(_) => Err(silent(from, stall)),
        }
    }

    /// Notes that a request is repeated.
    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    pub(super) fn stats(&self) -> HttpStats {
        HttpStats {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }
}

/// The field that asks for `ranges`.
pub(super) fn range_field(ranges: &[ByteRange]) -> String {
    let mut field = "bytes".to_owned();
    for (number, range) in ranges.iter().enumerate() {
        let sign = if number == 0 { '=' } else { ',' };
        let last = range.end().saturating_sub(1);
        // Writing to a String does not fail.
        let _ = write!(field, "{sign}{}-{last}", range.start());
    }
    field
}

/// The head of an answer.
pub(super) fn head<'a>(from: &'a Address, response: &'a Response) -> Head<'a> {
    Head {
        from,
        status: response.status(),
        headers: response.headers(),
    }
}

fn silent(from: &Address, stall: Duration) -> Failure {
    Failure::transient(Error::new(
        Kind::TimedOut,
        format!("{} was silent for {stall:.1?}", from.authority()),
    ))
}
