//! Which clusters of the file are in use: the refcount table and its blocks, and finding free ones.
//!
//! What is changed here is changed in memory. [`super::sync`] writes it, in an order in which the file
//! is never wrong: a cluster counts as used on disk before anything there refers to it, and is given
//! back only when nothing on disk does any more.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::grid::{Grid, to_u64, to_usize};
use super::refcount::Width;
use super::sectors::Sectors;
use crate::{Done, Error, Kind, Result, Volume};

/// Host offsets have 56 bits.
const END_OF_OFFSETS: u64 = 1 << 56;
/// Entries of the refcount table and of the L1 table: bits 9 to 55 are an offset.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// A larger refcount table is not read, nor made.
const MAX_TABLE: u64 = 8 << 20;
/// The file grows by this much at least.
const GROWTH: u64 = 1 << 20;
/// So many blocks of refcounts may be full for clusters that are not there.
const FULL_BEHIND_END: u64 = 16;
/// So many bytes of refcount blocks stay in memory.
const KEPT: usize = 16 << 20;

/// A block of refcounts in memory.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    pub(super) dirty: Sectors,
    /// Being written: what is on disk may be older.
    pub(super) in_flight: bool,
}

/// Clusters that nothing refers to any more, once what is in memory is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) first: u64,
    pub(super) count: u64,
    /// They shall become a hole.
    pub(super) punch: bool,
}

/// Consecutive clusters that were free and now count as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) first: u64,
    pub(super) count: u64,
    /// From this one on nothing was ever written to them: they read as zeroes.
    pub(super) virgin: u64,
}

/// Where the refcount table lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TablePlace {
    pub(super) offset: u64,
    pub(super) clusters: u64,
}

/// The clusters of a file.
#[derive(Debug)]
pub(super) struct Space {
    below: Volume,
    grid: Grid,
    width: Width,
    /// Offset of each block of refcounts; 0 where there is none yet.
    pub(super) table: Vec<u64>,
    pub(super) table_at: TablePlace,
    /// Entries of the table that differ from those on disk.
    pub(super) table_dirty: BTreeSet<usize>,
    /// The table is to be written at a new place, and the header to tell of it.
    pub(super) table_moved: bool,
    /// Where the table was before. Given back last of all: what reads the image has been told that
    /// no guest data lies there.
    retired: Vec<TablePlace>,
    pub(super) blocks: HashMap<u64, Block>,
    /// No cluster before this one is free.
    cursor: u64,
    /// This one and those behind it were never used, nor did they exist when the file was opened.
    virgin: u64,
    pub(super) freed: Vec<Freed>,
    /// Clusters of the header and of tables, but for L2 tables: nothing else may go there, whatever
    /// the image says.
    meta: HashSet<u64>,
    /// Those of L2 tables.
    l2: HashSet<u64>,
}

impl Space {
    /// Reads the refcount table.
    pub(super) fn open(
        below: &Volume,
        grid: Grid,
        width: Width,
        table_at: TablePlace,
    ) -> Result<Self> {
        let bytes = grid.offset(table_at.clusters);
        if bytes == 0 || bytes > MAX_TABLE {
            return Err(Error::new(
                Kind::Unsupported,
                format!("a refcount table of {bytes} bytes, where 1 to {MAX_TABLE} are taken"),
            ));
        }
        let aligned = |offset: u64| grid.within(offset) == 0;
        if !aligned(table_at.offset) {
            let what = format!("the refcount table begins at {}", table_at.offset);
            return Err(corrupt(&what, "in the middle of a cluster"));
        }
        let raw = below
            .read_vec(table_at.offset, to_usize(bytes))
            .map_err(|error| match error.kind() {
                Kind::OutOfRange => {
                    let what = format!("{bytes} bytes of refcount table at {}", table_at.offset);
                    corrupt(&what, "are beyond the end of the file")
                }
                _ => error,
            })?;
        let mut table = Vec::with_capacity(raw.len() / 8);
        for (index, entry) in raw.as_chunks::<8>().0.iter().enumerate() {
            let offset = u64::from_be_bytes(*entry);
            if offset & !OFFSET != 0 || !aligned(offset) {
                let what = format!("entry {index} of the refcount table is {offset:#x}");
                return Err(corrupt(&what, "which is no place of a cluster"));
            }
            table.push(offset);
        }
        let mut meta: HashSet<u64> = HashSet::new();
        meta.insert(0);
        meta.extend(table.iter().map(|offset| grid.index(*offset)));
        let mut space = Self {
            below: below.clone(),
            grid,
            width,
            table,
            table_at,
            table_dirty: BTreeSet::new(),
            table_moved: false,
            retired: Vec::new(),
            blocks: HashMap::new(),
            cursor: 1,
            virgin: grid.count(below.size()),
            freed: Vec::new(),
            meta,
            l2: HashSet::new(),
        };
        space.add_meta(table_at.offset, bytes);
        Ok(space)
    }

