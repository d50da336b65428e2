//! A file with holes as a device.

use super::sparse::Stored;
use crate::{Access, ByteRange, Device, ExtentFlags, Extents, Geometry, Result, Volume};

/// Parts of a volume with holes between them. It cannot be written: there is no room for what would
/// be written into a hole.
#[derive(Debug)]
pub(super) struct WithHoles {
    name: String,
    below: Volume,
    size: u64,
    /// In order, none of them empty.
    pieces: Vec<Stored>,
}

impl WithHoles {
    /// `size` bytes, of which `pieces` are stored in `below`, in order and within it.
    pub(super) fn volume(
        name: String,
        below: &Volume,
        size: u64,
        mut pieces: Vec<Stored>,
    ) -> Volume {
        pieces.shrink_to_fit();
        Volume::new(Self {
            name,
            below: below.clone(),
            size,
            pieces,
        })
    }

    /// The stored parts of `range`, and where each lies below.
    fn within(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, ByteRange)> {
        let first = self
            .pieces
            .partition_point(|piece| piece.end <= range.start());
        let pieces = self.pieces.get(first..).unwrap_or_default().iter();
        pieces
            .take_while(move |piece| piece.start < range.end())
            .map(move |piece| {
                let part = ByteRange::between(piece.start, piece.end).intersect(range);
                let at = piece
                    .at
                    .saturating_add(part.start().saturating_sub(piece.start));
                let below = ByteRange::between(at, at.saturating_add(part.len()));
                (part, below)
            })
    }
}

impl Device for WithHoles {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        let below = self.below.geometry();
        Geometry {
            size: self.size,
            min_block: 1,
            access: if self.pieces.is_empty() {
                Access::Random
            } else {
                below.access
            },
            ..below
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        buf.fill(0);
        for (part, below) in self.within(range) {
            let skip = usize::try_from(part.start().saturating_sub(offset)).unwrap_or(usize::MAX);
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            // A part of the range, so it is within the buffer.
            if let Some(part) = buf.get_mut(skip..skip.saturating_add(len)) {
                self.below.read_at(part, below.start())?;
            }
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        for (part, below) in self.within(range) {
            out.push_until(part.start(), ExtentFlags::HOLE);
            if out.is_full() {
                return Ok(());
            }
            let room = out.room().saturating_add(1);
            let known = self.below.extents_limited(below, room)?;
            for run in known.runs() {
                let done = run.range.end().saturating_sub(below.start());
                out.push_until(part.start().saturating_add(done), run.flags);
            }
            // The answer below has ended early: the next question goes on from there.
            if out.next_offset() < part.end() {
                return Ok(());
            }
        }
        out.push_until(range.end(), ExtentFlags::HOLE);
        Ok(())
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let pieces = ranges.iter().flat_map(|range| self.within(*range));
        let below: Vec<_> = pieces.map(|(_, below)| below).collect();
        self.below.will_need_parts(&below);
    }

    /// What is stored of a file lies in a row.
    fn stored(&self, range: ByteRange) -> Option<u64> {
        let mut pieces = self.within(range).map(|(_, below)| below);
        let Some(first) = pieces.next() else {
            return Some(0);
        };
        let end = pieces.last().map_or(first.end(), ByteRange::end);
        let row = ByteRange::between(first.start(), end);
        Some(self.below.stored(row).unwrap_or(row.len()))
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}
