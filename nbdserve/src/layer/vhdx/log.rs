//! Pure parser of the log (MS-VHDX 2.3): which bytes of the file it has later contents of.

use std::collections::HashMap;

use super::crc32c::Crc32c;
use super::header::corrupt;
use crate::bytes::{array, has, le32, le64, slice};
use crate::{Error, Kind, Result};

/// Bytes of a sector of the log; entries begin at such, and what they change is as long.
pub(super) const SECTOR: usize = 4096;
/// Bytes of the header of an entry.
const ENTRY: usize = 64;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 32;
/// Longest log: Hyper-V and qemu make logs of one MiB.
pub(super) const LONGEST: u64 = 16 << 20;
/// So often the length of the log may be read for checksums, where entries claim to overlap.
const MOST_PASSES: usize = 4;

/// A part of the file that the log has later contents of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Its first byte in the file.
    pub(super) at: u64,
    /// Its bytes.
    pub(super) len: u64,
    /// Where its contents begin in [`Replay::bytes`]; `None` for zeroes.
    pub(super) from: Option<u64>,
}

/// What is to be done to the file, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Replay {
    pub(super) changes: Vec<Change>,
    /// What is written.
    pub(super) bytes: Vec<u8>,
    /// The file had at least this many bytes on disk when the log was written.
    pub(super) flushed: u64,
    /// It has this many when all is done.
    pub(super) last: u64,
}

/// An entry that is sound.
#[derive(Clone, Copy, Debug)]
struct Entry {
    len: usize,
    tail: usize,
    sequence: u64,
}

/// What the log `log` has to say; its entries are called `guid`.
///
/// # Errors
/// `Corrupt` when it has no sound sequence of entries; `Limit` when looking for one is too much work.
pub(super) fn replay(log: &[u8], guid: [u8; 16]) -> Result<Replay> {
    let mut left = log.len().saturating_mul(MOST_PASSES);
    let mut found = HashMap::new();
    for at in (0..log.len()).step_by(SECTOR) {
        if let Some(entry) = entry(log, at, guid, &mut left)? {
            found.insert(at, entry);
        }
    }
    let mut heads: Vec<_> = found
        .iter()
        .map(|(at, entry)| (entry.sequence, *at))
        .collect();
    heads.sort_unstable_by(|one, other| other.cmp(one));
    for (_, head) in heads {
        let Some(sequence) = sequence(&found, head, log.len()) else {
            continue;
        };
        let mut replay = Replay::default();
        for at in sequence {
            apply(
                &whole(log, at, found.get(&at).map_or(0, |entry| entry.len)),
                &mut replay,
            )?;
        }
        return Ok(replay);
    }
    Err(corrupt(
        "the log has to be replayed, and no entry of it is sound",
    ))
}

/// The bytes of an entry, which may go on at the beginning of the log.
fn whole(log: &[u8], at: usize, len: usize) -> Vec<u8> {
    log.iter().cycle().skip(at).take(len).copied().collect()
}

/// The two parts of `len` bytes at `at` of a log whose beginning follows its end.
fn parts(log: &[u8], at: usize, len: usize) -> (&[u8], &[u8]) {
    let first = log.get(at..).unwrap_or(&[]);
    let first = first.get(..len).unwrap_or(first);
    let second = log.get(..len.saturating_sub(first.len())).unwrap_or(&[]);
    (first, second)
}

/// The entry at `at`, if there is a sound one. `left` bytes may still be read for checksums.
fn entry(log: &[u8], at: usize, guid: [u8; 16], left: &mut usize) -> Result<Option<Entry>> {
    let Some(head) = slice(log, at, ENTRY).filter(|head| has(head, 0, b"loge")) else {
        return Ok(None);
    };
    let number = |at| le32(head, at).and_then(|number| usize::try_from(number).ok());
    let (Some(len), Some(tail), Some(sequence)) = (number(8), number(12), le64(head, 16)) else {
        return Ok(None);
    };
    let sound = len >= SECTOR
        && len <= log.len()
        && len.is_multiple_of(SECTOR)
        && tail < log.len()
        && tail.is_multiple_of(SECTOR)
        && sequence > 0
        && array(head, 32) == Some(guid);
    if !sound {
        return Ok(None);
    }
    *left = left.checked_sub(len).ok_or_else(|| {
        let what = "the log has entries that overlap, too many to look at";
        Error::new(Kind::Limit, what)
    })?;
    let (first, second) = parts(log, at, len);
    let sum = Crc32c::new()
        .update(first.get(..4).unwrap_or(&[]))
        .update(&[0; 4])
        .update(first.get(8..).unwrap_or(&[]))
        .update(second);
    let entry = Entry {
        len,
        tail,
        sequence,
    };
    Ok((le32(head, 4) == Some(sum.value())).then_some(entry))
}

