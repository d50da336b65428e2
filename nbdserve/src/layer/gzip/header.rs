//! The header of a gzip member (RFC 1952, 2.3). Pure: bytes in, values or an error out.

use crc32fast::Hasher;

use crate::bytes::le16;
use crate::{Error, Kind, Result};

/// ID1, ID2 and CM: the magic, and deflate, the only method there is.
pub(super) const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// Bytes of ID1 to OS.
const FIXED: usize = 10;
/// The bits of FLG (2.3.1). FTEXT, bit 0, is a remark about the content.
const FHCRC: u8 = 1 << 1;
pub(super) const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 7 << 5;

/// What a header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the whole member, as bgzip states them in an extra field called BC (the SAM/BAM
    /// format specification, 4.1).
    pub(super) member: Option<u64>,
    /// Whether it had a checksum, which was right.
    pub(super) checked: bool,
}

/// A parser of one header that takes it in parts of any length.
#[derive(Debug)]
pub(super) struct HeaderParser {
    /// Where the header is, for messages.
    at: u64,
    expect: Expect,
    /// What was taken of a part of known length.
    part: Vec<u8>,
    flags: u8,
    crc: Hasher,
    header: Header,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Fixed,
    /// XLEN
    ExtraLength,
    Extra(usize),
    Name,
    Comment,
    /// CRC16
    Crc,
    Done,
}

impl HeaderParser {
    /// For the header at `at` of the file.
    pub(super) fn new(at: u64) -> Self {
        Self {
            at,
            expect: Expect::Fixed,
            part: Vec::new(),
            flags: 0,
            crc: Hasher::new(),
            header: Header::default(),
        }
    }

    /// Takes the next bytes; says how many belong to the header, and what it says when it is
    /// complete. All of them belong to it when it is not.
    ///
    /// # Errors
    /// `NotThisFormat` for another magic, `Corrupt` for a wrong CRC16, `Unsupported` for a method or
    /// a flag of a newer format.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Header>)> {
        let mut rest = bytes;
        loop {
            match self.expect {
                Expect::Fixed => {
                    let complete = self.gather(&mut rest, FIXED);
                    // Early, for a file that ends in the middle of something else.
                    self.check_magic()?;
                    if !complete {
                        break;
                    }
                    self.flags = self.part.get(3).copied().unwrap_or(0);
                    if self.flags & RESERVED != 0 {
                        let what = format!(
                            "the flags {:02x} of the gzip header at {} are from a newer format",
                            self.flags, self.at
                        );
                        return Err(Error::new(Kind::Unsupported, what));
                    }
                    self.go_on(Expect::Fixed);
                }
                Expect::ExtraLength => {
                    if !self.gather(&mut rest, 2) {
                        break;
                    }
                    let len = le16(&self.part, 0).map_or(0, usize::from);
                    self.part.clear();
                    self.expect = Expect::Extra(len);
                }
                Expect::Extra(len) => {
                    if !self.gather(&mut rest, len) {
                        break;
                    }
                    self.header.member = member_size(&self.part);
                    self.go_on(self.expect);
                }
                Expect::Name | Expect::Comment => {
                    let end = rest.iter().position(|byte| *byte == 0);
                    let len = end.map_or(rest.len(), |end| end.saturating_add(1));
                    let (text, later) = rest.split_at(len);
                    self.crc.update(text);
                    rest = later;
                    if end.is_none() {
                        break;
                    }
                    self.go_on(self.expect);
                }
                Expect::Crc => {
                    if !gather(&mut self.part, &mut rest, 2) {
                        break;
                    }
                    let found = self.crc.clone().finalize() & 0xffff;
                    let stored = le16(&self.part, 0).map_or(0, u32::from);
                    if stored != found {
                        let what = format!(
                            "the CRC of the gzip header at {} is {found:04x}, {stored:04x} is \
                             stored",
                            self.at
                        );
                        return Err(Error::new(Kind::Corrupt, what));
                    }
                    self.header.checked = true;
                    self.expect = Expect::Done;
                }
                Expect::Done => {
                    let used = bytes.len().saturating_sub(rest.len());
                    return Ok((used, Some(self.header)));
                }
            }
        }
        Ok((bytes.len(), None))
    }

    /// Takes bytes that the CRC16 covers into `part` until it has `len`; whether it has.
    fn gather(&mut self, rest: &mut &[u8], len: usize) -> bool {
        let before = self.part.len();
        let complete = gather(&mut self.part, rest, len);
        self.crc.update(self.part.get(before..).unwrap_or(&[]));
        complete
    }

    fn check_magic(&self) -> Result<()> {
        let known = self.part.len().min(MAGIC.len());
        let (found, expected) = (self.part.get(..known), MAGIC.get(..known));
        if found == expected {
            return Ok(());
        }
        // The method stands behind the two bytes of the magic.
        if let [0x1f, 0x8b, method, ..] = *self.part {
            let what = format!(
                "the compression method {method} of the gzip header at {} is unknown",
                self.at
            );
            return Err(Error::new(Kind::Unsupported, what));
        }
        let what = format!("the magic 1f 8b is not at {}", self.at);
        Err(Error::new(Kind::NotThisFormat, what))
    }

    /// Goes to the first part behind `done` that the flags announce.
    fn go_on(&mut self, done: Expect) {
        self.part.clear();
        let has = |flag| self.flags & flag != 0;
        let rank = match done {
            Expect::Fixed => 0,
            Expect::ExtraLength | Expect::Extra(_) => 1,
            Expect::Name => 2,
            Expect::Comment => 3,
            Expect::Crc | Expect::Done => 4,
        };
        self.expect = if rank < 1 && has(FEXTRA) {
            Expect::ExtraLength
        } else if rank < 2 && has(FNAME) {
            Expect::Name
        } else if rank < 3 && has(FCOMMENT) {
            Expect::Comment
        } else if rank < 4 && has(FHCRC) {
            Expect::Crc
        } else {
            Expect::Done
        };
    }
}

