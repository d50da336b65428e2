//! Whether the bytes of an answer are those that were asked for. Pure: status and fields in,
//! a range or a failure out.

use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::header::TRANSFER_ENCODING;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{StatusCode, Version};

use super::address::Address;
use super::failure::Failure;
use super::headers::{ContentRange, Validator, retry_after};
use super::multipart;
pub(super) use super::version::{Source, same_length};
use crate::{ByteRange, Error, Kind};

/// What an answer to a request for several ranges holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SetContent {
    /// One range, which may be some of them or hold all of them.
    One(ByteRange),
    /// Parts with this delimiter.
    Several(Vec<u8>),
    /// Nothing that may be used, for this reason: the server does not answer such requests.
    Useless(String),
}

/// The head of an answer, and who gave it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub(super) from: &'a Address,
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
}

impl Head<'_> {
    /// Learns the source from the answer to the first request, which was for `asked`, from 0 on.
    /// Returns the bytes that are in the body: from 0 on, and no more than `asked`.
    pub(super) fn first(&self, asked: ByteRange) -> Result<(Source, ByteRange), Failure> {
        let source = |size| Source {
            size,
            validator: Validator::of(self.headers),
        };
        match self.status {
            StatusCode::PARTIAL_CONTENT => {
                self.plain_bytes()?;
                let Some(field) = ContentRange::of(self.headers) else {
                    return Err(Failure::Final(self.wrong_range(asked)));
                };
                let Some(size) = field.total else {
                    let what = format!("{} does not say how long the file is", self.from);
                    return Err(Failure::Final(
                        Error::new(Kind::Unsupported, what).hint(DOWNLOAD),
                    ));
                };
                Ok((source(size), self.within(asked, field)?))
            }
            StatusCode::OK => {
                self.plain_bytes()?;
                // A range that covers all of a short file may be answered by the file.
                if let Some(size) = self.length()
                    && size <= asked.len()
                {
                    return Ok((source(size), ByteRange::between(0, size)));
                }
                let what = format!(
                    "the server of {} cannot send parts of a file: asked for {asked}, \
                     it sends all of it",
                    self.from
                );
                Err(Failure::Final(
                    Error::new(Kind::Unsupported, what).hint(DOWNLOAD),
                ))
            }
            // No range can be satisfied in an empty file.
            StatusCode::RANGE_NOT_SATISFIABLE if self.total() == Some(0) => {
                Ok((source(0), ByteRange::between(0, 0)))
            }
            _ => Err(self.refused()),
        }
    }

    /// The bytes in the body of the answer to a request for `asked`: from its start on, and no
    /// more than it; of the version that `source` describes.
    pub(super) fn part(&self, asked: ByteRange, source: &Source) -> Result<ByteRange, Failure> {
        match self.status {
            StatusCode::PARTIAL_CONTENT => {
                self.not_encoded()?;
                let Some(field) = ContentRange::of(self.headers) else {
                    return Err(Failure::Final(self.wrong_range(asked)));
                };
                source.same_length(self.from, field.total)?;
                source.same_version(self.from, self.headers)?;
                self.within(asked, field)
            }
            StatusCode::OK => {
                self.plain_bytes()?;
                source.same_version(self.from, self.headers)?;
                if source.validator.is_none() {
                    source.same_length(self.from, self.length())?;
                }
                if asked.len() == source.size && self.length() == Some(source.size) {
                    return Ok(asked);
                }
                let what = format!(
                    "asked for {asked}, {} answers with the whole file ({})",
                    self.from,
                    self.length_text()
                );
                Err(Failure::Final(Error::new(Kind::Io, what)))
            }
            StatusCode::PRECONDITION_FAILED => Err(source.gone(self.from, self.status)),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                source.same_length(self.from, self.total())?;
                let what = format!(
                    "{} refuses {asked} of {} bytes: {}",
                    self.from, source.size, self.status
                );
                Err(Failure::transient(Error::new(Kind::Io, what)))
            }
            _ => Err(self.refused()),
        }
    }

    /// What the body of the answer to a request for several ranges holds, of the version that
    /// `source` describes. One of more than `most` bytes is not read.
    pub(super) fn set(&self, most: u64, source: &Source) -> Result<SetContent, Failure> {
        let useless = |why: String| Ok(SetContent::Useless(why));
        let one = |range: ByteRange| {
            if range.len() > most {
                return useless(format!("it sends {range}"));
            }
            Ok(SetContent::One(range))
        };
        match self.status {
            StatusCode::PARTIAL_CONTENT => {
                self.not_encoded()?;
                source.same_version(self.from, self.headers)?;
                let media_type = self.headers.get(CONTENT_TYPE);
                let media_type = media_type.and_then(|value| value.to_str().ok());
                if let Some(boundary) = media_type.and_then(multipart::boundary) {
                    if self.length().is_some_and(|len| len > most) {
                        return useless(format!("it sends {}", self.length_text()));
                    }
                    return Ok(SetContent::Several(boundary));
                }
                let Some(ContentRange {
                    range: Some(range),
                    total,
                }) = ContentRange::of(self.headers)
                else {
                    return useless("it sends parts without their places".to_owned());
                };
                source.same_length(self.from, total)?;
                one(range)
            }
            StatusCode::OK => {
                self.plain_bytes()?;
                source.same_version(self.from, self.headers)?;
                if self.length() != Some(source.size) {
                    return useless(format!("it sends all of it ({})", self.length_text()));
                }
                one(ByteRange::between(0, source.size))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                source.same_length(self.from, self.total())?;
                useless(self.status.to_string())
            }
            StatusCode::PRECONDITION_FAILED => Err(source.gone(self.from, self.status)),
            _ => match self.refused() {
                Failure::Final(_) => useless(self.status.to_string()),
                failure => Err(failure),
            },
        }
    }

    /// Checks the answer to a request for a whole file. Returns its length, if it is told.
    pub(super) fn whole(&self) -> Result<Option<u64>, Failure> {
        if self.status != StatusCode::OK {
            return Err(self.refused());
        }
        self.plain_bytes()?;
        Ok(self.length())
    }

    /// Whether there is a file, whole or in parts.
    pub(super) fn is_there(&self) -> Result<(), Failure> {
        match self.status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => self.plain_bytes(),
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(()),
            _ => Err(self.refused()),
        }
    }

    /// Whether the end of a body without a length can be told from a broken connection: by the
    /// last chunk in HTTP/1.1, by a flag in HTTP/2.
    pub(super) fn has_an_end(&self, version: Version) -> bool {
        version == Version::HTTP_2 || self.headers.contains_key(TRANSFER_ENCODING)
    }

    /// Where to ask instead.
    pub(super) fn redirect(&self) -> Option<Result<Address, Failure>> {
        if !matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return None;
        }
        let location = self.headers.get(LOCATION)?;
        let text = String::from_utf8_lossy(location.as_bytes());
        Some(self.from.redirect(&text).map_err(Failure::Final))
    }

    /// What an answer without usable bytes means.
    fn refused(&self) -> Failure {
        let what = format!("{} is refused: {}", self.from, self.status);
        let error = |kind| Error::new(kind, what.clone());
        match self.status.as_u16() {
            401 | 407 => Failure::Expired(error(Kind::Denied).hint(
                "credentials come from the URL, from ~/.netrc, or from \
                 --header 'Authorization: ...'",
            )),
            403 => Failure::Expired(
                error(Kind::Denied).hint("has a signed URL expired, or are credentials missing?"),
            ),
            404 | 410 => Failure::Absent(
                Error::new(
                    Kind::Io,
                    format!("there is no {}: {}", self.from, self.status),
                )
                .hint("is the URL right?"),
            ),
            300..=399 => Failure::Expired(error(Kind::Io)),
            408 | 425 | 429 => Failure::Transient(error(Kind::Io), self.retry_after()),
            501 | 505 => Failure::Final(error(Kind::Io)),
            500..=599 => Failure::Transient(error(Kind::Io), self.retry_after()),
            _ => Failure::Final(error(Kind::Io)),
        }
    }

    fn retry_after(&self) -> Option<std::time::Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        retry_after(self.headers, now.map_or(0, |now| now.as_secs()))
    }

    /// The bytes of the body, from `asked.start()` on and within `asked`. A server may send less
    /// than it was asked for (RFC 9110, section 15.3.7), but not something else.
    fn within(&self, asked: ByteRange, field: ContentRange) -> Result<ByteRange, Failure> {
        field
            .range
            .filter(|range| range.start() == asked.start() && asked.contains(*range))
            .ok_or_else(|| Failure::Final(self.wrong_range(asked)))
    }

    fn wrong_range(&self, asked: ByteRange) -> Error {
        let what = match ContentRange::of(self.headers) {
            Some(ContentRange {
                range: Some(got),
                total,
            }) => {
                let total = total.map_or("?".to_owned(), |total| total.to_string());
                format!("{got} of {total}")
            }
            _ => "a part without a usable Content-Range".to_owned(),
        };
        Error::new(
            Kind::Io,
            format!("asked for {asked}, {} answers with {what}", self.from),
        )
    }

    /// Neither encoded nor a page for a browser.
    fn plain_bytes(&self) -> Result<(), Failure> {
        self.not_encoded()?;
        let media_type = self.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
        let media_type = media_type.unwrap_or_default().to_ascii_lowercase();
        if media_type.starts_with(b"text/html") || media_type.starts_with(b"application/xhtml") {
            let what = format!(
                "{} is an HTML page (Content-Type text/html), not an image",
                self.from
            );
            return Err(Failure::Final(Error::new(Kind::NotThisFormat, what).hint(
                "the URL of the file itself is expected, not of a folder or a download page; \
                 a login page needs credentials",
            )));
        }
        Ok(())
    }

    fn not_encoded(&self) -> Result<(), Failure> {
        let fields = self.headers.get_all(CONTENT_ENCODING).iter();
        for field in fields {
            let coding = String::from_utf8_lossy(field.as_bytes());
            if !coding.trim().is_empty() && !coding.trim().eq_ignore_ascii_case("identity") {
                let what = format!(
                    "{} is sent with Content-Encoding {coding}, although none was asked for: \
                     its bytes are not those of the file",
                    self.from
                );
                return Err(Failure::Final(Error::new(Kind::Unsupported, what)));
            }
        }
        Ok(())
    }

    fn total(&self) -> Option<u64> {
        ContentRange::of(self.headers)?.total
    }

    fn length(&self) -> Option<u64> {
        self.headers
            .get(CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    fn length_text(&self) -> String {
        self.length()
            .map_or("of unknown length".to_owned(), |len| format!("{len} bytes"))
    }
}

/// What to do when a file cannot be read in parts.
const DOWNLOAD: &str = "--download fetches it once, into a temporary file";

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    const SIZE: u64 = 1000;

    fn check(
        status: u16,
        fields: &[(&str, &str)],
        call: impl Fn(Head<'_>) -> Result<ByteRange, Failure>,
    ) -> Result<ByteRange, (char, Kind)> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::try_from(*name).unwrap();
            headers.append(name, HeaderValue::try_from(*value).unwrap());
        }
        let from = Address::parse("http://host/file").unwrap().0;
        let status = StatusCode::from_u16(status).unwrap();
        let head = Head {
            from: &from,
            status,
            headers: &headers,
        };
        call(head).map_err(|failure| {
            let sort = match failure {
                Failure::Final(_) => 'F',
                Failure::Changed(_) => 'C',
                Failure::Expired(_) => 'E',
                Failure::Absent(_) => 'A',
                Failure::Transient(..) => 'T',
            };
            (sort, failure.into_error().kind())
        })
    }

    fn source() -> Source {
        let mut headers = HeaderMap::new();
        headers.insert("etag", HeaderValue::from_static("\"a\""));
        Source {
            size: SIZE,
            validator: Validator::of(&headers),
        }
    }

    #[test]
    fn a_part_is_used_only_if_it_is_the_part_asked_for() {
        let asked = ByteRange::between(100, 200);
        let part = |status, range: &str, etag: &str| {
            let fields = [("content-range", range), ("etag", etag)];
            check(status, &fields, |head| head.part(asked, &source()))
        };
        let good = "bytes 100-199/1000";
        assert_eq!(part(206, good, "\"a\""), Ok(asked));
        let less = Ok(ByteRange::between(100, 150));
        assert_eq!(part(206, "bytes 100-149/*", "\"a\""), less);
        for wrong in [
            "bytes 99-199/1000",
            "bytes 101-199/1000",
            "bytes 100-200/1000",
            "bytes */1000",
            "nonsense",
        ] {
            assert_eq!(part(206, wrong, "\"a\""), Err(('F', Kind::Io)), "{wrong}");
        }
        let changed = Err(('C', Kind::Changed));
        assert_eq!(part(206, "bytes 100-199/1001", "\"a\""), changed);
        assert_eq!(part(206, good, "\"b\""), changed);
        assert_eq!(part(200, good, "\"b\""), changed);
        assert_eq!(part(200, good, "\"a\""), Err(('F', Kind::Io)));
        assert_eq!(part(412, "", ""), changed);
        assert_eq!(part(416, "bytes */10", ""), changed);
        assert_eq!(part(416, "bytes */1000", ""), Err(('T', Kind::Io)));
        let unproven = [("content-range", good)];
        let unproven = check(206, &unproven, |head| head.part(asked, &source()));
        assert_eq!(unproven, Err(('F', Kind::Io)));
    }

    #[test]
    fn an_encoded_body_or_a_page_is_never_used() {
        let asked = ByteRange::between(0, 100);
        for field in [
            ("content-encoding", "gzip"),
            ("content-encoding", "identity, br"),
        ] {
            let fields = [
                ("content-range", "bytes 0-99/1000"),
                ("etag", "\"a\""),
                field,
            ];
            for status in [200, 206] {
                let found = check(status, &fields, |head| head.part(asked, &source()));
                assert_eq!(found, Err(('F', Kind::Unsupported)));
                let found = check(status, &fields, |head| Ok(head.first(asked)?.1));
                assert_eq!(found, Err(('F', Kind::Unsupported)));
            }
        }
        for page in [
            "text/html",
            "Text/HTML; charset=utf-8",
            "application/xhtml+xml",
        ] {
            let fields = [("content-type", page), ("content-length", "50")];
            let found = check(200, &fields, |head| Ok(head.first(asked)?.1));
            assert_eq!(found, Err(('F', Kind::NotThisFormat)));
        }
    }

    #[test]
    fn the_first_answer_tells_the_size() {
        let asked = ByteRange::between(0, 500);
        let first = |status, fields: &[(&str, &str)]| {
            check(status, fields, |head| {
                let (source, served) = head.first(asked)?;
                assert!(served.end() <= source.size);
                Ok(ByteRange::between(served.end(), source.size))
            })
        };
        let range = |text| [("content-range", text)];
        let length = |text| [("content-length", text)];
        let left = |start, end| Ok(ByteRange::between(start, end));
        assert_eq!(first(206, &range("bytes 0-499/1000")), left(500, 1000));
        assert_eq!(first(206, &range("bytes 0-9/10")), left(10, 10));
        assert_eq!(
            first(206, &range("bytes 0-9/*")),
            Err(('F', Kind::Unsupported))
        );
        assert_eq!(first(206, &range("bytes 1-9/10")), Err(('F', Kind::Io)));
        assert_eq!(first(206, &[]), Err(('F', Kind::Io)));
        assert_eq!(first(200, &length("500")), left(500, 500));
        assert_eq!(first(200, &length("0")), left(0, 0));
        assert_eq!(first(200, &length("501")), Err(('F', Kind::Unsupported)));
        assert_eq!(first(200, &[]), Err(('F', Kind::Unsupported)));
        assert_eq!(first(416, &range("bytes */0")), left(0, 0));
        assert_eq!(first(416, &range("bytes */9")), Err(('F', Kind::Io)));
    }

    #[test]
    fn refusals_are_told_apart() {
        let sort = |status| {
            check(status, &[], |head| Err(head.refused()))
                .unwrap_err()
                .0
        };
        let all = [401, 403, 404, 410, 302, 408, 429, 500, 503, 400, 501];
        assert_eq!(
            all.map(sort),
            ['E', 'E', 'A', 'A', 'E', 'T', 'T', 'T', 'T', 'F', 'F']
        );
    }
}
