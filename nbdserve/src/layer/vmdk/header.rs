//! Pure parsers of the binary parts of a VMDK (VMware Virtual Disk Format 5.0): bytes in, values that
//! hold the format's rules out. All numbers are little-endian; lengths are in sectors of 512 bytes.

use crate::bytes::{has, le16, le32, le64};
use crate::layer::cut::cut_off;
use crate::{Error, Kind, Result};

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Bytes of either header.
pub(super) const HEADER: u64 = 512;
/// How a hosted sparse extent begins.
pub(super) const SPARSE: &[u8] = b"KDMV";
/// How a sparse extent of ESX (`vmfsSparse`) begins.
pub(super) const COWD: &[u8] = b"COWD";
/// Bytes of an entry of a grain directory or a grain table.
pub(super) const ENTRY: u64 = 4;
/// Bytes of a marker before a compressed grain.
pub(super) const MARKER: u64 = 12;
/// A file has at most this many bytes.
const LARGEST: u64 = u64::MAX >> 1;
/// Most bytes of a grain; VMware makes grains of 64 KiB.
const LONGEST_GRAIN: u64 = 1 << 30;
/// Most bytes of a grain that is compressed.
const LONGEST_PACKED: u64 = 1 << 20;
/// Entries of a grain table of [`COWD`].
const COWD_TABLE: u64 = 4096;

/// Bits of `flags`.
const HAS_SECOND: u32 = 1 << 1;
const HAS_ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const HAS_MARKERS: u32 = 1 << 17;

/// `gdOffset` of a file that was written in one go: the grain directory is named in the footer.
const AT_END: u64 = u64::MAX;

/// The header of a sparse extent. All figures are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the extent of the disk.
    pub(super) capacity: u64,
    /// Bytes of a grain: a power of two, at least 512.
    pub(super) grain: u64,
    /// Entries of a grain table.
    pub(super) gtes: u64,
    /// Where the grain directory begins; `None` when the footer says it.
    pub(super) directory: Option<u64>,
    /// Where its copy begins, if there is one.
    pub(super) second: Option<u64>,
    /// Where the descriptor lies, and how long it is; empty when there is none.
    pub(super) descriptor: (u64, u64),
    /// What lies before the first grain, as the header says: tables of a large disk are many MiB.
    pub(super) overhead: u64,
    /// The entry 1 of a grain table stands for a grain of zeroes.
    pub(super) has_zero_grains: bool,
    /// Grains are compressed, each behind a marker.
    pub(super) compressed: bool,
}

impl Header {
    /// Bytes of the extent that one grain table is for.
    pub(super) fn table_reach(&self) -> u64 {
        // At most 2^30 times 4096.
        self.grain.saturating_mul(self.gtes)
    }

    /// Entries of the grain directory.
    pub(super) fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.table_reach().max(1))
    }
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, what)
}

fn cut() -> Error {
    cut_off(format!("the file ends within a header of {HEADER} bytes"))
}

/// So many sectors in bytes.
fn bytes_of(sectors: u64, what: &str) -> Result<u64> {
    let bytes = sectors.checked_mul(SECTOR);
    bytes.filter(|bytes| *bytes <= LARGEST).ok_or_else(|| {
        corrupt(format!(
            "{what} {sectors} sectors, more than a file of 2^63 bytes has"
        ))
    })
}

/// Bytes of a grain of so many sectors.
fn grain_of(sectors: u64) -> Result<u64> {
    let grain = bytes_of(sectors, "grains of")?;
    if !grain.is_power_of_two() || grain > LONGEST_GRAIN {
        let what = format!("grains of {sectors} sectors, no power of two up to 2^30 bytes");
        return Err(corrupt(what));
    }
    Ok(grain)
}

/// The header of a sparse extent at the start of `bytes`, of either sort.
///
/// # Errors
/// `NotThisFormat` without a magic; `Unsupported` for a version or a feature that is not known;
/// `Corrupt`.
pub(super) fn header(bytes: &[u8]) -> Result<Header> {
    if has(bytes, 0, SPARSE) {
        return sparse(bytes);
    }
    if has(bytes, 0, COWD) {
        return cowd(bytes);
    }
    let what = "the magic of a sparse extent is not there";
    Err(Error::new(Kind::NotThisFormat, what))
}

