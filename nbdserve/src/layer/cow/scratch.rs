//! Blocks that are gone at the end: in memory first, then in a temp file without a name.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::FallocateFlags;

use super::Storage;
use super::map::{Map, State};
use crate::cache::TempFile;
use crate::{ByteRange, Cx, Error, Kind, Result};

/// Of the memory for decoded blocks, one part in this many is for written ones, beside it.
const MEMORY_PART: u64 = 4;
/// And no more than this.
const MOST_MEMORY: u64 = 64 << 20;
/// Tables of blocks in memory, each with a lock.
const SHARDS: usize = 64;
/// Free space is looked at each time this much was stored.
const LOOK_EACH: u64 = 4 << 20;

type Blocks = HashMap<u64, Box<[u8]>>;

/// A block changes to and from [`State::Held`] while its table is locked, so that what is held is
/// in the table.
#[derive(Debug)]
pub(super) struct Scratch {
    block: u64,
    held: [Mutex<Blocks>; SHARDS],
    /// Bytes of memory that are left.
    memory: AtomicU64,
    file: OnceLock<TempFile>,
    /// Only one opens it.
    opening: Mutex<()>,
    stored: AtomicU64,
    folder: PathBuf,
    limit: u64,
}

impl Scratch {
    pub(super) fn new(block: u32, cx: &Cx) -> Self {
        Self {
            block: u64::from(block),
            held: std::array::from_fn(|_| Mutex::default()),
            memory: AtomicU64::new((cx.cache.budget() / MEMORY_PART).min(MOST_MEMORY)),
            file: OnceLock::new(),
            opening: Mutex::new(()),
            stored: AtomicU64::new(0),
            folder: cx.temp_dir.clone(),
            limit: cx.temp_limit,
        }
    }

    fn shard(&self, block: u64) -> MutexGuard<'_, Blocks> {
        let index = usize::try_from(block % 64).unwrap_or(0);
        // SHARDS is 64.
        let shard = self.held.get(index).unwrap_or(&self.held[0]);
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_memory(&self, len: u64) -> bool {
        let take = |left: u64| left.checked_sub(len);
        let taken = self
            .memory
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        taken.is_ok()
    }

    fn give_memory(&self, len: usize) {
        let len = u64::try_from(len).unwrap_or(0);
        self.memory.fetch_add(len, Ordering::AcqRel);
    }

    /// Holds one block; `false` when there is no memory left for a new one.
    fn hold(&self, map: &Map, block: u64, bytes: &[u8]) -> bool {
        let mut shard = self.shard(block);
        if let Some(held) = shard.get_mut(&block)
            && held.len() == bytes.len()
        {
            held.copy_from_slice(bytes);
        } else if self.take_memory(u64::try_from(bytes.len()).unwrap_or(u64::MAX)) {
            shard.insert(block, bytes.into());
        } else {
            return false;
        }
        map.set(block, block.saturating_add(1), State::Held);
        true
    }

    fn file(&self) -> Result<&TempFile> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.file.get().is_none() {
            let file = TempFile::create(&self.folder, self.limit)?;
            // Nobody else sets it.
            let _ = self.file.set(file);
        }
        let lost = || Error::new(Kind::Io, "the temp file is not there");
        self.file.get().ok_or_else(lost)
    }

    /// Writes blocks to the temp file; `new` of the bytes were not in it before.
    fn store(&self, offset: u64, bytes: &[u8], new: u64) -> Result<()> {
        let file = self.file()?;
        if new > 0 {
            let before = self.stored.fetch_add(new, Ordering::AcqRel);
            let after = before.saturating_add(new);
            let look = before / LOOK_EACH != after / LOOK_EACH || before == 0;
            if after > self.limit || (look && file.room()? < new) {
                self.stored.fetch_sub(new, Ordering::AcqRel);
                let what = format!("{before} written bytes are stored, more must be");
                return Err(file.no_space(&what));
            }
        }
        let stored = file.as_file().write_all_at(bytes, offset);
        stored.map_err(|error| {
            self.stored.fetch_sub(new, Ordering::AcqRel);
            let folder = self.folder.display();
            let what = format!("cannot store written bytes at {offset} in {folder}");
            Error::io(what, error).hint("give another folder with --temp-dir=DIR or TMPDIR=DIR")
        })
    }
}

