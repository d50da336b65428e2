//! The records of a zip archive, PKWARE's APPNOTE.TXT 6.3.10, 4.3 to 4.5. Pure: bytes in, values out.

use crate::bytes::{has, le16, le32, le64, slice};
use crate::{Error, Kind, Result};

/// Local file header, 4.3.7.
pub(super) const LOCAL: &[u8] = b"PK\x03\x04";
/// Central directory header, 4.3.12.
pub(super) const CENTRAL: &[u8] = b"PK\x01\x02";
/// End of central directory record, 4.3.16.
pub(super) const END: &[u8] = b"PK\x05\x06";
/// Zip64 end of central directory record, 4.3.14.
pub(super) const END64: &[u8] = b"PK\x06\x06";
/// Zip64 end of central directory locator, 4.3.15.
pub(super) const LOCATOR64: &[u8] = b"PK\x06\x07";
/// What archives begin with that were, or might have been, cut into pieces: 8.5.4, 8.5.5.
pub(super) const SPLIT: [&[u8]; 2] = [b"PK\x07\x08PK\x03\x04", b"PK00PK\x03\x04"];

/// Bytes of these records without what follows.
pub(super) const LOCAL_LEN: u64 = 30;
pub(super) const CENTRAL_LEN: usize = 46;
pub(super) const END_LEN: u64 = 22;
pub(super) const END64_LEN: u64 = 56;
pub(super) const LOCATOR64_LEN: u64 = 20;
/// Longest comment behind the end record.
pub(super) const MAX_COMMENT: u64 = 65_535;

/// The numbers of an end record of either sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Number of this disk.
    pub(super) disk: u64,
    /// Disk on which the directory starts.
    pub(super) directory_disk: u64,
    /// Entries of the directory on this disk.
    pub(super) here: u64,
    /// Entries.
    pub(super) count: u64,
    /// Bytes of the directory.
    pub(super) size: u64,
    /// Where it starts, from the start of the archive.
    pub(super) offset: u64,
}

/// Where the end record is among the last bytes of a file: the last one whose comment ends with the
/// file, as unzip(1) has it. `Err` with the number of bytes too many when there is one that ends
/// before.
pub(super) fn find_end(tail: &[u8]) -> Option<Result<usize, usize>> {
    let mut early = None;
    for at in (0..tail.len()).rev() {
        if !has(tail, at, END) {
            continue;
        }
        let record = at.saturating_add(22);
        let Some(comment) = record.checked_sub(2).and_then(|at| le16(tail, at)) else {
            continue;
        };
        let end = record.saturating_add(usize::from(comment));
        match tail.len().checked_sub(end) {
            Some(0) => return Some(Ok(at)),
            Some(more) if early.is_none() => early = Some(more),
            _ => {}
        }
    }
    early.map(Err)
}

/// The record at the start of `bytes`.
pub(super) fn end(bytes: &[u8]) -> Option<End> {
    let word = |at| le16(bytes, at).map(u64::from);
    let long = |at| le32(bytes, at).map(u64::from);
    has(bytes, 0, END).then_some(())?;
    Some(End {
        disk: word(4)?,
        directory_disk: word(6)?,
        here: word(8)?,
        count: word(10)?,
        size: long(12)?,
        offset: long(16)?,
    })
}

/// What the locator says: the disk and the place of the zip64 record, and the number of disks.
pub(super) fn locator64(bytes: &[u8]) -> Option<(u32, u64, u32)> {
    has(bytes, 0, LOCATOR64).then_some(())?;
    Some((le32(bytes, 4)?, le64(bytes, 8)?, le32(bytes, 16)?))
}

/// The zip64 record at the start of `bytes`, and its length as it says.
pub(super) fn end64(bytes: &[u8]) -> Option<(End, u64)> {
    has(bytes, 0, END64).then_some(())?;
    let long = |at| le32(bytes, at).map(u64::from);
    let end = End {
        disk: long(16)?,
        directory_disk: long(20)?,
        here: le64(bytes, 24)?,
        count: le64(bytes, 32)?,
        size: le64(bytes, 40)?,
        offset: le64(bytes, 48)?,
    };
    Some((end, le64(bytes, 4)?.checked_add(12)?))
}

