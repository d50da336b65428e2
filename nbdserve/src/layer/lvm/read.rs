//! Reading the groups of a volume: labels, metadata areas, and the newest text of each group.

use std::collections::HashMap;

use super::group::Group;
use super::header::{self, PvHeader, dashed};
use crate::layer::INDEX_PART;
use crate::layer::parts::{self, Part};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// Longest text of a group. LVM2 makes metadata areas of 1 MiB.
const LONGEST_TEXT: u64 = 16 << 20;
/// Metadata areas of a physical volume that are looked at.
const MAX_AREAS: usize = 4;

/// The volume groups on a volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    pub(crate) groups: Vec<Group>,
    /// Where each physical volume lies, by its identifier.
    pub(crate) physical: HashMap<String, Place>,
    /// Physical volumes that no group knows.
    pub(crate) unused: usize,
    /// What is unusual, and what is damaged.
    pub(crate) notes: Vec<String>,
}

/// Where a physical volume lies.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) part: Part,
    /// Another has the same identifier.
    pub(crate) twice: bool,
}

impl Groups {
    /// The groups whose physical volumes are partitions of `below`, but those of `taken`, which are
    /// members of something else; or, when there are none, `below` itself.
    ///
    /// # Errors
    /// `NotThisFormat` when there is no physical volume; `Corrupt` when there is no text that can be
    /// used; `Limit`, and what `below` says.
    pub(crate) fn read(below: &Volume, taken: &[ByteRange], cx: &Cx) -> Result<Self> {
        let mut found = Self::default();
        let mut texts = Texts::default();
        let limit = LONGEST_TEXT.min(cx.cache.budget() / INDEX_PART);
        for part in parts::partitions(below)? {
            if !taken.contains(&part.range) {
                found.look(below, part, &mut texts, limit)?;
            }
        }
        if found.physical.is_empty() && texts.damage.is_none() {
            found.look(below, parts::whole(below), &mut texts, limit)?;
        }
        let newest = std::mem::take(&mut texts.newest);
        found.groups = newest.into_values().collect();
        found
            .groups
            .sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        if found.groups.is_empty()
            && let Some(damage) = texts.damage
        {
            return Err(damage);
        }
        if found.physical.is_empty() {
            let what = "there is no physical volume of LVM2 here";
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let known = |id: &String| {
            let mut groups = found.groups.iter();
            groups.any(|group| group.members.iter().any(|member| member.id == *id))
        };
        found.unused = found.physical.keys().filter(|id| !known(id)).count();
        Ok(found)
    }

    /// Looks at one part.
    fn look(&mut self, below: &Volume, part: Part, texts: &mut Texts, limit: u64) -> Result<()> {
        let len = usize::try_from(part.range.len()).unwrap_or(usize::MAX);
        let head = below.read_vec(part.range.start(), len.min(header::LABEL_AREA))?;
        let physical = match header::pv_header(&head) {
            Ok(physical) => physical,
            Err(error) if error.kind() == Kind::NotThisFormat => return Ok(()),
            Err(error) => return self.damaged(&part, error, texts),
        };
        for area in physical.areas.iter().take(MAX_AREAS) {
            match read_text(below, &part, *area, limit) {
                Ok(None) => {}
                Ok(Some(group)) => texts.add(group, &mut self.notes)?,
                Err(error)
                    if matches!(
                        error.kind(),
                        Kind::Corrupt | Kind::Unsupported | Kind::Limit
                    ) =>
                {
                    self.damaged(&part, error, texts)?;
                }
                Err(error) => return Err(error),
            }
        }
        self.place(part, physical);
        Ok(())
    }

    /// Another copy may be whole.
    fn damaged(&mut self, part: &Part, error: Error, texts: &mut Texts) -> Result<()> {
        self.notes.push(format!("{part}: {error}"));
        texts.damage.get_or_insert(error);
        Ok(())
    }

    fn place(&mut self, part: Part, physical: PvHeader) {
        match self.physical.get_mut(&physical.id) {
            None => {
                self.physical
                    .insert(physical.id, Place { part, twice: false });
            }
            Some(place) => {
                let id = dashed(&physical.id);
                let note = format!(
                    "the physical volume {id} is in {} and in {part}",
                    place.part
                );
                self.notes.push(note);
                place.twice = true;
            }
        }
    }
}

/// The texts that were read.
#[derive(Debug, Default)]
struct Texts {
    /// The newest of each group, by the group's identifier.
    newest: HashMap<String, Group>,
    /// The first error.
    damage: Option<Error>,
}

impl Texts {
    fn add(&mut self, group: Group, notes: &mut Vec<String>) -> Result<()> {
        match self.newest.get_mut(&group.id) {
            None => {
                self.newest.insert(group.id.clone(), group);
            }
            Some(known) if known.seqno != group.seqno => {
                let (old, new) = (known.seqno.min(group.seqno), known.seqno.max(group.seqno));
                let name = &group.name;
                notes.push(format!(
                    "a copy of the metadata of \"{name}\" is number {old}, the newest is {new}"
                ));
                if group.seqno > known.seqno {
                    *known = group;
                }
            }
            Some(known) if known.name == group.name => {}
            Some(known) => {
                let (one, two, number) = (&known.name, &group.name, group.seqno);
                let what =
                    format!("the metadata number {number} calls one group \"{one}\" and \"{two}\"");
                return Err(Error::new(Kind::Corrupt, what));
            }
        }
        Ok(())
    }
}

/// What the metadata area `area` of a physical volume says; `None` when it says nothing.
fn read_text(below: &Volume, part: &Part, area: ByteRange, limit: u64) -> Result<Option<Group>> {
    let inside = |range: ByteRange| {
        let moved = part.range.start().checked_add(range.start());
        let moved = moved.and_then(|start| ByteRange::new(start, range.len()));
        moved.filter(|moved| part.range.contains(*moved))
    };
    let Some(place) = inside(area) else {
        let have = part.range.len();
        let what = format!("the metadata area at {area} leaves the {have} bytes");
        return Err(Error::new(Kind::Corrupt, what));
    };
    let head = below.read_vec(place.start(), header::AREA_HEADER)?;
    let Some(text) = header::area_header(&head, area)? else {
        return Ok(None);
    };
    if text.size() > limit {
        let size = text.size();
        let what = format!("{size} bytes of metadata, at most {limit} are read");
        return Err(Error::new(Kind::Limit, what));
    }
    let mut bytes = Vec::new();
    for range in text.ranges(area) {
        // Within the area, which is within the part.
        let Some(range) = inside(range) else {
            continue;
        };
        let len = usize::try_from(range.len()).unwrap_or(0);
        bytes.extend(below.read_vec(range.start(), len)?);
    }
    text.check(&bytes)?;
    Group::parse(&bytes).map(Some)
}
