//! Hints on their way down, sorted by where they go: a set of ranges stays a set.

use crate::{ByteRange, Volume};

/// What will be needed of some volumes.
#[derive(Debug, Default)]
pub(crate) struct Hints<'a> {
    sets: Vec<(&'a Volume, Vec<ByteRange>)>,
}

impl<'a> Hints<'a> {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// `range` of `volume` will be needed.
    pub(crate) fn add(&mut self, volume: &'a Volume, range: ByteRange) {
        // Mostly the same as the last time.
        let mut sets = self.sets.iter_mut().rev();
        match sets.find(|(other, _)| other.is(volume)) {
            Some((_, ranges)) => ranges.push(range),
            None => self.sets.push((volume, vec![range])),
        }
    }

    /// Tells each volume all of its ranges at once.
    pub(crate) fn send(self) {
        for (volume, ranges) in self.sets {
            volume.will_need_parts(&ranges);
        }
    }
}
