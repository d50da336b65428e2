//! A pool of decoding threads.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A piece of work. It reports its result, also a failure, by means of its own.
pub type Work = Box<dyn FnOnce() + Send>;

/// A thread without work for this long ends, so that an idle mount stays small.
const IDLE: Duration = Duration::from_secs(30);
/// `Drop` waits this long for running work, then leaves the threads to themselves.
const DROP_LIMIT: Duration = Duration::from_secs(5);
/// Waiting demands per thread; more are refused, and the asking threads work themselves.
const DEMANDS_PER_THREAD: usize = 256;
/// Waiting prefetches per thread; more are refused and forgotten.
const PREFETCHES_PER_THREAD: usize = 4;

/// Called when the pool had nothing to do for a while; whether that is all there is to clear up.
type OnIdle = Box<dyn Fn() -> bool + Send + Sync>;

thread_local! {
    static ON_POOL: Cell<bool> = const { Cell::new(false) };
}

/// Which work is done first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A reader waits for it.
    Demand,
    /// It may be needed soon.
    Prefetch,
}

/// Threads that decode. They start when first needed and end when long idle.
///
/// Work must not wait for other work of the pool: all threads might do so. See
/// [`Pool::on_pool_thread`].
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    threads: usize,
    idle_limit: Duration,
    on_idle: OnceLock<OnIdle>,
    state: Mutex<State>,
    /// Work has come, or the pool closes.
    work: Condvar,
    /// A thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    demand: VecDeque<Work>,
    prefetch: VecDeque<Work>,
    alive: usize,
    idle: usize,
    closing: bool,
}

impl Pool {
    /// A pool of `threads` threads (at least one), started when first needed.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self::with_idle_limit(threads, IDLE)
    }

    fn with_idle_limit(threads: usize, idle_limit: Duration) -> Self {
        let shared = Shared {
            threads: threads.max(1),
            idle_limit,
            on_idle: OnceLock::new(),
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Sets, once, what is called when there was no work for half a minute: again and again at
    /// that distance until it returns true or work comes.
    pub fn on_idle(&self, call: impl Fn() -> bool + Send + Sync + 'static) {
        // A second call has no effect, as documented.
        let _ = self.shared.on_idle.set(Box::new(call));
    }

    /// How many threads may work at once.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Whether the caller is itself work of a pool. Such a caller must not wait for work that has
    /// not been started; it does that work itself.
    #[must_use]
    pub fn on_pool_thread() -> bool {
        ON_POOL.get()
    }

    /// Whether work waits for a thread.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        let state = self.shared.lock();
        !(state.demand.is_empty() && state.prefetch.is_empty())
    }

    /// Waits until nothing is queued and no thread works. Work that threads of its callers do is not seen.
    ///
    /// # Panics
    /// After five minutes.
    #[cfg(any(test, feature = "testing"))]
    pub fn wait_idle(&self) {
        let began = Instant::now();
        let at_work = || {
            let state = self.shared.lock();
            let waiting = !(state.demand.is_empty() && state.prefetch.is_empty());
            waiting || state.alive > state.idle
        };
        while at_work() {
            assert!(
                began.elapsed() < Duration::from_secs(300),
                "work has no end"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Queues `work`. Returns at once.
    ///
    /// # Errors
    /// Gives `work` back when the queue is full or no thread can be had: the caller does it
    /// itself (a demand) or forgets it (a prefetch).
    pub fn submit(&self, priority: Priority, work: Work) -> Result<(), Work> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let (queue, limit) = match priority {
            Priority::Demand => (&mut state.demand, DEMANDS_PER_THREAD),
            Priority::Prefetch => (&mut state.prefetch, PREFETCHES_PER_THREAD),
        };
        if queue.len() >= limit * shared.threads {
            return Err(work);
        }
        queue.push_back(work);
        let waiting = state.demand.len() + state.prefetch.len();
        if waiting > state.idle && state.alive < shared.threads {
            let thread_shared = Arc::clone(shared);
            let started = thread::Builder::new()
                .name("decode".to_owned())
                .spawn(move || thread_shared.run());
            match started {
                Ok(_) => state.alive += 1,
                Err(_) if state.alive > 0 => {}
                Err(_) => {
                    let queue = match priority {
                        Priority::Demand => &mut state.demand,
                        Priority::Prefetch => &mut state.prefetch,
                    };
                    // The work was pushed above and the lock was held since.
                    return queue.pop_back().map_or(Ok(()), Err);
                }
            }
        }
        drop(state);
        shared.work.notify_one();
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of one thread.
    fn run(&self) {
        ON_POOL.set(true);
        while let Some(work) = self.next() {
            // Work reports by means of its own, a panic included; the thread lives on.
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("a decoding thread has caught a panic");
            }
        }
        self.ended.notify_all();
    }

    /// The next work, demands first. `None` when the thread shall end; it is then no longer
    /// counted, so that work which comes from now on starts another one.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if state.closing {
                state.alive -= 1;
                return None;
            }
            if let Some(work) = state.demand.pop_front() {
                return Some(work);
            }
            if let Some(work) = state.prefetch.pop_front() {
                return Some(work);
            }
            if waited {
                let last = state.alive == 1;
                drop(state);
                // The last thread stays as long as there is something to clear up.
                let cleared = !last || self.on_idle.get().is_none_or(|call| call());
                state = self.lock();
                let work_came = !(state.demand.is_empty() && state.prefetch.is_empty());
                if cleared && !work_came {
                    state.alive -= 1;
                    return None;
                }
                waited = false;
                continue;
            }
            state.idle += 1;
            let (back, timeout) = self
                .work
                .wait_timeout_while(state, self.idle_limit, |state| {
                    !state.closing && state.demand.is_empty() && state.prefetch.is_empty()
                })
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            waited = timeout.timed_out();
        }
    }
}

