//! Frames that do not say how long their content is are decoded once when the file is opened: small
//! ones only to count, several at once; large ones into a temp file, from which they are served.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::frames::{self, Content, Found, How, Measure, Unit};
use super::header::FrameHeader;
use super::stream::{Decoder, Frames, INPUT};
use crate::cache::{Blocks, OpeningMemory, Shelf, Sink, Stored};
use crate::layer::input::Input;
use crate::layer::recent::Recent;
use crate::layer::scan::{Scan, wide};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// Bytes that are counted at once.
const COUNTED: usize = 256 << 10;
/// Some units of at most so many bytes that decode to this many times as much are remembered: a disk
/// that is mostly empty has thousands that are the same.
const ALIKE_LONGEST: u64 = 64 << 10;
const ALIKE_RATIO: u64 = 100;
/// Progress is told this often.
const TELL: Duration = Duration::from_millis(300);

/// Takes decoded bytes into a temp file.
#[derive(Debug)]
pub(super) struct Store<'a> {
    below: &'a Volume,
    cx: &'a Cx,
    shelf: Option<Shelf>,
    /// What was stored, by where its frames begin.
    pub(super) stored: HashMap<u64, Stored>,
}

impl<'a> Store<'a> {
    /// Nothing is stored yet, and there is no file.
    pub(super) fn new(below: &'a Volume, cx: &'a Cx) -> Self {
        Self {
            below,
            cx,
            shelf: None,
            stored: HashMap::new(),
        }
    }

    /// Decodes the frames in `range`, or only the first; their bytes, and where they end.
    fn store(&mut self, range: ByteRange, memory: u64, one: bool) -> Result<(u64, u64)> {
        let shelf = match self.shelf.take() {
            Some(shelf) => shelf,
            None => Shelf::new("zstd", self.cx)?,
        };
        let shelf = self.shelf.insert(shelf);
        let at = range.start();
        let name = || format!("the frame at {at}");
        let mut whole = shelf.begin(&name(), memory.saturating_add(INPUT), range.end())?;
        let mut input = Input::new(self.below, range);
        let frames = Frames {
            name: &name,
            memory,
            len: None,
            checks: &[],
            one,
            second: None,
        };
        Decoder::new()?.decode(&mut input, &mut whole, &frames, &mut |whole, at| {
            whole.reached(at);
            whole.beat()
        })?;
        let end = input.at();
        whole.reached(end);
        let stored = whole.finish()?;
        let len = stored.len();
        self.stored.insert(at, stored);
        Ok((len, end))
    }
}

/// Finds the frames of `below`, and the content of those that do not say it.
///
/// Where each request takes a while the frames are counted as they are found, so that what is fetched
/// is fetched once and in order. Elsewhere they are all found first: a file that was cut is known to
/// be after a moment.
///
/// # Errors
/// As [`frames::find`] and decoding.
pub(super) fn find(store: &mut Store<'_>, how: How) -> Result<Found> {
    let (below, cx) = (store.below, store.cx);
    let early = below.gathers();
    let work = Work::new(below, cx);
    let mut found = std::thread::scope(|scope| {
        let mut measuring = Measuring {
            store,
            work: &work,
            scope,
            early,
            queue: None,
            held: Vec::new(),
            long: Vec::new(),
        };
        let mut found = frames::find(&mut Scan::new(below), how, &mut measuring, cx)?;
        measuring.rest(&mut found.units)?;
        Ok(found)
    });
    if let Some(error) = work.failed() {
        // It lies before the place where something else went wrong.
        return Err(error);
    }
    if let Ok(found) = &mut found {
        for (index, len) in work.found() {
            if let Some(unit) = found.units.get_mut(index) {
                unit.content = Content::Known(len);
            }
        }
    }
    found
}

/// Sends units to the threads that count, or keeps them for later.
struct Measuring<'scope, 'env, 'a, 'b> {
    store: &'a mut Store<'b>,
    work: &'env Work<'env>,
    scope: &'scope Scope<'scope, 'env>,
    /// Counts while the search goes on.
    early: bool,
    queue: Option<SyncSender<(usize, Unit)>>,
    /// To be counted. The first one waits for a second: one alone may be better stored.
    held: Vec<(usize, Unit)>,
    /// To be decoded into a temp file.
    long: Vec<(usize, Unit)>,
}

impl Measure for Measuring<'_, '_, '_, '_> {
    fn measure(&mut self, at: u64, header: &FrameHeader) -> Result<(u64, u64)> {
        let range = ByteRange::between(at, self.store.below.size());
        self.store.store(range, header.memory(), true)
    }

    fn settled(&mut self, index: usize, unit: &Unit) -> Result<()> {
        if !matches!(unit.content, Content::Most(_)) {
            if self.early {
                self.work.passed(unit.len());
            }
            return Ok(());
        }
        // What would be decoded again into a temp file goes there at once. Of many that cannot be
        // told before; then two cores count faster than one stores.
        if self.is_long(unit) && Blocks::is_huge(unit.len(), self.store.cx) {
            self.long.push((index, *unit));
            return Ok(());
        }
        self.held.push((index, *unit));
        if self.early && self.held.len().saturating_add(self.long.len()) > 1 {
            self.send()?;
        }
        Ok(())
    }
}

impl Measuring<'_, '_, '_, '_> {
    fn is_long(&self, unit: &Unit) -> bool {
        matches!(unit.content, Content::Most(most) if Blocks::is_huge(most, self.store.cx))
    }

