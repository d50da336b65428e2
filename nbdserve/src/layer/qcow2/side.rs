//! The write side of an image: whether it may be written to at all, and the locks of the requests
//! that do so (`write.rs`, `zero.rs`) and of the flush (`sync.rs`).
//!
//! Locks, in the order in which they are taken:
//! * `epoch`, shared by every request; alone only for a moment, before clusters are given back: then
//!   no request is under way that still knows an old place.
//! * A stripe for each part of the disk: shared by who reads or writes what has its place already,
//!   alone by who gives it a new one. So a cluster is copied once, and no write gets lost in the
//!   copying.
//! * `changes`: briefly, for finding free clusters and for setting entries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::alloc::{Space, TablePlace};
use super::changes::Changes;
use super::entry::{Cluster, Host, Parts, Shape};
use super::grid::{Grid, to_usize};
use super::header::{Header, autoclear, incompatible};
use super::plan::Units;
use super::refcount::Width;
use super::tables::Tables;
use crate::layer::luks::SectorCipher;
use crate::{ByteRange, Error, Kind, Result, Volume};

/// Bytes of the disk that a stripe lock is for, at least a cluster.
const GROUP: u64 = 256 << 10;
/// Locks for all groups together.
const STRIPES: u64 = 64;
/// Longest L1 table of an image that is written, as in QEMU: that of 8 TiB in clusters of 4 KiB, and of
/// more in longer ones.
const LONGEST_L1: u64 = 32 << 20;
/// Where the autoclear features are in the header.
const AUTOCLEAR_AT: u64 = 88;

/// The write side of an image.
#[derive(Debug)]
pub(super) struct WriteSide {
    pub(super) grid: Grid,
    pub(super) shape: Shape,
    /// The file that guest clusters are in.
    pub(super) data: Volume,
    pub(super) cipher: Option<Arc<SectorCipher>>,
    pub(super) version: u32,
    /// Autoclear features, as on disk and as they must be before the first write.
    autoclear: (u64, u64),
    begun: AtomicBool,
    beginning: Mutex<()>,
    /// There is a backing file.
    pub(super) shows_below: bool,
    pub(super) size: u64,
    pub(super) epoch: RwLock<()>,
    stripes: Vec<RwLock<()>>,
    pub(super) changes: Mutex<Changes>,
    /// Held while tables are written.
    pub(super) syncing: Mutex<()>,
}

/// A lock on a part of the disk.
pub(super) type Shared<'a> = RwLockReadGuard<'a, ()>;
pub(super) type Alone<'a> = RwLockWriteGuard<'a, ()>;

impl WriteSide {
    /// The write side of an image whose file can be written.
    ///
    /// # Errors
    /// `Unsupported` with what to do about it for an image that must not be written as it is;
    /// `Corrupt`; what the file says.
    pub(super) fn open(
        header: &Header,
        tables: &Tables,
        cipher: Option<Arc<SectorCipher>>,
        shows_below: bool,
    ) -> Result<Self> {
        check_writable(header)?;
        let shape = header.shape();
        let grid = Grid::new(header.cluster_bits);
        let width = Width::new(header.refcount_order).ok_or_else(|| {
            let order = header.refcount_order;
            Error::new(Kind::Corrupt, format!("refcounts of 2^{order} bits"))
        })?;
        let table = TablePlace {
            offset: header.refcount_table_offset,
            clusters: u64::from(header.refcount_table_clusters),
        };
        let mut space = Space::open(tables.file().volume(), grid, width, table)?;
        for (_, range) in header.metadata() {
            space.add_meta(range.start(), range.len());
        }
        // Looked at when the cipher was made.
        if let Some(range) = header.extensions.luks.filter(|_| cipher.is_some()) {
            space.add_meta(range.start(), range.len());
        }
        let kept = if shape.raw { autoclear::RAW_DATA } else { 0 };
        let kept = header.autoclear_features & kept;
        Ok(Self {
            grid,
            shape,
            data: tables.data().volume().clone(),
            cipher,
            version: header.version,
            autoclear: (header.autoclear_features, kept),
            begun: AtomicBool::new(false),
            beginning: Mutex::new(()),
            shows_below,
            size: tables.size(),
            epoch: RwLock::new(()),
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            changes: Mutex::new(Changes::none(space, tables)?),
            syncing: Mutex::new(()),
        })
    }

