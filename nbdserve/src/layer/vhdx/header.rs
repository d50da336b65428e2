//! Pure parsers of the headers and the region table of a VHDX (MS-VHDX 2.2): bytes in, values that
//! hold the format's rules out. All numbers are little-endian.

use super::crc32c::of_structure;
use crate::bytes::{array, has, le16, le32, le64, slice};
use crate::layer::cut::cut_off;
use crate::layer::partition::guid::Guid;
use crate::{Error, Kind, Result};

/// How a file begins.
pub(super) const MAGIC: &[u8] = b"vhdxfile";
/// Where the two headers lie.
pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes of a header.
pub(super) const HEADER: usize = 4096;
/// Where the two region tables lie.
pub(super) const TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table, and of the metadata table.
pub(super) const TABLE: usize = 64 << 10;
/// Everything but headers lies at multiples of this.
pub(super) const MIB: u64 = 1 << 20;
/// Most entries of a region table or a metadata table.
pub(super) const MOST_ENTRIES: usize = 2047;

/// The regions that there are.
const BAT: &str = "2dc27766-f623-4200-9d64-115e9bfd4a08";
const METADATA: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    /// Changes whenever the contents of the disk do.
    pub(super) data_write: [u8; 16],
    /// The log has entries of this name; all zero when it has none.
    pub(super) log: [u8; 16],
    /// Where the log lies, and how long it is.
    pub(super) log_at: u64,
    pub(super) log_len: u64,
}

/// A region of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) at: u64,
    pub(super) len: u64,
}

/// The regions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
}

pub(super) fn corrupt(what: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, what)
}

pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, what)
}

/// The text of a GUID, as in `{...}` but without the braces.
pub(super) fn guid_text(bytes: [u8; 16]) -> String {
    Guid::new(bytes).to_string()
}

/// Checks signature and checksum of a structure; `what` it is and where is for messages.
fn check(bytes: &[u8], signature: &[u8], what: &str) -> Result<()> {
    if !has(bytes, 0, signature) {
        let signature = String::from_utf8_lossy(signature);
        return Err(corrupt(format!(
            "{what} does not begin with \"{signature}\""
        )));
    }
    let (stored, sum) = (le32(bytes, 4).unwrap_or(0), of_structure(bytes));
    if stored != sum {
        let what = format!("the checksum of {what} is {sum:08x}, {stored:08x} is stored");
        return Err(corrupt(what));
    }
    Ok(())
}

/// The header in `bytes`, which lies at `at`.
///
/// # Errors
/// `Corrupt`, also for a wrong checksum; `Unsupported` for another version.
pub(super) fn header(bytes: &[u8], at: u64) -> Result<Header> {
    let what = format!("the header at {at}");
    let cut = || cut_off(format!("the file ends within {what}"));
    let bytes = slice(bytes, 0, HEADER).ok_or_else(cut)?;
    check(bytes, b"head", &what)?;
    let version = le16(bytes, 66).ok_or_else(cut)?;
    if version != 1 {
        let what = format!("version {version} of the format, only 1 is known");
        return Err(unsupported(what));
    }
    let header = Header {
        sequence: le64(bytes, 8).ok_or_else(cut)?,
        data_write: array(bytes, 32).ok_or_else(cut)?,
        log: array(bytes, 48).ok_or_else(cut)?,
        log_len: u64::from(le32(bytes, 68).ok_or_else(cut)?),
        log_at: le64(bytes, 72).ok_or_else(cut)?,
    };
    let log_version = le16(bytes, 64).ok_or_else(cut)?;
    if log_version != 0 && header.log != [0; 16] {
        let what = format!("version {log_version} of the log, only 0 is known");
        return Err(unsupported(what));
    }
    Ok(header)
}

