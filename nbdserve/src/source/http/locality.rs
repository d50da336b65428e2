//! How wide the neighbourhood is in which a reader reads most of what there is.

use std::collections::VecDeque;

use crate::ByteRange;

/// Neighbourhoods that are remembered.
const MOST: usize = 256;
/// Of a neighbourhood, so much must have been read before the rest is expected to be.
const SHARE: u64 = 4;
/// A mean goes over about so many reads.
const READS: u32 = 16;
/// A mean when all reads were in neighbourhoods that had been read in, and from which on they are
/// taken to be.
const ALL: u32 = 256;
const ENOUGH: u32 = ALL / 2;

/// Neighbourhoods of several widths.
#[derive(Debug)]
pub(super) struct Locality {
    levels: Vec<Level>,
}

/// Neighbourhoods of one width.
#[derive(Debug)]
struct Level {
    /// Bytes of one.
    reach: u64,
    /// Where they are, with the bytes that were read there, the latest last.
    recent: VecDeque<(u64, u64)>,
    /// A mean over the last reads, of [`ALL`].
    near: u32,
}

impl Locality {
    /// With neighbourhoods of so many bytes, shorter ones first.
    pub(super) fn new(reaches: &[u64]) -> Self {
        let level = |reach: &u64| Level {
            reach: *reach,
            recent: VecDeque::new(),
            near: 0,
        };
        Self {
            levels: reaches.iter().map(level).collect(),
        }
    }

    /// Takes note of a read.
    pub(super) fn note(&mut self, range: ByteRange) {
        for level in &mut self.levels {
            level.note(range);
        }
    }

    /// Bytes of the widest neighbourhood of which most is read; `None` where that is not even true
    /// for the shortest.
    pub(super) fn reach(&self) -> Option<u64> {
        let dense = self.levels.iter().rev();
        let mut dense = dense.filter(|level| level.near >= ENOUGH);
        dense.next().map(|level| level.reach)
    }
}

impl Level {
    /// A read that is as long as the neighbourhood says nothing of neighbours.
    fn note(&mut self, range: ByteRange) {
        if range.len() > self.reach / 2 {
            return;
        }
        let place = range.start() / self.reach;
        let found = self.recent.iter().rposition(|(other, _)| *other == place);
        let before = found.and_then(|at| self.recent.remove(at));
        let bytes = before.map_or(0, |(_, bytes)| bytes);
        self.near -= self.near / READS;
        if bytes >= self.reach / SHARE {
            self.near += ALL / READS;
        }
        if self.recent.len() >= MOST {
            self.recent.pop_front();
        }
        let bytes = bytes.saturating_add(range.len());
        self.recent.push_back((place, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const REACHES: [u64; 3] = [64 * KIB, 256 * KIB, 1024 * KIB];
    const PAGE: u64 = 4 * KIB;

    /// After reads of these pages.
    fn after(reads: impl Iterator<Item = u64>) -> Option<u64> {
        let mut locality = Locality::new(&REACHES);
        for page in reads {
            locality.note(ByteRange::between(page * PAGE, (page + 1) * PAGE));
        }
        locality.reach()
    }

    #[test]
    fn reads_all_over_the_place_have_no_neighbours() {
        assert_eq!(after(0..0), None);
        assert_eq!(after((0..400).map(|read| read * 1000)), None);
    }

    #[test]
    fn reads_to_and_fro_in_one_region_have() {
        // Every page of 4 MiB once, in an order that jumps about.
        let all = (0..1024).map(|read| read * 389 % 1024);
        assert_eq!(after(all.clone()), Some(1024 * KIB));
        // ... and no longer, after a while of reading all over the place.
        let far = (1000..1100).map(|read| read * 1000);
        assert_eq!(after(all.chain(far)), None);
    }

    #[test]
    fn the_neighbourhood_is_as_wide_as_what_is_read() {
        // 64 KiB here and there.
        let reads = (0..400).map(|read| read / 16 * 1000 + read % 16);
        assert_eq!(after(reads), Some(64 * KIB));
    }

    #[test]
    fn long_reads_say_nothing() {
        let mut locality = Locality::new(&REACHES);
        for at in 0..100 {
            locality.note(ByteRange::between(at << 20, (at + 1) << 20));
        }
        assert_eq!(locality.reach(), None);
    }
}
