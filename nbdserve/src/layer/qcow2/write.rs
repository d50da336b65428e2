//! The write side: guest data goes to its place at once, tables change in memory (`changes.rs`) and
//! reach the file with the next flush (`sync.rs`).
//!
//! Locks, in the order in which they are taken:
//! * `epoch`, shared by every request; alone only for a moment, before clusters are given back: then
//!   no request is under way that still knows an old place.
//! * A stripe for each part of the disk: shared by who reads or writes what has its place already,
//!   alone by who gives it a new one. So a cluster is copied once, and no write gets lost in the
//!   copying.
//! * `changes`: briefly, for finding free clusters and for setting entries.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::alloc::{Space, TablePlace};
use super::changes::Changes;
use super::crypto;
use super::entry::{Cluster, Host, Parts, Shape};
use super::grid::{Grid, to_u64, to_usize};
use super::header::{Header, autoclear, incompatible};
use super::plan::{Old, Place, Plan, Units, plan};
use super::refcount::Width;
use super::tables::Tables;
use crate::layer::luks::SectorCipher;
use crate::{ByteRange, Done, Error, Kind, Result, Volume};

/// Bytes of the disk that a stripe lock is for, at least a cluster.
const GROUP: u64 = 256 << 10;
/// Locks for all groups together.
const STRIPES: u64 = 64;
/// Longest L1 table of an image that is written, as in QEMU: that of 8 TiB in clusters of 4 KiB, and of
/// more in longer ones.
const LONGEST_L1: u64 = 32 << 20;

/// What the guest has at a place, without any lock: for composing clusters.
pub(super) type Content<'a> = &'a dyn Fn(&mut [u8], u64) -> Result<()>;

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

