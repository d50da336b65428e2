//! From the superblocks of an array's members to where its bytes lie. Pure.

use super::header::{Array, Role, SECTOR, Superblock, level_name};
use crate::layer::parts::Part;
use crate::layer::striped::{Map, Zone};
use crate::{ByteRange, Error, Kind, Result};

/// A part of a volume with a superblock.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) part: Part,
    pub(crate) superblock: Superblock,
    /// Its list of bad blocks is not empty.
    pub(crate) bad_blocks: bool,
}

/// How the parts of an array of unequal members follow each other; see raid0(4) of Linux and
/// md(4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As Linux did it up to 3.13.
    Original,
    /// As Linux does it since 3.14.
    Alternate,
}

/// The members of one array that were found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// As the newest member knows it.
    pub(crate) array: Array,
    /// All of them, in the order in which they were found.
    pub(crate) members: Vec<Member>,
}

/// What a member is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In this place of the array.
    InSync(u32),
    Spare,
    Faulty,
    /// Older than the others: it was left out.
    Stale,
    Rebuilding,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InSync(place) => write!(f, "place {place}"),
            Self::Spare => f.write_str("spare"),
            Self::Faulty => f.write_str("faulty"),
            Self::Stale => f.write_str("stale"),
            Self::Rebuilding => f.write_str("being rebuilt"),
        }
    }
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn unsupported(what: String) -> Error {
    Error::new(Kind::Unsupported, what)
}

impl Found {
    /// Puts members of one array together.
    pub(crate) fn new(members: Vec<Member>) -> Option<Self> {
        let newest = members
            .iter()
            .max_by_key(|member| member.superblock.events)?;
        Some(Self {
            array: newest.superblock.array.clone(),
            members,
        })
    }

    /// Whether all members are here and in sync.
    pub(super) fn is_complete(&self) -> bool {
        let found = self.in_sync();
        found.is_ok_and(|found| self.array.places > 0 && self.missing(&found).is_none())
    }

    fn newest(&self) -> Option<&Superblock> {
        let all = self.members.iter().map(|member| &member.superblock);
        all.max_by_key(|superblock| superblock.events)
    }

    /// Whether nothing was being written when it was stopped.
    pub(crate) fn is_clean(&self) -> bool {
        self.newest().is_some_and(|newest| newest.clean)
    }

    /// What the kernel would make of a member.
    pub(crate) fn state(&self, member: &Superblock) -> State {
        let Some(newest) = self.newest() else {
            return State::Stale;
        };
        let role = |knows: &Superblock| {
            let number = usize::try_from(member.number).unwrap_or(usize::MAX);
            knows.roles.get(number).copied().unwrap_or(Role::Spare)
        };
        // A member may miss the last change: the machine went down between two writes.
        let is_new = member.events.saturating_add(1) >= newest.events;
        match (role(member), role(newest)) {
            (_, Role::Faulty) => State::Faulty,
            (Role::Active(_), _) if !is_new => State::Stale,
            (Role::Active(_), Role::Active(_)) if member.recovering => State::Rebuilding,
            (Role::Active(mine), Role::Active(place)) if mine == place => State::InSync(place),
            (Role::Active(_), _) => State::Stale,
            (Role::Faulty, _) => State::Faulty,
            (Role::Spare | Role::Journal, _) => State::Spare,
        }
    }

    /// The members that are in sync, by place.
    pub(super) fn in_sync(&self) -> Result<Vec<(u32, &Member)>> {
        let mut found: Vec<(u32, &Member)> = Vec::new();
        for member in &self.members {
            let State::InSync(place) = self.state(&member.superblock) else {
                continue;
            };
            let (ours, theirs) = (&self.array, &member.superblock.array);
            if ours != theirs {
                return Err(corrupt(format!(
                    "members of {} disagree on what it is, that in {} among them",
                    ours.title(),
                    member.part
                )));
            }
            if place >= ours.places {
                let places = ours.places;
                return Err(corrupt(format!(
                    "{} is in place {place} of an array of {places}",
                    member.part
                )));
            }
            if let Some((_, other)) = found.iter().find(|(taken, _)| *taken == place) {
                return Err(corrupt(format!(
                    "{} and {} are both in place {place} of {}",
                    other.part,
                    member.part,
                    ours.title()
                )));
            }
            found.push((place, member));
        }
        found.sort_by_key(|(place, _)| *place);
        Ok(found)
    }

