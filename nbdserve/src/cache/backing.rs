//! Where decoded bytes go that are too many for memory: into the cache on disk, where the next
//! mount finds them, or into a temp file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use super::block::PIECE_BYTES;
use super::temp::TempFile;
use crate::store::Pages;
use crate::{Cx, Result};

/// A file that is written and read in pieces, by as many as like.
#[derive(Debug)]
pub(super) struct Backing {
    cx: Cx,
    /// In the cache on disk, as long as that has room.
    pages: Option<Pages>,
    /// A block in `pages` is complete, from an earlier mount maybe.
    worthy: AtomicBool,
    /// For what is not kept; made when it is needed.
    temp: OnceLock<TempFile>,
    making: Mutex<()>,
    /// The pieces that are in the temp file, a bit each, where there are pages too.
    in_temp: RwLock<Vec<u64>>,
}

/// Whether bytes that were stored are still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Copied {
    Yes,
    /// The cache on disk is damaged: they must be decoded again.
    Lost,
}

impl Backing {
    /// In `pages`; what has no room there goes into a temp file.
    pub(super) fn kept(pages: Pages, cx: &Cx) -> Self {
        Self::new(Some(pages), cx)
    }

    /// In a temp file.
    ///
    /// # Errors
    /// When it cannot be created.
    pub(super) fn temporary(cx: &Cx) -> Result<Self> {
        let backing = Self::new(None, cx);
        backing.temp()?;
        Ok(backing)
    }

    fn new(pages: Option<Pages>, cx: &Cx) -> Self {
        Self {
            cx: cx.clone(),
            pages,
            worthy: AtomicBool::new(false),
            temp: OnceLock::new(),
            making: Mutex::new(()),
            in_temp: RwLock::default(),
        }
    }

    /// The temp file.
    pub(super) fn temp(&self) -> Result<&TempFile> {
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(temp) = self.temp.get() {
            return Ok(temp);
        }
        let temp = TempFile::create(&self.cx.temp_dir, self.cx.temp_limit)?;
        Ok(self.temp.get_or_init(|| temp))
    }

    /// The pages, as long as they take what is written.
    pub(super) fn keeping(&self) -> Option<&Pages> {
        self.pages.as_ref().filter(|pages| !pages.is_full())
    }

    /// What tells the pages from all others.
    pub(super) fn id(&self) -> Option<u64> {
        self.pages.as_ref().map(Pages::id)
    }

    /// What comes from now on is not kept, since what was kept got lost.
    pub(super) fn distrust(&self) {
        if let Some(pages) = &self.pages {
            pages.stop();
        }
    }

