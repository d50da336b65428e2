//! What the decoding threads of a layer share with it: which blocks are where, and what became of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Instant;

use super::block::Block;
use super::blocks::Decode;
use super::job::Job;
use super::keeper::Keeper;
use super::lru::Key;
use super::marks::Marks;
use super::pass::Passes;
use super::pool::{Pool, Priority};
use super::running::{Run, Running, STOP_LIMIT};
use crate::{Cx, Error, Kind, Result};

/// After this many failed blocks no more are remembered one by one: the layer fails as a whole.
const MAX_POISONED: usize = 1 << 14;

/// What the decoding threads of a layer share with it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) layer: u64,
    pub(super) name: String,
    pub(super) cx: Cx,
    pub(super) decode: Arc<dyn Decode>,
    pub(super) passes: Passes,
    /// The longest block that is decoded into memory.
    pub(super) longest: u64,
    /// Keeps what was decoded into memory, where that is worth it.
    pub(super) keeper: Option<Keeper>,
    stop: AtomicBool,
    /// When it was first seen that work has to end.
    stopping: OnceLock<Instant>,
    /// Blocks that failed for good, and why.
    poisoned: Mutex<HashMap<u64, Error>>,
    /// Blocks that were found to be all zero, a bit each.
    zero: RwLock<Marks>,
    /// For [`super::Blocks::stats`].
    pub(super) used: Used,
    /// Decoders that run now.
    running: Arc<Running>,
}

/// How the blocks were used, as in [`crate::stats::BlockStats`].
#[derive(Debug, Default)]
pub(super) struct Used {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) decodes: AtomicU64,
}

impl Shared {
    /// Before anything was decoded; see [`super::Blocks::with_stored`]. `in_memory` is the longest block that
    /// is decoded into memory, and what keeps those.
    pub(super) fn new(
        name: &str,
        decode: Arc<dyn Decode>,
        passes: Passes,
        in_memory: (u64, Option<Keeper>),
        cx: &Cx,
    ) -> Self {
        let (longest, keeper) = in_memory;
        Self {
            layer: cx.cache.new_layer(),
            name: name.to_owned(),
            cx: cx.clone(),
            decode,
            passes,
            longest,
            keeper,
            stop: AtomicBool::new(false),
            stopping: OnceLock::new(),
            poisoned: Mutex::default(),
            zero: RwLock::default(),
            used: Used::default(),
            running: Arc::default(),
        }
    }

    /// Ends background work; waits for decoders to stop, with a bound.
    pub(super) fn close(&self) {
        self.stop.store(true, Ordering::Release);
        self.running.wait();
        self.cx.cache.forget(self.layer);
    }

