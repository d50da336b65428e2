//! Which member lies where: read at open, from trailer to trailer, the last one first.

use super::header::{self, Dictionary, HEADER, MEMBER_LEAST, TRAILER};
use crate::cx::Cancel;
use crate::layer::lzma::stream;
use crate::layer::tail::Tail;
use crate::{ByteRange, Error, Kind, Result, Volume};

/// Bytes of a request for a trailer and the header behind it, with small members before them.
const WINDOW: u64 = 16 << 10;
/// Members are taken together until they have this many decoded bytes.
const GROUP: u64 = 1 << 20;
/// They also stay below this many bytes, encoded and decoded, as long as they are more than one.
const GROUP_MOST: u64 = 4 << 20;
/// Memory for a member, in bytes: also that of its group, with room for vectors to grow.
const MEMBER_MEMORY: u64 = 128;
/// Bytes of a kept index for each member.
const ENTRY: usize = 17;

/// One member of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Where it begins in the file.
    pub(super) at: u64,
    /// Bytes in the file.
    pub(super) size: u64,
    /// Decoded bytes.
    pub(super) len: u64,
    pub(super) dictionary: Dictionary,
}

impl Member {
    /// Where it lies in the file.
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::between(self.at, self.end())
    }

    fn end(&self) -> u64 {
        self.at.saturating_add(self.size)
    }
}

/// Members that are decoded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    /// Where their decoded bytes begin in the image.
    start: u64,
    /// The first of them in `Index::members`.
    first: usize,
}

/// All members, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    members: Vec<Member>,
    groups: Vec<Group>,
    size: u64,
}

impl Index {
    /// Reads the trailers of `below`, taking at most `memory` bytes.
    ///
    /// # Errors
    /// `NotThisFormat` when `below` does not start as a member does; `Corrupt`, also for a file
    /// that is cut short or followed by anything else; `Unsupported`; `Limit`; what `below` says.
    pub(super) fn read(below: &Volume, memory: u64, cancel: &Cancel) -> Result<Self> {
        let size = below.size();
        let head = below.read_vec(0, usize::try_from(size.min(HEADER)).unwrap_or(0))?;
        header::header(&head, 0)?;
        let mut tail = Tail::new(below, WINDOW);
        let mut members = Vec::new();
        let most = memory / MEMBER_MEMORY;
        let mut end = size;
        while end > 0 {
            cancel.check()?;
            let count = u64::try_from(members.len()).unwrap_or(u64::MAX);
            if count >= most {
                let what = format!("more than {count} members: too many for the index");
                return Err(Error::new(Kind::Limit, what).hint("give more with --cache-size=SIZE"));
            }
            let member = read_member(&mut tail, end, size)?;
            end = member.at;
            members.push(member);
        }
        members.reverse();
        members.shrink_to_fit();
        Self::new(members)
            .ok_or_else(|| Error::new(Kind::Corrupt, "the members claim more than 2^63 bytes"))
    }

    /// `None` when the members have more than 2^63 bytes.
    fn new(members: Vec<Member>) -> Option<Self> {
        let mut groups = Vec::new();
        let mut size = 0_u64;
        let (mut encoded, mut decoded) = (0_u64, u64::MAX);
        for (first, member) in members.iter().enumerate() {
            encoded = encoded.saturating_add(member.size);
            let all = decoded.saturating_add(member.len);
            if decoded >= GROUP || all > GROUP_MOST || encoded > GROUP_MOST {
                groups.push(Group { start: size, first });
                (encoded, decoded) = (member.size, member.len);
            } else {
                decoded = all;
            }
            size = size
                .checked_add(member.len)
                .filter(|size| *size <= u64::MAX >> 1)?;
        }
        Some(Self {
            members,
            groups,
            size,
        })
    }

    /// Decoded bytes of all members.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many groups of members there are.
    pub(super) fn count(&self) -> usize {
        self.groups.len()
    }

    /// How many members there are.
    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// The members of a group; none when there is no such group.
    pub(super) fn group(&self, number: usize) -> &[Member] {
        let Some(group) = self.groups.get(number) else {
            return &[];
        };
        let next = self.groups.get(number.saturating_add(1));
        let end = next.map_or(self.members.len(), |next| next.first);
        self.members.get(group.first..end).unwrap_or(&[])
    }

    /// Where the decoded bytes of a group begin.
    pub(super) fn start(&self, number: usize) -> u64 {
        self.groups
            .get(number)
            .map_or(self.size, |group| group.start)
    }

    /// The group that holds the byte `offset`, which must be less than [`Self::size`].
    pub(super) fn find(&self, offset: u64) -> usize {
        // Of groups that start at the same place all but the last one are empty.
        self.groups
            .partition_point(|group| group.start <= offset)
            .saturating_sub(1)
    }

