//! Pure reading of where the blocks of a file are: inodes, extent nodes and pointer blocks.
//!
//! Format: Documentation/filesystems/ext4, "The Contents of inode.i_block". What makes no sense is
//! left out.

use super::layout::wide;
use crate::bytes::{le16, le32, slice};

/// `i_mode`: the type.
const TYPE: u16 = 0xf000;
const DIRECTORY: u16 = 0x4000;
const REGULAR: u16 = 0x8000;
/// `i_flags`.
const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;
/// `i_block`: its place and its bytes.
const MAP_AT: usize = 40;
const MAP_LEN: usize = 60;
/// `eh_magic`.
const EXTENT_MAGIC: u16 = 0xf30a;
/// Bytes of an extent node's header and of each entry.
const ENTRY: usize = 12;
/// `eh_depth` is no larger.
const MOST_DEPTH: u16 = 5;
/// An extent that is longer was allocated and never written: it is not read.
const MOST_WRITTEN: u16 = 32768;
/// Pointers in an inode that lead straight to data, and bytes of each.
const DIRECT: usize = 12;
const POINTER: usize = 4;
/// Runs and nodes that are taken from one node. A directory is hinted at up to fewer bytes.
const MOST_RUNS: usize = 512;

/// Blocks side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    /// At least 1.
    pub(crate) len: u64,
}

/// A block that says where further blocks of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) block: u64,
    pub(crate) sort: Sort,
}

/// How such a block is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Of an extent tree: so many levels of nodes are below.
    Extents(u16),
    /// Pointers, with so many levels of pointer blocks below.
    Pointers(u16),
}

/// What an inode or a node says of where things are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    /// In the order of the file.
    pub(crate) runs: Vec<Run>,
    pub(crate) nodes: Vec<Node>,
}

/// A directory or a regular file with blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) is_dir: bool,
    pub(crate) map: Map,
}

impl Inode {
    /// From the bytes of an inode on a file system of `blocks` blocks. `None` for what is neither,
    /// is not in use, or has no blocks.
    pub(crate) fn parse(raw: &[u8], blocks: u64) -> Option<Self> {
        let is_dir = match le16(raw, 0)? & TYPE {
            DIRECTORY => true,
            REGULAR => false,
            _ => return None,
        };
        let (links, flags) = (le16(raw, 26)?, le32(raw, 32)?);
        if links == 0 || flags & INLINE_DATA != 0 {
            return None;
        }
        let area = slice(raw, MAP_AT, MAP_LEN)?;
        let map = if flags & EXTENTS != 0 {
            extents(area, None, blocks)?
        } else {
            pointers_of_inode(area, blocks)?
        };
        let has_blocks = !map.runs.is_empty() || !map.nodes.is_empty();
        has_blocks.then_some(Self { is_dir, map })
    }
}

/// What the block of a node says.
pub(crate) fn node(bytes: &[u8], sort: Sort, blocks: u64) -> Option<Map> {
    match sort {
        Sort::Extents(depth) => extents(bytes, Some(depth), blocks),
        Sort::Pointers(0) => Some(Map {
            runs: pointers(bytes, blocks),
            nodes: Vec::new(),
        }),
        Sort::Pointers(level) => {
            let below = Sort::Pointers(level.checked_sub(1)?);
            let listed = bytes.chunks_exact(POINTER).filter_map(|raw| le32(raw, 0));
            let listed = listed.map(u64::from).filter(|block| *block != 0);
            let nodes = listed.filter_map(|block| Node::new(block, below, blocks));
            Some(Map {
                runs: Vec::new(),
                nodes: nodes.take(MOST_RUNS).collect(),
            })
        }
    }
}

/// A node of an extent tree with `depth` levels below it; the root may have any number.
fn extents(bytes: &[u8], depth: Option<u16>, blocks: u64) -> Option<Map> {
    let (count, found) = (le16(bytes, 2)?, le16(bytes, 6)?);
    let fits = depth.is_none_or(|depth| depth == found) && found <= MOST_DEPTH;
    if le16(bytes, 0)? != EXTENT_MAGIC || !fits {
        return None;
    }
    let mut map = Map::default();
    let entries = bytes.chunks_exact(ENTRY).skip(1);
    for raw in entries.take(usize::from(count).min(MOST_RUNS)) {
        if let Some(below) = found.checked_sub(1) {
            let block = wide(le32(raw, 4)?, le16(raw, 8)?.into());
            map.nodes
                .extend(Node::new(block, Sort::Extents(below), blocks));
        } else {
            let len = le16(raw, 4)?;
            let start = wide(le32(raw, 8)?, le16(raw, 6)?.into());
            if len <= MOST_WRITTEN {
                map.runs.extend(Run::new(start, len.into(), blocks));
            }
        }
    }
    Some(map)
}

fn pointers_of_inode(area: &[u8], blocks: u64) -> Option<Map> {
    let (direct, indirect) = area.split_at_checked(DIRECT.checked_mul(POINTER)?)?;
    let roots = indirect
        .chunks_exact(POINTER)
        .filter_map(|raw| le32(raw, 0));
    let nodes = (0..).zip(roots).filter(|(_, block)| *block != 0);
    let nodes =
        nodes.filter_map(|(level, block)| Node::new(block.into(), Sort::Pointers(level), blocks));
    Some(Map {
        runs: pointers(direct, blocks),
        nodes: nodes.collect(),
    })
}

/// The runs of a list of pointers to data.
fn pointers(list: &[u8], blocks: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let listed = list.chunks_exact(POINTER).filter_map(|raw| le32(raw, 0));
    for run in listed.filter_map(|block| Run::new(block.into(), 1, blocks)) {
        match runs.last_mut() {
            Some(last) if last.end() == run.start => last.len = last.len.saturating_add(1),
            _ => runs.push(run),
        }
        if runs.len() >= MOST_RUNS {
            break;
        }
    }
    runs
}

impl Run {
    /// `None` for what is not on the file system; block 0 is before everything.
    fn new(start: u64, len: u64, blocks: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (start > 0 && len > 0 && end <= blocks).then_some(Self { start, len })
    }

    /// One past its last block.
    pub(crate) fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

impl Node {
    fn new(block: u64, sort: Sort, blocks: u64) -> Option<Self> {
        (block > 0 && block < blocks).then_some(Self { block, sort })
    }
}
