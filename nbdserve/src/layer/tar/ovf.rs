//! The descriptor of an OVA: DMTF DSP0243, 7 (References) and 9.1 (DiskSection). Pure.
//!
//! Of XML just what is needed: elements and their attributes, by their names without a prefix.
//! Nothing is fetched or included.

use crate::error::quote;
use crate::{Error, Kind, Result};

/// Longest descriptor.
pub(super) const MAX_LEN: u64 = 4 << 20;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most files and disks.
const MAX_ITEMS: usize = 4096;

/// A `File` of the `References`.
struct FileRef {
    id: String,
    href: String,
    in_chunks: bool,
}

/// The files of a descriptor's disks, in order, each once; `None` when it is no descriptor.
///
/// # Errors
/// `Corrupt` for what is no XML or refers to nothing, `Unsupported` for a file in chunks.
pub(super) fn disks(xml: &[u8]) -> Result<Option<Vec<String>>> {
    let xml = xml.strip_prefix(b"\xef\xbb\xbf").unwrap_or(xml);
    let Ok(text) = std::str::from_utf8(xml) else {
        return Ok(None);
    };
    let mut xml = Xml::new(text);
    match xml.next_element() {
        Ok(Some(root)) if root.name == "Envelope" => {}
        _ => return Ok(None),
    }
    let mut files = Vec::new();
    let mut wanted = Vec::new();
    while let Some(element) = xml.next_element()? {
        match (element.parent, element.name) {
            ("References", "File") => {
                if let (Some(id), Some(href)) = (element.value("id")?, element.value("href")?) {
                    let in_chunks = element.value("chunkSize")?.is_some();
                    files.push(FileRef {
                        id,
                        href,
                        in_chunks,
                    });
                }
            }
            // A disk without a file is empty. Version 0.9 has sections of any type under one name.
            ("DiskSection" | "Section", "Disk") => wanted.extend(element.value("fileRef")?),
            _ => {}
        }
        if files.len() > MAX_ITEMS || wanted.len() > MAX_ITEMS {
            return Err(wrong(&format!("more than {MAX_ITEMS} files or disks")));
        }
    }
    let mut found: Vec<String> = Vec::new();
    for id in wanted {
        let Some(file) = files.iter().find(|file| file.id == id) else {
            let id = quote(&id);
            let what = format!("a disk in the file {id}, which it does not list");
            return Err(wrong(&what));
        };
        if file.in_chunks {
            let what = format!("the disk {} is cut into chunks", quote(&file.href));
            return Err(Error::new(Kind::Unsupported, what));
        }
        if !found.contains(&file.href) {
            found.push(file.href.clone());
        }
    }
    Ok(Some(found))
}

/// A reference as a name: what stands behind each `%` as the byte it means (RFC 3986, 2.1).
pub(super) fn unescaped(href: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(href.len());
    let mut rest = href.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match byte {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

fn digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

fn wrong(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the OVF descriptor has {what}"))
}

/// An element: its names are without their prefixes.
#[derive(Debug)]
struct Element<'a> {
    /// The one around it; nothing for the outermost.
    parent: &'a str,
    name: &'a str,
    /// Names, and values as they are written.
    attributes: Vec<(&'a str, &'a str)>,
}

impl Element<'_> {
    fn value(&self, name: &str) -> Result<Option<String>> {
        let mut all = self.attributes.iter();
        let found = all.find(|(known, _)| *known == name);
        found.map(|(_, value)| decoded(value)).transpose()
    }
}

/// A walk over the elements of a document.
#[derive(Debug)]
struct Xml<'a> {
    rest: &'a str,
    /// Names of the elements that are open, with their prefixes.
    open: Vec<&'a str>,
}