/// Where the entries lie, in order, that end with the one at `head`: from its tail on, each with the
/// number behind the one before. `None` when they are not all there.
fn sequence(found: &HashMap<usize, Entry>, head: usize, len: usize) -> Option<Vec<usize>> {
    let last = found.get(&head)?;
    let mut at = last.tail;
    let mut sequence = vec![at];
    let mut number = found.get(&at)?.sequence;
    while at != head {
        let entry = found.get(&at)?;
        at = at.checked_add(entry.len)?.checked_rem(len)?;
        number = number.checked_add(1)?;
        if found.get(&at)?.sequence != number || sequence.len() > found.len() {
            return None;
        }
        sequence.push(at);
    }
    Some(sequence)
}

/// Adds what the entry `entry` changes.
fn apply(entry: &[u8], replay: &mut Replay) -> Result<()> {
    let cut = || corrupt("an entry of the log ends within a descriptor");
    let count = le32(entry, 24).ok_or_else(cut)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let sequence = le64(entry, 16).ok_or_else(cut)?;
    replay.flushed = replay.flushed.max(le64(entry, 48).ok_or_else(cut)?);
    replay.last = replay.last.max(le64(entry, 56).ok_or_else(cut)?);
    let described = count.saturating_mul(DESCRIPTOR).saturating_add(ENTRY);
    let mut data = described.div_ceil(SECTOR).saturating_mul(SECTOR);
    if data > entry.len() {
        return Err(corrupt(format!(
            "an entry of the log with {count} descriptors"
        )));
    }
    for at in (ENTRY..).step_by(DESCRIPTOR).take(count) {
        let descriptor = slice(entry, at, DESCRIPTOR).ok_or_else(cut)?;
        let file = le64(descriptor, 16).ok_or_else(cut)?;
        if le64(descriptor, 24) != Some(sequence) {
            return Err(corrupt("a descriptor of the log belongs to another entry"));
        }
        let zero = has(descriptor, 0, b"zero");
        if !zero && !has(descriptor, 0, b"desc") {
            return Err(corrupt(
                "an entry of the log has a descriptor of no known sort",
            ));
        }
        let sector = u64::try_from(SECTOR).unwrap_or(u64::MAX);
        let len = if zero {
            le64(descriptor, 8).ok_or_else(cut)?
        } else {
            sector
        };
        let end = file.checked_add(len);
        let placed = file.is_multiple_of(sector) && len.is_multiple_of(sector);
        if !placed || end.is_none_or(|end| end > u64::MAX >> 1) {
            let what = format!("the log changes {len} bytes at {file}, which are no whole sectors");
            return Err(corrupt(what));
        }
        let mut change = Change {
            at: file,
            len,
            from: None,
        };
        if !zero {
            let bytes = slice(entry, data, SECTOR).ok_or_else(cut)?;
            change.from = Some(u64::try_from(replay.bytes.len()).unwrap_or(u64::MAX));
            restore(descriptor, bytes, sequence, &mut replay.bytes)?;
            data = data.saturating_add(SECTOR);
        }
        if len > 0 {
            replay.changes.push(change);
        }
    }
    Ok(())
}

/// Puts a data sector together: its first eight and its last four bytes stand in the descriptor.
fn restore(descriptor: &[u8], data: &[u8], sequence: u64, out: &mut Vec<u8>) -> Result<()> {
    let high = le32(data, 4).map(u64::from);
    let low = le32(data, SECTOR.saturating_sub(4)).map(u64::from);
    let own = high.zip(low).map(|(high, low)| high << 32 | low);
    if !has(data, 0, b"data") || own != Some(sequence) {
        return Err(corrupt("a data sector of the log belongs to another entry"));
    }
    out.extend(slice(descriptor, 8, 8).unwrap_or(&[]));
    out.extend(data.get(8..SECTOR.saturating_sub(4)).unwrap_or(&[]));
    out.extend(slice(descriptor, 4, 4).unwrap_or(&[]));
    Ok(())
}
