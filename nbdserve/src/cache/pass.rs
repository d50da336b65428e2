//! Blocks too large for memory: decoded once, from the start, into a temp file, by threads of
//! their own, since such a pass may take hours and the pool is for what is short.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::block::Block;
use super::blocks::Shared;
use super::temp::TempFile;
use super::whole::Stored;
use crate::{Error, Kind, Result};

/// The huge blocks of a layer. They are never evicted; the temp file is given back with the layer.
#[derive(Debug)]
pub(super) struct Passes {
    temp: Option<Arc<TempFile>>,
    given: HashSet<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: HashMap<u64, Arc<Block>>,
    queue: VecDeque<(u64, Arc<Block>)>,
    threads: usize,
}

impl Passes {
    /// `stored` are complete already.
    pub(super) fn new(temp: Option<Arc<TempFile>>, stored: HashMap<u64, Stored>) -> Self {
        let given = stored.keys().copied().collect();
        let blocks = stored
            .into_iter()
            .map(|(number, block)| (number, Arc::new(block.into_block())));
        Self {
            temp,
            given,
            state: Mutex::new(State {
                blocks: blocks.collect(),
                ..State::default()
            }),
        }
    }

    /// Whether a block was complete from the beginning.
    pub(super) fn is_given(&self, number: u64) -> bool {
        !self.given.is_empty() && self.given.contains(&number)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block, if a pass over it was ever asked for.
    pub(super) fn peek(&self, number: u64) -> Option<Arc<Block>> {
        self.lock().blocks.get(&number).map(Arc::clone)
    }

    /// The block, being decoded or waiting for a thread. A pass that broke off because the source
    /// did not answer is begun anew when the bytes up to `end` are not there.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn demand(&self, shared: &Arc<Shared>, number: u64, end: u64) -> Result<Arc<Block>> {
        let mut state = self.lock();
        let block = if let Some(block) = state.blocks.get(&number) {
            let block = Arc::clone(block);
            if block.is_done() || block.has(end, shared.cx.verify) || !block.rearm() {
                return Ok(block);
            }
            block
        } else {
            let Some(temp) = &self.temp else {
                return Err(Error::new(Kind::Io, "there is no temp file"));
            };
            let base = shared.decode.offset(number);
            let len = shared.decode.len(number);
            let block = Arc::new(Block::in_file(len, Arc::clone(temp), base));
            state.blocks.insert(number, Arc::clone(&block));
            block
        };
        // What was asked for last is needed first.
        state.queue.push_front((number, Arc::clone(&block)));
        if state.threads < shared.cx.pool.threads() {
            let owned = Arc::clone(shared);
            let started = thread::Builder::new()
                .name("pass".to_owned())
                .spawn(move || owned.passes.work(&owned));
            match started {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads > 0 => {}
                Err(error) => {
                    state.queue.pop_front();
                    state.blocks.remove(&number);
                    return Err(Error::io("cannot start a thread for decoding", error));
                }
            }
        }
        Ok(block)
    }

    /// The life of one thread: passes until none waits.
    fn work(&self, shared: &Arc<Shared>) {
        loop {
            let mut state = self.lock();
            let Some((number, block)) = state.queue.pop_front() else {
                state.threads -= 1;
                return;
            };
            drop(state);
            let run = || shared.run(&Arc::downgrade(&block), number);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                tracing::error!("a decoding thread has caught a panic");
            }
        }
    }
}