/// The newer of two headers; either may be damaged.
///
/// # Errors
/// `Unsupported` when either is of another version; what is wrong with the first when neither can be
/// used; `Corrupt` when it cannot be told which one is newer.
pub(super) fn newer(first: Result<Header>, second: Result<Header>) -> Result<Header> {
    match (first, second) {
        (Ok(first), Ok(second)) if first.sequence == second.sequence && first != second => {
            let sequence = first.sequence;
            let what = format!("two headers that differ have the same sequence number {sequence}");
            Err(corrupt(what))
        }
        (Ok(first), Ok(second)) if second.sequence > first.sequence => Ok(second),
        // One of another version is not damaged: whoever wrote it meant it.
        (Err(error), _) | (_, Err(error)) if error.kind() == Kind::Unsupported => Err(error),
        (Ok(first), _) => Ok(first),
        (Err(first), second) => second.map_err(|_| first),
    }
}

/// The region table in `bytes`, which lies at `at`, of a file of `size` bytes.
///
/// # Errors
/// `Unsupported` for a region that is required and not known; `Corrupt`.
pub(super) fn regions(bytes: &[u8], at: u64, size: u64) -> Result<Regions> {
    let name = format!("the region table at {at}");
    let cut = || cut_off(format!("the file ends within {name}"));
    let bytes = slice(bytes, 0, TABLE).ok_or_else(cut)?;
    check(bytes, b"regi", &name)?;
    let count = le32(bytes, 8).ok_or_else(cut)?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MOST_ENTRIES);
    let count = count.ok_or_else(|| corrupt(format!("{name} has too many entries")))?;
    let (mut bat, mut metadata) = (None, None);
    for entry in (16..).step_by(32).take(count) {
        let guid = guid_text(array(bytes, entry).ok_or_else(cut)?);
        let region = Region {
            at: le64(bytes, entry.saturating_add(16)).ok_or_else(cut)?,
            len: u64::from(le32(bytes, entry.saturating_add(24)).ok_or_else(cut)?),
        };
        let required = le32(bytes, entry.saturating_add(28)).ok_or_else(cut)? & 1 != 0;
        let slot = match guid.as_str() {
            BAT => &mut bat,
            METADATA => &mut metadata,
            _ if required => {
                return Err(unsupported(format!("the region {guid}, which is required")));
            }
            _ => continue,
        };
        let end = region.at.checked_add(region.len);
        let placed = region.at.is_multiple_of(MIB) && region.at >= MIB;
        if !placed || end.is_none_or(|end| end > size) {
            let Region { at, len } = region;
            let what = format!("the region {guid} of {len} bytes at {at} of a file of {size}");
            return Err(corrupt(what));
        }
        if slot.replace(region).is_some() {
            return Err(corrupt(format!("the region {guid} twice")));
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata }),
        (None, _) => Err(corrupt("no region has the block allocation table")),
        (_, None) => Err(corrupt("no region has the metadata")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sequence: u64, log_len: u64) -> Header {
        Header {
            sequence,
            data_write: [1; 16],
            log: [0; 16],
            log_at: 0,
            log_len,
        }
    }

    #[test]
    fn the_newer_header_is_taken_if_it_is_sound() {
        let bad = || Err(corrupt("bad"));
        let old = || Err(unsupported("version 7"));
        assert_eq!(newer(Ok(of(1, 0)), Ok(of(2, 0))).unwrap().sequence, 2);
        assert_eq!(newer(Ok(of(3, 0)), Ok(of(2, 0))).unwrap().sequence, 3);
        assert_eq!(newer(bad(), Ok(of(2, 0))).unwrap().sequence, 2);
        assert_eq!(newer(Ok(of(3, 0)), bad()).unwrap().sequence, 3);
        assert!(newer(Ok(of(3, 0)), Ok(of(3, 0))).is_ok());
        assert!(newer(Ok(of(3, 0)), Ok(of(3, 1))).is_err());
        assert_eq!(newer(bad(), bad()).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(newer(bad(), old()).unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(newer(old(), bad()).unwrap_err().kind(), Kind::Unsupported);
        let either = [newer(old(), Ok(of(1, 0))), newer(Ok(of(9, 0)), old())];
        assert!(either.into_iter().all(|found| found.is_err()));
    }
}