impl<'a> Xml<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text,
            open: Vec::new(),
        }
    }

    /// The next element that begins.
    fn next_element(&mut self) -> Result<Option<Element<'a>>> {
        loop {
            let Some((_, tag)) = self.rest.split_once('<') else {
                return match self.open.last() {
                    None => Ok(None),
                    Some(name) => Err(wrong(&format!("no end of {}", quote(name)))),
                };
            };
            self.rest = tag;
            if let Some(rest) = tag.strip_prefix("!--") {
                self.skip(rest, "-->")?;
            } else if let Some(rest) = tag.strip_prefix("![CDATA[") {
                self.skip(rest, "]]>")?;
            } else if let Some(rest) = tag.strip_prefix('?') {
                self.skip(rest, "?>")?;
            } else if tag.starts_with('!') {
                // What it may define or include is not wanted.
                return Err(wrong("a document type"));
            } else if let Some(rest) = tag.strip_prefix('/') {
                let name = self.skip(rest, ">")?.trim_end();
                if self.open.pop() != Some(name) {
                    return Err(wrong(&format!("an end of {} too many", quote(name))));
                }
            } else {
                return self.element(tag).map(Some);
            }
        }
    }

    /// Goes behind the first `end` in `rest`; what is before it.
    fn skip(&mut self, rest: &'a str, end: &str) -> Result<&'a str> {
        let (before, after) = rest
            .split_once(end)
            .ok_or_else(|| wrong(&format!("no {end} behind what it ends")))?;
        self.rest = after;
        Ok(before)
    }

    /// The element whose tag begins here, behind its `<`.
    fn element(&mut self, tag: &'a str) -> Result<Element<'a>> {
        let is_end = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>' | '=' | '<');
        let (name, mut rest) = split_at(tag, is_end);
        if name.is_empty() {
            return Err(wrong("an element without a name"));
        }
        let parent = self.open.last().map_or("", |name| local(name));
        let mut attributes = Vec::new();
        loop {
            rest = rest.trim_ascii_start();
            if let Some(after) = rest.strip_prefix("/>") {
                self.rest = after;
                break;
            }
            if let Some(after) = rest.strip_prefix('>') {
                self.rest = after;
                self.open.push(name);
                break;
            }
            let (key, after) = split_at(rest, is_end);
            let value = after.trim_ascii_start().strip_prefix('=');
            let value = value.map(str::trim_ascii_start).and_then(quoted);
            let (Some((value, after)), false) = (value, key.is_empty()) else {
                return Err(wrong(&format!("a damaged tag {}", quote(name))));
            };
            attributes.push((local(key), value));
            rest = after;
        }
        if self.open.len() > MAX_DEPTH || attributes.len() > MAX_ITEMS {
            return Err(wrong("too much nesting, or too many attributes"));
        }
        Ok(Element {
            parent,
            name: local(name),
            attributes,
        })
    }
}

/// A name without its prefix.
fn local(name: &str) -> &str {
    name.split_once(':').map_or(name, |(_, local)| local)
}

fn split_at(text: &str, is_end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(is_end).unwrap_or(text.len()))
}

/// A value between quotes of either sort, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    text.get(1..)?.split_once(quote)
}

/// The value that is meant, with `&amp;` and the like replaced.
fn decoded(value: &str) -> Result<String> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, reference)) = rest.split_once('&') {
        out.push_str(before);
        let unknown = || wrong(&format!("a damaged value {}", quote(value)));
        let (name, after) = reference.split_once(';').ok_or_else(unknown)?;
        let number = |digits: &str, radix| {
            let code = u32::from_str_radix(digits, radix).ok()?;
            char::from_u32(code)
        };
        let c = match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => match (name.strip_prefix("#x"), name.strip_prefix('#')) {
                (Some(digits), _) => number(digits, 16),
                (None, Some(digits)) => number(digits, 10),
                (None, None) => None,
            },
        };
        out.push(c.ok_or_else(unknown)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(body: &str) -> Result<Option<Vec<String>>> {
        disks(format!("<?xml version='1.0'?>\n<Envelope>{body}</Envelope>\n").as_bytes())
    }

    #[test]
    fn disks_are_found_by_their_references() {
        let found = envelope(
            "<!-- <Disk ovf:fileRef='no'/> -->
             <ovf:References>
               <ovf:File ovf:id=\"f1\" ovf:href=\"a&amp;b&#x20;&#99;.vmdk\" ovf:size='7' />
               <ovf:File ovf:href='d.iso' ovf:id='f2'></ovf:File>
               <ovf:File ovf:href='e.vmdk' ovf:id='f3'/>
             </ovf:References>
             <DiskSection><Info>a > b <![CDATA[<Disk>]]></Info>
               <Disk ovf:capacity = '10' ovf:fileRef = 'f1'/>
               <Disk ovf:diskId='empty'/>
               <Disk ovf:fileRef='f1'/>
             </DiskSection>
             <Other><Disk fileRef='f3'/></Other>",
        );
        assert_eq!(found.unwrap().unwrap(), ["a&b c.vmdk"]);
        assert_eq!(envelope("").unwrap().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_descriptor_is_none() {
        for text in ["", "text", "<a/>", "<Envelope", "<!DOCTYPE x>"] {
            assert_eq!(disks(text.as_bytes()).unwrap(), None, "{text}");
        }
        assert_eq!(disks(&[0xff, 0xfe, b'<', 0]).unwrap(), None);
    }

    #[test]
    fn damage_is_an_error() {
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        for body in [
            "<DiskSection><Disk fileRef='f1'/></DiskSection>",
            "<DiskSection>",
            "</a>",
            "<a></b>",
            "<!ENTITY a 'b'>",
            "<a b/>",
            "<a b=c/>",
            "<a b='c/>",
            "<a b='<' c/>",
            "<References><File id='&x;' href=''/></References>",
            "<References><File id='&#1114112;' href=''/></References>",
            "<References><File id='&' href=''/></References>",
            "<!--",
            "< a/>",
            &deep,
        ] {
            let error = envelope(body).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{body}: {error}");
        }
        let chunks = "<References><File id='f' href='x' chunkSize='1'/></References>\
                      <DiskSection><Disk fileRef='f'/></DiskSection>";
        assert_eq!(envelope(chunks).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn references_may_be_escaped() {
        assert_eq!(unescaped("a%20b%2Fc%zz%4"), b"a b/c%zz%4");
        assert_eq!(unescaped("%ff"), b"\xff");
    }
}
