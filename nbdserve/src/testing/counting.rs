//! A device that counts what is asked of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    ByteRange, Device, Done, Extents, Geometry, Lent, Result, Volume, WriteFeatures, Writer,
    ZeroOpts,
};

/// Passes everything to the volume below and keeps count.
#[derive(Debug)]
pub struct Counting {
    below: Volume,
    counts: Counts,
    gathers: bool,
}

/// What a [`Counting`] device was asked; clones see the same device.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<Numbers>>);

#[derive(Debug, Default)]
struct Numbers {
    reads: Vec<ByteRange>,
    writes: Vec<ByteRange>,
    flushes: u64,
    zeroes: u64,
    trims: u64,
    extents: u64,
    hints: Vec<Vec<ByteRange>>,
}

impl Counting {
    /// A device over `below` that has counted nothing yet.
    #[must_use]
    pub fn volume(below: Volume) -> (Volume, Counts) {
        Self::with(below, false)
    }

    /// As [`Self::volume`], as a source that has a set of ranges for the price of one.
    #[must_use]
    pub fn source(below: Volume) -> (Volume, Counts) {
        Self::with(below, true)
    }

    fn with(below: Volume, gathers: bool) -> (Volume, Counts) {
        let counts = Counts::default();
        let device = Self {
            below,
            counts: counts.clone(),
            gathers,
        };
        (Volume::new(device), counts)
    }
}

impl Counts {
    /// Reads, as the device saw them.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.numbers().reads.len() as u64
    }

    /// Bytes read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.numbers().reads.iter().map(|range| range.len()).sum()
    }

    /// The range of each read, in the order of arrival.
    #[must_use]
    pub fn read_ranges(&self) -> Vec<ByteRange> {
        self.numbers().reads.clone()
    }

    /// Whether a byte of `range` was read.
    #[must_use]
    pub fn has_read(&self, range: ByteRange) -> bool {
        let numbers = self.numbers();
        let mut reads = numbers.reads.iter();
        reads.any(|read| !read.intersect(range).is_empty())
    }

    /// Writes, as the device saw them.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.numbers().writes.len() as u64
    }

    /// Bytes written.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.numbers().writes.iter().map(|range| range.len()).sum()
    }

    /// Flushes.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.numbers().flushes
    }

    /// Requests to zero.
    #[must_use]
    pub fn zeroes(&self) -> u64 {
        self.numbers().zeroes
    }

    /// Requests to trim.
    #[must_use]
    pub fn trims(&self) -> u64 {
        self.numbers().trims
    }

    /// Extents queries.
    #[must_use]
    pub fn extents(&self) -> u64 {
        self.numbers().extents
    }

    /// Ranges that were hinted at.
    #[must_use]
    pub fn hints(&self) -> u64 {
        self.numbers()
            .hints
            .iter()
            .map(|set| set.len() as u64)
            .sum()
    }

    /// The sets of ranges that were hinted at together, in the order of arrival.
    #[must_use]
    pub fn hint_sets(&self) -> Vec<Vec<ByteRange>> {
        self.numbers().hints.clone()
    }

    /// Starts from nothing again.
    pub fn reset(&self) {
        *self.numbers() = Numbers::default();
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.counts.numbers().reads.push(ByteRange::of(buf, offset));
        self.below.read_at(buf, offset)
    }

    /// Counts as a read when there is something to lend.
    fn lend(&self, range: ByteRange) -> Result<Option<Lent>> {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let lent = self.below.lend(range.start(), len)?;
        if lent.is_some() {
            self.counts.numbers().reads.push(range);
        }
        Ok(lent)
    }

    fn extents(&self, _range: ByteRange, out: &mut Extents) -> Result<()> {
        self.counts.numbers().extents += 1;
        self.below
            .extents_moved(ByteRange::between(0, self.below.size()), out)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.below.writer().map(|_| self as &dyn Writer)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        self.counts.numbers().hints.push(ranges.to_vec());
        self.below.will_need_parts(ranges);
    }

    fn gathers(&self) -> bool {
        self.gathers
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}

impl Writer for Counting {
    fn features(&self) -> WriteFeatures {
        self.below
            .writer()
            .map_or_else(WriteFeatures::default, |writer| writer.features())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.counts
            .numbers()
            .writes
            .push(ByteRange::of(buf, offset));
        self.below.need_writer()?.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<()> {
        self.counts.numbers().flushes += 1;
        self.below.need_writer()?.flush()
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        self.counts.numbers().zeroes += 1;
        self.below.need_writer()?.zero(range, opts)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        self.counts.numbers().trims += 1;
        self.below.need_writer()?.trim(range, fua)
    }
}
