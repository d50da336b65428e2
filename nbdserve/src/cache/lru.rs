//! Decoded blocks of all layers under one byte budget, the least recently read going first.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::block::Block;
use super::budget::{Budget, Class, Reservation};
use super::spares::Spares;
use crate::Result;

/// A wait for memory looks this often whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// So many bytes of the budget are for blocks that a stream has passed (see
/// [`BlockCache::passed`]): enough for readers that are a little apart, and no more memory than a
/// stream uses again and again.
const PASSED_MOST: u64 = 32 << 20;

/// Bytes of decoded blocks that are kept when nothing is read.
const RESTING: u64 = 4 << 20;

/// A layer instance and a block of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) layer: u64,
    pub(super) number: u64,
}

/// Decoded blocks under a byte budget. The budget covers finished blocks, blocks being decoded
/// and the memory of decoders. Pieces of zeroes cost nothing.
///
/// One decode is always admitted, so the budget is passed when a single decoder and block need
/// more than all of it is; see [`super::Job::start`] for what is refused instead.
pub struct BlockCache {
    budget: Arc<Budget>,
    state: Mutex<State>,
    next_layer: AtomicU64,
    /// Signs of life of all decoders.
    progress: AtomicU64,
    /// Blocks that readers have asked for, and how many those were at the last [`Self::rest`].
    reads: AtomicU64,
    reads_seen: AtomicU64,
}

#[derive(Default)]
struct State {
    blocks: HashMap<Key, Entry>,
    /// Finished blocks by the time of their last use.
    order: BTreeMap<u64, Key>,
    /// Those of them that a stream has passed, by the same time.
    passed: BTreeMap<u64, Key>,
    passed_bytes: u64,
    clock: u64,
    spares: Spares,
}

struct Entry {
    block: Arc<Block>,
    /// The key in `order`; `None` until the block is finished.
    used: Option<u64>,
    /// It is in `passed`, too, or will be when it is finished.
    passed: bool,
}

