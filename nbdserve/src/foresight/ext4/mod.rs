//! ext2, ext3 and ext4.
//!
//! The kernel reads the group descriptors when it mounts, and inodes by the table block and its
//! neighbours: each such read tells where hundreds of directories and files are. What it reads next
//! of them begins with their first block, or with the node that lists their blocks.

mod inode;
mod known;
mod layout;

use std::collections::{BTreeMap, VecDeque};

use inode::{Inode, Map, Run, node};
use known::{Known, Place};
use layout::{Layout, SUPERBLOCK_AT, SUPERBLOCK_LEN};

use super::Guide;
use crate::{ByteRange, Volume};

/// Inode tables whose places are kept: a file system of 16 TiB has twice as many.
const MOST_TABLES: usize = 1 << 16;
/// Tables that a read is compared with. They do not overlap unless the image lies.
const MOST_OVERLAPS: usize = 4;
/// Of a directory, this much at once.
const DIRECTORY: u64 = 1 << 20;
/// Directories whose inodes follow that of one that is read are mostly made in one go with it, as
/// its subdirectories. Those with at most `NEAR` bytes are hinted at with it, from so many inodes
/// and up to so many bytes: less than what a round trip is worth.
const NEAR_INODES: u32 = 2048;
const NEAR: u64 = 32 << 10;
const NEAR_BYTES: u64 = 256 << 10;
/// What is had at once is one request: that names at most so many ranges.
const NEAR_RANGES: usize = 64;
/// Reads up to this length may begin before what is wanted; in longer ones, only what is at the
/// beginning was asked for: the rest was read ahead.
const SHORT: u64 = 32 << 10;
/// A file up to this length in one run is left to whom the hints go to, who may fetch its
/// neighbours too.
const SMALL: u64 = 64 << 10;
/// A file up to this length is hinted at as a whole.
const WHOLE: u64 = 512 << 10;
/// Of a longer one, this much at first, and then as much again as there was, up to a limit.
const BEGINNING: u64 = 256 << 10;
const STEP: u64 = 4 << 20;
/// Long files that are followed at the same time.
const FOLLOWED: usize = 16;
/// What was hinted at may have gone again when so many bytes have passed.
const STAYS: u64 = 32 << 20;

/// The file system on `volume`, if it is one of these.
pub(super) fn recognise(volume: &Volume) -> Option<Ext4> {
    // An error will be met again by whoever mounts.
    let bytes = volume.read_vec(SUPERBLOCK_AT, SUPERBLOCK_LEN).ok()?;
    Layout::parse(&bytes).map(Ext4::new)
}

/// What is known of one.
#[derive(Debug)]
pub(crate) struct Ext4 {
    layout: Layout,
    /// The first blocks of inode tables, and their groups.
    tables: BTreeMap<u64, u64>,
    known: Known,
    followed: VecDeque<Followed>,
    /// Bytes that were read and hinted at.
    clock: u64,
}

/// A long file that is being read.
#[derive(Debug)]
struct Followed {
    runs: Vec<Run>,
    /// Bytes from its start that were hinted at.
    told: u64,
}

impl Ext4 {
    fn new(layout: Layout) -> Self {
        Self {
            layout,
            tables: BTreeMap::new(),
            known: Known::default(),
            followed: VecDeque::new(),
            clock: 0,
        }
    }

    /// The group whose inode table has `block`, and the block's number in it.
    fn table_at(&self, block: u64) -> Option<(u64, u64)> {
        let len = self.layout.table_blocks();
        let before = self.tables.range(..=block).rev().take(MOST_OVERLAPS);
        let mut found = before.map(|(start, group)| (*group, block.saturating_sub(*start)));
        found.find(|(_, number)| *number < len)
    }

    fn learn_tables(&mut self, first_group: u64, block: &[u8]) {
        for (group, start) in self.layout.tables(first_group, block) {
            if self.tables.len() >= MOST_TABLES {
                return;
            }
            self.tables.insert(start, group);
        }
    }