    /// What could not be done before all units were known.
    fn rest(mut self, units: &mut [Unit]) -> Result<()> {
        let first = self.queue.is_none() && self.long.is_empty();
        if let ([one], true) = (&self.held[..], first) {
            if self.is_long(&one.1) {
                self.long.push(*one);
            } else {
                self.work.one(one);
            }
            self.held.clear();
        }
        self.send()?;
        // The threads end when all is counted.
        self.queue = None;
        for (index, unit) in self.long {
            let (len, _) = self.store.store(unit.range(), unit.memory, false)?;
            if let Some(unit) = units.get_mut(index) {
                unit.content = Content::Stored(len);
            }
        }
        Ok(())
    }

    /// Hands over what is held.
    fn send(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        if !self.early {
            let bytes = self.held.iter().map(|(_, unit)| unit.len()).sum();
            self.work.total.store(bytes, Ordering::Relaxed);
        }
        let queue = match &self.queue {
            Some(queue) => queue,
            None => self.queue.insert(self.start()),
        };
        for unit in self.held.drain(..) {
            // Nobody takes it: one of them has failed, which is what will be said.
            queue
                .send(unit)
                .map_err(|_| Error::new(Kind::Io, "no more frames are measured"))?;
        }
        Ok(())
    }

    /// Starts as many threads as the pool has.
    fn start(&self) -> SyncSender<(usize, Unit)> {
        let threads = self.store.cx.pool.threads().max(1);
        let (queue, units) = mpsc::sync_channel(threads);
        let units = Arc::new(Mutex::new(units));
        let work = self.work;
        for _ in 0..threads {
            let units = Arc::clone(&units);
            self.scope.spawn(move || work.run(&units));
        }
        queue
    }
}

/// What the counting threads share.
struct Work<'a> {
    below: &'a Volume,
    cx: &'a Cx,
    stop: AtomicBool,
    /// Encoded bytes.
    done: AtomicU64,
    total: AtomicU64,
    told: Mutex<Instant>,
    found: Mutex<Vec<(usize, u64)>>,
    /// The first unit that failed, in the order of the file.
    failed: Mutex<Option<(usize, Error)>>,
    /// The bytes of some units, and what they decode to: frames depend on nothing else.
    alike: Mutex<Recent<(Vec<u8>, u64)>>,
}

impl<'a> Work<'a> {
    fn new(below: &'a Volume, cx: &'a Cx) -> Self {
        Self {
            below,
            cx,
            stop: AtomicBool::new(false),
            done: AtomicU64::new(0),
            total: AtomicU64::new(below.size()),
            told: Mutex::new(Instant::now()),
            found: Mutex::default(),
            failed: Mutex::default(),
            alike: Mutex::default(),
        }
    }

    /// Counts what comes, until no more does or something fails.
    fn run(&self, units: &Mutex<Receiver<(usize, Unit)>>) {
        while !self.stop.load(Ordering::Relaxed) {
            let next = units.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(unit) = next else { break };
            self.one(&unit);
        }
    }

    fn one(&self, (index, unit): &(usize, Unit)) {
        match self.look(unit) {
            Ok(len) => {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                found.push((*index, len));
            }
            Err(error) => {
                self.stop.store(true, Ordering::Relaxed);
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(first, _)| index < first) {
                    *failed = Some((*index, error));
                }
            }
        }
    }

    /// The numbers of units, and their content.
    fn found(&self) -> Vec<(usize, u64)> {
        std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn failed(&self) -> Option<Error> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take().map(|(_, error)| error)
    }

    /// So many bytes needed no decoding.
    fn passed(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The content of a unit, decoded unless one of the same bytes was.
    fn look(&self, unit: &Unit) -> Result<u64> {
        let range = unit.range();
        if range.len() > ALIKE_LONGEST {
            return self.count(unit);
        }
        let bytes = self
            .below
            .read_vec(range.start(), usize::try_from(range.len()).unwrap_or(0))?;
        let alike = |(other, _): &(Vec<u8>, u64)| *other == bytes;
        let known = self.alike().find(alike).map(|(_, len)| *len);
        if let Some(len) = known {
            self.tell(range.len());
            return Ok(len);
        }
        let len = self.count(unit)?;
        if len / ALIKE_RATIO >= range.len() {
            self.alike().add((bytes, len));
        }
        Ok(len)
    }

    fn alike(&self) -> MutexGuard<'_, Recent<(Vec<u8>, u64)>> {
        self.alike.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, unit: &Unit) -> Result<u64> {
        let name = || format!("the frames at {}..{}", unit.at, unit.end);
        let memory = unit
            .memory
            .saturating_add(INPUT)
            .saturating_add(wide(COUNTED));
        let _memory = OpeningMemory::take(&name(), memory, self.cx)?;
        let mut input = Input::new(self.below, unit.range());
        let mut count = Count {
            buf: vec![0; COUNTED],
            cx: self.cx,
        };
        let frames = Frames {
            name: &name,
            memory: unit.memory,
            len: None,
            checks: &[],
            one: false,
            second: None,
        };
        let mut before = unit.at;
        Decoder::new()?.decode(&mut input, &mut count, &frames, &mut |_, at| {
            self.tell(at.saturating_sub(before));
            before = at;
            Ok(())
        })
    }

    fn tell(&self, more: u64) {
        let done = self
            .done
            .fetch_add(more, Ordering::Relaxed)
            .saturating_add(more);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= TELL {
            *told = Instant::now();
            self.cx.indexing(
                "zstd: measuring frames that do not say their size",
                done,
                self.total.load(Ordering::Relaxed),
            );
        }
    }
}

/// Takes bytes that only count.
struct Count<'a> {
    buf: Vec<u8>,
    cx: &'a Cx,
}

impl Sink for Count<'_> {
    fn spare(&mut self) -> Result<&mut [u8]> {
        self.beat()?;
        Ok(&mut self.buf)
    }

    fn advance(&mut self, _len: usize) -> Result<()> {
        Ok(())
    }

    fn beat(&self) -> Result<()> {
        self.cx.cancel.check()
    }
}
