//! Pure parser of the metadata region (MS-VHDX 2.6): bytes in, values that hold the format's rules
//! out.

use super::header::{MIB, MOST_ENTRIES, TABLE, corrupt, guid_text, unsupported};
use crate::Result;
use crate::bytes::{array, has, le16, le32, le64, slice};

/// Most bytes of an item.
const LONGEST: u64 = MIB;
/// Most bytes of a disk: 64 TiB.
const LARGEST: u64 = 64 << 40;
/// Most bytes of a block.
const LONGEST_BLOCK: u64 = 256 << 20;
/// Sectors that a block of sector bits is for.
const CHUNK_SECTORS: u64 = 1 << 23;
/// The type of locator that there is: of a VHDX.
const LOCATOR: &str = "b04aefb7-d19e-4a81-b789-25b8e9445913";

/// What the items are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    FileParameters,
    DiskSize,
    LogicalSector,
    ParentLocator,
}

/// An item of the metadata table: where it lies in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) item: Item,
    pub(super) at: u64,
    pub(super) len: u64,
}

/// The items in the metadata table `bytes` of a region of `size` bytes.
///
/// # Errors
/// `Unsupported` for an item that is required and not known; `Corrupt`.
pub(super) fn table(bytes: &[u8], size: u64) -> Result<Vec<Entry>> {
    let cut = || corrupt("the metadata region ends within its table");
    let bytes = slice(bytes, 0, TABLE).ok_or_else(cut)?;
    if !has(bytes, 0, b"metadata") {
        return Err(corrupt(
            "the metadata region does not begin with \"metadata\"",
        ));
    }
    let count = usize::from(le16(bytes, 10).ok_or_else(cut)?);
    if count > MOST_ENTRIES {
        return Err(corrupt(format!("a metadata table of {count} entries")));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for entry in (32..).step_by(32).take(count) {
        let guid = guid_text(array(bytes, entry).ok_or_else(cut)?);
        let word = |at: usize| le32(bytes, entry.saturating_add(at)).ok_or_else(cut);
        let (at, len) = (u64::from(word(16)?), u64::from(word(20)?));
        let flags = word(24)?;
        let (user, required) = (flags & 1 != 0, flags & 4 != 0);
        let item = match guid.as_str() {
            _ if user && !required => continue,
            "caa16737-fa36-4d43-b3b6-33f0aa44e76b" => Item::FileParameters,
            "2fa54224-cd1b-4876-b211-5dbed83bf4b8" => Item::DiskSize,
            "8141bf1d-a96f-4709-ba47-f233a8faab5f" => Item::LogicalSector,
            "a8d35f2d-b30b-454d-abf7-d3d84834ab0c" => Item::ParentLocator,
            // The ID of the disk for the guest, and its physical sectors: nothing depends on them.
            "beca12ab-b2e6-4523-93ef-c309e000c746" | "cda348c7-445d-4471-9cc9-e9885251c556" => {
                continue;
            }
            _ if required => {
                return Err(unsupported(format!(
                    "the metadata {guid}, which is required"
                )));
            }
            _ => continue,
        };
        let table = u64::try_from(TABLE).unwrap_or(u64::MAX);
        if at < table || len > LONGEST || at.saturating_add(len) > size {
            let what = format!("the metadata {guid} of {len} bytes at {at} of a region of {size}");
            return Err(corrupt(what));
        }
        if entries.iter().any(|entry| entry.item == item) {
            return Err(corrupt(format!("the metadata {guid} twice")));
        }
        entries.push(Entry { item, at, len });
    }
    Ok(entries)
}

/// What the items say about the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Bytes of it.
    pub(super) size: u64,
    /// Bytes of a block: a power of two, 1 to 256 MiB.
    pub(super) block: u64,
    /// Bytes of a sector: 512 or 4096.
    pub(super) sector: u64,
    pub(super) has_parent: bool,
    /// No block is ever given back.
    pub(super) fixed: bool,
}

impl Disk {
    /// Payload blocks between two entries for sector bits.
    pub(super) fn chunk_ratio(&self) -> u64 {
        // Both are powers of two, and the product is at least 2^32.
        let chunk = CHUNK_SECTORS.saturating_mul(self.sector);
        chunk.checked_div(self.block).unwrap_or(1).max(1)
    }

    /// Payload blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block.max(1))
    }

    /// Entries of the block allocation table.
    pub(super) fn bat_entries(&self) -> u64 {
        let (blocks, ratio) = (self.blocks(), self.chunk_ratio());
        if self.has_parent {
            let chunks = blocks.div_ceil(ratio);
            return chunks.saturating_mul(ratio.saturating_add(1));
        }
        let before = blocks.saturating_sub(1).checked_div(ratio).unwrap_or(0);
        blocks.saturating_add(before)
    }

    /// The entry of the block `number`.
    pub(super) fn bat_index(&self, number: u64) -> u64 {
        let chunks = number.checked_div(self.chunk_ratio()).unwrap_or(0);
        number.saturating_add(chunks)
    }

    /// The entry for the sector bits of the block `number`.
    pub(super) fn bitmap_index(&self, number: u64) -> u64 {
        let ratio = self.chunk_ratio();
        let chunk = number.checked_div(ratio).unwrap_or(0);
        chunk
            .saturating_mul(ratio.saturating_add(1))
            .saturating_add(ratio)
    }
}