    /// Remembers that `bytes` at `offset` are a table.
    pub(super) fn add_meta(&mut self, offset: u64, bytes: u64) {
        let first = self.grid.index(offset);
        let end = self.grid.count(offset.saturating_add(bytes));
        self.meta.extend(first..end);
    }

    /// Remembers that an L2 table lies at `offset`.
    pub(super) fn add_l2(&mut self, offset: u64) {
        self.l2.insert(self.grid.index(offset));
    }

    /// Refuses guest data where a table lies.
    pub(super) fn check_data(&self, offset: u64) -> Result<()> {
        let cluster = self.grid.index(offset);
        if self.meta.contains(&cluster) || self.l2.contains(&cluster) {
            let what = format!("guest data at {offset} of the file");
            return Err(corrupt(&what, "where one of its tables lies"));
        }
        Ok(())
    }

    /// Refuses an L2 table where another table lies.
    pub(super) fn check_l2(&self, offset: u64) -> Result<()> {
        if self.meta.contains(&self.grid.index(offset)) {
            let what = format!("an L2 table at {offset} of the file");
            return Err(corrupt(&what, "where another of its tables lies"));
        }
        Ok(())
    }

    /// Gives back what was kept until now only for the sake of this session.
    pub(super) fn release_retired(&mut self) {
        for place in std::mem::take(&mut self.retired) {
            self.release(self.grid.index(place.offset), place.clusters, false);
        }
    }

    /// How often `cluster` is used.
    pub(super) fn refcount(&mut self, cluster: u64) -> Result<u64> {
        let (number, index) = self.place(cluster);
        let width = self.width;
        Ok(self
            .block(number)?
            .and_then(|block| width.get(&block.bytes, index))
            .unwrap_or(0))
    }

    /// Takes up to `want` consecutive free clusters, at least one.
    ///
    /// # Errors
    /// `NoSpace` when the file cannot be made longer.
    pub(super) fn claim(&mut self, want: u64) -> Result<Claimed> {
        let per_block = self.per_block();
        loop {
            let (number, from) = self.place(self.cursor);
            if self.block(number)?.is_none() {
                self.make_block(number)?;
                continue;
            }
            let width = self.width;
            let entries = to_usize(per_block);
            let Some(block) = self.block(number)? else {
                continue;
            };
            let free = |index: &usize| width.get(&block.bytes, *index) == Some(0);
            let Some(start) = (from..entries).find(free) else {
                self.cursor = number.saturating_add(1).saturating_mul(per_block);
                self.check_cursor()?;
                continue;
            };
            let end = start.saturating_add(to_usize(want.max(1))).min(entries);
            let run = (start..end).take_while(free).count();
            let first = number
                .saturating_mul(per_block)
                .saturating_add(to_u64(start));
            let claimed = Claimed {
                first,
                count: to_u64(run),
                virgin: self.virgin.max(first),
            };
            self.take(claimed.first, claimed.count)?;
            self.cursor = claimed.first.saturating_add(claimed.count);
            return Ok(claimed);
        }
    }

    /// Refuses to look on where the file has ended long ago, and is said to be in use.
    fn check_cursor(&self) -> Result<()> {
        let end = self.grid.count(self.below.size());
        let far = self.per_block().saturating_mul(FULL_BEHIND_END);
        if self.cursor <= end.saturating_add(far) {
            return Ok(());
        }
        let (at, size) = (self.grid.offset(self.cursor), self.below.size());
        let what = format!("all clusters up to {at} have a refcount");
        Err(corrupt(&what, &format!("and the file has {size} bytes")))
    }

    /// As [`Self::claim`] for an L2 table, and where it lies.
    pub(super) fn claim_l2(&mut self) -> Result<u64> {
        let claimed = self.claim(1)?;
        self.l2.insert(claimed.first);
        Ok(self.grid.offset(claimed.first))
    }

    /// Gives clusters back that nothing has ever referred to, neither in memory nor on disk.
    pub(super) fn unclaim(&mut self, first: u64, count: u64) {
        for cluster in first..first.saturating_add(count) {
            // Its block is in memory, for it was changed.
            let _ = self.set(cluster, 0);
        }
        self.cursor = self.cursor.min(first);
    }