/// Whether the 16 or 32 bits of a number in an end record say what the zip64 record says: the same,
/// or that they are too few.
pub(super) fn agrees(short: End, long: End) -> bool {
    let pairs = [
        (short.disk, long.disk, 0xffff),
        (short.directory_disk, long.directory_disk, 0xffff),
        (short.here, long.here, 0xffff),
        (short.count, long.count, 0xffff),
        (short.size, long.size, 0xffff_ffff),
        (short.offset, long.offset, 0xffff_ffff),
    ];
    let mut pairs = pairs.into_iter();
    pairs.all(|(short, long, all)| short == all || short == long)
}

/// What both headers of a file say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    /// General purpose bit flag, 4.4.4.
    pub(super) flags: u16,
    /// Compression method, 4.4.5.
    pub(super) method: u16,
    /// CRC-32 of the file.
    pub(super) crc32: u32,
    /// Bytes stored.
    pub(super) compressed: u64,
    /// Bytes of the file.
    pub(super) size: u64,
}

/// The file is encrypted.
pub(super) const ENCRYPTED: u16 = 1;
/// LZMA data ends with a marker.
pub(super) const MARKER: u16 = 1 << 1;
/// Sizes and CRC stand in a data descriptor behind the data.
pub(super) const DESCRIPTOR: u16 = 1 << 3;
/// The data is a patch.
pub(super) const PATCH: u16 = 1 << 5;
/// The name is UTF-8.
pub(super) const UTF8: u16 = 1 << 11;
/// The directory is encrypted, and local headers are masked.
pub(super) const MASKED: u16 = 1 << 13;

/// A header of the central directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Central {
    /// What the local header says too.
    pub(super) fields: Fields,
    /// As it is written.
    pub(super) name: Vec<u8>,
    /// Disk on which the file starts.
    pub(super) disk: u64,
    /// Where the local header is, from the start of the archive.
    pub(super) local: u64,
    /// Whether it is a file like others: no folder and no symbolic link.
    pub(super) is_regular: bool,
}

/// How long the header is that begins in `bytes`, with what follows its fixed part.
pub(super) fn central_len(bytes: &[u8]) -> Option<u64> {
    has(bytes, 0, CENTRAL).then_some(())?;
    let parts = [le16(bytes, 28)?, le16(bytes, 30)?, le16(bytes, 32)?];
    let rest = parts.into_iter().map(u64::from).sum::<u64>();
    u64::try_from(CENTRAL_LEN).ok()?.checked_add(rest)
}

/// The header `bytes`, all of it, at `at` in the file.
///
/// # Errors
/// `Corrupt` when a number is missing.
pub(super) fn central(bytes: &[u8], at: u64) -> Result<Central> {
    let wrong = || {
        let what = format!("the header of a file at {at} in the directory is cut short");
        Error::new(Kind::Corrupt, what)
    };
    let read = || -> Option<(Central, &[u8])> {
        let name_len = usize::from(le16(bytes, 28)?);
        let extra_len = usize::from(le16(bytes, 30)?);
        let name = slice(bytes, CENTRAL_LEN, name_len)?;
        let extra = slice(bytes, CENTRAL_LEN.checked_add(name_len)?, extra_len)?;
        let made_by = le16(bytes, 4)? >> 8;
        let attributes = le32(bytes, 38)?;
        let central = Central {
            fields: Fields {
                flags: le16(bytes, 8)?,
                method: le16(bytes, 10)?,
                crc32: le32(bytes, 16)?,
                compressed: u64::from(le32(bytes, 20)?),
                size: u64::from(le32(bytes, 24)?),
            },
            disk: u64::from(le16(bytes, 34)?),
            local: u64::from(le32(bytes, 42)?),
            is_regular: is_regular(made_by, attributes, name),
            name: name.to_vec(),
        };
        Some((central, extra))
    };
    let (mut central, extra) = read().ok_or_else(wrong)?;
    let fields = &mut central.fields;
    let mut long = Zip64::new(extra);
    // 4.5.3: those that do not fit, in this order.
    for (number, all) in [
        (&mut fields.size, 0xffff_ffff),
        (&mut fields.compressed, 0xffff_ffff),
        (&mut central.local, 0xffff_ffff),
    ] {
        if *number == all {
            *number = long.next(at)?.unwrap_or(*number);
        }
    }
    if central.disk == 0xffff {
        central.disk = long.next_disk(at)?.unwrap_or(central.disk);
    }
    Ok(central)
}

