//! The checked, cheap-to-clone handle through which every device is used.

mod writer;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

pub use writer::VolumeWriter;

use crate::stats::{Requests, VolumeStats};
use crate::{ByteRange, Cost, Device, Error, ExtentFlags, Extents, Geometry, Kind, Lent, Result};

/// Most runs in one extents answer: NBD allows 2^20 in a reply, a quarter of that is 10 MiB here.
const MAX_EXTENT_RUNS: usize = 1 << 18;

/// A [`Device`] behind the checks that every caller and every layer relies on: ranges are checked
/// once, long requests split, unaligned ones served by read-modify-write, zero and FUA emulated,
/// and errors get the device's name.
#[derive(Clone)]
pub struct Volume {
    inner: Arc<Inner>,
}

struct Inner {
    device: Box<dyn Device>,
    /// Its size is that at the beginning.
    geometry: Geometry,
    /// Only [`VolumeWriter::grow`] changes it.
    size: AtomicU64,
    /// Aligned writes share it; a read-modify-write holds it alone, so that it never puts back
    /// a neighbour's old bytes.
    modify: RwLock<()>,
    reads: Requests,
    writes: Requests,
}

impl Volume {
    /// Wraps a device.
    ///
    /// # Panics
    /// When the device reports a geometry that its contract forbids: an error in the device.
    #[must_use]
    pub fn new(device: impl Device + 'static) -> Self {
        let mut geometry = device.geometry();
        assert!(
            geometry.min_block.is_power_of_two() && geometry.min_block <= 65536,
            "{device:?}"
        );
        assert!(geometry.preferred_block.is_power_of_two(), "{device:?}");
        let block = u64::from(geometry.min_block);
        geometry.max_request = round_down(geometry.max_request, block).max(block);
        let inner = Inner {
            device: Box::new(device),
            size: AtomicU64::new(geometry.size),
            geometry,
            modify: RwLock::new(()),
            reads: Requests::new(),
            writes: Requests::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The device's name, as in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.device.name()
    }

    /// Number of bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.size.load(Ordering::Acquire)
    }

