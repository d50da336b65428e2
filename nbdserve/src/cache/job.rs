//! One run of a decoder over one block.

use std::any::Any;
use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Sink;
use super::behind::{self, Behind};
use super::block::{Block, PIECE, PIECE_BYTES, Store, may_pass};
use super::blocks::Blocks;
use super::budget::{Class, Reservation};
use super::shared::Shared;
use crate::bytes::is_zero;
use crate::cx::Pass;
use crate::sys::memory::{Filling, Memory, Room};
use crate::{Error, Kind, Result};

/// What a finished block takes beside its bytes: its entries in the cache, rounded up.
const BLOCK_OVERHEAD: u64 = 512;
/// Zeroes are taken out of memory when data are less than one part in this many: that costs time, and so
/// does memory with gaps when it is used again.
const SPARSE: u64 = 2;
/// So long a block is still written to the cache on disk when its layer is being closed.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Progress of a long pass is told this often.
pub(super) const TELL: Duration = Duration::from_millis(300);

/// What a pass is called, that of a layer called `name`.
pub(super) fn decoding_once(name: &str) -> String {
    format!("{name}: decoding once")
}

/// One run of a decoder over one block: hands out memory and takes the decoded bytes in order.
///
/// The decoder reads what it needs to know its own size, calls [`Self::start`], and then fills
/// [`Self::spare`] and says so with [`Self::advance`] until the block is complete. Each piece
/// becomes readable as soon as it is full.
#[derive(Debug)]
pub struct Job<'a> {
    shared: &'a Arc<Shared>,
    block: &'a Arc<Block>,
    number: u64,
    /// Set by `start`.
    running: Option<Running>,
    ended: bool,
}

#[derive(Debug)]
struct Running {
    memory: Reservation,
    decoder_bytes: u64,
    /// Bytes published.
    at: u64,
    /// Where the bytes go of a block that stays in memory.
    area: Option<Filling>,
    /// The piece that is being filled of another one; made when it is needed.
    piece: Option<Memory>,
    /// Bytes that are not published.
    filled: usize,
    /// Bytes of pieces that are not zero.
    kept: u64,
    told: Instant,
    /// Stores the pieces of a pass.
    behind: Option<Behind>,
}

