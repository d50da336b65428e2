//! VHD images (`.vhd`) of Virtual PC, Hyper-V, Azure and Xen: fixed, dynamic and differencing.
//!
//! A fixed one is the disk with a footer behind it. In the others a table says where each block of
//! the disk lies; before each block a bitmap has a bit for each of its sectors, which matters to a
//! differencing one only: what lies not here lies in the parent, another file.

mod header;
mod parent;

use std::sync::Arc;

use header::{DYNAMIC, DiskType, Dynamic, FOOTER, Footer, SECTOR};

use super::bitmap::{self, First};
use super::cut::{Farthest, cut_off, noted, piece_end};
use super::mapped::{Map, Mapped, Run};
use super::pages::{PageCache, Pages};
use super::window::Window;
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::bytes::{be32, slice};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "vhd";
/// Bytes of an entry of the block allocation table.
const ENTRY: u64 = 4;
/// An entry for a block that was never written.
const UNUSED: u32 = u32::MAX;

/// The layer `vhd`.
pub static VHD: LayerType = LayerType {
    name: NAME,
    summary: "disk image of Virtual PC, Hyper-V, Azure, Xen (VHD)",
    params: &[],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    let tail = sample.tail.and_then(|tail| {
        let at = tail.len().checked_sub(usize::try_from(FOOTER).ok()?)?;
        tail.get(at..)
    });
    let tail = tail.filter(|tail| header::is_footer(tail));
    let (bytes, place) = match tail {
        Some(tail) => (tail, "512 bytes before the end"),
        None if sample.head.starts_with(header::COOKIE) => (sample.head, "at 0"),
        None => return Verdict::No,
    };
    let magic = format!("magic conectix {place}");
    match header::footer(bytes) {
        Ok(footer) => Verdict::Yes {
            confidence: Confidence::CHECKED,
            evidence: match footer.disk_type {
                DiskType::Fixed => format!("{magic}, fixed"),
                DiskType::Dynamic => format!("{magic}, dynamic"),
                DiskType::Differencing => format!("{magic}, differencing"),
            },
        },
        Err(error) => Verdict::Yes {
            confidence: Confidence::MAGIC,
            evidence: format!("{magic}, but {error}"),
        },
    }
}

/// What is wrong with the footer of what would be a fixed image otherwise, and bytes of the disk before it.
pub(crate) fn damaged_footer(sample: &Sample<'_>) -> Option<(Error, u64)> {
    let damage = header::damage(sample.tail?)?;
    Some((damage, sample.size.saturating_sub(FOOTER)))
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let cache = PageCache::new(cx.cache.budget() / INDEX_PART);
    open_disk(below, &cache, cx).map(|(volume, _)| volume)
}

/// The disk in `below`, and what identifies it.
fn open_disk(below: &Volume, cache: &PageCache, cx: &Cx) -> Result<(Volume, [u8; 16])> {
    let (footer, note) = read_footer(below)?;
    let id = footer.unique_id;
    if footer.disk_type == DiskType::Fixed {
        let room = below.size().saturating_sub(FOOTER);
        if footer.size > room {
            let size = footer.size;
            let what = format!("a fixed disk of {size} bytes in a file with room for {room}");
            return Err(cut_off(what));
        }
        let range = ByteRange::between(0, footer.size);
        return Ok((Window::read_only(NAME.to_owned(), below, range)?, id));
    }
    let dynamic = read_dynamic(below, &footer)?;
    let parent = match footer.disk_type {
        DiskType::Differencing => Some(parent::open(below, &dynamic, cache, cx)?),
        _ => None,
    };
    let map = Vhd {
        size: footer.size,
        bitmap_len: dynamic.bitmap_len(),
        dynamic,
        pages: cache.pages(below),
        parent,
        note,
    };
    Ok((Mapped::volume(NAME, Arc::new(map), None, cx)?, id))
}

/// The footer; its copy at the start when there is none at the end, or a damaged one, with what is to be
/// said of that.
fn read_footer(below: &Volume) -> Result<(Footer, Option<String>)> {
    let len = usize::try_from(FOOTER.min(below.size())).unwrap_or(0);
    let at = below.size().saturating_sub(FOOTER);
    let last = header::footer(&below.read_vec(at, len)?);
    let error = match last {
        Ok(footer) => return Ok((footer, None)),
        Err(error) => error,
    };
    let first = header::footer(&below.read_vec(0, len)?);
    match first {
        Ok(footer) => {
            let note = match error.kind() {
                Kind::NotThisFormat => {
                    "there is no footer at the end: its copy at the start is used".to_owned()
                }
                _ => format!("the footer at {at} is not used, but its copy at 0: {error}"),
            };
            tracing::warn!("{NAME}: {note}");
            Ok((footer, Some(note)))
        }
        // What is wrong with the one that is there.
        Err(first) if error.kind() == Kind::NotThisFormat => Err(first),
        Err(_) => Err(error),
    }
}

