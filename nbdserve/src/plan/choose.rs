//! Which partition of a disk is meant, or which volume on its partitions.

use std::cell::OnceCell;

use super::fs::{self, Class, FsInfo};
use super::resolve::LooksLikeRoot;
use super::sample::read_head;
use super::volumes::Volumes;
use crate::error::quote;
use crate::layer::luks::LUKS;
use crate::layer::partition::{Partition, Table, open_partition};
use crate::layer::raid::read::Depth;
use crate::size::format_size;
use crate::{Cx, Error, Kind, Result, Volume};

/// Partitions whose beginnings are looked at; a table may have thousands.
const MAX_LOOKED_AT: usize = 128;
/// Partitions that are listed in a message.
const MAX_LISTED: usize = 16;
/// The type of the partition that firmware boots from, GPT and MBR. It holds a file system on
/// every machine and is nobody's root.
const EFI_SYSTEM: [&str; 2] = ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef"];

/// One that may be meant, by its place in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A partition.
    Partition(usize),
    /// A logical volume or an array.
    Volume(usize),
}

/// The partitions of a volume, and the volumes of LVM2 and MD on them. What is in them is looked at
/// when first asked for: it may cost the decoding of all that lies before.
#[derive(Debug)]
pub(super) struct Partitions {
    /// `None` for a volume that is itself a member.
    pub(super) table: Option<Table>,
    below: Volume,
    depth: Depth,
    cx: Cx,
    contents: Vec<OnceCell<Option<FsInfo>>>,
    volumes: OnceCell<Volumes>,
}

impl Partitions {
    /// `depth`: where members of arrays are looked for.
    pub(super) fn new(below: &Volume, table: Option<Table>, depth: Depth, cx: &Cx) -> Self {
        let count = table.as_ref().map_or(0, |table| table.partitions.len());
        Self {
            contents: vec![OnceCell::new(); count.min(MAX_LOOKED_AT)],
            below: below.clone(),
            depth,
            cx: cx.clone(),
            volumes: OnceCell::new(),
            table,
        }
    }

    /// The partitions, by number.
    pub(super) fn entries(&self) -> &[Partition] {
        let table = self.table.as_ref();
        table.map_or(&[], |table| &table.partitions)
    }

    /// The volumes on them.
    pub(super) fn volumes(&self) -> Result<&Volumes> {
        if let Some(found) = self.volumes.get() {
            return Ok(found);
        }
        let found = Volumes::find(&self.below, self.depth, &self.cx)?;
        Ok(self.volumes.get_or_init(|| found))
    }

    /// The volumes on them, if they were looked for.
    pub(super) fn known_volumes(&self) -> Option<&Volumes> {
        self.volumes.get()
    }

    /// What the partition at `index` of the table holds; `None` when that is nothing we know, or
    /// the partition cannot be opened.
    pub(super) fn content(&self, index: usize) -> Result<Option<&FsInfo>> {
        let (Some(cell), Some(partition)) = (self.contents.get(index), self.entries().get(index))
        else {
            return Ok(None);
        };
        if let Some(found) = cell.get() {
            return Ok(found.as_ref());
        }
        let mut found = None;
        if !partition.is_container() && partition.problem.is_none() {
            // A member may begin like what is in its array.
            found = self.volumes()?.member(partition.range());
            if found.is_none() {
                let volume = self.open(partition)?;
                let head = read_head(&volume)?;
                found = fs::recognise(&head.as_sample()).map(|(info, _)| info);
            }
        }
        Ok(cell.get_or_init(|| found).as_ref())
    }

    /// What an entry holds, as [`Self::content`].
    fn content_of(&self, entry: Entry) -> Result<Option<&FsInfo>> {
        match entry {
            Entry::Partition(index) => self.content(index),
            Entry::Volume(index) => self.volumes()?.content(index),
        }
    }

    /// Looks at all of them.
    pub(super) fn look(&self) -> Result<()> {
        for entry in self.all()? {
            self.content_of(entry)?;
        }
        Ok(())
    }

    fn all(&self) -> Result<impl Iterator<Item = Entry>> {
        let partitions = (0..self.entries().len()).map(Entry::Partition);
        let volumes = (0..self.volumes()?.choices.len()).map(Entry::Volume);
        Ok(partitions.chain(volumes))
    }

    /// What was found in the partition at `index`, without looking.
    pub(super) fn known_content(&self, index: usize) -> Option<&FsInfo> {
        self.contents.get(index)?.get()?.as_ref()
    }

    fn open(&self, partition: &Partition) -> Result<Volume> {
        match &self.table {
            Some(table) => open_partition(&self.below, table, partition.number),
            // Partitions come from a table.
            None => Err(Error::new(Kind::OutOfRange, "there is no partition table")),
        }
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &Partition)> {
        self.entries().iter().enumerate()
    }