    /// Says that one thing less refers to these clusters: a matter of memory until the next
    /// synchronization has made that durable.
    pub(super) fn release(&mut self, first: u64, count: u64, punch: bool) {
        if let Some(last) = self.freed.last_mut()
            && last.punch == punch
            && last.first.saturating_add(last.count) == first
        {
            last.count = last.count.saturating_add(count);
            return;
        }
        self.freed.push(Freed {
            first,
            count,
            punch,
        });
    }

    /// Which of `freed` shall become holes, now that nothing on disk refers to them: runs of
    /// clusters. None of them can be claimed yet.
    pub(super) fn holes(&mut self, freed: &[Freed]) -> Result<Vec<(u64, u64)>> {
        let mut holes: Vec<(u64, u64)> = Vec::new();
        for run in freed.iter().filter(|run| run.punch) {
            for cluster in run.first..run.first.saturating_add(run.count) {
                if self.refcount(cluster)? != 1 {
                    continue;
                }
                match holes.last_mut() {
                    Some((first, count)) if first.saturating_add(*count) == cluster => {
                        *count = count.saturating_add(1);
                    }
                    _ => holes.push((cluster, 1)),
                }
            }
        }
        Ok(holes)
    }

    /// Counts one user less of each of `freed`. What nobody uses any more can be claimed from now on.
    pub(super) fn apply(&mut self, freed: &[Freed]) -> Result<()> {
        for run in freed {
            for cluster in run.first..run.first.saturating_add(run.count) {
                let count = self.refcount(cluster)?;
                let Some(less) = count.checked_sub(1) else {
                    let offset = self.grid.offset(cluster);
                    tracing::warn!("the cluster at {offset} was in use with a refcount of 0");
                    continue;
                };
                self.set(cluster, less)?;
                if less == 0 {
                    self.meta.remove(&cluster);
                    self.l2.remove(&cluster);
                    self.cursor = self.cursor.min(cluster);
                }
            }
        }
        Ok(())
    }

    /// Lets go of blocks that are the same on disk, when there are many.
    pub(super) fn trim_memory(&mut self) {
        if self.blocks.len().saturating_mul(self.grid.bytes()) > KEPT {
            self.blocks
                .retain(|_, block| block.in_flight || !block.dirty.is_empty());
        }
    }

    /// Which block of refcounts tells of `cluster`, and by which entry.
    fn place(&self, cluster: u64) -> (u64, usize) {
        let per_block = self.per_block();
        let number = cluster.checked_div(per_block).unwrap_or(0);
        let index = cluster.checked_rem(per_block).unwrap_or(0);
        (number, to_usize(index))
    }

    /// Entries of a block.
    fn per_block(&self) -> u64 {
        to_u64(self.width.entries(self.grid.bytes())).max(1)
    }

    /// Block `number`, read when it is not in memory; `None` when there is none.
    fn block(&mut self, number: u64) -> Result<Option<&mut Block>> {
        let at = self.table.get(to_usize(number)).copied().unwrap_or(0);
        if at == 0 {
            return Ok(None);
        }
        if !self.blocks.contains_key(&number) {
            let bytes = self
                .below
                .read_vec(at, self.grid.bytes())
                .map_err(|error| match error.kind() {
                    Kind::OutOfRange => corrupt(
                        &format!("the block of refcounts at {at}"),
                        "is beyond the end of the file",
                    ),
                    _ => error,
                })?;
            let block = Block {
                dirty: Sectors::none(bytes.len()),
                bytes,
                in_flight: false,
            };
            self.blocks.insert(number, block);
        }
        Ok(self.blocks.get_mut(&number))
    }

    /// Sets the count of a cluster whose block exists.
    fn set(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (number, index) = self.place(cluster);
        let width = self.width;
        let done = self.block(number)?.is_some_and(|block| {
            block.dirty.add(&width.bytes_of(index));
            width.set(&mut block.bytes, index, count)
        });
        if !done {
            let what = format!("cluster {cluster} has no refcount");
            return Err(Error::new(Kind::Io, what));
        }
        Ok(())
    }

