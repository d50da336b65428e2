//! The header fields of an answer that decide whether its bytes may be used. Pure.

use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED};
use reqwest::header::{HeaderName, IF_MATCH, IF_UNMODIFIED_SINCE, RETRY_AFTER};

use crate::ByteRange;

/// A longer ETag or date is taken for none: it would be sent back with every request.
const LONGEST_VALIDATOR: usize = 1024;

/// `Content-Range` (RFC 9110, section 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The bytes in the body; `None` in an answer that has none of them (`bytes */1234`).
    pub(super) range: Option<ByteRange>,
    /// Bytes of the whole; `None` when the server does not know (`*`).
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// The field, if there is exactly one and it keeps the grammar.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(CONTENT_RANGE).iter();
        let text = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(text)
    }

    /// As [`Self::of`], for the value of the field.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        let total = match total {
            "*" => None,
            digits => Some(number(digits)?),
        };
        if range == "*" {
            return Some(Self { range: None, total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
        if end <= first || total.is_some_and(|total| total < end) {
            return None;
        }
        Some(Self {
            range: Some(ByteRange::between(first, end)),
            total,
        })
    }
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// What tells one version of a file from another (RFC 9110, section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Validator {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

/// The outcome of comparing the validators of two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Same {
    /// Nothing speaks against it.
    Yes,
    /// A validator differs.
    No,
    /// There was one and now there is none to compare it with.
    Unproven,
}

impl Validator {
    /// The validators of an answer.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let field = |name: HeaderName| {
            let value = headers.get(name)?;
            (!value.is_empty() && value.len() <= LONGEST_VALIDATOR).then(|| value.clone())
        };
        Self {
            etag: field(ETAG),
            last_modified: field(LAST_MODIFIED),
        }
    }

    /// Whether there is none.
    pub(super) fn is_none(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    /// The ETag, when it promises equality byte for byte: quoted and not marked `W/`.
    fn strong(&self) -> Option<&HeaderValue> {
        self.etag.as_ref().filter(|etag| {
            let bytes = etag.as_bytes();
            bytes.len() >= 2 && bytes.starts_with(b"\"") && bytes.ends_with(b"\"")
        })
    }

    /// Whether an answer with `other` can be of the same version as one with `self`.
    pub(super) fn compare(&self, other: &Self) -> Same {
        if let (Some(ours), Some(theirs)) = (self.strong(), other.strong()) {
            // Equal bytes by definition, whatever the date says: mirrors set their own.
            return if ours == theirs { Same::Yes } else { Same::No };
        }
        let etags = self.etag.as_ref().zip(other.etag.as_ref());
        let dates = self
            .last_modified
            .as_ref()
            .zip(other.last_modified.as_ref());
        let opaque = |etag: &HeaderValue| {
            let bytes = etag.as_bytes();
            bytes.strip_prefix(b"W/").unwrap_or(bytes).to_vec()
        };
        let differs = etags.is_some_and(|(ours, theirs)| opaque(ours) != opaque(theirs))
            || dates.is_some_and(|(ours, theirs)| ours != theirs);
        match (
            differs,
            etags.is_some() || dates.is_some() || self.is_none(),
        ) {
            (true, _) => Same::No,
            (false, true) => Same::Yes,
            (false, false) => Same::Unproven,
        }
    }

    /// The field that makes a server with another version answer 412 and send nothing.
    ///
    /// Not `If-Range`: with it a changed file is answered by 200 and all of its bytes, which
    /// would also be the answer of a server that no longer does ranges; and it allows the server
    /// to leave `Last-Modified` out of a 206 (RFC 9110, section 15.3.7), which we compare.
    pub(super) fn precondition(&self) -> Option<(HeaderName, HeaderValue)> {
        if let Some(etag) = self.strong() {
            return Some((IF_MATCH, etag.clone()));
        }
        // A weak ETag never matches in If-Match (section 13.1.1).
        let date = self.last_modified.as_ref()?;
        Some((IF_UNMODIFIED_SINCE, date.clone()))
    }

    /// The strong ETag, as text.
    pub(super) fn strong_text(&self) -> Option<String> {
        self.strong().map(text)
    }

    /// The date, as text.
    pub(super) fn date_text(&self) -> Option<String> {
        self.last_modified.as_ref().map(text)
    }

    /// For messages: `ETag "abc"`, `Last-Modified ...` or `no validator`.
    pub(super) fn describe(&self) -> String {
        match (&self.etag, &self.last_modified) {
            (Some(etag), _) => format!("ETag {}", text(etag)),
            (None, Some(date)) => format!("Last-Modified {}", text(date)),
            (None, None) => "no validator".to_owned(),
        }
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// `Retry-After` (RFC 9110, section 10.2.3), from `now` in seconds since 1970.
pub(super) fn retry_after(headers: &HeaderMap, now: u64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match number(text) {
        Some(seconds) => seconds,
        None => http_date(text)?.saturating_sub(now),
    };
    Some(Duration::from_secs(seconds))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that may be sent (RFC
/// 9110, section 5.6.7).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day = number(parts.next()?)?;
    let name = parts.next().filter(|name| name.len() == 3)?;
    let month = MONTHS.find(name).filter(|at| at.is_multiple_of(3))? as u64 / 3 + 1;
    let year = number(parts.next()?)?;
    let mut clock = parts.next()?.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let rest = (parts.next(), parts.next(), clock.next());
    let possible = (1970..=9999).contains(&year)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !possible || rest != (Some("GMT"), None, None) {
        return None;
    }
    // Days from 1970-01-01, with years that start in March so that leap days come last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        let parse = |text| ContentRange::parse(text).map(|it| (it.range, it.total));
        let range = |start, end| Some(ByteRange::between(start, end));
        assert_eq!(parse("bytes 0-99/1234"), Some((range(0, 100), Some(1234))));
        assert_eq!(parse("Bytes 5-5/*"), Some((range(5, 6), None)));
        assert_eq!(parse("bytes */1234"), Some((None, Some(1234))));
        for wrong in [
            "",
            "bytes",
            "bytes 0-99",
            "bytes 0-/5",
            "bytes -5/10",
            "bytes 9-8/10",
            "bytes 0-10/10",
            "bytes +0-1/10",
            "bytes 0-1/+10",
            "lines 0-1/10",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        let twice = [
            (CONTENT_RANGE, "bytes 0-1/9"),
            (CONTENT_RANGE, "bytes 2-3/9"),
        ];
        assert_eq!(ContentRange::of(&headers(&twice)), None);
    }

    #[test]
    fn validators_are_compared_as_strongly_as_both_allow() {
        const DAY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const NEXT: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
        let of = |etag: &str, date: &str| {
            let mut fields = vec![];
            if !etag.is_empty() {
                fields.push((ETAG, etag));
            }
            if !date.is_empty() {
                fields.push((LAST_MODIFIED, date));
            }
            Validator::of(&headers(&fields))
        };
        let cases = [
            (of("\"a\"", DAY), of("\"a\"", NEXT), Same::Yes),
            (of("\"a\"", DAY), of("\"b\"", DAY), Same::No),
            (of("\"a\"", ""), of("W/\"a\"", ""), Same::Yes),
            (of("W/\"a\"", DAY), of("W/\"a\"", NEXT), Same::No),
            (of("W/\"a\"", DAY), of("W/\"b\"", DAY), Same::No),
            (of("\"a\"", DAY), of("", DAY), Same::Yes),
            (of("\"a\"", DAY), of("", NEXT), Same::No),
            (of("\"a\"", ""), of("", DAY), Same::Unproven),
            (of("", DAY), of("", ""), Same::Unproven),
            (of("", ""), of("\"a\"", DAY), Same::Yes),
        ];
        for (first, then, expected) in cases {
            assert_eq!(first.compare(&then), expected, "{first:?} {then:?}");
        }
        assert_eq!(of("\"a\"", DAY).precondition().unwrap().0, IF_MATCH);
        assert_eq!(
            of("W/\"a\"", DAY).precondition().unwrap().0,
            IF_UNMODIFIED_SINCE
        );
        assert_eq!(of("unquoted", "").precondition(), None);
        assert!(of(&"x".repeat(LONGEST_VALIDATOR + 1), "").is_none());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = 784_111_777;
        let after = |text: &str| {
            retry_after(&headers(&[(RETRY_AFTER, text)]), now).map(|time| time.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(
            after("Thu, 29 Feb 1996 00:00:00 GMT"),
            Some(825_552_000 - now)
        );
        for wrong in [
            "-1",
            "soon",
            "Sun, 06 anF 1994 08:49:37 GMT",
            "Sun, 6 Nov",
            "x, 1 Jan 0 0:0:0 GMT",
        ] {
            assert_eq!(after(wrong), None, "{wrong}");
        }
    }
}
