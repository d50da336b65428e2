//! The fixed parts of an .xz file: Stream Header, Stream Footer and Index, as in "The .xz File
//! Format" 1.2.1 (section numbers below are its). Pure: bytes in, values or an error out.

use crate::layer::cut::cut_off;
use crate::sys::lzma;
use crate::{Error, Kind, Result};

/// Header Magic Bytes (2.1.1.1).
pub(super) const HEADER_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// Footer Magic Bytes (2.1.2.4).
const FOOTER_MAGIC: [u8; 2] = *b"YZ";
/// Bytes of a Stream Header and of a Stream Footer.
pub(super) const STREAM_HEADER_SIZE: u64 = 12;
/// Largest value of a variable-length integer (1.2): 63 bits.
const VLI_MAX: u64 = u64::MAX >> 1;
/// Smallest Unpadded Size: the smallest header is 8 bytes, but liblzma's limit is this.
const UNPADDED_MIN: u64 = 5;
/// Bytes of the CRC32 at the end of an Index.
const CRC_SIZE: u64 = 4;
/// No LZMA2 data expands by more: a match of 273 bytes takes at least 14 decisions of 0.022 bit,
/// which is 7100 to 1. A block that claims more than twice that lies.
const MAX_RATIO: u64 = 1 << 14;

/// Stream Flags (2.1.1.2): how the blocks of a stream are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamFlags {
    /// The Check ID, 0 to 15.
    pub(super) check: u8,
}

impl StreamFlags {
    fn decode(bytes: [u8; 2], at: u64) -> Result<Self> {
        match bytes {
            [0, check @ 0..=15] => Ok(Self { check }),
            [first, second] => Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the stream flags {first:02x} {second:02x} at {at} are from a newer format"
                ),
            )),
        }
    }
}

/// The name of a Check ID, and whether it is verified here.
pub(super) fn check_name(id: u8) -> (&'static str, bool) {
    match id {
        0 => ("none", false),
        1 => ("CRC32", true),
        4 => ("CRC64", true),
        10 => ("SHA-256", true),
        _ => ("unknown", false),
    }
}

/// Decodes the Stream Header (2.1.1) that was read at `at`.
///
/// # Errors
/// `Corrupt`, or `Unsupported` for flags of a newer format.
pub(super) fn stream_header(bytes: &[u8], at: u64) -> Result<StreamFlags> {
    let corrupt = |what: &str| Err(Error::new(Kind::Corrupt, format!("{what} at {at}")));
    let Some((magic, rest)) = bytes.split_first_chunk::<6>() else {
        return corrupt("the stream header is cut short");
    };
    if *magic != HEADER_MAGIC {
        return corrupt("no stream header");
    }
    let Some((flags, rest)) = rest.split_first_chunk::<2>() else {
        return corrupt("the stream header is cut short");
    };
    let Some((crc, _)) = rest.split_first_chunk::<4>() else {
        return corrupt("the stream header is cut short");
    };
    if lzma::crc32(flags, 0) != u32::from_le_bytes(*crc) {
        return corrupt("wrong CRC of the stream header");
    }
    StreamFlags::decode(*flags, at)
}

/// What a Stream Footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamFooter {
    pub(super) flags: StreamFlags,
    /// Bytes of the Index before it, a multiple of four; the real Backward Size.
    pub(super) index_size: u64,
}

/// Decodes the Stream Footer (2.1.2) that was read at `at`.
///
/// # Errors
/// `Corrupt`, or `Unsupported` for flags of a newer format.
pub(super) fn stream_footer(bytes: &[u8], at: u64) -> Result<StreamFooter> {
    let corrupt = |what: &str| Err(Error::new(Kind::Corrupt, format!("{what} at {at}")));
    let Some((bytes, _)) = bytes.split_first_chunk::<12>() else {
        return corrupt("the stream footer is cut short");
    };
    let [c0, c1, c2, c3, b0, b1, b2, b3, f0, f1, m0, m1] = *bytes;
    if [m0, m1] != FOOTER_MAGIC {
        let what = format!(
            "no stream footer at {at}: the file is truncated, or something else follows it"
        );
        return Err(cut_off(what));
    }
    if lzma::crc32(&[b0, b1, b2, b3, f0, f1], 0) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return corrupt("wrong CRC of the stream footer");
    }
    let stored = u64::from(u32::from_le_bytes([b0, b1, b2, b3]));
    Ok(StreamFooter {
        flags: StreamFlags::decode([f0, f1], at)?,
        // At most 2^34.
        index_size: stored.saturating_add(1).saturating_mul(4),
    })
}

/// One Record of an Index (4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Unpadded Size: block header, compressed data and check.
    pub(super) unpadded: u64,
    /// Decoded bytes.
    pub(super) uncompressed: u64,
}

