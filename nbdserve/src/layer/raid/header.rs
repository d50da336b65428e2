//! Pure parsers of the superblocks of Linux MD (`include/uapi/linux/raid/md_p.h` of Linux): versions
//! 0.90, 1.0, 1.1 and 1.2. All numbers are little-endian; a superblock of 0.90 that a big-endian
//! machine wrote is refused.

use crate::bytes::{array, has, hex, le16, le32, le64, slice};
use crate::error::quote;
use crate::{Error, Kind, Result};

/// Bytes of a sector, everywhere in MD.
pub(crate) const SECTOR: u64 = 512;
/// Bytes that are read of a superblock: all of 0.90, and the longest of version 1.
pub(crate) const SUPERBLOCK: usize = 4096;
/// `0xa92b4efc`
const MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
/// The part of a superblock of version 1 before the roles.
const FIXED: usize = 256;
/// A volume has at most this many sectors.
const LARGEST: u64 = (u64::MAX >> 1) / SECTOR;
/// Most members, as in the kernel.
const MAX_MEMBERS: u64 = (4096 - 256) / 2;
/// Most members of 0.90.
const MAX_OLD_MEMBERS: u32 = 27;

/// `MD_FEATURE_*`
mod feature {
    pub(super) const BITMAP: u32 = 1;
    pub(super) const RECOVERY_OFFSET: u32 = 2;
    pub(super) const BAD_BLOCKS: u32 = 8;
    pub(super) const RAID0_LAYOUT: u32 = 4096;
    /// Bits that are refused, with what they say.
    pub(super) const REFUSED: &[(u32, &str)] = &[
        (4, "is being reshaped"),
        (16, "has a member that is being replaced"),
        (32, "is being reshaped"),
        (64, "is being reshaped"),
        (128, "is being recovered by its bitmap"),
        (256, "belongs to a cluster"),
        (512, "has a journal"),
        (1024, "has a partial parity log"),
        (2048, "has partial parity logs"),
    ];
}

/// Where a superblock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 64 KiB from the end, rounded down.
    V090,
    /// 8 KiB from the end, rounded down.
    V10,
    /// At the start.
    V11,
    /// At 4 KiB.
    V12,
}

impl Version {
    pub(crate) const ALL: [Self; 4] = [Self::V12, Self::V11, Self::V10, Self::V090];

    /// Where it is in a device of so many bytes; `None` when that is too short.
    pub(crate) fn place(self, size: u64) -> Option<u64> {
        let sectors = size.checked_div(SECTOR)?;
        let at = match self {
            Self::V11 => 0,
            Self::V12 => 8,
            Self::V10 => sectors.checked_sub(16)? & !7,
            Self::V090 => (sectors & !127).checked_sub(128)?,
        };
        let at = at.checked_mul(SECTOR)?;
        (at.checked_add(4096)? <= size).then_some(at)
    }

    /// Whether it is at the end.
    pub(crate) fn is_at_end(self) -> bool {
        matches!(self, Self::V090 | Self::V10)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V090 => "0.90",
            Self::V10 => "1.0",
            Self::V11 => "1.1",
            Self::V12 => "1.2",
        }
    }
}

/// What a member is to its array, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The place in the array.
    Active(u32),
    Spare,
    Faulty,
    Journal,
}

/// What all members of an array agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Array {
    pub(crate) version: Version,
    /// 32 digits.
    pub(crate) id: String,
    /// `host:name`; empty for 0.90.
    pub(crate) name: String,
    /// The minor number it had, for 0.90.
    pub(crate) minor: Option<u32>,
    pub(crate) level: i32,
    /// `None` when it is not said.
    pub(crate) layout: Option<u32>,
    /// Bytes of a turn; zero where there are none.
    pub(crate) chunk: u64,
    /// Places.
    pub(crate) places: u32,
    /// Sectors of a member that a mirror uses.
    pub(crate) size: u64,
}

