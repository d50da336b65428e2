//! Blocks too large for memory: decoded once, from the start, into a temp file, by threads of
//! their own, since such a pass may take hours and the pool is for what is short.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::backing::{Backing, base_of};
use super::block::{Block, Store};
use super::shared::Shared;
use super::whole::Stored;
use crate::{Error, Kind, Result};

/// The huge blocks of a layer. They are never evicted; a temp file is given back with the layer.
#[derive(Debug)]
pub(super) struct Passes {
    file: Option<Arc<Backing>>,
    given: HashSet<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: HashMap<u64, Arc<Block>>,
    queue: VecDeque<(u64, Arc<Block>)>,
    threads: usize,
    /// See [`Passes::renew`].
    late: Option<Arc<Backing>>,
}

/// A block that nobody has decoded.
fn new_block(shared: &Shared, number: u64, file: Arc<Backing>) -> Result<Block> {
    let (offset, len) = (shared.decode.offset(number), shared.decode.len(number));
    let base = base_of(number, offset).ok_or_else(|| {
        let what = shared.decode.describe(number);
        Error::new(
            Kind::Limit,
            format!("{what}: too far from the start to be stored"),
        )
    })?;
    Ok(Block::in_file(len, file, base))
}

impl Passes {
    /// `stored` are complete already.
    pub(super) fn new(file: Option<Arc<Backing>>, stored: HashMap<u64, Stored>) -> Self {
        let given = stored.keys().copied().collect();
        let blocks = stored
            .into_iter()
            .map(|(number, block)| (number, Arc::new(block.into_block())));
        Self {
            file,
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
            let Some(file) = &self.file else {
                return Err(Error::new(Kind::Io, "there is no temp file"));
            };
            let block = Arc::new(new_block(shared, number, Arc::clone(file))?);
            state.blocks.insert(number, Arc::clone(&block));
            block
        };
        Self::start(shared, &mut state, number, &block)?;
        Ok(block)
    }

    /// Has a block decoded again of which the cache on disk has lost something: into the temp
    /// file, since it cannot be trusted any more.
    ///
    /// # Errors
    /// When no thread or no temp file can be had.
    pub(super) fn renew(&self, shared: &Arc<Shared>, number: u64, lost: &Arc<Block>) -> Result<()> {
        let mut state = self.lock();
        let current = state.blocks.get(&number);
        if current.is_some_and(|block| !Arc::ptr_eq(block, lost)) {
            return Ok(());
        }
        if let Store::File { file, base } = &lost.store {
            // Or the next mount would count on it again.
            file.forget(*base, lost.len());
            file.distrust();
        }
        let what = shared.decode.describe(number);
        tracing::warn!("{}: {what} is damaged in the cache on disk", shared.name);
        let file = match &self.file {
            Some(file) => {
                file.distrust();
                Arc::clone(file)
            }
            // All blocks were there, so none was expected to need one.
            None => match state.late.clone() {
                Some(late) => late,
                None => Arc::clone(state.late.insert(Arc::new(Backing::temporary(&shared.cx)?))),
            },
        };
        let block = Arc::new(new_block(shared, number, file)?);
        state.blocks.insert(number, Arc::clone(&block));
        Self::start(shared, &mut state, number, &block)
    }

    /// Puts a block into the queue, and sees to it that somebody looks there.
    fn start(
        shared: &Arc<Shared>,
        state: &mut State,
        number: u64,
        block: &Arc<Block>,
    ) -> Result<()> {
        // What was asked for last is needed first.
        state.queue.push_front((number, Arc::clone(block)));
        if state.threads < shared.cx.pool.threads() {
            let (owned, running) = (Arc::clone(shared), shared.note_running());
            let started = thread::Builder::new()
                .name("pass".to_owned())
                .spawn(move || {
                    owned.passes.work(&owned);
                    drop(owned);
                    drop(running);
                });
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
        Ok(())
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
