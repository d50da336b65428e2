//! The tables of a guest's disk: the L1 table in memory, L2 tables in pieces (slices) as they are
//! wanted, of which those that were wanted last are kept.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::entry::{Cluster, Shape, Table, bytes, words};
use super::file::HostFile;
use super::grid::to_u64;
use super::header::{FARTHEST, Header, check_l1, corrupt};
use crate::layer::cut::cut_off;
use crate::layer::scan::narrow;
use crate::{ByteRange, Error, Kind, Result};

/// What a slice takes beside its words, rounded up.
const OVERHEAD: u64 = 256;
/// At least so many slices are kept.
const LEAST: usize = 4;
/// Most slices that a hint is passed on for.
const MOST_SLICE_HINTS: usize = 64;

/// Where an L1 table lies, and how long a disk it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    /// In messages: `the L1 table`.
    pub(super) name: String,
    /// Its first byte in the file.
    pub(super) at: u64,
    /// Its entries.
    pub(super) entries: u64,
    /// Bytes of the guest's disk.
    pub(super) size: u64,
}

impl Root {
    /// The current state of the disk.
    pub(super) fn active(header: &Header) -> Self {
        Self {
            name: "the L1 table".to_owned(),
            at: header.l1_table_offset,
            entries: u64::from(header.l1_size),
            size: header.size,
        }
    }
}

/// The tables of a disk.
pub(super) struct Tables {
    shape: Shape,
    root: Root,
    /// What the tables lie in.
    file: HostFile,
    /// What guest clusters lie in: the same, or the data file.
    data: HostFile,
    /// Parts of the file that hold something else than guest clusters and L2 tables.
    taken: Vec<(&'static str, ByteRange)>,
    /// The entries as in the file.
    l1: RwLock<Vec<u64>>,
    /// By where they lie in the file.
    slices: RwLock<HashMap<u64, Arc<Slice>>>,
    /// Most slices that are kept.
    most: usize,
    /// Grows with each use of a slice.
    clock: AtomicU64,
    /// Held while slices are dropped.
    evicting: Mutex<()>,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables")
            .field("shape", &self.shape)
            .field("root", &self.root)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A piece of an L2 table.
#[derive(Debug)]
pub(super) struct Slice {
    /// The words as in the file; none before it was read.
    words: RwLock<Vec<u64>>,
    /// When it was used last.
    used: AtomicU64,
}

impl Slice {
    /// Changes a word.
    pub(super) fn set(&self, index: usize, word: u64) {
        let mut words = self.words.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = words.get_mut(index) {
            *old = word;
        }
    }

    /// All words.
    pub(super) fn copy(&self) -> Vec<u64> {
        self.words().clone()
    }

    /// The bytes `runs` of it, multiples of 8, for the file: it lies at `at` there.
    pub(super) fn runs(&self, runs: &[Range<usize>], at: u64) -> Vec<(u64, Vec<u8>)> {
        let words = self.words();
        let of = |run: &Range<usize>| {
            let end = (run.end / 8).min(words.len());
            let part = words.get(run.start / 8..end).unwrap_or(&[]);
            (at.saturating_add(to_u64(run.start)), bytes(part))
        };
        runs.iter().map(of).collect()
    }

    fn words(&self) -> RwLockReadGuard<'_, Vec<u64>> {
        self.words.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entries of a slice, held so that nobody changes them.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    words: RwLockReadGuard<'a, Vec<u64>>,
    shape: Shape,
}

impl Entries<'_> {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.words
            .len()
            .checked_div(self.shape.entry_words())
            .unwrap_or(0)
    }

    /// The words of an entry: itself, and its bitmap (zero where there is none).
    pub(super) fn get(&self, index: usize) -> Option<(u64, u64)> {
        let words = self.shape.entry_words();
        let at = index.checked_mul(words)?;
        let entry = *self.words.get(at)?;
        match words {
            2 => self.words.get(at.checked_add(1)?).map(|map| (entry, *map)),
            _ => Some((entry, 0)),
        }
    }
}

