//! Logical volumes of LVM2: linear and striped ones, of groups whose physical volumes are all in one
//! image.
//!
//! `header.rs` has labels and metadata areas, `text.rs` the language of the metadata, `group.rs` and
//! `logical.rs` what it says; all are pure. `read.rs` collects the groups of a volume. Reads and
//! writes go to where the extents lie (`../striped.rs`).

pub(crate) mod group;
pub(crate) mod header;
mod logical;
pub(crate) mod read;
pub(crate) mod text;

use group::Group;
use header::dashed;
use logical::{Column, Logical};
use read::Groups;

use super::striped::{Map, Striped, Writes, Zone};
use super::{Args, Confidence, LayerType, Param, Sample, Verdict};
use crate::error::quote;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "lvm";
/// Volumes that are listed in a message.
const MAX_LISTED: usize = 16;

/// `--layer lvm:vg/lv`.
pub static LVM: LayerType = LayerType {
    name: NAME,
    summary: "a logical volume of LVM2 (linear, striped)",
    params: &[Param {
        name: "volume",
        summary: "its name, as group/volume (default: the only one)",
    }],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    let (header, at) = match header::pv_header(sample.head) {
        Ok(header) => (Ok(header.id), header.at),
        Err(error) if error.kind() == Kind::NotThisFormat => return Verdict::No,
        Err(error) => (Err(error), 512),
    };
    Verdict::Yes {
        // A label leaves the first sector to others, unless it is there.
        confidence: match at {
            0 => Confidence::MAGIC,
            _ => Confidence(50),
        },
        evidence: match header {
            Ok(id) => format!("label of LVM2 at {at}, physical volume {}", dashed(&id)),
            Err(error) => format!("label of LVM2, but {error}"),
        },
    }
}

fn open(below: &Volume, args: &Args, cx: &Cx) -> Result<Volume> {
    let groups = Groups::read(below, &super::raid::taken(below, cx)?, cx)?;
    let (group, volume) = groups.choose(args.get("volume").map(String::as_str))?;
    groups.open(below, group, volume)
}

/// Which bytes of `below` the volume is that `args` mean, when they are one run.
pub(crate) fn range(below: &Volume, args: &Args, cx: &Cx) -> Result<Option<ByteRange>> {
    let groups = Groups::read(below, &super::raid::taken(below, cx)?, cx)?;
    let (group, volume) = groups.choose(args.get("volume").map(String::as_str))?;
    // The kernel would write to it.
    match volume.read_only {
        Some(_) => Ok(None),
        None => Ok(groups.map(group, volume)?.plain()),
    }
}

