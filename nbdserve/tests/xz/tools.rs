//! What the xz tests share: images, the `xz` tool as the oracle, sources that count and wait.

use std::sync::{Arc, Condvar, Mutex};

use nbdserve::cx::Observer;
use nbdserve::layer::xz::XZ;
pub(crate) use nbdserve::testing::packed::{read, roomy, try_read_all, verifying};
pub(crate) use nbdserve::testing::{disk_like as image, noise};
use nbdserve::testing::{packed, tools};
use nbdserve::{Cx, Device, Error, Geometry, Kind, Result, Volume};

pub(crate) const MIB: usize = 1 << 20;

/// `xz ARGS -c < bytes`.
pub(crate) fn xz(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter("xz", &[args, &["-c"]].concat(), bytes)
}

pub(crate) fn open(compressed: Vec<u8>, cx: &Cx) -> Result<Volume> {
    packed::open(&XZ, compressed, cx)
}

pub(crate) fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    packed::open_on(&XZ, below, cx)
}

/// A source that counts requests, can be told to fail, and can hold back reads beyond an offset.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    bytes: Arc<Vec<u8>>,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    reads: Vec<(u64, usize)>,
    all_reads: Vec<(u64, usize)>,
    hold_from: Option<u64>,
    fail_from: Option<u64>,
}

impl State {
    fn bytes(&self) -> u64 {
        self.all_reads.iter().map(|(_, len)| *len as u64).sum()
    }
}

impl Probe {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Arc::new(bytes),
            state: Arc::default(),
        }
    }

    pub(crate) fn volume(&self) -> Volume {
        Volume::new(self.clone())
    }

    /// Reads that pass `offset` wait until [`Self::release`].
    pub(crate) fn hold_from(&self, offset: u64) {
        self.state.0.lock().unwrap().hold_from = Some(offset);
    }

    pub(crate) fn release(&self) {
        self.state.0.lock().unwrap().hold_from = None;
        self.state.1.notify_all();
    }

    /// Reads that pass `offset` fail.
    pub(crate) fn fail_from(&self, offset: Option<u64>) {
        self.state.0.lock().unwrap().fail_from = offset;
    }

    /// Returns once `count` requests have come since the last [`Self::take_reads`].
    pub(crate) fn wait_for_reads(&self, count: usize) {
        let state = self.state.0.lock().unwrap();
        let few = |state: &mut State| state.reads.len() < count;
        drop(self.state.1.wait_while(state, few).unwrap());
    }

    /// Offsets and lengths of all requests since the last call.
    pub(crate) fn take_reads(&self) -> Vec<(u64, usize)> {
        std::mem::take(&mut self.state.0.lock().unwrap().reads)
    }
}

impl Probe {
    /// Bytes of the source.
    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// All bytes that were ever asked for.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.wait_for_bytes(0)
    }

    /// As [`Self::read_bytes`], once they are at least `count`.
    pub(crate) fn wait_for_bytes(&self, count: u64) -> u64 {
        let state = self.state.0.lock().unwrap();
        let few = |state: &mut State| state.bytes() < count;
        self.state.1.wait_while(state, few).unwrap().bytes()
    }

    /// How many large reads ever began in `range`.
    pub(crate) fn reads_within(&self, range: std::ops::Range<u64>) -> usize {
        let state = self.state.0.lock().unwrap();
        let large = |(offset, len): &&(u64, usize)| range.contains(offset) && *len >= MIB;
        state.all_reads.iter().filter(large).count()
    }
}

/// Keeps what an observer is told.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    poisoned: Vec<String>,
    progress: Option<(u64, u64)>,
}

impl Witness {
    pub(crate) fn poisoned(&self) -> Vec<String> {
        self.told.lock().unwrap().poisoned.clone()
    }

    /// As [`Self::poisoned`], once there is something: readers may hear of damage first.
    pub(crate) fn wait_poisoned(&self) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let told = self
            .changed
            .wait_while(told, |told| told.poisoned.is_empty());
        told.unwrap().poisoned.clone()
    }

    /// The length of the pass, once it was told that all of it is done.
    pub(crate) fn wait_complete(&self) -> u64 {
        let told = self.told.lock().unwrap();
        let incomplete = |told: &mut Told| told.progress.is_none_or(|(done, all)| done < all);
        let told = self.changed.wait_while(told, incomplete).unwrap();
        told.progress.map_or(0, |(_, all)| all)
    }
}

impl Observer for Witness {
    fn progress(&self, _what: &str, done: u64, total: u64) {
        self.told.lock().unwrap().progress = Some((done, total));
        self.changed.notify_all();
    }

    fn poisoned(&self, error: &Error) {
        self.told.lock().unwrap().poisoned.push(error.to_string());
        self.changed.notify_all();
    }
}

impl Device for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn geometry(&self) -> Geometry {
        Geometry::bytes(self.bytes.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut state = self.state.0.lock().unwrap();
        state.reads.push((offset, buf.len()));
        state.all_reads.push((offset, buf.len()));
        self.state.1.notify_all();
        state = self
            .state
            .1
            .wait_while(state, |state| {
                state.hold_from.is_some_and(|from| end > from)
            })
            .unwrap();
        if state.fail_from.is_some_and(|from| end > from) {
            return Err(Error::new(Kind::Io, "the source fails as told"));
        }
        let start = offset as usize;
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        Ok(())
    }
}
