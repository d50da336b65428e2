//! A part of a volume as a device: what the layers `offset` and `partition` have in common.

use crate::stats::BlockStats;
use crate::{
    ByteRange, Cost, Device, Done, Error, Extents, Geometry, Kind, Lent, Result, Volume,
    WriteFeatures, Writer, ZeroOpts,
};

/// The bytes `range` of a volume, from offset zero on. Writes go through, unless it was made
/// otherwise.
#[derive(Debug)]
pub(super) struct Window {
    name: String,
    below: Volume,
    range: ByteRange,
    sort: Sort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// A part that can be written where the volume below can.
    Part,
    /// A part that cannot be written.
    ReadOnly,
    /// All of a volume that nobody else knows of: what is told of its blocks is told here. It
    /// cannot be written.
    Renamed,
}

impl Window {
    /// The bytes `range` of `below`, as a volume called `name`.
    ///
    /// # Errors
    /// `OutOfRange` when `range` leaves `below`.
    pub(super) fn volume(name: String, below: &Volume, range: ByteRange) -> Result<Volume> {
        Self::within(name, below, range, Sort::Part)
    }

    /// As [`Self::volume`], and nothing can be written: something else vouches for these bytes.
    ///
    /// # Errors
    /// As [`Self::volume`].
    pub(super) fn read_only(name: String, below: &Volume, range: ByteRange) -> Result<Volume> {
        Self::within(name, below, range, Sort::ReadOnly)
    }

    /// All of `inner`, which has another name for itself and is not seen by anybody else. Nothing
    /// can be written.
    pub(super) fn renamed(name: String, inner: &Volume) -> Volume {
        Volume::new(Self {
            name,
            below: inner.clone(),
            range: ByteRange::between(0, inner.size()),
            sort: Sort::Renamed,
        })
    }

    fn within(name: String, below: &Volume, range: ByteRange, sort: Sort) -> Result<Volume> {
        if range.end() > below.size() {
            let size = below.size();
            let what = format!("{range} are not within the {size} bytes below");
            return Err(Error::new(Kind::OutOfRange, what));
        }
        Ok(Volume::new(Self {
            name,
            below: below.clone(),
            range,
            sort,
        }))
    }

    /// Where the byte at `offset` lies below. `Volume` has checked `offset` against the size of
    /// the window, and the window lies within the volume below: nothing is ever cut off here.
    fn below(&self, offset: u64) -> u64 {
        self.range.start().saturating_add(offset)
    }

    fn range_below(&self, range: ByteRange) -> ByteRange {
        ByteRange::between(self.below(range.start()), self.below(range.end()))
    }
}

impl Device for Window {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.range.len(),
            // The window may start anywhere. The volume below serves what is not aligned, for all
            // windows on it under one lock.
            min_block: 1,
            ..self.below.geometry()
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_at(buf, self.below(offset))
    }

    fn lend(&self, range: ByteRange) -> Result<Option<Lent>> {
        // As long as a slice of the caller's.
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        self.below.lend(self.below(range.start()), len)
    }

    fn extents(&self, _range: ByteRange, out: &mut Extents) -> Result<()> {
        self.below.extents_moved(self.range, out)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        let writer = self.below.writer().filter(|_| self.sort == Sort::Part);
        writer.map(|_| {
            let writer: &dyn Writer = self;
            writer
        })
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let below = ranges.iter().map(|range| self.range_below(*range));
        self.below.will_need_parts(&below.collect::<Vec<_>>());
    }

    fn block_stats(&self) -> Option<BlockStats> {
        match self.sort {
            Sort::Part | Sort::ReadOnly => None,
            Sort::Renamed => self.below.stats().blocks,
        }
    }

    fn cost(&self) -> Option<Cost> {
        match self.sort {
            Sort::Part | Sort::ReadOnly => None,
            Sort::Renamed => self.below.cost(),
        }
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        self.below.stored(self.range_below(range))
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}

impl Writer for Window {
    fn features(&self) -> WriteFeatures {
        self.below
            .writer()
            .map_or_else(WriteFeatures::default, |writer| writer.features())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        let offset = self.below(offset);
        self.below.need_writer()?.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<()> {
        self.below.need_writer()?.flush()
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        let range = self.range_below(range);
        self.below.need_writer()?.zero(range, opts)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        let range = self.range_below(range);
        self.below.need_writer()?.trim(range, fua)
    }
}
