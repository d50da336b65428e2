//! The text that LVM2 keeps its metadata in: sections, assignments, numbers, strings and lists. Pure
//! and bounded; what it returns points into the text.

use crate::error::quote;
use crate::{Error, Kind, Result};

/// Sections within sections, lists within lists. LVM2 itself needs five.
const MAX_DEPTH: usize = 16;
/// Sections, assignments and values together.
const MAX_NODES: usize = 1 << 18;
/// Names and values that are shown in a message.
const SHOWN: usize = 40;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// A whole number.
    Number(i64),
    /// A number with a point, which nothing here needs.
    Float,
    /// What stands between the quotes, with its backslashes.
    Text(&'a [u8]),
    /// `[1, "two"]`
    List(Vec<Value<'a>>),
    /// `name { ... }`
    Section(Section<'a>),
}

/// What is between two braces, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Section<'a> {
    entries: Vec<(&'a [u8], Value<'a>)>,
}

impl<'a> Section<'a> {
    /// The whole text.
    ///
    /// # Errors
    /// `Corrupt` where it breaks the grammar, `Limit` where it has more than all real ones together.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self> {
        let mut parser = Parser {
            text,
            at: 0,
            nodes: 0,
        };
        let section = parser.entries(0)?;
        match parser.peek() {
            None => Ok(section),
            Some(_) => Err(parser.wrong("a closing brace without an opening one")),
        }
    }

    /// Names and values.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a [u8], &Value<'a>)> {
        self.entries.iter().map(|(name, value)| (*name, value))
    }

    /// The value called `name`.
    ///
    /// # Errors
    /// `Corrupt` when there are two.
    pub(crate) fn get(&self, name: &str) -> Result<Option<&Value<'a>>> {
        let mut all = self.entries().filter(|(key, _)| *key == name.as_bytes());
        let found = all.next().map(|(_, value)| value);
        match all.next() {
            None => Ok(found),
            Some(_) => Err(corrupt(format!("\"{name}\" is given twice"))),
        }
    }

    /// The section called `name`; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` for what is no section.
    pub(crate) fn section(&self, name: &str) -> Result<Option<&Self>> {
        match self.get(name)? {
            None => Ok(None),
            Some(Value::Section(section)) => Ok(Some(section)),
            Some(_) => Err(corrupt(format!("\"{name}\" is no section"))),
        }
    }

    /// The number called `name`, not negative.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or something else.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        match self.get(name)? {
            Some(Value::Number(number)) => u64::try_from(*number)
                .map_err(|_| corrupt(format!("\"{name}\" is {number}, which is below zero"))),
            Some(_) => Err(corrupt(format!("\"{name}\" is no number"))),
            None => Err(missing(name)),
        }
    }

    /// The text called `name`.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or something else.
    pub(crate) fn text(&self, name: &str) -> Result<String> {
        match self.get(name)? {
            Some(Value::Text(raw)) => Ok(unescaped(raw)),
            Some(_) => Err(corrupt(format!("\"{name}\" is no text"))),
            None => Err(missing(name)),
        }
    }

    /// The texts of the list called `name`, or the only one; none when it is missing.
    ///
    /// # Errors
    /// `Corrupt` for something else.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>> {
        let no_text = || corrupt(format!("\"{name}\" is no list of texts"));
        match self.get(name)? {
            None => Ok(Vec::new()),
            Some(Value::Text(raw)) => Ok(vec![unescaped(raw)]),
            Some(Value::List(values)) => values
                .iter()
                .map(|value| match value {
                    Value::Text(raw) => Ok(unescaped(raw)),
                    _ => Err(no_text()),
                })
                .collect(),
            Some(_) => Err(no_text()),
        }
    }
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn missing(name: &str) -> Error {
    corrupt(format!("\"{name}\" is missing"))
}

