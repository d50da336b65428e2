//! How wide the neighbourhood is in which a reader reads most of what there is.

use std::collections::VecDeque;

use crate::ByteRange;

/// Neighbourhoods that are remembered.
const MOST: usize = 256;
/// Of a neighbourhood, so much must have been read before the rest is expected to be.
const SHARE: u64 = 4;

/// A width of neighbourhoods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    /// Bytes.
    bytes: u64,
    /// After about so many reads in neighbourhoods that had been read in, they are taken to be. The
    /// wider, the more: what is fetched in vain costs more, and a table of inodes is read densely and
    /// soon over.
    many: u32,
    /// And no longer after about so many elsewhere.
    few: u32,
}

impl Width {
    pub(super) const fn new(bytes: u64, many: u32, few: u32) -> Self {
        Self { bytes, many, few }
    }
}

/// Neighbourhoods of several widths.
#[derive(Debug)]
pub(super) struct Locality {
    levels: Vec<Level>,
}

/// Neighbourhoods of one width.
#[derive(Debug)]
struct Level {
    width: Width,
    /// Where they are, with the bytes that were read there, the latest last.
    recent: VecDeque<(u64, u64)>,
    /// Whether they are read in, over the last reads.
    near: Mean,
    /// The same over more of them.
    lasting: Mean,
}

impl Locality {
    /// With neighbourhoods of these widths, shorter ones first.
    pub(super) fn new(widths: &[Width]) -> Self {
        let level = |width: &Width| Level {
            width: *width,
            recent: VecDeque::new(),
            near: Mean::default(),
            lasting: Mean::default(),
        };
        Self {
            levels: widths.iter().map(level).collect(),
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
        let mut dense = dense.filter(|level| level.near.is_most() && level.lasting.is_most());
        dense.next().map(|level| level.width.bytes)
    }
}

impl Level {
    /// A read that is as long as the neighbourhood says nothing of neighbours.
    fn note(&mut self, range: ByteRange) {
        let reach = self.width.bytes;
        if range.len() > reach / 2 {
            return;
        }
        let place = range.start() / reach;
        let found = self.recent.iter().rposition(|(other, _)| *other == place);
        let before = found.and_then(|at| self.recent.remove(at));
        let bytes = before.map_or(0, |(_, bytes)| bytes);
        let is_near = bytes >= reach / SHARE;
        self.near.note(is_near, self.width.few);
        self.lasting.note(is_near, self.width.many);
        if self.recent.len() >= MOST {
            self.recent.pop_front();
        }
        let bytes = bytes.saturating_add(range.len());
        self.recent.push_back((place, bytes));
    }
}

/// How many of the last reads something was true of.
#[derive(Clone, Copy, Debug, Default)]
struct Mean(u32);

impl Mean {
    const ALL: u32 = 1 << 16;

    /// Takes note of one more, in a mean over about so many `reads`.
    fn note(&mut self, is_true: bool, reads: u32) {
        self.0 -= self.0 / reads;
        if is_true {
            self.0 += Self::ALL / reads;
        }
    }

    fn is_most(self) -> bool {
        self.0 >= Self::ALL / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const WIDTHS: [Width; 4] = [
        Width::new(64 * KIB, 16, 16),
        Width::new(256 * KIB, 16, 16),
        Width::new(1024 * KIB, 16, 16),
        Width::new(4096 * KIB, 256, 32),
    ];
    const PAGE: u64 = 4 * KIB;

    /// After reads of these pages.
    fn after(reads: impl Iterator<Item = u64>) -> Option<u64> {
        let mut locality = Locality::new(&WIDTHS);
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
        // Every page of 1 MiB once, in an order that jumps about.
        let all = (0..256).map(|read| read * 389 % 256);
        assert_eq!(after(all.clone()), Some(1024 * KIB));
        // ... and no longer, after a while of reading all over the place.
        let far = (1000..1100).map(|read| read * 1000);
        assert_eq!(after(all.chain(far)), None);
    }

    #[test]
    fn the_widest_takes_a_long_while_of_dense_reads() {
        // 1 MiB out of each 4 is a short while.
        let short = (0..2048).map(|read| read / 256 * 100_000 + read % 256);
        assert_eq!(after(short), Some(1024 * KIB));
        let long = (0..16 * 1024).map(|read| read * 389 % (16 * 1024));
        assert_eq!(after(long.clone()), Some(4096 * KIB));
        // ... and a short one of reads all over the place ends it.
        let far = (100..200).map(|read| read * 10_000);
        assert_eq!(after(long.chain(far)), None);
    }

    #[test]
    fn the_neighbourhood_is_as_wide_as_what_is_read() {
        // 64 KiB here and there.
        let reads = (0..400).map(|read| read / 16 * 1000 + read % 16);
        assert_eq!(after(reads), Some(64 * KIB));
    }

    #[test]
    fn long_reads_say_nothing() {
        let mut locality = Locality::new(&WIDTHS);
        for at in 0..100 {
            locality.note(ByteRange::between(at << 20, (at + 1) << 20));
        }
        assert_eq!(locality.reach(), None);
    }
}
