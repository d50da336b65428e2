//! A body of several parts, each with its place in the file: `multipart/byteranges` (RFC 9110,
//! section 14.6; RFC 2046, section 5.1). Pure: pieces of the body in, places and bytes out.
//!
//! A part says how long it is, so its end is not searched for: the delimiter must follow there.

use super::headers::ContentRange;
use crate::ByteRange;

/// RFC 2046, section 5.1.1.
const LONGEST_BOUNDARY: usize = 70;
/// Most bytes before the first part, and of one part's header. Apache sends 90, nginx 100.
const LONGEST_HEADER: usize = 4096;

/// The delimiter of the parts, from the field `Content-Type`. `None` when that is no
/// `multipart/byteranges` or names none that may be used.
pub(crate) fn boundary(content_type: &str) -> Option<Vec<u8>> {
    let (media_type, mut rest) = content_type.split_once(';')?;
    if !media_type
        .trim()
        .eq_ignore_ascii_case("multipart/byteranges")
    {
        return None;
    }
    loop {
        let (name, value) = rest.split_once('=')?;
        let (value, after) = parameter(value)?;
        if name.trim().eq_ignore_ascii_case("boundary") {
            return usable(&value).then(|| value.into_bytes());
        }
        rest = after.trim_start().strip_prefix(';')?;
    }
}

/// The value that `text` begins with, without quotes, and what follows.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((value.trim_end().to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, quoted.get(at.saturating_add(1)..)?)),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

/// More is let through than the grammar has: IIS writes brackets.
fn usable(boundary: &str) -> bool {
    let visible = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    (1..=LONGEST_BOUNDARY).contains(&boundary.len())
        && boundary.bytes().all(visible)
        && !boundary.ends_with(' ')
}

/// What comes next in a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A part begins: the bytes `range` of a file of `total` bytes, if that is said.
    Part {
        /// Where the bytes that follow belong.
        range: ByteRange,
        /// Length of the file.
        total: Option<u64>,
    },
    /// Bytes of the part, in order.
    Bytes(&'a [u8]),
    /// All parts were there. What follows has no meaning.
    End,
}

/// A body as it comes in.
#[derive(Debug)]
pub(crate) struct Multipart {
    boundary: Vec<u8>,
    state: State,
    /// The line that is not complete.
    line: Vec<u8>,
    /// Bytes of lines since the last part.
    header: usize,
    /// What the header of this part has said.
    place: Option<ContentRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first delimiter: what is no delimiter is ignored.
    Preamble,
    /// Fields of a part, up to an empty line.
    Header,
    /// So many bytes of the part are to come.
    Data(u64),
    /// The line break that belongs to the delimiter.
    Behind,
    /// The delimiter itself.
    Delimiter,
    Done,
}

impl Multipart {
    /// For a body whose parts have this delimiter.
    pub(crate) fn new(boundary: Vec<u8>) -> Self {
        Self {
            boundary,
            state: State::Preamble,
            line: Vec::new(),
            header: 0,
            place: None,
        }
    }

