//! What a format says of a disk: where the bytes of it lie, run by run.

use crate::layer::cut::cut_off;
use crate::{Result, Volume};

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// Nowhere: they read as zeroes.
    Hole,
    /// There is room for them, and they read as zeroes whatever it holds.
    Zero,
    /// In `volume`, the first of them at `at`.
    Stored {
        /// One of [`Map::below`].
        volume: &'a Volume,
        /// Where, there.
        at: u64,
    },
    /// In the packed block of this number. A run never holds bytes of two blocks.
    Packed(u64),
}

/// Some bytes of a device that are of one kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// One past the last byte.
    pub(crate) end: u64,
    /// Where they are.
    pub(crate) place: Place<'a>,
}

impl<'a> Run<'a> {
    /// The bytes up to `end` are nowhere.
    pub(crate) fn hole(end: u64) -> Self {
        let place = Place::Hole;
        Self { end, place }
    }

    /// The bytes up to `end` are zeroes that somebody has written.
    pub(crate) fn zero(end: u64) -> Self {
        let place = Place::Zero;
        Self { end, place }
    }

    /// The bytes up to `end` lie in `volume`, the first of them at `at`.
    pub(crate) fn stored(end: u64, volume: &'a Volume, at: u64) -> Self {
        let place = Place::Stored { volume, at };
        Self { end, place }
    }

    /// The bytes from `offset` to `end` lie in `volume`, the first of them at `at`, as far as that
    /// goes: the run is cut where the volume ends. `what` they are is for messages.
    ///
    /// # Errors
    /// `Corrupt` when the volume ends before `at`.
    pub(crate) fn within(
        offset: u64,
        end: u64,
        volume: &'a Volume,
        at: u64,
        what: &str,
    ) -> Result<Self> {
        let left = volume.size().saturating_sub(at);
        if left == 0 {
            let size = volume.size();
            let what = format!("{what} lies at {at}, the file has only {size} bytes");
            return Err(cut_off(what));
        }
        Ok(Self::stored(
            end.min(offset.saturating_add(left)),
            volume,
            at,
        ))
    }

    /// The bytes from `offset` to `end` are those of a disk of which this one is a later state;
    /// that may be shorter.
    pub(crate) fn of_parent(offset: u64, end: u64, parent: &'a Volume) -> Self {
        if offset < parent.size() {
            Self::stored(end.min(parent.size()), parent, offset)
        } else {
            Self::hole(end)
        }
    }
}

/// Which byte of a disk lies where.
pub(crate) trait Map: Send + Sync + std::fmt::Debug + 'static {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// All volumes that bytes of it may lie in.
    fn below(&self) -> Vec<&Volume>;

    /// What the bytes from `offset` on are; `offset` is below [`Self::size`]. The run ends behind
    /// `offset`; it may go on beyond `until` (which is above `offset`), and may end before it even
    /// where the next one is of the same kind. It is asked for often: what it needs should be
    /// in memory most of the time.
    ///
    /// # Errors
    /// `Corrupt` and `Unsupported` for what the tables say about these bytes; what the volume says
    /// that the tables lie in.
    fn run(&self, offset: u64, until: u64) -> Result<Run<'_>>;

    /// About how many bytes of the whole disk are stored, where that is known without reading.
    fn allocated(&self) -> Option<u64> {
        None
    }

    /// What is unusual about it; it may look at all tables.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Memory;

    #[test]
    fn what_is_behind_the_end_of_a_parent_is_a_hole() {
        let parent = Memory::volume(vec![1; 10]);
        let run = Run::of_parent(4, 20, &parent);
        assert_eq!(run.end, 10);
        assert!(matches!(run.place, Place::Stored { at: 4, .. }));
        let run = Run::of_parent(10, 20, &parent);
        assert!(matches!((run.end, run.place), (20, Place::Hole)));
    }
}