/// Whether the attributes are those of a file: 4.4.15. Unix keeps the mode in the upper half.
fn is_regular(made_by: u16, attributes: u32, name: &[u8]) -> bool {
    let is_folder = name.ends_with(b"/") || attributes & 0x10 != 0 && made_by == 0;
    let mode = attributes >> 16 & 0xf000;
    // A file that came out of a pipe may have the mode of the pipe.
    let is_special = matches!(made_by, 3 | 19) && matches!(mode, 0x4000 | 0xa000);
    !(is_folder || is_special)
}

/// The local header at the start of `bytes`: its fields, and how long it is with name and extra.
pub(super) fn local(bytes: &[u8]) -> Option<(Fields, u64)> {
    has(bytes, 0, LOCAL).then_some(())?;
    let fields = Fields {
        flags: le16(bytes, 6)?,
        method: le16(bytes, 8)?,
        crc32: le32(bytes, 14)?,
        compressed: u64::from(le32(bytes, 18)?),
        size: u64::from(le32(bytes, 22)?),
    };
    let rest = u64::from(le16(bytes, 26)?).checked_add(u64::from(le16(bytes, 28)?))?;
    Some((fields, LOCAL_LEN.checked_add(rest)?))
}

/// The name in a local header, and its sizes with those of its zip64 field.
///
/// # Errors
/// `Corrupt` when the header is cut short.
pub(super) fn local_rest(bytes: &[u8], fields: &mut Fields, at: u64) -> Result<Vec<u8>> {
    let read = || {
        let name_len = usize::from(le16(bytes, 26)?);
        let name = slice(bytes, 30, name_len)?;
        let extra_len = usize::from(le16(bytes, 28)?);
        Some((name, slice(bytes, name_len.checked_add(30)?, extra_len)?))
    };
    let (name, extra) = read().ok_or_else(|| {
        let what = format!("the local header at {at} is cut short");
        Error::new(Kind::Corrupt, what)
    })?;
    if !is_well_formed(extra) {
        let what = format!("the extra fields of the local header at {at} are damaged");
        return Err(Error::new(Kind::Corrupt, what));
    }
    let mut long = Zip64::new(extra);
    for number in [&mut fields.size, &mut fields.compressed] {
        if *number == 0xffff_ffff {
            *number = long.next(at)?.unwrap_or(*number);
        }
    }
    Ok(name.to_vec())
}

/// Whether there are whole fields, 4.5.1, and nothing behind them but what zipalign(1) fills up with.
fn is_well_formed(extra: &[u8]) -> bool {
    let mut extra = extra;
    while let Some(len) = le16(extra, 2) {
        match extra.get(usize::from(len).saturating_add(4)..) {
            Some(rest) => extra = rest,
            None => break,
        }
    }
    extra.iter().all(|byte| *byte == 0)
}

/// The extra field 0x0001, 4.5.3.
struct Zip64<'a> {
    /// What is left of it; `None` when there is none.
    rest: Option<&'a [u8]>,
}

impl<'a> Zip64<'a> {
    fn new(extra: &'a [u8]) -> Self {
        let mut extra = extra;
        loop {
            let parts = le16(extra, 0).zip(le16(extra, 2));
            let Some((id, len)) = parts else {
                return Self { rest: None };
            };
            let len = usize::from(len);
            let body = slice(extra, 4, len);
            if id == 1 {
                return Self { rest: body };
            }
            extra = extra.get(len.saturating_add(4)..).unwrap_or_default();
        }
    }

    /// The next number of 64 bits; `None` without a field: then 32 bits are all there is.
    fn next(&mut self, at: u64) -> Result<Option<u64>> {
        self.take(8, at, |bytes| le64(bytes, 0))
    }

    fn next_disk(&mut self, at: u64) -> Result<Option<u64>> {
        self.take(4, at, |bytes| le32(bytes, 0).map(u64::from))
    }

    fn take(
        &mut self,
        len: usize,
        at: u64,
        number: impl Fn(&[u8]) -> Option<u64>,
    ) -> Result<Option<u64>> {
        let Some(rest) = self.rest else {
            return Ok(None);
        };
        match number(rest) {
            Some(value) => {
                self.rest = rest.get(len..);
                Ok(Some(value))
            }
            None => {
                let what = format!("the zip64 field of the header at {at} is too short");
                Err(Error::new(Kind::Corrupt, what))
            }
        }
    }
}