    /// The partition that `name` means: its number; its label, UUID, or those of the file system
    /// in it, if they are the only ones; a device name as the kernel would give it. Or a volume: its
    /// name, its UUID, or those of what is in it.
    ///
    /// # Errors
    /// `OutOfRange` when there is none or more than one.
    pub(super) fn named(&self, name: &str) -> Result<Entry> {
        let listed = |what: String| {
            Err(Error::new(
                Kind::OutOfRange,
                format!("{what}; there are {}", self.list()?),
            ))
        };
        let number = |text: &str| {
            let number: u32 = text.parse().ok()?;
            let mut all = self.numbered();
            all.find(|(_, entry)| entry.number == number)
                .map(|(index, _)| Entry::Partition(index))
        };
        if name.bytes().all(|byte| byte.is_ascii_digit())
            && !name.is_empty()
            && let Some(table) = &self.table
        {
            // The table says more exactly what is wrong: it may be damaged where it would be.
            return match (number(name), name.parse()) {
                (Some(found), _) => Ok(found),
                (None, Ok(number)) => {
                    table.partition(number)?;
                    listed(format!("there is no partition {name}"))
                }
                (None, Err(_)) => listed(format!("there is no partition {name}")),
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
            let volumes = self.volumes()?.named(name);
            matches = volumes.into_iter().map(Entry::Volume).collect();
        }
        if matches.is_empty() {
            for entry in self.all()? {
                if let Some(info) = self.content_of(entry)?
                    && (tag_matches(name, &["LABEL"], info.label.as_deref(), false)
                        || tag_matches(name, &["UUID"], info.uuid.as_deref(), true))
                {
                    matches.push(entry);
                }
            }
        }
        let sort = match self.volumes()?.is_empty() {
            true => "partition",
            false if self.table.is_none() => "volume",
            false => "partition or volume",
        };
        match *matches.as_slice() {
            [one] => return Ok(one),
            [] => {}
            _ => {
                let name = quote(name);
                let what = format!("{} {sort}s are called {name}", matches.len());
                return listed(what);
            }
        }
        if let Some(entry) = device_number(name).and_then(number) {
            return Ok(entry);
        }
        listed(format!("there is no {sort} {}", quote(name)))
    }

    /// The one that is encrypted, when there is no other and `name` is that of a logical volume: a key
    /// will show whether it is in there.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub(super) fn locked(&self, name: &str) -> Result<Option<Entry>> {
        if !name.strip_prefix("/dev/").unwrap_or(name).contains('/') {
            return Ok(None);
        }
        let mut found = Vec::new();
        for entry in self.all()? {
            if self.content_of(entry)?.is_some_and(is_encrypted) {
                found.push(entry);
            }
        }
        Ok(match found.as_slice() {
            [one] => Some(*one),
            _ => None,
        })
    }

