//! Which blocks are stored: two bits for each, in chunks that exist once one of their blocks does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::header::{PER_SECTOR, PER_WORD, WORDS};
use crate::cache::{BlockCache, Charge};

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Below.
    Absent,
    /// In the file.
    Stored,
    /// Nowhere: they are zeroes.
    Zero,
    /// In memory.
    Held,
}

impl State {
    fn bits(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Stored => 1,
            Self::Zero => 2,
            Self::Held => 3,
        }
    }

    fn of(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Absent,
            1 => Self::Stored,
            2 => Self::Zero,
            _ => Self::Held,
        }
    }

    /// A word of blocks in this state.
    fn word(self) -> u64 {
        self.bits().wrapping_mul(0x5555_5555_5555_5555)
    }
}

/// The states of all blocks. Read without a lock.
#[derive(Debug)]
pub(super) struct Map {
    chunks: Vec<OnceLock<Box<Chunk>>>,
    /// Whether any block is not absent.
    used: AtomicBool,
    /// Chunks that were changed since they were taken.
    dirty: Mutex<Vec<u64>>,
    /// Where its memory is counted.
    charge: Option<Charge>,
}

#[derive(Debug)]
struct Chunk {
    words: [AtomicU64; WORDS],
    dirty: AtomicBool,
}

/// A block in a chunk.
#[derive(Clone, Copy)]
struct Place {
    chunk: u64,
    word: usize,
    /// Bits before it in the word.
    shift: u32,
}

impl Place {
    fn of(block: u64) -> Self {
        let chunk = block / PER_SECTOR;
        let within = block.wrapping_sub(chunk.wrapping_mul(PER_SECTOR));
        Self {
            chunk,
            word: usize::try_from(within / PER_WORD).unwrap_or(0),
            shift: u32::try_from(within % PER_WORD)
                .unwrap_or(0)
                .saturating_mul(2),
        }
    }
}