/// The superblock of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) array: Array,
    /// Where its data begins and how much it is, in sectors.
    pub(crate) data: (u64, u64),
    /// Its number among the devices of the array.
    pub(crate) number: u32,
    /// What each device is, by number, as this member knows it.
    pub(crate) roles: Vec<Role>,
    /// Counts changes of the superblock.
    pub(crate) events: u64,
    /// Nothing was being written when it was stopped.
    pub(crate) clean: bool,
    /// The member is being filled.
    pub(crate) recovering: bool,
    /// Where the bitmap of writes is, in bytes from the superblock on.
    pub(crate) bitmap: Option<i64>,
    /// Where the list of bad blocks is: bytes from the superblock on, and sectors.
    pub(crate) bad_blocks: Option<(i64, u64)>,
    /// Why the array cannot be opened.
    pub(crate) problem: Option<&'static str>,
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// Whether these bytes begin like a superblock of that version.
pub(crate) fn is_superblock(bytes: &[u8], version: Version) -> bool {
    let major = match version {
        Version::V090 => 0,
        Version::V10 | Version::V11 | Version::V12 => 1,
    };
    has(bytes, 0, &MAGIC) && le32(bytes, 4) == Some(major)
}

/// The superblock in `bytes`, which lie at `at` in a device of `size` bytes.
///
/// # Errors
/// `NotThisFormat` without the magic; `Corrupt`; `Unsupported`.
pub(crate) fn superblock(bytes: &[u8], version: Version, at: u64, size: u64) -> Result<Superblock> {
    if has(bytes, 0, &0xa92b_4efc_u32.to_be_bytes()) && version == Version::V090 {
        let what = "a superblock 0.90 of a big-endian machine";
        return Err(Error::new(Kind::Unsupported, what));
    }
    if !is_superblock(bytes, version) {
        let what = "there is no superblock of MD";
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    let cut = || corrupt(format!("the superblock at {at} ends too early"));
    let bytes = slice(bytes, 0, SUPERBLOCK).ok_or_else(cut)?;
    match version {
        Version::V090 => old(bytes, at),
        Version::V10 | Version::V11 | Version::V12 => new(bytes, version, at, size),
    }
}

/// Sum of words, with the carry added.
fn sum(words: impl Iterator<Item = u32>) -> u32 {
    let sum = words.fold(0_u64, |sum, word| sum.wrapping_add(u64::from(word)));
    let folded = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let [a, b, c, d, ..] = folded.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The words of `bytes`, without the one at `skip`.
fn words(bytes: &[u8], skip: usize) -> impl Iterator<Item = u32> {
    let words = bytes.as_chunks::<4>().0.iter().enumerate();
    words
        .filter(move |(number, _)| number.saturating_mul(4) != skip)
        .map(|(_, word)| u32::from_le_bytes(*word))
}

fn check_sum(stored: u32, found: u32, at: u64) -> Result<()> {
    if stored == found {
        return Ok(());
    }
    Err(corrupt(format!(
        "the superblock at {at} has the checksum {stored:08x}, its bytes have {found:08x}"
    )))
}

/// Where the checksum is.
const NEW_SUM: usize = 216;
const OLD_SUM: usize = 38 * 4;

/// The checksum of a superblock of version 1 with so many roles.
pub(crate) fn new_sum(bytes: &[u8], roles: usize) -> Option<u32> {
    let len = roles.checked_mul(2)?.checked_add(FIXED)?;
    let body = bytes.get(..len)?;
    let rest = body.as_chunks::<4>().1;
    // Two bytes may be left.
    let rest = match *rest {
        [low, high] => u32::from(u16::from_le_bytes([low, high])),
        _ => 0,
    };
    Some(sum(words(body, NEW_SUM).chain([rest])))
}

/// The checksum of a superblock 0.90.
pub(crate) fn old_sum(bytes: &[u8]) -> Option<u32> {
    Some(sum(words(bytes.get(..SUPERBLOCK)?, OLD_SUM)))
}

/// `struct mdp_superblock_1`
fn new(bytes: &[u8], version: Version, at: u64, size: u64) -> Result<Superblock> {
    let cut = || corrupt(format!("the superblock at {at} ends too early"));
    let word = |at| le32(bytes, at).ok_or_else(cut);
    let long = |at| le64(bytes, at).ok_or_else(cut);
    let max_dev = word(220)?;
    if u64::from(max_dev) > MAX_MEMBERS {
        return Err(corrupt(format!(
            "the superblock at {at} has {max_dev} roles, {MAX_MEMBERS} are possible"
        )));
    }
    let count = usize::try_from(max_dev).map_err(|_| cut())?;
    check_sum(word(NEW_SUM)?, new_sum(bytes, count).ok_or_else(cut)?, at)?;
    let here = at.checked_div(SECTOR).unwrap_or(0);
    let claimed = long(144)?;
    if claimed != here {
        return Err(corrupt(format!(
            "the superblock at sector {here} says that it is at sector {claimed}"
        )));
    }
    let features = word(8)?;
    let known =
        feature::BITMAP | feature::RECOVERY_OFFSET | feature::BAD_BLOCKS | feature::RAID0_LAYOUT;
    let refused = feature::REFUSED.iter().find(|(bit, _)| features & bit != 0);
    let all = feature::REFUSED
        .iter()
        .fold(known, |all, (bit, _)| all | bit);
    let problem = match (refused, features & !all) {
        (Some((_, why)), _) => Some(*why),
        (None, 0) => None,
        (None, _) => Some("has unknown features"),
    };
    let places = word(92)?;
    if u64::from(places) > MAX_MEMBERS {
        return Err(corrupt(format!(
            "an array of {places} members, {MAX_MEMBERS} are possible"
        )));
    }
    let level = i32::from_le_bytes(array(bytes, 72).ok_or_else(cut)?);
    let (data_offset, data_size) = (long(128)?, long(136)?);
    let end = match version {
        Version::V10 => at,
        _ => size,
    };
    let end = end.checked_div(SECTOR).unwrap_or(0);
    let fits = data_offset
        .checked_add(data_size)
        .filter(|&last| last <= end);
    if fits.is_none() {
        return Err(corrupt(format!(
            "{data_size} sectors of data at sector {data_offset} are not within its {end} sectors"
        )));
    }
    let used = long(80)?;
    if used > LARGEST {
        return Err(corrupt(format!("members of {used} sectors")));
    }
    let layout = word(76)?;
    let mut roles = Vec::with_capacity(count);
    for number in 0..count {
        let place = number.saturating_mul(2).saturating_add(FIXED);
        roles.push(match le16(bytes, place).ok_or_else(cut)? {
            0xffff => Role::Spare,
            0xfffe => Role::Faulty,
            0xfffd => Role::Journal,
            place => Role::Active(u32::from(place)),
        });
    }
    let name = slice(bytes, 32, 32).ok_or_else(cut)?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let bad_blocks = match features & feature::BAD_BLOCKS {
        0 => None,
        _ => {
            let sectors = le16(bytes, 186).ok_or_else(cut)?;
            let offset = i32::from_le_bytes(array(bytes, 188).ok_or_else(cut)?);
            // 32 bits and nine more.
            Some((i64::from(offset).saturating_mul(512), u64::from(sectors)))
        }
    };
    let id = slice(bytes, 16, 16).ok_or_else(cut)?;
    Ok(Superblock {
        array: Array {
            version,
            id: hex(id),
            name: String::from_utf8_lossy(name).into_owned(),
            minor: None,
            level,
            layout: (level != 0 || features & feature::RAID0_LAYOUT != 0).then_some(layout),
            // 32 bits of sectors.
            chunk: u64::from(word(88)?).saturating_mul(SECTOR),
            places,
            size: mirrored(level, used),
        },
        data: (data_offset, data_size),
        number: word(160)?,
        roles,
        events: long(200)?,
        clean: long(208)? == u64::MAX,
        recovering: features & feature::RECOVERY_OFFSET != 0,
        bitmap: match features & feature::BITMAP {
            0 => None,
            _ => {
                let offset = i32::from_le_bytes(array(bytes, 96).ok_or_else(cut)?);
                Some(i64::from(offset).saturating_mul(512))
            }
        },
        bad_blocks,
        problem,
    })
}

/// `struct mdp_superblock_s`, in words.
fn old(bytes: &[u8], at: u64) -> Result<Superblock> {
    let cut = || corrupt(format!("the superblock at {at} ends too early"));
    let word = |number: usize| le32(bytes, number.saturating_mul(4)).ok_or_else(cut);
    check_sum(word(38)?, old_sum(bytes).ok_or_else(cut)?, at)?;
    let problem = match word(2)? {
        90 => None,
        91 => Some("is being reshaped"),
        other => {
            let what = format!("version 0.{other} of the superblock at {at}");
            return Err(Error::new(Kind::Unsupported, what));
        }
    };
    let places = word(10)?;
    if places > MAX_OLD_MEMBERS {
        return Err(corrupt(format!(
            "an array of {places} members, {MAX_OLD_MEMBERS} are possible"
        )));
    }
    let level = i32::from_le_bytes(word(7)?.to_le_bytes());
    // disk_state: faulty, active, in sync, removed.
    let role = |state: u32, place: u32| match (state & 1, state & 6) {
        (1, _) => Role::Faulty,
        (_, 6) => Role::Active(place),
        _ => Role::Spare,
    };
    let mut roles = Vec::new();
    for number in 0..27_usize {
        let first = number.saturating_mul(32).saturating_add(128);
        let (place, state) = (
            word(first.saturating_add(3))?,
            word(first.saturating_add(4))?,
        );
        roles.push(role(state, place));
    }
    let state = word(33)?;
    let events = u64::from(word(39)?) | u64::from(word(40)?) << 32;
    // All up to the superblock is data.
    let data = at.checked_div(SECTOR).unwrap_or(0);
    let id = [word(5)?, word(13)?, word(14)?, word(15)?];
    let chunk = u64::from(word(65)?);
    // KiB, for mirrors.
    let size = u64::from(word(8)?).saturating_mul(2);
    Ok(Superblock {
        array: Array {
            version: Version::V090,
            id: id.iter().map(|word| format!("{word:08x}")).collect(),
            name: String::new(),
            minor: Some(word(11)?),
            level,
            layout: match level {
                0 => None,
                _ => Some(word(64)?),
            },
            chunk,
            places,
            size: mirrored(level, size),
        },
        data: (0, data),
        number: word(992)?,
        roles,
        events,
        clean: state & 1 != 0,
        recovering: false,
        // Behind the superblock.
        bitmap: (state & 0x100 != 0).then_some(4096),
        bad_blocks: None,
        problem,
    })
}

/// Without mirrors each member has its own size, and what stands here means nothing.
fn mirrored(level: i32, size: u64) -> u64 {
    match level {
        ..=0 => 0,
        _ => size,
    }
}

/// An identifier as mdadm(8) prints it.
pub(crate) fn grouped(id: &str) -> String {
    let groups = id.as_bytes().chunks(8);
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(":")
}

impl Array {
    /// What an array is called in messages.
    pub(crate) fn title(&self) -> String {
        let level = level_name(self.level);
        match self.name.as_str() {
            "" => format!("the array {} ({level})", grouped(&self.id)),
            name => format!("the array {} ({level})", quote(name)),
        }
    }
}

/// `RAID 1`
pub(crate) fn level_name(level: i32) -> String {
    match level {
        -1 => "linear".to_owned(),
        -4 => "multipath".to_owned(),
        -5 => "faulty".to_owned(),
        other => format!("RAID {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_lie_where_the_kernel_looks_for_them() {
        let mib = 1 << 20;
        assert_eq!(Version::V11.place(mib), Some(0));
        assert_eq!(Version::V12.place(mib), Some(4096));
        assert_eq!(Version::V10.place(mib), Some(mib - 8192));
        assert_eq!(Version::V10.place(mib + 512), Some(mib - 8192));
        assert_eq!(Version::V090.place(mib), Some(mib - 65536));
        assert_eq!(Version::V090.place(mib + 512), Some(mib - 65536));
        for version in Version::ALL {
            for size in [0, 1, 512, 4095] {
                assert_eq!(version.place(size), None, "{version:?} of {size}");
            }
        }
    }

    #[test]
    fn the_carry_of_a_sum_is_added() {
        assert_eq!(sum([u32::MAX, 1].into_iter()), 1);
        assert_eq!(sum([u32::MAX, u32::MAX].into_iter()), u32::MAX);
    }
}
