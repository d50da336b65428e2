//! Frames that do not say how long their content is are decoded once when the file is opened: small
//! ones only to count, several at once; large ones into a temp file, from which they are served.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::frames::{Content, Measure, Unit};
use super::header::FrameHeader;
use super::stream::{Decoder, Frames, INPUT};
use crate::cache::{Blocks, OpeningMemory, Shelf, Sink, Stored};
use crate::layer::input::Input;
use crate::layer::recent::Recent;
use crate::layer::scan::wide;
use crate::{ByteRange, Cx, Error, Result, Volume};

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

impl Measure for Store<'_> {
    fn measure(&mut self, at: u64, header: &FrameHeader) -> Result<(u64, u64)> {
        let range = ByteRange::between(at, self.below.size());
        self.store(range, header.memory(), true)
    }
}

/// Finds the content of all units that do not say it.
///
/// # Errors
/// As decoding.
pub(super) fn measure(units: &mut [Unit], store: &mut Store<'_>) -> Result<()> {
    let (below, cx) = (store.below, store.cx);
    let unknown: Vec<usize> = units
        .iter()
        .enumerate()
        .filter(|(_, unit)| matches!(unit.content, Content::Most(_)))
        .map(|(index, _)| index)
        .collect();
    let alone = unknown.len() == 1;
    let mut count = Vec::new();
    for index in unknown {
        let Some(unit) = units.get_mut(index) else {
            continue;
        };
        let len = unit.end.saturating_sub(unit.at);
        let is_long = matches!(unit.content, Content::Most(most) if Blocks::is_huge(most, cx));
        // What would be decoded again into a temp file goes there at once. Of many that cannot be
        // told before; then two cores count faster than one stores.
        if is_long && (alone || Blocks::is_huge(len, cx)) {
            let range = ByteRange::between(unit.at, unit.end);
            let (len, _) = store.store(range, unit.memory, false)?;
            unit.content = Content::Stored(len);
        } else {
            count.push((index, *unit));
        }
    }
    for (index, len) in count_all(below, &count, cx)? {
        if let Some(unit) = units.get_mut(index) {
            unit.content = Content::Known(len);
        }
    }
    Ok(())
}

/// Counts on as many threads as the pool has.
fn count_all(below: &Volume, units: &[(usize, Unit)], cx: &Cx) -> Result<Vec<(usize, u64)>> {
    let work = Work {
        below,
        units,
        cx,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        done: AtomicU64::new(0),
        total: units
            .iter()
            .map(|(_, unit)| unit.end.saturating_sub(unit.at))
            .sum(),
        told: Mutex::new(Instant::now()),
        found: Mutex::default(),
        failed: Mutex::default(),
        alike: Mutex::default(),
    };
    let threads = cx.pool.threads().min(units.len());
    if threads <= 1 {
        work.run();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| work.run());
            }
        });
    }
    let failed = work
        .failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match failed {
        Some((_, error)) => Err(error),
        None => Ok(work
            .found
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)),
    }
}

/// What the counting threads share.
struct Work<'a> {
    below: &'a Volume,
    units: &'a [(usize, Unit)],
    cx: &'a Cx,
    next: AtomicUsize,
    stop: AtomicBool,
    /// Encoded bytes.
    done: AtomicU64,
    total: u64,
    told: Mutex<Instant>,
    found: Mutex<Vec<(usize, u64)>>,
    /// The first unit that failed, in the order of the file.
    failed: Mutex<Option<(usize, Error)>>,
    /// The bytes of some units, and what they decode to: frames depend on nothing else.
    alike: Mutex<Recent<(Vec<u8>, u64)>>,
}

impl Work<'_> {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((index, unit)) = self.units.get(next) else {
                break;
            };
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
    }

    /// The content of a unit, decoded unless one of the same bytes was.
    fn look(&self, unit: &Unit) -> Result<u64> {
        let range = ByteRange::between(unit.at, unit.end);
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
        let mut input = Input::new(self.below, ByteRange::between(unit.at, unit.end));
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
                self.total,
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
