//! Pure parser of a descriptor: a text that says which extents a disk is made of.

use crate::error::quote;
use crate::{Error, Kind, Result};

/// How a descriptor begins, in any case.
const FIRST: &[u8] = b"# disk descriptorfile";
/// Longest descriptor.
pub(super) const LONGEST: u64 = 1 << 20;
/// Most extents.
const MOST_EXTENTS: usize = 4096;
/// `parentCID` of a disk without a parent.
const NO_PARENT: u32 = u32::MAX;

/// What an extent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A part of a file, as it is, from this sector on.
    Flat {
        /// Its name.
        file: Vec<u8>,
        /// The first sector.
        at: u64,
    },
    /// A sparse extent of either sort: its name.
    Sparse(Vec<u8>),
    /// Zeroes.
    Zero,
}

/// One extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sectors: u64,
    pub(super) content: Content,
}

/// What a descriptor says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Changes whenever the disk does.
    pub(super) cid: Option<u32>,
    /// That of the parent, where there is one.
    pub(super) parent_cid: Option<u32>,
    /// What the parent was called.
    pub(super) parent_name: Option<Vec<u8>>,
    /// In order.
    pub(super) extents: Vec<Extent>,
    /// Whether the disk data base is there, or its beginning: the geometry and the like, which every
    /// writer puts behind the extents.
    pub(super) has_data_base: bool,
}

