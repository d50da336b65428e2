//! The header of .lzma files: 13 bytes without a magic.
//!
//! Described in `lzma-file-format.txt` of XZ Utils: properties, dictionary size, uncompressed size.

use crate::{Error, Kind, Result};

/// Bytes of the header.
pub(in crate::layer) const SIZE: usize = 13;
/// Bytes before the coded ones of a file in a zip archive: version, length of what follows, the
/// first five bytes of a header (APPNOTE.TXT 5.8.8).
pub(super) const MEMBER: usize = 9;
/// That length, of which a header of LZMA has no other.
const MEMBER_PROPERTIES: u16 = 5;
/// Properties are below this: `(pb * 5 + lp) * 9 + lc`, with pb and lp up to 4 and lc up to 8.
const PROPERTIES: u8 = 225;
/// A size that is not stated; an end marker stands behind the last byte then.
const UNKNOWN: u64 = u64::MAX;
/// What a decoder takes at least as its dictionary.
const DICTIONARY_LEAST: u32 = 4096;
/// lc and lp together are at most this much where liblzma decodes.
const CONTEXT_MOST: u8 = 4;
/// Files of this size and above are not recognised, only opened when named.
const PLAUSIBLE: u64 = 1 << 38;

/// What a header states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    properties: u8,
    dictionary: u32,
    /// Decoded bytes.
    pub(super) size: Option<u64>,
}

impl Header {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// `NotThisFormat` when it cannot be one, `Unsupported` for a context that liblzma lacks,
    /// `Corrupt` for an impossible size.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let not = |what: String| Err(Error::new(Kind::NotThisFormat, what));
        let Some((&[properties, d0, d1, d2, d3, ref size @ ..], _)) =
            bytes.split_first_chunk::<SIZE>()
        else {
            return not(format!("{} bytes are too few for a header", bytes.len()));
        };
        if properties >= PROPERTIES {
            return not(format!(
                "it starts with {properties:#04x}, not with properties"
            ));
        }
        let (lc, lp) = (properties % 9, properties / 9 % 5);
        if lc.saturating_add(lp) > CONTEXT_MOST {
            let what = format!("lc={lc} and lp={lp}: together more than {CONTEXT_MOST}");
            return Err(Error::new(Kind::Unsupported, what));
        }
        let size = u64::from_le_bytes(*size);
        if size != UNKNOWN && size > u64::MAX >> 1 {
            let what = format!("the header claims {size} bytes");
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(Self {
            properties,
            dictionary: u32::from_le_bytes([d0, d1, d2, d3]),
            size: (size != UNKNOWN).then_some(size),
        })
    }

    /// Reads what stands before the coded bytes of a file in a zip archive, which has `size` bytes.
    ///
    /// # Errors
    /// `Corrupt` when it is cut short or has no properties, else as [`Self::parse`].
    pub(super) fn parse_member(bytes: &[u8], size: u64) -> Result<Self> {
        let Some((&[_, _, l0, l1, p, d0, d1, d2, d3], _)) = bytes.split_first_chunk::<MEMBER>()
        else {
            let what = format!("{} bytes are too few for a header", bytes.len());
            return Err(Error::new(Kind::Corrupt, what));
        };
        let len = u16::from_le_bytes([l0, l1]);
        if len != MEMBER_PROPERTIES || p >= PROPERTIES {
            let what = format!("{len} bytes of properties from {p:#04x} on are not those of LZMA");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7] = size.to_le_bytes();
        Self::parse(&[p, d0, d1, d2, d3, s0, s1, s2, s3, s4, s5, s6, s7])
    }

    /// Whether an encoder would write this: there is no magic to go by.
    pub(super) fn is_plausible(self) -> bool {
        let size = self.size.is_none_or(|size| size > 0 && size < PLAUSIBLE);
        let dictionary = self.dictionary;
        // 2^n or 2^n + 2^(n-1), as LZMA Utils and XZ Utils write it.
        let half = dictionary & dictionary.wrapping_sub(1);
        let round = dictionary != 0
            && (half == 0
                || half.is_power_of_two() && dictionary.wrapping_sub(half) == half.wrapping_shr(1));
        size && (round && dictionary >= DICTIONARY_LEAST || dictionary == u32::MAX)
    }

    /// The dictionary that is needed: no more than there are bytes to be found in it.
    pub(super) fn dictionary(self) -> u32 {
        let bytes = self.size.and_then(|size| u32::try_from(size).ok());
        self.dictionary
            .min(bytes.unwrap_or(u32::MAX))
            .max(DICTIONARY_LEAST)
    }

    /// The header with the dictionary that is needed.
    pub(super) fn to_bytes(self) -> [u8; SIZE] {
        self.with_dictionary(self.dictionary())
    }