    /// Size, limits and cost. The limits are the device's own; callers need not obey them.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size(),
            ..self.inner.geometry
        }
    }

    /// Fills `buf` with the bytes at `offset`; any offset and length within the device.
    ///
    /// # Errors
    /// `OutOfRange` when the range leaves the device, else what the device says.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = self.check(offset, buf.len() as u64)?;
        let read = || {
            if self.align_in(range) == range {
                self.read_split(buf, offset)
            } else {
                self.read_unaligned(buf, range)
            }
        };
        let result = self.inner.reads.count(range.len(), read);
        result.map_err(|error| self.named(error))
    }

    /// As [`Self::read_at`] of `len` bytes, without a copy where the device has them in a row in its
    /// memory; `None` where it has not.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn lend(&self, offset: u64, len: usize) -> Result<Option<Lent>> {
        let range = self.check(offset, len as u64)?;
        if range.is_empty()
            || self.align_in(range) != range
            || range.len() > self.inner.geometry.max_request
        {
            return Ok(None);
        }
        let lend = || self.inner.device.lend(range);
        let result = self
            .inner
            .reads
            .count_if(range.len(), lend, |lent| !matches!(lent, Ok(None)));
        result.map_err(|error| self.named(error))
    }

    /// How many files it is put together from; `None` for what is no file.
    #[must_use]
    pub fn parts(&self) -> Option<usize> {
        self.inner.device.parts()
    }

    /// As [`crate::Device::may_be_kept`].
    #[must_use]
    pub fn may_be_kept(&self) -> bool {
        self.inner.device.may_be_kept()
    }

    /// What is unusual about it, for `--info`; may read to find out.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.inner.device.notes()
    }

    /// What reading somewhere costs, the layers below apart; `None` for what decodes nothing.
    #[must_use]
    pub fn cost(&self) -> Option<Cost> {
        self.inner.device.cost()
    }

    /// About how many bytes of `range` are not zero, as far as that is known without reading: an
    /// estimate. `None` when nothing is known.
    #[must_use]
    pub fn stored(&self, range: ByteRange) -> Option<u64> {
        let range = range.intersect(ByteRange::between(0, self.size()));
        if range.is_empty() {
            return Some(0);
        }
        self.inner.device.stored(range)
    }

    /// What was asked of it so far.
    #[must_use]
    pub fn stats(&self) -> VolumeStats {
        VolumeStats {
            name: self.name().to_owned(),
            reads: self.inner.reads.snapshot(),
            writes: self.inner.writes.snapshot(),
            blocks: self.inner.device.block_stats(),
        }
    }

    /// As [`crate::Device::source_identity`].
    #[must_use]
    pub fn source_identity(&self) -> Option<String> {
        self.inner.device.source_identity()
    }

    /// The `len` bytes at `offset`. For small, bounded reads of headers.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.check(offset, len as u64)?;
        let mut buf = vec![0; len];
        self.read_at(&mut buf, offset)?;
        Ok(buf)
    }

    /// What is known of `range`: runs from its start on, without gaps, at least one; they may end
    /// before `range` does when there are very many. What the device does not answer is data.
    ///
    /// # Errors
    /// `OutOfRange` when the range leaves the device, else what the device says.
    pub fn extents(&self, range: ByteRange) -> Result<Extents> {
        self.extents_limited(range, MAX_EXTENT_RUNS)
    }

    /// As [`Self::extents`], with at most `max_runs` runs.
    ///
    /// # Errors
    /// As [`Self::extents`].
    pub fn extents_limited(&self, range: ByteRange, max_runs: usize) -> Result<Extents> {
        self.check(range.start(), range.len())?;
        let mut out = Extents::new(range, max_runs);
        if !range.is_empty() {
            self.inner
                .device
                .extents(range, &mut out)
                .map_err(|error| self.named(error))?;
            if !out.is_full() {
                out.push_until(range.end(), ExtentFlags::DATA);
            }
        }
        Ok(out)
    }

    /// Answers an extents query on a part of this volume for a layer that shows the bytes
    /// `window` of it at its own offset zero: the runs for `out` are taken from here, moved.
    ///
    /// # Errors
    /// As [`Self::extents`].
    pub fn extents_moved(&self, window: ByteRange, out: &mut Extents) -> Result<()> {
        if out.is_full() {
            return Ok(());
        }
        let below = |offset: u64| window.start().saturating_add(offset).min(window.end());
        let wanted = ByteRange::between(below(out.next_offset()), below(out.asked().end()));
        // One more than there is room for: the first may continue the last one that is there.
        let found = self.extents_limited(wanted, out.room().saturating_add(1))?;
        for run in found.runs() {
            out.push_until(run.range.end().saturating_sub(window.start()), run.flags);
        }
        Ok(())
    }

    /// Answers an extents query for a layer that shows the bytes `part` of this volume at its own
    /// offset `at`, where `out` has got to: up to the end of the part, or until `out` is full.
    ///
    /// # Errors
    /// As [`Self::extents`].
    pub fn extents_placed(&self, part: ByteRange, at: u64, out: &mut Extents) -> Result<()> {
        let placed = |below: u64| at.saturating_add(below.saturating_sub(part.start()));
        while !out.is_full() && out.next_offset() < placed(part.end()) {
            let skip = out.next_offset().saturating_sub(at);
            let from = part.start().saturating_add(skip);
            let asked = out.asked().end().saturating_sub(at);
            let until = part.start().saturating_add(asked).min(part.end());
            let wanted = ByteRange::between(from, until);
            // One more than there is room for: the first may continue the last one that is there.
            let found = self.extents_limited(wanted, out.room().saturating_add(1))?;
            for run in found.runs() {
                out.push_until(placed(run.range.end()), run.flags);
            }
        }
        Ok(())
    }

    /// A hint that `range` will be read soon; parts outside the device are ignored.
    pub fn will_need(&self, range: ByteRange) {
        self.will_need_parts(&[range]);
    }

    /// As [`Self::will_need`] for several ranges that are known together, in any order: a source
    /// far away asks for all of them at once. They may overlap.
    pub fn will_need_parts(&self, ranges: &[ByteRange]) {
        let all = ByteRange::between(0, self.size());
        let within = ranges.iter().map(|range| range.intersect(all));
        let within: Vec<_> = within.filter(|range| !range.is_empty()).collect();
        if !within.is_empty() {
            self.inner.device.will_need_parts(&within);
        }
    }

    /// As [`crate::Device::gathers`].
    #[must_use]
    pub fn gathers(&self) -> bool {
        self.inner.device.gathers()
    }

    /// Whether both are handles of one device.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The write side, or `None` when the volume cannot be written.
    #[must_use]
    pub fn writer(&self) -> Option<VolumeWriter<'_>> {
        let writer = self.inner.device.writer()?;
        Some(VolumeWriter {
            volume: self,
            writer,
        })
    }

    /// The write side, for a layer that passes writes on.
    ///
    /// # Errors
    /// `ReadOnly` when the volume cannot be written.
    pub fn need_writer(&self) -> Result<VolumeWriter<'_>> {
        self.writer().ok_or_else(|| {
            let name = self.name();
            let why = self.read_only_because();
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            Error::new(Kind::ReadOnly, format!("{name} cannot be written{why}"))
        })
    }

    /// Why there is no write side, where that needs words; see [`Device::read_only_because`].
    #[must_use]
    pub fn read_only_because(&self) -> Option<String> {
        self.inner.device.read_only_because()
    }

    /// Ends background work of the device and makes written data durable.
    ///
    /// # Errors
    /// When data that was accepted could not be stored.
    pub fn close(&self) -> Result<()> {
        self.inner.device.close().map_err(|error| self.named(error))
    }

    fn block(&self) -> u64 {
        u64::from(self.inner.geometry.min_block)
    }

    fn named(&self, error: Error) -> Error {
        error.in_layer(self.name())
    }

    fn check(&self, offset: u64, len: u64) -> Result<ByteRange> {
        ByteRange::new(offset, len)
            .filter(|range| range.end() <= self.size())
            .ok_or_else(|| {
                let size = self.size();
                self.named(Error::new(
                    Kind::OutOfRange,
                    format!("{len} bytes at {offset} are not within its {size} bytes"),
                ))
            })
    }

    /// The whole blocks within `range`; the last block of the device may be a short one. Empty,
    /// somewhere in `range`, when there are none.
    fn align_in(&self, range: ByteRange) -> ByteRange {
        let block = self.block();
        let start = range.start().checked_next_multiple_of(block);
        let start = start.unwrap_or(range.end()).min(range.end());
        let end = if range.end() == self.size() {
            range.end()
        } else {
            round_down(range.end(), block)
        };
        ByteRange::between(start, end)
    }

    /// The block that the byte `offset` lies in, cut at the end of the device.
    fn block_around(&self, offset: u64) -> ByteRange {
        let block = self.block();
        let start = round_down(offset, block);
        ByteRange::between(start, start.saturating_add(block).min(self.size()))
    }

    fn modify_shared(&self) -> RwLockReadGuard<'_, ()> {
        let modify = self.inner.modify.read();
        modify.unwrap_or_else(PoisonError::into_inner)
    }

    fn read_split(&self, buf: &mut [u8], mut offset: u64) -> Result<()> {
        let piece = usize::try_from(self.inner.geometry.max_request).unwrap_or(usize::MAX);
        for part in buf.chunks_mut(piece) {
            self.inner.device.read_at(part, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Reads the ragged first and last block through a bounce buffer, the middle in place.
    fn read_unaligned(&self, buf: &mut [u8], range: ByteRange) -> Result<()> {
        let block = self.block();
        let mut done = 0;
        while done < buf.len() {
            let offset = range.start() + done as u64;
            let middle = round_down((buf.len() - done) as u64, block);
            if offset.is_multiple_of(block) && middle > 0 {
                // middle is at most buf.len(), so it fits a usize.
                let len = middle as usize;
                self.read_split(&mut buf[done..done + len], offset)?;
                done += len;
                continue;
            }
            let one = self.block_around(offset);
            let mut bounce = vec![0; one.len() as usize];
            self.inner.device.read_at(&mut bounce, one.start())?;
            let skip = (offset - one.start()) as usize;
            let len = (bounce.len() - skip).min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&bounce[skip..skip + len]);
            done += len;
        }
        Ok(())
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volume({:?})", self.inner.device)
    }
}

/// The largest multiple of `block` (not zero) that is at most `value`.
fn round_down(value: u64, block: u64) -> u64 {
    value - value % block
}
