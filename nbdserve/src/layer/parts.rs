//! Where members of groups and arrays may lie: the partitions of a disk, or all of a volume.

use super::partition::read_table;
use crate::{ByteRange, Kind, Result, Volume};

/// Partitions that are looked at; a table may have thousands.
const MAX_PARTS: usize = 128;
/// The types of partitions that are members of arrays, GPT and MBR.
const RAID: [&str; 2] = ["a19d880f-05fc-4d3b-a006-743f0f84911e", "0xfd"];

/// A part of a volume that may be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where it lies.
    pub(crate) range: ByteRange,
    /// The number of the partition; `None` for all of the volume.
    pub(crate) number: Option<u32>,
    /// The partition table says that it is a member of an array.
    pub(crate) is_raid: bool,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            Some(number) => write!(f, "partition {number}"),
            None => f.write_str("the whole volume"),
        }
    }
}

/// The partitions of `below`; empty where it has no table that can be read.
///
/// # Errors
/// When `below` cannot be read.
pub(super) fn partitions(below: &Volume) -> Result<Vec<Part>> {
    let table = match read_table(below, None) {
        Ok(table) => table,
        Err(error)
            if matches!(
                error.kind(),
                Kind::NotThisFormat | Kind::Corrupt | Kind::Limit
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let fit = table
        .partitions
        .iter()
        .filter(|entry| entry.problem.is_none() && !entry.is_container());
    Ok(fit
        .take(MAX_PARTS)
        .map(|entry| Part {
            range: entry.range(),
            number: Some(entry.number),
            is_raid: RAID.contains(&entry.type_id.as_str()),
        })
        .collect())
}

/// All of `below`.
pub(super) fn whole(below: &Volume) -> Part {
    Part {
        range: ByteRange::between(0, below.size()),
        number: None,
        is_raid: false,
    }
}