/// Takes bytes into `part` until it has `len`; whether it has.
fn gather(part: &mut Vec<u8>, rest: &mut &[u8], len: usize) -> bool {
    let missing = len.saturating_sub(part.len()).min(rest.len());
    let (now, later) = rest.split_at(missing);
    part.extend_from_slice(now);
    *rest = later;
    part.len() >= len
}

/// The size that the subfield BC of an extra field (2.3.1.1) states. Fields that break the rules
/// have none, and do no harm: nobody else looks into them.
fn member_size(mut extra: &[u8]) -> Option<u64> {
    loop {
        let (head, rest) = extra.split_first_chunk::<4>()?;
        let [id1, id2, low, high] = *head;
        let len = usize::from(u16::from_le_bytes([low, high]));
        let (data, rest) = rest.split_at_checked(len)?;
        if (id1, id2, len) == (b'B', b'C', 2) {
            // BSIZE is one less.
            return le16(data, 0).map(|size| u64::from(size).saturating_add(1));
        }
        extra = rest;
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;

    /// A header with everything, and right CRC16.
    fn full() -> Vec<u8> {
        let mut bytes = vec![0x1f, 0x8b, 8, 0x1f, 1, 2, 3, 4, 2, 3];
        bytes.extend([11, 0, b'A', b'B', 1, 0, 9, b'B', b'C', 2, 0, 0x39, 0x30]);
        bytes.extend(b"name\0a comment\0");
        let crc = crc32fast::hash(&bytes) as u16;
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8], step: usize) -> Result<(usize, Option<Header>)> {
        let mut parser = HeaderParser::new(7);
        let mut used = 0;
        for part in bytes.chunks(step) {
            let (taken, header) = parser.take(part)?;
            used += taken;
            if header.is_some() {
                return Ok((used, header));
            }
            assert_eq!(taken, part.len());
        }
        Ok((used, None))
    }

    #[test]
    fn a_header_may_come_in_parts_of_any_length() {
        let mut bytes = full();
        let len = bytes.len();
        bytes.extend(b"what follows");
        for step in [1, 2, 3, 11, 1000] {
            let header = Header {
                member: Some(0x303a),
                checked: true,
            };
            assert_eq!(
                parse(&bytes, step).ok(),
                Some((len, Some(header))),
                "{step}"
            );
        }
        for cut in 0..len {
            assert_eq!(parse(&bytes[..cut], 1000).ok(), Some((cut, None)), "{cut}");
        }
    }

    #[test]
    fn each_part_may_be_there_or_not() {
        for flags in 0..0x20 {
            let mut bytes = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255];
            if flags & FEXTRA != 0 {
                bytes.extend([0, 0]);
            }
            if flags & FNAME != 0 {
                bytes.extend(b"n\0");
            }
            if flags & FCOMMENT != 0 {
                bytes.extend(b"\0");
            }
            let checked = flags & FHCRC != 0;
            if checked {
                let crc = crc32fast::hash(&bytes) as u16;
                bytes.extend(crc.to_le_bytes());
            }
            let len = bytes.len();
            bytes.extend([1; 9]);
            let member = None;
            let header = Header { member, checked };
            assert_eq!(parse(&bytes, 4).ok(), Some((len, Some(header))), "{flags}");
        }
    }

    #[test]
    fn what_breaks_the_rules_is_corrupt_and_what_is_newer_is_unsupported() {
        let good = full();
        let kind = |bytes: &[u8]| parse(bytes, 5).map_err(|error| error.kind()).err();
        for at in [0, 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(kind(&bad), Some(Kind::NotThisFormat));
            assert_eq!(kind(&bad[..=at]), Some(Kind::NotThisFormat));
        }
        for (at, value) in [(2, 7), (2, 0), (3, 0x20), (3, 0xff)] {
            let mut newer = good.clone();
            newer[at] = value;
            assert_eq!(kind(&newer), Some(Kind::Unsupported), "{at} {value}");
        }
        for at in 4..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            // Lengths may make a header longer than there is; it is never taken for a good one.
            assert!(!matches!(parse(&bad, 5), Ok((_, Some(_)))), "{at}");
        }
    }

    #[test]
    fn a_size_is_taken_only_from_a_well_formed_field() {
        assert_eq!(member_size(b"BC\x02\0\xff\xff"), Some(0x10000));
        assert_eq!(member_size(b"XY\0\0BC\x02\0\0\0"), Some(1));
        for extra in [
            &b""[..],
            b"BC",
            b"BC\x02\0\xff",
            b"BC\x03\0\xff\xff\xff",
            b"XY\xff\xffBC\x02\0\xff\xff",
            b"CB\x02\0\xff\xff",
        ] {
            assert_eq!(member_size(extra), None, "{extra:?}");
        }
    }
}
