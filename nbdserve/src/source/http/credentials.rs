//! What is sent to the host of the URL and to no other.

use std::fmt;
use std::io::Read;
use std::path::Path;

use reqwest::RequestBuilder;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::HttpOptions;
use super::address::{Address, Login, Origin};
use super::netrc;
use crate::{Error, Kind, Result};

/// No netrc file is longer.
const LONGEST_NETRC: u64 = 1 << 20;

/// Fields that we set ourselves, or that belong to the connection.
const RESERVED: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Header fields and a login, bound to the origin that the user named.
pub(super) struct Credentials {
    origin: Origin,
    headers: Vec<(HeaderName, HeaderValue)>,
    login: Option<Login>,
}

impl Credentials {
    /// Those for `address`: the fields of the options; if none of them is `Authorization`, the
    /// login of the URL, else that of the netrc file.
    ///
    /// # Errors
    /// `Unsupported` for a field that cannot be sent; its value is not repeated. `Io` when the
    /// netrc file is there and cannot be read.
    pub(super) fn new(
        address: &Address,
        url_login: Option<Login>,
        options: &HttpOptions,
    ) -> Result<Self> {
        let mut headers = Vec::new();
        for (name, value) in &options.headers {
            headers.push(field(name, value)?);
        }
        let mut login = None;
        if !headers.iter().any(|(name, _)| name == AUTHORIZATION) {
            login = url_login;
            if let (None, Some(path)) = (&login, &options.netrc) {
                login = netrc::find(&read_netrc(path)?, address.host());
            }
        }
        Ok(Self {
            origin: address.origin(),
            headers,
            login,
        })
    }

    /// Adds them to a request to `address`, if that is the origin they are bound to.
    pub(super) fn add(&self, address: &Address, mut request: RequestBuilder) -> RequestBuilder {
        if address.origin() != self.origin {
            return request;
        }
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.user, login.password.as_ref());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

fn field(name: &str, value: &str) -> Result<(HeaderName, HeaderValue)> {
    let refused = |why: &str| {
        Error::new(
            Kind::Unsupported,
            format!("the header field `{name}` cannot be sent: {why}"),
        )
        .hint("--header 'NAME: VALUE' is expected")
    };
    let parsed = HeaderName::try_from(name.trim()).map_err(|_| refused("not a field name"))?;
    if RESERVED.contains(&parsed.as_str()) {
        return Err(refused("it is set here"));
    }
    let mut value = HeaderValue::try_from(value.trim())
        .map_err(|_| refused("control characters in its value"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

fn read_netrc(path: &Path) -> Result<String> {
    let failed = |error| Error::io(format!("cannot read {}", path.display()), error);
    let mut bytes = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file
            .take(LONGEST_NETRC)
            .read_to_end(&mut bytes)
            .map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        // As after su or sudo, where HOME is still another's.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!("{} may not be read and is ignored", path.display());
            0
        }
        Err(error) => return Err(failed(error)),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
