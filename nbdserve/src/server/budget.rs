//! A bound on the bytes that a connection holds in memory.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts the bytes of requests that were read and not yet answered.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: Mutex::new(0),
            freed: Condvar::new(),
        }
    }

    /// Takes `cost` bytes (more than zero), waiting until they fit. A single request is never
    /// kept out, whatever its cost. The wait ends when answers are sent, and both the layers and
    /// the sending of answers have deadlines.
    pub(super) fn take(&self, cost: usize) -> Grant<'_> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used > 0 && used.saturating_add(cost) > self.limit {
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *used = used.saturating_add(cost);
        Grant { budget: self, cost }
    }

    /// Waits until nothing is in flight; false when that takes longer than until `deadline`.
    pub(super) fn wait_idle(&self, deadline: Instant) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            used = self
                .freed
                .wait_timeout(used, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

/// Bytes taken; given back when dropped.
#[derive(Debug)]
pub(super) struct Grant<'a> {
    budget: &'a Budget,
    cost: usize,
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        let budget = self.budget;
        let mut used = budget.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(self.cost);
        budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversized_request_waits_for_an_empty_budget_and_then_fits() {
        let budget = Budget::new(10);
        let small = budget.take(4);
        std::thread::scope(|scope| {
            let big = scope.spawn(|| drop(budget.take(100)));
            assert!(!budget.wait_idle(Instant::now()));
            drop(small);
            big.join().unwrap();
        });
        assert!(budget.wait_idle(Instant::now()));
    }
}