/// A text without the backslashes before quotes and backslashes.
fn unescaped(raw: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        let escaped = byte == b'\\' && matches!(rest.peek(), Some(b'"' | b'\\'));
        bytes.push(match (escaped, rest.peek()) {
            (true, Some(&next)) => {
                rest.next();
                next
            }
            _ => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A name as it may stand in a message, in quotes.
pub(crate) fn shown(name: &[u8]) -> String {
    quote(&cut(name))
}

/// A name that is not too long for a message.
pub(crate) fn cut(name: &[u8]) -> String {
    let head = name.get(..SHOWN).unwrap_or(name);
    let more = if head.len() < name.len() { "..." } else { "" };
    format!("{}{more}", String::from_utf8_lossy(head))
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    nodes: usize,
}

impl<'a> Parser<'a> {
    fn wrong(&self, what: &str) -> Error {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        let line = before.iter().filter(|&&byte| byte == b'\n').count();
        let line = line.saturating_add(1);
        corrupt(format!("line {line} of the metadata: {what}"))
    }

    fn count(&mut self) -> Result<()> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > MAX_NODES {
            let what = format!("the metadata has more than {MAX_NODES} entries");
            return Err(Error::new(Kind::Limit, what));
        }
        Ok(())
    }

    /// The next byte that is no blank and no comment; the text may end with zeroes.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.get(self.at)?;
            match byte {
                0 => return None,
                b'#' => {
                    let rest = self.text.get(self.at..).unwrap_or_default();
                    let line = rest.iter().position(|&byte| byte == b'\n');
                    self.at = self.at.saturating_add(line.unwrap_or(rest.len()));
                }
                b' ' | b'\t' | b'\r' | b'\n' => self.at = self.at.saturating_add(1),
                other => return Some(other),
            }
        }
    }

    fn take(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    /// The bytes from here on for which `fits` holds.
    fn run(&mut self, fits: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&byte| !fits(byte));
        let run = rest.get(..len.unwrap_or(rest.len())).unwrap_or(rest);
        self.at = self.at.saturating_add(run.len());
        run
    }

    /// Entries up to a closing brace or the end.
    fn entries(&mut self, depth: usize) -> Result<Section<'a>> {
        let mut section = Section::default();
        while let Some(byte) = self.peek() {
            if byte == b'}' {
                break;
            }
            self.count()?;
            let name = match byte {
                b'"' => self.quoted()?,
                _ => self.run(is_name),
            };
            if name.is_empty() {
                return Err(self.wrong("a name is missing"));
            }
            let value = match self.peek() {
                Some(b'{') => {
                    if depth >= MAX_DEPTH {
                        let what = format!("the metadata has more than {MAX_DEPTH} levels");
                        return Err(Error::new(Kind::Limit, what));
                    }
                    self.take();
                    let inner = self.entries(depth.saturating_add(1))?;
                    if self.peek() != Some(b'}') {
                        return Err(self.wrong("a section does not end"));
                    }
                    self.take();
                    Value::Section(inner)
                }
                Some(b'=') => {
                    self.take();
                    self.value(depth)?
                }
                _ => {
                    let name = shown(name);
                    return Err(self.wrong(&format!("{name} has no value")));
                }
            };
            section.entries.push((name, value));
        }
        Ok(section)
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>> {
        match self.peek() {
            Some(b'[') => {
                if depth >= MAX_DEPTH {
                    let what = format!("the metadata has more than {MAX_DEPTH} levels");
                    return Err(Error::new(Kind::Limit, what));
                }
                self.take();
                let mut values = Vec::new();
                loop {
                    match self.peek() {
                        Some(b']') => break self.take(),
                        Some(_) => {}
                        None => return Err(self.wrong("a list does not end")),
                    }
                    self.count()?;
                    values.push(self.value(depth.saturating_add(1))?);
                    match self.peek() {
                        Some(b',') => self.take(),
                        Some(b']') => {}
                        _ => return Err(self.wrong("a list goes on without a comma")),
                    }
                }
                Ok(Value::List(values))
            }
            Some(b'"') => Ok(Value::Text(self.quoted()?)),
            Some(byte) if byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.') => {
                self.number()
            }
            _ => Err(self.wrong("a value is missing")),
        }
    }

    fn number(&mut self) -> Result<Value<'a>> {
        let digits = self.run(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.'));
        if digits.contains(&b'.') {
            return Ok(Value::Float);
        }
        let number = std::str::from_utf8(digits).ok();
        let number = number.and_then(|digits| digits.parse().ok());
        number.map(Value::Number).ok_or_else(|| {
            let digits = shown(digits);
            self.wrong(&format!("{digits} is no number of 64 bits"))
        })
    }

    /// What is between two quotes.
    fn quoted(&mut self) -> Result<&'a [u8]> {
        self.take();
        let start = self.at;
        loop {
            self.run(|byte| !matches!(byte, b'"' | b'\\'));
            match self.text.get(self.at) {
                Some(b'"') => break,
                // Two bytes, whatever the second is.
                Some(_) => self.at = self.at.saturating_add(2),
                None => return Err(self.wrong("a text does not end")),
            }
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        self.take();
        Ok(text)
    }
}

