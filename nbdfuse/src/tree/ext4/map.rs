//! Where the blocks of a file are: extent trees and the block maps of ext2 and ext3, both read a
//! run at a time.
//!
//! Format: Documentation/filesystems/ext4, "The Contents of inode.i_block".

use fs_ext4::extent::{EXT4_EXT_MAX_DEPTH, EXT4_EXT_NODE_SIZE, Extent, ExtentHeader, ExtentIdx};

use super::inode::Node;
use super::{Ext4, error};
use crate::tree::{FsError, FsResult};

/// Logical block numbers of an extent tree have 32 bits.
const EXTENT_BLOCKS: u64 = 1 << 32;
/// Pointers in an inode that lead straight to data.
const DIRECT: u64 = 12;
/// Bytes of a block pointer in a block map.
const POINTER: u64 = 4;
/// Levels of pointer blocks below an inode: single, double, triple.
const LEVELS: u32 = 3;

/// Neighbouring blocks of a file that are neighbours on disk too, or all missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockRun {
    /// Number of blocks from the one asked for; at least 1.
    pub(super) len: u64,
    /// The first one's place; `None` for a hole, or for blocks that were never written.
    pub(super) start: Option<u64>,
}

/// The run that holds block `block` of a file without inline data.
///
/// # Errors
/// `Corrupt`, or that of the volume.
pub(super) fn run_at(fs: &Ext4, node: &Node, block: u64) -> FsResult<BlockRun> {
    let run = if node.inode.has_extents() {
        extent_run(fs, node, block)?
    } else {
        pointer_run(fs, node, block)?
    };
    if let Some(start) = run.start {
        let end = start.checked_add(run.len);
        // Block 0 holds the superblock, or what comes before it.
        if start == 0 || end.is_none_or(|end| end > fs.blocks_count()) {
            let count = fs.blocks_count();
            return Err(node.corrupt(format!(
                "block {block} is at {start}..+{}, not within the {count} blocks",
                run.len
            )));
        }
    }
    Ok(run)
}

/// Descends at most as many levels as the root claims: a loop in the tree ends as damage.
fn extent_run(fs: &Ext4, node: &Node, block: u64) -> FsResult<BlockRun> {
    let hole_until = |end: u64| BlockRun {
        len: end.saturating_sub(block).max(1),
        start: None,
    };
    let mut bytes = node.inode.block.to_vec();
    let mut depth = None;
    // Where the part of the file ends that this part of the tree maps.
    let mut limit = EXTENT_BLOCKS;
    if block >= limit {
        return Ok(hole_until(u64::MAX));
    }
    loop {
        let (header, entries) = parse_header(node, &bytes)?;
        if header.depth > EXT4_EXT_MAX_DEPTH || depth.is_some_and(|wanted| header.depth != wanted) {
            return Err(node.corrupt(format!("extent node of depth {}", header.depth)));
        }
        if header.depth == 0 {
            let parse = |raw: &[u8]| Ok(Extent::parse(raw).map_err(error)?);
            let (found, next) = last_not_after(entries, block, parse, |e| e.logical_block)?;
            limit = limit.min(next);
            return match found {
                Some(extent) if extent.length == 0 => Err(node.corrupt("extent of no blocks")),
                Some(extent) if extent.contains(block) => {
                    let end = u64::from(extent.logical_block) + u64::from(extent.length);
                    Ok(BlockRun {
                        len: end.min(limit).saturating_sub(block).max(1),
                        start: (!extent.uninitialized).then(|| extent.map(block)),
                    })
                }
                _ => Ok(hole_until(limit)),
            };
        }
        let parse = |raw: &[u8]| Ok(ExtentIdx::parse(raw).map_err(error)?);
        let (found, next) = last_not_after(entries, block, parse, |e| e.logical_block)?;
        limit = limit.min(next);
        let Some(index) = found else {
            return Ok(hole_until(limit));
        };
        depth = Some(header.depth - 1);
        bytes = fs.read_block(index.leaf_block)?;
        let checksum = &fs.inner.csum;
        if !checksum.verify_extent_tail(node.ino, node.inode.generation, &bytes) {
            let at = index.leaf_block;
            return Err(node.corrupt(format!("extent block {at} has a wrong checksum")));
        }
    }
}

/// The header of an extent node and the bytes of its entries.
fn parse_header<'a>(node: &Node, bytes: &'a [u8]) -> FsResult<(ExtentHeader, &'a [u8])> {
    let header = ExtentHeader::parse(bytes).map_err(error)?;
    let len = usize::from(header.entries) * EXT4_EXT_NODE_SIZE;
    let entries = bytes
        .get(EXT4_EXT_NODE_SIZE..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| node.corrupt(format!("extent node of {} entries", header.entries)))?;
    Ok((header, entries))
}