impl BlockCache {
    /// A cache that holds at most `budget` bytes, decoders' memory included.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Self {
            budget: Budget::new(budget),
            state: Mutex::default(),
            next_layer: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            reads_seen: AtomicU64::new(0),
        }
    }

    /// The budget, in bytes.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.budget.total()
    }

    /// Bytes of the budget that are in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.budget.used()
    }

    /// The most bytes that were ever in use.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.budget.peak()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called from time to time: when nothing was read since the last call, gives the memory
    /// of decoded blocks back to the system, except for the few MiB that were read last. False
    /// when there is more to give back later.
    pub fn rest(&self) -> bool {
        let reads = self.reads.load(Ordering::Relaxed);
        if self.reads_seen.swap(reads, Ordering::Relaxed) != reads {
            return false;
        }
        let mut any = false;
        while self.used() > RESTING && self.evict_one() {
            any = true;
        }
        if any {
            crate::sys::trim_heap();
        }
        true
    }

    /// A number for a new layer instance.
    pub(super) fn new_layer(&self) -> u64 {
        self.next_layer.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn beat(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// The block of `key`, or the one that `create` makes; true when it is new. Counts as a use.
    ///
    /// # Errors
    /// What `create` says.
    pub(super) fn get_or_create(
        &self,
        key: Key,
        create: impl FnOnce() -> Result<Arc<Block>>,
    ) -> Result<(Arc<Block>, bool)> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        if let Some(block) = state.touch(key) {
            return Ok((block, false));
        }
        let block = create()?;
        let entry = Entry {
            block: Arc::clone(&block),
            used: None,
            passed: false,
        };
        state.blocks.insert(key, entry);
        Ok((block, true))
    }

    /// The block of `key`, if it is here. Does not count as a use.
    pub(super) fn peek(&self, key: Key) -> Option<Arc<Block>> {
        let state = self.lock();
        state.blocks.get(&key).map(|entry| Arc::clone(&entry.block))
    }

    /// `block` is finished and may be evicted from now on.
    pub(super) fn finished(&self, key: Key, block: &Arc<Block>) {
        let mut state = self.lock();
        let here = state.blocks.get(&key);
        let Some(entry) = here.filter(|entry| Arc::ptr_eq(&entry.block, block)) else {
            return;
        };
        let passed = entry.passed;
        state.mark_used(key);
        if passed {
            // By a reader that did not wait for the end.
            state.mark_passed(key);
            let gone = state.shed_passed();
            drop(state);
            drop(gone);
        }
    }

    /// A sequential reader has read from the block of `key`, which is quickly decoded again. Such
    /// blocks take only a part of the budget, however much is read, until another reader comes: what
    /// is read in order is hardly ever read again from here, and memory that was just used is faster
    /// than new memory.
    pub(super) fn passed(&self, key: Key) {
        let mut state = self.lock();
        state.mark_passed(key);
        let gone = state.shed_passed();
        drop(state);
        drop(gone);
    }

    /// Takes `block` out, if it is (still) the one of `key`.
    pub(super) fn remove(&self, key: Key, block: &Arc<Block>) {
        let mut state = self.lock();
        let here = state.blocks.get(&key);
        if here.is_some_and(|entry| Arc::ptr_eq(&entry.block, block)) {
            let removed = state.remove(key);
            drop(state);
            drop(removed);
        }
    }

    /// Takes out all that belongs to a layer.
    pub(super) fn forget(&self, layer: u64) {
        let mut state = self.lock();
        let keys: Vec<_> = state.blocks.keys().copied().collect();
        let blocks: Vec<_> = keys
            .into_iter()
            .filter(|key| key.layer == layer)
            .filter_map(|key| state.remove(key))
            .collect();
        let spares = state.spares.of(layer);
        drop(state);
        drop((blocks, spares));
    }

    /// Takes `bytes` for a decode that begins now, making room by evicting what was not read for
    /// the longest time. Where that is not enough, `wait` is asked again and again, each time
    /// memory may have come back, whether to go on.
    ///
    /// # Errors
    /// What `wait` says. `None` when it says false.
    pub(super) fn reserve(
        &self,
        bytes: u64,
        class: Class,
        mut wait: impl FnMut() -> Result<bool>,
    ) -> Result<Option<Reservation>> {
        loop {
            if let Some(taken) = self.budget.try_take(bytes, class) {
                return Ok(Some(taken));
            }
            if self.evict_one() {
                continue;
            }
            if !wait()? {
                return Ok(None);
            }
            if let Some(taken) = self.budget.take_if_stuck(bytes, class) {
                return Ok(Some(taken));
            }
            self.budget.wait_freed(LOOK);
        }
    }

    /// Drops a spare decoder or the finished block that was not read for the longest time. Its
    /// memory comes back at once, or when its last reader has copied its bytes.
    fn evict_one(&self) -> bool {
        let mut state = self.lock();
        let spare = state.spares.pop();
        let mut block = None;
        if spare.is_none()
            && let Some((_, key)) = state.order.pop_first()
        {
            block = state.remove(key);
        }
        drop(state);
        spare.is_some() || block.is_some()
    }

    /// Takes `bytes` in any case, and makes room for them by evicting blocks.
    pub(super) fn charge(&self, bytes: u64) {
        self.budget.charge(bytes);
        while self.used() > self.budget() && self.evict_one() {}
    }

    /// Gives back what [`Self::charge`] has taken.
    pub(super) fn discharge(&self, bytes: u64) {
        self.budget.discharge(bytes);
    }

    /// As [`Spares::take`].
    pub(super) fn take_spare(&self, layer: u64) -> Option<(Box<dyn Any + Send>, Reservation)> {
        self.lock().spares.take(layer)
    }

    /// As [`Spares::keep`].
    pub(super) fn keep_spare(&self, layer: u64, decoder: Box<dyn Any + Send>, memory: Reservation) {
        self.lock().spares.keep(layer, decoder, memory);
    }

    /// Drops the spare decoders of all layers.
    pub(super) fn drop_spares(&self) {
        let spares = std::mem::take(&mut self.lock().spares);
        drop(spares);
    }
}

impl State {
    fn touch(&mut self, key: Key) -> Option<Arc<Block>> {
        let entry = self.blocks.get(&key)?;
        let block = Arc::clone(&entry.block);
        if entry
            .used
            .is_some_and(|used| entry.passed || used != self.clock)
        {
            self.mark_used(key);
        }
        Some(block)
    }

    fn mark_passed(&mut self, key: Key) {
        let Some(entry) = self.blocks.get_mut(&key) else {
            return;
        };
        if let Some(used) = entry.used
            && self.passed.insert(used, key).is_none()
        {
            self.passed_bytes = self.passed_bytes.saturating_add(entry.block.len());
        }
        entry.passed = true;
    }

    /// Takes out the oldest of the passed blocks that are too many.
    fn shed_passed(&mut self) -> Vec<Entry> {
        let mut gone = Vec::new();
        while self.passed_bytes > PASSED_MOST
            && let Some((_, key)) = self.passed.pop_first()
        {
            gone.extend(self.remove(key));
        }
        gone
    }

    fn forget_passed(&mut self, used: u64, entry: &Block) {
        self.passed.remove(&used);
        self.passed_bytes = self.passed_bytes.saturating_sub(entry.len());
    }

