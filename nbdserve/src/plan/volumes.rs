//! The volumes that a volume holds beside its partitions: logical volumes of LVM2, arrays of MD, and
//! logical volumes on arrays. One of them can be meant, like a partition.

use std::cell::OnceCell;

use serde::Serialize;

use super::fs::{self, Class, FsInfo};
use super::sample::read_head;
use super::spec::LayerSpec;
use crate::error::quote_if_needed;
use crate::layer::lvm::LVM;
use crate::layer::lvm::read::Groups;
use crate::layer::raid::RAID;
use crate::layer::raid::header::{grouped, level_name};
use crate::layer::raid::read::{Arrays, Depth};
use crate::size::format_size;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// Volumes whose beginnings are looked at.
const MAX_LOOKED_AT: usize = 128;
/// Arrays in which logical volumes are looked for.
const MAX_ARRAYS: usize = 16;

/// A logical volume or an array, for `--info`. Texts come from the image: escape them before they are
/// printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeInfo {
    /// As `-P` takes it: `group/volume`, the name of an array, its UUID.
    pub name: String,
    /// The layer that opens it.
    pub layer: &'static str,
    /// `linear`, `striped`, `thin`, `RAID 1`.
    pub layout: String,
    /// Bytes; `None` for an array that cannot be put together.
    pub size: Option<u64>,
    /// Its own UUID.
    pub uuid: String,
    /// Where it lies.
    pub members: String,
    /// Why it is not opened.
    pub problem: Option<String>,
    /// What is in it; `None` for nothing we know, or when looking costs too much.
    pub content: Option<FsInfo>,
    /// Whether it is the one that was chosen.
    pub chosen: bool,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Choice {
    /// The layers that lead to it, each with why it is taken.
    pub(super) path: Vec<(LayerSpec, String)>,
    /// What is known without looking into it.
    info: VolumeInfo,
    /// Whether it may be meant when none is named.
    fit: bool,
    opened: Result<Volume>,
    content: OnceCell<Option<FsInfo>>,
}

/// All of them, on one volume.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    pub(super) choices: Vec<Choice>,
    /// What is unusual about groups and arrays.
    pub(super) notes: Vec<String>,
    arrays: Arrays,
    /// The groups, each with the place of the array in `choices` that they are on.
    groups: Vec<(Option<usize>, Groups)>,
}

impl Volumes {
    /// Looks for members in the partitions of `below` and in `below` itself; `depth` says where.
    ///
    /// # Errors
    /// What `below` says. Damaged groups and arrays are notes.
    pub(super) fn find(below: &Volume, depth: Depth, cx: &Cx) -> Result<Self> {
        let mut found = Self {
            arrays: Arrays::read(below, depth)?,
            ..Self::default()
        };
        found.notes.append(&mut found.arrays.notes);
        let mut arrays = Vec::new();
        for array in &found.arrays.arrays {
            cx.cancel.check()?;
            let id = grouped(&array.array.id);
            let spec = LayerSpec::with_value(RAID.name, &id)?;
            let opened = array.open(below, None, false);
            let members = array.members_text();
            if !array.is_clean() && array.array.level == 1 {
                found.notes.push(format!(
                    "{} was not stopped: its members may differ, one is read",
                    array.array.title()
                ));
            }
            arrays.push(Choice {
                path: vec![(spec, members.clone())],
                info: VolumeInfo {
                    name: match array.array.name.as_str() {
                        "" => id.clone(),
                        name => name.to_owned(),
                    },
                    layer: RAID.name,
                    layout: level_name(array.array.level),
                    size: opened.as_ref().ok().map(Volume::size),
                    uuid: id,
                    members,
                    problem: opened.as_ref().err().map(ToString::to_string),
                    content: None,
                    chosen: false,
                },
                fit: true,
                opened,
                content: OnceCell::new(),
            });
        }
        found.choices = arrays;
        found.add_groups(below, None, cx)?;
        for index in 0..found.choices.len().min(MAX_ARRAYS) {
            let volume = match found.choices.get(index) {
                Some(choice) if choice.info.layer == RAID.name => choice.opened.clone(),
                _ => continue,
            };
            if let Ok(volume) = volume {
                found.add_groups(&volume, Some(index), cx)?;
            }
        }
        Ok(found)
    }

