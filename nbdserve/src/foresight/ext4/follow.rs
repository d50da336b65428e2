//! What is read from its beginning on and too long to be had at once: files, and inode tables.

use std::collections::VecDeque;

use super::hints::{Hints, bytes_of};
use super::inode::Run;
use crate::ByteRange;

/// How many are followed at the same time.
const MOST: usize = 16;
/// A read this far behind what was told still goes on with it: requests come in any order.
const SLACK: u64 = 256 << 10;

/// The latest first.
#[derive(Debug, Default)]
pub(super) struct Followed {
    all: VecDeque<Long>,
}

/// Something long that is being read.
#[derive(Debug)]
struct Long {
    runs: Vec<Run>,
    /// Bytes of it.
    len: u64,
    /// Bytes from its start that were hinted at.
    told: u64,
    /// The most to hint at at once.
    step: u64,
}

impl Long {
    /// All of it was hinted at.
    fn is_over(&self) -> bool {
        self.told >= self.len
    }
}

impl Followed {
    /// What lies in `runs`, of which the first `told` bytes were hinted at; the others will be, at
    /// most `step` bytes at once.
    pub(super) fn add(&mut self, runs: Vec<Run>, told: u64, step: u64, block_size: u64) {
        if self.all.len() >= MOST {
            // One that was told whole is only there to be recognised.
            let over = self.all.iter().rposition(Long::is_over);
            self.all.remove(over.unwrap_or(MOST.saturating_sub(1)));
        }
        let len = bytes_of(&runs, block_size);
        self.all.push_front(Long {
            runs,
            len,
            told,
            step,
        });
    }

    /// Whether byte `at` of the volume is in, or soon will be, what was hinted at of something that
    /// lies in one run.
    pub(super) fn reaches(&self, at: u64, block_size: u64) -> bool {
        self.all.iter().any(|long| {
            let [run] = long.runs.as_slice() else {
                return false;
            };
            let start = run.start.saturating_mul(block_size);
            let end = start.saturating_add(long.told).saturating_add(SLACK);
            (start..end).contains(&at)
        })
    }

    /// What comes after `range` in what it is a part of: as much again as was told, once half of
    /// that is read.
    pub(super) fn on(&mut self, range: ByteRange, hints: &mut Hints) {
        let block_size = hints.block_size();
        for long in &mut self.all {
            let half = long.told / 2;
            if long.is_over() || furthest(&long.runs, range, block_size).is_none_or(|at| at <= half)
            {
                continue;
            }
            let step = long.told.min(long.step);
            hints.add_part(&long.runs, long.told, step);
            long.told = long.told.saturating_add(step);
        }
    }
}

/// How far into what lies in `runs` a read of `range` of the volume goes, in bytes.
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
