//! What a layer reads its blocks through.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::backing::{Backing, Copied, pages_for};
use super::block::Block;
use super::job::Job;
use super::keeper::Keeper;
use super::kept::Kept;
use super::pass::Passes;
use super::patience::{Patience, Waited};
use super::shared::{Shared, Used};
use super::streams::Streams;
use super::whole::Stored;
use crate::stats::BlockStats;
use crate::{ByteRange, Cx, Error, Kind, Lent, Result};

/// A block longer than this part of the budget is decoded into a temp file.
const HUGE_PART: u64 = 4;
/// A block of a slow format that is longer than this is decoded into the cache on disk, if it has room.
const SLOW_MOST: u64 = 32 << 20;
/// Of the budget, prefetched blocks take at most one part in this many.
const AHEAD_PART: u64 = 2;
/// Decoded bytes that get lost in the cache on disk are decoded again, into a temp file then; once
/// more for a pass that was under way meanwhile.
const RENEWALS: u32 = 4;

/// What a block is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To be read: counted as a hit or a miss.
    Read,
    /// To know where its zeroes are.
    Know,
    /// To know that it is right as a whole.
    Check,
}

/// How the blocks of one layer are decoded. Blocks are numbered as the layer likes.
pub trait Decode: Send + Sync + Debug {
    /// Decoded bytes of a block.
    fn len(&self, number: u64) -> u64;

    /// Where the decoded bytes of the block begin in the device.
    fn offset(&self, number: u64) -> u64;

    /// The block in messages: `block 7 at 4711`.
    fn describe(&self, number: u64) -> String;

    /// Decodes all of a block; see [`Job`]. Runs on any thread, for several blocks at once.
    ///
    /// # Errors
    /// `Io` and `TimedOut` are taken for passing: the next read tries again. All other kinds are
    /// remembered.
    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()>;

    /// Whether that takes so long that decoded blocks are worth their place on disk.
    fn is_slow(&self) -> bool {
        false
    }
}

/// What the blocks of a layer that are too long for memory (see [`Blocks::is_huge`]) sum up to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Huge {
    /// Encoded bytes. Apart from zeroes, data hardly ever has fewer bytes when it is decoded.
    pub encoded: u64,
    /// Decoded bytes, zeroes included.
    pub decoded: u64,
    /// A hash of where all blocks lie: what was decoded of others is not for these.
    pub layout: u64,
    /// The longest block that is decoded into memory, as [`Blocks::longest`] has it. `None` where only
    /// the memory counts.
    pub longest: Option<u64>,
}

impl Huge {
    /// What the blocks are decoded into: the cache on disk, which may have some of it, or a temp
    /// file.
    fn file(self, name: &str, cx: &Cx) -> Result<Arc<Backing>> {
        if let Some(pages) = pages_for(&Kept::passes(name, self.layout), self.encoded, cx) {
            return Ok(Arc::new(Backing::kept(pages, cx)));
        }
        self.temp_file(name, cx).map(Arc::new)
    }

    fn temp_file(self, name: &str, cx: &Cx) -> Result<Backing> {
        let Self {
            encoded, decoded, ..
        } = self;
        let backing = Backing::temporary(cx)?;
        let file = backing.temp()?;
        let room = file.room()?;
        if encoded > room {
            let what = format!(
                "{decoded} bytes must be decoded into a temp file, of which at least {encoded} \
                 will be stored, {room} are free"
            );
            return Err(file.no_space(&what));
        }
        if decoded > room {
            let folder = cx.temp_dir.display();
            tracing::warn!(
                "{name}: {decoded} bytes will be decoded into a temp file in {folder}, where \
                 {room} are free: that will do only if the image is sparse"
            );
        }
        Ok(backing)
    }
}

/// The decoded blocks of one layer. Dropping it ends its background work.
#[derive(Debug)]
pub struct Blocks {
    shared: Arc<Shared>,
    streams: Mutex<Streams>,
}

impl Blocks {
    /// The blocks of a layer called `name` in messages. Where some are too long for memory, they are
    /// kept in the cache on disk, or a temp file for them is created in `cx.temp_dir`.
    ///
    /// Whether they will fit there is not known before they are decoded, since zeroes take no
    /// space: what is certain to fail is refused here, what may fail is said in the log.
    ///
    /// # Errors
    /// `NoSpace` when the temp file's place has less than `huge.encoded` bytes free, or why the
    /// file cannot be created.
    pub fn new(name: &str, decode: Arc<dyn Decode>, huge: Huge, cx: &Cx) -> Result<Self> {
        Self::with_stored(name, decode, huge, HashMap::new(), cx)
    }