/// Whether `bytes` begin as a descriptor does.
pub(super) fn is_descriptor(bytes: &[u8]) -> bool {
    let first = bytes.get(..FIRST.len());
    first.is_some_and(|first| first.eq_ignore_ascii_case(FIRST))
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn shown(text: &[u8]) -> String {
    let cut = text.get(..100).unwrap_or(text);
    quote(&String::from_utf8_lossy(cut))
}

/// The descriptor in `bytes`: up to the first zero.
///
/// # Errors
/// `NotThisFormat` for another text; `Unsupported` for a kind of extent that is not known, and for
/// an encrypted disk; `Corrupt`; `Limit` for too many extents.
pub(super) fn parse(bytes: &[u8]) -> Result<Descriptor> {
    if !is_descriptor(bytes) {
        let what = "the text does not begin with \"# Disk DescriptorFile\"";
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or(bytes);
    let mut found = Descriptor::default();
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if let Some(extent) = extent(line)? {
            if found.extents.len() >= MOST_EXTENTS {
                let what = format!("a disk of more than {MOST_EXTENTS} extents");
                return Err(Error::new(Kind::Limit, what));
            }
            found.extents.push(extent);
            continue;
        }
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        let (key, value) = line.split_at(equals);
        let key = key.trim_ascii().to_ascii_lowercase();
        let value = unquoted(value.get(1..).unwrap_or(&[]).trim_ascii());
        match key.as_slice() {
            b"cid" => found.cid = Some(cid(value)?),
            b"parentcid" => {
                found.parent_cid = Some(cid(value)?).filter(|cid| *cid != NO_PARENT);
            }
            b"parentfilenamehint" => found.parent_name = Some(value.to_vec()),
            key if key.starts_with(b"ddb.") => found.has_data_base = true,
            key if key.starts_with(b"encryption.") => {
                let what = "an encrypted disk, whose keys only VMware has the format of";
                return Err(Error::new(Kind::Unsupported, what));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// A content ID: eight hexadecimal digits.
fn cid(value: &[u8]) -> Result<u32> {
    let text = std::str::from_utf8(value).ok();
    let number = text.and_then(|text| u32::from_str_radix(text, 16).ok());
    number.ok_or_else(|| corrupt(format!("a content ID of {}", shown(value))))
}

/// `value` without the quotes around it.
fn unquoted(value: &[u8]) -> &[u8] {
    let inner = value.strip_prefix(b"\"");
    inner
        .and_then(|inner| inner.strip_suffix(b"\""))
        .unwrap_or(value)
}

/// The extent in a line such as `RW 4192256 SPARSE "disk-s001.vmdk"`, if it is one.
fn extent(line: &[u8]) -> Result<Option<Extent>> {
    let (access, rest) = word(line);
    if !matches!(access, b"RW" | b"RDONLY" | b"NOACCESS") {
        return Ok(None);
    }
    let bad = || corrupt(format!("an extent that is none: {}", shown(line)));
    let (sectors, rest) = word(rest);
    let sectors = decimal(sectors).ok_or_else(bad)?;
    let (kind, rest) = word(rest);
    if access == b"NOACCESS" {
        let what = format!("an extent that nobody may read: {}", shown(line));
        return Err(Error::new(Kind::Unsupported, what));
    }
    let named = || -> Result<(Vec<u8>, &[u8])> {
        let inner = rest.strip_prefix(b"\"").ok_or_else(bad)?;
        let end = inner
            .iter()
            .rposition(|byte| *byte == b'"')
            .ok_or_else(bad)?;
        let (name, after) = inner.split_at(end);
        Ok((name.to_vec(), after.get(1..).unwrap_or(&[]).trim_ascii()))
    };
    let content = match kind.to_ascii_uppercase().as_slice() {
        b"ZERO" => Content::Zero,
        b"FLAT" | b"VMFS" => {
            let (file, after) = named()?;
            let at = match after {
                b"" => 0,
                text => decimal(word(text).0).ok_or_else(bad)?,
            };
            Content::Flat { file, at }
        }
        b"SPARSE" | b"VMFSSPARSE" => Content::Sparse(named()?.0),
        other => {
            let what = format!("an extent of type {}, which is not supported", shown(other));
            return Err(Error::new(Kind::Unsupported, what));
        }
    };
    Ok(Some(Extent { sectors, content }))
}

/// The first word of `text`, and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii();
    let end = text.iter().position(u8::is_ascii_whitespace);
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    (word, rest.trim_ascii())
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# Disk DescriptorFile\n";

    fn parsed(text: &str) -> Result<Descriptor> {
        parse(format!("{HEAD}{text}").as_bytes())
    }

    #[test]
    fn all_kinds_of_extents_are_told_apart() {
        let found = parsed(
            "version=1\r\nCID=0000000f\nparentCID = 0000abcd\nparentFileNameHint=\"a b.vmdk\"\n\
             RW 10 FLAT \"x-flat.vmdk\" 63\nRDONLY 20 SPARSE \"x \"y\".vmdk\"\n\
             RW 30 ZERO\nRW 40 VMFS \"z\"\n  RW 50   VMFSSPARSE   \"w\"\n\
             ddb.uuid = \"60 00\"\nnonsense\n\0RW 60 ZERO\n",
        )
        .unwrap();
        assert!(found.has_data_base);
        assert!(!parsed("RW 10 ZERO\nversion=1\n").unwrap().has_data_base);
        assert_eq!(found.cid, Some(15));
        assert_eq!(found.parent_cid, Some(0xabcd));
        assert_eq!(found.parent_name.as_deref(), Some(&b"a b.vmdk"[..]));
        let flat = |file: &[u8], at| Content::Flat {
            file: file.to_vec(),
            at,
        };
        let extents: Vec<_> = found
            .extents
            .iter()
            .map(|extent| (extent.sectors, extent.content.clone()))
            .collect();
        assert_eq!(
            extents,
            [
                (10, flat(b"x-flat.vmdk", 63)),
                (20, Content::Sparse(b"x \"y\".vmdk".to_vec())),
                (30, Content::Zero),
                (40, flat(b"z", 0)),
                (50, Content::Sparse(b"w".to_vec())),
            ]
        );
    }

    #[test]
    fn what_a_descriptor_lies_about_is_said() {
        for (text, kind) in [
            ("RW x FLAT \"a\" 0", Kind::Corrupt),
            ("RW 18446744073709551616 FLAT \"a\" 0", Kind::Corrupt),
            ("RW -1 ZERO", Kind::Corrupt),
            ("RW 1 FLAT a 0", Kind::Corrupt),
            ("RW 1 FLAT \"a", Kind::Corrupt),
            ("RW 1 FLAT \"a\" x", Kind::Corrupt),
            ("RW 1 SPARSE", Kind::Corrupt),
            ("RW 1", Kind::Unsupported),
            ("RW 1 SESPARSE \"a\"", Kind::Unsupported),
            ("RW 1 VMFSRDM \"a\"", Kind::Unsupported),
            ("NOACCESS 1 ZERO", Kind::Unsupported),
            ("CID=xyz", Kind::Corrupt),
            ("parentCID=123456789", Kind::Corrupt),
            ("encryption.keySafe = \"vmware:key\"", Kind::Unsupported),
        ] {
            assert_eq!(parsed(text).unwrap_err().kind(), kind, "{text}");
        }
        let many = "RW 1 ZERO\n".repeat(MOST_EXTENTS.saturating_add(1));
        assert_eq!(parsed(&many).unwrap_err().kind(), Kind::Limit);
        let other = parse(b"# Disk Descriptor").unwrap_err();
        assert_eq!(other.kind(), Kind::NotThisFormat);
        assert!(is_descriptor(b"# disk descriptorfile"));
    }
}
