//! ext2, ext3 and ext4.
//!
//! The kernel reads the group descriptors when it mounts, and inodes by the table block and its
//! neighbours: each such read tells where hundreds of directories and files are. What it reads next
//! of them begins with their first block, or with the node that lists their blocks.

mod follow;
mod hints;
mod inode;
mod known;
mod layout;
mod near;
mod tables;

use follow::Followed;
use hints::{Hints, bytes_of};
use inode::{Inode, Map, Run, node};
use known::{Known, Place};
use layout::{Layout, SUPERBLOCK_AT, SUPERBLOCK_LEN};
use near::Near;
use tables::Tables;

use super::Guide;
use crate::{ByteRange, Volume};

/// Directories whose inodes follow that of one that is read are mostly made in one go with it, as
/// its subdirectories. Short ones are hinted at with it, those of one block or up to `NEAR` bytes,
/// from so many inodes and up to so many bytes: less than what a round trip is worth. Of longer
/// ones, few were ever read.
const NEAR_INODES: u32 = 512;
const NEAR: u64 = 4 << 10;
const NEAR_BYTES: u64 = 256 << 10;
/// Reads up to this length may begin before what is wanted; in longer ones, only what is at the
/// beginning was asked for: the rest was read ahead.
const SHORT: u64 = 32 << 10;
/// A file up to this length in one run is left to whom the hints go to, who may fetch its
/// neighbours too.
const SMALL: u64 = 64 << 10;
/// A file up to this length is hinted at as a whole.
const WHOLE: u64 = 512 << 10;
/// Of a longer one, this much at first.
const BEGINNING: u64 = 256 << 10;
/// Then as much again as there was, up to this much: of files, and of inode tables, which are read
/// in order for a while and then elsewhere.
const FILE_STEP: u64 = 4 << 20;
const TABLE_STEP: u64 = 1 << 20;
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
    tables: Tables,
    known: Known,
    followed: Followed,
    near: Near,
    /// Bytes that were read and hinted at.
    clock: u64,
}

impl Ext4 {
    fn new(layout: Layout) -> Self {
        Self {
            layout,
            tables: Tables::default(),
            known: Known::default(),
            followed: Followed::default(),
            near: Near::default(),
            clock: 0,
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
        if self.known.note_read(ino) {
            self.near.was_read();
        }
        let clock = self.clock;
        match self.known.directory(ino) {
            Some(directory) if !self.is_fresh(directory.told) => hints.add_map(&directory.map),
            _ => return,
        }
        self.known.note_told(ino, clock, false);
        let most_ranges = self.near.most();
        let most = hints.bytes.saturating_add(NEAR_BYTES);
        let mut near = Vec::new();
        let block_size = self.layout.block_size;
        for (ino, directory) in self.known.directories_after(ino, NEAR_INODES) {
            let map = &directory.map;
            let nodes = u64::try_from(map.nodes.len()).unwrap_or(u64::MAX);
            let nodes = nodes.saturating_mul(block_size);
            let bytes = bytes_of(&map.runs, block_size).saturating_add(nodes);
            let all = hints.bytes.saturating_add(bytes);
            if bytes > NEAR.max(block_size) || all > most || self.is_fresh(directory.told) {
                continue;
            }
            let pieces = map.runs.len().saturating_add(map.nodes.len());
            if hints.ranges.len().saturating_add(pieces) > most_ranges {
                break;
            }
            hints.add_map(map);
            near.push(ino);
        }
        self.near.guessed(near.len());
        for ino in near {
            self.known.note_told(ino, clock, true);
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
            self.followed
                .add(runs, told, FILE_STEP, self.layout.block_size);
        }
    }

    /// What goes with a read of an inode table at `block`: what is in use of it is followed. What
    /// never was is not read ahead, wherever the reader is.
    fn table(&mut self, block: u64, range: ByteRange, hints: &mut Hints) {
        let block_size = self.layout.block_size;
        let Some(end) = self.tables.used_until(&self.layout, block) else {
            return;
        };
        let run = Run {
            start: block,
            len: end.saturating_sub(block),
        };
        if !self.followed.reaches(range.start(), block_size) {
            hints.add_part(&[run], 0, range.len());
            self.followed
                .add(vec![run], range.len(), TABLE_STEP, block_size);
        }
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
        self.followed.on(range, &mut hints);
        self.table(first, range, &mut hints);
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
            } else if let Some((group, number)) = self.tables.at(&self.layout, block) {
                self.learn_inodes(group, number, bytes);
            } else if let Some(group) = self.layout.first_group_in(block) {
                self.tables.learn(&self.layout, group, bytes);
            }
        }
        self.clock = self.clock.saturating_add(hints.bytes);
        hints.ranges
    }
}
