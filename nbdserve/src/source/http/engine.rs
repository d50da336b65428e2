//! Readers on one side, fetches on the other, and the store between them.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::disk::Disk;
use super::fetch::{self, Landing};
use super::flights::{Flight, Flights};
use super::parts::Remotes;
use super::remote::Body;
use super::sets;
use super::store::{CHUNK, PAGE, chunks};
use super::store::{Memory, Store, copy_out, mask};
use super::streams::{Streams, WINDOW, fitting, merged};
use super::wait::{LOOK, Wait};
use crate::cx::Cancel;
use crate::{ByteRange, Error, Result};

/// Fetches at the same time.
pub(super) const MOST_IN_FLIGHT: usize = 6;
/// Of these, hints leave this many to readers that wait.
const KEPT_FOR_READERS: usize = 2;
/// Hints that find more fetches than this waiting are ignored.
const MOST_WAITING: usize = 64;
/// ... or so many ranges.
const MOST_FLIGHTS: usize = 1024;
/// Ranges that are asked for with one request. The field that names them has less than 4 KiB, half
/// of what servers take; Apache refuses more than 200 ranges.
const MOST_RANGES: usize = 64;
/// Of a server that sends one range only, ranges this near to each other are had as one: at 10 MB/s
/// what lies between takes a tenth of a round trip.
const NEAR: u64 = WINDOW / 2;
/// No request is longer.
const LONGEST_GET: u64 = 16 << 20;

/// The state of one open file.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) remote: Remotes,
    handle: Handle,
    cancel: Cancel,
    limits: Limits,
    /// What is kept for the next mount.
    disk: Option<Arc<Disk>>,
    state: Mutex<State>,
    /// Something has arrived, failed or ended.
    news: Condvar,
}

/// How long and how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) no_progress: Duration,
    pub(super) answer_within: Option<Duration>,
    /// Bytes of the store.
    pub(super) memory: u64,
}

#[derive(Debug)]
struct State {
    store: Store,
    streams: Streams,
    flights: Flights,
    /// Bytes that have arrived, of all flights.
    arrived: u64,
    /// Why nothing can be read any more.
    dead: Option<Error>,
}

impl Engine {
    /// The engine for an open file, whose first answer is `body`.
    pub(super) fn start(
        remote: Remotes,
        body: Body,
        handle: Handle,
        cancel: Cancel,
        limits: Limits,
        disk: Option<Arc<Disk>>,
    ) -> Arc<Self> {
        let size = remote.size();
        let state = State {
            store: Store::new(size, limits.memory),
            streams: Streams::new(size, limits.longest_guess()),
            flights: Flights::default(),
            arrived: 0,
            dead: None,
        };
        let engine = Arc::new(Self {
            remote,
            handle,
            cancel,
            limits,
            disk,
            state: Mutex::new(state),
            news: Condvar::new(),
        });
        engine.start_first(body);
        engine
    }

    fn start_first(self: &Arc<Self>, body: Body) {
        if body.range.is_empty() {
            return;
        }
        let mut state = self.lock();
        let range = state.store.pages(body.range);
        state.flights.add(range, true);
        self.start_waiting(&mut state, Some(body));
    }

