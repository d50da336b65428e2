//! Fetched bytes in the cache on disk: what an earlier mount has fetched is not fetched again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::store::{CHUNK, Memory, PAGE, chunks, copy_out, mask};
use crate::ByteRange;
use crate::store::{Pages, Place};

/// What the pages are kept as; `store::Usage` knows the name.
const NAME: &str = "http";
/// Of the memory for what was fetched, at most one part in this many waits to be written.
const WAITING_PART: u64 = 4;
/// Closing waits this long for what is to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// The pages of one file, and the thread that writes new ones.
///
/// A page that cannot be written in time is not kept: readers never wait for this disk.
#[derive(Debug)]
pub(super) struct Disk {
    pages: Pages,
    size: u64,
    /// Most chunks that wait to be written.
    most: usize,
    state: Mutex<State>,
    /// The queue has changed.
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Pages that are there, of each chunk that was looked at.
    present: HashMap<u64, u64>,
    /// Chunks to be written, in order.
    queue: VecDeque<u64>,
    waiting: HashMap<u64, (u64, Memory)>,
    writing: bool,
    closed: bool,
}

impl Disk {
    /// The pages of the file of `size` bytes at `place`; `memory` is what the file may take there.
    /// `None` when they cannot be kept.
    pub(super) fn open(place: &Place, size: u64, memory: u64) -> Option<Arc<Self>> {
        let disk = Arc::new(Self {
            pages: place.pages(NAME)?,
            size,
            most: usize::try_from(memory / WAITING_PART / CHUNK)
                .unwrap_or(usize::MAX)
                .max(1),
            state: Mutex::default(),
            news: Condvar::new(),
        });
        let writer = Arc::clone(&disk);
        let started = thread::Builder::new()
            .name("http-cache".to_owned())
            .spawn(move || writer.write_all());
        match started {
            Ok(_) => Some(disk),
            Err(error) => {
                tracing::warn!("nothing fetched is kept: no thread for it: {error}");
                None
            }
        }
    }

    /// The pages of a chunk that are there.
    pub(super) fn present(&self, index: u64) -> u64 {
        *self.present_in(&mut self.lock(), index)
    }

    fn present_in<'a>(&self, state: &'a mut State, index: u64) -> &'a mut u64 {
        let look = || self.pages.present(index.saturating_mul(CHUNK));
        state.present.entry(index).or_insert_with(look)
    }

    /// The longest part of `piece`, from its start, of which all or none is to be read here, and
    /// which of both: pages that are here and among `wanted`. `piece` lies in one chunk.
    pub(super) fn split(&self, piece: ByteRange, wanted: u64) -> (ByteRange, bool) {
        let index = piece.start() / CHUNK;
        let first = (piece.start() % CHUNK) / PAGE;
        let present = (self.present(index) & wanted) >> first;
        let is_there = present & 1 == 1;
        let run = if is_there {
            present.trailing_ones()
        } else {
            present.trailing_zeros()
        };
        let end = index
            .saturating_mul(CHUNK)
            .saturating_add(first.saturating_add(u64::from(run)).saturating_mul(PAGE));
        (
            ByteRange::between(piece.start(), end.min(piece.end())),
            is_there,
        )
    }

    /// Fills `buf` with the bytes at `offset`, within one chunk. False when they turn out to be
    /// damaged: then their pages count as missing.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> bool {
        if self.pages.read(offset, buf) {
            return true;
        }
        let range = ByteRange::of(buf, offset);
        tracing::debug!("damaged in the cache: {range}");
        let mut state = self.lock();
        for index in chunks(range) {
            *self.present_in(&mut state, index) &= !mask(index, range);
        }
        false
    }

    /// Takes the pages of `range`, which have arrived whole, out of the memory of their chunks.
    pub(super) fn keep(&self, range: ByteRange, memory: impl Fn(u64) -> Option<Memory>) {
        if self.pages.is_full() {
            return;
        }
        let mut state = self.lock();
        for index in chunks(range) {
            let new = mask(index, range) & !*self.present_in(&mut state, index);
            if new == 0 || state.closed {
                continue;
            }
            if let Some((pages, _)) = state.waiting.get_mut(&index) {
                *pages |= new;
            } else if state.waiting.len() < self.most
                && let Some(memory) = memory(index)
            {
                state.queue.push_back(index);
                state.waiting.insert(index, (new, memory));
            }
        }
        drop(state);
        self.news.notify_all();
    }

    /// The life of the thread.
    fn write_all(&self) {
        let mut state = self.lock();
        loop {
            let Some(index) = state.queue.pop_front() else {
                if state.closed {
                    return;
                }
                state = self.wait(state);
                continue;
            };
            let Some((pages, memory)) = state.waiting.remove(&index) else {
                continue;
            };
            state.writing = true;
            drop(state);
            let written = self.write(index, pages, &memory);
            drop(memory);
            state = self.lock();
            state.writing = false;
            *self.present_in(&mut state, index) |= written;
            self.news.notify_all();
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.news
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes pages of a chunk, run by run. Those that were written.
    fn write(&self, index: u64, pages: u64, memory: &Memory) -> u64 {
        let start = index.saturating_mul(CHUNK);
        let mut left = pages;
        let mut bytes = vec![0; CHUNK as usize];
        while left != 0 {
            let first = u64::from(left.trailing_zeros());
            let run = u64::from((left >> first).trailing_ones());
            let from = start.saturating_add(first * PAGE);
            let end = from.saturating_add(run * PAGE).min(self.size);
            let range = ByteRange::between(from, end);
            let part = &mut bytes[..range.len() as usize];
            copy_out(memory, from, part);
            if !self.pages.write(from, part) {
                return pages & !left;
            }
            left &= !mask(index, range);
        }
        pages
    }

    /// Waits, with a bound, until what has arrived is written, and ends the thread.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.news.notify_all();
        let busy = |state: &mut State| state.writing || !state.queue.is_empty();
        let waited = self.news.wait_timeout_while(state, FLUSH_LIMIT, busy);
        drop(waited);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