impl Tables {
    /// Reads the L1 table of `root`; slices may take `memory` bytes later.
    ///
    /// # Errors
    /// `Corrupt` for a table that is too short or outside of the file; `Limit` for one that is too
    /// long for `memory`; what the file says.
    pub(super) fn load(
        header: &Header,
        root: Root,
        file: HostFile,
        data: HostFile,
        memory: u64,
    ) -> Result<Self> {
        let shape = header.shape();
        let needed = shape.l1_entries(root.size);
        check_l1(
            &root.name,
            root.at,
            root.entries,
            needed,
            shape.cluster_size(),
            file.size(),
        )?;
        let len = needed.saturating_mul(8);
        // As bytes, and as words.
        let memory_needed = len.saturating_mul(2);
        if memory_needed > memory {
            let mib = (memory_needed >> 20)
                .saturating_add(1)
                .saturating_mul(super::super::INDEX_PART);
            let what = format!("{} of {len} bytes, {memory} are left for it", root.name);
            return Err(Error::new(Kind::Limit, what).hint(format!("--cache-size={mib}M")));
        }
        let mut bytes = vec![0; narrow(len)];
        if !bytes.is_empty() {
            file.read_at(&mut bytes, root.at)?;
        }
        let one = (1_u64 << shape.slice_bits()).saturating_add(OVERHEAD);
        let most = memory.saturating_sub(len).checked_div(one).unwrap_or(0);
        let mut taken = header.metadata();
        taken.push((
            "its L1 table",
            ByteRange::between(root.at, root.at.saturating_add(len)),
        ));
        Ok(Self {
            shape,
            file,
            data,
            taken,
            l1: RwLock::new(words(&bytes)),
            slices: RwLock::default(),
            most: narrow(most).max(LEAST),
            clock: AtomicU64::new(0),
            evicting: Mutex::new(()),
            root,
        })
    }

    /// What the entries look like.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of the guest's disk.
    pub(super) fn size(&self) -> u64 {
        self.root.size
    }

    /// The file that the tables lie in.
    pub(super) fn file(&self) -> &HostFile {
        &self.file
    }

    /// The file that guest clusters lie in.
    pub(super) fn data(&self) -> &HostFile {
        &self.data
    }

    /// The L2 table of an L1 entry.
    ///
    /// # Errors
    /// `Corrupt` for an entry that points nowhere, or where something else is.
    pub(super) fn table(&self, l1_index: usize) -> Result<Option<Table>> {
        let l1 = self.l1.read().unwrap_or_else(PoisonError::into_inner);
        let entry = l1.get(l1_index).copied().unwrap_or(0);
        drop(l1);
        let Some(table) = self.shape.l1_entry(entry, l1_index)? else {
            return Ok(None);
        };
        let what = || format!("L1 entry {l1_index} points to an L2 table");
        self.check_free(table.at, self.shape.cluster_size(), &what)?;
        self.check_within(&self.file, table.at, self.shape.cluster_size(), &what)?;
        Ok(Some(table))
    }

    /// One past the last of the L1 entries from `l1_index` on (to `until`) that point to no table.
    pub(super) fn none_until(&self, l1_index: usize, until: usize) -> usize {
        let l1 = self.l1.read().unwrap_or_else(PoisonError::into_inner);
        let entries = l1.get(l1_index..until.min(l1.len())).unwrap_or(&[]);
        let some = entries.iter().position(|entry| *entry != 0);
        l1_index.saturating_add(some.unwrap_or(entries.len()))
    }