    /// The parts of `range` that have a lock each.
    pub(super) fn groups(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + use<> {
        let len = GROUP.max(self.grid.size());
        let end = range.end();
        std::iter::successors(Some(range.start()), move |at| {
            at.checked_add(1)?.checked_next_multiple_of(len)
        })
        .take_while(move |at| *at < end)
        .map(move |at| {
            let next = at
                .checked_add(1)
                .and_then(|next| next.checked_next_multiple_of(len))
                .unwrap_or(u64::MAX);
            ByteRange::between(at, next.min(end))
        })
    }

    /// A request begins.
    pub(super) fn enter(&self) -> Shared<'_> {
        self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For reading and writing what `group` has where it is.
    pub(super) fn shared(&self, group: ByteRange) -> Option<Shared<'_>> {
        let stripe = self.stripe(group)?.read();
        Some(stripe.unwrap_or_else(PoisonError::into_inner))
    }

    /// For giving a part of `group` another place.
    pub(super) fn alone(&self, group: ByteRange) -> Option<Alone<'_>> {
        let stripe = self.stripe(group)?.write();
        Some(stripe.unwrap_or_else(PoisonError::into_inner))
    }

    /// There always is one.
    fn stripe(&self, group: ByteRange) -> Option<&RwLock<()>> {
        let number = group.start().checked_div(GROUP.max(self.grid.size()))?;
        self.stripes.get(to_usize(number % STRIPES))
    }

    pub(super) fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before anything is changed: says in the header that what this writer does not keep true is no
    /// longer so.
    pub(super) fn begin(&self, tables: &Tables) -> Result<()> {
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one = self
            .beginning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let (now, kept) = self.autoclear;
        if now & autoclear::BITMAPS != 0 {
            let name = tables.file().volume().name();
            tracing::warn!(
                "{name}: its dirty bitmaps do not follow what is written now, and are marked as stale"
            );
        }
        let file = tables.file().volume().need_writer()?;
        // The last cluster of a file may be cut.
        let end = self.grid.offset(self.grid.count(tables.file().size()));
        let _ = file.grow(end)?;
        if now == kept {
            self.begun.store(true, Ordering::Release);
            return Ok(());
        }
        file.write_at(&kept.to_be_bytes(), AUTOCLEAR_AT, false)?;
        file.flush()?;
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// The parts of `range` that lie in one cluster each.
    pub(super) fn clusters(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + use<> {
        let grid = self.grid;
        let first = grid.index(range.start());
        let end = grid.count(range.end());
        (first..end).map(move |index| {
            let start = grid.offset(index);
            ByteRange::between(start, start.saturating_add(grid.size())).intersect(range)
        })
    }

    /// Where the cluster of `part` begins.
    pub(super) fn start_of(&self, part: ByteRange) -> u64 {
        self.grid.offset(self.grid.index(part.start()))
    }

    pub(super) fn units(&self, part: ByteRange) -> Units {
        Units::new(&self.shape, self.start_of(part), self.size)
    }

    /// What the cluster that holds `guest` is.
    pub(super) fn lookup(&self, tables: &Tables, guest: u64) -> Result<Cluster> {
        let (entry, bitmap) = tables.entry(guest)?;
        let cluster = tables.cluster(entry, bitmap, guest)?;
        if !self.shape.raw {
            return Ok(cluster);
        }
        // Whatever is not told of lies where the guest sees it.
        let host = Host {
            at: self.grid.offset(self.grid.index(guest)),
            copied: true,
        };
        Ok(match cluster {
            Cluster::Unallocated => Cluster::Standard(host),
            Cluster::Parts(parts) => Cluster::Parts(Parts {
                host: Some(host),
                allocated: !parts.zeroed,
                zeroed: parts.zeroed,
            }),
            other => other,
        })
    }
}

/// Refuses what must not be written as it is.
fn check_writable(header: &Header) -> Result<()> {
    if header.has(incompatible::CORRUPT) {
        let what = "the image is marked as corrupt, and is not written to";
        return Err(Error::new(Kind::Unsupported, what).hint(
            "qemu-img check -r all may repair it; keep a copy. --cow writes without touching it",
        ));
    }
    if header.has(incompatible::DIRTY) {
        let what = "the image was not closed after its last use, its refcounts may be wrong";
        return Err(Error::new(Kind::Unsupported, what)
            .hint("qemu-img check -r all puts them right. --cow writes without touching it"));
    }
    // All its clusters are remembered, also those that the disk's size does not need.
    let table = u64::from(header.l1_size).saturating_mul(8);
    if table > LONGEST_L1 {
        let what = format!("an L1 table of {table} bytes, where {LONGEST_L1} are taken");
        return Err(Error::new(Kind::Limit, what));
    }
    Ok(())
}