    /// Fills `buf` with the bytes at `offset`, which are within the file.
    pub(super) fn read(self: &Arc<Self>, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut state = self.lock();
        let pages = state.store.pages(range);
        let is_here = state.gaps(pages, self.disk.as_deref()).is_empty();
        let want = state.streams.read(range, is_here);
        self.want(&mut state, want, true, self.limits.longest_guess());

        let mut at = range.start();
        let mut wait = Wait::new(self.limits);
        while at < range.end() {
            self.cancel.check()?;
            if let Some(error) = &state.dead {
                return Err(error.clone());
            }
            let mut piece = Store::first_piece(ByteRange::between(at, range.end()));
            let from = (at - offset) as usize;
            let mut memory = state.store.read(piece);
            if let (None, Some(disk)) = (&memory, &self.disk) {
                // What is in memory is read there.
                let missing = state.store.missing(piece.start() / CHUNK, piece);
                let (part, is_there) = disk.split(piece, missing);
                piece = part;
                if is_there {
                    drop(state);
                    if disk.read(&mut buf[from..from + piece.len() as usize], at) {
                        at = piece.end();
                        wait.forget();
                    }
                    state = self.lock();
                    continue;
                }
                memory = state.store.read(piece);
            }
            if let Some(memory) = memory {
                drop(state);
                copy_out(&memory, at, &mut buf[from..from + piece.len() as usize]);
                at = piece.end();
                wait.forget();
                state = self.lock();
                continue;
            }
            wait.check_failed()?;
            let Some(flight) = state.flight_of(piece) else {
                // Never asked for, or given up to make room.
                let rest = state.store.pages(ByteRange::between(at, range.end()));
                self.want(&mut state, rest, true, self.limits.longest_guess());
                continue;
            };
            let hurry = !flight.started && !flight.urgent;
            flight.urgent = true;
            let (id, place, failed) = (flight.id, flight.at, Arc::clone(&flight.failed));
            let progress = if flight.started { place } else { state.arrived };
            wait.check_time((id, progress), failed)?;
            if hurry {
                self.start_waiting(&mut state, None);
            }
            let waited = self.news.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Fetches what will be read, as far as one request goes: it must wait in the store until it is
    /// read.
    pub(super) fn hint(self: &Arc<Self>, ranges: &[ByteRange]) {
        let mut state = self.lock();
        let many = state.flights.len() >= MOST_FLIGHTS;
        if state.dead.is_some() || many || state.flights.requests(false) >= MOST_WAITING {
            return;
        }
        let longest = self.limits.longest_get();
        if let [range] = ranges {
            let end = range.start().saturating_add(longest);
            let range = ByteRange::between(range.start(), range.end().min(end));
            let want = state.streams.hint(range);
            return self.want(&mut state, want, false, longest);
        }
        let want = state.streams.hint_set(&fitting(ranges, longest));
        if !self.remote.sets().may_be() {
            for range in merged(want, NEAR) {
                self.want(&mut state, range, false, longest);
            }
            return;
        }
        let gaps = want.into_iter();
        let gaps = gaps.flat_map(|range| state.gaps(range, self.disk.as_deref()));
        let gaps: Vec<_> = gaps.collect();
        for ranges in self.remote.by_file(&gaps) {
            for ranges in ranges.chunks(MOST_RANGES) {
                state.flights.add_set(ranges, false);
            }
        }
        self.start_waiting(&mut state, None);
    }

    /// Sees to it that all of `range` is there or on its way.
    fn want(
        self: &Arc<Self>,
        state: &mut MutexGuard<'_, State>,
        range: ByteRange,
        urgent: bool,
        longest: u64,
    ) {
        if state.dead.is_some() {
            return;
        }
        let gaps = state.gaps(range, self.disk.as_deref());
        let bytes: u64 = gaps.iter().map(|gap| gap.len()).sum();
        let is_set = (2..=MOST_RANGES).contains(&gaps.len()) && bytes <= longest;
        if is_set && self.remote.sets().may_be() {
            // What is there already cuts it into pieces: still one request.
            for ranges in self.remote.by_file(&gaps) {
                state.flights.add_set(&ranges, urgent);
            }
            return self.start_waiting(state, None);
        }
        for mut gap in gaps {
            while !gap.is_empty() {
                let end = gap.start().saturating_add(longest).min(gap.end());
                let part = ByteRange::between(gap.start(), end);
                state.flights.add_merged(part, urgent, longest);
                gap = ByteRange::between(end, gap.end());
            }
        }
        self.start_waiting(state, None);
    }

    /// Starts what waits, readers first, while there is room in flight and in memory. `body`
    /// is the answer that the first of them already has.
    fn start_waiting(self: &Arc<Self>, state: &mut MutexGuard<'_, State>, mut body: Option<Body>) {
        while state.dead.is_none() {
            let active = state.flights.requests(true);
            let flights = &mut state.flights;
            let next = match flights.waiting(true) {
                Some(next) if active < MOST_IN_FLIGHT => Some(next),
                None if active < MOST_IN_FLIGHT - KEPT_FOR_READERS => flights.waiting(false),
                _ => None,
            };
            let Some(next) = next else { return };
            let urgent = flights.is_urgent(next);
            let set = flights.set_of(next);
            if set.len() > 1 && !self.remote.sets().may_be() {
                flights.part(&set);
                continue;
            }
            let ranges = flights.ranges(&set);
            if !urgent && !self.leaves_room(state, &ranges) {
                return;
            }
            // They have at most half of the store, so they fit when there are no others.
            let Some(memories) = state.reserve(&ranges, active == 0) else {
                return;
            };
            let mut landings = Vec::new();
            for (at, memories) in set.into_iter().zip(memories) {
                let (id, range) = state.flights.start(at);
                landings.push(Landing::new(id, range, memories));
            }
            let engine = Arc::clone(self);
            match landings.pop() {
                Some(alone) if landings.is_empty() => {
                    self.handle.spawn(fetch::run(engine, alone, body.take()));
                }
                last => {
                    landings.extend(last);
                    self.handle.spawn(sets::run(engine, landings));
                }
            }
        }
    }

    /// Whether what a hint asks for leaves a quarter of the store to readers.
    fn leaves_room(&self, state: &State, ranges: &[ByteRange]) -> bool {
        let chunks: BTreeSet<u64> = state
            .flights
            .started()
            .chain(ranges.iter().copied())
            .flat_map(chunks)
            .collect();
        (chunks.len() as u64).saturating_mul(CHUNK) <= self.limits.memory / 4 * 3
    }

    /// The flight `id` has filled its memory from `from` up to `to`.
    pub(super) fn arrived(&self, id: u64, from: u64, to: u64) {
        let mut state = self.lock();
        state.arrived = state.arrived.saturating_add(to.saturating_sub(from));
        // A page counts when it is whole; the last one of the file is shorter.
        let whole = if to == self.remote.size() {
            to
        } else {
            to / PAGE * PAGE
        };
        if let Some(new) = state.flights.advance(id, whole) {
            state.store.fill(new);
            if let Some(disk) = &self.disk {
                disk.keep(new, |index| state.store.memory(index));
            }
            self.news.notify_all();
        }
    }

    /// The flight `id` is over.
    pub(super) fn ended(self: &Arc<Self>, id: u64, result: Result<()>) {
        let mut state = self.lock();
        let Some(flight) = state.flights.remove(id) else {
            return;
        };
        if let Err(error) = result {
            // The only one who sets it.
            let _ = flight.failed.set(error);
        }
        self.start_waiting(&mut state, None);
        self.news.notify_all();
    }

    /// The flights `ids`, which are of one set, wait again, each by itself.
    pub(super) fn released(self: &Arc<Self>, ids: impl Iterator<Item = u64>) {
        let mut state = self.lock();
        state.flights.release(&ids.collect());
        self.start_waiting(&mut state, None);
        self.news.notify_all();
    }

    /// Waits, with a bound, until what has arrived is kept.
    pub(super) fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.close();
        }
    }

