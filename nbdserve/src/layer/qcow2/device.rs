//! The guest's disk as a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::NAME;
use super::compressed::CompressedClusters;
use super::crypto;
use super::header::Header;
use super::map::{Run, What};
use super::side::WriteSide;
use super::tables::Tables;
use crate::cache::{Blocks, Huge};
use crate::hints::Hints;
use crate::layer::luks::SectorCipher;
use crate::layer::scan::{narrow, wide};
use crate::stats::BlockStats;
use crate::{
    Access, ByteRange, Cost, Cx, Device, Done, Error, ExtentFlags, Extents, Geometry, Index,
    Keeping, Kind, Result, Volume, WriteFeatures, Writer, ZeroOpts,
};

/// A hint is passed on for so many runs at most.
const HINTS: usize = 256;

/// The parts of an image that was opened.
#[derive(Debug)]
pub(super) struct Parts {
    /// Its header.
    pub(super) header: Header,
    /// The tables of the disk, with the files that clusters are in.
    pub(super) tables: Tables,
    /// What is read where nothing is allocated.
    pub(super) backing: Option<Volume>,
    /// For clusters that are encrypted.
    pub(super) cipher: Option<Arc<SectorCipher>>,
    /// What is unusual.
    pub(super) notes: Vec<String>,
    /// For an image that can be written.
    pub(super) side: Option<WriteSide>,
}

/// A qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    header: Header,
    tables: Arc<Tables>,
    backing: Option<Volume>,
    cipher: Option<Arc<SectorCipher>>,
    notes: Vec<String>,
    /// `None` when the file is not open for writing, or a snapshot is shown.
    side: Option<WriteSide>,
    /// Compressed clusters.
    blocks: Blocks,
    geometry: Geometry,
    cost: Option<Cost>,
    /// Where the latest prefetch of compressed clusters ended.
    ahead: AtomicU64,
}

impl Qcow2 {
    /// The image, ready to be read.
    ///
    /// # Errors
    /// What the file says.
    pub(super) fn new(parts: Parts, cx: &Cx) -> Result<Self> {
        let Parts {
            header,
            tables,
            backing,
            cipher,
            notes,
            side,
        } = parts;
        let tables = Arc::new(tables);
        let decode = CompressedClusters::new(Arc::clone(&tables), header.compression);
        let blocks = Blocks::new(NAME, Arc::new(decode), Huge::default(), cx)?;
        let mut geometry = Geometry::bytes(tables.size());
        let below = tables.data().volume().geometry();
        geometry.access = below.access;
        if let Some(cipher) = &cipher {
            // At most 4096.
            geometry.min_block = u32::try_from(cipher.sector()).unwrap_or(4096);
        }
        geometry.preferred_block = geometry.preferred_block.max(below.preferred_block);
        if let Some(backing) = &backing {
            geometry.access = geometry.access.max(backing.geometry().access);
        }
        let mut cost = None;
        if tables.any_compressed()? {
            let access = Access::Block(header.cluster_size());
            geometry.access = geometry.access.max(access);
            cost = Some(Cost {
                access,
                index: Index::InImage,
                index_kept: Keeping::Memory,
                kept: Keeping::Memory,
            });
        }
        Ok(Self {
            header,
            tables,
            backing,
            cipher,
            notes,
            side,
            blocks,
            geometry,
            cost,
            ahead: AtomicU64::new(u64::MAX),
        })
    }

    /// Fills `buf` with what the backing file has at `offset`: zeroes where it has ended.
    fn read_backing(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some(backing) = &self.backing else {
            buf.fill(0);
            return Ok(());
        };
        let here = backing.size().saturating_sub(offset).min(wide(buf.len()));
        let (now, beyond) = buf.split_at_mut(narrow(here));
        beyond.fill(0);
        if now.is_empty() {
            return Ok(());
        }
        backing.read_at(now, offset)
    }