impl Record {
    /// Bytes of the block in the file: Block Padding makes it a multiple of four.
    pub(super) fn total(self) -> u64 {
        self.unpadded.next_multiple_of(4)
    }

    fn check(self) -> Result<Self> {
        let Self {
            unpadded,
            uncompressed,
        } = self;
        if !(UNPADDED_MIN..=VLI_MAX - 3).contains(&unpadded) {
            return Err(Error::new(
                Kind::Corrupt,
                format!("the index has a block of {unpadded} bytes"),
            ));
        }
        if uncompressed / MAX_RATIO > unpadded {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "the index claims a block that expands from {unpadded} to {uncompressed} \
                     bytes, more than is possible"
                ),
            ));
        }
        Ok(self)
    }
}

/// A parser of one Index (4) that takes it in parts of any length and keeps none of it.
#[derive(Debug)]
pub(super) struct IndexParser {
    /// Bytes of the Index, CRC32 included.
    size: u64,
    /// Bytes taken.
    taken: u64,
    crc: u32,
    stored_crc: [u8; 4],
    expect: Expect,
    /// The integer being read, and how many bits of it were.
    value: u64,
    bits: u32,
    /// Records that are still to come.
    records: u64,
    max_records: u64,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Indicator,
    Count,
    Unpadded,
    Uncompressed { unpadded: u64 },
    Padding,
}

impl IndexParser {
    /// For an Index of `size` bytes (from the footer) of which at most `max_records` records are
    /// taken.
    pub(super) fn new(size: u64, max_records: u64) -> Self {
        Self {
            size,
            taken: 0,
            crc: 0,
            stored_crc: [0; 4],
            expect: Expect::Indicator,
            value: 0,
            bits: 0,
            records: 0,
            max_records,
        }
    }

    /// Takes the next bytes and calls `each` for every record that is complete.
    ///
    /// # Errors
    /// `Corrupt`; `Limit` when there are more than `max_records`; what `each` says.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let body = self.size.saturating_sub(CRC_SIZE);
        let left = usize::try_from(body.saturating_sub(self.taken)).unwrap_or(usize::MAX);
        let (body, tail) = bytes.split_at(left.min(bytes.len()));
        self.crc = lzma::crc32(body, self.crc);
        for byte in body {
            if let Some(record) = self.byte(*byte)? {
                each(record)?;
            }
            self.taken = self.taken.saturating_add(1);
        }
        for byte in tail {
            let [_, second, third, fourth] = self.stored_crc;
            self.stored_crc = [second, third, fourth, *byte];
            self.taken = self.taken.saturating_add(1);
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8) -> Result<Option<Record>> {
        match self.expect {
            Expect::Indicator => {
                if byte != 0 {
                    return Err(self.corrupt("it does not start with a zero byte"));
                }
                self.expect = Expect::Count;
            }
            Expect::Count => {
                if let Some(count) = self.vli(byte)? {
                    // A record takes at least two bytes.
                    if count > self.size / 2 {
                        let what = format!("it claims {count} records");
                        return Err(self.corrupt(&what));
                    }
                    if count > self.max_records {
                        return Err(Error::new(
                            Kind::Limit,
                            format!(
                                "an index of {count} blocks, with the memory that is allowed at \
                                 most {} can be held",
                                self.max_records
                            ),
                        )
                        .hint("give more memory with --cache-size=SIZE"));
                    }
                    self.records = count;
                    self.next_record();
                }
            }
            Expect::Unpadded => {
                if let Some(unpadded) = self.vli(byte)? {
                    self.expect = Expect::Uncompressed { unpadded };
                }
            }
            Expect::Uncompressed { unpadded } => {
                if let Some(uncompressed) = self.vli(byte)? {
                    self.records = self.records.saturating_sub(1);
                    self.next_record();
                    let record = Record {
                        unpadded,
                        uncompressed,
                    };
                    return record.check().map(Some);
                }
            }
            Expect::Padding => {
                let left = self.size.saturating_sub(self.taken);
                if byte != 0 || left > CRC_SIZE.saturating_add(3) {
                    return Err(self.corrupt("its padding is wrong"));
                }
            }
        }
        Ok(None)
    }

    fn next_record(&mut self) {
        self.expect = if self.records > 0 {
            Expect::Unpadded
        } else {
            Expect::Padding
        };
    }

    /// Takes a byte of a variable-length integer (1.2); the value when it was the last one.
    fn vli(&mut self, byte: u8) -> Result<Option<u64>> {
        if byte == 0 && self.bits > 0 {
            return Err(self.corrupt("an integer in it is not in its shortest form"));
        }
        let Some(low) = u64::from(byte & 0x7f).checked_shl(self.bits) else {
            return Err(self.corrupt("an integer in it is too long"));
        };
        self.value |= low;
        self.bits = self.bits.saturating_add(7);
        if byte & 0x80 == 0 {
            let value = std::mem::take(&mut self.value);
            self.bits = 0;
            return Ok(Some(value));
        }
        if self.bits >= 63 {
            return Err(self.corrupt("an integer in it is too long"));
        }
        Ok(None)
    }

