//! Hints that are being put together.

use super::inode::{Map, Run};
use crate::ByteRange;

/// Of a directory, this much at once.
const DIRECTORY: u64 = 1 << 20;

/// Places on the volume, in the order in which they were found.
#[derive(Debug)]
pub(super) struct Hints {
    block_size: u64,
    pub(super) ranges: Vec<ByteRange>,
    pub(super) bytes: u64,
}

impl Hints {
    pub(super) fn new(block_size: u64) -> Self {
        Self {
            block_size,
            ranges: Vec::new(),
            bytes: 0,
        }
    }

    /// Bytes of a block of the file system.
    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    /// The blocks of a directory, and those that list more of them.
    pub(super) fn add_map(&mut self, map: &Map) {
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
    pub(super) fn add_part(&mut self, runs: &[Run], skip: u64, len: u64) {
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

    pub(super) fn add(&mut self, range: ByteRange) {
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

pub(super) fn bytes_of(runs: &[Run], block_size: u64) -> u64 {
    let blocks = runs
        .iter()
        .fold(0, |all: u64, run| all.saturating_add(run.len));
    blocks.saturating_mul(block_size)
}