impl Groups {
    /// Every visible volume, with its group.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = (&Group, &Logical)> {
        self.groups
            .iter()
            .flat_map(|group| group.volumes.iter().map(move |volume| (group, volume)))
    }

    /// How a volume is named so that no other is meant: `group/volume`, with the identifier of a
    /// group whose name is not the only one.
    pub(crate) fn name(&self, group: &Group, volume: &Logical) -> String {
        let twins = self.groups.iter().filter(|other| other.name == group.name);
        let name = match twins.count() {
            0 | 1 => group.name.clone(),
            _ => dashed(&group.id),
        };
        format!("{name}/{}", volume.name)
    }

    /// The volumes that `name` may mean: `group/volume`, `/dev/group/volume`,
    /// `/dev/mapper/group-volume`, a volume alone, an identifier.
    pub(crate) fn named(&self, name: &str) -> Vec<(&Group, &Logical)> {
        let mapper = name.strip_prefix("/dev/mapper/");
        let plain = name.strip_prefix("/dev/").unwrap_or(name);
        self.volumes()
            .filter(|(group, volume)| {
                if let Some(mapped) = mapper {
                    return mapped == mapped_name(&group.name, &volume.name);
                }
                match plain.split_once('/') {
                    Some((first, second)) => {
                        second == volume.name
                            && (first == group.name || first.replace('-', "") == group.id)
                    }
                    None => {
                        plain == volume.name
                            || plain.replace('-', "") == volume.id
                            || plain == mapped_name(&group.name, &volume.name)
                    }
                }
            })
            .collect()
    }

    /// The volume called `name`; without a name the only one.
    ///
    /// # Errors
    /// `OutOfRange` when there is none or more than one, with a list.
    fn choose(&self, name: Option<&str>) -> Result<(&Group, &Logical)> {
        let found = match name {
            Some(name) => self.named(name),
            None => self.volumes().collect(),
        };
        if let [one] = found.as_slice() {
            return Ok(*one);
        }
        let what = match (name, found.len()) {
            (Some(name), 0) => format!("there is no volume {}", quote(name)),
            (Some(name), count) => format!("{} is the name of {count} volumes", quote(name)),
            (None, _) => "which volume is meant is not said".to_owned(),
        };
        let list = self.list();
        Err(
            Error::new(Kind::OutOfRange, format!("{what}; there are {list}"))
                .hint("--layer lvm:GROUP/VOLUME"),
        )
    }

    fn list(&self) -> String {
        let mut names: Vec<String> = self
            .volumes()
            .take(MAX_LISTED.saturating_add(1))
            .map(|(group, volume)| self.name(group, volume))
            .collect();
        if let Some(last) = names.get_mut(MAX_LISTED) {
            *last = "...".to_owned();
        }
        match names.len() {
            0 => "none".to_owned(),
            _ => names.join(", "),
        }
    }

    /// `partition 2, partition 3`
    pub(crate) fn members_text(&self, group: &Group, volume: &Logical) -> String {
        let mut texts: Vec<String> = Vec::new();
        for segment in volume.segments.iter().flatten() {
            for column in &segment.columns {
                let member = group.members.get(column.member);
                let place = member.and_then(|member| self.physical.get(&member.id));
                let text = place.map_or_else(
                    || member.map(|member| member.name.clone()).unwrap_or_default(),
                    |place| place.part.to_string(),
                );
                if !texts.contains(&text) && texts.len() < MAX_LISTED {
                    texts.push(text);
                }
            }
        }
        match texts.len() {
            0 => format!("group {}", group.name),
            _ => format!("physical volumes: {}", texts.join(", ")),
        }
    }

    /// Where the bytes of a volume lie.
    ///
    /// # Errors
    /// `Unsupported` for a layout that is not opened, or when a physical volume is not here; `Corrupt`.
    fn map(&self, group: &Group, volume: &Logical) -> Result<Map> {
        if let Some(problem) = &group.problem {
            return Err(problem.clone());
        }
        let mut map = Map::default();
        for segment in volume.segments.as_ref().map_err(Clone::clone)? {
            let mut columns = Vec::new();
            for column in &segment.columns {
                columns.push(self.column(group, volume, column, segment.len)?);
            }
            map.push(Zone {
                range: ByteRange::between(segment.start, segment.end),
                chunk: segment.chunk,
                columns,
            });
        }
        Ok(map)
    }

    /// Where a column of `len` bytes begins below.
    fn column(&self, group: &Group, volume: &Logical, column: &Column, len: u64) -> Result<u64> {
        // The index comes from the list itself.
        let Some(member) = group.members.get(column.member) else {
            return Err(Error::new(Kind::Corrupt, "a physical volume is missing"));
        };
        let (name, id) = (&volume.name, dashed(&member.id));
        let place = match self.physical.get(&member.id) {
            Some(place) if !member.missing => place,
            _ => {
                let pv = &member.name;
                let group = &group.name;
                let what = format!(
                    "the group \"{group}\" is incomplete: the volume \"{name}\" needs the physical \
                     volume {id} ({pv}), which is not here"
                );
                return Err(Error::new(Kind::Unsupported, what));
            }
        };
        if place.twice {
            let what = format!("two physical volumes have the identifier {id}");
            return Err(Error::new(Kind::Unsupported, what));
        }
        let start = place.part.range.start().checked_add(column.start);
        let range = start.and_then(|start| ByteRange::new(start, len));
        match range.filter(|range| place.part.range.contains(*range)) {
            Some(range) => Ok(range.start()),
            None => {
                let have = place.part.range.len();
                let at = column.start;
                let what = format!(
                    "{len} bytes of the volume \"{name}\" at {at} of the physical volume {id} are \
                     beyond its {have} bytes"
                );
                Err(Error::new(Kind::Corrupt, what))
            }
        }
    }

    /// Opens a volume; it is called `lvm:group/volume`.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub(crate) fn open(&self, below: &Volume, group: &Group, volume: &Logical) -> Result<Volume> {
        let map = self.map(group, volume)?;
        let writes = match &volume.read_only {
            None => Writes::Pass,
            Some(why) => Writes::Refused(Some(why.clone())),
        };
        let name = format!("{NAME}:{}", self.name(group, volume));
        Striped::volume(name, below, vec![map], writes)
    }
}

/// The name that the device mapper gives: a dash in a name is written twice.
fn mapped_name(group: &str, volume: &str) -> String {
    let doubled = |name: &str| name.replace('-', "--");
    format!("{}-{}", doubled(group), doubled(volume))
}