    /// Counts these free clusters as used once, with the file long enough for them.
    fn take(&mut self, first: u64, count: u64) -> Result<()> {
        let end = first.saturating_add(count);
        if let Some(cluster) =
            (first..end).find(|cluster| self.meta.contains(cluster) || self.l2.contains(cluster))
        {
            let offset = self.grid.offset(cluster);
            let what = format!("the refcount of the cluster at {offset} is 0");
            return Err(corrupt(&what, "and it is one of the image's tables"));
        }
        self.lengthen(end)?;
        for cluster in first..end {
            self.set(cluster, 1)?;
        }
        self.virgin = self.virgin.max(end);
        Ok(())
    }

    /// Makes the file long enough for the clusters before `end`.
    fn lengthen(&self, end: u64) -> Result<()> {
        let end = self.grid.offset(end);
        let name = self.below.name();
        if end > END_OF_OFFSETS {
            let what = format!("a qcow2 image ends at {END_OF_OFFSETS}, and all of it is used");
            return Err(Error::new(Kind::NoSpace, what));
        }
        let size = self.below.size();
        if end <= size {
            return Ok(());
        }
        let wanted = end.checked_next_multiple_of(GROWTH).unwrap_or(end);
        match self.below.need_writer()?.grow(wanted)? {
            Done::Yes => Ok(()),
            Done::Declined => Err(Error::new(
                Kind::NoSpace,
                format!("no free cluster is left in the {size} bytes of the {name} below"),
            )),
        }
    }

    /// Makes block `number`, which does not exist, of the first cluster it tells of that is not
    /// before the cursor.
    fn make_block(&mut self, number: u64) -> Result<()> {
        if to_usize(number) >= self.table.len() {
            return self.make_table(number);
        }
        let cluster = self.cursor;
        self.add_block(number, cluster)?;
        self.take(cluster, 1)?;
        self.meta.insert(cluster);
        self.cursor = cluster.saturating_add(1);
        Ok(())
    }

    /// An empty block `number` at `cluster`, which is not counted yet.
    fn add_block(&mut self, number: u64, cluster: u64) -> Result<()> {
        // Before anything of it is remembered.
        self.lengthen(cluster.saturating_add(1))?;
        let size = self.grid.bytes();
        let block = Block {
            bytes: vec![0; size],
            dirty: Sectors::all(size),
            in_flight: false,
        };
        let index = to_usize(number);
        if let Some(entry) = self.table.get_mut(index) {
            *entry = self.grid.offset(cluster);
            self.table_dirty.insert(index);
            self.blocks.insert(number, block);
        }
        Ok(())
    }

    /// Moves the refcount table to where it can be longer: behind everything, after the blocks that
    /// count the clusters of both. Block `number` is the first that the old table has no entry for.
    fn make_table(&mut self, number: u64) -> Result<()> {
        let per_block = self.per_block();
        let entry_bytes = |entries: u64| entries.saturating_mul(8);
        let start = number.saturating_mul(per_block);
        // Half as many again, so that it does not happen often; the blocks for the table itself, too.
        let grown = number.saturating_add(number / 2).saturating_add(2);
        let mut clusters = self.grid.count(entry_bytes(grown));
        let mut blocks = 1_u64;
        loop {
            let needed = clusters.saturating_add(blocks).div_ceil(per_block);
            let entries = number.saturating_add(needed).saturating_add(1);
            let enough = self.grid.count(entry_bytes(entries));
            if needed <= blocks && enough <= clusters {
                break;
            }
            blocks = blocks.max(needed);
            clusters = clusters.max(enough);
        }
        let bytes = self.grid.offset(clusters);
        if bytes > MAX_TABLE {
            let what = format!("a refcount table of {bytes} bytes would be needed");
            return Err(Error::new(Kind::NoSpace, what).hint(format!(
                "at most {MAX_TABLE} are made; qemu-img convert with larger clusters makes room"
            )));
        }
        let all = clusters.saturating_add(blocks);
        self.lengthen(start.saturating_add(all))?;
        self.table.resize(to_usize(bytes / 8), 0);
        for block in 0..blocks {
            let number = number.saturating_add(block);
            self.add_block(number, start.saturating_add(block))?;
        }
        self.take(start, all)?;
        self.meta.extend(start..start.saturating_add(all));
        let place = TablePlace {
            offset: self.grid.offset(start.saturating_add(blocks)),
            clusters,
        };
        self.retired
            .push(std::mem::replace(&mut self.table_at, place));
        self.table_moved = true;
        Ok(())
    }
}

/// The image breaks the rules of the format.
pub(super) fn corrupt(what: &str, how: &str) -> Error {
    Error::new(Kind::Corrupt, format!("{what} {how}"))
        .hint("qemu-img check -r all may repair the image; keep a copy")
}
