//! One block: a row of pieces that appear in order while it is decoded, and those who wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::backing::{Backing, Copied};
use super::budget::Reservation;
use super::patience::{Patience, Wait, Waited};
use super::zeroes::Zeroes;
use crate::sys::memory::{Area, Filling};
use crate::{Error, Kind, Lent, Result};

/// Bytes of a piece; the last one of a block may be shorter.
pub(super) const PIECE: usize = 256 << 10;
/// [`PIECE`] as a file or device offset.
pub(super) const PIECE_BYTES: u64 = PIECE as u64;

/// Where the pieces of a block are kept.
#[derive(Debug)]
pub(super) enum Store {
    /// In a row, from when its decoding begins.
    Memory(OnceLock<Arc<Area>>),
    /// In a file, the first byte at `base`.
    File { file: Arc<Backing>, base: u64 },
}

/// A block of decoded bytes, complete or not.
#[derive(Debug)]
pub(super) struct Block {
    len: u64,
    pub(super) store: Store,
    state: Mutex<State>,
    changed: Condvar,
    /// The phase is `Done`: what is read needs no lock and no second look.
    done: AtomicBool,
    /// Memory of the pieces, given back with the last reader.
    memory: Mutex<Option<Reservation>>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Bytes from the start that can be read: whole pieces, or all.
    ready: u64,
    /// Counts signs of life of the decoder.
    beats: u64,
    /// A reader waits, so this is no longer a mere prefetch.
    wanted: bool,
    /// Somebody has seen to it that it is decoded on demand.
    asked: bool,
    /// Bytes were given to a reader before the check was known.
    served: bool,
    /// Which pieces are zero.
    zero: Zeroes,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Nobody decodes it; whoever claims it does.
    Queued,
    Running,
    Done,
    Failed(Error),
    /// Given up before it was decoded: ask for the block anew.
    Dropped,
}

impl Block {
    pub(super) fn in_memory(len: u64) -> Self {
        Self::new(len, Store::Memory(OnceLock::new()))
    }

    pub(super) fn in_file(len: u64, file: Arc<Backing>, base: u64) -> Self {
        Self::new(len, Store::File { file, base })
    }

    /// A block that is complete in a file; `zero` has a bit for each piece that is zero.
    pub(super) fn stored(len: u64, file: Arc<Backing>, base: u64, zero: Vec<u64>) -> Self {
        let block = Self::in_file(len, file, base);
        {
            let mut state = block.lock();
            state.ready = len;
            state.zero = Zeroes::of(zero);
        }
        block.finish(None);
        block
    }

