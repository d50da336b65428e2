//! Pure parsers of what LVM2 writes at the start of a physical volume and of its metadata areas
//! (`lib/format_text/layout.h`, `lib/label/label.h` of LVM2): bytes in, values that hold the format's
//! rules out. All numbers are little-endian.

use crate::bytes::{has, le32, le64, slice};
use crate::sys::lzma::crc32;
use crate::{ByteRange, Error, Kind, Result};

/// Bytes of a sector, everywhere in LVM2.
pub(crate) const SECTOR: u64 = 512;
/// The label is in one of the first four sectors.
pub(crate) const LABEL_AREA: usize = 4 * 512;
/// Bytes of the header of a metadata area.
pub(crate) const AREA_HEADER: usize = 512;
const LABEL: &[u8] = b"LABELONE";
const LABEL_TYPE: &[u8] = b"LVM2 001";
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// The checksum begins with this.
const SEED: u32 = 0xf597_a6cf;
/// Bytes of an identifier.
const ID: usize = 32;
/// This copy of the metadata is not kept up to date.
const IGNORED: u32 = 1;

/// The label and the header of a physical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PvHeader {
    /// 32 letters and digits.
    pub(crate) id: String,
    /// Where the label is.
    pub(crate) at: u64,
    /// The metadata areas.
    pub(crate) areas: Vec<ByteRange>,
}

/// Where the text of the metadata is within its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    /// From the start of the area on; it goes on behind the area's header where the area ends.
    offset: u64,
    /// Bytes, with the zero at its end.
    size: u64,
    checksum: u32,
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// LVM2's own CRC-32: another seed, and not inverted at the end.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    !crc32(bytes, !SEED)
}

/// Whether an identifier is one: letters and digits.
pub(crate) fn is_id(id: &[u8]) -> bool {
    id.len() == ID && id.iter().all(u8::is_ascii_alphanumeric)
}

/// An identifier as LVM2 prints it: `AAAAAA-BBBB-...-CCCCCC`.
pub(crate) fn dashed(id: &str) -> String {
    let mut rest = id;
    let mut groups = Vec::new();
    for len in [6, 4, 4, 4, 4, 4, 6] {
        let (group, more) = rest.split_at_checked(len).unwrap_or((rest, ""));
        groups.push(group);
        rest = more;
    }
    groups.join("-")
}

/// The header of the physical volume that begins with `head`: its first four sectors, or all there is.
///
/// # Errors
/// `NotThisFormat` without a label; `Corrupt`.
pub(crate) fn pv_header(head: &[u8]) -> Result<PvHeader> {
    let sectors = head.chunks_exact(512).take(4);
    let found = (0_u64..)
        .zip(sectors)
        .find(|(_, sector)| has(sector, 0, LABEL) && has(sector, 24, LABEL_TYPE));
    let Some((number, sector)) = found else {
        let what = "there is no label of LVM2 in the first four sectors";
        return Err(Error::new(Kind::NotThisFormat, what));
    };
    let at = number.saturating_mul(SECTOR);
    let cut = || corrupt(format!("the label at {at} ends too early"));
    let claimed = le64(sector, 8).ok_or_else(cut)?;
    if claimed != number {
        return Err(corrupt(format!(
            "the label in sector {number} says that it is in sector {claimed}"
        )));
    }
    let stored = le32(sector, 16).ok_or_else(cut)?;
    let found = checksum(sector.get(20..).ok_or_else(cut)?);
    if stored != found {
        return Err(corrupt(format!(
            "the label at {at} has the checksum {stored:08x}, its bytes have {found:08x}"
        )));
    }
    let header = le32(sector, 20).ok_or_else(cut)?;
    let begin = usize::try_from(header).map_err(|_| cut())?;
    let bad = || {
        corrupt(format!(
            "the header of the physical volume at {header} leaves the sector of its label"
        ))
    };
    if header < 32 {
        return Err(bad());
    }
    let id = slice(sector, begin, ID).ok_or_else(bad)?;
    if !is_id(id) {
        return Err(corrupt(
            "the identifier of the physical volume has other characters than letters and digits"
                .to_owned(),
        ));
    }
    // Behind the identifier and the size two lists, each up to an entry of zeroes: data areas, then
    // metadata areas.
    let mut next = begin.saturating_add(ID).saturating_add(8);
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        loop {
            let offset = le64(sector, next).ok_or_else(bad)?;
            let size = le64(sector, next.saturating_add(8)).ok_or_else(bad)?;
            next = next.saturating_add(16);
            if offset == 0 {
                break;
            }
            list.push((offset, size));
        }
    }
    let [_, metadata] = lists;
    let mut areas = Vec::new();
    for (offset, size) in metadata {
        let area = ByteRange::new(offset, size).filter(|_| size > 512);
        areas.push(
            area.ok_or_else(|| corrupt(format!("a metadata area of {size} bytes at {offset}")))?,
        );
    }
    Ok(PvHeader {
        id: String::from_utf8_lossy(id).into_owned(),
        at,
        areas,
    })
}

