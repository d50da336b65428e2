//! A disk in memory that remembers every write, and what it would hold had it been cut off between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Rng;
use crate::{ByteRange, Device, Done, Geometry, Result, Volume, WriteFeatures, Writer, ZeroOpts};

/// What a power failure leaves whole.
const SECTOR: usize = 512;

/// A disk that can be made longer, as a file can. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    before: Vec<u8>,
    now: Vec<u8>,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
enum Event {
    Write(usize, Vec<u8>),
    Hole(std::ops::Range<usize>),
    Grow(usize),
    Flush,
}

impl Event {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, new) => put(bytes, *at, new),
            Self::Hole(range) => bytes[range.clone()].fill(0),
            Self::Grow(size) => bytes.resize(*size, 0),
            Self::Flush => {}
        }
    }

    /// As after a power failure while it was under way: some of its sectors.
    fn apply_some(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        match self {
            Self::Write(at, new) => {
                let mut start = 0;
                while start < new.len() {
                    let end = ((at + start) / SECTOR + 1) * SECTOR - at;
                    let end = end.min(new.len());
                    if rng.below(2) == 0 {
                        put(bytes, at + start, &new[start..end]);
                    }
                    start = end;
                }
            }
            other => other.apply(bytes),
        }
    }
}

/// Writes, also behind the end.
fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    let end = at + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(new);
}

impl Recorder {
    /// A disk with these bytes, and a handle on what happens to it.
    #[must_use]
    pub fn volume(bytes: Vec<u8>) -> (Volume, Self) {
        let state = State {
            before: bytes.clone(),
            now: bytes,
            events: Vec::new(),
        };
        let recorder = Self(Arc::new(Mutex::new(state)));
        (Volume::new(recorder.clone()), recorder)
    }

    /// How many writes and flushes there were so far.
    #[must_use]
    pub fn events(&self) -> usize {
        self.state().events.len()
    }

    /// What the disk held after the first `events`: what is left when the writer is killed then.
    #[must_use]
    pub fn after(&self, events: usize) -> Vec<u8> {
        let state = self.state();
        let mut bytes = state.before.clone();
        for event in &state.events[..events] {
            event.apply(&mut bytes);
        }
        bytes
    }

    /// What may be left when the power fails after the first `events`: all up to the last flush, and
    /// of what came later some, in part. Depends on `seed`.
    #[must_use]
    pub fn after_power_failure(&self, events: usize, seed: u64) -> Vec<u8> {
        let state = self.state();
        let events = &state.events[..events];
        let flushed = events
            .iter()
            .rposition(|event| matches!(event, Event::Flush))
            .map_or(0, |last| last + 1);
        let mut bytes = state.before.clone();
        for event in &events[..flushed] {
            event.apply(&mut bytes);
        }
        let mut rng = Rng::new(seed);
        let style = rng.below(4);
        let one = rng.below(1 + (events.len() - flushed) as u64);
        for (number, event) in events[flushed..].iter().enumerate() {
            match style {
                // Some of them.
                0 if rng.below(2) == 0 => event.apply(&mut bytes),
                // All but one, only one: what matters is often a single write.
                1 if number as u64 != one => event.apply(&mut bytes),
                2 if number as u64 == one => event.apply(&mut bytes),
                3 => event.apply_some(&mut bytes, &mut rng),
                _ => {}
            }
        }
        bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, event: Event) {
        let state = &mut *self.state();
        event.apply(&mut state.now);
        state.events.push(event);
    }
}

/// `Volume` has checked that it is within a Vec.
fn index(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}

impl Device for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn geometry(&self) -> Geometry {
        Geometry::bytes(self.state().now.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(&self.state().now[at..at + buf.len()]);
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl Writer for Recorder {
    fn features(&self) -> WriteFeatures {
        WriteFeatures {
            fua: false,
            zero: true,
            trim: true,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<()> {
        self.event(Event::Write(offset as usize, buf.to_vec()));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.event(Event::Flush);
        Ok(())
    }

    fn zero(&self, range: ByteRange, _opts: ZeroOpts) -> Result<Done> {
        self.event(Event::Hole(index(range)));
        Ok(Done::Yes)
    }

    fn grow(&self, size: u64) -> Result<Done> {
        self.event(Event::Grow(size as usize));
        Ok(Done::Yes)
    }

    fn trim(&self, range: ByteRange, _fua: bool) -> Result<()> {
        self.event(Event::Hole(index(range)));
        Ok(())
    }
}
