//! The memory of a unit: decoded blocks, blocks being decoded, and decoders.

use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

thread_local! {
    /// How many running decodes this thread holds memory for.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// What memory is taken for. Of each sort one is always admitted, however small the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The decoding of one block: short.
    Block,
    /// A pass over a huge block: may run for hours, so blocks do not wait for it to end.
    Pass,
}

/// A number of bytes, handed out as [`Reservation`]s.
#[derive(Debug)]
pub(super) struct Budget {
    total: u64,
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    bytes: u64,
    peak: u64,
    blocks: usize,
    passes: usize,
}

impl Used {
    fn running(&mut self, class: Class) -> &mut usize {
        match class {
            Class::Block => &mut self.blocks,
            Class::Pass => &mut self.passes,
        }
    }
}

impl Budget {
    pub(super) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total,
            used: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn used(&self) -> u64 {
        self.lock().bytes
    }

    pub(super) fn peak(&self) -> u64 {
        self.lock().peak
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `bytes` for a decode that begins now, if they are free.
    pub(super) fn try_take(self: &Arc<Self>, bytes: u64, class: Class) -> Option<Reservation> {
        self.take_if(bytes, class, |used, total| {
            used.bytes.saturating_add(bytes) <= total
        })
    }

    /// Takes `bytes` whether they are free or not, in the two cases in which waiting could last
    /// for ever: no decode of this class runs, so none will end and give memory back; or this
    /// thread decodes already (a layer below a layer), so others may wait for what it holds.
    pub(super) fn take_if_stuck(self: &Arc<Self>, bytes: u64, class: Class) -> Option<Reservation> {
        let nested = HELD.get() > 0;
        self.take_if(bytes, class, |used, _| nested || *used.running(class) == 0)
    }

    fn take_if(
        self: &Arc<Self>,
        bytes: u64,
        class: Class,
        admit: impl FnOnce(&mut Used, u64) -> bool,
    ) -> Option<Reservation> {
        let mut used = self.lock();
        if !admit(&mut used, self.total) {
            return None;
        }
        used.bytes = used.bytes.saturating_add(bytes);
        used.peak = used.peak.max(used.bytes);
        *used.running(class) += 1;
        drop(used);
        HELD.set(HELD.get() + 1);
        Some(Reservation {
            budget: Arc::clone(self),
            bytes,
            running: Some(class),
        })
    }

    /// Counts `bytes` that are there whether they are free or not.
    pub(super) fn charge(&self, bytes: u64) {
        let mut used = self.lock();
        used.bytes = used.bytes.saturating_add(bytes);
        used.peak = used.peak.max(used.bytes);
    }

    /// Gives back what [`Self::charge`] has counted.
    pub(super) fn discharge(&self, bytes: u64) {
        self.give_back(bytes, None);
    }

    /// Waits until something was given back, at most `limit`.
    pub(super) fn wait_freed(&self, limit: Duration) {
        let used = self.lock();
        drop(
            self.freed
                .wait_timeout(used, limit)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn give_back(&self, bytes: u64, ended: Option<Class>) {
        let mut used = self.lock();
        used.bytes = used.bytes.saturating_sub(bytes);
        if let Some(class) = ended {
            let running = used.running(class);
            *running = running.saturating_sub(1);
        }
        drop(used);
        self.freed.notify_all();
    }
}

/// Bytes of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
    /// Set while a decode runs on the thread that took it.
    running: Option<Class>,
}

impl Reservation {
    /// The decode has ended, on the thread that began it: keeps `bytes` of what was reserved (at
    /// most all of it) and gives the rest back.
    pub(super) fn settle(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes -= back;
        let ended = self.running.take();
        if ended.is_some() {
            HELD.set(HELD.get().saturating_sub(1));
        }
        self.budget.give_back(back, ended);
    }
}

impl Reservation {
    /// Divides off `bytes` (at most all) that outlive the decode.
    pub(super) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            budget: Arc::clone(&self.budget),
            bytes,
            running: None,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.settle(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_the_rest_is_kept() {
        let budget = Budget::new(100);
        let mut one = budget.try_take(80, Class::Block).unwrap();
        assert!(budget.try_take(30, Class::Block).is_none());
        one.settle(10);
        assert_eq!(budget.used(), 10);
        let two = budget.try_take(90, Class::Block).unwrap();
        drop((one, two));
        assert_eq!((budget.used(), budget.peak()), (0, 100));
    }

    #[test]
    fn one_of_each_class_is_always_admitted_from_other_threads() {
        let budget = Budget::new(100);
        let pass = budget.take_if_stuck(500, Class::Pass);
        assert!(pass.is_some());
        // A thread of its own holds nothing yet.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let block = budget.take_if_stuck(50, Class::Block);
                assert!(block.is_some());
                let other = scope.spawn(|| budget.take_if_stuck(50, Class::Block).is_some());
                assert!(!other.join().unwrap());
                assert!(budget.take_if_stuck(50, Class::Block).is_some(), "nested");
            });
        });
    }
}