/// Whether names of sections and assignments have this byte.
fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+' | b'/' | b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(text: &str) -> Kind {
        Section::parse(text.as_bytes()).unwrap_err().kind()
    }

    #[test]
    fn sections_lists_and_comments_are_read() {
        let text = "# a comment\nvg {\n\tid = \"x\\\"y\\\\\"\n\tseqno = 3\n\tpi = 1.5\n\
                    \tstatus = [\"READ\", \"WRITE\"] # both\n\tempty = []\n\tlv-0.1 { n=-1 }\n}\n\0\0";
        let section = Section::parse(text.as_bytes()).unwrap();
        let vg = section.section("vg").unwrap().unwrap();
        assert_eq!(vg.text("id").unwrap(), "x\"y\\");
        assert_eq!(vg.number("seqno").unwrap(), 3);
        assert_eq!(vg.texts("status").unwrap(), ["READ", "WRITE"]);
        assert_eq!(vg.texts("empty").unwrap(), [""; 0]);
        assert_eq!(vg.texts("absent").unwrap(), [""; 0]);
        let lv = vg.section("lv-0.1").unwrap().unwrap();
        assert_eq!(lv.number("n").unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(vg.number("id").unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(vg.text("seqno").unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn what_breaks_the_grammar_is_corrupt() {
        for text in [
            "a",
            "a=",
            "a={}",
            "{",
            "}",
            "a{",
            "a{}}",
            "a=[",
            "a=[1 2]",
            "a=[1",
            "a=\"",
            "a=\"\\",
            "a=\"x\\\"",
            "=1",
            "a 1",
            "a=99999999999999999999",
            "a=1-2",
            "a=-",
            "a=[,]",
            "a=b",
            "\u{1}=1",
            "\"a",
            "\"a\"",
            "a=1 b",
        ] {
            assert_eq!(kind_of(text), Kind::Corrupt, "{text}");
        }
    }

    #[test]
    fn depth_and_number_of_entries_are_bounded() {
        assert_eq!(kind_of(&"a{".repeat(100_000)), Kind::Limit);
        assert_eq!(kind_of(&format!("a={}", "[".repeat(100_000))), Kind::Limit);
        assert_eq!(kind_of(&"a{}\n".repeat(1_000_000)), Kind::Limit);
        assert_eq!(
            kind_of(&format!("a=[{}1]", "1,".repeat(1_000_000))),
            Kind::Limit
        );
        let many = "a=1\n".repeat(MAX_NODES);
        let section = Section::parse(many.as_bytes()).unwrap();
        assert_eq!(section.number("a").unwrap_err().kind(), Kind::Corrupt);
    }
}