    fn read_run(&self, run: &Run, buf: &mut [u8]) -> Result<()> {
        let offset = run.range.start();
        match run.what {
            What::Unallocated => self.read_backing(buf, offset),
            What::Zero { .. } => {
                buf.fill(0);
                Ok(())
            }
            What::Data(at) => match &self.cipher {
                None => self.tables.data().read_at(buf, at),
                Some(cipher) => crypto::read(cipher, self.tables.data(), buf, at),
            },
            What::Compressed(number, _) => {
                let skip = self.tables.shape().within(offset);
                self.blocks.read(number, skip, buf)
            }
        }
    }

    /// Begins to decode the compressed clusters of this read, and of the next ones when it belongs
    /// to a stream.
    fn begin(&self, range: ByteRange) -> Result<()> {
        let cluster = self.header.cluster_size();
        let ahead = self.blocks.note_read(range, cluster);
        let window = self.blocks.window(cluster);
        let mut begun = 0_u64;
        for run in self.tables.runs(range) {
            if let What::Compressed(number, _) = run?.what {
                if begun > window {
                    return Ok(());
                }
                self.blocks.begin(number);
                begun = begun.saturating_add(1);
            }
        }
        let end = range
            .end()
            .saturating_add(ahead.saturating_mul(cluster))
            .min(self.tables.size());
        // Streams that are interleaved take turns here and look again, which is cheap.
        if ahead > 0 && self.ahead.swap(end, Ordering::Relaxed) != end {
            self.prefetch(ByteRange::between(range.end(), end), ahead);
        }
        Ok(())
    }

    /// Begins to decode up to `most` compressed clusters of `range`, when there is nothing better to
    /// do.
    fn prefetch(&self, range: ByteRange, most: u64) {
        let mut left = most;
        // Who reads them will be told what is wrong.
        for run in self.tables.runs(range).flatten() {
            if let What::Compressed(number, _) = run.what
                && left > 0
            {
                left = left.saturating_sub(1);
                self.blocks.prefetch(number);
            }
        }
    }

    /// Fills `buf` with the guest's bytes at `offset`.
    fn read_runs(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::between(offset, offset.saturating_add(wide(buf.len())));
        let mut rest = buf;
        let mut begun = false;
        for run in self.tables.runs(range) {
            let run = run?;
            if !begun && matches!(run.what, What::Compressed(..)) {
                begun = true;
                self.begin(ByteRange::between(run.range.start(), range.end()))?;
            }
            let (now, later) = rest.split_at_mut(narrow(run.range.len()).min(rest.len()));
            self.read_run(&run, now)?;
            rest = later;
        }
        Ok(())
    }
}