    fn matching(&self, matches: impl Fn(usize, &Partition) -> Result<bool>) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for (index, entry) in self.numbered() {
            if matches(index, entry)? {
                found.push(Entry::Partition(index));
            }
        }
        Ok(found)
    }

    /// The one that holds the root file system, or the only one that holds any: by GPT type,
    /// this architecture's before others'; the only file system beside the one that firmware boots
    /// from; the only one whose top level looks like a root, or may when the others do not. What is
    /// encrypted may be anything, so it is meant when nothing beside it looks like a root.
    ///
    /// # Errors
    /// `Corrupt` when the table is damaged, `NotThisFormat` when it cannot be told; the message
    /// lists the choices.
    pub(super) fn root(&self, looks_like_root: LooksLikeRoot<'_>) -> Result<Entry> {
        if let Some(table) = &self.table
            && let Some(problem) = table.first_problem()
        {
            let scheme = table.scheme;
            return Err(
                Error::new(Kind::Corrupt, format!("the {scheme} is damaged: {problem}"))
                    .hint("-P N takes a partition that is sound; --info lists them"),
            );
        }
        let mut choices = self.typed(true)?;
        if choices.is_empty() {
            choices = self.typed(false)?;
        }
        if choices.is_empty() {
            choices = self.file_systems()?;
        }
        if choices.len() > 1 {
            let mut roots = Vec::new();
            let mut possible = Vec::new();
            for &entry in &choices {
                match self.is_root(entry, looks_like_root)? {
                    Some(true) => roots.push(entry),
                    None => possible.push(entry),
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
        if let [one] = choices.as_slice() {
            return Ok(*one);
        }
        let volumes = !self.volumes()?.is_empty();
        let (one, many, hint) = match (&self.table, volumes) {
            (Some(_), false) => ("partition", "partitions", "-P N"),
            (Some(_), true) => ("partition or volume", "partitions or volumes", "-P NAME"),
            (None, _) => ("volume", "volumes", "-P NAME"),
        };
        match choices.len() {
            0 => Err(Error::new(
                Kind::NotThisFormat,
                format!(
                    "no {one} holds a file system that we know; there are {}",
                    self.list()?
                ),
            )
            .hint(match volumes {
                false => "--fuse shows the disk as a file, --fuse -P N a partition",
                true => "--fuse -P NAME shows one as a file; --info says more",
            })),
            count => Err(Error::new(
                Kind::NotThisFormat,
                format!("{count} {many} may be meant; there are {}", self.list()?),
            )
            .hint(format!("choose one: {hint}"))),
        }
    }

    /// The partitions whose type says that they are a root; what is only a part of one is none.
    fn typed(&self, ours: bool) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for (index, entry) in self.numbered() {
            let architecture = entry.root_architecture();
            if architecture.is_some_and(|name| (name == std::env::consts::ARCH) == ours) {
                found.push((index, Entry::Partition(index)));
            }
        }
        let alone = found.len() == 1;
        let mut whole = Vec::new();
        for (index, entry) in found {
            let name = match (alone, self.entries().get(index)) {
                // Nothing but this one is looked at: it is read next anyway.
                (true, Some(partition)) if partition.problem.is_none() => {
                    let head = read_head(&self.open(partition)?)?;
                    fs::recognise(&head.as_sample()).map(|(info, _)| info.name)
                }
                (true, _) => None,
                (false, _) => self.content(index)?.map(|info| info.name.clone()),
            };
            if !matches!(name.as_deref(), Some("lvm2" | "md")) {
                whole.push(entry);
            }
        }
        Ok(whole)
    }

    /// The partitions and volumes with a file system; that of the firmware only when there is no
    /// other. A volume that cannot be opened may have one.
    fn file_systems(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for entry in self.all()? {
            let content = self.content_of(entry)?;
            let refused = match entry {
                Entry::Partition(_) => false,
                Entry::Volume(index) => self.volumes()?.is_refused(index),
            };
            let may_hold_one =
                |info: &FsInfo| info.class == Class::FileSystem || is_encrypted(info);
            if refused || content.is_some_and(may_hold_one) {
                found.push(entry);
            }
        }
        let is_efi = |entry: &Entry| match entry {
            Entry::Volume(_) => false,
            Entry::Partition(index) => {
                let entry = self.entries().get(*index);
                entry.is_some_and(|entry| EFI_SYSTEM.contains(&entry.type_id.as_str()))
            }
        };
        if !found.iter().all(is_efi) {
            found.retain(|entry| !is_efi(entry));
        }
        Ok(found)
    }

    fn is_root(&self, entry: Entry, looks_like_root: LooksLikeRoot<'_>) -> Result<Option<bool>> {
        if let Entry::Volume(index) = entry
            && self.volumes()?.is_refused(index)
        {
            return Ok(None);
        }
        let Some(info) = self.content_of(entry)? else {
            return Ok(Some(false));
        };
        // Without owners and links there is no root of a system.
        if matches!(info.name.as_str(), "vfat" | "exfat") {
            return Ok(Some(false));
        }
        if is_encrypted(info) {
            return Ok(None);
        }
        let volume = match entry {
            Entry::Volume(index) => self.volumes()?.open(index)?,
            Entry::Partition(index) => match self.entries().get(index) {
                Some(partition) => self.open(partition)?,
                None => return Ok(Some(false)),
            },
        };
        Ok(looks_like_root(&volume, info))
    }

    /// `1 (100 MiB, EFI System, FAT32), 2 (3.9 GiB, Linux filesystem, ext4 "root")`.
    fn list(&self) -> Result<String> {
        let is_container = |entry: &Entry| match entry {
            Entry::Partition(index) => self
                .entries()
                .get(*index)
                .is_some_and(Partition::is_container),
            Entry::Volume(_) => false,
        };
        let mut items = Vec::new();
        for entry in self.all()?.filter(|entry| !is_container(entry)) {
            if items.len() == MAX_LISTED {
                items.push("...".to_owned());
                break;
            }
            items.push(match entry {
                Entry::Partition(index) => self.describe(index)?,
                Entry::Volume(index) => self.volumes()?.describe(index)?,
            });
        }
        Ok(match items.len() {
            0 => "none".to_owned(),
            _ => items.join(", "),
        })
    }

    /// `2 (3.9 GiB, Linux filesystem, ext4 "root")`
    fn describe(&self, index: usize) -> Result<String> {
        let Some(entry) = self.entries().get(index) else {
            return Ok(String::new());
        };
        let mut facts = vec![format_size(entry.size)];
        facts.extend(entry.type_name.map(str::to_owned));
        let label = entry.label.as_ref();
        facts.extend(label.map(|label| quote(label)));
        facts.extend(self.content(index)?.map(ToString::to_string));
        Ok(format!("{} ({})", entry.number, facts.join(", ")))
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
