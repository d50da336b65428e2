//! The pure parser of GUID partition tables (UEFI 2.10, section 5.3).

use super::guid::{Guid, type_name};
use super::table::{Partition, Problem};
use crate::bytes::{array, has, le32, le64, slice};
use crate::{ByteRange, Error, Kind, Result};

/// At offset 0 of a header.
pub(super) const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Length of a header of revision 1.0; later ones may be longer.
const HEADER_LEN: u32 = 92;
/// Most bytes of partition entries that are read: 8192 entries of the usual size. The
/// specification sets no limit; 128 entries, 16 KiB, are what every tool makes.
const MAX_ENTRIES_LEN: u32 = 1 << 20;

/// A header whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of a sector.
    pub(super) sector: u32,
    /// The sector that the header is in.
    pub(super) my_lba: u64,
    /// The sector of the other header.
    pub(super) alternate_lba: u64,
    pub(super) disk_guid: Guid,
    partition_entry_lba: u64,
    number_of_entries: u32,
    size_of_entry: u32,
    entries_crc: u32,
}

impl Header {
    /// Reads the header in `block`, the bytes of sector `lba`.
    ///
    /// # Errors
    /// `NotThisFormat` without the signature, `Corrupt` when a value is wrong, `Unsupported` for a
    /// later major revision, `Limit` for entries of more than 1 MiB.
    pub(super) fn parse(block: &[u8], lba: u64, sector: u32) -> Result<Self> {
        let at = |text: String| format!("the GPT header in sector {lba} {text}");
        let corrupt = |text: String| Error::new(Kind::Corrupt, at(text));
        let short = || corrupt("is cut off".to_owned());
        let field32 = |offset| le32(block, offset).ok_or_else(short);
        let field64 = |offset| le64(block, offset).ok_or_else(short);
        if !has(block, 0, SIGNATURE) {
            let what = at("lacks the signature EFI PART".to_owned());
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let revision = field32(8)?;
        let header_len = field32(12)?;
        if header_len < HEADER_LEN || header_len > sector {
            return Err(corrupt(format!("claims {header_len} bytes of {sector}")));
        }
        let covered = usize::try_from(header_len)
            .ok()
            .and_then(|len| slice(block, 0, len))
            .ok_or_else(short)?;
        let mut covered = covered.to_vec();
        if let Some(field) = covered.get_mut(16..20) {
            field.fill(0);
        }
        let (found, computed) = (field32(16)?, crc32fast::hash(&covered));
        if found != computed {
            return Err(corrupt(format!(
                "has checksum {found:08x}, its bytes have {computed:08x}"
            )));
        }
        if revision >> 16 != 1 {
            let what = at(format!("is of revision {revision:08x}, we know 1.x"));
            return Err(Error::new(Kind::Unsupported, what));
        }
        let header = Self {
            sector,
            my_lba: field64(24)?,
            alternate_lba: field64(32)?,
            disk_guid: Guid::new(array(block, 56).ok_or_else(short)?),
            partition_entry_lba: field64(72)?,
            number_of_entries: field32(80)?,
            size_of_entry: field32(84)?,
            entries_crc: field32(88)?,
        };
        if header.my_lba != lba {
            return Err(corrupt(format!("says that it is in {}", header.my_lba)));
        }
        let entry = header.size_of_entry;
        // UEFI: 128 times a power of two. Beyond 4096 nothing was ever seen.
        if !(128..=4096).contains(&entry) || !entry.is_power_of_two() {
            return Err(corrupt(format!("has entries of {entry} bytes")));
        }
        let number = header.number_of_entries;
        let len = number.checked_mul(entry);
        if len.is_none_or(|len| len > MAX_ENTRIES_LEN) {
            let text = format!(
                "claims {number} entries of {entry} bytes; {MAX_ENTRIES_LEN} bytes are allowed"
            );
            return Err(Error::new(Kind::Limit, at(text)));
        }
        Ok(header)
    }

    /// Where the entries are; not checked against the image.
    pub(super) fn entries_range(&self) -> Option<ByteRange> {
        let start = self
            .partition_entry_lba
            .checked_mul(u64::from(self.sector))?;
        let len = u64::from(self.number_of_entries).checked_mul(u64::from(self.size_of_entry))?;
        ByteRange::new(start, len)
    }

    /// Reads the entries, the bytes of [`Self::entries_range`].
    ///
    /// # Errors
    /// `Corrupt` when their checksum is wrong.
    pub(super) fn parse_entries(&self, bytes: &[u8]) -> Result<Vec<Partition>> {
        let (found, computed) = (self.entries_crc, crc32fast::hash(bytes));
        if found != computed {
            let (lba, from) = (self.my_lba, self.partition_entry_lba);
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "the partition entries from sector {from} have checksum {computed:08x}, the \
                     GPT header in sector {lba} says {found:08x}"
                ),
            ));
        }
        // size_of_entry is at least 128.
        let len = usize::try_from(self.size_of_entry).unwrap_or(128);
        let entries = (1..).zip(bytes.chunks_exact(len));
        Ok(entries
            .filter_map(|(number, entry)| parse_entry(number, entry, self.sector))
            .collect())
    }
}

/// `None` for an unused entry.
fn parse_entry(number: u32, entry: &[u8], sector: u32) -> Option<Partition> {
    let type_guid = Guid::new(array(entry, 0)?);
    if type_guid.is_nil() {
        return None;
    }
    let unique = Guid::new(array(entry, 16)?);
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let type_id = type_guid.to_string();
    let mut partition = Partition {
        number,
        start: first.saturating_mul(u64::from(sector)),
        size: 0,
        type_name: type_name(&type_id),
        type_id,
        label: name(entry),
        uuid: Some(unique.to_string()),
        attributes: le64(entry, 48)?,
        problem: None,
    };
    let bytes = |sectors: u64| sectors.checked_mul(u64::from(sector));
    let end = last.checked_add(1);
    if last < first {
        partition.problem = Some(Problem::EndBeforeStart { first, last });
    } else if end.and_then(bytes).is_none() {
        partition.problem = Some(Problem::BeyondAnyDisk { last });
    } else {
        // Neither overflows: the end, which is larger, does not.
        let sectors = end.and_then(|end| end.checked_sub(first));
        partition.size = sectors.and_then(bytes).unwrap_or(0);
    }
    Some(partition)
}

/// The name in an entry: up to 36 UTF-16 code units, ended by a zero.
fn name(entry: &[u8]) -> Option<String> {
    let units = slice(entry, 56, 72)?
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u16::from_le_bytes(*pair))
        .take_while(|&unit| unit != 0);
    let text: String = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    (!text.is_empty()).then_some(text)
}
