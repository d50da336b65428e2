//! VHDX images of Hyper-V (MS-VHDX): dynamic, fixed and differencing.
//!
//! Two headers say where the log is (`header.rs`); what that has to say is laid over the file, which is
//! not touched (`log.rs`, `overlay.rs`). Then a table says where the regions are: one with the
//! metadata (`metadata.rs`), one with a table that says where each block of the disk is. Of a block of
//! a differencing disk some sectors may be in the parent, another file (`parent.rs`).

mod crc32c;
mod header;
mod log;
mod metadata;
mod overlay;
mod parent;

use std::sync::Arc;

use header::{HEADERS, Header, MIB, Regions, TABLE, TABLES, corrupt};
use metadata::{Disk, Item};
use overlay::Overlay;

use super::bitmap::{self, First};
use super::cut::{Farthest, cut_off, noted, piece_end};
use super::mapped::{Map, Mapped, Run};
use super::pages::{PageCache, Pages};
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "vhdx";
/// Bytes of an entry of the block allocation table.
const ENTRY: u64 = 8;
/// Bytes of a block of sector bits.
const BITMAP: u64 = MIB;

/// The layer `vhdx`.
pub static VHDX: LayerType = LayerType {
    name: NAME,
    summary: "disk image of Hyper-V (VHDX)",
    params: &[],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    if !sample.head.starts_with(header::MAGIC) {
        return Verdict::No;
    }
    Verdict::Yes {
        confidence: Confidence::MAGIC,
        evidence: "magic vhdxfile at 0".to_owned(),
    }
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let cache = PageCache::new(cx.cache.budget() / INDEX_PART);
    open_disk(below, &cache, cx).map(|(volume, _)| volume)
}

