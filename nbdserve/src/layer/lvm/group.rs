//! What the text of the metadata says of a volume group and its physical volumes; its logical volumes
//! are in `logical.rs`. Pure.

use std::collections::HashMap;

use super::header::{SECTOR, is_id};
use super::logical::{Logical, Reader};
use super::text::{Section, Value, cut, shown};
use crate::error::quote_if_needed;
use crate::{Error, Kind, Result};

/// LVM2's own limit of a name.
const LONGEST_NAME: usize = 127;
/// A volume has at most this many bytes.
pub(super) const LARGEST: u64 = u64::MAX >> 1;

/// A volume group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) id: String,
    /// Counts the changes.
    pub(crate) seqno: u64,
    /// Why none of its volumes can be opened.
    pub(crate) problem: Option<Error>,
    pub(crate) members: Vec<Member>,
    /// Those that are visible, in their order.
    pub(crate) volumes: Vec<Logical>,
}

/// A physical volume, as the group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// `pv0`
    pub(crate) name: String,
    pub(crate) id: String,
    /// The first byte of its first extent.
    pub(super) start: u64,
    pub(super) extents: u64,
    /// The group has gone on without it.
    pub(crate) missing: bool,
}

pub(super) fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

pub(super) fn unsupported(what: String) -> Error {
    Error::new(Kind::Unsupported, what)
}

/// A name of a group or a volume, fit for a path and a command line.
pub(super) fn checked_name(name: &[u8]) -> Result<String> {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(byte);
    let text = String::from_utf8_lossy(name).into_owned();
    let fit = !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name.iter().all(fits)
        && !text.starts_with('-')
        && text != "."
        && text != "..";
    match fit {
        true => Ok(text),
        false => {
            let name = shown(name);
            Err(corrupt(format!("{name} is no name of LVM2")))
        }
    }
}

/// An identifier without its dashes.
pub(super) fn identifier(section: &Section<'_>) -> Result<String> {
    let text = section.text("id")?;
    let id: String = text.chars().filter(|&c| c != '-').collect();
    match is_id(id.as_bytes()) {
        true => Ok(id),
        false => {
            let text = shown(text.as_bytes());
            Err(corrupt(format!("{text} is no identifier of LVM2")))
        }
    }
}

/// The first of `flags` that is not among `known`.
pub(super) fn unknown<'a>(flags: &'a [String], known: &[&str]) -> Option<&'a String> {
    flags.iter().find(|flag| !known.contains(&flag.as_str()))
}

/// The sections in the section called `name`, by their names; none when it is missing.
pub(super) fn sections<'s, 'a>(
    group: &'s Section<'a>,
    name: &str,
) -> Result<Vec<(&'a [u8], &'s Section<'a>)>> {
    let mut found = Vec::new();
    for (key, value) in group.section(name)?.iter().flat_map(|list| list.entries()) {
        if let Value::Section(section) = value {
            found.push((key, section));
        }
    }
    Ok(found)
}

impl Group {
    /// The one group that `text` is about.
    ///
    /// # Errors
    /// `Corrupt` when the text cannot be understood; `Limit`; `Unsupported` for another format. What is
    /// wrong with one logical volume is told there.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let root = Section::parse(text)?;
        let mut groups = root.entries().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name, section)),
            _ => None,
        });
        let (Some((name, section)), None) = (groups.next(), groups.next()) else {
            return Err(corrupt("the metadata is not that of one group".to_owned()));
        };
        let version = root.number("version")?;
        if version != 1 {
            let what = format!("version {version} of the metadata, only 1 is known");
            return Err(unsupported(what));
        }
        let name = checked_name(name)?;
        let sectors = section.number("extent_size")?;
        let extent = sectors
            .checked_mul(SECTOR)
            .filter(|&bytes| bytes > 0 && bytes <= LARGEST)
            .ok_or_else(|| corrupt(format!("extents of {sectors} sectors")))?;
        let mut members = Vec::new();
        let mut numbers = HashMap::new();
        for (key, member) in sections(section, "physical_volumes")? {
            let known = Member::parse(key, member, extent)?;
            if numbers.insert(key, members.len()).is_some() {
                let name = shown(key);
                return Err(corrupt(format!("two physical volumes are called {name}")));
            }
            members.push(known);
        }
        let status = section.texts("status")?;
        let read_only = match status.iter().any(|flag| flag == "WRITE") {
            true => None,
            false => Some(format!("the volume group \"{name}\" is read-only")),
        };
        let volumes =
            Reader::new(extent, &members, numbers).volumes(section, read_only.as_deref())?;
        Ok(Self {
            id: identifier(section)?,
            seqno: section.number("seqno")?,
            problem: group_problem(&name, section, &status)?,
            name,
            members,
            volumes,
        })
    }
}

/// Why nothing of the group can be opened.
fn group_problem(name: &str, group: &Section<'_>, status: &[String]) -> Result<Option<Error>> {
    let known = [
        "RESIZEABLE",
        "READ",
        "WRITE",
        "CLUSTERED",
        "SHARED",
        "PVMOVE",
    ];
    let format = match group.get("format")? {
        None => "lvm2".to_owned(),
        Some(_) => group.text("format")?,
    };
    let problem = if format != "lvm2" {
        let format = shown(format.as_bytes());
        unsupported(format!(
            "the volume group \"{name}\" has the format {format}"
        ))
    } else if status.iter().any(|flag| flag == "EXPORTED") {
        unsupported(format!("the volume group \"{name}\" is exported"))
            .hint("vgimport, on a machine that has it, ends that")
    } else if let Some(flag) = unknown(status, &known) {
        let flag = shown(flag.as_bytes());
        unsupported(format!(
            "the volume group \"{name}\" has the unknown status {flag}"
        ))
    } else {
        return Ok(None);
    };
    Ok(Some(problem))
}

impl Member {
    fn parse(name: &[u8], section: &Section<'_>, extent: u64) -> Result<Self> {
        let name = quote_if_needed(&cut(name));
        let of = |error: Error| error.in_layer(&format!("physical volume {name}"));
        let start = section.number("pe_start").map_err(of)?;
        let extents = section.number("pe_count").map_err(of)?;
        let bytes = start.checked_mul(SECTOR);
        let fits = |start: &u64| {
            let len = extents.checked_mul(extent);
            len.and_then(|len| len.checked_add(*start))
                .is_some_and(|end| end <= LARGEST)
        };
        let start = bytes.filter(fits).ok_or_else(|| {
            of(corrupt(format!(
                "{extents} extents from sector {start} on are more than any disk has"
            )))
        })?;
        let mut flags = section.texts("status").map_err(of)?;
        flags.extend(section.texts("flags").map_err(of)?);
        Ok(Self {
            id: identifier(section).map_err(of)?,
            start,
            extents,
            missing: flags.iter().any(|flag| flag == "MISSING"),
            name,
        })
    }
}