impl<'a> Job<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, block: &'a Arc<Block>, number: u64) -> Self {
        Self {
            shared,
            block,
            number,
            running: None,
            ended: false,
        }
    }

    fn is_pass(&self) -> bool {
        matches!(self.block.store, Store::File { .. })
    }

    /// Takes memory for the block and a decoder of `decoder_bytes` (buffers included), waiting
    /// until the budget has it, and begins. False when there is nothing to do after all: the
    /// block is decoded by someone else, or was only a prefetch and memory is short.
    ///
    /// # Errors
    /// `Limit` when the decoder alone needs more than the whole budget, `TimedOut` when no memory
    /// comes back, or that the unit is being taken down.
    pub fn start(&mut self, decoder_bytes: u64) -> Result<bool> {
        let begun = self.begin(decoder_bytes)?;
        if begun {
            let decodes = &self.shared.used.decodes;
            decodes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(begun)
    }

    /// Takes the block from the cache on disk, if it has come there since the layer was opened. False
    /// when it has to be decoded. When it goes at this moment it is given up: whoever waits for it asks
    /// anew, and has it decoded.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(super) fn take_kept(&mut self) -> Result<bool> {
        let (shared, len) = (self.shared, self.block.len());
        let keeper = shared.keeper.as_ref().filter(|_| !self.is_pass());
        let offset = shared.decode.offset(self.number);
        let Some(kept) = keeper.and_then(|one| one.find(self.number, offset, len, &shared.cx))
        else {
            return Ok(false);
        };
        if !self.begin(0)? {
            return Ok(true);
        }
        let mut at = 0;
        while at < len {
            let spare = self.spare()?;
            if !kept.read(at, spare) {
                kept.forget();
                self.running = None;
                shared.cx.cache.remove(shared.key(self.number), self.block);
                self.block.drop_begun();
                return Ok(true);
            }
            let read = spare.len();
            self.advance(read)?;
            at += read as u64;
        }
        Ok(true)
    }

    fn begin(&mut self, decoder_bytes: u64) -> Result<bool> {
        let shared = self.shared;
        let what = shared.decode.describe(self.number);
        Blocks::check_decoder_memory(&what, decoder_bytes, &shared.cx)?;
        let (class, bytes) = if self.is_pass() {
            let pieces = PIECE_BYTES.saturating_add(Behind::memory(self.block.len()));
            (Class::Pass, decoder_bytes.saturating_add(pieces))
        } else {
            // What is too long for memory is decoded into a temp file instead, so this is at most a
            // quarter of the budget.
            (
                Class::Block,
                decoder_bytes
                    .saturating_add(self.block.len())
                    .saturating_add(BLOCK_OVERHEAD),
            )
        };
        let Some(memory) = self.reserve(bytes, class)? else {
            return Ok(false);
        };
        if !self.block.claim() {
            return Ok(false);
        }
        let area = match self.block.fill() {
            Ok(area) => area,
            Err(error) => {
                // Claimed: nobody else will say so.
                self.fail_claimed(error.clone());
                return Err(error);
            }
        };
        if self.is_pass() {
            shared.cx.observer.begins(&Pass {
                what: decoding_once(&shared.name),
                why: format!("{what} can only be decoded from its beginning"),
                kept: shared.cx.kept(false),
            });
        }
        self.running = Some(Running {
            memory,
            decoder_bytes,
            at: 0,
            area,
            piece: None,
            filled: 0,
            kept: 0,
            told: Instant::now(),
            behind: match self.is_pass() {
                true => Behind::start(shared, self.block),
                false => None,
            },
        });
        Ok(true)
    }

    fn reserve(&self, bytes: u64, class: Class) -> Result<Option<Reservation>> {
        let shared = self.shared;
        let mut seen = shared.cx.cache.progress();
        let mut since = Instant::now();
        shared.cx.cache.reserve(bytes, class, || {
            shared.check()?;
            if class == Class::Block && self.block.drop_unwanted() {
                shared.cx.cache.remove(shared.key(self.number), self.block);
            }
            if !self.block.is_queued() {
                return Ok(false);
            }
            let now = shared.cx.cache.progress();
            if now != seen {
                seen = now;
                since = Instant::now();
            } else if since.elapsed() >= shared.cx.no_progress {
                return Err(Error::new(
                    Kind::TimedOut,
                    format!("no memory came back for {bytes} bytes"),
                )
                .hint("give more with --cache-size=SIZE"));
            }
            Ok(true)
        })
    }

    /// A decoder that an earlier block of this layer has left, if there is one.
    #[must_use]
    pub fn take_spare_decoder<T: Any>(&self) -> Option<Box<T>> {
        // Its memory is counted by this run from now on.
        let (decoder, _memory) = self.shared.cx.cache.take_spare(self.shared.layer)?;
        decoder.downcast().ok()
    }

    /// Offers the decoder for the next block. It is kept only while more blocks wait, so that an
    /// idle mount holds no dictionaries.
    pub fn leave_decoder(&mut self, decoder: Box<dyn Any + Send>) {
        let cache = &self.shared.cx.cache;
        if self.is_pass() {
            return;
        }
        if self.shared.check().is_err() || !self.shared.cx.pool.is_behind() {
            cache.drop_spares();
            return;
        }
        if let Some(running) = &mut self.running {
            let memory = running.memory.split(running.decoder_bytes);
            running.decoder_bytes = 0;
            cache.keep_spare(self.shared.layer, decoder, memory);
        }
    }

    /// The rest of the piece that is being filled: where the next bytes go. Empty when the block
    /// is complete or the run was not started.
    ///
    /// # Errors
    /// When the unit is being taken down.
    pub fn spare(&mut self) -> Result<&mut [u8]> {
        self.check()?;
        let len = self.block.len();
        let Some(running) = &mut self.running else {
            return Ok(&mut []);
        };
        let left = usize::try_from(len - running.at)
            .unwrap_or(PIECE)
            .min(PIECE);
        if let Some(area) = &mut running.area {
            let spare = area.spare();
            let end = spare.len().min(left.saturating_sub(running.filled));
            return Ok(&mut spare[..end]);
        }
        let piece = match &mut running.piece {
            Some(piece) => piece,
            empty => {
                let what = "there is no memory for decoded bytes";
                let piece = Memory::new(left).ok_or_else(|| Error::new(Kind::Limit, what))?;
                empty.insert(piece)
            }
        };
        // The last piece of a pass is used for what is shorter.
        let end = piece.len().min(left);
        Ok(&mut piece[running.filled..end])
    }

    /// All of the block's memory, for a decoder that writes there and looks back into it; then
    /// [`Self::advance`] tells how far it came. `None` when the block does not stay in memory.
    ///
    /// # Errors
    /// When the unit is being taken down.
    pub fn room(&mut self) -> Result<Option<Room<'_>>> {
        self.shared.check()?;
        let area = self.running.as_mut().and_then(|one| one.area.as_mut());
        Ok(area.map(Filling::room))
    }

    /// `len` bytes of [`Self::spare`] or [`Self::room`] were filled.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn advance(&mut self, len: usize) -> Result<()> {
        let block_len = self.block.len();
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        if let Some(area) = &mut running.area {
            area.advance(len);
        }
        running.filled += len;
        while let Some(running) = &self.running {
            let reached = running.at + running.filled as u64;
            let is_last = reached == block_len && running.filled > 0;
            if running.filled < PIECE && !is_last {
                break;
            }
            self.publish()?;
        }
        Ok(())
    }

    /// A sign of life: input has come. To be called for each request to the volume below.
    ///
    /// # Errors
    /// When the unit is being taken down.
    pub fn beat(&self) -> Result<()> {
        self.pulse()()
    }

    /// [`Self::beat`], for who holds what [`Self::spare`] gives at the same time.
    pub fn pulse(&self) -> impl Fn() -> Result<()> + use<'a> {
        let (block, shared, all) = (self.block, self.shared, self.has_all());
        move || {
            block.beat();
            shared.cx.cache.beat();
            shared.check_beyond(all)
        }
    }

    /// Whether all bytes are decoded; their check may come behind them.
    fn has_all(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.at == self.block.len())
    }

    fn check(&self) -> Result<()> {
        self.shared.check_beyond(self.has_all())
    }

    /// Publishes the next piece.
    fn publish(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let (start, len) = (running.at, running.filled.min(PIECE));
        if let Some(area) = &mut running.area {
            // It is in memory.
            let place = start as usize;
            let zero = is_zero(area.written(place, len));
            if !zero {
                running.kept += len as u64;
            }
            area.publish(place + len);
            self.block.publish(start, len, zero);
        } else {
            match (running.behind.take(), running.piece.take()) {
                (Some(behind), Some(piece)) => {
                    running.piece = behind.give(start, piece, len);
                    if running.piece.is_none() {
                        return behind.end();
                    }
                    running.behind = Some(behind);
                }
                (_, piece) => {
                    let bytes = piece.as_deref().unwrap_or_default();
                    behind::store(self.block, start, &bytes[..len])?;
                    running.piece = piece;
                }
            }
        }
        running.at += len as u64;
        running.filled -= len;
        self.shared.cx.cache.beat();
        if self.is_pass() {
            self.tell();
        }
        Ok(())
    }

    /// Tells the observer how far a pass is.
    fn tell(&mut self) {
        let len = self.block.len();
        let Some(running) = &mut self.running else {
            return;
        };
        if running.at == len || running.told.elapsed() >= TELL {
            running.told = Instant::now();
            let what = decoding_once(&self.shared.name);
            self.shared.cx.observer.progress(&what, running.at, len);
        }
    }

    /// The decoder has returned.
    pub(super) fn end(mut self, result: Result<()>) {
        self.ended = true;
        let behind = self.running.as_mut().and_then(|one| one.behind.take());
        // Why storing failed is why the decoder broke off, if it did.
        let stored = behind.map_or(Ok(()), Behind::end);
        let result = stored.and(result).and_then(|()| match &self.running {
            Some(running) if running.at != self.block.len() => Err(Error::new(
                Kind::Corrupt,
                format!(
                    "{}: {} bytes are there, {} were promised",
                    self.shared.decode.describe(self.number),
                    running.at,
                    self.block.len()
                ),
            )),
            _ => Ok(()),
        });
        match result {
            Ok(()) => self.succeed(),
            Err(error) => self.fail(error),
        }
    }

    fn succeed(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let key = self.shared.key(self.number);
        if let Store::File { file, base } = &self.block.store {
            file.complete(*base, self.block.len());
            running.memory.settle(0);
            self.block.finish(None);
        } else if running.kept == 0 {
            // A bit is enough to know all of it.
            running.memory.settle(0);
            self.shared.note_zero(self.number);
            self.block.finish(None);
            self.shared.cx.cache.remove(key, self.block);
        } else {
            let mut kept = self.block.len();
            if running.kept < kept / SPARSE
                && let Some(area) = &mut running.area
            {
                for (start, len) in self.block.zeroes() {
                    // It is in memory.
                    area.forget_zeroes(start as usize, len);
                }
                kept = running.kept;
            }
            running.memory.settle(kept + BLOCK_OVERHEAD);
            self.block.finish(Some(running.memory));
            self.shared.cx.cache.finished(key, self.block);
        }
        // After that: nobody waits for the disk.
        if let Some(keeper) = self.shared.keeper.as_ref().filter(|_| !self.is_pass()) {
            let (number, cx) = (self.number, &self.shared.cx);
            let offset = self.shared.decode.offset(number);
            // It is worth a moment, or a mount that was short would leave nothing.
            let ends = OnceCell::new();
            let goes_on = || {
                self.shared.check().is_ok()
                    || ends.get_or_init(Instant::now).elapsed() < LAST_MOMENT
            };
            keeper.keep(number, offset, self.block, cx, goes_on);
        }
    }

    fn fail(&mut self, error: Error) {
        // A run that had not begun may have been overtaken by another one.
        if self.running.take().is_none() && !self.block.claim() {
            return;
        }
        self.fail_claimed(error);
    }

    /// [`Self::fail`], of a block that is claimed.
    fn fail_claimed(&self, error: Error) {
        let stopped = self.shared.check().is_err();
        let lasting = !may_pass(&error) && !stopped;
        if lasting && !self.is_pass() {
            self.shared.poison(self.number, &error);
        }
        if !self.is_pass() {
            // Before anyone hears of the failure: who then asks again gets a new try.
            let key = self.shared.key(self.number);
            self.shared.cx.cache.remove(key, self.block);
        }
        let served = self.block.fail(error.clone());
        // After that: who misses bytes shall not take them for lost.
        if let Store::File { file, base } = &self.block.store
            && error.kind() == Kind::Corrupt
        {
            file.forget(*base, self.block.len());
        }
        if stopped {
            return;
        }
        let error = error.in_layer(&self.shared.name);
        tracing::error!(error = %error.report(), "cannot decode");
        if served && error.kind() == Kind::Corrupt {
            self.shared.cx.observer.poisoned(&error);
        }
    }
}

impl Sink for Job<'_> {
    fn spare(&mut self) -> Result<&mut [u8]> {
        Job::spare(self)
    }

    fn advance(&mut self, len: usize) -> Result<()> {
        Job::advance(self, len)
    }

    fn room(&mut self) -> Result<Option<Room<'_>>> {
        Job::room(self)
    }

    fn beat(&self) -> Result<()> {
        Job::beat(self)
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.ended = true;
            if let Some(behind) = self.running.as_mut().and_then(|one| one.behind.take()) {
                // Nothing is to be stored of a block that has failed.
                let _ = behind.end();
            }
            // The decoder panicked; whoever waits must not wait for ever.
            self.fail(Error::new(Kind::Io, "the decoder ended unexpectedly"));
        }
    }
}
