//! Where a request goes, and how that is written down without secrets.

use std::fmt;

use percent_encoding::percent_decode_str;
use reqwest::Url;

use crate::{Error, Kind, Result};

/// Longest URL that is taken, from the user or from a `Location`.
const LONGEST: usize = 8192;

/// An http or https URL without user name, password and fragment.
///
/// `Debug` and `Display` leave out the query: signed URLs carry their key there, and no list of
/// names of such parameters could be complete.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address(Url);

/// Scheme, host and port: what credentials are bound to (RFC 6454, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

/// A user name and password, from a URL or a netrc file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

impl Address {
    /// Reads what the user typed: the address, and the credentials that stood before the host.
    ///
    /// # Errors
    /// `Unsupported` for what is no http or https URL. The text itself is not repeated: it may
    /// hold a password.
    pub(super) fn parse(text: &str) -> Result<(Self, Option<Login>)> {
        let no_url = |why: &str| {
            Error::new(Kind::Unsupported, format!("not a usable URL: {why}"))
                .hint("http://HOST/PATH or https://HOST/PATH is expected")
        };
        if text.len() > LONGEST {
            return Err(no_url(&format!(
                "{} bytes, more than {LONGEST}",
                text.len()
            )));
        }
        let url = Url::parse(text).map_err(|error| no_url(&error.to_string()))?;
        let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let login = (!url.username().is_empty() || url.password().is_some()).then(|| Login {
            user: decoded(url.username()),
            password: url.password().map(decoded),
        });
        let address = Self::clean(url).map_err(|why| no_url(&why))?;
        Ok((address, login))
    }

    /// Where a `Location` in an answer from here leads.
    ///
    /// # Errors
    /// `Denied` when it leaves http and https or goes from https to http; `Io` when it is no URL.
    pub(super) fn redirect(&self, location: &str) -> Result<Self> {
        if location.len() > LONGEST {
            let len = location.len();
            return Err(Error::new(
                Kind::Io,
                format!("{self} redirects to a URL of {len} bytes, more than {LONGEST}"),
            ));
        }
        let url = self.0.join(location).map_err(|error| {
            Error::new(Kind::Io, format!("{self} redirects to what is no URL")).caused_by(error)
        })?;
        let to = Self::clean(url).map_err(|why| {
            Error::new(Kind::Denied, format!("{self} redirects elsewhere: {why}"))
        })?;
        if self.0.scheme() == "https" && to.0.scheme() != "https" {
            return Err(Error::new(
                Kind::Denied,
                format!("{self} redirects from https to http: {to}"),
            )
            .hint("if that is wanted, give the http URL itself"));
        }
        Ok(to)
    }

    fn clean(mut url: Url) -> Result<Self, String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("the scheme is `{}`", url.scheme()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("it names no host".to_owned());
        }
        // These fail only for URLs that cannot have them; one with a host can.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// The URL to ask for.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }

    /// The last part of the path, as in the URL.
    pub(super) fn file_name(&self) -> &str {
        self.0.path().rsplit('/').next().unwrap_or_default()
    }

    /// The file `name`, as in a URL, in the same folder.
    pub(super) fn beside(&self, name: &str) -> Self {
        let mut url = self.0.clone();
        let path = self.0.path();
        let folder = path.strip_suffix(self.file_name()).unwrap_or(path);
        url.set_path(&format!("{folder}{name}"));
        Self(url)
    }

    /// Host name or IP address, as in the URL.
    pub(super) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// `host:port`, for messages.
    pub(super) fn authority(&self) -> String {
        format!("{}:{}", self.host(), self.port())
    }

    fn port(&self) -> u16 {
        // http and https both have a default.
        self.0.port_or_known_default().unwrap_or_default()
    }

    /// What credentials are bound to.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            scheme: self.0.scheme().to_owned(),
            host: self.host().to_owned(),
            port: self.port(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.host())?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())?;
        if self.0.query().is_some() {
            f.write_str("?...")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap().0
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        let (address, login) =
            Address::parse("https://me:p%40ss@host:8443/a%20b/disk.xz?X-Amz-Signature=abc#frag")
                .unwrap();
        let login = login.unwrap();
        assert_eq!(
            (login.user.as_str(), login.password.as_deref()),
            ("me", Some("p@ss"))
        );
        let shown = "https://host:8443/a%20b/disk.xz?...";
        assert_eq!(address.to_string(), shown);
        assert_eq!(
            format!("{address:?} {login:?}"),
            format!("{shown} Login(..)")
        );
        assert_eq!(
            address.url().as_str(),
            "https://host:8443/a%20b/disk.xz?X-Amz-Signature=abc"
        );
    }

    #[test]
    fn only_http_and_https_are_taken_and_the_text_is_not_repeated() {
        for text in [
            "ftp://me:secret@host/x",
            "file:///etc/secret",
            "secret",
            "http://",
            "https://me:secret@",
            "http://me:secret@host:99999/",
        ] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{text}");
            assert!(
                !format!("{error:?} {}", error.report()).contains("secret"),
                "{text}"
            );
        }
        assert!(Address::parse(&format!("http://host/{}", "x".repeat(LONGEST))).is_err());
    }

    #[test]
    fn a_redirect_may_not_leave_http_nor_lose_tls() {
        let from = address("https://host/a/disk.xz");
        assert_eq!(from.redirect("../b").unwrap(), address("https://host/b"));
        assert_eq!(
            from.redirect("https://u:p@other/b").unwrap(),
            address("https://other/b")
        );
        for location in ["http://host/b", "file:///etc/passwd", "gopher://host/"] {
            assert_eq!(from.redirect(location).unwrap_err().kind(), Kind::Denied);
        }
        assert_eq!(from.redirect("https://[").unwrap_err().kind(), Kind::Io);
        let plain = address("http://host/");
        assert_eq!(
            plain.redirect("https://host/").unwrap(),
            address("https://host/")
        );
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text| address(text).origin();
        assert_eq!(origin("http://host/a"), origin("http://HOST:80/b?c"));
        assert_ne!(origin("http://host/"), origin("https://host/"));
        assert_ne!(origin("http://host/"), origin("http://host:8080/"));
        assert_ne!(origin("http://host/"), origin("http://host.example/"));
    }
}
