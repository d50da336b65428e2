//! Fetched bytes in memory, under a budget.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use crate::ByteRange;

/// Bytes are present or missing in pages: a read is answered as soon as its pages are there, and
/// no more than its pages need be fetched. The size of the kernel's pages, which most reads are
/// aligned to.
pub(super) const PAGE: u64 = 4096;
/// Memory is taken and given back in chunks: as many pages as a mask has bits.
pub(super) const CHUNK: u64 = 64 * PAGE;

/// The memory of a chunk. Pages that are present are never written again, so a reader may hold on
/// to it after the store has let it go.
pub(super) type Memory = Arc<RwLock<Box<[u8]>>>;

/// The chunks of a device of `size` bytes.
#[derive(Debug)]
pub(super) struct Store {
    size: u64,
    most: usize,
    chunks: HashMap<u64, Chunk>,
    /// Counts the chunks that were ever taken.
    clock: u64,
}

#[derive(Debug)]
struct Chunk {
    memory: Memory,
    present: u64,
    read: u64,
    used: u64,
}

impl Store {
    /// Room for `budget` bytes, at least for one chunk.
    pub(super) fn new(size: u64, budget: u64) -> Self {
        let most = usize::try_from(budget / CHUNK).unwrap_or(usize::MAX).max(1);
        Self {
            size,
            most,
            chunks: HashMap::new(),
            clock: 0,
        }
    }

    /// The pages that `range` touches, cut at the end of the device.
    pub(super) fn pages(&self, range: ByteRange) -> ByteRange {
        let end = range.end().checked_next_multiple_of(PAGE);
        let end = end.map_or(self.size, |end| end.min(self.size));
        ByteRange::between(range.start() / PAGE * PAGE, end)
    }

    /// The part of `range` that lies in the chunk of its first byte.
    pub(super) fn first_piece(range: ByteRange) -> ByteRange {
        let end = (range.start() / CHUNK + 1).saturating_mul(CHUNK);
        ByteRange::between(range.start(), end.min(range.end()))
    }

    /// The memory in which all of `piece`, which lies in one chunk, is present.
    pub(super) fn read(&mut self, piece: ByteRange) -> Option<Memory> {
        let index = piece.start() / CHUNK;
        let wanted = mask(index, piece);
        let chunk = self.chunks.get_mut(&index)?;
        if chunk.present & wanted != wanted {
            return None;
        }
        chunk.read |= wanted;
        chunk.used = self.clock;
        Some(Arc::clone(&chunk.memory))
    }

    /// The memory of a chunk.
    pub(super) fn memory(&self, index: u64) -> Option<Memory> {
        let chunk = self.chunks.get(&index)?;
        Some(Arc::clone(&chunk.memory))
    }

    /// Which pages of a chunk are missing from `range`.
    pub(super) fn missing(&self, index: u64, range: ByteRange) -> u64 {
        let present = self.chunks.get(&index).map_or(0, |chunk| chunk.present);
        mask(index, range) & !present
    }

    /// Takes memory for all of `ranges`, at the cost of chunks that are not `busy`: of those, the
    /// one that was used least recently; but what nobody has read yet was fetched for a reason,
    /// and counts as younger by half of the store. `None` when all others are busy, unless
    /// `forced` to exceed the budget.
    pub(super) fn reserve(
        &mut self,
        ranges: &[ByteRange],
        busy: impl Fn(u64) -> bool,
        forced: bool,
    ) -> Option<Vec<Vec<Memory>>> {
        let indices: BTreeSet<u64> = ranges.iter().copied().flat_map(chunks).collect();
        let mine = |index: &u64| indices.contains(index);
        let new = indices.iter();
        let new = new.filter(|index| !self.chunks.contains_key(index)).count();
        let mut free: Vec<_> = self
            .chunks
            .iter()
            .filter(|(index, _)| !mine(index) && !busy(**index))
            .map(|(index, chunk)| {
                let unread = chunk.read != chunk.present;
                let bonus = if unread { self.most as u64 / 2 } else { 0 };
                (chunk.used.saturating_add(bonus), *index)
            })
            .collect();
        let excess = (self.chunks.len() + new).saturating_sub(self.most);
        if excess > free.len() && !forced {
            return None;
        }
        free.sort_unstable();
        for (_, index) in free.into_iter().take(excess) {
            self.chunks.remove(&index);
        }
        let mut take = |range: &ByteRange| chunks(*range).map(|index| self.take(index)).collect();
        Some(ranges.iter().map(&mut take).collect())
    }

    fn take(&mut self, index: u64) -> Memory {
        let start = index.saturating_mul(CHUNK);
        let len = self.size.saturating_sub(start).min(CHUNK);
        if !self.chunks.contains_key(&index) {
            self.clock += 1;
        }
        let used = self.clock;
        let chunk = self.chunks.entry(index).or_insert_with(|| Chunk {
            // At most CHUNK, so it fits. Pages of it that are never filled are never touched.
            memory: Arc::new(RwLock::new(vec![0; len as usize].into_boxed_slice())),
            present: 0,
            read: 0,
            used,
        });
        chunk.used = used;
        Arc::clone(&chunk.memory)
    }

    /// Declares the pages of `range` present.
    pub(super) fn fill(&mut self, range: ByteRange) {
        for index in chunks(range) {
            if let Some(chunk) = self.chunks.get_mut(&index) {
                chunk.present |= mask(index, range);
            }
        }
    }

    /// Bytes of memory taken.
    #[cfg(test)]
    fn taken(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK
    }
}

