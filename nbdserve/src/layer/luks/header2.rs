//! The fixed part of a header of LUKS2: `struct luks2_hdr` of the LUKS2 On-Disk Format Specification
//! 1.1.1, and its checksum.

use super::hash::Hash;
use super::header::{FIXED, MAGIC, SECOND_MAGIC, text};
use crate::bytes::{array, has, slice};
use crate::error::escape;
use crate::{Error, Kind, Result};

/// Where a second header may be, for that depends on the length of the first: so long, too, may a
/// header with its metadata be.
pub(super) const PLACES: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];
const CHECKSUM_AT: usize = 448;
const CHECKSUM_LEN: usize = 64;

/// The fixed part, with values that make sense but a checksum that was not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fixed {
    /// Bytes of header and metadata: one of [`PLACES`].
    pub(super) hdr_size: u64,
    /// The younger of two headers has the higher one.
    pub(super) seqid: u64,
    pub(super) label: Option<String>,
    pub(super) uuid: Option<String>,
    checksum: Hash,
}

/// Reads the fixed part at `offset`, of which the first [`FIXED`] bytes are given.
///
/// # Errors
/// `NotThisFormat` when there is none, `Corrupt`, `Unsupported` for a checksum that we do not have.
pub(super) fn fixed(bytes: &[u8], offset: u64) -> Result<Fixed> {
    let corrupt = |what: String| Error::new(Kind::Corrupt, what);
    let magic = if offset == 0 { MAGIC } else { SECOND_MAGIC };
    if !bytes.starts_with(magic) {
        let what = format!("no header of LUKS at {offset}");
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    if bytes.len() < FIXED {
        let len = bytes.len();
        return Err(corrupt(format!(
            "the header ends after {len} of {FIXED} bytes"
        )));
    }
    // All fields are within FIXED bytes.
    let version = array(bytes, 6).map_or(0, u16::from_be_bytes);
    if version != 2 {
        let what = format!("LUKS of version {version}, which this version does not have");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let long = |at| array(bytes, at).map_or(0, u64::from_be_bytes);
    let (hdr_size, hdr_offset) = (long(8), long(256));
    if !PLACES.contains(&hdr_size) {
        return Err(corrupt(format!(
            "a header of {hdr_size} bytes, a length that none has"
        )));
    }
    if hdr_offset != offset {
        let what = format!("the header at {offset} says that it is at {hdr_offset}");
        return Err(corrupt(what));
    }
    if offset != 0 && offset != hdr_size {
        let what = format!("the second header is at {offset}, the first one has {hdr_size} bytes");
        return Err(corrupt(what));
    }
    let field = |at, len| slice(bytes, at, len).unwrap_or_default();
    let checksum = text(field(72, 32)).unwrap_or_default();
    Ok(Fixed {
        hdr_size,
        seqid: long(16),
        label: text(field(24, 48)),
        uuid: text(field(168, 40)),
        checksum: Hash::parse(&checksum)?,
    })
}

/// The metadata, a JSON text, in a header whose [`Fixed::hdr_size`] bytes are `bytes`.
///
/// # Errors
/// `Corrupt` when the checksum does not match.
pub(super) fn metadata<'a>(fixed: &Fixed, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let len = bytes.len();
    let short = || {
        let what = format!("the header ends after {len} of {} bytes", fixed.hdr_size);
        Error::new(Kind::Corrupt, what)
    };
    if u64::try_from(len) != Ok(fixed.hdr_size) {
        return Err(short());
    }
    let behind = CHECKSUM_AT.saturating_add(CHECKSUM_LEN);
    let before = bytes.get(..CHECKSUM_AT).ok_or_else(short)?;
    let after = bytes.get(behind..).ok_or_else(short)?;
    let found = fixed.checksum.of(&[before, &[0; CHECKSUM_LEN], after]);
    if !has(bytes, CHECKSUM_AT, &found) {
        let what = format!(
            "the {} checksum of the header does not match",
            fixed.checksum.name()
        );
        return Err(Error::new(Kind::Corrupt, what));
    }
    let json = bytes.get(FIXED..).ok_or_else(short)?;
    json.split(|byte| *byte == 0).next().ok_or_else(short)
}

/// What was wrong with the only two headers there are.
pub(super) fn both_damaged(first: &Error, second: &Error) -> Error {
    let (first, second) = (escape(&first.to_string()), escape(&second.to_string()));
    let what = format!("both headers are damaged; the first: {first}; the second: {second}");
    Error::new(Kind::Corrupt, what)
}

/// Makes the checksum of a header at `offset` match, if there is one. For tests.
#[cfg(feature = "testing")]
pub(super) fn mend(image: &mut [u8], offset: u64) {
    let Ok(start) = usize::try_from(offset) else {
        return;
    };
    let Some(bytes) = image.get_mut(start..) else {
        return;
    };
    let Ok(fixed) = fixed(bytes, offset) else {
        return;
    };
    let len = usize::try_from(fixed.hdr_size).unwrap_or(usize::MAX);
    let Some(bytes) = bytes.get_mut(..len) else {
        return;
    };
    let (before, rest) = bytes.split_at_mut(CHECKSUM_AT);
    let (checksum, after) = rest.split_at_mut(CHECKSUM_LEN);
    let found = fixed.checksum.of(&[before, &[0; CHECKSUM_LEN], after]);
    for (byte, new) in checksum.iter_mut().zip(found.iter()) {
        *byte = *new;
    }
}
