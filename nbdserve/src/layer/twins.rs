//! Blocks whose encoded bytes are those of a block that was found to be zero: they decode to the
//! same, so nobody has to decode them. A disk that is mostly empty has thousands of them.
//!
//! What shrank as much and was found to be data tells something as well: zeroes would have become
//! shorter.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::decoded::Layout;

/// A zero block is encoded in a few KiB; longer ones are not remembered.
const LONGEST: u64 = 64 << 10;
/// So many are remembered: mostly there is one, and the last block is shorter.
const MOST: usize = 8;

/// A block of zeroes may be encoded in so many bytes more than one of another byte: how a coder ends
/// depends on the byte, and what stands around the data is filled up to words.
const SLACK: u64 = 4;

/// What zero blocks look like encoded.
#[derive(Debug, Default)]
pub(super) struct Twins {
    zeroes: Mutex<Vec<Zero>>,
    /// Blocks (length, number) that are known to be zero from an earlier mount, one of each length:
    /// they are looked at when there is a block to compare them with.
    kept: Mutex<Vec<(u64, u64)>>,
    /// Of blocks that were taken for zero ones and are data: the shortest of each sort.
    data: Mutex<Vec<Data>>,
}

#[derive(Clone, Copy, Debug)]
struct Data {
    /// Decoded bytes.
    len: u64,
    /// As [`Layout::twin`] has it.
    context: u64,
    encoded: u64,
}

#[derive(Debug)]
struct Zero {
    /// Decoded bytes.
    len: u64,
    /// As [`Layout::twin`] has it.
    context: u64,
    bytes: Vec<u8>,
}

impl Twins {
    /// Whether the block is one of them. What cannot be read counts as none: who reads the block is
    /// told why.
    pub(super) fn have<L: Layout>(&self, layout: &L, number: u64) -> bool {
        let len = layout.len(number);
        let Some((range, context)) = layout.twin(number) else {
            return false;
        };
        self.look_at_kept(layout);
        let may_be = |zero: &&Zero| zero.is(len, context) && wide(zero.bytes.len()) == range.len();
        if !self.lock().iter().any(|zero| may_be(&zero)) {
            return false;
        }
        let Ok(len_below) = usize::try_from(range.len()) else {
            return false;
        };
        let Ok(bytes) = layout.below().read_vec(range.start(), len_below) else {
            return false;
        };
        let zeroes = self.lock();
        zeroes.iter().filter(may_be).any(|zero| zero.bytes == bytes)
    }

    /// Whether decoding the block may show that it is zero: it is not longer than others of its sort
    /// that were data.
    pub(super) fn may_be<L: Layout>(&self, layout: &L, number: u64) -> bool {
        let sort = Data::of(layout, number);
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let known = data.iter().find(|data| data.is_like(sort));
        known.is_none_or(|data| sort.encoded <= data.encoded.saturating_add(SLACK))
    }

    /// The block, which was decoded, is not zero.
    pub(super) fn is_data<L: Layout>(&self, layout: &L, number: u64) {
        let sort = Data::of(layout, number);
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = data.iter_mut().find(|data| data.is_like(sort)) {
            known.encoded = known.encoded.min(sort.encoded);
        } else if data.len() < MOST {
            data.push(sort);
        }
    }

    /// Whether one more of the sort of this block would be remembered.
    pub(super) fn lacks<L: Layout>(&self, layout: &L, number: u64) -> bool {
        let Some((range, context)) = layout.twin(number) else {
            return false;
        };
        let len = layout.len(number);
        let zeroes = self.lock();
        range.len() <= LONGEST
            && zeroes.len() < MOST
            && !zeroes.iter().any(|zero| zero.is(len, context))
    }

    /// An earlier mount has found the block to be zero. Reads nothing.
    pub(super) fn note<L: Layout>(&self, layout: &L, number: u64) {
        let len = layout.len(number);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST && kept.iter().all(|(other, _)| *other != len) {
            kept.push((len, number));
        }
    }

    fn look_at_kept<L: Layout>(&self, layout: &L) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = std::mem::take(&mut *kept);
        for (_, number) in kept {
            self.learn(layout, number);
        }
    }

    /// The block was found to be zero.
    pub(super) fn learn<L: Layout>(&self, layout: &L, number: u64) {
        if !self.lacks(layout, number) {
            return;
        }
        let Some((range, context)) = layout.twin(number) else {
            return;
        };
        let len = usize::try_from(range.len()).unwrap_or(0);
        if let Ok(bytes) = layout.below().read_vec(range.start(), len) {
            let len = layout.len(number);
            self.lock().push(Zero {
                len,
                context,
                bytes,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Zero>> {
        self.zeroes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Data {
    fn of<L: Layout>(layout: &L, number: u64) -> Self {
        Self {
            len: layout.len(number),
            context: layout.twin(number).map_or(0, |(_, context)| context),
            encoded: layout.encoded(number),
        }
    }

    fn is_like(&self, other: Self) -> bool {
        self.len == other.len && self.context == other.context
    }
}

impl Zero {
    fn is(&self, len: u64, context: u64) -> bool {
        self.len == len && self.context == context
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