/// The chunks that `range` touches.
pub(super) fn chunks(range: ByteRange) -> Range<u64> {
    range.start() / CHUNK..range.end().div_ceil(CHUNK)
}

/// The pages of chunk `index` that `range` touches, one bit each.
pub(super) fn mask(index: u64, range: ByteRange) -> u64 {
    let start = index.saturating_mul(CHUNK);
    let within = ByteRange::between(start, start.saturating_add(CHUNK)).intersect(range);
    if within.is_empty() {
        return 0;
    }
    let first = (within.start() - start) / PAGE;
    let last = (within.end() - 1 - start) / PAGE;
    (u64::MAX >> (63 - (last - first))) << first
}

/// Copies `bytes`, which belong at `at`, into the memory of the chunks from `first` on.
pub(super) fn copy_in(memories: &[Memory], first: u64, mut at: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let within = (at % CHUNK) as usize;
        let len = bytes.len().min(CHUNK as usize - within);
        let memory = &memories[(at / CHUNK - first) as usize];
        let mut memory = memory.write().unwrap_or_else(PoisonError::into_inner);
        memory[within..within + len].copy_from_slice(&bytes[..len]);
        bytes = &bytes[len..];
        at += len as u64;
    }
}

/// Copies what lies at `at` out of the memory of its chunk.
pub(super) fn copy_out(memory: &Memory, at: u64, buf: &mut [u8]) {
    let within = (at % CHUNK) as usize;
    let memory = memory.read().unwrap_or_else(PoisonError::into_inner);
    buf.copy_from_slice(&memory[within..within + buf.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    #[test]
    fn masks_have_a_bit_for_each_page_touched() {
        assert_eq!(mask(0, range(0, CHUNK)), u64::MAX);
        assert_eq!(mask(0, range(0, 1)), 1);
        assert_eq!(mask(0, range(PAGE - 1, PAGE + 1)), 0b11);
        assert_eq!(mask(1, range(0, CHUNK)), 0);
        assert_eq!(mask(1, range(CHUNK - 1, 2 * CHUNK + 1)), u64::MAX);
        assert_eq!(mask(1, range(2 * CHUNK - 1, 3 * CHUNK)), 1 << 63);
        let last = u64::MAX / CHUNK;
        assert_eq!(mask(last, range(u64::MAX - 1, u64::MAX)), 1 << 63);
    }

    #[test]
    fn the_budget_holds_and_the_longest_unused_goes_first() {
        let mut store = Store::new(100 * CHUNK, 4 * CHUNK);
        let idle = |_| false;
        for index in 0..4 {
            let all = range(index * CHUNK, (index + 1) * CHUNK);
            assert!(store.reserve(&[all], idle, false).is_some());
            store.fill(all);
            assert!(store.read(all).is_some());
        }
        assert!(store.read(range(0, 1)).is_some());
        assert!(
            store
                .reserve(&[range(9 * CHUNK, 10 * CHUNK)], idle, false)
                .is_some()
        );
        assert_eq!(store.taken(), 4 * CHUNK);
        assert!(store.read(range(0, CHUNK)).is_some());
        assert!(store.read(range(CHUNK, CHUNK + 1)).is_none());
        assert_eq!(store.missing(1, range(0, 2 * CHUNK)), u64::MAX);
    }

    #[test]
    fn busy_chunks_are_never_given_away() {
        let mut store = Store::new(100 * CHUNK, 4 * CHUNK);
        assert!(
            store
                .reserve(&[range(0, 3 * CHUNK)], |_| false, false)
                .is_some()
        );
        let two = range(8 * CHUNK, 10 * CHUNK);
        assert!(store.reserve(&[two], |_| true, false).is_none());
        assert!(store.reserve(&[two], |index| index > 0, false).is_some());
        assert_eq!(store.taken(), 4 * CHUNK);
        assert!(
            store
                .reserve(&[range(20 * CHUNK, 21 * CHUNK)], |_| true, true)
                .is_some()
        );
    }

    #[test]
    fn what_was_fetched_and_not_yet_read_stays_longer() {
        let mut store = Store::new(100 * CHUNK, 4 * CHUNK);
        for index in 0..4 {
            let all = range(index * CHUNK, (index + 1) * CHUNK);
            store.reserve(&[all], |_| false, false).unwrap();
            store.fill(all);
            if index == 1 {
                assert!(store.read(all).is_some());
            }
        }
        store
            .reserve(&[range(9 * CHUNK, 10 * CHUNK)], |_| false, false)
            .unwrap();
        assert_eq!(store.missing(0, range(0, CHUNK)), 0);
        assert_eq!(store.missing(1, range(CHUNK, 2 * CHUNK)), u64::MAX);
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut store = Store::new(3 * CHUNK - 5, 4 * CHUNK);
        let all = store.pages(range(1, 3 * CHUNK - 5));
        assert_eq!(all, range(0, 3 * CHUNK - 5));
        let memories = store.reserve(&[all], |_| false, false).unwrap().remove(0);
        let bytes: Vec<u8> = (0..all.len()).map(|at| (at / 7) as u8).collect();
        copy_in(&memories, 0, 0, &bytes[..100]);
        copy_in(&memories, 0, 100, &bytes[100..]);
        store.fill(all);
        let piece = Store::first_piece(range(2 * CHUNK + 3, all.end()));
        let mut found = vec![0; piece.len() as usize];
        copy_out(&store.read(piece).unwrap(), piece.start(), &mut found);
        assert!(found == bytes[piece.start() as usize..]);
    }
}
