//! Reading the superblocks on a volume, and putting the members of each array together.

use super::array::{Found, Member};
use super::header::{self, SECTOR, SUPERBLOCK, Superblock, Version};
use crate::bytes::{is_zero, slice};
use crate::layer::parts::{self, Part};
use crate::{ByteRange, Error, Kind, Result, Volume};

/// Bytes at the start of a part that have the superblocks 1.1 and 1.2.
const HEAD: usize = 2 * SUPERBLOCK;
/// Sectors of the longest list of bad blocks, as in the kernel.
const MAX_BAD_BLOCKS: u64 = 8;

/// How far superblocks at the end of parts are looked for. Reading there may cost a request, or the
/// decoding of all that lies before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// In partitions that are said to be members, or begin with the same bytes as another: copies of
    /// one file system.
    Cheap,
    /// In all partitions: reading there costs next to nothing. What nothing else speaks for counts where
    /// it makes an array complete, and else for what it begins with: the superblock may be left from
    /// former times.
    Ends,
    /// Everywhere, and all of them count.
    Full,
}

/// The arrays on a volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrays {
    pub(crate) arrays: Vec<Found>,
    /// What is damaged.
    pub(crate) notes: Vec<String>,
}

impl Arrays {
    /// The arrays whose members are partitions of `below`, or, when there are none, `below` itself;
    /// none at all is no error.
    ///
    /// # Errors
    /// What `below` says.
    pub(crate) fn read(below: &Volume, depth: Depth) -> Result<Self> {
        Ok(Self::look(below, depth)?.0)
    }

    /// As [`Self::read`], with the first damage that was seen.
    pub(super) fn look(below: &Volume, depth: Depth) -> Result<(Self, Option<Error>)> {
        let mut found = Self::default();
        let mut members: Vec<Member> = Vec::new();
        let mut damage = None;
        let mut parts = Vec::new();
        for part in parts::partitions(below)? {
            let head = below.read_vec(part.range.start(), head_len(&part))?;
            parts.push((part, head));
        }
        // What the table, or another partition, speaks for; and what has but its own superblock.
        let mut lone: Vec<Member> = Vec::new();
        for (part, head) in &parts {
            let alike = parts.iter().filter(|(_, other)| other == head).count();
            let copied = alike > 1 && !is_zero(head);
            let at_end = depth == Depth::Full || part.is_raid || copied;
            match found.member(below, part, head, at_end, &mut damage)? {
                Some(member) => members.push(member),
                None if depth == Depth::Ends && !at_end => {
                    lone.extend(at_end_of(below, part, head)?);
                }
                None => {}
            }
        }
        found.add_lone(&mut members, &lone);
        if members.is_empty() && damage.is_none() {
            let part = parts::whole(below);
            let head = below.read_vec(0, head_len(&part))?;
            let at_end = depth == Depth::Full;
            members.extend(found.member(below, &part, &head, at_end, &mut damage)?);
        }
        let mut groups: Vec<Vec<Member>> = Vec::new();
        for member in members {
            let id = |member: &Member| member.superblock.array.id.clone();
            let same = groups
                .iter_mut()
                .find(|group| group.first().map(id) == Some(id(&member)));
            match same {
                Some(group) => group.push(member),
                None => groups.push(vec![member]),
            }
        }
        found.arrays = groups.into_iter().filter_map(Found::new).collect();
        Ok((found, damage))
    }

    /// Adds those of `lone` that belong to an array of `members`, or are all of an array. The others
    /// are notes.
    fn add_lone(&mut self, members: &mut Vec<Member>, lone: &[Member]) {
        let id = |member: &Member| member.superblock.array.id.clone();
        let known: Vec<String> = members.iter().map(id).collect();
        for member in lone {
            let same = lone.iter().filter(|other| id(other) == id(member));
            let array = Found::new(same.cloned().collect());
            if known.contains(&id(member)) || array.is_some_and(|array| array.is_complete()) {
                members.push(member.clone());
                continue;
            }
            let (part, array) = (&member.part, &member.superblock.array);
            self.notes.push(format!(
                "{part} ends with a superblock {} of {}, of which not all is here: it is taken for what it begins with",
                array.version.name(),
                array.title()
            ));
        }
        members.sort_by_key(|member| member.part.range.start());
    }

    /// The member that `part` is, which begins with `head`.
    fn member(
        &mut self,
        below: &Volume,
        part: &Part,
        head: &[u8],
        at_end: bool,
        damage: &mut Option<Error>,
    ) -> Result<Option<Member>> {
        for version in Version::ALL {
            if version.is_at_end() && !at_end {
                continue;
            }
            match member(below, part, head, version) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                    self.notes.push(format!("{part}: {error}"));
                    damage.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// The member that `part` is by a superblock of this version.
fn member(below: &Volume, part: &Part, head: &[u8], version: Version) -> Result<Option<Member>> {
    let found = read(below, part, head, version)?;
    Ok(found.map(|(superblock, bad_blocks)| Member {
        part: part.clone(),
        superblock,
        bad_blocks,
    }))
}

/// The member that `part` is by a sound superblock at its end.
fn at_end_of(below: &Volume, part: &Part, head: &[u8]) -> Result<Option<Member>> {
    for version in Version::ALL
        .into_iter()
        .filter(|version| version.is_at_end())
    {
        match member(below, part, head, version) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            // Nothing else says that there should be one.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                tracing::debug!("{part}: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The superblocks at the start are in the first bytes.
fn head_len(part: &Part) -> usize {
    let len = usize::try_from(part.range.len()).unwrap_or(usize::MAX);
    len.min(HEAD)
}

/// The superblock of that version in `part`, which begins with `head`, and whether there are bad
/// blocks.
fn read(
    below: &Volume,
    part: &Part,
    head: &[u8],
    version: Version,
) -> Result<Option<(Superblock, bool)>> {
    let size = part.range.len();
    let Some(at) = version.place(size) else {
        return Ok(None);
    };
    let superblock = {
        let from_head = usize::try_from(at)
            .ok()
            .and_then(|at| slice(head, at, SUPERBLOCK));
        let read;
        let bytes = match from_head {
            Some(bytes) => bytes,
            None => {
                // Within the part, which is within the volume.
                read = below.read_vec(part.range.start().saturating_add(at), SUPERBLOCK)?;
                &read
            }
        };
        match header::superblock(bytes, version, at, size) {
            Ok(superblock) => superblock,
            Err(error) if error.kind() == Kind::NotThisFormat => return Ok(None),
            Err(error) => return Err(error),
        }
    };
    let bad = match superblock.bad_blocks {
        None => false,
        Some((offset, sectors)) => {
            let start = at.checked_add_signed(offset);
            let len = sectors.saturating_mul(SECTOR);
            let list = start
                .and_then(|start| ByteRange::new(start, len))
                .filter(|list| list.end() <= size && sectors <= MAX_BAD_BLOCKS);
            let Some(list) = list else {
                let what = format!(
                    "a list of bad blocks of {sectors} sectors at {offset} of the superblock"
                );
                return Err(Error::new(Kind::Corrupt, what));
            };
            let place = part.range.start().saturating_add(list.start());
            let bytes = below.read_vec(place, usize::try_from(len).unwrap_or(0))?;
            // The list ends where all bits are set.
            bytes.get(..8).is_some_and(|first| first != [0xff; 8])
        }
    };
    Ok(Some((superblock, bad)))
}
