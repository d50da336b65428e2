//! A thread that stores the pieces of a pass, so that the decoder does not wait for the file.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::block::{Block, PIECE, PIECE_BYTES, Store};
use super::shared::Shared;
use crate::bytes::is_zero;
use crate::sys::memory::Memory;
use crate::{Error, Kind, Result};

/// Pieces that may be on their way: one that is filled, the others wait to be stored.
const PIECES: usize = 8;
/// A shorter pass is not worth a thread.
const WORTH: u64 = 4 << 20;

/// Stores pieces in the order in which they are given and publishes each once it is stored.
#[derive(Debug)]
pub(super) struct Behind {
    full: Sender<(u64, Memory, usize)>,
    /// Pieces that were stored. Closed when storing has failed.
    empty: Receiver<Memory>,
    thread: JoinHandle<Result<()>>,
}

impl Behind {
    /// Memory that it takes for a block of `len` bytes.
    pub(super) fn memory(len: u64) -> u64 {
        if len < WORTH {
            return 0;
        }
        PIECE_BYTES.saturating_mul(PIECES as u64)
    }

    /// Starts the thread for `block`; `None` where it is not worth it or cannot be had, which costs
    /// time only.
    pub(super) fn start(shared: &Arc<Shared>, block: &Arc<Block>) -> Option<Self> {
        if block.len() < WORTH {
            return None;
        }
        let (full, given) = channel::<(u64, Memory, usize)>();
        let (done, empty) = channel();
        for _ in 1..PIECES {
            // Its other end is here.
            let _ = done.send(Memory::new(PIECE)?);
        }
        let (shared, block) = (Arc::clone(shared), Arc::clone(block));
        let run = move || {
            for (start, piece, len) in given {
                store(&block, start, &piece[..len])?;
                shared.cx.cache.beat();
                // The decoder may have ended.
                let _ = done.send(piece);
            }
            Ok(())
        };
        let thread = thread::Builder::new().name("store".to_owned()).spawn(run);
        Some(Self {
            full,
            empty,
            thread: thread.ok()?,
        })
    }

    /// Gives the first `len` bytes of `piece`, which belong at `start`, to be stored, and takes
    /// another piece for it, for which it may wait. `None` when storing has failed: [`Self::end`] says
    /// why.
    pub(super) fn give(&self, start: u64, piece: Memory, len: usize) -> Option<Memory> {
        let next = self.empty.recv().ok()?;
        self.full.send((start, piece, len)).ok()?;
        Some(next)
    }

    /// Waits until all is stored.
    ///
    /// # Errors
    /// Why it could not be.
    pub(super) fn end(self) -> Result<()> {
        drop(self.full);
        self.thread.join().unwrap_or_else(|_| {
            let what = "the thread that stores decoded bytes ended unexpectedly";
            Err(Error::new(Kind::Io, what))
        })
    }
}

/// Stores a piece of a block in its temp file and makes it readable.
///
/// # Errors
/// When it cannot be stored.
pub(super) fn store(block: &Block, start: u64, bytes: &[u8]) -> Result<()> {
    let Store::File { file, base } = &block.store else {
        return Ok(());
    };
    // A pass that is made again has stored the beginning already.
    if start < block.ready() {
        return Ok(());
    }
    let zero = is_zero(bytes);
    if zero {
        file.write_zero(base + start);
    } else {
        file.write(bytes, base + start)?;
    }
    block.publish(start, bytes.len(), zero);
    Ok(())
}