/// `SparseExtentHeader`.
fn sparse(bytes: &[u8]) -> Result<Header> {
    let word = |at| le32(bytes, at).ok_or_else(cut);
    let long = |at| le64(bytes, at).ok_or_else(cut);
    let version = word(4)?;
    if !(1..=3).contains(&version) {
        let what = format!("version {version} of the format, only 1, 2 and 3 are known");
        return Err(unsupported(what));
    }
    let flags = word(8)?;
    let capacity = bytes_of(long(12)?, "a disk of")?;
    let grain = grain_of(long(20)?)?;
    let descriptor = (
        bytes_of(long(28)?, "a descriptor at")?,
        bytes_of(long(36)?, "a descriptor of")?,
    );
    let gtes = u64::from(word(44)?);
    let (second, directory) = (long(48)?, long(56)?);
    // Only for an estimate.
    let overhead = long(64)?.saturating_mul(SECTOR);
    let packing = le16(bytes, 77).ok_or_else(cut)?;
    if flags & 1 != 0 && !has(bytes, 73, b"\n \r\n") {
        let what = "line ends in the header have changed: the file was copied as if it were text";
        return Err(corrupt(what));
    }
    if !(1..=512).contains(&gtes) {
        return Err(corrupt(format!(
            "grain tables of {gtes} entries, not 1 to 512"
        )));
    }
    let compressed = flags & COMPRESSED != 0;
    if compressed {
        if packing != 1 {
            let what = format!("compression of type {packing}, only deflate (1) is known");
            return Err(unsupported(what));
        }
        if flags & HAS_MARKERS == 0 {
            let what = "compressed grains without markers: nothing says how long they are";
            return Err(unsupported(what));
        }
        if grain > LONGEST_PACKED {
            return Err(unsupported(format!("compressed grains of {grain} bytes")));
        }
    }
    let directory = match directory {
        AT_END => None,
        sectors => Some(bytes_of(sectors, "a grain directory at")?),
    };
    let second = match second {
        _ if flags & HAS_SECOND == 0 => None,
        0 | AT_END => None,
        // A second one that cannot be is no reason not to use the first.
        sectors => sectors.checked_mul(SECTOR),
    };
    Ok(Header {
        capacity,
        grain,
        gtes,
        directory,
        second,
        descriptor,
        overhead: overhead.max(HEADER),
        has_zero_grains: flags & HAS_ZERO_GRAINS != 0,
        compressed,
    })
}

/// `COWDisk_Header`.
fn cowd(bytes: &[u8]) -> Result<Header> {
    let word = |at| le32(bytes, at).map(u64::from).ok_or_else(cut);
    let version = word(4)?;
    if version != 1 {
        let what = format!("version {version} of vmfsSparse, only 1 is known");
        return Err(unsupported(what));
    }
    let header = Header {
        capacity: word(12)?.saturating_mul(SECTOR),
        grain: grain_of(word(16)?)?,
        gtes: COWD_TABLE,
        directory: Some(word(20)?.saturating_mul(SECTOR)),
        second: None,
        descriptor: (0, 0),
        overhead: HEADER,
        has_zero_grains: false,
        compressed: false,
    };
    let (tables, needed) = (word(24)?, header.tables());
    if tables < needed {
        let what = format!("{tables} grain tables for a disk that takes {needed}");
        return Err(corrupt(what));
    }
    Ok(header)
}

/// The end of a file that was written in one go: what the last [`FOOTER`] bytes hold.
pub(super) const FOOTER: u64 = 1536;

/// The footer: a header again, between two markers.
///
/// # Errors
/// `Corrupt` when it is not there, or does not say either where the grain directory is.
pub(super) fn footer(bytes: &[u8]) -> Result<Header> {
    let is_marker = |at: usize, kind| {
        le64(bytes, at).is_some()
            && le32(bytes, at.saturating_add(8)) == Some(0)
            && le32(bytes, at.saturating_add(12)) == Some(kind)
    };
    if !is_marker(0, 3) || !is_marker(1024, 0) || le64(bytes, 1024) != Some(0) {
        let what = "the footer is not at the end: the file is cut short, or goes on behind it";
        return Err(cut_off(what));
    }
    let footer = header(bytes.get(512..).unwrap_or(&[])).map_err(|error| {
        corrupt("the footer, which says where the grains are, is damaged").caused_by(error)
    })?;
    if footer.directory.is_none() {
        return Err(corrupt(
            "neither header nor footer say where the grain directory is",
        ));
    }
    Ok(footer)
}

/// A marker before a compressed grain: its first sector in the extent, the compressed bytes.
pub(super) fn marker(bytes: &[u8]) -> Option<(u64, u64)> {
    Some((le64(bytes, 0)?, u64::from(le32(bytes, 8)?)))
}