impl Drop for Pool {
    /// Drops what is queued and waits, with a bound, for what is running.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        let queued = (
            std::mem::take(&mut state.demand),
            std::mem::take(&mut state.prefetch),
        );
        self.shared.work.notify_all();
        // The last handle may go away inside the pool's own work, which cannot wait for itself.
        if !Self::on_pool_thread() {
            let deadline = Instant::now() + DROP_LIMIT;
            while state.alive > 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                (state, _) = self
                    .shared
                    .ended
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        // Work may own what locks the pool again when dropped.
        drop(state);
        drop(queued);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.shared.threads)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Occupies the only thread of `pool` until the returned sender is dropped.
    fn hold(pool: &Pool) -> mpsc::Sender<()> {
        let (release, gate) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel();
        let work = move || {
            started.send(()).unwrap();
            let _ = gate.recv();
        };
        assert!(pool.submit(Priority::Demand, Box::new(work)).is_ok());
        running.recv().unwrap();
        release
    }

    #[test]
    fn a_demand_overtakes_the_prefetches_that_wait() {
        let pool = Pool::new(1);
        let release = hold(&pool);
        let (sender, order) = mpsc::channel();
        for (priority, name) in [(Priority::Prefetch, "later"), (Priority::Demand, "first")] {
            let sender = sender.clone();
            let work = Box::new(move || sender.send(name).unwrap());
            assert!(pool.submit(priority, work).is_ok());
        }
        assert!(pool.is_behind());
        drop(release);
        assert_eq!(order.recv(), Ok("first"));
        assert_eq!(order.recv(), Ok("later"));
    }

    #[test]
    fn a_full_queue_gives_the_work_back() {
        let pool = Pool::new(1);
        let _release = hold(&pool);
        for _ in 0..PREFETCHES_PER_THREAD {
            assert!(pool.submit(Priority::Prefetch, Box::new(|| ())).is_ok());
        }
        assert!(pool.submit(Priority::Prefetch, Box::new(|| ())).is_err());
        assert!(pool.submit(Priority::Demand, Box::new(|| ())).is_ok());
    }

    #[test]
    fn who_waits_until_a_pool_is_idle_waits_for_what_is_queued_and_for_what_runs() {
        let pool = Pool::new(2);
        let (sender, done) = mpsc::channel();
        for priority in [Priority::Demand, Priority::Prefetch] {
            for _ in 0..3 {
                let sender = sender.clone();
                let work = move || {
                    thread::sleep(Duration::from_millis(5));
                    sender.send(()).unwrap();
                };
                assert!(pool.submit(priority, Box::new(work)).is_ok());
            }
        }
        pool.wait_idle();
        assert_eq!(done.try_iter().count(), 6);
    }

    #[test]
    fn no_thread_is_started_before_there_is_work() {
        let pool = Pool::new(4);
        assert_eq!(pool.shared.lock().alive, 0);
        assert!(!Pool::on_pool_thread());
    }

    #[test]
    fn a_panic_does_not_cost_a_thread() {
        let pool = Pool::new(1);
        assert!(
            pool.submit(Priority::Demand, Box::new(|| panic!("as asked")))
                .is_ok()
        );
        let (sender, result) = mpsc::channel();
        let work = Box::new(move || sender.send(Pool::on_pool_thread()).unwrap());
        assert!(pool.submit(Priority::Demand, work).is_ok());
        assert_eq!(result.recv(), Ok(true));
    }

    #[test]
    fn an_idle_pool_clears_up_until_all_is_done_and_ends_its_threads() {
        let pool = Pool::with_idle_limit(2, Duration::from_millis(1));
        let (sender, calls) = mpsc::channel();
        let count = Mutex::new(0);
        pool.on_idle(move || {
            let mut count = count.lock().unwrap();
            *count += 1;
            sender.send(*count).unwrap();
            *count == 3
        });
        assert!(pool.submit(Priority::Demand, Box::new(|| ())).is_ok());
        assert_eq!(calls.iter().take(3).collect::<Vec<_>>(), [1, 2, 3]);
        let mut state = pool.shared.lock();
        while state.alive > 0 {
            state = pool.shared.ended.wait(state).unwrap();
        }
    }

    #[test]
    fn the_last_handle_may_go_away_on_a_thread_of_the_pool() {
        let pool = Arc::new(Pool::new(1));
        let weak = Arc::downgrade(&pool);
        let (sender, gone) = mpsc::channel();
        let (give, take) = mpsc::channel::<Arc<Pool>>();
        let work = Box::new(move || {
            drop(take.recv().unwrap());
            sender.send(()).unwrap();
        });
        assert!(pool.submit(Priority::Demand, work).is_ok());
        give.send(pool).unwrap();
        gone.recv().unwrap();
        assert!(weak.upgrade().is_none());
    }
}