    /// As [`Self::new`], where some blocks (by number) are decoded already. They are not counted
    /// in `huge`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_stored(
        name: &str,
        decode: Arc<dyn Decode>,
        huge: Huge,
        stored: HashMap<u64, Stored>,
        cx: &Cx,
    ) -> Result<Self> {
        let file = if huge.decoded > 0 {
            Some(huge.file(name, cx)?)
        } else {
            None
        };
        let longest = huge.longest.unwrap_or(cx.cache.budget() / HUGE_PART);
        let keeps = cx.place.is_some() && decode.is_slow();
        let keeper = keeps.then(|| Keeper::new(Kept::passes(name, huge.layout)));
        let passes = Passes::new(file, stored);
        let shared = Shared::new(name, decode, passes, (longest, keeper), cx);
        Ok(Self {
            shared: Arc::new(shared),
            streams: Mutex::default(),
        })
    }

    /// Whether a block of `len` bytes is decoded into a temp file, in one pass from its start.
    #[must_use]
    pub fn is_huge(len: u64, cx: &Cx) -> bool {
        len > cx.cache.budget() / HUGE_PART
    }

    /// The longest block that is decoded into memory, of an image of `size` bytes whose format is slow
    /// or not. A long block that takes seconds to decode is worth more in the cache on disk, if that
    /// has room for the image: there it stays, whatever is interrupted.
    #[must_use]
    pub fn longest(size: u64, is_slow: bool, cx: &Cx) -> u64 {
        let most = cx.cache.budget() / HUGE_PART;
        let has_room = || cx.place.as_ref().is_some_and(|place| place.has_room(size));
        if is_slow && most > SLOW_MOST && has_room() {
            return SLOW_MOST;
        }
        most
    }

    /// Whether a block of `len` bytes is decoded into a file, in one pass from its start.
    #[must_use]
    pub fn is_long(&self, len: u64) -> bool {
        len > self.shared.longest
    }

    /// Refuses a decoder that alone takes more memory (`bytes`) than there is for all.
    ///
    /// # Errors
    /// `Limit`, about the block that `what` describes.
    pub fn check_decoder_memory(what: &str, bytes: u64, cx: &Cx) -> Result<()> {
        let budget = cx.cache.budget();
        if bytes <= budget {
            return Ok(());
        }
        let mib = (bytes.saturating_mul(2) >> 20).saturating_add(1);
        let what =
            format!("{what}: its decoder needs {bytes} bytes of memory, the cache has {budget}");
        Err(Error::new(Kind::Limit, what).hint(format!("--cache-size={mib}M")))
    }

    /// Fills `buf` with the bytes at `skip` of a block, waiting until they are decoded.
    ///
    /// # Errors
    /// Why the block cannot be decoded, `TimedOut` after `cx.no_progress` without progress, or
    /// that the unit is being taken down.
    pub fn read(&self, number: u64, skip: u64, buf: &mut [u8]) -> Result<()> {
        if self.shared.is_zero(number) {
            self.shared.used.hits.fetch_add(1, Ordering::Relaxed);
            buf.fill(0);
            return Ok(());
        }
        if self.shared.read_kept(number, skip, buf) {
            self.shared.used.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        for round in 0..RENEWALS {
            let block = self.wait(
                number,
                skip + buf.len() as u64,
                if round == 0 {
                    Purpose::Read
                } else {
                    Purpose::Know
                },
            )?;
            match block.copy(skip, buf)? {
                Copied::Yes => return Ok(()),
                Copied::Lost => self.shared.passes.renew(&self.shared, number, &block)?,
            }
        }
        let what = self.shared.decode.describe(number);
        Err(Error::new(
            Kind::Io,
            format!("{what}: what was decoded gets lost each time"),
        ))
    }

    /// Whether there may be something to lend of a block.
    #[must_use]
    pub fn lends(&self, number: u64) -> bool {
        !self.shared.is_zero(number) && !self.shared.is_in_file(number)
    }

    /// As [`Self::read`], without a copy. `None` where there is nothing to lend: the bytes are in a
    /// file, or are zero.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn lend(&self, number: u64, skip: u64, len: usize) -> Result<Option<Lent>> {
        if !self.lends(number) {
            return Ok(None);
        }
        let block = self.wait(number, skip.saturating_add(len as u64), Purpose::Read)?;
        block.lend(skip, len)
    }

    /// The block, decoded up to `end`.
    fn wait(&self, number: u64, end: u64, purpose: Purpose) -> Result<Arc<Block>> {
        let shared = &self.shared;
        let stop = || shared.check();
        let elsewhere = || shared.cx.cache.progress();
        let patience = Patience {
            stop: &stop,
            elsewhere: &elsewhere,
            limit: shared.cx.no_progress,
            verify: shared.cx.verify || purpose == Purpose::Check,
        };
        let mut first = purpose != Purpose::Know;
        loop {
            stop()?;
            let block = shared.demand(number, end)?;
            if std::mem::take(&mut first) {
                let Used { hits, misses, .. } = &shared.used;
                let count = if block.is_done() { hits } else { misses };
                count.fetch_add(1, Ordering::Relaxed);
            }
            match block.wait(end, &patience)? {
                Waited::Ready => return Ok(block),
                // It goes out of the cache at this moment.
                Waited::Again => std::thread::yield_now(),
            }
        }
    }

    /// Where the decoded bytes of the block begin in the device.
    #[must_use]
    pub fn offset(&self, number: u64) -> u64 {
        self.shared.decode.offset(number)
    }

    /// Begins to decode a block for a reader that will come at once: it goes before prefetches.
    pub fn begin(&self, number: u64) {
        if self.shared.check().is_ok() && !self.shared.is_zero(number) {
            // The reader will see the error.
            let _ = self.shared.demand(number, 0);
        }
    }

    /// Begins to decode a block that may be needed soon, unless the pool is behind already.
    pub fn prefetch(&self, number: u64) {
        if self.shared.check().is_ok() && !self.shared.is_zero(number) {
            self.shared.prefetch(number);
        }
    }

    /// How many blocks of `len` bytes to prefetch at once: as many as cores, within half of the
    /// budget.
    #[must_use]
    pub fn window(&self, len: u64) -> u64 {
        let cx = &self.shared.cx;
        let cores = u64::try_from(cx.pool.threads()).unwrap_or(u64::MAX);
        if len > self.shared.longest {
            return 1;
        }
        let fit = cx.cache.budget() / AHEAD_PART / len.max(1);
        fit.min(cores.saturating_add(1))
    }

    /// Notes that `range` of the device was asked for, where blocks have about `len` bytes. How
    /// many further blocks are worth a prefetch: none unless the read goes on where earlier ones
    /// have stopped, one at first, and [`Self::window`] once they were as long as a block.
    pub fn note_read(&self, range: ByteRange, len: u64) -> u64 {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let run = streams.note(range, len);
        drop(streams);
        match run {
            0 => 0,
            run if run < len => self.window(len).min(1),
            _ => self.window(len),
        }
    }

    /// A sequential reader has read from a block that is quickly decoded again: it may go soon.
    pub fn passed(&self, number: u64) {
        self.shared.cx.cache.passed(self.shared.key(number));
    }

    /// What is known of the bytes from `skip` to `until` of a block without decoding: where the
    /// run of equal kind ends (within the block), and whether it is proven to be zero.
    #[must_use]
    pub fn known(&self, number: u64, skip: u64, until: u64) -> (u64, bool) {
        let shared = &self.shared;
        let len = shared.decode.len(number);
        if shared.is_zero(number) {
            return (len, true);
        }
        match shared.peek(number) {
            Some(block) => block.run(skip, until, shared.cx.verify),
            None => (len, false),
        }
    }

    /// Bytes from `skip` to `until` of a block that are known to be data, and those of which nothing is
    /// known without decoding.
    #[must_use]
    pub fn tally(&self, number: u64, skip: u64, until: u64) -> (u64, u64) {
        let shared = &self.shared;
        if shared.is_zero(number) {
            return (0, 0);
        }
        match shared.peek(number) {
            Some(block) => block.tally(skip, until, shared.cx.verify),
            None => (0, until.saturating_sub(skip)),
        }
    }

    /// Decodes a whole block and waits for its check, so that [`Self::known`] knows all of it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn load(&self, number: u64) -> Result<()> {
        if !self.shared.is_zero(number) {
            self.wait(number, self.shared.decode.len(number), Purpose::Check)?;
        }
        Ok(())
    }

    /// Decodes a block up to `end`, so that [`Self::known`] knows that much of it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn reach(&self, number: u64, end: u64) -> Result<()> {
        if !self.shared.is_zero(number) {
            self.wait(number, end, Purpose::Know)?;
        }
        Ok(())
    }

    /// Notes that a block is all zero, which its layer knows from elsewhere: it is never decoded.
    pub fn note_zero(&self, number: u64) {
        self.shared.note_zero(number);
    }

    /// Whether a block is here in part or as a whole, or on its way.
    #[must_use]
    pub fn is_begun(&self, number: u64) -> bool {
        self.shared.is_zero(number) || self.shared.peek(number).is_some()
    }

    /// Whether a block is all zero and its check has passed.
    #[must_use]
    pub fn is_zero(&self, number: u64) -> bool {
        self.shared.is_zero(number)
    }

    /// How the blocks were used.
    #[must_use]
    pub fn stats(&self) -> BlockStats {
        let used = &self.shared.used;
        BlockStats {
            hits: used.hits.load(Ordering::Relaxed),
            misses: used.misses.load(Ordering::Relaxed),
            decodes: used.decodes.load(Ordering::Relaxed),
        }
    }

    /// Ends background work; waits for decoders to stop, with a bound. Reads fail from now on.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.close();
    }
}