    /// Nothing will be read any more, because of `error`; the first one counts.
    pub(super) fn die(&self, error: Error) {
        let mut state = self.lock();
        state.dead.get_or_insert(error);
        self.news.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limits {
    /// Bytes of the longest request for what is certain to be read, which is also as far as a hint
    /// is followed: what it brings must wait in the store until it is read.
    pub(super) fn longest_get(self) -> u64 {
        (self.memory / 2).clamp(CHUNK, LONGEST_GET) / CHUNK * CHUNK
    }

    /// Bytes of the longest request that goes beyond what was asked for.
    fn longest_guess(self) -> u64 {
        (self.memory / 8).clamp(CHUNK, LONGEST_GET) / CHUNK * CHUNK
    }
}

impl State {
    /// The parts of `range`, which is aligned to pages, that are neither there nor on their way.
    fn gaps(&self, range: ByteRange, disk: Option<&Disk>) -> Vec<ByteRange> {
        let mut gaps: Vec<ByteRange> = Vec::new();
        for index in chunks(range) {
            let mut missing = self.store.missing(index, range);
            if let Some(disk) = disk.filter(|_| missing != 0) {
                missing &= !disk.present(index);
            }
            missing &= !self.flights.coming(index);
            while missing != 0 {
                let first = u64::from(missing.trailing_zeros());
                let len = u64::from((missing >> first).trailing_ones());
                missing &= !((u64::MAX >> (64 - len)) << first);
                let start = index * CHUNK + first * PAGE;
                let gap =
                    ByteRange::between(start, start.saturating_add(len * PAGE)).intersect(range);
                match gaps.last_mut() {
                    Some(last) if last.end() == gap.start() => {
                        *last = ByteRange::between(last.start(), gap.end());
                    }
                    _ => gaps.push(gap),
                }
            }
        }
        gaps
    }

    /// The flight that brings the first missing page of `piece`, which lies in one chunk.
    fn flight_of(&mut self, piece: ByteRange) -> Option<&mut Flight> {
        let index = piece.start() / CHUNK;
        let first = u64::from(self.store.missing(index, piece).trailing_zeros());
        let page = index * CHUNK + first * PAGE;
        self.flights.bringing(page)
    }

    fn reserve(&mut self, ranges: &[ByteRange], forced: bool) -> Option<Vec<Vec<Memory>>> {
        let flights = &self.flights;
        let busy = |index| flights.started().any(|range| mask(index, range) != 0);
        self.store.reserve(ranges, busy, forced)
    }
}
