//! What makes written data durable: tables are written in steps, and each step is on disk before the
//! next one begins.
//!
//! 1. Guest data is in its place already. Refcounts (which only ever say too much), and L2 tables that
//!    nothing on disk refers to.
//! 2. If there are new blocks of refcounts, the entries of the refcount table; if that has moved, the
//!    header.
//! 3. Entries of L2 tables and of the L1 table.
//! 4. Clusters that nothing refers to any more become holes and can be claimed; their refcounts go to
//!    disk with the next step 1.
//!
//! Wherever this ends, whatever of the last step is on disk: the tables there refer to nothing that
//! is not there, and everything they refer to is counted.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::alloc::{Freed, TablePlace};
use super::changes::Changes;
use super::grid::to_u64;
use super::side::WriteSide;
use super::tables::Tables;
use crate::{ByteRange, Result};

/// Where the place of the refcount table is in the header.
const TABLE_PLACE_AT: u64 = 48;

/// Bytes and where in the file they go.
type Write = (u64, Vec<u8>);

/// What waited at one moment.
struct Batch {
    first: Vec<Write>,
    /// Of the refcount table or the header.
    second: Vec<Write>,
    third: Vec<Write>,
    freed: Vec<Freed>,
    /// For putting it back.
    l1: BTreeSet<usize>,
    table: BTreeSet<usize>,
    moved: Option<TablePlace>,
}

impl WriteSide {
    /// Makes every write that has returned durable. No lock may be held.
    ///
    /// # Errors
    /// What the file says. Everything waits as before then.
    pub(super) fn sync(&self, tables: &Tables) -> Result<()> {
        let one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = Batch::take(&mut self.changes(), tables);
        if batch.is_empty() {
            drop(one);
            return self.flush_files(tables);
        }
        let mut reached_third = false;
        let written = self.write_batch(tables, &batch, &mut reached_third);
        let mut changes = self.changes();
        if let Err(error) = written {
            batch.put_back(&mut changes, reached_third);
            return Err(error);
        }
        batch.done(&mut changes);
        drop(changes);
        self.give_back(tables, &batch.freed)
    }

    /// As [`Self::sync`], with nothing left to be written afterwards.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(super) fn finish(&self, tables: &Tables) -> Result<()> {
        self.changes().space.release_retired();
        self.sync(tables)?;
        // The refcounts of what the first one has given back.
        self.sync(tables)
    }

    fn flush_files(&self, tables: &Tables) -> Result<()> {
        if self.shape.external {
            tables.data().volume().need_writer()?.flush()?;
        }
        tables.file().volume().need_writer()?.flush()
    }

    fn write_batch(&self, tables: &Tables, batch: &Batch, reached_third: &mut bool) -> Result<()> {
        let file = tables.file().volume().need_writer()?;
        let write_all = |writes: &[Write]| {
            writes
                .iter()
                .try_for_each(|(at, bytes)| file.write_at(bytes, *at, false))
        };
        write_all(&batch.first)?;
        self.flush_files(tables)?;
        if !batch.second.is_empty() {
            write_all(&batch.second)?;
            file.flush()?;
        }
        *reached_third = true;
        if batch.third.is_empty() {
            return Ok(());
        }
        write_all(&batch.third)?;
        file.flush()
    }

    /// Step 4.
    fn give_back(&self, tables: &Tables, freed: &[Freed]) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        // A request that knows an old place has begun before: wait for those.
        drop(self.epoch.write().unwrap_or_else(PoisonError::into_inner));
        let holes = self.changes().space.holes(freed)?;
        let file = tables.file().volume();
        for (first, count) in holes {
            let start = self.grid.offset(first);
            let end = self.grid.offset(first.saturating_add(count));
            let range = ByteRange::between(start, end.min(file.size()));
            if let Err(error) = file.need_writer()?.trim(range, false) {
                // The space is not lost to the image.
                tracing::warn!("cannot make a hole: {error}");
            }
        }
        self.changes().space.apply(freed)
    }
}