    /// As [`Self::to_bytes`] for coded bytes that end with a marker.
    pub(super) fn to_bytes_with_marker(self) -> [u8; SIZE] {
        let unknown = Self { size: None, ..self };
        unknown.with_dictionary(self.dictionary())
    }

    /// The header with another dictionary.
    pub(super) fn with_dictionary(self, dictionary: u32) -> [u8; SIZE] {
        let [d0, d1, d2, d3] = dictionary.to_le_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.size.unwrap_or(UNKNOWN).to_le_bytes();
        [
            self.properties,
            d0,
            d1,
            d2,
            d3,
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(properties: u8, dictionary: u32, size: u64) -> Vec<u8> {
        let mut bytes = vec![properties];
        bytes.extend(dictionary.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes
    }

    #[test]
    fn each_field_at_its_bounds() {
        let kind = |properties, size| {
            let bytes = bytes(properties, 1 << 20, size);
            Header::parse(&bytes).err().map(|error| error.kind())
        };
        assert_eq!(kind(0, 0), None);
        assert_eq!(kind(0x5d, UNKNOWN), None);
        assert_eq!(kind(0x5d, u64::MAX >> 1), None);
        assert_eq!(kind(0x5d, 1 << 63), Some(Kind::Corrupt));
        assert_eq!(kind(0x5d, UNKNOWN - 1), Some(Kind::Corrupt));
        // lc = 4, lp = 0, pb = 4; lc = 4, lp = 1; lc = 8, lp = 4, pb = 4.
        assert_eq!(kind(184, 1), None);
        assert_eq!(kind(13, 1), Some(Kind::Unsupported));
        assert_eq!(kind(224, 1), Some(Kind::Unsupported));
        assert_eq!(kind(225, 1), Some(Kind::NotThisFormat));
        assert_eq!(kind(255, 1), Some(Kind::NotThisFormat));
        for len in 0..SIZE {
            let bytes = &bytes(0x5d, 1 << 20, 1)[..len];
            let error = Header::parse(bytes).unwrap_err();
            assert_eq!(error.kind(), Kind::NotThisFormat);
        }
    }

    #[test]
    fn a_member_of_a_zip_archive_has_its_size_elsewhere() {
        let good = [9, 20, 5, 0, 0x5d, 0, 0, 16, 0];
        let header = Header::parse_member(&good, 77).unwrap();
        assert_eq!((header.size, header.dictionary), (Some(77), 1 << 20));
        assert_eq!(header.to_bytes()[..5], [0x5d, 0, 16, 0, 0]);
        assert_eq!(header.to_bytes_with_marker()[5..], [0xff; 8]);
        let kind = |bytes: &[u8], size| Header::parse_member(bytes, size).map_err(|e| e.kind());
        for len in 0..MEMBER {
            assert_eq!(kind(&good[..len], 77), Err(Kind::Corrupt), "{len}");
        }
        for (at, value) in [(2, 4), (2, 6), (3, 1), (4, 225), (4, 255)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(kind(&bad, 77), Err(Kind::Corrupt), "{at}");
        }
        assert_eq!(kind(&good, 1 << 63), Err(Kind::Corrupt));
    }

    #[test]
    fn dictionaries_that_an_encoder_writes_are_told_from_others() {
        let plausible = |dictionary, size| {
            Header::parse(&bytes(0x5d, dictionary, size))
                .unwrap()
                .is_plausible()
        };
        for dictionary in [4096, 6144, 8 << 20, 12 << 20, 1 << 31, 3 << 30, u32::MAX] {
            assert!(plausible(dictionary, UNKNOWN), "{dictionary:#x}");
        }
        for dictionary in [
            0,
            1,
            2048,
            4095,
            4097,
            5 << 20,
            7 << 20,
            u32::MAX - 1,
            0x8080_0000,
        ] {
            assert!(!plausible(dictionary, UNKNOWN), "{dictionary:#x}");
        }
        for (size, expected) in [
            (0, false),
            (1, true),
            (PLAUSIBLE - 1, true),
            (PLAUSIBLE, false),
        ] {
            assert_eq!(plausible(4096, size), expected, "{size}");
        }
    }

    #[test]
    fn no_more_dictionary_than_bytes() {
        let dictionary = |dictionary, size| {
            Header::parse(&bytes(0x5d, dictionary, size))
                .unwrap()
                .dictionary()
        };
        assert_eq!(dictionary(64 << 20, 10_000), 10_000);
        assert_eq!(dictionary(64 << 20, 10), 4096);
        assert_eq!(dictionary(64 << 20, 1 << 40), 64 << 20);
        assert_eq!(dictionary(64 << 20, UNKNOWN), 64 << 20);
        assert_eq!(dictionary(0, UNKNOWN), 4096);
    }
}
