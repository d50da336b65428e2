//! Clusters that a write takes, and those that it takes the place of.

use super::changes::Changes;
use super::entry::Cluster;
use super::plan::Place;
use super::side::WriteSide;
use crate::{Error, Kind, Result};

/// Clusters that were taken and wait for something to refer to them; the rest is given back when
/// this is dropped.
pub(super) struct Claims<'a> {
    side: &'a WriteSide,
    /// Each cluster, and whether it is a virgin.
    free: Vec<(u64, bool)>,
    /// So many of them have a use.
    given: usize,
    /// To so many of them something refers.
    used: usize,
}

impl WriteSide {
    /// Takes `wanted` free clusters, in as few runs as there are.
    pub(super) fn claim(&self, wanted: u64) -> Result<Claims<'_>> {
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
}

impl Claims<'_> {
    /// The next one.
    pub(super) fn give(&mut self) -> Result<Place> {
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
    pub(super) fn refer(&mut self) {
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
