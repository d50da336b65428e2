//! The checked, cheap-to-clone handle through which every device is used.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::stats::{Requests, VolumeStats};
use crate::{
    ByteRange, Cost, Device, Done, Error, ExtentFlags, Extents, Geometry, Kind, Lent, Result,
    Writer, ZeroOpts,
};

/// Most runs in one extents answer: NBD allows 2^20 in a reply, a quarter of that is 10 MiB here.
const MAX_EXTENT_RUNS: usize = 1 << 18;
/// Emulated zeroing writes this many bytes at a time.
const ZERO_PIECE: u64 = 1 << 20;

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

/// The write side of a [`Volume`]; any offset and length within the device.
pub struct VolumeWriter<'a> {
    volume: &'a Volume,
    writer: &'a dyn Writer,
}

impl fmt::Debug for VolumeWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeWriter({:?})", self.volume)
    }
}

impl VolumeWriter<'_> {
    /// Writes all of `buf` at `offset`; durable on return when `fua`.
    ///
    /// # Errors
    /// `OutOfRange` when the range leaves the device, else what the device says.
    pub fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        let volume = self.volume;
        let range = volume.check(offset, buf.len() as u64)?;
        if range.is_empty() {
            return Ok(());
        }
        let body = volume.align_in(range);
        let write = || {
            if body == range {
                let _shared = volume.modify_shared();
                self.write_split(buf, range.start(), fua)
            } else {
                self.write_unaligned(buf, range, body, fua)
            }
        };
        let result = volume.inner.writes.count(range.len(), write);
        result.map_err(|error| volume.named(error))
    }

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// When durability cannot be promised.
    pub fn flush(&self) -> Result<()> {
        self.writer
            .flush()
            .map_err(|error| self.volume.named(error))
    }

    /// Makes `range` read as zeroes, writing them where the device has no better way.
    /// `Declined` only with `fast_only`.
    ///
    /// # Errors
    /// `OutOfRange` when the range leaves the device, else what the device says.
    pub fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        let volume = self.volume;
        volume.check(range.start(), range.len())?;
        if range.is_empty() {
            return Ok(Done::Yes);
        }
        // What lies within whole blocks the device may know how to do better.
        let body = volume.align_in(range);
        let native = self.writer.features().zero
            && !body.is_empty()
            && self.zero_native(body, opts)? == Done::Yes;
        if native {
            self.write_zeroes(ByteRange::between(range.start(), body.start()))?;
            self.write_zeroes(ByteRange::between(body.end(), range.end()))?;
        } else if opts.fast_only {
            return Ok(Done::Declined);
        } else {
            self.write_zeroes(range)?;
        }
        // With `body == range` the device has done it, if it can.
        if opts.fua && !(native && body == range && self.writer.features().fua) {
            self.flush()?;
        }
        Ok(Done::Yes)
    }

    /// Says that the contents of `range` are no longer needed; whole blocks within it may become
    /// undefined.
    ///
    /// # Errors
    /// `OutOfRange` when the range leaves the device, else what the device says.
    pub fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        let volume = self.volume;
        volume.check(range.start(), range.len())?;
        let features = self.writer.features();
        let body = volume.align_in(range);
        if !features.trim || body.is_empty() {
            // Nothing changes, so nothing has to be made durable.
            return Ok(());
        }
        let shared = volume.modify_shared();
        self.writer
            .trim(body, fua && features.fua)
            .map_err(|error| volume.named(error))?;
        drop(shared);
        if fua && !features.fua {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes the device `size` bytes long, when it is shorter; the new bytes read as zeroes. All
    /// clones of the volume see it; what was made of the volume before (a layer on it) does not.
    /// `Declined` when this device has the size that it has.
    ///
    /// # Errors
    /// What the device says: `NoSpace` when there is no room.
    pub fn grow(&self, size: u64) -> Result<Done> {
        let inner = &self.volume.inner;
        // Alone: the last block, which may be a short one, becomes a longer one.
        let _alone = inner.modify.write().unwrap_or_else(PoisonError::into_inner);
        if size <= self.volume.size() {
            return Ok(Done::Yes);
        }
        let done = self
            .writer
            .grow(size)
            .map_err(|error| self.volume.named(error))?;
        if done == Done::Yes {
            inner.size.store(size, Ordering::Release);
        }
        Ok(done)
    }

    /// What is native below.
    #[must_use]
    pub fn features(&self) -> crate::WriteFeatures {
        self.writer.features()
    }

    fn write_split(&self, buf: &[u8], mut offset: u64, fua: bool) -> Result<()> {
        let native_fua = fua && self.writer.features().fua;
        let piece = usize::try_from(self.volume.inner.geometry.max_request).unwrap_or(usize::MAX);
        for part in buf.chunks(piece) {
            self.writer.write_at(part, offset, native_fua)?;
            offset += part.len() as u64;
        }
        if fua && !native_fua {
            self.writer.flush()
        } else {
            Ok(())
        }
    }

    /// Writes the whole blocks `body` of `range` in place, and the ragged ends by
    /// read-modify-write.
    fn write_unaligned(
        &self,
        buf: &[u8],
        range: ByteRange,
        body: ByteRange,
        fua: bool,
    ) -> Result<()> {
        let part = |from: u64, to: u64| {
            // Within buf, so it fits a usize.
            let start = (from - range.start()) as usize;
            &buf[start..(to - range.start()) as usize]
        };
        let mut at = range.start();
        while at < range.end() {
            let end = if at == body.start() && !body.is_empty() {
                let _shared = self.volume.modify_shared();
                self.write_split(part(at, body.end()), at, false)?;
                body.end()
            } else {
                let block = self.volume.block_around(at);
                let end = block.end().min(range.end());
                self.modify_block(part(at, end), at, block)?;
                end
            };
            at = end;
        }
        if fua { self.writer.flush() } else { Ok(()) }
    }

    /// Puts `new` at `offset` into the one block that it lies in.
    fn modify_block(&self, new: &[u8], offset: u64, block: ByteRange) -> Result<()> {
        let volume = self.volume;
        let _alone = volume
            .inner
            .modify
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // At most 65536 bytes, the largest min_block.
        let mut bounce = vec![0; block.len() as usize];
        volume.inner.device.read_at(&mut bounce, block.start())?;
        let start = (offset - block.start()) as usize;
        bounce[start..start + new.len()].copy_from_slice(new);
        self.writer.write_at(&bounce, block.start(), false)
    }

    fn zero_native(&self, range: ByteRange, mut opts: ZeroOpts) -> Result<Done> {
        let volume = self.volume;
        opts.fua &= self.writer.features().fua;
        let _shared = volume.modify_shared();
        self.writer
            .zero(range, opts)
            .map_err(|error| volume.named(error))
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        // At most ZERO_PIECE, which fits a usize.
        let zeroes = vec![0; range.len().min(ZERO_PIECE) as usize];
        let mut offset = range.start();
        while offset < range.end() {
            let len = (range.end() - offset).min(zeroes.len() as u64) as usize;
            self.write_at(&zeroes[..len], offset, false)?;
            offset += len as u64;
        }
        Ok(())
    }
}

/// The largest multiple of `block` (not zero) that is at most `value`.
fn round_down(value: u64, block: u64) -> u64 {
    value - value % block
}