    /// The next event in `input`, from which what was used is taken; `None` when all was. After
    /// [`Event::End`], the same again.
    ///
    /// # Errors
    /// What is wrong with the body.
    pub(crate) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a>>, &'static str> {
        loop {
            match self.state {
                State::Done => return Ok(Some(Event::End)),
                State::Data(left) => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let (bytes, rest) = input.split_at(len);
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    *input = rest;
                    self.state = match left.saturating_sub(len as u64) {
                        0 => State::Behind,
                        left => State::Data(left),
                    };
                    return Ok(Some(Event::Bytes(bytes)));
                }
                State::Preamble | State::Header | State::Behind | State::Delimiter => {
                    if !self.take_line(input)? {
                        return Ok(None);
                    }
                    let line = std::mem::take(&mut self.line);
                    if let Some((range, total)) = self.line(&line)? {
                        return Ok(Some(Event::Part { range, total }));
                    }
                }
            }
        }
    }

    /// Whether the body may end here: the last line needs no line break.
    pub(crate) fn is_whole(&self) -> bool {
        let closed = || self.delimiter(&self.line) == Some(true);
        let at_delimiter = matches!(self.state, State::Preamble | State::Delimiter);
        self.state == State::Done || (at_delimiter && closed())
    }

    /// Moves bytes from `input` up to a line break. False when there is none.
    fn take_line(&mut self, input: &mut &[u8]) -> Result<bool, &'static str> {
        let found = input.iter().position(|byte| *byte == b'\n');
        let end = found.map_or(input.len(), |at| at.saturating_add(1));
        let (line, rest) = input.split_at(end);
        *input = rest;
        self.header = self.header.saturating_add(end);
        if self.header > LONGEST_HEADER {
            return Err("the header of a part is too long");
        }
        self.line.extend_from_slice(line);
        Ok(found.is_some())
    }

    /// Takes a line, with its line break. Returns the place of the part that begins behind it.
    fn line(&mut self, line: &[u8]) -> Result<Option<(ByteRange, Option<u64>)>, &'static str> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.state {
            State::Behind if line.is_empty() => self.state = State::Delimiter,
            State::Behind => return Err("a part is longer than it says"),
            State::Preamble | State::Delimiter => match self.delimiter(line) {
                Some(true) => self.state = State::Done,
                Some(false) => self.state = State::Header,
                None if self.state == State::Preamble => {}
                None => return Err("there is no delimiter where a part ends"),
            },
            State::Header if line.is_empty() => {
                let place = self.place.take();
                let place = place.and_then(|place| Some((place.range?, place.total)));
                let (range, total) = place.ok_or("a part without a place")?;
                self.header = 0;
                // Never empty: such a range has no form.
                self.state = State::Data(range.len());
                return Ok(Some((range, total)));
            }
            State::Header => self.field(line)?,
            State::Data(_) | State::Done => {}
        }
        Ok(None)
    }

    /// Takes a field of a part's header. Only one has a meaning here.
    fn field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let wrong = "the header of a part is malformed";
        let text = std::str::from_utf8(line).map_err(|_| wrong)?;
        if text.starts_with([' ', '\t']) {
            return Err(wrong);
        }
        let (name, value) = text.split_once(':').ok_or(wrong)?;
        if name.trim_end().eq_ignore_ascii_case("content-range") {
            let place = ContentRange::parse(value).ok_or("the place of a part makes no sense")?;
            if self.place.replace(place).is_some() {
                return Err("a part has two places");
            }
        }
        Ok(())
    }

    /// Whether a line without its line break is a delimiter, and if so, the last one.
    fn delimiter(&self, line: &[u8]) -> Option<bool> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let rest = line.strip_prefix(b"--")?.strip_prefix(&*self.boundary)?;
        let (rest, last) = match rest.strip_prefix(b"--") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let padding = rest.iter().all(|byte| matches!(byte, b' ' | b'\t'));
        padding.then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    /// Places and bytes of all parts; whether the end was there.
    type Parts = (Vec<(ByteRange, Option<u64>, Vec<u8>)>, bool);

    /// Takes `body` in pieces of `step` bytes.
    fn parse(body: &[u8], step: usize) -> Result<Parts, &'static str> {
        let mut parser = Multipart::new(b"xyz".to_vec());
        let mut parts = Vec::new();
        for mut piece in body.chunks(step) {
            while let Some(event) = parser.next(&mut piece)? {
                match event {
                    Event::Part { range, total } => parts.push((range, total, Vec::new())),
                    Event::Bytes(bytes) => {
                        assert!(!bytes.is_empty());
                        parts.last_mut().unwrap().2.extend_from_slice(bytes);
                    }
                    Event::End => break,
                }
            }
        }
        Ok((parts, parser.is_whole()))
    }

    /// As nginx sends it.
    const BODY: &str = "\r\n--xyz\r\nContent-Type: text/plain\r\n\
        Content-Range: bytes 5-7/100\r\n\r\n\r\n-\r\n\
        --xyz\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-0/100\r\n\r\na\r\n--xyz--\r\n";

    #[test]
    fn parts_are_the_same_however_the_body_is_cut() {
        let expected = vec![
            (range(5, 8), Some(100), b"\r\n-".to_vec()),
            (range(0, 1), Some(100), b"a".to_vec()),
        ];
        for step in 1..=BODY.len() {
            let found = parse(BODY.as_bytes(), step);
            assert_eq!(found, Ok((expected.clone(), true)), "{step}");
        }
    }

    #[test]
    fn a_body_that_ends_early_is_not_whole_and_brings_what_it_has() {
        let whole = BODY.len() - 2;
        for len in 0..BODY.len() {
            let (parts, end) = parse(&BODY.as_bytes()[..len], 7).unwrap();
            assert_eq!(end, len >= whole, "{len}");
            let bytes: usize = parts.iter().map(|part| part.2.len()).sum();
            assert!(bytes <= 4);
        }
    }

    #[test]
    fn bare_line_feeds_preambles_and_padding_are_taken() {
        let body = "Old mailers\ncannot read this.\n--xyz-no\n--xyz \t\n\
            content-range:bytes 0-2/*\n\nabc\n--xyz--";
        let expected = vec![(range(0, 3), None, b"abc".to_vec())];
        assert_eq!(parse(body.as_bytes(), 5), Ok((expected, true)));
        assert_eq!(parse(b"--xyz--", 3), Ok((vec![], true)));
        assert_eq!(parse(b"--xyz--\r\nepilogue", 3), Ok((vec![], true)));
    }

    #[test]
    fn what_breaks_the_form_is_refused() {
        let long = format!("--xyz\r\nX: {}\r\n\r\n", "y".repeat(LONGEST_HEADER));
        let preamble = "line\r\n".repeat(LONGEST_HEADER / 6 + 1);
        for (body, reason) in [
            ("--xyz\r\n\r\nabc", "without a place"),
            ("--xyz\r\nContent-Type: a/b\r\n\r\nabc", "without a place"),
            (
                "--xyz\r\nContent-Range: bytes */9\r\n\r\nabc",
                "without a place",
            ),
            ("--xyz\r\nContent-Range: bytes 3-1/9\r\n\r\nabc", "no sense"),
            ("--xyz\r\nContent-Range: bytes 0-9/9\r\n\r\nabc", "no sense"),
            (
                "--xyz\r\nContent-Range: bytes 0-1/9\r\nContent-Range: bytes 0-1/9\r\n\r\nab",
                "two places",
            ),
            (
                "--xyz\r\nContent-Range: bytes 0-1/9\r\n\r\nabc\r\n--xyz--\r\n",
                "longer",
            ),
            (
                "--xyz\r\nContent-Range: bytes 0-1/9\r\n\r\nab\r\n--zyx\r\n",
                "no delimiter",
            ),
            (
                "--xyz\r\nContent-Range: bytes 0-5/9\r\n\r\nab\r\n--xyz--\r\n",
                "longer",
            ),
            ("--xyz\r\nno field\r\n\r\n", "malformed"),
            (
                "--xyz\r\nContent-Range: bytes 0-1/9\r\n folded\r\n\r\n",
                "malformed",
            ),
            (&long, "too long"),
            (&preamble, "too long"),
        ] {
            for step in [1, 3, 10_000] {
                let error = parse(body.as_bytes(), step).unwrap_err();
                assert!(error.contains(reason), "{error}: {body}");
            }
        }
    }

    #[test]
    fn boundaries_are_read_from_the_media_type() {
        let of = |text: &str| boundary(text).map(|found| String::from_utf8(found).unwrap());
        let some = |text: &str| Some(text.to_owned());
        for (field, expected) in [
            (
                "multipart/byteranges; boundary=00000000000000000001",
                "00000000000000000001",
            ),
            ("Multipart/ByteRanges;BOUNDARY=a", "a"),
            (
                "multipart/byteranges; charset=utf-8; boundary=\"a b\\\"c;\"",
                "a b\"c;",
            ),
            (
                "multipart/byteranges; x=\"boundary=no;\" ; boundary=b ; y=z",
                "b",
            ),
            (
                "multipart/byteranges; boundary=[lka9uw3et5]",
                "[lka9uw3et5]",
            ),
        ] {
            assert_eq!(of(field), some(expected), "{field}");
        }
        let longest = "x".repeat(LONGEST_BOUNDARY);
        let field = |boundary: &str| format!("multipart/byteranges; boundary={boundary}");
        assert_eq!(of(&field(&longest)), some(&longest));
        for wrong in [
            "",
            "multipart/byteranges",
            "multipart/byteranges; boundary",
            "multipart/byteranges; boundary=",
            "multipart/byteranges; boundary=\"",
            "multipart/byteranges; boundary=\"a",
            "multipart/byteranges; boundary=\"a\\",
            "multipart/byteranges; boundary=\"a \"",
            "multipart/byteranges; boundary=\u{e4}",
            "multipart/byteranges; charset=x",
            "multipart/mixed; boundary=a",
            "text/html; boundary=a",
            &field(&format!("{longest}x")),
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