/// A cluster that is written to.
struct Target {
    /// Guest's bytes that are written, all in one cluster.
    part: ByteRange,
    units: Units,
    old: Old,
    cluster: Cluster,
    place: Place,
    plan: Plan,
}

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

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// Any failure: the bytes are then old or new.
    pub(super) fn write(
        &self,
        tables: &Tables,
        content: Content<'_>,
        buf: &[u8],
        offset: u64,
    ) -> Result<()> {
        self.begin(tables)?;
        let range = ByteRange::between(offset, offset.saturating_add(to_u64(buf.len())));
        for group in self.groups(range) {
            let skip = to_usize(group.start().saturating_sub(offset));
            let len = to_usize(group.len());
            let bytes = buf.get(skip..skip.saturating_add(len)).unwrap_or(&[]);
            let _epoch = self.enter();
            if !self.write_in_place(tables, bytes, group)? {
                let _alone = self.alone(group);
                self.write_alone(tables, content, bytes, group)?;
            }
        }
        self.relieve(tables)
    }

    /// Writes the tables when much waits. No lock may be held.
    pub(super) fn relieve(&self, tables: &Tables) -> Result<()> {
        let many = self
            .changes()
            .are_many(to_usize(1_u64 << self.shape.slice_bits()));
        if many { self.sync(tables) } else { Ok(()) }
    }

    /// Writes to clusters that have their own place already. `false`, and nothing was written, when
    /// one of them has not.
    fn write_in_place(&self, tables: &Tables, buf: &[u8], group: ByteRange) -> Result<bool> {
        let _shared = self.shared(group);
        let mut runs: Vec<(u64, Range<usize>)> = Vec::new();
        for part in self.clusters(group) {
            let cluster = self.lookup(tables, part.start())?;
            let units = self.units(part);
            let old = Old::of(&cluster, units);
            let touched = units.touched(part);
            let Some(host) = old.own_host(&self.shape).filter(|_| !old.packed) else {
                return Ok(false);
            };
            if touched & !old.stored != 0 {
                return Ok(false);
            }
            let at = host.saturating_add(self.grid.within(part.start()));
            let from = to_usize(part.start().saturating_sub(group.start()));
            let until = from.saturating_add(to_usize(part.len()));
            add_run(&mut runs, at, from..until);
        }
        if !self.shape.external {
            let changes = self.changes();
            for (at, bytes) in &runs {
                let mut at = *at;
                let end = at.saturating_add(to_u64(bytes.len()));
                while at < end {
                    changes.space.check_data(at)?;
                    at = at.saturating_add(self.grid.size());
                }
                changes.space.check_data(end.saturating_sub(1))?;
            }
        }
        self.write_runs(&runs, buf)?;
        Ok(true)
    }

    /// Writes to clusters of which at least one gets a new place or another state. The stripe is held
    /// alone.
    pub(super) fn write_alone(
        &self,
        tables: &Tables,
        content: Content<'_>,
        buf: &[u8],
        group: ByteRange,
    ) -> Result<()> {
        let mut targets = Vec::new();
        let mut wanted = 0_u64;
        for part in self.clusters(group) {
            let cluster = self.lookup(tables, part.start())?;
            let units = self.units(part);
            let old = Old::of(&cluster, units);
            let own = old.own_host(&self.shape).filter(|_| !old.packed);
            if own.is_none() && !self.shape.external {
                wanted = wanted.saturating_add(1);
            }
            targets.push((part, cluster, units, old, own));
        }
        let mut claimed = self.claim(wanted)?;
        let mut plans = Vec::new();
        for (part, cluster, units, old, own) in targets {
            let place = match own {
                Some(host) => Place {
                    host,
                    in_place: true,
                    virgin: false,
                },
                // In a data file everything has its place.
                None if self.shape.external => Place {
                    host: self.start_of(part),
                    in_place: false,
                    virgin: false,
                },
                None => claimed.give()?,
            };
            if !self.shape.external {
                self.changes().space.check_data(place.host)?;
            }
            let plan = plan(&self.shape, units, &old, part, place, self.shows_below);
            plans.push(Target {
                part,
                units,
                old,
                cluster,
                place,
                plan,
            });
        }
        self.carry_out(content, buf, group, &plans)?;
        self.commit(tables, &plans, &mut claimed)
    }

    /// Writes the bytes of all plans.
    fn carry_out(
        &self,
        content: Content<'_>,
        buf: &[u8],
        group: ByteRange,
        targets: &[Target],
    ) -> Result<()> {
        let mut runs: Vec<(u64, Range<usize>)> = Vec::new();
        for target in targets {
            for step in &target.plan.steps {
                if step.compose {
                    let bytes = self.compose(content, buf, group, target.part, step.range)?;
                    // A data file is no longer than the disk.
                    let seen = self.size.saturating_sub(step.range.start());
                    let len = if self.shape.external {
                        bytes.len().min(to_usize(seen))
                    } else {
                        bytes.len()
                    };
                    self.write_data(bytes.get(..len).unwrap_or(&[]), step.host)?;
                } else {
                    let from = to_usize(step.range.start().saturating_sub(group.start()));
                    let until = from.saturating_add(to_usize(step.range.len()));
                    add_run(&mut runs, step.host, from..until);
                }
            }
        }
        self.write_runs(&runs, buf)
    }

    /// The bytes of `range`: those of the write where `part` is, else what is there now.
    fn compose(
        &self,
        content: Content<'_>,
        buf: &[u8],
        group: ByteRange,
        part: ByteRange,
        range: ByteRange,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(range.len())];
        let seen = range.intersect(ByteRange::between(0, self.size));
        let new = part.intersect(range);
        let (head, tail) = if new.is_empty() {
            (seen, ByteRange::between(seen.end(), seen.end()))
        } else {
            (
                ByteRange::between(seen.start(), new.start()),
                ByteRange::between(new.end(), seen.end()),
            )
        };
        let within = |of: ByteRange, base: u64| {
            let from = to_usize(of.start().saturating_sub(base));
            from..from.saturating_add(to_usize(of.len()))
        };
        for old in [head, tail] {
            if let Some(into) = bytes.get_mut(within(old, range.start()))
                && !into.is_empty()
            {
                content(into, old.start())?;
            }
        }
        let into = bytes.get_mut(within(new, range.start()));
        let from = buf.get(within(new, group.start()));
        if let (Some(into), Some(from), false) = (into, from, new.is_empty()) {
            into.copy_from_slice(from);
        }
        Ok(bytes)
    }

    /// Lets the tables tell of the new places.
    fn commit(&self, tables: &Tables, targets: &[Target], claims: &mut Claims<'_>) -> Result<()> {
        let mut changes = self.changes();
        for target in targets {
            let plan = &target.plan;
            if !plan.changes {
                continue;
            }
            let guest = target.part.start();
            changes.set_entry(tables, guest, plan.entry, plan.bitmap)?;
            if !target.place.in_place {
                claims.refer();
                self.release_old(&mut changes, &target.cluster, false);
            }
            debug_assert!(target.units.all() & target.old.stored == target.old.stored);
        }
        Ok(())
    }

    /// What the entry of a cluster referred to has one thing less that refers to it.
    pub(super) fn release_old(&self, changes: &mut Changes, cluster: &Cluster, punch: bool) {
        if self.shape.external {
            return;
        }
        let host = match cluster {
            Cluster::Unallocated => None,
            Cluster::Zero(host) => *host,
            Cluster::Standard(host) => Some(*host),
            Cluster::Parts(parts) => parts.host,
            Cluster::Compressed(data) => {
                let first = self.grid.index(data.at);
                let last = data.at.saturating_add(data.len).saturating_sub(1);
                let count = self.grid.index(last).saturating_sub(first);
                changes.space.release(first, count.saturating_add(1), false);
                None
            }
        };
        if let Some(host) = host {
            changes.space.release(self.grid.index(host.at), 1, punch);
        }
    }

    /// Takes `wanted` free clusters, in as few runs as there are.
    fn claim(&self, wanted: u64) -> Result<Claims<'_>> {
        let mut claims = Claims {
            side: self,
            free: Vec::new(),
            given: 0,
            used: 0,
        };
        let mut left = wanted;
        while left > 0 {
            let run = self.changes().space.claim(left)?;
            left = left.saturating_sub(run.count);
            for cluster in run.first..run.first.saturating_add(run.count) {
                claims.free.push((cluster, cluster >= run.virgin));
            }
        }
        Ok(claims)
    }

    fn write_runs(&self, runs: &[(u64, Range<usize>)], buf: &[u8]) -> Result<()> {
        for (at, bytes) in runs {
            self.write_data(buf.get(bytes.clone()).unwrap_or(&[]), *at)?;
        }
        Ok(())
    }

    /// Writes guest data to its place.
    fn write_data(&self, bytes: &[u8], at: u64) -> Result<()> {
        let encrypted = self
            .cipher
            .as_ref()
            .map(|cipher| crypto::encrypted(cipher, bytes, at));
        let bytes = encrypted.as_deref().unwrap_or(bytes);
        let writer = self.data.need_writer()?;
        let end = at.saturating_add(to_u64(bytes.len()));
        // A data file may be shorter than the disk.
        if end > self.data.size() && writer.grow(end)? == Done::Declined {
            let size = self.data.size();
            let what = format!("byte {end} is behind the {size} bytes that clusters lie in");
            return Err(Error::new(Kind::NoSpace, what));
        }
        writer.write_at(bytes, at, false)
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

/// Where the autoclear features are in the header.
const AUTOCLEAR_AT: u64 = 88;

/// Clusters that were taken and wait for something to refer to them; the rest is given back when
/// this is dropped.
struct Claims<'a> {
    side: &'a WriteSide,
    /// Each cluster, and whether it is a virgin.
    free: Vec<(u64, bool)>,
    /// So many of them have a use.
    given: usize,
    /// To so many of them something refers.
    used: usize,
}

impl Claims<'_> {
    /// The next one.
    fn give(&mut self) -> Result<Place> {
        let next = self.free.get(self.given).copied();
        self.given = self.given.saturating_add(1);
        let (cluster, virgin) =
            next.ok_or_else(|| Error::new(Kind::Io, "too few clusters were taken"))?;
        Ok(Place {
            host: self.side.grid.offset(cluster),
            in_place: false,
            // Zeroes are not what zeroes are encrypted to.
            virgin: virgin && self.side.cipher.is_none(),
        })
    }

    /// Something refers to the next one from now on.
    fn refer(&mut self) {
        self.used = self.used.saturating_add(1);
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let left = self.free.get(self.used..).unwrap_or(&[]);
        if left.is_empty() {
            return;
        }
        let mut changes = self.side.changes();
        for (cluster, _) in left {
            changes.space.unclaim(*cluster, 1);
        }
    }
}

fn add_run(runs: &mut Vec<(u64, Range<usize>)>, at: u64, bytes: Range<usize>) {
    if let Some((start, last)) = runs.last_mut()
        && last.end == bytes.start
        && start.checked_add(to_u64(last.len())) == Some(at)
    {
        last.end = bytes.end;
        return;
    }
    runs.push((at, bytes));
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