impl Storage for Scratch {
    fn write(&self, map: &Map, offset: u64, buf: &[u8]) -> Result<()> {
        let block_len = usize::try_from(self.block).unwrap_or(usize::MAX);
        let first = offset.checked_div(self.block).unwrap_or(0);
        let count = u64::try_from(buf.len().div_ceil(block_len.max(1))).unwrap_or(u64::MAX);
        let end = first.saturating_add(count);
        let (mut block, mut rest) = (first, buf);
        while block < end && !rest.is_empty() {
            let (state, run_end) = map.run(block, end);
            let run = usize::try_from(run_end.saturating_sub(block)).unwrap_or(usize::MAX);
            let (mut now, later) = rest.split_at(run.saturating_mul(block_len).min(rest.len()));
            rest = later;
            if state != State::Stored {
                while !now.is_empty() {
                    let (one, others) = now.split_at(block_len.min(now.len()));
                    if !self.hold(map, block, one) {
                        break;
                    }
                    (now, block) = (others, block.saturating_add(1));
                }
            }
            if !now.is_empty() {
                let len = u64::try_from(now.len()).unwrap_or(u64::MAX);
                let new = if state == State::Stored { 0 } else { len };
                self.store(block.saturating_mul(self.block), now, new)?;
                if state != State::Stored {
                    map.set(block, run_end, State::Stored);
                }
            }
            block = run_end;
        }
        Ok(())
    }

    fn patch(&self, state: State, block: u64, offset: u64, bytes: &[u8]) -> Result<bool> {
        if state == State::Stored {
            return self.store(offset, bytes, 0).map(|()| true);
        }
        let mut shard = self.shard(block);
        let start = offset.saturating_sub(block.saturating_mul(self.block));
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let held = shard.get_mut(&block);
        let part = held.and_then(|held| held.get_mut(start..start.saturating_add(bytes.len())));
        if let Some(part) = part {
            part.copy_from_slice(bytes);
            return Ok(true);
        }
        Ok(false)
    }

    fn read(&self, state: State, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if state == State::Stored {
            let read = self.file()?.as_file().read_exact_at(buf, offset);
            let folder = self.folder.display();
            let what = || format!("cannot read written bytes at {offset} back from {folder}");
            return read
                .map(|()| buf.len())
                .map_err(|error| Error::io(what(), error));
        }
        let (mut at, mut done) = (offset, 0_usize);
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let block = at.checked_div(self.block).unwrap_or(0);
            let start =
                usize::try_from(at.checked_rem(self.block).unwrap_or(0)).unwrap_or(usize::MAX);
            let shard = self.shard(block);
            let Some(held) = shard.get(&block).and_then(|held| held.get(start..)) else {
                break;
            };
            let len = held.len().min(rest.len());
            let (Some(from), Some(to)) = (held.get(..len), rest.get_mut(..len)) else {
                break;
            };
            to.copy_from_slice(from);
            drop(shard);
            if len == 0 {
                break;
            }
            done = done.saturating_add(len);
            at = at.saturating_add(u64::try_from(len).unwrap_or(0));
        }
        Ok(done)
    }

    fn clear(&self, map: &Map, state: State, blocks: (u64, u64), range: ByteRange) {
        if state != State::Held {
            map.set(blocks.0, blocks.1, State::Zero);
            if state == State::Stored
                && let Some(file) = self.file.get()
            {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                // A file system without holes keeps the space.
                if rustix::fs::fallocate(file.as_file(), mode, range.start(), range.len()).is_ok() {
                    let given = |stored: u64| Some(stored.saturating_sub(range.len()));
                    let _ = self
                        .stored
                        .fetch_update(Ordering::AcqRel, Ordering::Acquire, given);
                }
            }
            return;
        }
        for block in blocks.0..blocks.1 {
            let mut shard = self.shard(block);
            map.set(block, block.saturating_add(1), State::Zero);
            if let Some(held) = shard.remove(&block) {
                self.give_memory(held.len());
            }
        }
    }

    fn flush(&self, _map: &Map) -> Result<()> {
        Ok(())
    }

    fn is_durable(&self) -> bool {
        false
    }
}
