//! VirtualBox disk images (`.vdi`), dynamic and fixed: a map says where each block of the disk lies.
//!
//! The header is checked at open (`header.rs`); of the block map, the parts that reads need are read
//! then. A snapshot does not say where the image is that it belongs to, and is refused.

mod header;

use std::sync::Arc;

use header::{ENTRY, Entry, Header};

use super::cut::{Farthest, cut_off, noted, piece_end};
use super::mapped::{Map, Mapped, Run};
use super::pages::Pages;
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::bytes::{has, le32};
use crate::{Cx, Result, Volume};

const NAME: &str = "vdi";

/// The layer `vdi`.
pub static VDI: LayerType = LayerType {
    name: NAME,
    summary: "VirtualBox disk image",
    params: &[],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    if !has(sample.head, header::MAGIC_AT, &header::MAGIC) {
        return Verdict::No;
    }
    let magic = "magic 7f 10 da be at 64";
    Verdict::Yes {
        confidence: Confidence::MAGIC,
        evidence: match header::header(sample.head) {
            Ok(header) => {
                let kind = if header.fixed { "fixed" } else { "dynamic" };
                let (blocks, size) = (header.blocks, header.block_size);
                format!("{magic}, {kind}, {blocks} blocks of {size}")
            }
            Err(error) => format!("{magic}, but {error}"),
        },
    }
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let len = below.size().min(u64::try_from(header::HEADER).unwrap_or(0));
    let head = below.read_vec(0, usize::try_from(len).unwrap_or(0))?;
    let header = header::header(&head)?;
    let entries = header.disk_size.div_ceil(header.block_size);
    let map_end = header
        .off_blocks
        .saturating_add(entries.saturating_mul(ENTRY));
    if map_end > below.size() {
        let size = below.size();
        let what = format!("the block map ends at {map_end}, the file at {size}");
        return Err(cut_off(what));
    }
    let map = Vdi {
        header,
        map: Pages::new(below, cx.cache.budget() / INDEX_PART),
    };
    Mapped::volume(NAME, Arc::new(map), None, cx)
}

/// Where the blocks of an image lie.
#[derive(Debug)]
struct Vdi {
    header: Header,
    map: Pages,
}

impl Map for Vdi {
    fn size(&self) -> u64 {
        self.header.disk_size
    }

    fn below(&self) -> Vec<&Volume> {
        vec![self.map.volume()]
    }

    fn run(&self, offset: u64, until: u64) -> Result<Run<'_>> {
        let Header {
            block_size,
            off_blocks,
            off_data,
            disk_size,
            ..
        } = self.header;
        // A power of two, so never zero.
        let number = offset.checked_div(block_size).unwrap_or(0);
        let start = number.saturating_mul(block_size);
        let last = until.saturating_sub(1).checked_div(block_size).unwrap_or(0);
        let wanted = last.saturating_sub(number).saturating_add(1);
        let most = usize::try_from(wanted.saturating_mul(ENTRY)).unwrap_or(usize::MAX);
        let at = off_blocks.saturating_add(number.saturating_mul(ENTRY));
        let (entry, count) = self.map.with(at, 4, most, alike)?;
        let end = start
            .saturating_add(block_size.saturating_mul(count))
            .min(disk_size);
        match entry {
            Entry::Free => Ok(Run::hole(end)),
            Entry::Zero => Ok(Run::zero(end)),
            Entry::Block(stored) => {
                let place = off_data.saturating_add(u64::from(stored).saturating_mul(block_size));
                let at = place.saturating_add(offset.saturating_sub(start));
                let what = format!("block {number} of the disk");
                Run::within(offset, end, self.map.volume(), at, &what)
            }
        }
    }

    fn allocated(&self) -> Option<u64> {
        let all = self.header.allocated.saturating_mul(self.header.block_size);
        Some(all.min(self.map.volume().size()))
    }

    fn notes(&self) -> Vec<String> {
        let size = self.map.volume().size();
        noted(self.farthest(), "block", size).into_iter().collect()
    }
}

impl Vdi {
    /// Which block ends last in the file.
    fn farthest(&self) -> Result<Farthest> {
        let header = &self.header;
        let (len, size) = (header.block_size, header.disk_size);
        let mut farthest = Farthest::new();
        let blocks = (0, size.div_ceil(len));
        farthest.look(&self.map, header.off_blocks, blocks, |number, entry| {
            let Entry::Block(stored) = Entry::of(u32::from_le_bytes(entry)) else {
                return None;
            };
            let at = u64::from(stored).saturating_mul(len);
            let at = header.off_data.saturating_add(at);
            Some(piece_end(at, number, len, size))
        })?;
        Ok(farthest)
    }
}

/// The first entry of `bytes`, and how many from there on say the same of their blocks or lie one after
/// the other.
fn alike(bytes: &[u8]) -> (Entry, u64) {
    let mut entries = (0..bytes.len())
        .step_by(4)
        .map_while(|at| le32(bytes, at).map(Entry::of));
    let first = entries.next().unwrap_or(Entry::Free);
    let mut count = 1_u64;
    let mut last = first;
    for next in entries {
        let goes_on = match (last, next) {
            (Entry::Block(number), Entry::Block(next)) => number.checked_add(1) == Some(next),
            (last, next) => last == next,
        };
        if !goes_on {
            break;
        }
        last = next;
        count = count.saturating_add(1);
    }
    (first, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_go_on_are_one_run() {
        let table = |entries: &[u32]| -> Vec<u8> {
            entries
                .iter()
                .flat_map(|entry| entry.to_le_bytes())
                .collect()
        };
        assert_eq!(alike(&table(&[7, 8, 9, 11])), (Entry::Block(7), 3));
        assert_eq!(alike(&table(&[7, 7])), (Entry::Block(7), 1));
        let free = u32::MAX;
        assert_eq!(alike(&table(&[free, free, 1])), (Entry::Free, 2));
        assert_eq!(alike(&table(&[free, free - 1])), (Entry::Free, 1));
        // The largest number of a block is no neighbour of the marks behind it.
        let last = free - 2;
        assert_eq!(alike(&table(&[last, free - 1])), (Entry::Block(last), 1));
    }
}
