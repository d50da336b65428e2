//! Which partition of a disk is meant.

use std::cell::OnceCell;

use super::fs::{self, Class, FsInfo};
use super::resolve::{LooksLikeRoot, read_head};
use crate::error::escape;
use crate::layer::luks::LUKS;
use crate::layer::partition::{Partition, Table, open_partition};
use crate::size::format_size;
use crate::{Error, Kind, Result, Volume};

/// Partitions whose beginnings are looked at; a table may have thousands.
const MAX_LOOKED_AT: usize = 128;
/// Partitions that are listed in a message.
const MAX_LISTED: usize = 16;
/// The type of the partition that firmware boots from, GPT and MBR. It holds a file system on
/// every machine and is nobody's root.
const EFI_SYSTEM: [&str; 2] = ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef"];

/// The partitions of a volume. What is in them is looked at when first asked for: it may cost the
/// decoding of all that lies before.
#[derive(Debug)]
pub(super) struct Partitions {
    pub(super) table: Table,
    below: Volume,
    contents: Vec<OnceCell<Option<FsInfo>>>,
}

impl Partitions {
    pub(super) fn new(below: &Volume, table: Table) -> Self {
        Self {
            contents: vec![OnceCell::new(); table.partitions.len().min(MAX_LOOKED_AT)],
            below: below.clone(),
            table,
        }
    }

    /// What the partition at `index` of the table holds; `None` when that is nothing we know, or
    /// the partition cannot be opened.
    pub(super) fn content(&self, index: usize) -> Result<Option<&FsInfo>> {
        let (Some(cell), Some(partition)) =
            (self.contents.get(index), self.table.partitions.get(index))
        else {
            return Ok(None);
        };
        if let Some(found) = cell.get() {
            return Ok(found.as_ref());
        }
        let mut found = None;
        if !partition.is_container() && partition.problem.is_none() {
            let volume = self.open(partition)?;
            let head = read_head(&volume)?;
            found = fs::recognise(&head.as_sample()).map(|(info, _)| info);
        }
        Ok(cell.get_or_init(|| found).as_ref())
    }

    /// What was found in the partition at `index`, without looking.
    pub(super) fn known_content(&self, index: usize) -> Option<&FsInfo> {
        self.contents.get(index)?.get()?.as_ref()
    }

    fn open(&self, partition: &Partition) -> Result<Volume> {
        open_partition(&self.below, &self.table, partition.number)
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &Partition)> {
        self.table.partitions.iter().enumerate()
    }

    /// The partition that `name` means: its number; its label, UUID, or those of the file system
    /// in it, if they are the only ones; a device name as the kernel would give it.
    ///
    /// # Errors
    /// `OutOfRange` when there is none or more than one.
    pub(super) fn named(&self, name: &str) -> Result<u32> {
        let listed = |what: String| {
            Err(Error::new(
                Kind::OutOfRange,
                format!("{what}; there are {}", self.list()?),
            ))
        };
        let number = |text: &str| {
            let number = text.parse().ok()?;
            let mut all = self.table.partitions.iter();
            all.any(|entry| entry.number == number).then_some(number)
        };
        if name.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() {
            // The table says more exactly what is wrong: it may be damaged where it would be.
            return match number(name) {
                Some(number) => Ok(number),
                None => match name.parse() {
                    Ok(number) => self.table.partition(number).map(|found| found.number),
                    Err(_) => listed(format!("there is no partition {name}")),
                },
            };
        }
        // First what the table says, for it costs nothing.
        let mut matches = self.matching(|_, entry| {
            Ok(
                tag_matches(name, &["PARTLABEL"], entry.label.as_deref(), false)
                    || tag_matches(name, &["PARTUUID"], entry.uuid.as_deref(), true),
            )
        })?;
        if matches.is_empty() {
            matches = self.matching(|index, _| {
                let Some(info) = self.content(index)? else {
                    return Ok(false);
                };
                Ok(tag_matches(name, &["LABEL"], info.label.as_deref(), false)
                    || tag_matches(name, &["UUID"], info.uuid.as_deref(), true))
            })?;
        }
        match *matches.as_slice() {
            [one] => return Ok(one),
            [] => {}
            _ => {
                let name = escape(name);
                let what = format!("{} partitions are called \"{name}\"", matches.len());
                return listed(what);
            }
        }
        if let Some(number) = device_number(name).and_then(number) {
            return Ok(number);
        }
        listed(format!("there is no partition \"{}\"", escape(name)))
    }

