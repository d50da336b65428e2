//! Blocks that took long to decode, on their way from memory into the cache on disk, where the next
//! mount finds them.

use std::sync::OnceLock;

use super::backing::{base_of, mark_at};
use super::block::{Block, PIECE, PIECE_BYTES, Store};
use crate::Cx;
use crate::store::Pages;

/// What is kept of a layer's blocks. Its file is made with the first of them.
#[derive(Debug)]
pub(super) struct Keeper {
    name: String,
    pages: OnceLock<Option<Pages>>,
}

impl Keeper {
    /// Under `name`; see [`super::Kept::take`].
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            pages: OnceLock::new(),
        }
    }

    fn pages(&self, cx: &Cx) -> Option<&Pages> {
        let pages = || cx.place.as_ref()?.pages(&self.name);
        self.pages.get_or_init(pages).as_ref()
    }

    /// A block that was kept since this mount began: by another one, or by this one before it had to go
    /// from memory. All of it was read and is right at this moment.
    pub(super) fn find(&self, number: u64, offset: u64, len: u64, cx: &Cx) -> Option<InPages<'_>> {
        let (pages, base) = (self.pages(cx)?, base_of(number, offset)?);
        let mark = mark_at(base, len);
        if !pages.is_marked(mark) {
            return None;
        }
        let kept = InPages { pages, base, len };
        let mut piece = vec![0; PIECE];
        let mut starts = (0..len).step_by(PIECE);
        let right = starts.all(|start| {
            let piece = &mut piece[..(len - start).min(PIECE_BYTES) as usize];
            kept.read(start, piece)
        });
        if !right {
            kept.forget();
            return None;
        }
        Some(kept)
    }

    /// Keeps a block that lies in memory, is complete and has passed its check: its mark comes last,
    /// so that what is interrupted, or has no room, counts for nothing. Ends early when `goes_on`
    /// says so.
    pub(super) fn keep(
        &self,
        number: u64,
        offset: u64,
        block: &Block,
        cx: &Cx,
        goes_on: impl Fn() -> bool,
    ) {
        let Some(pages) = self.pages(cx) else {
            return;
        };
        let (Some(base), Store::Memory(area)) = (base_of(number, offset), &block.store) else {
            return;
        };
        let mark = mark_at(base, block.len());
        // By another unit, maybe.
        if pages.is_full() || pages.is_marked(mark) {
            return;
        }
        let mut zeroes = block.zeroes().into_iter().peekable();
        for start in (0..block.len()).step_by(PIECE) {
            if !goes_on() {
                return;
            }
            let at = base + start;
            let kept = if zeroes.next_if(|(zero, _)| *zero == start).is_some() {
                pages.write_zero_chunk(at)
            } else {
                // It is in memory.
                let range = start as usize..(start + PIECE_BYTES).min(block.len()) as usize;
                let bytes = area.get().and_then(|area| area.get(range));
                bytes.is_some_and(|bytes| pages.write(at, bytes))
            };
            if !kept {
                return;
            }
        }
        pages.mark(mark);
    }
}

/// A block in the cache on disk.
#[derive(Debug)]
pub(super) struct InPages<'a> {
    pages: &'a Pages,
    base: u64,
    len: u64,
}

impl InPages<'_> {
    /// Fills `buf` with the bytes of the block from `skip` on. False when they are lost by now.
    pub(super) fn read(&self, skip: u64, buf: &mut [u8]) -> bool {
        self.pages.read(self.base + skip, buf)
    }

    /// Takes it away, since some of it is lost: whoever decodes the block keeps it anew.
    pub(super) fn forget(&self) {
        let end = mark_at(self.base, self.len).saturating_add(1);
        self.pages.forget(self.base, end.saturating_sub(self.base));
    }
}