    fn learn_inodes(&mut self, group: u64, number: u64, block: &[u8]) {
        for (ino, raw) in self.layout.inodes(group, number, block) {
            if let Some(inode) = Inode::parse(raw, self.layout.blocks) {
                self.known.add(ino, inode);
            }
        }
    }

    /// Whether a hint was given at `told` of which something may be left.
    fn is_fresh(&self, told: Option<u64>) -> bool {
        told.is_some_and(|told| self.clock.saturating_sub(told) < STAYS)
    }

    /// What goes with directory `ino`: all of it, and its neighbours.
    fn directory(&mut self, ino: u32, hints: &mut Hints) {
        let clock = self.clock;
        match self.known.directory(ino) {
            Some(directory) if !self.is_fresh(directory.told) => hints.add_map(&directory.map),
            _ => return,
        }
        self.known.note_told(ino, clock);
        let most = hints.bytes.saturating_add(NEAR_BYTES);
        let mut near = Vec::new();
        let block_size = self.layout.block_size;
        for (ino, directory) in self.known.directories_after(ino, NEAR_INODES) {
            let map = &directory.map;
            let blocks = map
                .runs
                .iter()
                .fold(0, |all: u64, run| all.saturating_add(run.len));
            let nodes = u64::try_from(map.nodes.len()).unwrap_or(u64::MAX);
            let bytes = blocks.saturating_add(nodes).saturating_mul(block_size);
            let all = hints.bytes.saturating_add(bytes);
            if bytes > NEAR || all > most || self.is_fresh(directory.told) {
                continue;
            }
            let pieces = map.runs.len().saturating_add(map.nodes.len());
            if hints.ranges.len().saturating_add(pieces) > NEAR_RANGES {
                break;
            }
            hints.add_map(map);
            near.push(ino);
        }
        for ino in near {
            self.known.note_told(ino, clock);
        }
    }

    /// What goes with a regular file whose blocks, or the first of them, are `runs`.
    fn file(&mut self, runs: Vec<Run>, hints: &mut Hints) {
        let len = bytes_of(&runs, self.layout.block_size);
        if runs.len() < 2 && len <= SMALL {
            return;
        }
        let told = if len <= WHOLE { len } else { BEGINNING };
        hints.add_part(&runs, 0, told);
        if told < len {
            self.followed.truncate(FOLLOWED.saturating_sub(1));
            self.followed.push_front(Followed { runs, told });
        }
    }

    /// What comes after that part of a long file that is read.
    fn follow(&mut self, range: ByteRange, hints: &mut Hints) {
        let block_size = self.layout.block_size;
        for file in &mut self.followed {
            // Once half of what was told is read.
            let half = file.told / 2;
            if furthest(&file.runs, range, block_size).is_none_or(|at| at <= half) {
                continue;
            }
            let step = file.told.min(STEP);
            hints.add_part(&file.runs, file.told, step);
            file.told = file.told.saturating_add(step);
        }
        let is_over = |file: &Followed| file.told >= bytes_of(&file.runs, block_size);
        self.followed.retain(|file| !is_over(file));
    }

    /// What a node says that was read: the rest of what goes with its file.
    fn node(&mut self, place: Place, map: Map, hints: &mut Hints) {
        self.known.add_nodes(place.ino, place.is_dir, &map.nodes);
        if place.is_dir {
            hints.add_map(&map);
        } else {
            self.file(map.runs, hints);
        }
    }
}