    fn new(len: u64, store: Store) -> Self {
        Self {
            len,
            store,
            state: Mutex::new(State {
                phase: Phase::Queued,
                ready: 0,
                beats: 0,
                wanted: false,
                asked: false,
                served: false,
                zero: Zeroes::default(),
            }),
            changed: Condvar::new(),
            done: AtomicBool::new(false),
            memory: Mutex::new(None),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the decoder's side

    /// Makes the caller the one who decodes. False when someone else is or was.
    pub(super) fn claim(&self) -> bool {
        let mut state = self.lock();
        let free = matches!(state.phase, Phase::Queued);
        if free {
            state.phase = Phase::Running;
        }
        free
    }

    /// Whether the block waits for somebody to decode it.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.lock().phase, Phase::Queued)
    }

    /// True for the first caller that asks for a block which nobody decodes yet: it has to see
    /// to it. From then on the block is no mere prefetch.
    pub(super) fn ask(&self) -> bool {
        let mut state = self.lock();
        state.wanted = true;
        let first = matches!(state.phase, Phase::Queued) && !state.asked;
        state.asked |= first;
        first
    }

    /// Gives up a block that nobody waits for. False when somebody does or it has begun.
    pub(super) fn drop_unwanted(&self) -> bool {
        let mut state = self.lock();
        let free = matches!(state.phase, Phase::Queued) && !state.wanted;
        if free {
            state.phase = Phase::Dropped;
        }
        free
    }

    /// Gives up a block that was claimed: whoever waits asks for it anew.
    pub(super) fn drop_begun(&self) {
        self.lock().phase = Phase::Dropped;
        self.changed.notify_all();
    }

    /// A sign of life: input has come.
    pub(super) fn beat(&self) {
        self.lock().beats += 1;
    }

    /// Bytes that can be read so far.
    pub(super) fn ready(&self) -> u64 {
        self.lock().ready
    }

    /// Memory for the bytes, given once, to who decodes. `None` for a block in a file.
    ///
    /// # Errors
    /// `Limit` when there is no memory.
    pub(super) fn fill(&self) -> Result<Option<Filling>> {
        let Store::Memory(place) = &self.store else {
            return Ok(None);
        };
        let no_memory = || Error::new(Kind::Limit, "there is no memory for decoded bytes");
        let len = usize::try_from(self.len).map_err(|_| no_memory())?;
        let (area, filling) = Area::start(len).ok_or_else(no_memory)?;
        let taken = || Error::new(Kind::Io, "a block is decoded twice at the same time");
        place.set(area).map_err(|_| taken())?;
        Ok(Some(filling))
    }

    /// Makes the next piece readable, which is in its place.
    pub(super) fn publish(&self, start: u64, len: usize, zero: bool) {
        let mut state = self.lock();
        if zero {
            state.zero.set(start);
        }
        self.advance(state, start, len);
    }

    fn advance(&self, mut state: MutexGuard<'_, State>, start: u64, len: usize) {
        state.ready = state.ready.max(start + len as u64);
        state.beats += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// All is decoded and checked. `memory` stays taken as long as the block lives.
    pub(super) fn finish(&self, memory: Option<Reservation>) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
        self.lock().phase = Phase::Done;
        self.done.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Decoding has failed. True when bytes had been served already.
    pub(super) fn fail(&self, error: Error) -> bool {
        let mut state = self.lock();
        state.phase = Phase::Failed(error);
        let served = state.served;
        drop(state);
        self.changed.notify_all();
        served
    }

    /// Makes a block that failed for a reason that may pass (the source did not answer) ready to
    /// be claimed again. What was decoded stays readable. False when it has not failed so.
    pub(super) fn rearm(&self) -> bool {
        let mut state = self.lock();
        let passing = matches!(&state.phase, Phase::Failed(error) if may_pass(error));
        if passing {
            state.phase = Phase::Queued;
        }
        passing
    }

    // ---- the readers' side

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Whether the bytes up to `end` can be had without waiting, even if the block has failed
    /// further on.
    pub(super) fn has(&self, end: u64, verify: bool) -> bool {
        let state = self.lock();
        match &state.phase {
            Phase::Done => true,
            Phase::Queued | Phase::Running => !verify && end <= state.ready,
            Phase::Failed(error) => {
                !verify && end <= state.ready && error.kind() != Kind::Corrupt && self.outlasts()
            }
            Phase::Dropped => false,
        }
    }

    /// Whether a failure leaves what was decoded before it in place.
    fn outlasts(&self) -> bool {
        matches!(self.store, Store::File { .. })
    }

    /// Waits until the bytes up to `end` can be read.
    ///
    /// # Errors
    /// Why the block failed, `TimedOut` after `patience.limit` without progress, or what
    /// `patience.stop` says.
    pub(super) fn wait(&self, end: u64, patience: &Patience<'_>) -> Result<Waited> {
        if self.is_done() {
            return Ok(Waited::Ready);
        }
        let mut state = self.lock();
        state.wanted = true;
        let mut wait = Wait::begin(patience);
        loop {
            let readable = !patience.verify && end <= state.ready;
            let elsewhere = match &state.phase {
                Phase::Done => return Ok(Waited::Ready),
                Phase::Dropped => return Ok(Waited::Again),
                Phase::Failed(error) => {
                    if readable && error.kind() != Kind::Corrupt && self.outlasts() {
                        return Ok(Waited::Ready);
                    }
                    return Err(error.clone());
                }
                Phase::Queued | Phase::Running if readable => {
                    state.served = true;
                    return Ok(Waited::Ready);
                }
                Phase::Running => 0,
                Phase::Queued => (patience.elsewhere)(),
            };
            wait.check((state.beats, elsewhere), state.ready, self.len)?;
            state = self
                .changed
                .wait_timeout(state, patience.look())
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Copies bytes that a successful [`Self::wait`] covers.
    ///
    /// # Errors
    /// When the block turned out to be corrupt meanwhile, or the temp file cannot be read.
    pub(super) fn copy(&self, skip: u64, buf: &mut [u8]) -> Result<Copied> {
        let done = self.is_done();
        match &self.store {
            Store::Memory(place) => {
                let bytes = place
                    .get()
                    .and_then(|area| area.get(within(skip, buf.len())));
                let missing = || Error::new(Kind::Io, "a decoded piece is missing");
                buf.copy_from_slice(bytes.ok_or_else(missing)?);
            }
            Store::File { file, base } => {
                if let Copied::Lost = self.copy_stored(file, *base, skip, buf)? {
                    // Not lost, if they were taken away because they are wrong.
                    return self.check_corrupt().map(|()| Copied::Lost);
                }
            }
        }
        if !done {
            // The check may have failed while the bytes were copied.
            self.check_corrupt()?;
        }
        Ok(Copied::Yes)
    }

    fn copy_stored(&self, file: &Backing, base: u64, skip: u64, buf: &mut [u8]) -> Result<Copied> {
        let mut at = skip;
        let mut rest = buf;
        while !rest.is_empty() {
            let inside = at % PIECE_BYTES;
            // Less than a piece.
            let len = rest.len().min(PIECE - inside as usize);
            let (part, after) = rest.split_at_mut(len);
            if self.stored_zero(at) {
                part.fill(0);
            } else if let Copied::Lost = file.read(part, base + at)? {
                return Ok(Copied::Lost);
            }
            at += len as u64;
            rest = after;
        }
        Ok(Copied::Yes)
    }

    /// Lends bytes that a successful [`Self::wait`] covers. `None` when they are in a file.
    ///
    /// # Errors
    /// When the block turned out to be corrupt meanwhile.
    pub(super) fn lend(&self, skip: u64, len: usize) -> Result<Option<Lent>> {
        let Store::Memory(place) = &self.store else {
            return Ok(None);
        };
        if !self.is_done() {
            self.check_corrupt()?;
        }
        let area = place.get();
        Ok(area.and_then(|area| Lent::new(Arc::clone(area), within(skip, len))))
    }

    /// # Errors
    /// When the block turned out to be corrupt.
    fn check_corrupt(&self) -> Result<()> {
        match &self.lock().phase {
            Phase::Failed(error) if error.kind() == Kind::Corrupt => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Copies bytes that an earlier mount has decoded, of a block that is not decoded that far
    /// here. False when there are none.
    pub(super) fn copy_kept(&self, skip: u64, buf: &mut [u8]) -> bool {
        let Store::File { file, base } = &self.store else {
            return false;
        };
        if file.keeping().is_none() || !file.read_kept(buf, base + skip) {
            return false;
        }
        self.lock().served = true;
        // As for bytes that were decoded here: the check may have failed while they were copied.
        self.check_corrupt().is_ok()
    }

    fn stored_zero(&self, at: u64) -> bool {
        self.lock().zero.has(at)
    }

    /// Where the pieces begin that are zero, and how long they are.
    pub(super) fn zeroes(&self) -> Vec<(u64, usize)> {
        let starts = (0..self.len).step_by(PIECE);
        let zeroes = starts.filter(|start| self.stored_zero(*start));
        let piece = |start: u64| {
            let len = usize::try_from(self.len - start).unwrap_or(PIECE);
            (start, len.min(PIECE))
        };
        zeroes.map(piece).collect()
    }

    /// The end of the run of equal pieces at `at`, looked for up to `until`, and whether it is
    /// known to be zero. Counts as serving those bytes.
    pub(super) fn run(&self, at: u64, until: u64, verify: bool) -> (u64, bool) {
        let mut state = self.lock();
        let known = state.known(self.len, verify);
        if at >= known {
            return (self.len, false);
        }
        state.served |= !matches!(state.phase, Phase::Done);
        let known = known.min(until.max(at.saturating_add(1)));
        let (zero, end) = state.zero.run(at, known);
        (end, zero)
    }

    /// Bytes from `at` to `until` that are known to be data, and those of which nothing is known.
    pub(super) fn tally(&self, at: u64, until: u64, verify: bool) -> (u64, u64) {
        let state = self.lock();
        let until = until.min(self.len);
        let known = state.known(self.len, verify).min(until);
        let unknown = until.saturating_sub(known.max(at));
        let (mut at, mut data) = (at, 0);
        while at < known {
            let (zero, end) = state.zero.run(at, known);
            if !zero {
                data += end - at;
            }
            at = end;
        }
        (data, unknown)
    }
}

impl State {
    /// Bytes from the start of a block of `len` bytes of which it is known whether they are zero.
    fn known(&self, len: u64, verify: bool) -> u64 {
        match &self.phase {
            Phase::Done => len,
            Phase::Running | Phase::Queued if !verify => self.ready,
            _ => 0,
        }
    }
}

/// The bytes of an area from `skip` on.
fn within(skip: u64, len: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(skip).unwrap_or(usize::MAX);
    start..start.saturating_add(len)
}

/// Whether asking again may help: the failure is not in the image.
pub(super) fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), Kind::Io | Kind::TimedOut)
}

#[cfg(test)]
mod tests;