impl Device for Qcow2 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some(side) = &self.side else {
            return self.read_runs(buf, offset);
        };
        let range = ByteRange::between(offset, offset.saturating_add(wide(buf.len())));
        let mut rest = buf;
        for group in side.groups(range) {
            let (now, later) = rest.split_at_mut(narrow(group.len()).min(rest.len()));
            let _epoch = side.enter();
            let _shared = side.shared(group);
            self.read_runs(now, group.start())?;
            rest = later;
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        let _epoch = self.side.as_ref().map(WriteSide::enter);
        for run in self.tables.runs(range) {
            let run = run?;
            let part = run.range;
            match run.what {
                What::Zero { allocated: true } => out.push_until(part.end(), ExtentFlags::ZERO),
                What::Zero { allocated: false } => out.push_until(part.end(), ExtentFlags::HOLE),
                // A hole is noise when it is decrypted.
                What::Data(_) if self.cipher.is_some() => {
                    out.push_until(part.end(), ExtentFlags::DATA);
                }
                What::Data(at) => {
                    let there = ByteRange::between(at, at.saturating_add(part.len()));
                    self.tables.data().extents(there, part.start(), out)?;
                    // Behind the end of the file.
                    out.push_until(part.end(), ExtentFlags::HOLE);
                }
                What::Compressed(number, _) => {
                    let start = self.tables.shape().within(part.start());
                    let until = start.saturating_add(part.len());
                    let mut at = start;
                    while at < until {
                        let (end, zero) = self.blocks.known(number, at, until);
                        let flags = match zero {
                            true => ExtentFlags::ZERO,
                            false => ExtentFlags::DATA,
                        };
                        let end = end.clamp(at.saturating_add(1), until);
                        let passed = end.saturating_sub(start);
                        out.push_until(part.start().saturating_add(passed), flags);
                        at = end;
                    }
                }
                What::Unallocated => {
                    if let Some(backing) = &self.backing {
                        let there = part.intersect(ByteRange::between(0, backing.size()));
                        backing.extents_placed(there, there.start(), out)?;
                    }
                    out.push_until(part.end(), ExtentFlags::HOLE);
                }
            }
            if out.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let _epoch = self.side.as_ref().map(WriteSide::enter);
        let window = self.blocks.window(self.header.cluster_size());
        let mut left = window;
        let mut hints = Hints::new();
        self.tables.will_need(ranges);
        let runs = ranges.iter().flat_map(|range| self.tables.runs(*range));
        for run in runs.flatten().take(HINTS) {
            match run.what {
                What::Data(at) => {
                    let there = ByteRange::between(at, at.saturating_add(run.range.len()));
                    hints.add(self.tables.data().volume(), there);
                }
                What::Compressed(number, _) if left > 0 => {
                    left = left.saturating_sub(1);
                    self.blocks.prefetch(number);
                }
                What::Unallocated => {
                    if let Some(backing) = &self.backing {
                        hints.add(backing, run.range);
                    }
                }
                What::Compressed(..) | What::Zero { .. } => {}
            }
        }
        hints.send();
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        let file = self.tables.data();
        let all = ByteRange::between(0, file.size());
        let all = file.volume().stored(all).unwrap_or(file.size());
        let (known, unknown) = self.tables.stored(range);
        let backing = self.backing.as_ref();
        let backing = backing.and_then(|backing| backing.stored(range));
        let sum = known.saturating_add(unknown.min(all));
        Some(sum.saturating_add(backing.unwrap_or(0)).min(range.len()))
    }

    fn cost(&self) -> Option<Cost> {
        self.cost
    }

    fn may_be_kept(&self) -> bool {
        // Another file may change and this one not.
        let alone = self.backing.is_none() && !self.header.shape().external;
        alone && self.cipher.is_none()
    }

    fn notes(&self) -> Vec<String> {
        let _epoch = self.side.as_ref().map(WriteSide::enter);
        let own = self.notes.iter().cloned().chain(self.tables.note());
        let backing = self.backing.iter().flat_map(Volume::notes);
        own.chain(backing).collect()
    }

    fn block_stats(&self) -> Option<BlockStats> {
        let stats = self.blocks.stats();
        (self.cost.is_some() || stats.decodes > 0).then_some(stats)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.side.as_ref()?;
        Some(self)
    }

    fn close(&self) -> Result<()> {
        self.blocks.close();
        let finish = |side: &WriteSide| side.finish(&self.tables);
        let mut result = self.side.as_ref().map_or(Ok(()), finish);
        result = result.and(self.tables.file().volume().close());
        if self.header.shape().external {
            result = result.and(self.tables.data().volume().close());
        }
        if let Some(backing) = &self.backing {
            result = result.and(backing.close());
        }
        result
    }
}

impl Qcow2 {
    fn need_side(&self) -> Result<&WriteSide> {
        let read_only = || Error::new(Kind::ReadOnly, "the image cannot be written");
        self.side.as_ref().ok_or_else(read_only)
    }
}

impl Writer for Qcow2 {
    fn features(&self) -> WriteFeatures {
        WriteFeatures {
            fua: false,
            zero: true,
            trim: true,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<()> {
        let content = |buf: &mut [u8], offset: u64| self.read_runs(buf, offset);
        self.need_side()?.write(&self.tables, &content, buf, offset)
    }

    fn flush(&self) -> Result<()> {
        self.need_side()?.sync(&self.tables)
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        let content = |buf: &mut [u8], offset: u64| self.read_runs(buf, offset);
        self.need_side()?.zero(&self.tables, &content, range, opts)
    }

    fn trim(&self, range: ByteRange, _fua: bool) -> Result<()> {
        self.need_side()?.trim(&self.tables, range)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if let Some(side) = &self.side
            && let Err(error) = side.finish(&self.tables)
        {
            tracing::error!("what was written to the image could not be stored: {error}");
        }
    }
}