    /// `place 1 of 2`
    pub(super) fn missing(&self, found: &[(u32, &Member)]) -> Option<String> {
        let places = self.array.places;
        let missing: Vec<String> = (0..places)
            .filter(|place| found.iter().all(|(taken, _)| taken != place))
            .take(8)
            .map(|place| place.to_string())
            .collect();
        match missing.len() {
            0 => None,
            1 => Some(format!(
                "the member in place {} of {places} is not here",
                missing.join(", ")
            )),
            _ => Some(format!(
                "the members in places {} of {places} are not here",
                missing.join(", ")
            )),
        }
    }

    /// Where the bytes of the array lie, once for each copy; `layout` as the user has it, and whether a
    /// mirror may be opened with members missing.
    ///
    /// # Errors
    /// `Unsupported` for a level or a state that is not opened, `Corrupt`.
    pub(crate) fn maps(&self, layout: Option<Layout>, degraded: bool) -> Result<Vec<Map>> {
        let array = &self.array;
        let title = array.title();
        let mut problems = self.members.iter().map(|member| member.superblock.problem);
        if let Some(why) = problems.find_map(|problem| problem) {
            return Err(unsupported(format!("{title} {why}")));
        }
        if !matches!(array.level, -1..=1) {
            let level = level_name(array.level);
            return Err(unsupported(format!(
                "{title} is of the level {level}; RAID 0, RAID 1 and linear are opened"
            )));
        }
        if array.places == 0 {
            return Err(corrupt(format!("{title} has no members")));
        }
        let found = self.in_sync()?;
        if let Some(bad) = found.iter().find(|(_, member)| member.bad_blocks) {
            let part = &bad.1.part;
            return Err(unsupported(format!(
                "{part} of {title} has a list of bad blocks"
            )));
        }
        if let Some(missing) = self.missing(&found) {
            let mirror = array.level == 1 && !found.is_empty();
            if !mirror {
                return Err(unsupported(format!("{title} is incomplete: {missing}")));
            }
            if !degraded {
                let id = super::header::grouped(&array.id);
                return Err(
                    unsupported(format!("{title} is degraded: {missing}")).hint(format!(
                        "--layer raid:{id},degraded=yes opens what is there, read-only"
                    )),
                );
            }
        }
        match array.level {
            0 => Ok(vec![self.striped(&found, layout)?]),
            1 => self.mirrored(found),
            _ => Ok(vec![self.linear(&found)?]),
        }
    }

