//! What is in memory and not yet on disk: entries of L2 and L1 tables, refcounts.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::alloc::Space;
use super::entry::COPIED;
use super::grid::{Grid, to_usize};
use super::sectors::Sectors;
use super::tables::{Slice, Tables};
use crate::Result;

/// So many bytes of changed L2 slices may wait; then they are written.
const MOST_BYTES: usize = 16 << 20;
/// And so many runs of clusters that are to be given back.
const MOST_FREED: usize = 1 << 16;

/// A slice of an L2 table that differs from the one on disk. It stays in memory as long as it is
/// here.
#[derive(Debug)]
pub(super) struct Dirty {
    pub(super) slice: Arc<Slice>,
    pub(super) sectors: Sectors,
    /// Nothing on disk refers to its table yet.
    pub(super) fresh: bool,
    /// Being written.
    pub(super) in_flight: bool,
}

/// All that waits.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) space: Space,
    /// By where they lie in the file.
    pub(super) slices: HashMap<u64, Dirty>,
    /// L1 entries.
    pub(super) l1: BTreeSet<usize>,
    grid: Grid,
}

impl Changes {
    /// None; `tables` are those of the image.
    pub(super) fn none(mut space: Space, grid: Grid, tables: &Tables) -> Result<Self> {
        for index in 0..tables.l1_len() {
            if let Some(table) = tables.table(index)? {
                space.add_l2(table.at);
            }
        }
        Ok(Self {
            space,
            slices: HashMap::new(),
            l1: BTreeSet::new(),
            grid,
        })
    }

    /// Sets the words of the L2 entry for the cluster at `guest`.
    ///
    /// # Errors
    /// Nothing has changed then, but for the place of the L2 table.
    pub(super) fn set_entry(
        &mut self,
        tables: &Tables,
        guest: u64,
        entry: u64,
        bitmap: u64,
    ) -> Result<()> {
        let shape = tables.shape();
        let table = self.own_table(tables, shape.l1_index(guest))?;
        let (skip, index) = shape.slice_of(shape.l2_index(guest));
        let at = table.saturating_add(skip);
        let slice = tables.slice(at)?;
        let words = shape.entry_words();
        let first = index.saturating_mul(words);
        slice.set(first, entry);
        if words > 1 {
            slice.set(first.saturating_add(1), bitmap);
        }
        let len = to_usize(1_u64 << shape.slice_bits());
        let dirty = self.slices.entry(at).or_insert_with(|| Dirty {
            slice,
            sectors: Sectors::none(len),
            fresh: false,
            in_flight: false,
        });
        let start = first.saturating_mul(8);
        let end = start.saturating_add(words.saturating_mul(8));
        dirty.sectors.add(&(start..end));
        Ok(())
    }

    /// The place of the L2 table of an L1 entry, to which nothing else refers: made, or copied, if
    /// need be.
    fn own_table(&mut self, tables: &Tables, l1_index: usize) -> Result<u64> {
        let old = tables.table(l1_index)?;
        if let Some(table) = old
            && table.copied
        {
            self.space.check_l2(table.at)?;
            return Ok(table.at);
        }
        let shape = tables.shape();
        let len = 1_u64 << shape.slice_bits();
        let starts = |at: u64| {
            let end = at.saturating_add(shape.cluster_size());
            std::iter::successors(Some(at), move |at| at.checked_add(len))
                .take_while(move |at| *at < end)
        };
        let mut contents = Vec::new();
        for at in starts(0) {
            contents.push(match old {
                Some(table) => tables.slice(table.at.saturating_add(at))?.copy(),
                None => vec![0; to_usize(len / 8)],
            });
        }
        let new = self.space.claim_l2()?;
        for (at, words) in starts(new).zip(contents) {
            let slice = tables.put_slice(at, words);
            let dirty = Dirty {
                slice,
                sectors: Sectors::all(to_usize(len)),
                fresh: true,
                in_flight: false,
            };
            self.slices.insert(at, dirty);
        }
        tables.set_l1(l1_index, new | COPIED);
        self.l1.insert(l1_index);
        if let Some(table) = old {
            self.space.release(self.grid.index(table.at), 1, false);
        }
        Ok(new)
    }

    /// Whether so much waits that it should be written, though nobody has asked for that.
    pub(super) fn are_many(&self, slice_len: usize) -> bool {
        self.slices.len().saturating_mul(slice_len) > MOST_BYTES
            || self.space.freed.len() > MOST_FREED
    }
}