    /// The index as bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for member in &self.members {
            bytes.extend(member.size.to_le_bytes());
            bytes.extend(member.len.to_le_bytes());
            bytes.push(member.dictionary.byte());
        }
        bytes
    }

    /// Reads [`Self::to_bytes`]; `None` when that cannot be the index of a file of this size.
    pub(super) fn from_bytes(bytes: &[u8], file_size: u64) -> Option<Self> {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        let mut members = Vec::with_capacity(entries.len());
        let mut at = 0_u64;
        for entry in entries {
            let (size, entry) = entry.split_first_chunk::<8>()?;
            let (len, entry) = entry.split_first_chunk::<8>()?;
            let member = Member {
                at,
                size: u64::from_le_bytes(*size),
                len: u64::from_le_bytes(*len),
                dictionary: Dictionary::from_byte(*entry.first()?)?,
            };
            if member.size < MEMBER_LEAST {
                return None;
            }
            at = at.checked_add(member.size)?;
            members.push(member);
        }
        if at != file_size || !rest.is_empty() {
            return None;
        }
        Self::new(members)
    }

    /// The longest [`Self::to_bytes`] of an index that takes `memory` bytes.
    pub(super) fn most_bytes(memory: u64) -> u64 {
        let entry = u64::try_from(ENTRY).unwrap_or(0);
        (memory / MEMBER_MEMORY).saturating_mul(entry)
    }
}

/// The member that ends at `end` in a file of `size` bytes.
fn read_member(tail: &mut Tail<'_>, end: u64, size: u64) -> Result<Member> {
    let wrong = |what: String| {
        let why = match end == size {
            true => "the file is cut short, damaged, or followed by trailing garbage",
            false => "the file is damaged",
        };
        Error::new(Kind::Corrupt, format!("{what}: {why}"))
    };
    let few = || {
        wrong(format!(
            "the {end} bytes before {end} are too few for a member"
        ))
    };
    let trailer_at = end
        .checked_sub(TRAILER)
        .filter(|_| end >= MEMBER_LEAST)
        .ok_or_else(few)?;
    let trailer = header::trailer(tail.get(trailer_at, TRAILER)?).ok_or_else(few)?;
    let claimed = trailer.member_size;
    let at = end
        .checked_sub(claimed)
        .filter(|_| claimed >= MEMBER_LEAST)
        .ok_or_else(|| {
            wrong(format!(
                "the trailer at {trailer_at} claims a member of {claimed} bytes"
            ))
        })?;
    let len = trailer.data_size;
    if !stream::can_become(claimed, len) {
        return Err(wrong(format!(
            "the trailer at {trailer_at} claims {len} bytes in a member of {claimed}"
        )));
    }
    let dictionary = match header::header(tail.get(at, HEADER)?, at) {
        Ok(dictionary) => dictionary,
        Err(error) if error.kind() == Kind::NotThisFormat => {
            return Err(wrong(format!(
                "the trailer at {trailer_at} claims a member of {claimed} bytes, but none begins \
                 at {at}"
            )));
        }
        Err(error) => return Err(error),
    };
    Ok(Member {
        at,
        size: claimed,
        len,
        dictionary,
    })
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;

    fn members(sizes: &[(u64, u64)]) -> Vec<Member> {
        let mut at = 0;
        let member = |&(size, len): &(u64, u64)| {
            let dictionary = Dictionary::from_byte(0x14).unwrap();
            at += size;
            Member {
                at: at - size,
                size,
                len,
                dictionary,
            }
        };
        sizes.iter().map(member).collect()
    }

    #[test]
    fn small_members_are_taken_together_and_a_large_one_stands_alone() {
        let index = Index::new(members(&[
            (36, 0),
            (100, 600_000),
            (100, 600_000),
            (100, 10),
            (100, 1 << 40),
            (100, 1),
        ]));
        let index = index.unwrap();
        let groups: Vec<_> = (0..index.count())
            .map(|number| (index.start(number), index.group(number).len()))
            .collect();
        let (small, large) = (1_200_000, 1 << 40);
        assert_eq!(
            groups,
            [(0, 3), (small, 1), (small + 10, 1), (small + 10 + large, 1)]
        );
        assert_eq!(index.find(0), 0);
        assert_eq!(index.find(small), 1);
        assert_eq!(index.find(index.size() - 1), 3);
        assert!(Index::new(members(&[(36, u64::MAX >> 1), (36, 1)])).is_none());
    }

    #[test]
    fn an_index_is_kept_and_a_damaged_one_is_refused() {
        let index = Index::new(members(&[(36, 0), (100, 600_000), (200, 7)])).unwrap();
        let bytes = index.to_bytes();
        assert_eq!(Index::from_bytes(&bytes, 336).as_ref(), Some(&index));
        assert_eq!(Index::from_bytes(&bytes, 337), None);
        for len in 0..bytes.len() {
            assert_eq!(Index::from_bytes(&bytes[..len], 336), None, "{len}");
        }
        for at in 0..bytes.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut bad = bytes.clone();
                bad[at] = byte;
                if let Some(index) = Index::from_bytes(&bad, 336) {
                    assert!(index.members.iter().all(|one| one.end() <= 336));
                }
            }
        }
    }
}