    /// Adds the logical volumes of `below`, which is the array at `on` or what all is on.
    fn add_groups(&mut self, below: &Volume, on: Option<usize>, cx: &Cx) -> Result<()> {
        let taken = match on {
            None => self.taken().collect(),
            Some(_) => Vec::new(),
        };
        let groups = match Groups::read(below, &taken, cx) {
            Ok(groups) => groups,
            Err(error) if error.kind() == Kind::NotThisFormat => return Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    Kind::Corrupt | Kind::Unsupported | Kind::Limit
                ) =>
            {
                self.notes.push(format!("LVM2: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let outer = on.and_then(|index| self.choices.get(index));
        let outer = outer.map_or_else(Vec::new, |choice| choice.path.clone());
        self.notes.extend(groups.notes.iter().cloned());
        for (group, volume) in groups.volumes() {
            cx.cancel.check()?;
            let name = groups.name(group, volume);
            let members = groups.members_text(group, volume);
            let mut path = outer.clone();
            path.push((LayerSpec::with_value(LVM.name, &name)?, members.clone()));
            let opened = groups.open(below, group, volume);
            self.choices.push(Choice {
                path,
                info: VolumeInfo {
                    name,
                    layer: LVM.name,
                    layout: volume.layout.clone(),
                    size: Some(volume.size),
                    uuid: volume.uuid(),
                    members,
                    problem: opened.as_ref().err().map(ToString::to_string),
                    content: None,
                    chosen: false,
                },
                // What it was when it was made, which nobody means.
                fit: volume.layout != "snapshot",
                opened,
                content: OnceCell::new(),
            });
        }
        self.groups.push((on, groups));
        Ok(())
    }

    /// The partitions that are members of arrays.
    fn taken(&self) -> impl Iterator<Item = ByteRange> {
        let members = self.arrays.arrays.iter().flat_map(|found| &found.members);
        let partitions = members.filter(|member| member.part.number.is_some());
        partitions.map(|member| member.part.range)
    }

    /// What a partition is that is a member of an array.
    pub(super) fn member(&self, range: ByteRange) -> Option<FsInfo> {
        let mut arrays = self.arrays.arrays.iter();
        let array = arrays.find(|found| {
            let mut members = found.members.iter();
            members.any(|member| member.part.number.is_some() && member.part.range == range)
        })?;
        let array = &array.array;
        Some(FsInfo {
            name: "md".to_owned(),
            class: Class::Member,
            detail: Some("Linux RAID member".to_owned()),
            label: (!array.name.is_empty()).then(|| array.name.clone()),
            uuid: Some(grouped(&array.id)),
            evidence: format!("superblock {} of MD", array.version.name()),
            problem: None,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The volume at `index`.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(super) fn open(&self, index: usize) -> Result<Volume> {
        match self.choices.get(index) {
            Some(choice) => choice.opened.clone(),
            // Indices come from the list itself.
            None => Err(Error::new(Kind::OutOfRange, "there is no such volume")),
        }
    }

    /// What the volume at `index` holds; `None` when that is nothing we know, or it cannot be opened.
    pub(super) fn content(&self, index: usize) -> Result<Option<&FsInfo>> {
        let Some(choice) = self.choices.get(index).filter(|_| index < MAX_LOOKED_AT) else {
            return Ok(None);
        };
        if let Some(found) = choice.content.get() {
            return Ok(found.as_ref());
        }
        let mut found = None;
        if let Ok(volume) = &choice.opened {
            let head = read_head(volume)?;
            found = fs::recognise(&head.as_sample()).map(|(info, _)| info);
        }
        Ok(choice.content.get_or_init(|| found).as_ref())
    }

    /// Whether the volume at `index` may be meant when none is named, though it cannot be opened.
    pub(super) fn is_refused(&self, index: usize) -> bool {
        let choice = self.choices.get(index);
        choice.is_some_and(|choice| choice.fit && choice.opened.is_err())
    }

    /// The volumes that `name` may mean.
    pub(super) fn named(&self, name: &str) -> Vec<usize> {
        let mut specs: Vec<Vec<LayerSpec>> = Vec::new();
        for array in self.arrays.named(name) {
            specs.extend(
                LayerSpec::with_value(RAID.name, &grouped(&array.array.id)).map(|spec| vec![spec]),
            );
        }
        for (on, groups) in &self.groups {
            let outer = on.and_then(|index| self.choices.get(index));
            for (group, volume) in groups.named(name) {
                let last = LayerSpec::with_value(LVM.name, &groups.name(group, volume));
                let outer = outer.iter().flat_map(|choice| choice.layers());
                specs.extend(last.map(|last| outer.chain([last]).collect()));
            }
        }
        let all = self.choices.iter().enumerate();
        let matches = all.filter(|(_, choice)| specs.contains(&choice.layers().collect()));
        matches.map(|(index, _)| index).collect()
    }

    /// `vg/root (3.9 GiB, linear, ext4 "root")`
    pub(super) fn describe(&self, index: usize) -> Result<String> {
        let Some(choice) = self.choices.get(index) else {
            return Ok(String::new());
        };
        let info = &choice.info;
        let mut facts: Vec<String> = info.size.map(format_size).into_iter().collect();
        facts.push(quote_if_needed(&info.layout));
        facts.extend(self.content(index)?.map(ToString::to_string));
        Ok(format!(
            "{} ({})",
            quote_if_needed(&info.name),
            facts.join(", ")
        ))
    }

    /// All of them for `--info`; those of `steps` were chosen.
    pub(super) fn infos(&self, steps: &[LayerSpec]) -> Vec<VolumeInfo> {
        let infos = self.choices.iter().map(|choice| VolumeInfo {
            content: choice.content.get().cloned().flatten(),
            chosen: choice
                .path
                .last()
                .is_some_and(|(spec, _)| steps.contains(spec)),
            ..choice.info.clone()
        });
        infos.collect()
    }
}

impl Choice {
    fn layers(&self) -> impl Iterator<Item = LayerSpec> {
        self.path.iter().map(|(spec, _)| spec.clone())
    }
}