/// The last entry that starts at or before `block`, and where the next one starts.
fn last_not_after<T>(
    entries: &[u8],
    block: u64,
    parse: impl Fn(&[u8]) -> FsResult<T>,
    start: impl Fn(&T) -> u32,
) -> FsResult<(Option<T>, u64)> {
    let mut found = None;
    for raw in entries.chunks_exact(EXT4_EXT_NODE_SIZE) {
        let entry = parse(raw)?;
        let first = u64::from(start(&entry));
        if first > block {
            return Ok((found, first));
        }
        found = Some(entry);
    }
    Ok((found, EXTENT_BLOCKS))
}

fn pointer_run(fs: &Ext4, node: &Node, block: u64) -> FsResult<BlockRun> {
    if block < DIRECT {
        // The first twelve of fifteen pointers; block is below twelve.
        let direct = &node.inode.block[..(DIRECT * POINTER) as usize];
        return Ok(run_in(direct, block as usize));
    }
    let per_block = fs.block_size() / POINTER;
    let mut rest = block - DIRECT;
    let mut span = 1;
    for level in 1..=LEVELS {
        // At most 2^42: three times the 14 bits of a 64 KiB block.
        span *= per_block;
        if rest < span {
            // The pointer of level 1 is the thirteenth.
            let at = (DIRECT as usize + level as usize - 1) * POINTER as usize;
            let root = pointer(&node.inode.block, at);
            return indirect_run(fs, root, span, per_block, rest);
        }
        rest -= span;
    }
    let what = format!("block {block} is beyond what a block map can hold");
    Err(node.corrupt(what))
}

/// `rest` counts from the first block below the pointer block `at`, which maps `span` blocks.
fn indirect_run(
    fs: &Ext4,
    mut at: u64,
    mut span: u64,
    per_block: u64,
    mut rest: u64,
) -> FsResult<BlockRun> {
    loop {
        if at == 0 {
            return Ok(BlockRun {
                len: span - rest,
                start: None,
            });
        }
        let bytes = fs.read_block(at)?;
        span /= per_block;
        // Below per_block, as rest is below span.
        let index = (rest / span) as usize;
        if span == 1 {
            return Ok(run_in(&bytes, index));
        }
        rest %= span;
        at = pointer(&bytes, index * POINTER as usize);
    }
}

/// The run that starts at pointer `index`.
fn run_in(pointers: &[u8], index: usize) -> BlockRun {
    let mut rest = pointers
        .chunks_exact(POINTER as usize)
        .skip(index)
        .map(|raw| pointer(raw, 0));
    let first = rest.next().unwrap_or(0);
    let step = u64::from(first != 0);
    let more = (1..)
        .zip(rest)
        .take_while(|(i, next)| *next == first + i * step);
    BlockRun {
        len: 1 + more.count() as u64,
        start: (first != 0).then_some(first),
    }
}

/// The pointer at byte `at`; 0, a hole, when there is none.
fn pointer(bytes: &[u8], at: usize) -> u64 {
    let raw = bytes.get(at..).and_then(|rest| rest.first_chunk());
    raw.map_or(0, |raw| u64::from(u32::from_le_bytes(*raw)))
}

impl Ext4 {
    /// Block `number`, of metadata.
    pub(super) fn read_block(&self, number: u64) -> FsResult<Vec<u8>> {
        if number >= self.blocks_count() {
            let count = self.blocks_count();
            let what = format!("metadata block {number} is not within the {count} blocks");
            return Err(FsError::corrupt(what));
        }
        // What was replayed is known to the crate only.
        let size = self.inner.sb.block_size();
        let single = (!self.replayed)
            .then(|| {
                self.device
                    .read_block(number.saturating_mul(size.into()), size)
            })
            .flatten();
        match single {
            Some(bytes) => Ok(bytes?),
            None => Ok(self.inner.read_block(number).map_err(error)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(list: &[u32]) -> Vec<u8> {
        list.iter().flat_map(|p| p.to_le_bytes()).collect()
    }

    #[test]
    fn runs_of_pointers_end_where_the_neighbourhood_does() {
        let map = pointers(&[0, 0, 7, 8, 9, 11, 0]);
        let found: Vec<_> = (0..7)
            .map(|i| (run_in(&map, i).len, run_in(&map, i).start))
            .collect();
        let wanted = [
            (2, None),
            (1, None),
            (3, Some(7)),
            (2, Some(8)),
            (1, Some(9)),
            (1, Some(11)),
            (1, None),
        ];
        assert_eq!(found, wanted);
    }
}
