//! Who answers a request: the thread that read it, as long as another one is free to read the
//! next; else a thread of a pool that grows with the requests that wait for a device.
//!
//! A cached answer thus costs no hand-over, and a reader that waits for a slow device holds up
//! nobody.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Most pool threads. With more requests than these waiting, further ones wait in the kernel.
const MAX_WORKERS: usize = 256;
/// A pool thread without work for this long ends.
const IDLE_LIMIT: Duration = Duration::from_secs(5);
/// They run device code with its buffers on the heap.
const WORKER_STACK: usize = 512 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// Shared by the loops that read requests.
#[derive(Debug)]
pub(super) struct Turns {
    loops: usize,
    /// Loops that are answering rather than reading.
    busy: AtomicUsize,
    pool: Arc<Pool>,
}

impl Turns {
    /// For `loops` threads that read requests.
    pub(super) fn new(loops: usize) -> Self {
        Self {
            loops,
            busy: AtomicUsize::new(0),
            pool: Arc::default(),
        }
    }

    /// How many loops to run: enough for every core and one that waits in each, few enough that
    /// they cost nothing.
    pub(super) fn loops_for_this_machine() -> usize {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (2 * cores + 1).clamp(4, 16)
    }

    /// Runs `job` here or in the pool. A panic in it is logged; its request is then answered with
    /// EIO by the drop of its reply.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        match self.enter() {
            Some(turn) => turn.run(job),
            None => self.hand_over(Box::new(job)),
        }
    }

    /// The right to answer on this thread, `None` when no other one is left to read requests.
    pub(super) fn enter(&self) -> Option<Turn<'_>> {
        let turn = Turn(self);
        (self.busy.fetch_add(1, Ordering::AcqRel) + 1 < self.loops).then_some(turn)
    }

    /// Has the pool run `job`; here, when the pool is at its limit.
    pub(super) fn hand_over(&self, job: Job) {
        if let Err(job) = self.pool.submit(job) {
            guarded(job);
        }
    }
}

/// While it lives, its thread counts as answering.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Turn<'_> {
    /// Runs `job` here; it may borrow from the request.
    pub(super) fn run(self, job: impl FnOnce()) {
        guarded(job);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A panic must not take a loop down: the mount would hang with it.
fn guarded(job: impl FnOnce()) {
    // What the job shares with others is behind locks that are used whether poisoned or not.
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a request failed by a defect of this program; it is answered with EIO");
    }
}

/// Threads that come with the work and go without it.
#[derive(Debug, Default)]
struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    workers: usize,
    idle: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} queued, {} workers", self.queue.len(), self.workers)
    }
}

impl Pool {
    /// Queues `job` for an idle worker or a new one; gives it back when neither can be had.
    fn submit(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let mut state = self.lock();
        // Each queued job has a worker of its own that is idle or on its way.
        if state.queue.len() >= state.idle {
            if state.workers >= MAX_WORKERS {
                return Err(job);
            }
            let pool = Arc::clone(self);
            let started = thread::Builder::new()
                .name("fuse-wait".to_owned())
                .stack_size(WORKER_STACK)
                .spawn(move || pool.work());
            if started.is_err() {
                return Err(job);
            }
            // It counts as idle until it takes a job.
            state.workers += 1;
            state.idle += 1;
        }
        state.queue.push_back(job);
        self.work.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.idle -= 1;
                drop(state);
                guarded(job);
                state = self.lock();
                state.idle += 1;
                continue;
            }
            let (next, timeout) = self
                .work
                .wait_timeout(state, IDLE_LIMIT)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() && state.queue.is_empty() {
                state.idle -= 1;
                state.workers -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn the_last_free_loop_never_answers_itself() {
        let turns = Turns::new(3);
        let first = turns.enter();
        let second = turns.enter();
        assert!(first.is_some() && second.is_some());
        assert!(turns.enter().is_none());
        drop(first);
        assert!(turns.enter().is_some());
    }

    #[test]
    fn forty_waiting_jobs_run_at_the_same_time() {
        let turns = Turns::new(1);
        let (arrived, arrivals) = mpsc::channel();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        for _ in 0..40 {
            let (arrived, gate) = (arrived.clone(), Arc::clone(&gate));
            turns.run(move || {
                arrived.send(()).unwrap();
                let open = gate.0.lock().unwrap();
                let wait = |open: &mut bool| !*open;
                let _open = gate.1.wait_timeout_while(open, PATIENCE, wait).unwrap();
            });
        }
        for _ in 0..40 {
            arrivals.recv_timeout(PATIENCE).unwrap();
        }
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
    }

    #[test]
    fn a_panic_leaves_the_pool_working() {
        let turns = Turns::new(1);
        let (done, dones) = mpsc::channel();
        for i in 0..8 {
            let done = done.clone();
            turns.run(move || {
                assert!(i % 2 == 0, "this panic is part of the test");
                done.send(i).unwrap();
            });
        }
        let mut seen: Vec<i32> = (0..4)
            .map(|_| dones.recv_timeout(PATIENCE).unwrap())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 2, 4, 6]);
    }
}
