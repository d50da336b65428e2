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
        let pages = || cx.place.as_ref()?.pages(&self.name);
        let Some(pages) = self.pages.get_or_init(pages) else {
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