    fn mark_used(&mut self, key: Key) {
        let Some(entry) = self.blocks.get_mut(&key) else {
            return;
        };
        self.clock += 1;
        if let Some(old) = entry.used.replace(self.clock) {
            self.order.remove(&old);
            if std::mem::take(&mut entry.passed) {
                let block = Arc::clone(&entry.block);
                self.forget_passed(old, &block);
            }
        }
        self.order.insert(self.clock, key);
    }

    fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.blocks.remove(&key)?;
        if let Some(used) = entry.used {
            self.order.remove(&used);
            if entry.passed {
                self.forget_passed(used, &entry.block);
            }
        }
        Some(entry)
    }
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("BlockCache")
            .field("budget", &self.budget)
            .field("blocks", &state.blocks.len())
            .field("spares", &state.spares)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key { layer: 0, number }
    }

    /// Puts a finished block of `bytes` into `cache`.
    fn put(cache: &BlockCache, number: u64, bytes: u64) {
        let new = || Ok(Arc::new(Block::in_memory(bytes)));
        let (block, created) = cache.get_or_create(key(number), new).unwrap();
        assert!(created);
        let mut memory = cache.reserve(bytes, Class::Block, || Ok(true)).unwrap();
        if let Some(memory) = &mut memory {
            memory.settle(bytes);
        }
        block.finish(memory);
        cache.finished(key(number), &block);
    }

    #[test]
    fn the_block_not_read_for_longest_goes_first() {
        let cache = BlockCache::new(100);
        put(&cache, 1, 40);
        put(&cache, 2, 40);
        let again = || panic!("block 1 is here");
        assert!(!cache.get_or_create(key(1), again).unwrap().1);
        put(&cache, 3, 40);
        let here: Vec<_> = (1..=3).map(|n| cache.peek(key(n)).is_some()).collect();
        assert_eq!(here, [true, false, true]);
        assert_eq!((cache.used(), cache.peak()), (80, 80));
    }

    #[test]
    fn what_a_stream_has_passed_takes_only_a_part_of_the_budget() {
        let (cache, mib) = (BlockCache::new(1 << 30), 1 << 20);
        put(&cache, 1000, 8 * mib);
        for number in 0..100 {
            put(&cache, number, 8 * mib);
            // As each of its reads does.
            for _ in 0..2 {
                let again = || panic!("block {number} is here");
                assert!(!cache.get_or_create(key(number), again).unwrap().1);
                cache.passed(key(number));
            }
        }
        assert_eq!(cache.used(), (32 + 8) * mib);
        let here = |number| cache.peek(key(number)).is_some();
        assert_eq!([1000, 95, 96, 99].map(here), [true, false, true, true]);
        // Another reader: this one stays.
        assert!(!cache.get_or_create(key(96), || panic!()).unwrap().1);
        for number in 100..200 {
            put(&cache, number, 8 * mib);
            cache.passed(key(number));
        }
        assert_eq!([1000, 96, 99, 199].map(here), [true, true, false, true]);
        assert_eq!(cache.used(), (32 + 16) * mib);
        cache.forget(0);
        assert_eq!((cache.used(), cache.lock().passed_bytes), (0, 0));
    }

    #[test]
    fn a_layer_that_goes_leaves_nothing() {
        let cache = BlockCache::new(100);
        put(&cache, 1, 40);
        let memory = cache.reserve(10, Class::Block, || Ok(true)).unwrap();
        cache.keep_spare(0, Box::new(()), memory.unwrap());
        assert_eq!(cache.used(), 50);
        cache.forget(0);
        assert_eq!(cache.used(), 0);
        assert!(cache.take_spare(0).is_none());
    }

    #[test]
    fn a_cache_that_nobody_reads_becomes_small() {
        let cache = BlockCache::new(64 << 20);
        for number in 0..8 {
            put(&cache, number, 2 << 20);
        }
        assert!(!cache.rest(), "it was just read");
        assert_eq!(cache.used(), 16 << 20);
        assert!(cache.rest());
        assert_eq!(cache.used(), RESTING);
        assert!(cache.peek(key(7)).is_some(), "what was read last stays");
    }

    #[test]
    fn memory_that_a_reader_still_holds_is_not_given_twice() {
        let cache = BlockCache::new(100);
        put(&cache, 1, 60);
        let reader = cache.peek(key(1));
        let mut asked = 0;
        let mut running = cache.reserve(40, Class::Block, || Ok(true)).unwrap();
        let refused = cache.reserve(60, Class::Block, || {
            asked += 1;
            Ok(false)
        });
        assert!(refused.unwrap().is_none());
        assert_eq!((cache.used(), asked), (100, 1));
        drop(reader);
        assert_eq!(cache.used(), 40);
        running.take();
        assert_eq!(cache.used(), 0);
    }
}
