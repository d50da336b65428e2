//! Internal snapshots: other states of the disk in the same file.

use super::file::HostFile;
use super::header::{Header, corrupt};
use super::tables::Root;
use crate::bytes::{array, slice};
use crate::error::{quote, quote_if_needed};
use crate::layer::scan::{narrow, wide};
use crate::{Error, Kind, Result};

/// Most snapshots of an image.
const MOST: u32 = 65_536;
/// Most bytes of their table.
const MOST_BYTES: u64 = 16 << 20;
/// Bytes of an entry before its variable part.
const FIXED: usize = 40;
/// So many are named in a message.
const NAMED: usize = 20;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Its number, as text.
    pub(super) id: String,
    /// Its name; neither is escaped.
    pub(super) name: String,
    /// Where its L1 table lies.
    pub(super) l1_table_offset: u64,
    /// Entries of that.
    pub(super) l1_size: u32,
    /// Bytes of the disk then; `None` when it is not said: as now.
    pub(super) disk_size: Option<u64>,
}

/// The snapshot at the start of `bytes`, and how many bytes it takes; `None` where they end before.
fn parse(bytes: &[u8]) -> Option<(Snapshot, usize)> {
    let be32 = |at| array(bytes, at).map(u32::from_be_bytes);
    let be64 = |at| array(bytes, at).map(u64::from_be_bytes);
    let be16 = |at| array(bytes, at).map(|value| usize::from(u16::from_be_bytes(value)));
    let id_len = be16(12)?;
    let name_len = be16(14)?;
    let extra = usize::try_from(be32(36)?).ok()?;
    let id_at = FIXED.checked_add(extra)?;
    let name_at = id_at.checked_add(id_len)?;
    let end = name_at.checked_add(name_len)?;
    let text =
        |at, len| slice(bytes, at, len).map(|text| String::from_utf8_lossy(text).into_owned());
    // The bytes of the machine's state, of the disk, and more that is of no use here.
    slice(bytes, FIXED, extra)?;
    let disk_size = (extra >= 16).then(|| be64(48)).flatten();
    let snapshot = Snapshot {
        id: text(id_at, id_len)?,
        name: text(name_at, name_len)?,
        l1_table_offset: be64(0)?,
        l1_size: be32(8)?,
        disk_size,
    };
    Some((snapshot, end.checked_next_multiple_of(8)?))
}

/// All snapshots of an image.
///
/// # Errors
/// `Corrupt` for a table that goes beyond the file, `Limit` for one that is too long, what the file
/// says.
pub(super) fn read(header: &Header, file: &HostFile) -> Result<Vec<Snapshot>> {
    let count = header.nb_snapshots;
    if count > MOST {
        let what = format!("{count} snapshots, {MOST} are the most");
        return Err(Error::new(Kind::Limit, what));
    }
    let mut found = Vec::new();
    let mut bytes = Vec::new();
    let mut used = 0_usize;
    let at = header.snapshots_offset;
    while found.len() < narrow(u64::from(count)) {
        let rest = bytes.get(used..).unwrap_or(&[]);
        if let Some((snapshot, len)) = parse(rest) {
            found.push(snapshot);
            used = used.saturating_add(len);
            continue;
        }
        let have = wide(bytes.len());
        let left = file.size().saturating_sub(at).saturating_sub(have);
        if left == 0 {
            let number = found.len();
            let what =
                format!("the table of {count} snapshots at {at} ends within number {number}");
            return Err(corrupt(what));
        }
        if have >= MOST_BYTES {
            let what = format!("a table of snapshots of more than {MOST_BYTES} bytes");
            return Err(Error::new(Kind::Limit, what));
        }
        let more = have.max(4096).min(left);
        let start = bytes.len();
        bytes.resize(start.saturating_add(narrow(more)), 0);
        let new = bytes.get_mut(start..).unwrap_or(&mut []);
        file.read_at(new, at.saturating_add(have))?;
    }
    Ok(found)
}

fn list(snapshots: &[Snapshot]) -> String {
    let mut names: Vec<String> = snapshots
        .iter()
        .take(NAMED)
        .map(|one| format!("{} {}", quote_if_needed(&one.id), quote(&one.name)))
        .collect();
    let more = snapshots.len().saturating_sub(NAMED);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

/// What to say of the snapshots of an image, if it has any.
pub(super) fn note(header: &Header, file: &HostFile) -> Option<String> {
    if header.nb_snapshots == 0 {
        return None;
    }
    Some(match read(header, file) {
        Ok(snapshots) => format!("snapshots: {}", list(&snapshots)),
        Err(error) => format!("its snapshots cannot be read: {error}"),
    })
}

/// The L1 table of the snapshot that is called `wanted`, or has that number.
///
/// # Errors
/// `OutOfRange` when there is none, with those that there are; as [`read`].
pub(super) fn root(header: &Header, file: &HostFile, wanted: &str) -> Result<Root> {
    let snapshots = read(header, file)?;
    let by_name = || snapshots.iter().find(|one| one.name == wanted);
    let by_id = || snapshots.iter().find(|one| one.id == wanted);
    let Some(found) = by_name().or_else(by_id) else {
        let what = format!("there is no snapshot {}", quote(wanted));
        let hint = match snapshots.is_empty() {
            true => "the image has no snapshots".to_owned(),
            false => format!("there are {}", list(&snapshots)),
        };
        return Err(Error::new(Kind::OutOfRange, what).hint(hint));
    };
    let size = found.disk_size.unwrap_or(header.size);
    if size > u64::MAX >> 1 {
        let what = format!("a disk of {size} bytes, 2^63 are the most");
        return Err(Error::new(Kind::Limit, what));
    }
    Ok(Root {
        name: format!("the L1 table of snapshot {}", quote_if_needed(&found.id)),
        at: found.l1_table_offset,
        entries: u64::from(found.l1_size),
        size,
    })
}