/// The disk of these items: file parameters, size and logical sector size.
///
/// # Errors
/// `Corrupt`; `Unsupported` for another sector size.
pub(super) fn disk(parameters: &[u8], size: &[u8], sector: &[u8]) -> Result<Disk> {
    let cut = || corrupt("an item of the metadata is too short");
    let block = u64::from(le32(parameters, 0).ok_or_else(cut)?);
    let flags = le32(parameters, 4).ok_or_else(cut)?;
    let size = le64(size, 0).ok_or_else(cut)?;
    let sector = u64::from(le32(sector, 0).ok_or_else(cut)?);
    if !block.is_power_of_two() || !(MIB..=LONGEST_BLOCK).contains(&block) {
        let what = format!("blocks of {block} bytes, no power of two from 1 to 256 MiB");
        return Err(corrupt(what));
    }
    if !matches!(sector, 512 | 4096) {
        let what = format!("sectors of {sector} bytes, only 512 and 4096 are known");
        return Err(unsupported(what));
    }
    if size > LARGEST || !size.is_multiple_of(sector) {
        let what = format!("a disk of {size} bytes: more than 64 TiB, or no whole sectors");
        return Err(corrupt(what));
    }
    if flags & !3 != 0 {
        return Err(unsupported(format!("file parameters {flags:#x}")));
    }
    Ok(Disk {
        size,
        block,
        sector,
        has_parent: flags & 2 != 0,
        fixed: flags & 1 != 0,
    })
}

/// What a parent locator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Locator {
    /// The parent's [`super::header::Header::data_write`]; one of them, as text without braces.
    pub(super) linkage: Vec<String>,
    /// Names of the parent, those relative to this file first.
    pub(super) paths: Vec<String>,
}

/// The parent locator `bytes`.
///
/// # Errors
/// `Unsupported` for a locator of another type; `Corrupt`.
pub(super) fn locator(bytes: &[u8]) -> Result<Locator> {
    let cut = || corrupt("the parent locator ends within an entry");
    let kind = guid_text(array(bytes, 0).ok_or_else(cut)?);
    if kind != LOCATOR {
        return Err(unsupported(format!("a parent locator of type {kind}")));
    }
    let count = usize::from(le16(bytes, 18).ok_or_else(cut)?);
    let mut found = Locator::default();
    let (mut relative, mut absolute) = (Vec::new(), Vec::new());
    for entry in (20_usize..).step_by(12).take(count) {
        let text = |at: usize, len: usize| -> Result<String> {
            let at = le32(bytes, entry.saturating_add(at)).ok_or_else(cut)?;
            let len = le16(bytes, entry.saturating_add(len)).ok_or_else(cut)?;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let text = slice(bytes, at, usize::from(len)).ok_or_else(cut)?;
            let units = text.chunks_exact(2).filter_map(|pair| array(pair, 0));
            let units: Vec<u16> = units.map(u16::from_le_bytes).collect();
            Ok(String::from_utf16_lossy(&units))
        };
        let (key, value) = (text(0, 8)?, text(4, 10)?);
        match key.as_str() {
            "parent_linkage" | "parent_linkage2" => {
                let guid = value.trim_matches(['{', '}']).to_ascii_lowercase();
                found.linkage.push(guid);
            }
            "relative_path" => relative.push(value),
            "absolute_win32_path" => absolute.push(value),
            _ => {}
        }
    }
    found.paths = relative;
    found.paths.append(&mut absolute);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(size: u64, block: u64, sector: u64, has_parent: bool) -> Disk {
        Disk {
            size,
            block,
            sector,
            has_parent,
            fixed: false,
        }
    }

    #[test]
    fn entries_for_sector_bits_stand_between_the_others() {
        // 2^23 sectors of 512 bytes are 128 blocks of 32 MiB.
        let disk = of(10 << 40, 32 << 20, 512, false);
        assert_eq!(disk.chunk_ratio(), 128);
        assert_eq!(disk.bat_index(127), 127);
        assert_eq!(disk.bat_index(128), 129);
        assert_eq!(disk.bitmap_index(127), 128);
        assert_eq!(disk.bitmap_index(128), 257);
        assert_eq!(
            of(128 * (32 << 20), 32 << 20, 512, false).bat_entries(),
            128
        );
        assert_eq!(
            of(129 * (32 << 20), 32 << 20, 512, false).bat_entries(),
            130
        );
        assert_eq!(of(1 << 20, 32 << 20, 512, true).bat_entries(), 129);
        assert_eq!(of(0, 32 << 20, 512, false).bat_entries(), 0);
        assert_eq!(of(1 << 30, 1 << 20, 4096, false).chunk_ratio(), 32768);
    }
}