/// What a method is called, 4.4.5.
pub(super) fn method_name(method: u16) -> String {
    let name = match method {
        0 => "stored",
        1 => "shrunk",
        2..=5 => "reduced",
        6 => "imploded",
        8 => "deflate",
        9 => "deflate64",
        12 => "bzip2",
        14 => "lzma",
        20 | 93 => "zstd",
        95 => "xz",
        96 => "jpeg",
        97 => "wavpack",
        98 => "ppmd",
        99 => "AES encryption",
        _ => "unknown",
    };
    format!("{name} (method {method})")
}

/// A name that is not marked as UTF-8 is in code page 437, APPENDIX D. Many programs write UTF-8
/// all the same: what is valid UTF-8 is taken for it.
pub(super) fn decoded_name(name: Vec<u8>, flags: u16) -> Vec<u8> {
    if flags & UTF8 != 0 || std::str::from_utf8(&name).is_ok() {
        return name;
    }
    let chars = name.iter().map(|byte| {
        let upper = byte.checked_sub(0x80).map(usize::from);
        upper
            .and_then(|at| CP437.get(at).copied())
            .unwrap_or_else(|| char::from(*byte))
    });
    chars.collect::<String>().into_bytes()
}

/// The upper half of code page 437.
const CP437: [char; 128] = [
    'Ç', 'ü', 'é', 'â', 'ä', 'à', 'å', 'ç', 'ê', 'ë', 'è', 'ï', 'î', 'ì', 'Ä', 'Å', 'É', 'æ', 'Æ',
    'ô', 'ö', 'ò', 'û', 'ù', 'ÿ', 'Ö', 'Ü', '¢', '£', '¥', '₧', 'ƒ', 'á', 'í', 'ó', 'ú', 'ñ', 'Ñ',
    'ª', 'º', '¿', '⌐', '¬', '½', '¼', '¡', '«', '»', '░', '▒', '▓', '│', '┤', '╡', '╢', '╖', '╕',
    '╣', '║', '╗', '╝', '╜', '╛', '┐', '└', '┴', '┬', '├', '─', '┼', '╞', '╟', '╚', '╔', '╩', '╦',
    '╠', '═', '╬', '╧', '╨', '╤', '╥', '╙', '╘', '╒', '╓', '╫', '╪', '┘', '┌', '█', '▄', '▌', '▐',
    '▀', 'α', 'ß', 'Γ', 'π', 'Σ', 'σ', 'µ', 'τ', 'Φ', 'Θ', 'Ω', 'δ', '∞', 'φ', 'ε', '∩', '≡', '±',
    '≥', '≤', '⌠', '⌡', '÷', '≈', '°', '∙', '·', '√', 'ⁿ', '²', '■', '\u{a0}',
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_end_record_whose_comment_ends_with_the_file_is_taken() {
        let record = |comment: &[u8]| {
            let mut record = [END, &[0; 16]].concat();
            record.extend(u16::try_from(comment.len()).unwrap().to_le_bytes());
            record.extend(comment);
            record
        };
        assert_eq!(find_end(&record(b"")), Some(Ok(0)));
        assert_eq!(find_end(&record(b"PK\x05\x06")), Some(Ok(0)));
        let nested = record(&record(b"x"));
        assert_eq!(find_end(&nested), Some(Ok(22)));
        assert_eq!(
            find_end(&[record(b"ab"), vec![0; 3]].concat()),
            Some(Err(3))
        );
        assert_eq!(find_end(&record(b"ab")[..23]), None);
        assert_eq!(find_end(&record(b"")[..21]), None);
        assert_eq!(find_end(b""), None);
    }

    #[test]
    fn names_are_utf8_or_code_page_437() {
        let name = |bytes: &[u8], flags| decoded_name(bytes.to_vec(), flags);
        assert_eq!(name(b"a\x84\xff", 0), "aä\u{a0}".as_bytes());
        assert_eq!(name("ä".as_bytes(), 0), "ä".as_bytes());
        assert_eq!(name(b"a\x84", UTF8), b"a\x84");
    }
}