    /// Stores the piece at `at`, which is a multiple of the length of a piece where pages are kept.
    ///
    /// # Errors
    /// `NoSpace` or why it cannot be stored.
    pub(super) fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        if let Some(pages) = self.keeping() {
            if pages.write(at, bytes) {
                return Ok(());
            }
            self.give_up(pages);
        }
        self.temp()?.write_at(bytes, at)?;
        if self.pages.is_some() {
            let index = at / PIECE_BYTES;
            let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
            let mut bits = self.in_temp.write().unwrap_or_else(PoisonError::into_inner);
            if bits.len() <= word {
                bits.resize(word + 1, 0);
            }
            bits[word] |= 1 << (index % 64);
        }
        Ok(())
    }

    /// Notes that the piece at `at` is zero. Whoever reads it here knows by other means.
    pub(super) fn write_zero(&self, at: u64) {
        if let Some(pages) = self.keeping()
            && !pages.write_zero_chunk(at)
        {
            self.give_up(pages);
        }
    }

    /// No block will be complete any more. If none is, nothing is kept; what is there can still be
    /// read here.
    fn give_up(&self, pages: &Pages) {
        if self.worthy.load(Ordering::Relaxed) {
            pages.stop();
        } else {
            pages.discard();
        }
    }

    /// Fills `buf` with the bytes at `at`, all of one piece.
    ///
    /// # Errors
    /// When the temp file cannot be read.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<Copied> {
        match &self.pages {
            Some(pages) if !self.is_in_temp(at) => Ok(if pages.read(at, buf) {
                Copied::Yes
            } else {
                Copied::Lost
            }),
            _ => self.temp()?.read_at(buf, at).map(|()| Copied::Yes),
        }
    }

    /// As [`Self::read`], for bytes that nobody has stored here, but maybe an earlier mount.
    pub(super) fn read_kept(&self, buf: &mut [u8], at: u64) -> bool {
        self.pages.as_ref().is_some_and(|pages| pages.read(at, buf))
    }

    fn is_in_temp(&self, at: u64) -> bool {
        let index = at / PIECE_BYTES;
        let bits = self.in_temp.read().unwrap_or_else(PoisonError::into_inner);
        usize::try_from(index / 64)
            .ok()
            .and_then(|word| bits.get(word))
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// The block of `len` bytes at `base` is complete and checked.
    pub(super) fn complete(&self, base: u64, len: u64) {
        if let Some(pages) = self.keeping() {
            let kept = pages.mark(mark_at(base, len));
            self.worthy.fetch_or(kept, Ordering::Relaxed);
        }
    }

    /// Whether the block of `len` bytes at `base` was complete and checked.
    pub(super) fn is_complete(&self, base: u64, len: u64) -> bool {
        let pages = self.pages.as_ref();
        let complete = pages.is_some_and(|pages| pages.is_marked(mark_at(base, len)));
        self.worthy.fetch_or(complete, Ordering::Relaxed);
        complete
    }

    /// The block of `len` bytes at `base` turned out to be wrong.
    pub(super) fn forget(&self, base: u64, len: u64) {
        if let Some(pages) = &self.pages {
            pages.forget(
                base,
                mark_at(base, len).saturating_sub(base).saturating_add(1),
            );
        }
    }

    /// Which pieces of the block of `len` bytes at `base` are known to be zero.
    pub(super) fn zero_pieces(&self, base: u64, len: u64) -> Vec<u64> {
        let pages = self.pages.as_ref();
        pages.map_or_else(Vec::new, |pages| pages.zero_chunks(base, len))
    }
}

/// Where a block of `len` bytes at `base` has its mark: in the piece behind it.
pub(super) fn mark_at(base: u64, len: u64) -> u64 {
    base.saturating_add(len).saturating_add(PIECE_BYTES) / PIECE_BYTES * PIECE_BYTES
}

/// Where a block lies whose decoded bytes begin at `offset`: at the beginning of a piece, and with
/// at least one piece between it and the next block. `None` beyond what a file can hold.
///
/// With three pieces for each block before it, the block that ends at `offset` ends at least two
/// before, its own and the rounding up included.
pub(super) fn base_of(number: u64, offset: u64) -> Option<u64> {
    let between = number.checked_mul(3)?.checked_mul(PIECE_BYTES)?;
    let base = (offset / PIECE_BYTES * PIECE_BYTES).checked_add(between)?;
    (base <= i64::MAX.unsigned_abs()).then_some(base)
}

/// The pages for `name`, when anything is kept and `bytes` are not too many.
pub(super) fn pages_for(name: &str, bytes: u64, cx: &Cx) -> Option<Pages> {
    let place = cx.place.as_ref()?;
    if bytes > place.limit() {
        tracing::info!("{name}: {bytes} bytes are more than the cache takes");
        return None;
    }
    place.pages(name)
}

/// As [`pages_for`] without what an earlier mount has left.
pub(super) fn new_pages_for(name: &str, cx: &Cx) -> Option<Pages> {
    let place = cx.place.as_ref()?;
    if let Some(old) = place.find_pages(name) {
        old.discard();
    }
    place.pages(name)
}

/// As [`Backing::kept`] for what was kept as `name` by an earlier mount.
pub(super) fn find(name: &str, cx: &Cx) -> Option<Arc<Backing>> {
    let pages = cx.place.as_ref()?.find_pages(name)?;
    Some(Arc::new(Backing::kept(pages, cx)))
}
