//! What a caller chooses, and what it is told.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach a server and how much to keep of what it sends.
#[derive(Clone)]
pub struct HttpOptions {
    /// Fields added to each request to the host of the URL, and to no other host.
    pub headers: Vec<(String, String)>,
    /// Where user names and passwords by host are looked up; a missing file holds none. By
    /// default `$NETRC`, else `~/.netrc`.
    pub netrc: Option<PathBuf>,
    /// Certificates (PEM) that are trusted in place of the system's. Without it the system's are
    /// used, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    pub ca: Option<PathBuf>,
    /// Whether `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` of the environment count.
    pub proxy_from_env: bool,
    /// A read that is not answered by then ends with `TimedOut`, even though its bytes are on
    /// their way and are kept. For a kernel whose timer cannot be switched off.
    pub answer_within: Option<Duration>,
    /// Bytes of memory for what was fetched; at least [`HttpOptions::LEAST_MEMORY`] are taken.
    pub memory: u64,
    /// The `User-Agent` field.
    pub user_agent: String,
}

impl HttpOptions {
    /// With less, streams could not be fetched ahead while others are waiting.
    pub const LEAST_MEMORY: u64 = 8 << 20;
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            headers: Vec::new(),
            netrc: default_netrc(),
            ca: None,
            proxy_from_env: true,
            answer_within: None,
            memory: 32 << 20,
            user_agent: concat!("loopmount/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Without the values of header fields: they may be credentials.
impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("HttpOptions")
            .field("headers", &names)
            .field("netrc", &self.netrc)
            .field("ca", &self.ca)
            .field("proxy_from_env", &self.proxy_from_env)
            .field("answer_within", &self.answer_within)
            .field("memory", &self.memory)
            .field("user_agent", &self.user_agent)
            .finish()
    }
}

fn default_netrc() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("NETRC") {
        return Some(path.into());
    }
    let home = std::env::var_os("HOME")?;
    Some(PathBuf::from(home).join(".netrc"))
}

/// Which file on which server is read; what to compare before it is opened again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpIdentity {
    /// The URL without credentials and without its query.
    pub url: String,
    /// The ETag that promises equality byte for byte, as sent.
    pub strong_etag: Option<String>,
    /// `Last-Modified`, as sent.
    pub last_modified: Option<String>,
    /// Number of bytes.
    pub size: u64,
}

/// What reading has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpStats {
    /// Requests sent, with redirects and repetitions.
    pub requests: u64,
    /// Bytes of bodies received.
    pub bytes: u64,
    /// Requests that were repetitions of one that failed.
    pub retries: u64,
}