impl Guide for Ext4 {
    fn asked(&mut self, range: ByteRange) -> Vec<ByteRange> {
        self.clock = self.clock.saturating_add(range.len());
        let mut hints = Hints::new(self.layout.block_size);
        let first = range.start().checked_div(self.layout.block_size);
        let looked = range.len().min(SHORT);
        let end = range.start().saturating_add(looked);
        let end = end.div_ceil(self.layout.block_size);
        let first = first.unwrap_or(end);
        let end = if looked < range.len() {
            first.saturating_add(1)
        } else {
            end
        };
        for block in first..end {
            match self.known.at(block) {
                Some(place) if place.is_dir => self.directory(place.ino, &mut hints),
                Some(place) if place.node.is_none() => {
                    let runs = self.known.file(place.ino).map(|map| map.runs.clone());
                    self.file(runs.unwrap_or_default(), &mut hints);
                }
                _ => {}
            }
        }
        self.follow(range, &mut hints);
        if !hints.ranges.is_empty() {
            // It comes along: by itself it would be a request more.
            hints.add(range);
        }
        self.clock = self.clock.saturating_add(hints.bytes);
        hints.ranges
    }

    fn passed(&mut self, offset: u64, bytes: &[u8]) -> Vec<ByteRange> {
        let mut hints = Hints::new(self.layout.block_size);
        for (block, bytes) in self.layout.blocks_in(offset, bytes) {
            if let Some(place) = self.known.at(block)
                && let Some(sort) = place.node
                && let Some(map) = node(bytes, sort, self.layout.blocks)
            {
                self.node(place, map, &mut hints);
            } else if let Some((group, number)) = self.table_at(block) {
                self.learn_inodes(group, number, bytes);
            } else if let Some(group) = self.layout.first_group_in(block) {
                self.learn_tables(group, bytes);
            }
        }
        self.clock = self.clock.saturating_add(hints.bytes);
        hints.ranges
    }
}

/// Hints that are being put together.
#[derive(Debug)]
struct Hints {
    block_size: u64,
    ranges: Vec<ByteRange>,
    bytes: u64,
}

impl Hints {
    fn new(block_size: u64) -> Self {
        Self {
            block_size,
            ranges: Vec::new(),
            bytes: 0,
        }
    }

    /// The blocks of a directory, and those that list more of them.
    fn add_map(&mut self, map: &Map) {
        for node in &map.nodes {
            let run = Run {
                start: node.block,
                len: 1,
            };
            self.add_part(&[run], 0, self.block_size);
        }
        self.add_part(&map.runs, 0, DIRECTORY);
    }

    /// The `len` bytes from `skip` on of what lies in `runs`.
    fn add_part(&mut self, runs: &[Run], skip: u64, len: u64) {
        let end = skip.saturating_add(len);
        let mut at: u64 = 0;
        for run in runs {
            let bytes = run.len.saturating_mul(self.block_size);
            let from = skip.saturating_sub(at).min(bytes);
            let until = end.saturating_sub(at).min(bytes);
            at = at.saturating_add(bytes);
            let start = run.start.saturating_mul(self.block_size);
            self.add(ByteRange::between(
                start.saturating_add(from),
                start.saturating_add(until),
            ));
        }
    }

    fn add(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        self.bytes = self.bytes.saturating_add(range.len());
        match self.ranges.last_mut() {
            Some(last) if last.end() == range.start() => {
                *last = ByteRange::between(last.start(), range.end());
            }
            _ => self.ranges.push(range),
        }
    }
}

fn bytes_of(runs: &[Run], block_size: u64) -> u64 {
    let blocks = runs
        .iter()
        .fold(0, |all: u64, run| all.saturating_add(run.len));
    blocks.saturating_mul(block_size)
}

/// How far into a file with these runs a read of `range` of the volume goes, in bytes.
fn furthest(runs: &[Run], range: ByteRange, block_size: u64) -> Option<u64> {
    let mut at: u64 = 0;
    let mut most = None;
    for run in runs {
        let start = run.start.saturating_mul(block_size);
        let place = ByteRange::between(start, run.end().saturating_mul(block_size));
        let read = place.intersect(range);
        if !read.is_empty() {
            let end = at.saturating_add(read.end().saturating_sub(start));
            most = most.max(Some(end));
        }
        at = at.saturating_add(place.len());
    }
    most
}
