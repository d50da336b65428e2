//! A device that takes its time, and tells how many requests it is taking it for.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{ByteRange, Device, Extents, Geometry, Result, Volume};

/// Passes reads to the volume below, each after a delay or when a gate is opened. Read-only.
#[derive(Debug)]
pub struct Slow {
    below: Volume,
    gate: Gate,
}

/// The control of a [`Slow`] device; clones control the same device.
#[derive(Clone, Debug)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    shut: bool,
    delay: Duration,
    in_flight: usize,
    most: usize,
    served: u64,
}

impl Slow {
    /// A device over `below` whose gate is open and whose delay is zero.
    #[must_use]
    pub fn volume(below: Volume) -> (Volume, Gate) {
        let gate = Gate(Arc::default());
        let device = Self {
            below,
            gate: gate.clone(),
        };
        (Volume::new(device), gate)
    }
}

impl Gate {
    /// Reads that arrive from now on wait for [`Self::open`].
    pub fn shut(&self) {
        self.state().shut = true;
    }

    /// Lets all waiting reads go on.
    pub fn open(&self) {
        self.state().shut = false;
        self.0.1.notify_all();
    }

    /// Every read that arrives from now on sleeps this long first.
    pub fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Reads that have arrived and are not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.state().in_flight
    }

    /// The most reads that ever were in flight at once.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.state().most
    }

    /// Reads that were answered.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.state().served
    }

    /// Waits until `count` reads are in flight. `false` when that did not happen within `limit`.
    #[must_use]
    pub fn wait_in_flight(&self, count: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state();
        while state.in_flight < count {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) {
        let mut state = self.state();
        state.in_flight += 1;
        state.most = state.most.max(state.in_flight);
        self.0.1.notify_all();
        let delay = state.delay;
        while state.shut {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
    }

    fn leave(&self) {
        let mut state = self.state();
        state.in_flight -= 1;
        state.served += 1;
        self.0.1.notify_all();
    }
}

impl Device for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.gate.enter();
        let result = self.below.read_at(buf, offset);
        self.gate.leave();
        result
    }

    fn extents(&self, _range: ByteRange, out: &mut Extents) -> Result<()> {
        self.below
            .extents_moved(ByteRange::between(0, self.below.size()), out)
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}