    /// # Errors
    /// `Io` when the unit or the layer is being taken down.
    pub(super) fn check(&self) -> Result<()> {
        self.cx.cancel.check()?;
        if self.stop.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Io, "stopped: the layer was closed"));
        }
        Ok(())
    }

    /// As [`Self::check`]. Who has `all` the bytes of a block need not stop as long as closing waits for it: the
    /// check is next to nothing, and without it the block would be worth nothing.
    pub(super) fn check_beyond(&self, all: bool) -> Result<()> {
        let stopped = self.check();
        if all && stopped.is_err() && self.stopping.get_or_init(Instant::now).elapsed() < STOP_LIMIT
        {
            return Ok(());
        }
        stopped
    }

    pub(super) fn key(&self, number: u64) -> Key {
        Key {
            layer: self.layer,
            number,
        }
    }

    /// Whether a block is or will be in a temp file.
    pub(super) fn is_in_file(&self, number: u64) -> bool {
        self.passes.is_given(number) || self.decode.len(number) > self.longest
    }

    /// Fills `buf` from what an earlier mount has left of a block that it did not complete. The pass
    /// is begun all the same, since the block's check was never reached.
    pub(super) fn read_kept(self: &Arc<Self>, number: u64, skip: u64, buf: &mut [u8]) -> bool {
        if self.cx.place.is_none() || self.cx.verify || !self.is_in_file(number) {
            return false;
        }
        let end = skip.saturating_add(buf.len() as u64);
        match self.passes.demand(self, number, 0) {
            Ok(block) if self.check().is_ok() => {
                !block.is_done() && !block.has(end, false) && block.copy_kept(skip, buf)
            }
            // The reader will see the error.
            _ => false,
        }
    }

    /// The block, decoded or about to be. `end` is how much of it is needed now.
    pub(super) fn demand(self: &Arc<Self>, number: u64, end: u64) -> Result<Arc<Block>> {
        if self.is_in_file(number) {
            return self.passes.demand(self, number, end);
        }
        let (block, _) = self.get_or_create(number)?;
        if block.is_done() {
            return Ok(block);
        }
        let first = block.ask();
        if Pool::on_pool_thread() {
            // What is queued may be queued behind the caller: it must not wait for that.
            self.run(&Arc::downgrade(&block), number);
        } else if first {
            let run = self.work(&block, number);
            if let Err(run) = self.cx.pool.submit(Priority::Demand, run) {
                run();
            }
        }
        Ok(block)
    }

    pub(super) fn prefetch(self: &Arc<Self>, number: u64) {
        if self.is_in_file(number) {
            let _ = self.passes.demand(self, number, 0);
            return;
        }
        let Ok((block, true)) = self.get_or_create(number) else {
            return;
        };
        let run = self.work(&block, number);
        if self.cx.pool.submit(Priority::Prefetch, run).is_err() && block.drop_unwanted() {
            self.cx.cache.remove(self.key(number), &block);
        }
    }

    fn get_or_create(&self, number: u64) -> Result<(Arc<Block>, bool)> {
        // Looked at under the cache's lock: a failure is noted here before the block is taken out
        // there, so a failed block is never decoded again.
        self.cx.cache.get_or_create(self.key(number), || {
            self.check_poison(number)?;
            Ok(Arc::new(Block::in_memory(self.decode.len(number))))
        })
    }

    fn work(self: &Arc<Self>, block: &Arc<Block>, number: u64) -> super::Work {
        // A layer that was closed, and a block that was taken out of the cache, need no work.
        let (shared, block) = (Arc::downgrade(self), Arc::downgrade(block));
        let running = Arc::clone(&self.running);
        Box::new(move || {
            let _running = Run::begin(&running);
            if let Some(shared) = shared.upgrade() {
                shared.run(&block, number);
            }
        })
    }

    /// For a thread that holds `self`: to be dropped after that.
    pub(super) fn note_running(&self) -> Run {
        Run::begin(&self.running)
    }

    /// Decodes a block, unless it is gone or someone else has begun to.
    pub(super) fn run(self: &Arc<Self>, block: &Weak<Block>, number: u64) {
        // Ends after `block` is let go, so that its memory is back when nothing runs any more.
        let _running = Run::begin(&self.running);
        let Some(block) = block.upgrade().filter(|block| block.is_queued()) else {
            return;
        };
        let mut job = Job::new(self, &block, number);
        let result = self.check().and_then(|()| match job.take_kept()? {
            true => Ok(()),
            false => self.decode.decode(number, &mut job),
        });
        job.end(result);
    }

    pub(super) fn peek(&self, number: u64) -> Option<Arc<Block>> {
        if self.is_in_file(number) {
            self.passes.peek(number)
        } else {
            self.cx.cache.peek(self.key(number))
        }
    }

    /// Remembers why a block cannot be had.
    pub(super) fn poison(&self, number: u64, error: &Error) {
        let mut poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        if poisoned.len() < MAX_POISONED {
            poisoned.insert(number, error.clone());
        }
    }

    /// # Errors
    /// Why the block failed before.
    fn check_poison(&self, number: u64) -> Result<()> {
        let poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = poisoned.get(&number) {
            return Err(error.clone());
        }
        if poisoned.len() >= MAX_POISONED {
            return Err(Error::new(
                Kind::Corrupt,
                format!("{MAX_POISONED} blocks could not be decoded, no more are tried"),
            ));
        }
        Ok(())
    }

    pub(super) fn note_zero(&self, number: u64) {
        let mut zero = self.zero.write().unwrap_or_else(PoisonError::into_inner);
        zero.set(number);
    }

    pub(super) fn is_zero(&self, number: u64) -> bool {
        let zero = self.zero.read().unwrap_or_else(PoisonError::into_inner);
        zero.has(number)
    }
}