/// Where the text is, by the header of the metadata area `area`; `None` when nothing is kept there.
///
/// # Errors
/// `Corrupt`; `Unsupported` for another version.
pub(crate) fn area_header(bytes: &[u8], area: ByteRange) -> Result<Option<Text>> {
    let at = area.start();
    let cut = || corrupt(format!("the metadata area at {at} ends within its header"));
    let header = slice(bytes, 0, AREA_HEADER).ok_or_else(cut)?;
    if !has(header, 4, AREA_MAGIC) {
        return Err(corrupt(format!("the metadata area at {at} has no magic")));
    }
    let stored = le32(header, 0).ok_or_else(cut)?;
    let found = checksum(header.get(4..).ok_or_else(cut)?);
    if stored != found {
        return Err(corrupt(format!(
            "the metadata area at {at} has the checksum {stored:08x}, its header has {found:08x}"
        )));
    }
    let version = le32(header, 20).ok_or_else(cut)?;
    if version != 1 {
        let what = format!("version {version} of the metadata area at {at}, only 1 is known");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let (start, size) = (
        le64(header, 24).ok_or_else(cut)?,
        le64(header, 32).ok_or_else(cut)?,
    );
    if (start, size) != (at, area.len()) {
        let len = area.len();
        return Err(corrupt(format!(
            "the metadata area of {len} bytes at {at} says that it has {size} bytes at {start}"
        )));
    }
    let offset = le64(header, 40).ok_or_else(cut)?;
    let text = Text {
        offset,
        size: le64(header, 48).ok_or_else(cut)?,
        checksum: le32(header, 56).ok_or_else(cut)?,
    };
    let flags = le32(header, 60).ok_or_else(cut)?;
    if offset == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    let room = size.saturating_sub(512);
    if offset < 512 || offset >= size || text.size == 0 || text.size > room {
        let len = text.size;
        return Err(corrupt(format!(
            "{len} bytes of text at {offset} are not within the metadata area of {size} bytes at \
             {at}"
        )));
    }
    Ok(Some(text))
}

impl Text {
    /// The one or two ranges of the volume that hold it, for a text of `area`.
    pub(crate) fn ranges(&self, area: ByteRange) -> [ByteRange; 2] {
        let first = area.start().saturating_add(self.offset);
        let end = first.saturating_add(self.size);
        let wrapped = end.saturating_sub(area.end());
        let again = area.start().saturating_add(512);
        [
            ByteRange::between(first, end.min(area.end())),
            ByteRange::between(again, again.saturating_add(wrapped)),
        ]
    }

    /// Bytes of it.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Checks the text that was read.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check(&self, text: &[u8]) -> Result<()> {
        let (stored, found) = (self.checksum, checksum(text));
        if stored != found {
            return Err(corrupt(format!(
                "the text of the metadata has the checksum {found:08x}, it should have {stored:08x}"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_written_in_groups() {
        assert_eq!(
            dashed("abcdef0123ghij4567klmn89opQRSTUV"),
            "abcdef-0123-ghij-4567-klmn-89op-QRSTUV"
        );
        assert!(is_id(b"abcdef0123ghij4567klmn89opQRSTUV"));
        assert!(!is_id(b"abcdef0123ghij4567klmn89opQRSTU/"));
        assert!(!is_id(b"short"));
    }

    #[test]
    fn a_text_that_passes_the_end_goes_on_behind_the_header() {
        let area = ByteRange::between(4096, 4096 + 8192);
        let text = Text {
            offset: 8000,
            size: 300,
            checksum: 0,
        };
        assert_eq!(
            text.ranges(area),
            [
                ByteRange::between(12096, 12288),
                ByteRange::between(4608, 4608 + 108)
            ]
        );
        let text = Text {
            offset: 512,
            size: 300,
            checksum: 0,
        };
        let [first, second] = text.ranges(area);
        assert_eq!(first, ByteRange::between(4608, 4908));
        assert!(second.is_empty());
    }
}