/// The disk in `below`, and what its contents are known by.
fn open_disk(below: &Volume, cache: &PageCache, cx: &Cx) -> Result<(Volume, [u8; 16])> {
    let magic = read(below, 0, header::MAGIC.len())?;
    if magic != header::MAGIC {
        let what = "the magic of a VHDX is not there";
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    let header = read_header(below)?;
    let file = replayed(below, &header, cx)?;
    let regions = read_regions(&file)?;
    let (disk, locator) = read_metadata(&file, &regions)?;
    let entries = disk.bat_entries().saturating_mul(ENTRY);
    if entries > regions.bat.len {
        let len = regions.bat.len;
        let what = format!("a block allocation table of {len} bytes, the disk takes {entries}");
        return Err(corrupt(what));
    }
    let parent = match locator {
        Some(locator) => Some(parent::open(&locator, cache, cx)?),
        None => None,
    };
    let map = Vhdx {
        disk,
        bat: regions.bat.at,
        pages: cache.pages(&file),
        parent,
    };
    let volume = Mapped::volume(NAME, Arc::new(map), None, cx)?;
    Ok((volume, header.data_write))
}

/// The `len` bytes at `at`, fewer where the file ends.
fn read(file: &Volume, at: u64, len: usize) -> Result<Vec<u8>> {
    let at = at.min(file.size());
    let left = usize::try_from(file.size().saturating_sub(at)).unwrap_or(usize::MAX);
    file.read_vec(at, len.min(left))
}

fn read_header(below: &Volume) -> Result<Header> {
    let mut both = Vec::new();
    for at in HEADERS {
        both.push(header::header(&read(below, at, header::HEADER)?, at));
    }
    let (Some(second), Some(first)) = (both.pop(), both.pop()) else {
        return Err(corrupt("there is no header"));
    };
    for damaged in [&first, &second]
        .into_iter()
        .filter_map(|one| one.as_ref().err())
    {
        tracing::warn!("{NAME}: {damaged}");
    }
    header::newer(first, second)
}

/// The file with what its log says.
fn replayed(below: &Volume, header: &Header, cx: &Cx) -> Result<Volume> {
    if header.log == [0; 16] {
        return Ok(below.clone());
    }
    let (at, len, size) = (header.log_at, header.log_len, below.size());
    let inside = at.checked_add(len).is_some_and(|end| end <= size);
    if !inside || len == 0 || at < MIB || !at.is_multiple_of(MIB) || !len.is_multiple_of(MIB) {
        let what = format!("a log of {len} bytes at {at} of a file of {size} bytes");
        return Err(corrupt(what));
    }
    let most = log::LONGEST.min(cx.cache.budget());
    if len > most {
        let what = format!("a log of {len} bytes, {most} are looked at");
        return Err(Error::new(Kind::Limit, what));
    }
    let log = read(below, at, usize::try_from(len).unwrap_or(0))?;
    let replay = log::replay(&log, header.log)?;
    if replay.flushed > size {
        let flushed = replay.flushed;
        let what =
            format!("the file had {flushed} bytes when its log was written, now it has {size}");
        return Err(cut_off(what));
    }
    let count = replay.changes.len();
    tracing::info!("{NAME}: the log is replayed in memory, {count} changes");
    Mapped::volume(NAME, Arc::new(Overlay::new(below, replay)), None, cx)
}

fn read_regions(file: &Volume) -> Result<Regions> {
    let [first, second] = TABLES;
    let read = |at| header::regions(&read(file, at, TABLE)?, at, file.size());
    match read(first) {
        Err(error) if error.kind() == Kind::Corrupt => match read(second) {
            Ok(regions) => {
                tracing::warn!("{NAME}: the copy of the region table is used: {error}");
                Ok(regions)
            }
            Err(_) => Err(error),
        },
        other => other,
    }
}

fn read_metadata(file: &Volume, regions: &Regions) -> Result<(Disk, Option<metadata::Locator>)> {
    let region = regions.metadata;
    let entries = metadata::table(&read(file, region.at, TABLE)?, region.len)?;
    let item = |item: Item| -> Result<Option<Vec<u8>>> {
        let Some(entry) = entries.iter().find(|entry| entry.item == item) else {
            return Ok(None);
        };
        let len = usize::try_from(entry.len).unwrap_or(0);
        read(file, region.at.saturating_add(entry.at), len).map(Some)
    };
    let need = |wanted: Item| {
        item(wanted)?.ok_or_else(|| corrupt(format!("the metadata has no item {wanted:?}")))
    };
    let disk = metadata::disk(
        &need(Item::FileParameters)?,
        &need(Item::DiskSize)?,
        &need(Item::LogicalSector)?,
    )?;
    let locator = match disk.has_parent {
        true => Some(metadata::locator(&need(Item::ParentLocator)?)?),
        false => None,
    };
    Ok((disk, locator))
}

/// Puts the right checksum into a structure.
#[cfg(feature = "testing")]
pub(crate) fn mend(structure: &mut [u8]) {
    let sum = crc32c::of_structure(structure);
    if let Some(place) = structure.get_mut(4..8) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

/// What the table says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the parent, or nowhere.
    NotPresent,
    /// Whatever is there, it counts as nothing.
    Hole,
    Zero,
    Present(u64),
    /// Some of its sectors.
    Partly(u64),
    /// A state that the format does not define.
    Unknown(u64),
}

impl State {
    fn of(entry: u64) -> Self {
        let at = entry & !(MIB - 1);
        match entry & 7 {
            0 => Self::NotPresent,
            1 | 3 => Self::Hole,
            2 => Self::Zero,
            6 => Self::Present(at),
            7 => Self::Partly(at),
            other => Self::Unknown(other),
        }
    }
}

/// Where the blocks of a disk lie.
#[derive(Debug)]
struct Vhdx {
    disk: Disk,
    /// Where the block allocation table lies.
    bat: u64,
    /// That and the blocks of sector bits.
    pages: Pages,
    parent: Option<Volume>,
}

impl Vhdx {
    /// Which block ends last in the file.
    fn farthest(&self) -> Result<Farthest> {
        let Disk { block, size, .. } = self.disk;
        let ratio = self.disk.chunk_ratio();
        let blocks = size.div_ceil(block);
        let mut farthest = Farthest::new();
        let mut first = 0_u64;
        // Behind the entries of a chunk there is one for its sector bits.
        while first < blocks && farthest.spend(ENTRY) {
            let count = ratio.min(blocks.saturating_sub(first)).max(1);
            let at = self.entry_at(self.disk.bat_index(first));
            farthest.look(&self.pages, at, (first, count), |number, entry| {
                let (State::Present(at) | State::Partly(at)) = State::of(u64::from_le_bytes(entry))
                else {
                    return None;
                };
                Some(piece_end(at, number, block, size))
            })?;
            first = first.saturating_add(count);
        }
        Ok(farthest)
    }

    fn absent(&self, offset: u64, end: u64) -> Run<'_> {
        match &self.parent {
            Some(parent) => Run::of_parent(offset, end, parent),
            None => Run::hole(end),
        }
    }

    fn entry_at(&self, index: u64) -> u64 {
        self.bat.saturating_add(index.saturating_mul(ENTRY))
    }

    /// A block is stored here, where no header is.
    fn stored(&self, offset: u64, start: u64, end: u64, at: u64) -> Result<Run<'_>> {
        let number = start.checked_div(self.disk.block).unwrap_or(0);
        if at < MIB {
            let what = format!("block {number} lies at {at}, in the header");
            return Err(corrupt(what));
        }
        let at = at.saturating_add(offset.saturating_sub(start));
        Run::within(
            offset,
            end,
            self.pages.volume(),
            at,
            &format!("block {number}"),
        )
    }

    /// The sectors from `offset` on of a block of which only some are here.
    fn partly(&self, offset: u64, start: u64, end: u64, at: u64) -> Result<Run<'_>> {
        let number = start.checked_div(self.disk.block).unwrap_or(0);
        if self.parent.is_none() {
            let what = format!("block {number} is partly present, in a disk without a parent");
            return Err(corrupt(what));
        }
        let index = self.disk.bitmap_index(number);
        let entry = u64::from_le_bytes(self.pages.array(self.entry_at(index))?);
        let State::Present(bitmap) = State::of(entry) else {
            let what = format!("the sector bits of block {number} are not there");
            return Err(corrupt(what));
        };
        let sectors_of_chunk = BITMAP << 3;
        let sector = offset.checked_div(self.disk.sector).unwrap_or(0);
        let bit = sector.checked_rem(sectors_of_chunk).unwrap_or(0);
        let most = usize::try_from(BITMAP.saturating_sub(bit >> 3)).unwrap_or(1);
        let first = usize::try_from(bit & 7).unwrap_or(0);
        let (here, count) = self
            .pages
            .with(bitmap.saturating_add(bit >> 3), 1, most, |bits| {
                bitmap::alike(bits, first, First::Lowest)
            })?;
        let until = sector.saturating_add(count);
        let end = until.saturating_mul(self.disk.sector).min(end);
        match here {
            true => self.stored(offset, start, end, at),
            false => Ok(self.absent(offset, end)),
        }
    }
}

