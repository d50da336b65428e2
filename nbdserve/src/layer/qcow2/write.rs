//! A write: guest data goes to its place at once, tables change in memory (`changes.rs`) and reach the
//! file with the next flush (`sync.rs`).

use std::ops::Range;

use super::claims::Claims;
use super::crypto;
use super::entry::Cluster;
use super::grid::{to_u64, to_usize};
use super::plan::{Old, Place, Plan, Units, plan};
use super::side::WriteSide;
use super::tables::Tables;
use crate::{ByteRange, Done, Error, Kind, Result};

/// What the guest has at a place, without any lock: for composing clusters.
pub(super) type Content<'a> = &'a dyn Fn(&mut [u8], u64) -> Result<()>;

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
