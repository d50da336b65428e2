//! Which sectors of a table in memory differ from those on disk. A disk writes a sector as a whole or
//! not at all, so an entry is never torn.

use std::ops::Range;

/// What is written at once.
const SECTOR: usize = 512;

/// A set of sectors of one table.
#[derive(Clone, Debug, Default)]
pub(super) struct Sectors {
    /// One for each sector of the table.
    dirty: Vec<bool>,
    any: bool,
}

impl Sectors {
    /// No sector of a table of `bytes`.
    pub(super) fn none(bytes: usize) -> Self {
        Self {
            dirty: vec![false; bytes.div_ceil(SECTOR)],
            any: false,
        }
    }

    /// Every sector of a table of `bytes`.
    pub(super) fn all(bytes: usize) -> Self {
        Self {
            dirty: vec![true; bytes.div_ceil(SECTOR)],
            any: true,
        }
    }

    /// Adds the sectors that the bytes `range` lie in.
    pub(super) fn add(&mut self, range: &Range<usize>) {
        let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
        if let Some(dirty) = self.dirty.get_mut(sectors) {
            dirty.fill(true);
            self.any = true;
        }
    }

    /// Adds all sectors.
    pub(super) fn add_all(&mut self) {
        self.dirty.fill(true);
        self.any = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Empties the set and returns what was in it: runs of bytes.
    pub(super) fn take(&mut self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (sector, dirty) in self.dirty.iter_mut().enumerate() {
            if !std::mem::take(dirty) {
                continue;
            }
            let start = sector.saturating_mul(SECTOR);
            let end = start.saturating_add(SECTOR);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        self.any = false;
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_run() {
        let mut sectors = Sectors::none(65536);
        assert!(sectors.is_empty());
        sectors.add(&(0..8));
        sectors.add(&(1016..1032));
        sectors.add(&(65528..65536));
        assert!(!sectors.is_empty());
        assert_eq!(sectors.take(), [0..1536, 65024..65536]);
        assert!(sectors.is_empty() && sectors.take().is_empty());
        assert_eq!(
            Sectors::all(2048).take(),
            std::iter::once(0..2048).collect::<Vec<_>>()
        );
    }
}