impl Batch {
    /// Takes all that waits.
    fn take(changes: &mut Changes, tables: &Tables) -> Self {
        let mut batch = Self {
            first: Vec::new(),
            second: Vec::new(),
            third: Vec::new(),
            freed: std::mem::take(&mut changes.space.freed),
            l1: std::mem::take(&mut changes.l1),
            table: BTreeSet::new(),
            moved: None,
        };
        for (at, dirty) in &mut changes.slices {
            let into = if dirty.fresh {
                &mut batch.first
            } else {
                &mut batch.third
            };
            let runs = dirty.sectors.take();
            dirty.in_flight = true;
            into.extend(dirty.slice.runs(&runs, *at));
        }
        let l1 = batch.l1.iter();
        batch.third.extend(l1.map(|index| tables.l1_bytes(*index)));
        batch.take_refcounts(changes);
        batch
    }

    fn take_refcounts(&mut self, changes: &mut Changes) {
        let space = &mut changes.space;
        for (number, block) in &mut space.blocks {
            let index = usize::try_from(*number).unwrap_or(usize::MAX);
            let at = space.table.get(index).copied().unwrap_or(0);
            if block.dirty.is_empty() || at == 0 {
                continue;
            }
            block.in_flight = true;
            for run in block.dirty.take() {
                let start = at.saturating_add(to_u64(run.start));
                let end = run.end.min(block.bytes.len());
                let bytes = block.bytes.get(run.start..end).unwrap_or(&[]);
                self.first.push((start, bytes.to_vec()));
            }
        }
        self.table = std::mem::take(&mut space.table_dirty);
        if space.table_moved {
            let place = space.table_at;
            let bytes = space.table.iter().flat_map(|entry| entry.to_be_bytes());
            self.first.push((place.offset, bytes.collect()));
            let mut header = place.offset.to_be_bytes().to_vec();
            let clusters = u32::try_from(place.clusters).unwrap_or(u32::MAX);
            header.extend(clusters.to_be_bytes());
            self.second.push((TABLE_PLACE_AT, header));
            self.moved = Some(place);
            return;
        }
        for index in &self.table {
            let entry = space.table.get(*index).copied().unwrap_or(0);
            let skip = to_u64(*index).saturating_mul(8);
            let at = space.table_at.offset.saturating_add(skip);
            self.second.push((at, entry.to_be_bytes().to_vec()));
        }
    }

    fn is_empty(&self) -> bool {
        let writes = [&self.first, &self.second, &self.third];
        writes.iter().all(|writes| writes.is_empty()) && self.freed.is_empty()
    }

    /// All of it is on disk.
    fn done(&self, changes: &mut Changes) {
        changes.slices.retain(|_, dirty| {
            if dirty.in_flight {
                dirty.in_flight = false;
                dirty.fresh = false;
            }
            !dirty.sectors.is_empty()
        });
        for block in changes.space.blocks.values_mut() {
            block.in_flight = false;
        }
        if self.moved == Some(changes.space.table_at) {
            changes.space.table_moved = false;
        }
        changes.space.trim_memory();
    }

    /// It is not known what of it is on disk. With `reached_third` something there may refer to L2
    /// tables that were fresh; they are as far as the first step went.
    fn put_back(self, changes: &mut Changes, reached_third: bool) {
        for dirty in changes.slices.values_mut() {
            if dirty.in_flight {
                dirty.in_flight = false;
                dirty.fresh &= !reached_third;
                dirty.sectors.add_all();
            }
        }
        for block in changes.space.blocks.values_mut() {
            if block.in_flight {
                block.in_flight = false;
                block.dirty.add_all();
            }
        }
        changes.l1.extend(self.l1);
        changes.space.table_dirty.extend(self.table);
        let since = std::mem::replace(&mut changes.space.freed, self.freed);
        changes.space.freed.extend(since);
    }
}
