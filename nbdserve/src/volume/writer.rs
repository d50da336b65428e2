//! The write side of a [`Volume`].

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Volume;
use crate::{ByteRange, Done, Result, Writer, ZeroOpts};

/// Emulated zeroing writes this many bytes at a time.
const ZERO_PIECE: u64 = 1 << 20;

/// The write side of a [`Volume`]; any offset and length within the device.
pub struct VolumeWriter<'a> {
    pub(super) volume: &'a Volume,
    pub(super) writer: &'a dyn Writer,
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