    /// What an entry says of the cluster at `guest`, after it was checked that its place can be one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn cluster(&self, entry: u64, bitmap: u64, guest: u64) -> Result<Cluster> {
        let cluster = self.shape.l2_entry(entry, bitmap, guest)?;
        let what = || format!("the L2 entry of the cluster that holds {guest} points");
        let host = match &cluster {
            Cluster::Standard(host) => Some(*host),
            Cluster::Parts(parts) if parts.allocated != 0 => parts.host,
            Cluster::Compressed(data) => {
                self.check_free(data.at, data.len, &what)?;
                self.check_within(&self.file, data.at, 1, &what)?;
                None
            }
            // Their places are not read.
            _ => None,
        };
        if let Some(host) = host {
            if !self.shape.external {
                self.check_free(host.at, self.shape.cluster_size(), &what)?;
            }
            // The last cluster may be cut.
            self.check_within(&self.data, host.at, 1, &what)?;
        }
        Ok(cluster)
    }

    fn check_free(&self, at: u64, len: u64, what: &dyn Fn() -> String) -> Result<()> {
        let end = at.saturating_add(len);
        for (name, range) in &self.taken {
            if at < range.end() && range.start() < end {
                let what = what();
                return Err(corrupt(format!("{what} at {at}, where {name} is")));
            }
        }
        Ok(())
    }

    fn check_within(
        &self,
        file: &HostFile,
        at: u64,
        len: u64,
        what: &dyn Fn() -> String,
    ) -> Result<()> {
        let size = file.size();
        if at.saturating_add(len) > size || at >= FARTHEST {
            let what = what();
            return Err(cut_off(format!(
                "{what} at {at}, where the file of {size} bytes has ended"
            )));
        }
        Ok(())
    }

    /// Entries of the L1 table.
    pub(super) fn l1_len(&self) -> usize {
        let l1 = self.l1.read().unwrap_or_else(PoisonError::into_inner);
        l1.len()
    }

    /// Changes an L1 entry.
    pub(super) fn set_l1(&self, index: usize, entry: u64) {
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = l1.get_mut(index) {
            *old = entry;
        }
    }

    /// An L1 entry for the file, and where it lies there.
    pub(super) fn l1_bytes(&self, index: usize) -> (u64, Vec<u8>) {
        let l1 = self.l1.read().unwrap_or_else(PoisonError::into_inner);
        let entry = l1.get(index).copied().unwrap_or(0);
        let at = self.root.at.saturating_add(to_u64(index).saturating_mul(8));
        (at, bytes(&[entry]))
    }

    /// The words of the L2 entry for the cluster that holds `guest`; zero where there is no table.
    ///
    /// # Errors
    /// As [`Self::table`], and what the file says.
    pub(super) fn entry(&self, guest: u64) -> Result<(u64, u64)> {
        let Some(table) = self.table(self.shape.l1_index(guest))? else {
            return Ok((0, 0));
        };
        let (skip, index) = self.shape.slice_of(self.shape.l2_index(guest));
        self.with_slice(table.at.saturating_add(skip), |entries| {
            Ok(entries.get(index).unwrap_or((0, 0)))
        })
    }

    /// A slice of a new L2 table, at `at` in the file.
    pub(super) fn put_slice(&self, at: u64, words: Vec<u64>) -> Arc<Slice> {
        let slice = Arc::new(Slice {
            words: RwLock::new(words),
            used: AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed)),
        });
        let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
        // What was known of the place before is no longer so.
        slices.insert(at, Arc::clone(&slice));
        slice
    }

    /// Whether the slice at `at` is in memory.
    pub(super) fn is_here(&self, at: u64) -> bool {
        let slices = self.slices.read().unwrap_or_else(PoisonError::into_inner);
        slices
            .get(&at)
            .is_some_and(|slice| !slice.words().is_empty())
    }

    /// The slice of an L2 table that lies at `at` in the file, and its entries to `look` at.
    ///
    /// # Errors
    /// What the file says, and `look`.
    pub(super) fn with_slice<T>(
        &self,
        at: u64,
        look: impl FnOnce(Entries<'_>) -> Result<T>,
    ) -> Result<T> {
        let slice = self.slice(at)?;
        let words = slice.words();
        look(Entries {
            words,
            shape: self.shape,
        })
    }

    /// The slice of an L2 table that lies at `at` in the file, read if need be: by one, however many
    /// wait.
    pub(super) fn slice(&self, at: u64) -> Result<Arc<Slice>> {
        let slice = self.find(at);
        if slice.words().is_empty() {
            let mut words_of = slice.words.write().unwrap_or_else(PoisonError::into_inner);
            if words_of.is_empty() {
                let mut bytes = vec![0; narrow(1_u64 << self.shape.slice_bits())];
                self.file.read_at(&mut bytes, at)?;
                *words_of = words(&bytes);
            }
        }
        Ok(slice)
    }

    /// Says below which slices are missing to look up `ranges`, when they are several: they will be
    /// read one by one.
    pub(super) fn will_need(&self, ranges: &[ByteRange]) {
        let len = 1_u64 << self.shape.slice_bits();
        let slices = ranges.iter().filter_map(|range| {
            let table = self.table(self.shape.l1_index(range.start())).ok()??;
            let (skip, _) = self.shape.slice_of(self.shape.l2_index(range.start()));
            Some(table.at.saturating_add(skip))
        });
        let mut slices: Vec<u64> = slices.collect();
        slices.sort_unstable();
        slices.dedup();
        let known = self.slices.read().unwrap_or_else(PoisonError::into_inner);
        // One that is being read counts as known.
        slices.retain(|at| !known.contains_key(at));
        drop(known);
        if slices.len() > 1 {
            let slices = slices.iter().take(MOST_SLICE_HINTS);
            let parts = slices.map(|at| ByteRange::between(*at, at.saturating_add(len)));
            self.file
                .volume()
                .will_need_parts(&parts.collect::<Vec<_>>());
        }
    }

    fn find(&self, at: u64) -> Arc<Slice> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let slices = self.slices.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = slices.get(&at) {
            slice.used.store(now, Ordering::Relaxed);
            return Arc::clone(slice);
        }
        let many = slices.len() >= self.most;
        drop(slices);
        if many {
            self.evict();
        }
        let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
        let slice = slices.entry(at).or_insert_with(|| {
            Arc::new(Slice {
                words: RwLock::default(),
                used: AtomicU64::new(now),
            })
        });
        Arc::clone(slice)
    }

    /// Drops the quarter of the slices that was not used for the longest time.
    fn evict(&self) {
        let _one = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let slices = self.slices.read().unwrap_or_else(PoisonError::into_inner);
        if slices.len() < self.most {
            return;
        }
        let mut used: Vec<u64> = slices
            .values()
            .map(|slice| slice.used.load(Ordering::Relaxed))
            .collect();
        drop(slices);
        let quarter = used.len() >> 2;
        let (_, &mut limit, _) = used.select_nth_unstable(quarter);
        let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody has some in use, or has changed them.
        slices.retain(|_, slice| {
            Arc::strong_count(slice) > 1 || slice.used.load(Ordering::Relaxed) > limit
        });
    }
}
