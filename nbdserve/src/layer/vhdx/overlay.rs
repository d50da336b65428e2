//! The file as it is once its log has been replayed, without touching it.

use std::collections::BTreeMap;

use super::log::{Change, Replay};
use crate::layer::mapped::{Map, Run};
use crate::source::Memory;
use crate::{Result, Volume};

/// A file, and what is different in it.
#[derive(Debug)]
pub(super) struct Overlay {
    file: Volume,
    size: u64,
    /// By the first byte of each; they do not overlap.
    changes: BTreeMap<u64, Change>,
    bytes: Volume,
}

impl Overlay {
    pub(super) fn new(file: &Volume, replay: Replay) -> Self {
        let mut changes = BTreeMap::new();
        let mut size = file.size().max(replay.last);
        for change in replay.changes {
            size = size.max(change.at.saturating_add(change.len));
            put(&mut changes, change);
        }
        Self {
            file: file.clone(),
            size,
            changes,
            bytes: Memory::volume(replay.bytes),
        }
    }
}

fn end(change: &Change) -> u64 {
    change.at.saturating_add(change.len)
}

/// The part of `change` from `at` on.
fn rest(change: &Change, at: u64) -> Change {
    let skip = at.saturating_sub(change.at);
    Change {
        at: change.at.saturating_add(skip),
        len: change.len.saturating_sub(skip),
        from: change.from.map(|from| from.saturating_add(skip)),
    }
}

/// Adds a change; what was there before goes, as far as it is in the same place.
fn put(changes: &mut BTreeMap<u64, Change>, new: Change) {
    let before = changes.range(..new.at).next_back().map(|(_, old)| *old);
    if let Some(old) = before.filter(|old| end(old) > new.at) {
        let first = Change {
            len: new.at.saturating_sub(old.at),
            ..old
        };
        changes.insert(old.at, first);
        if end(&old) > end(&new) {
            changes.insert(end(&new), rest(&old, end(&new)));
        }
    }
    let inside = changes.range(new.at..end(&new));
    let inside: Vec<Change> = inside.map(|(_, old)| *old).collect();
    for old in inside {
        changes.remove(&old.at);
        if end(&old) > end(&new) {
            changes.insert(end(&new), rest(&old, end(&new)));
        }
    }
    changes.insert(new.at, new);
}

impl Map for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn below(&self) -> Vec<&Volume> {
        vec![&self.file, &self.bytes]
    }

    fn run(&self, offset: u64, _until: u64) -> Result<Run<'_>> {
        let before = self.changes.range(..=offset).next_back();
        if let Some((_, change)) = before.filter(|(_, change)| end(change) > offset) {
            let skip = offset.saturating_sub(change.at);
            return Ok(match change.from {
                Some(from) => Run::stored(end(change), &self.bytes, from.saturating_add(skip)),
                None => Run::zero(end(change)),
            });
        }
        let next = self.changes.range(offset..).next();
        let end = next.map_or(self.size, |(at, _)| *at);
        // What lies behind the end of the file will be there when the log was replayed.
        Ok(Run::of_parent(offset, end, &self.file))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;
    use crate::Cx;
    use crate::layer::mapped::Mapped;
    use std::sync::Arc;

    #[test]
    fn later_changes_win_wherever_they_overlap() {
        let file = Memory::volume(vec![9; 60]);
        let mut expected = vec![9; 60];
        let mut replay = Replay {
            last: 70,
            ..Replay::default()
        };
        expected.resize(80, 0);
        let mut seed = 1_usize;
        for number in 0..40_u8 {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345) % (1 << 31);
            let at = (seed >> 8) % 70;
            let len = (seed >> 16) % 9 + 1;
            let len = len.min(80 - at);
            let zero = number % 3 == 0;
            let from = (!zero).then(|| u64::try_from(replay.bytes.len()).unwrap());
            let new = (0..len).map(|more| number.wrapping_mul(7).wrapping_add(more as u8));
            let new: Vec<u8> = new.collect();
            if zero {
                expected[at..at + len].fill(0);
            } else {
                expected[at..at + len].copy_from_slice(&new);
                replay.bytes.extend(new);
            }
            replay.changes.push(Change {
                at: u64::try_from(at).unwrap(),
                len: u64::try_from(len).unwrap(),
                from,
            });
            let overlay = Overlay::new(&file, replay.clone());
            let volume = Mapped::volume("log", Arc::new(overlay), None, &Cx::new(1 << 20)).unwrap();
            let size = usize::try_from(volume.size()).unwrap();
            assert!(
                volume.read_vec(0, size).unwrap() == expected[..size],
                "{number}"
            );
        }
    }
}