    /// The data of a member, in the volume: where it begins and how much it is, in whole chunks.
    pub(super) fn data(&self, member: &Member, chunk: u64) -> Result<(u64, u64)> {
        let (start, sectors) = member.superblock.data;
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR);
        let begin = bytes(start).and_then(|start| member.part.range.start().checked_add(start));
        let range = begin
            .zip(bytes(sectors))
            .and_then(|(begin, len)| ByteRange::new(begin, len))
            .filter(|range| member.part.range.contains(*range))
            .ok_or_else(|| corrupt(format!("the data of {} leaves it", member.part)))?;
        let rest = range.len().checked_rem(chunk).unwrap_or(0);
        Ok((range.start(), range.len().saturating_sub(rest)))
    }

    /// RAID 0: zones, each on all members that are longer than those before.
    fn striped(&self, found: &[(u32, &Member)], layout: Option<Layout>) -> Result<Map> {
        let chunk = self.array.chunk;
        let title = self.array.title();
        if chunk == 0 || !chunk.is_multiple_of(SECTOR) {
            return Err(corrupt(format!("{title} has chunks of {chunk} bytes")));
        }
        let mut columns = Vec::new();
        for (_, member) in found {
            columns.push(self.data(member, chunk)?);
        }
        let mut map = Map::default();
        let mut done = 0;
        loop {
            let left = columns.iter().filter(|(_, len)| *len > done);
            let Some(end) = left.clone().map(|(_, len)| *len).min() else {
                break;
            };
            // Each lies within the volume.
            let mut begins: Vec<u64> = left.map(|(start, _)| start.saturating_add(done)).collect();
            let count = u64::try_from(begins.len()).unwrap_or(u64::MAX);
            let start = map.size();
            let len = end.saturating_sub(done).saturating_mul(count);
            if start > 0 && begins.len() > 1 && self.layout(layout)? == Layout::Original {
                // The turns are counted from the start of the array, not of the zone.
                let turn = start
                    .checked_div(chunk)
                    .and_then(|turns| turns.checked_rem(count));
                begins.rotate_left(usize::try_from(turn.unwrap_or(0)).unwrap_or(0));
            }
            map.push(Zone {
                range: ByteRange::between(start, start.saturating_add(len)),
                chunk: match count {
                    1 => len,
                    _ => chunk,
                },
                columns: begins,
            });
            done = end;
        }
        // The kernel rounds by a mask when it tells the size, whatever the chunk is: an array whose
        // chunk is no power of two is a little shorter than its zones.
        let mask = chunk.checked_div(SECTOR).unwrap_or(1).saturating_sub(1);
        let size = columns.iter().fold(0_u64, |sum, (_, len)| {
            let sectors = len.checked_div(SECTOR).unwrap_or(0) & !mask;
            sum.saturating_add(sectors.saturating_mul(SECTOR))
        });
        map.truncate(size);
        Ok(map)
    }

    /// Which layout an array of unequal members has.
    fn layout(&self, named: Option<Layout>) -> Result<Layout> {
        let title = self.array.title();
        match (named, self.array.layout) {
            (Some(layout), _) => Ok(layout),
            (None, Some(1)) => Ok(Layout::Original),
            (None, Some(2)) => Ok(Layout::Alternate),
            (None, None | Some(0)) => {
                let id = super::header::grouped(&self.array.id);
                Err(unsupported(format!(
                    "{title} has unequal members, and does not say in which of two ways they are \
                     used"
                ))
                .hint(format!(
                    "--layer raid:{id},layout=alternate (Linux since 3.14) or layout=original; only \
                     one of them shows sound files"
                )))
            }
            (None, Some(other)) => Err(unsupported(format!(
                "{title} has the unknown layout {other}"
            ))),
        }
    }

    /// RAID 1: the same on each member.
    fn mirrored(&self, mut found: Vec<(u32, &Member)>) -> Result<Vec<Map>> {
        // What was written last is read.
        found.sort_by_key(|(_, member)| std::cmp::Reverse(member.superblock.events));
        let size = self.array.size.saturating_mul(SECTOR);
        let mut maps = Vec::new();
        for (_, member) in found {
            let (start, len) = self.data(member, 1)?;
            if len < size {
                let part = &member.part;
                return Err(corrupt(format!(
                    "{part} has {len} bytes for an array of {size} bytes"
                )));
            }
            let mut map = Map::default();
            if size > 0 {
                map.push(Zone::linear(ByteRange::between(0, size), start));
            }
            maps.push(map);
        }
        Ok(maps)
    }

    /// Linear: one after the other.
    fn linear(&self, found: &[(u32, &Member)]) -> Result<Map> {
        let mut map = Map::default();
        for (_, member) in found {
            let (start, len) = self.data(member, self.array.chunk.max(1))?;
            let at = map.size();
            if len > 0 {
                let range = ByteRange::between(at, at.saturating_add(len));
                map.push(Zone::linear(range, start));
            }
        }
        Ok(map)
    }
}
