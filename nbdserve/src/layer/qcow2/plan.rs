//! What a write to a part of one cluster takes: which bytes go where, and what its L2 entry becomes.
//! Pure.

use super::entry::{COPIED, Cluster, Host, SUBCLUSTERS, Shape};
use crate::ByteRange;

/// The subclusters of a cluster; one that is all of it where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Units {
    /// The guest's byte that the cluster begins with.
    start: u64,
    /// Bytes of each.
    len: u64,
    count: u32,
    /// End of the guest's disk.
    size: u64,
}

/// What a cluster is, subcluster by subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Old {
    /// Its place, whatever lies there.
    pub(super) host: Option<Host>,
    /// These are stored.
    pub(super) stored: u32,
    /// These read as zeroes, though there is something below.
    pub(super) zeroed: u32,
    /// Stored in the packed form, not at `host`.
    pub(super) packed: bool,
}

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// First byte of the cluster in the file.
    pub(super) host: u64,
    /// It is the place that the cluster has already.
    pub(super) in_place: bool,
    /// It reads as zeroes before the write.
    pub(super) virgin: bool,
}

/// Bytes that are written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Guest's bytes. May go beyond the end of the disk, to the end of the cluster.
    pub(super) range: ByteRange,
    /// Where in the file.
    pub(super) host: u64,
    /// Some of them are not those of the write, but what the guest has there now.
    pub(super) compose: bool,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// The words of the L2 entry afterwards.
    pub(super) entry: u64,
    pub(super) bitmap: u64,
    /// They differ from what they were.
    pub(super) changes: bool,
}

impl Old {
    /// The state of a cluster.
    pub(super) fn of(cluster: &Cluster, units: Units) -> Self {
        let (host, stored, zeroed) = match *cluster {
            Cluster::Unallocated | Cluster::Compressed(_) => (None, 0, 0),
            Cluster::Zero(host) => (host, 0, units.all()),
            Cluster::Standard(host) => (Some(host), units.all(), 0),
            Cluster::Parts(parts) => (parts.host, parts.allocated, parts.zeroed),
        };
        let packed = matches!(cluster, Cluster::Compressed(_));
        Self {
            host,
            stored: if packed { units.all() } else { stored },
            zeroed,
            packed,
        }
    }

    /// Its place, if it can be written to.
    pub(super) fn own_host(&self, shape: &Shape) -> Option<u64> {
        let host = self.host.filter(|host| host.copied || shape.external);
        host.map(|host| host.at)
    }
}

impl Units {
    /// Those of the cluster that begins at `start`.
    pub(super) fn new(shape: &Shape, start: u64, size: u64) -> Self {
        Self {
            start,
            len: shape.subcluster_size(),
            count: if shape.extended { SUBCLUSTERS } else { 1 },
            size,
        }
    }

    /// A bit for each.
    pub(super) fn all(&self) -> u32 {
        u32::MAX
            .checked_shr(SUBCLUSTERS.saturating_sub(self.count))
            .unwrap_or(0)
    }

    /// The guest's bytes of one; may go beyond the end of the disk.
    fn range(&self, number: u32) -> ByteRange {
        let start = u64::from(number).saturating_mul(self.len);
        let start = self.start.saturating_add(start);
        ByteRange::between(start, start.saturating_add(self.len))
    }

    fn set_of(&self, within: impl Fn(ByteRange) -> bool) -> u32 {
        (0..self.count)
            .filter(|number| within(self.range(*number)))
            .fold(0, |set, number| set | bit(number))
    }

    /// Those that hold a byte of `part`.
    pub(super) fn touched(&self, part: ByteRange) -> u32 {
        self.set_of(|unit| !unit.intersect(part).is_empty())
    }

    /// Those of which `part` has every byte that the guest sees.
    pub(super) fn covered(&self, part: ByteRange) -> u32 {
        self.set_of(|unit| {
            let seen = unit.intersect(ByteRange::between(0, self.size));
            !seen.is_empty() && part.contains(seen)
        })
    }
}

fn bit(number: u32) -> u32 {
    1_u32.checked_shl(number).unwrap_or(0)
}

/// The bitmap of subclusters in an L2 entry.
pub(super) fn bitmap(stored: u32, zeroed: u32) -> u64 {
    u64::from(zeroed) << 32 | u64::from(stored)
}

/// What writing `part` takes. `shows_below`: where nothing is stored there may be something else
/// than zeroes.
pub(super) fn plan(
    shape: &Shape,
    units: Units,
    old: &Old,
    part: ByteRange,
    place: Place,
    shows_below: bool,
) -> Plan {
    let touched = units.touched(part);
    let covered = units.covered(part);
    let kept = if place.in_place { old.stored } else { 0 };
    let written = if place.in_place {
        touched
    } else {
        touched | old.stored
    };
    let mut steps: Vec<Step> = Vec::new();
    for number in (0..units.count).filter(|number| written & bit(*number) != 0) {
        let unit = units.range(number);
        let one = bit(number);
        let was_zero = old.stored & one == 0 && (old.zeroed & one != 0 || !shows_below);
        let whole = covered & one != 0 || kept & one != 0 || place.virgin && was_zero;
        let range = if whole { part.intersect(unit) } else { unit };
        let next = Step {
            range,
            host: place
                .host
                .saturating_add(range.start().saturating_sub(units.start)),
            compose: !whole,
        };
        match steps.last_mut() {
            Some(last) if last.compose == next.compose && last.range.end() == range.start() => {
                last.range = ByteRange::between(last.range.start(), range.end());
            }
            _ => steps.push(next),
        }
    }
    let stored = kept | written;
    let zeroed = old.zeroed & !written;
    let bitmap_of = |stored, zeroed| {
        if shape.extended {
            bitmap(stored, zeroed)
        } else {
            0
        }
    };
    Plan {
        steps,
        entry: place.host | COPIED,
        bitmap: bitmap_of(stored, zeroed),
        changes: !place.in_place || stored != old.stored || zeroed != old.zeroed,
    }
}