fn read_dynamic(below: &Volume, footer: &Footer) -> Result<Dynamic> {
    let size = below.size();
    let at = footer.data_offset;
    let inside = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= size);
    if !inside(at, DYNAMIC) {
        let what = format!("the dynamic disk header at {at} is not within the {size} bytes");
        return Err(cut_off(what));
    }
    let bytes = below.read_vec(at, usize::try_from(DYNAMIC).unwrap_or(0))?;
    let dynamic = header::dynamic(&bytes, footer.size)?;
    let table = footer
        .size
        .div_ceil(dynamic.block_size)
        .saturating_mul(ENTRY);
    if !inside(dynamic.table_offset, table) {
        let at = dynamic.table_offset;
        let what =
            format!("a block allocation table of {table} bytes at {at}, the file has {size}");
        return Err(cut_off(what));
    }
    Ok(dynamic)
}

/// Where the blocks of a dynamic or differencing disk lie.
#[derive(Debug)]
struct Vhd {
    size: u64,
    dynamic: Dynamic,
    bitmap_len: u64,
    /// The table and the bitmaps.
    pages: Pages,
    parent: Option<Volume>,
    /// What is to be said of the footer.
    note: Option<String>,
}

impl Vhd {
    /// Which block ends last in the file.
    fn farthest(&self) -> Result<Farthest> {
        let Dynamic {
            block_size,
            table_offset,
            ..
        } = self.dynamic;
        let mut farthest = Farthest::new();
        let blocks = (0, self.size.div_ceil(block_size));
        farthest.look(&self.pages, table_offset, blocks, |number, entry| {
            let sector = Some(u32::from_be_bytes(entry)).filter(|entry| *entry != UNUSED)?;
            let at = u64::from(sector).saturating_mul(SECTOR);
            let data = at.saturating_add(self.bitmap_len);
            Some(piece_end(data, number, block_size, self.size))
        })?;
        Ok(farthest)
    }

    /// What the sectors of a block are, whose bitmap lies at `bitmap`, from `offset` (in the disk) on.
    fn sectors(&self, start: u64, offset: u64, end: u64, bitmap: u64) -> Result<Run<'_>> {
        let below = self.pages.volume();
        let skip = offset.saturating_sub(start);
        let at = bitmap.saturating_add(self.bitmap_len).saturating_add(skip);
        let number = start.checked_div(self.dynamic.block_size).unwrap_or(0);
        let Some(parent) = &self.parent else {
            // Sectors of a new block are zero until they are written: no need to look at the bits.
            return Run::within(offset, end, below, at, &format!("block {number}"));
        };
        let sector = skip.checked_div(SECTOR).unwrap_or(0);
        let byte = bitmap.saturating_add(sector >> 3);
        let first = usize::try_from(sector & 7).unwrap_or(0);
        let left = self.bitmap_len.saturating_sub(sector >> 3);
        let most = usize::try_from(left).unwrap_or(1);
        let (here, count) = self.pages.with(byte, 1, most, |bits| {
            bitmap::alike(bits, first, First::Highest)
        })?;
        let until = sector.saturating_add(count).saturating_mul(SECTOR);
        let end = start.saturating_add(until).min(end);
        if here {
            Run::within(offset, end, below, at, &format!("block {number}"))
        } else {
            Ok(Run::of_parent(offset, end, parent))
        }
    }
}

impl Map for Vhd {
    fn size(&self) -> u64 {
        self.size
    }

    fn below(&self) -> Vec<&Volume> {
        let own = [self.pages.volume()];
        own.into_iter().chain(&self.parent).collect()
    }

    fn run(&self, offset: u64, until: u64) -> Result<Run<'_>> {
        let block = self.dynamic.block_size;
        // A power of two, so never zero.
        let number = offset.checked_div(block).unwrap_or(0);
        let start = number.saturating_mul(block);
        let at = self
            .dynamic
            .table_offset
            .saturating_add(number.saturating_mul(ENTRY));
        let blocks = until.saturating_sub(start).div_ceil(block);
        let most = usize::try_from(blocks.saturating_mul(ENTRY)).unwrap_or(usize::MAX);
        let (entry, unused) = self.pages.with(at, 4, most, first_entry)?;
        if entry == UNUSED {
            let end = start.saturating_add(unused.saturating_mul(block));
            let end = end.min(self.size);
            return Ok(match &self.parent {
                Some(parent) => Run::of_parent(offset, end, parent),
                None => Run::hole(end),
            });
        }
        let bitmap = u64::from(entry).saturating_mul(SECTOR);
        if bitmap < FOOTER {
            let what = format!("block {number} lies at {bitmap}, in the header");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let end = start.saturating_add(block).min(self.size);
        self.sectors(start, offset, end, bitmap)
    }

    fn allocated(&self) -> Option<u64> {
        let parent = self.parent.as_ref().map_or(Some(0), |parent| {
            parent.stored(ByteRange::between(0, parent.size()))
        });
        Some(self.pages.volume().size().saturating_add(parent?))
    }

    fn notes(&self) -> Vec<String> {
        let cut = noted(self.farthest(), "block", self.pages.volume().size());
        let own = self.note.iter().cloned().chain(cut);
        let parent = self.parent.iter().flat_map(Volume::notes);
        own.chain(parent.map(|note| format!("parent: {note}")))
            .collect()
    }
}

/// The first entry of `bytes`, and how many from there on are unused.
fn first_entry(bytes: &[u8]) -> (u32, u64) {
    let first = be32(bytes, 0).unwrap_or(UNUSED);
    let entries = (0..bytes.len()).step_by(4);
    let unused = entries.take_while(|at| slice(bytes, *at, 4) == Some(&[0xff; 4]));
    (first, u64::try_from(unused.count()).unwrap_or(0))
}
