//! What earlier mounts have decoded of a layer's blocks, for good.

use std::collections::HashMap;
use std::sync::Arc;

use super::backing::{Backing, base_of, find};
use super::whole::Stored;
use crate::Cx;
use crate::bytes::le64;

/// The longest list of a shelf's blocks that is kept: 43690 of them.
const LONGEST_LIST: u64 = 1 << 20;
/// Bytes of the id of a list's pages, before its entries.
const ID: usize = 8;
/// Bytes of a list's entry: offset, length, base.
const ENTRY: usize = 24;

/// Where the blocks of a shelf are in the file, by their offset and length in the image: their
/// numbers may be others the next time.
type List = HashMap<(u64, u64), u64>;

/// The complete blocks that are kept of the layer called `name`.
#[derive(Debug)]
pub(crate) struct Kept {
    passes: Option<Arc<Backing>>,
    shelf: Option<Arc<Backing>>,
    list: List,
}

impl Kept {
    /// What there is; `layout` is a hash of where all blocks lie.
    pub(crate) fn find(name: &str, layout: u64, cx: &Cx) -> Self {
        let shelf = find(&Self::shelf(name), cx);
        let list = Self::load_list(name, cx);
        // Who fills a shelf anew may put its blocks elsewhere.
        let right = shelf.as_ref().and_then(|shelf| shelf.id()).zip(list);
        let list = right.filter(|(id, (of, _))| id == of);
        let mut list = list.map(|(_, (_, list))| list).unwrap_or_default();
        if let Some(shelf) = &shelf {
            list.retain(|(_, len), base| shelf.is_complete(*base, *len));
        }
        Self {
            passes: find(&Self::passes(name, layout), cx),
            shelf,
            list,
        }
    }

    /// The block `number`, of `len` bytes from `offset` on, if it is kept as a whole. `looked_for` is
    /// false for what is only kept when it was decoded at opening.
    pub(crate) fn take(
        &self,
        number: u64,
        offset: u64,
        len: u64,
        looked_for: bool,
    ) -> Option<Stored> {
        if let (Some(shelf), Some(base)) = (&self.shelf, self.list.get(&(offset, len))) {
            return Some(stored(shelf, *base, len));
        }
        let passes = self.passes.as_ref().filter(|_| looked_for)?;
        let base = base_of(number, offset)?;
        passes
            .is_complete(base, len)
            .then(|| stored(passes, base, len))
    }

    /// Notes which blocks are on the layer's shelf, so that the next mount finds them. Their
    /// checks must have passed.
    pub(crate) fn save(
        name: &str,
        blocks: &HashMap<u64, Stored>,
        offset: impl Fn(u64) -> u64,
        cx: &Cx,
    ) {
        let Some(place) = &cx.place else { return };
        let mut ids = blocks.values().filter_map(|block| block.file.id());
        let Some(id) = ids.next() else { return };
        let mut list = id.to_le_bytes().to_vec();
        for (number, block) in blocks {
            if block.file.keeping().is_none() || block.file.id() != Some(id) {
                continue;
            }
            block.file.complete(block.base, block.len);
            for field in [offset(*number), block.len, block.base] {
                list.extend(field.to_le_bytes());
            }
        }
        if list.len() > ID && list.len() as u64 <= LONGEST_LIST {
            place.save(&Self::list(name), &list);
        }
    }

    /// The id of the pages that the list is about, and the list.
    fn load_list(name: &str, cx: &Cx) -> Option<(u64, List)> {
        let bytes = cx.place.as_ref()?.load(&Self::list(name), LONGEST_LIST)?;
        let id = le64(&bytes, 0)?;
        let entries = bytes.get(ID..)?.chunks_exact(ENTRY).filter_map(|entry| {
            let (offset, len, base) = (le64(entry, 0)?, le64(entry, 8)?, le64(entry, 16)?);
            Some(((offset, len), base))
        });
        Some((id, entries.collect()))
    }

    /// What the pieces of huge blocks and of slow ones are kept as.
    pub(super) fn passes(name: &str, layout: u64) -> String {
        format!("{name}-passes-1-{layout:016x}")
    }

    /// What the pieces of blocks of unknown length are kept as.
    pub(super) fn shelf(name: &str) -> String {
        format!("{name}-shelf-1")
    }

    fn list(name: &str) -> String {
        format!("{name}-shelf-list-1")
    }
}

fn stored(file: &Arc<Backing>, base: u64, len: u64) -> Stored {
    Stored {
        file: Arc::clone(file),
        base,
        len,
        zero: file.zero_pieces(base, len),
    }
}