    fn matching(&self, matches: impl Fn(usize, &Partition) -> Result<bool>) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for (index, entry) in self.numbered() {
            if matches(index, entry)? {
                found.push(entry.number);
            }
        }
        Ok(found)
    }

    /// The partition that holds the root file system, or the only one that holds any: by GPT type,
    /// this architecture's before others'; the only file system beside the one that firmware boots
    /// from; the only one whose top level looks like a root, or may when the others do not. What is
    /// encrypted may be anything, so it is meant when nothing beside it looks like a root.
    ///
    /// # Errors
    /// `Corrupt` when the table is damaged, `NotThisFormat` when it cannot be told; the message
    /// lists the choices.
    pub(super) fn root(&self, looks_like_root: LooksLikeRoot<'_>) -> Result<u32> {
        if let Some(problem) = self.table.first_problem() {
            let scheme = self.table.scheme;
            return Err(
                Error::new(Kind::Corrupt, format!("the {scheme} is damaged: {problem}"))
                    .hint("-P N takes a partition that is sound; --info lists them"),
            );
        }
        let typed = |ours: bool| {
            let entries = self.numbered().filter(move |(_, entry)| {
                let architecture = entry.root_architecture();
                architecture.is_some_and(|name| (name == std::env::consts::ARCH) == ours)
            });
            entries.map(|(index, _)| index).collect::<Vec<_>>()
        };
        let mut choices = typed(true);
        if choices.is_empty() {
            choices = typed(false);
        }
        if choices.is_empty() {
            choices = self.file_systems()?;
        }
        if choices.len() > 1 {
            let mut roots = Vec::new();
            let mut possible = Vec::new();
            for &index in &choices {
                match self.is_root(index, looks_like_root)? {
                    Some(true) => roots.push(index),
                    None => possible.push(index),
                    Some(false) => {}
                }
            }
            // Or the only one that could not be looked into, when no other is a root.
            if roots.is_empty() {
                roots = possible;
            }
            if roots.len() == 1 {
                choices = roots;
            }
        }
        match *choices.as_slice() {
            [one] => Ok(self.number(one)),
            [] => Err(Error::new(
                Kind::NotThisFormat,
                format!(
                    "no partition holds a file system that we know; there are {}",
                    self.list()?
                ),
            )
            .hint("--fuse shows the disk as a file, --fuse -P N a partition")),
            _ => Err(Error::new(
                Kind::NotThisFormat,
                format!(
                    "{} partitions may be meant; there are {}",
                    choices.len(),
                    self.list()?
                ),
            )
            .hint("choose one: -P N")),
        }
    }

    /// The partitions with a file system, or what may have one in it; that of the firmware only when
    /// there is no other.
    fn file_systems(&self) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for (index, _) in self.numbered() {
            let content = self.content(index)?;
            if content.is_some_and(|info| info.class == Class::FileSystem || is_encrypted(info)) {
                found.push(index);
            }
        }
        let is_efi = |&index: &usize| {
            let entry = self.table.partitions.get(index);
            entry.is_some_and(|entry| EFI_SYSTEM.contains(&entry.type_id.as_str()))
        };
        if !found.iter().all(is_efi) {
            found.retain(|index| !is_efi(index));
        }
        Ok(found)
    }

    fn is_root(&self, index: usize, looks_like_root: LooksLikeRoot<'_>) -> Result<Option<bool>> {
        let (Some(info), Some(entry)) = (self.content(index)?, self.table.partitions.get(index))
        else {
            return Ok(Some(false));
        };
        // Without owners and links there is no root of a system.
        if matches!(info.name.as_str(), "vfat" | "exfat") {
            return Ok(Some(false));
        }
        if is_encrypted(info) {
            return Ok(None);
        }
        Ok(looks_like_root(&self.open(entry)?, info))
    }

    fn number(&self, index: usize) -> u32 {
        // Indices come from the list itself.
        self.table
            .partitions
            .get(index)
            .map_or(0, |entry| entry.number)
    }

    /// `1 (100 MiB, EFI System, FAT32), 2 (3.9 GiB, Linux filesystem, ext4 "root")`.
    fn list(&self) -> Result<String> {
        let mut items = Vec::new();
        for (index, entry) in self.numbered() {
            if entry.is_container() {
                continue;
            }
            if items.len() == MAX_LISTED {
                items.push("...".to_owned());
                break;
            }
            let mut facts = vec![format_size(entry.size)];
            facts.extend(entry.type_name.map(str::to_owned));
            facts.extend(
                entry
                    .label
                    .as_ref()
                    .map(|label| format!("\"{}\"", escape(label))),
            );
            facts.extend(self.content(index)?.map(ToString::to_string));
            items.push(format!("{} ({})", entry.number, facts.join(", ")));
        }
        Ok(match items.len() {
            0 => "none".to_owned(),
            _ => items.join(", "),
        })
    }
}

/// Whether only a key shows what it is.
fn is_encrypted(info: &FsInfo) -> bool {
    info.name == LUKS.name
}

/// Whether `name` is `value`, with one of the tags of mount(8) before it or without any.
fn tag_matches(name: &str, tags: &[&str], value: Option<&str>, any_case: bool) -> bool {
    let wanted = match name.split_once('=') {
        Some((tag, value)) if tags.contains(&tag) => value,
        _ => name,
    };
    value.is_some_and(|value| value == wanted || any_case && value.eq_ignore_ascii_case(wanted))
}

/// The number at the end of a device name: `/dev/sda1`, `nvme0n1p2`, `mmcblk0p1`, `vdb3`.
fn device_number(name: &str) -> Option<&str> {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let start = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (disk, number) = name.split_at_checked(start)?;
    let numbered = |disk: &str| {
        let bus = ["nvme", "mmcblk", "loop", "nbd", "md", "zram", "ram"];
        bus.iter().any(|bus| disk.starts_with(bus))
    };
    let lettered = ["sd", "hd", "vd", "xvd", "ubd"];
    let is_partition = match disk.strip_suffix('p') {
        Some(disk) if numbered(disk) => disk.ends_with(|c: char| c.is_ascii_digit()),
        _ => lettered.iter().any(|bus| {
            let letters = disk.strip_prefix(bus);
            letters.is_some_and(|letters| {
                !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_lowercase())
            })
        }),
    };
    (is_partition && !number.is_empty()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_end_in_the_number_of_a_partition() {
        for (name, number) in [
            ("sda1", Some("1")),
            ("/dev/sda12", Some("12")),
            ("/dev/vdb3", Some("3")),
            ("/dev/nvme0n1p2", Some("2")),
            ("mmcblk0p1", Some("1")),
            ("/dev/loop0p3", Some("3")),
            ("/dev/nbd15p1", Some("1")),
            ("/dev/nvme0n1", None),
            ("/dev/sda", None),
            ("/dev/loop7", None),
            ("backup2", None),
            ("p1", None),
            ("", None),
        ] {
            assert_eq!(device_number(name), number, "{name}");
        }
    }
}