impl Map for Vhdx {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn below(&self) -> Vec<&Volume> {
        let own = [self.pages.volume()];
        own.into_iter().chain(&self.parent).collect()
    }

    fn run(&self, offset: u64, until: u64) -> Result<Run<'_>> {
        let Disk { block, size, .. } = self.disk;
        // A power of two, so never zero.
        let number = offset.checked_div(block).unwrap_or(0);
        let start = number.saturating_mul(block);
        let ratio = self.disk.chunk_ratio();
        let left = ratio.saturating_sub(number.checked_rem(ratio).unwrap_or(0));
        let wanted = until.saturating_sub(start).div_ceil(block).min(left);
        let most = usize::try_from(wanted.saturating_mul(ENTRY)).unwrap_or(usize::MAX);
        let at = self.entry_at(self.disk.bat_index(number));
        let (state, count) = self.pages.with(at, 8, most, alike)?;
        let end = start.saturating_add(count.saturating_mul(block)).min(size);
        match state {
            State::NotPresent => Ok(self.absent(offset, end)),
            State::Hole => Ok(Run::hole(end)),
            State::Zero => Ok(Run::zero(end)),
            State::Present(at) => self.stored(offset, start, end, at),
            State::Partly(at) => self.partly(offset, start, end, at),
            State::Unknown(state) => {
                let what = format!("block {number} is in state {state}, which is none");
                Err(corrupt(what))
            }
        }
    }

    fn allocated(&self) -> Option<u64> {
        let own = self.pages.volume().size().saturating_sub(MIB);
        let own = match self.disk.fixed {
            true => self.pages.volume().stored(ByteRange::between(0, own))?,
            false => own,
        };
        let parent = self.parent.as_ref().map_or(Some(0), |parent| {
            parent.stored(ByteRange::between(0, parent.size()))
        });
        Some(own.saturating_add(parent?))
    }

    fn notes(&self) -> Vec<String> {
        let cut = noted(self.farthest(), "block", self.pages.volume().size());
        let parent = self.parent.iter().flat_map(Volume::notes);
        let parent = parent.map(|note| format!("parent: {note}"));
        cut.into_iter().chain(parent).collect()
    }
}

/// The first entry of `bytes`, and how many from there on say the same, where none says where a block
/// lies.
fn alike(bytes: &[u8]) -> (State, u64) {
    let mut entries = bytes
        .chunks_exact(8)
        .filter_map(|entry| entry.try_into().ok())
        .map(|entry| State::of(u64::from_le_bytes(entry)));
    let first = entries.next().unwrap_or(State::NotPresent);
    let count = match first {
        State::NotPresent | State::Hole | State::Zero => {
            entries.take_while(|next| *next == first).count()
        }
        _ => 0,
    };
    (first, u64::try_from(count).unwrap_or(0).saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_without_a_place_are_counted() {
        let table = |entries: &[u64]| -> Vec<u8> {
            entries
                .iter()
                .flat_map(|entry| entry.to_le_bytes())
                .collect()
        };
        assert_eq!(alike(&table(&[0, 0, 1])), (State::NotPresent, 2));
        assert_eq!(alike(&table(&[3, 1, 2])), (State::Hole, 2));
        let at = 5 << 20;
        assert_eq!(alike(&table(&[at | 6, at | 6])), (State::Present(at), 1));
        assert_eq!(alike(&table(&[at | 7])), (State::Partly(at), 1));
        assert_eq!(alike(&table(&[4])), (State::Unknown(4), 1));
    }
}
