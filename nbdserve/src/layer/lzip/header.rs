//! Headers and trailers of lzip members.
//!
//! Described in the manual of lzip, "File format": magic, version, dictionary size; LZMA with an
//! end marker; CRC32, data size, member size.

use crate::{Error, Kind, Result};

/// Bytes of a member's header.
pub(super) const HEADER: u64 = 6;
/// Bytes of a member's trailer.
pub(super) const TRAILER: u64 = 20;
/// Bytes of a member without data.
pub(super) const MEMBER_LEAST: u64 = 36;
/// What a member begins with.
pub(super) const MAGIC: &[u8] = b"LZIP";
/// The only version there is.
const VERSION: u8 = 1;
/// The dictionary has 2^12 to 2^29 bytes.
const LOG_LEAST: u8 = 12;
const LOG_MOST: u8 = 29;

/// The dictionary of a member, as its header codes it (ID string, VN, DS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dictionary(u8);

impl Dictionary {
    /// From the byte DS: the logarithm of a size in the lower five bits, and how many sixteenths
    /// of that size are taken away again.
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        let (log, sixteenths) = (byte & 0x1f, byte >> 5);
        let valid = (LOG_LEAST..=LOG_MOST).contains(&log) && (log > LOG_LEAST || sixteenths == 0);
        valid.then_some(Self(byte))
    }

    pub(super) fn byte(self) -> u8 {
        self.0
    }

    /// Bytes.
    pub(super) fn size(self) -> u32 {
        let full = 1_u32.wrapping_shl(u32::from(self.0 & 0x1f));
        let part = (full / 16).saturating_mul(u32::from(self.0 >> 5));
        full.saturating_sub(part)
    }

    /// What a member of `len` bytes needs of it: no more than that.
    pub(super) fn for_data(self, len: u64) -> Self {
        let enough = (LOG_LEAST..=LOG_MOST)
            .map(Self)
            .find(|one| u64::from(one.size()) >= len);
        match enough {
            Some(one) if one.size() < self.size() => one,
            _ => self,
        }
    }

    /// The header of a member that has it.
    pub(super) fn header(self) -> [u8; 6] {
        [b'L', b'Z', b'I', b'P', VERSION, self.0]
    }
}

/// The dictionary that the member header in `bytes`, at `at`, states.
///
/// # Errors
/// `NotThisFormat` without a magic, `Unsupported` for another version, `Corrupt`.
pub(super) fn header(bytes: &[u8], at: u64) -> Result<Dictionary> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        let what = format!("no member begins at {at}: the magic LZIP is missing");
        return Err(Error::new(Kind::NotThisFormat, what));
    };
    let &[version, ds, ..] = rest else {
        let what = format!("the member header at {at} is cut short");
        return Err(Error::new(Kind::Corrupt, what));
    };
    if version != VERSION {
        let what = format!("the member at {at} has version {version}, known is {VERSION}");
        return Err(Error::new(Kind::Unsupported, what));
    }
    Dictionary::from_byte(ds).ok_or_else(|| {
        let what = format!("the member at {at} has an impossible dictionary: {ds:#04x}");
        Error::new(Kind::Corrupt, what)
    })
}

/// A member's trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Decoded bytes.
    pub(super) data_size: u64,
    /// Bytes of the member, header and trailer included.
    pub(super) member_size: u64,
}

/// The trailer in `bytes`; `None` when they are too few. Its CRC is left to the decoder.
pub(super) fn trailer(bytes: &[u8]) -> Option<Trailer> {
    let (_crc, rest) = bytes.split_first_chunk::<4>()?;
    let (data_size, rest) = rest.split_first_chunk::<8>()?;
    let member_size = rest.first_chunk::<8>()?;
    Some(Trailer {
        data_size: u64::from_le_bytes(*data_size),
        member_size: u64::from_le_bytes(*member_size),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_are_those_of_the_manual() {
        for (byte, size) in [
            (0x0c, Some(4096)),
            (0x2c, None),
            (0x0b, None),
            (0x1d, Some(512 << 20)),
            (0x1e, None),
            (0xd3, Some(320 << 10)),
            (0x00, None),
            (0xff, None),
        ] {
            assert_eq!(
                Dictionary::from_byte(byte).map(Dictionary::size),
                size,
                "{byte:#x}"
            );
        }
    }

    #[test]
    fn no_more_dictionary_than_data() {
        let needed = |byte, len| Dictionary(byte).for_data(len).size();
        assert_eq!(needed(0x1d, 0), 4096);
        assert_eq!(needed(0x1d, 4097), 8192);
        assert_eq!(needed(0x1d, 512 << 20), 512 << 20);
        assert_eq!(needed(0x1d, u64::MAX), 512 << 20);
        assert_eq!(needed(0xd3, 300 << 10), 320 << 10, "512 KiB would be more");
        assert_eq!(needed(0xd3, 200 << 10), 256 << 10);
    }

    #[test]
    fn a_header_is_refused_for_the_right_reason() {
        let kind = |bytes: &[u8]| header(bytes, 7).err().map(|error| error.kind());
        assert_eq!(kind(b"LZIP\x01\x0c"), None);
        assert_eq!(kind(b"LZIP\x01"), Some(Kind::Corrupt));
        assert_eq!(kind(b"LZIP\x01\x0b"), Some(Kind::Corrupt));
        assert_eq!(kind(b"LZIP\0\x0c"), Some(Kind::Unsupported));
        assert_eq!(kind(b"LZIP\x02\x0c"), Some(Kind::Unsupported));
        assert_eq!(kind(b"LZIQ\x01\x0c"), Some(Kind::NotThisFormat));
        assert_eq!(kind(b""), Some(Kind::NotThisFormat));
    }
}