impl Map {
    /// `blocks` absent blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let chunks = usize::try_from(blocks.div_ceil(PER_SECTOR)).unwrap_or(usize::MAX);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            used: AtomicBool::new(false),
            dirty: Mutex::default(),
            charge: None,
        }
    }

    /// Has the memory of the map counted in `cache`, from now on also what it grows by.
    pub(super) fn count_in(&mut self, cache: &Arc<BlockCache>) {
        let charge = Charge::new(cache);
        let chunks = self.chunks.iter().filter(|chunk| chunk.get().is_some());
        let bytes = chunks.count().saturating_mul(size_of::<Chunk>());
        let places = self
            .chunks
            .len()
            .saturating_mul(size_of::<OnceLock<Box<Chunk>>>());
        charge.add(wide(bytes.saturating_add(places)));
        self.charge = Some(charge);
    }

    /// Whether no block was ever written.
    pub(super) fn is_empty(&self) -> bool {
        !self.used.load(Ordering::Acquire)
    }

    fn chunk(&self, chunk: u64) -> Option<&Chunk> {
        let index = usize::try_from(chunk).ok()?;
        self.chunks.get(index)?.get().map(|chunk| &**chunk)
    }

    fn chunk_to_change(&self, chunk: u64) -> Option<&Chunk> {
        let index = usize::try_from(chunk).ok()?;
        let chunk = self.chunks.get(index)?.get_or_init(|| {
            if let Some(charge) = &self.charge {
                charge.add(wide(size_of::<Chunk>()));
            }
            Box::new(Chunk {
                words: [const { AtomicU64::new(0) }; WORDS],
                dirty: AtomicBool::new(false),
            })
        });
        Some(chunk)
    }

    pub(super) fn get(&self, block: u64) -> State {
        let place = Place::of(block);
        let chunk = self.chunk(place.chunk);
        let word = chunk.and_then(|chunk| chunk.words.get(place.word));
        word.map_or(State::Absent, |word| {
            State::of(word.load(Ordering::Acquire).wrapping_shr(place.shift))
        })
    }

    /// The state of `block`, and where the run of such blocks ends that it begins; at `end` at most.
    pub(super) fn run(&self, block: u64, end: u64) -> (State, u64) {
        let state = self.get(block);
        let mut at = block;
        while at < end {
            let place = Place::of(at);
            let chunk_end = place.chunk.saturating_add(1).saturating_mul(PER_SECTOR);
            let Some(chunk) = self.chunk(place.chunk) else {
                if state != State::Absent {
                    break;
                }
                at = chunk_end;
                continue;
            };
            let word = chunk.words.get(place.word);
            let word = word.map_or(0, |word| word.load(Ordering::Acquire));
            let differs = (word ^ state.word()).wrapping_shr(place.shift);
            let same = u64::from(differs.trailing_zeros() / 2);
            let left = PER_WORD.saturating_sub(u64::from(place.shift / 2));
            if differs != 0 && same < left {
                at = at.saturating_add(same);
                break;
            }
            at = at.saturating_add(left).min(chunk_end);
        }
        // A block that was changed between the two looks.
        (
            state,
            at.clamp(block.saturating_add(1), end.max(block.saturating_add(1))),
        )
    }

    /// Sets the state of the blocks from `block` to `end`.
    pub(super) fn set(&self, block: u64, end: u64, state: State) {
        self.used.store(true, Ordering::Release);
        let mut at = block;
        while at < end {
            let place = Place::of(at);
            let left = PER_WORD.saturating_sub(u64::from(place.shift / 2));
            let count = left.min(end.saturating_sub(at));
            let bits = u32::try_from(count.saturating_mul(2)).unwrap_or(64);
            let mask = match bits {
                64.. => u64::MAX,
                bits => 1_u64.wrapping_shl(bits).wrapping_sub(1),
            };
            let mask = mask.wrapping_shl(place.shift);
            if let Some(chunk) = self.chunk_to_change(place.chunk)
                && let Some(word) = chunk.words.get(place.word)
            {
                let new = |old: u64| Some((old & !mask) | (state.word() & mask));
                // Never refused.
                let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, new);
                if !chunk.dirty.swap(true, Ordering::AcqRel) {
                    self.note_dirty(place.chunk);
                }
            }
            at = at.saturating_add(count);
        }
    }

    fn note_dirty(&self, chunk: u64) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.push(chunk);
    }

    /// The chunks that were changed since the last time, in order. What was stored of a block whose
    /// state is in there was stored before this was called.
    pub(super) fn take_dirty(&self) -> Vec<(u64, [u64; WORDS])> {
        let mut numbers = {
            let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *dirty)
        };
        numbers.sort_unstable();
        numbers.dedup();
        let words = |number: u64| {
            let chunk = self.chunk(number)?;
            // First: what is changed from here on is for the next time.
            chunk.dirty.swap(false, Ordering::AcqRel);
            let mut words = [0; WORDS];
            for (word, found) in words.iter_mut().zip(&chunk.words) {
                *word = found.load(Ordering::Acquire);
            }
            Some((number, words))
        };
        numbers.into_iter().filter_map(words).collect()
    }

    /// Chunks that could not be stored: they are for the next time.
    pub(super) fn put_back(&self, chunks: &[(u64, [u64; WORDS])]) {
        for (number, _) in chunks {
            if let Some(chunk) = self.chunk(*number) {
                chunk.dirty.store(true, Ordering::Release);
                self.note_dirty(*number);
            }
        }
    }

    /// Takes over a chunk as it was stored.
    pub(super) fn load(&self, number: u64, words: &[u64; WORDS]) {
        if let Some(chunk) = self.chunk_to_change(number) {
            for (word, found) in chunk.words.iter().zip(words) {
                word.store(*found, Ordering::Release);
            }
            self.used.store(true, Ordering::Release);
        }
    }

    /// How many blocks are stored or held, and how many are zeroes.
    pub(super) fn count(&self) -> (u64, u64) {
        let (mut stored, mut zero) = (0_u64, 0_u64);
        let chunks = self.chunks.iter().filter_map(OnceLock::get);
        for word in chunks.flat_map(|chunk| &chunk.words) {
            let word = word.load(Ordering::Acquire);
            let low = word & 0x5555_5555_5555_5555;
            let high = word.wrapping_shr(1) & 0x5555_5555_5555_5555;
            stored = stored.saturating_add(u64::from(low.count_ones()));
            zero = zero.saturating_add(u64::from((high & !low).count_ones()));
        }
        (stored, zero)
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(
    clippy::as_conversions,
    clippy::arithmetic_side_effects,
    reason = "the numbers are those of the test"
)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn runs_and_states_are_those_of_a_plain_list() {
        const BLOCKS: u64 = 3 * PER_SECTOR + 77;
        let map = Map::new(BLOCKS);
        let mut plain = vec![State::Absent; BLOCKS as usize];
        let mut rng = Rng::new(1);
        let states = [State::Absent, State::Stored, State::Zero, State::Held];
        for round in 0..600 {
            let range = rng.range(BLOCKS, if round % 3 == 0 { 3000 } else { 40 });
            let state = states[round % 4];
            map.set(range.start(), range.end(), state);
            plain[range.start() as usize..range.end() as usize].fill(state);
            let mut at = rng.range(BLOCKS - 1, 1).start();
            for _ in 0..20 {
                let (state, end) = map.run(at, BLOCKS);
                assert!(end > at);
                assert_eq!(map.get(at), plain[at as usize]);
                assert!(plain[at as usize..end as usize].iter().all(|&s| s == state));
                assert!(end == BLOCKS || plain[end as usize] != state, "{at} {end}");
                if end >= BLOCKS {
                    break;
                }
                at = end;
            }
        }
        let stored = plain
            .iter()
            .filter(|s| matches!(s, State::Stored | State::Held));
        let zero = plain.iter().filter(|s| **s == State::Zero);
        assert_eq!(map.count(), (stored.count() as u64, zero.count() as u64));
    }

    #[test]
    fn its_memory_is_counted_and_decoded_blocks_make_room_for_it() {
        let cache = Arc::new(BlockCache::new(1 << 20));
        let mut map = Map::new(10_000 * PER_SECTOR);
        map.set(0, 1, State::Stored);
        map.count_in(&cache);
        let before = cache.used();
        assert!(before >= 10_000 * 8 + 512, "{before}");
        map.set(0, 2, State::Zero);
        assert_eq!(cache.used(), before, "the chunk was there");
        map.set(PER_SECTOR, 4 * PER_SECTOR, State::Stored);
        let more = cache.used() - before;
        assert!((3 * 496..3 * 600).contains(&more), "{more}");
        drop(map);
        assert_eq!(cache.used(), 0);
    }

    #[test]
    fn a_chunk_is_dirty_until_it_is_taken_and_again_when_it_is_put_back() {
        let map = Map::new(10 * PER_SECTOR);
        assert!(map.is_empty());
        map.set(PER_SECTOR, PER_SECTOR + 1, State::Stored);
        map.set(5 * PER_SECTOR, 5 * PER_SECTOR + 3, State::Zero);
        map.set(PER_SECTOR + 9, PER_SECTOR + 10, State::Zero);
        let dirty = map.take_dirty();
        assert_eq!(dirty.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 5]);
        assert!(map.take_dirty().is_empty());
        map.put_back(&dirty[1..]);
        assert_eq!(map.take_dirty(), &dirty[1..]);
        let copy = Map::new(10 * PER_SECTOR);
        for (number, words) in &dirty {
            copy.load(*number, words);
        }
        assert_eq!(copy.count(), map.count());
        assert!(!copy.is_empty());
    }
}
