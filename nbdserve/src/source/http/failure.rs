//! Why a request failed and what follows from it.

use std::error::Error as StdError;
use std::time::Duration;

use super::address::Address;
use crate::{Error, Kind};

/// A request that gave no usable bytes.
#[derive(Debug)]
pub(super) enum Failure {
    /// To ask again would give the same.
    Final(Error),
    /// What is there now is not what was opened: no byte may be read any more.
    Changed(Error),
    /// The target of a redirect refuses; the redirect may lead elsewhere by now.
    Expired(Error),
    /// There is no such file, or no longer; else as [`Self::Expired`].
    Absent(Error),
    /// To ask again may help, after the time that the server wants.
    Transient(Error, Option<Duration>),
}

impl Failure {
    /// A failure that may pass.
    pub(super) fn transient(error: Error) -> Self {
        Self::Transient(error, None)
    }

    /// The error, whatever follows from it.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Changed(error) | Self::Expired(error) => error,
            Self::Absent(error) | Self::Transient(error, _) => error,
        }
    }
}

/// Whether anything has been received from this server before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has: a wrong name, port or certificate is most likely a mistake of the user, who
    /// should hear of it at once.
    Opening,
    /// It has worked before: a server that restarts, a name server that stumbles.
    Reading,
}

/// What the client says, as an error with a hint.
pub(super) fn no_answer(error: reqwest::Error, to: &Address, phase: Phase) -> Failure {
    let error = error.without_url();
    let place = to.authority();
    let cause = || std::io::Error::other(innermost(&error));
    let new = |what: String| Error::new(Kind::Io, what).caused_by(cause());
    let mistake = |error| match phase {
        Phase::Opening => Failure::Final(error),
        Phase::Reading => Failure::transient(error),
    };
    if error.is_dns() {
        let host = to.host();
        return mistake(
            new(format!("cannot find the host {host}"))
                .hint("is the name right, and is there a network?"),
        );
    }
    if let Some(tls) = find::<rustls::Error>(&error) {
        return mistake(match tls {
            rustls::Error::InvalidCertificate(_) => {
                new(format!("the certificate of {place} cannot be trusted"))
                    .hint("--ca FILE or SSL_CERT_FILE names the certificates to trust")
            }
            rustls::Error::InvalidMessage(_) => new(format!("{place} does not speak TLS"))
                .hint("is it an http:// URL, or another port?"),
            _ => new(format!("no TLS with {place}")),
        });
    }
    let io = find::<std::io::Error>(&error).map(std::io::Error::kind);
    if io == Some(std::io::ErrorKind::ConnectionRefused) {
        return mistake(
            new(format!("nothing listens at {place}"))
                .hint("is the port right, and is the server up?"),
        );
    }
    if let Some(http) = find::<hyper::Error>(&error).filter(|http| http.is_parse()) {
        let what = if http.is_parse_too_large() {
            format!("the header of an answer of {place} is too large")
        } else {
            format!("{place} does not speak HTTP")
        };
        return mistake(new(what).hint("is the port right, and is it an https:// URL?"));
    }
    if error.is_builder() {
        return Failure::Final(new(format!("cannot ask {place}")));
    }
    if error.is_timeout() {
        let what = format!("{place} does not answer");
        return Failure::transient(Error::new(Kind::TimedOut, what).caused_by(cause()));
    }
    if error.is_connect() {
        return mistake(new(format!("cannot connect to {place}")));
    }
    Failure::transient(new(format!("{place} broke off")))
}

/// The last of the chain of causes: those above it only say that there is one below.
fn innermost(error: &dyn StdError) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// The first `T` in the chain of causes. An `io::Error` hides what it holds from the chain.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let held = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if let Some(found) = held.and_then(|held| find::<T>(held)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}