    /// All bytes were given.
    ///
    /// # Errors
    /// `Corrupt` when that was not a whole Index or its CRC32 is wrong.
    pub(super) fn finish(self) -> Result<()> {
        if self.taken != self.size || !matches!(self.expect, Expect::Padding) {
            return Err(self.corrupt("it is cut short"));
        }
        if self.crc != u32::from_le_bytes(self.stored_crc) {
            return Err(self.corrupt("its CRC is wrong"));
        }
        Ok(())
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::new(
            Kind::Corrupt,
            format!(
                "the index is corrupt at byte {} of its {}: {what}",
                self.taken, self.size
            ),
        )
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;

    /// An Index with these numbers in it and a right CRC.
    fn index(numbers: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0];
        for number in numbers {
            let mut left = *number;
            while left >= 0x80 {
                bytes.push(left as u8 | 0x80);
                left >>= 7;
            }
            bytes.push(left as u8);
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let crc = lzma::crc32(&bytes, 0);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8], step: usize) -> Result<Vec<(u64, u64)>> {
        let mut parser = IndexParser::new(bytes.len() as u64, 1000);
        let mut found = Vec::new();
        for part in bytes.chunks(step) {
            parser.take(part, |record| {
                found.push((record.unpadded, record.uncompressed));
                Ok(())
            })?;
        }
        parser.finish()?;
        Ok(found)
    }

    fn kind(bytes: &[u8]) -> Option<Kind> {
        parse(bytes, 1 << 20).err().map(|error| error.kind())
    }

    #[test]
    fn an_index_may_come_in_parts_of_any_length() {
        let bytes = index(&[3, 100, 1000, 1 << 40, 1 << 41, 5, 0]);
        let expected = vec![(100, 1000), (1 << 40, 1 << 41), (5, 0)];
        for step in [1, 2, 3, 7, 1 << 20] {
            assert_eq!(parse(&bytes, step).ok(), Some(expected.clone()), "{step}");
        }
        assert_eq!(parse(&index(&[0]), 1).ok(), Some(vec![]));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_corrupt() {
        let good = index(&[2, 100, 1000, 1 << 20, 1 << 21]);
        for len in 0..good.len() {
            assert_eq!(kind(&good[..len]), Some(Kind::Corrupt), "{len}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(kind(&bad).is_some(), "bit {bit}");
        }
    }

    #[test]
    fn claims_that_cannot_be_true_are_refused_before_memory_is_taken() {
        for numbers in [
            &[1 << 62][..],
            &[2, 100, 1000],
            &[1, 100, 1 << 62],
            &[1, 4, 1000],
            &[1, VLI_MAX, 1000],
        ] {
            assert_eq!(kind(&index(numbers)), Some(Kind::Corrupt), "{numbers:?}");
        }
        let many: Vec<_> = std::iter::once(1001).chain([100; 2002]).collect();
        assert_eq!(kind(&index(&many)), Some(Kind::Limit));
    }

    #[test]
    fn integers_end_after_nine_bytes_in_their_shortest_form() {
        let mut long = vec![0; 12];
        long[1..11].fill(0x80);
        assert_eq!(kind(&long), Some(Kind::Corrupt));
        let mut endless = vec![0xff; 64];
        endless[0] = 0;
        assert_eq!(kind(&endless), Some(Kind::Corrupt));
    }

    #[test]
    fn a_footer_gives_the_size_of_the_index() {
        let mut bytes = [0; 12];
        bytes[4..8].copy_from_slice(&[0xff; 4]);
        bytes[9] = 4;
        let crc = lzma::crc32(&bytes[4..10], 0).to_le_bytes();
        bytes[..4].copy_from_slice(&crc);
        assert!(stream_footer(&bytes, 0).is_err(), "no magic");
        bytes[10..].copy_from_slice(b"YZ");
        let footer = stream_footer(&bytes, 0).map_err(|error| error.kind());
        let flags = StreamFlags { check: 4 };
        let index_size = 1 << 34;
        assert_eq!(footer, Ok(StreamFooter { flags, index_size }));
    }

    #[test]
    fn flags_of_a_newer_format_are_unsupported_not_corrupt() {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&HEADER_MAGIC);
        bytes[7] = 0x14;
        let crc = lzma::crc32(&bytes[6..8], 0).to_le_bytes();
        bytes[8..].copy_from_slice(&crc);
        let kind = stream_header(&bytes, 0).map_err(|error| error.kind());
        assert_eq!(kind, Err(Kind::Unsupported));
    }
}
