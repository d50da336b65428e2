//! Zeroes after the end, so that a block device loses no tail.

use crate::{
    ByteRange, Device, Done, Error, ExtentFlags, Extents, Geometry, Kind, Lent, Result, Volume,
    WriteFeatures, Writer, ZeroOpts,
};

/// `volume` with zeroes after its end up to a multiple of `block` bytes; itself when its size is
/// one already. A block device counts in sectors and would otherwise lose the last bytes.
///
/// # Errors
/// `Unsupported` when the rounded size does not fit 64 bits.
///
/// # Panics
/// When `block` is zero: an error of the caller.
pub fn pad_to_block(volume: &Volume, block: u32) -> Result<Volume> {
    let size = volume.size();
    if size.is_multiple_of(u64::from(block)) {
        return Ok(volume.clone());
    }
    let padded = size
        .checked_next_multiple_of(u64::from(block))
        .ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                format!("an image of {size} bytes cannot be a device with blocks of {block} bytes"),
            )
        })?;
    Ok(Volume::new(Padded {
        inner: volume.clone(),
        size: padded,
    }))
}

/// The padding device. Its tail can be written with zeroes only.
#[derive(Debug)]
struct Padded {
    inner: Volume,
    size: u64,
}

impl Padded {
    /// The part of `range` that is stored.
    fn stored(&self, range: ByteRange) -> ByteRange {
        ByteRange::between(
            range.start().min(self.inner.size()),
            range.end().min(self.inner.size()),
        )
    }

    /// How many of the `len` bytes at `offset` are stored.
    fn stored_len(&self, offset: u64, len: usize) -> usize {
        let room = self.inner.size().saturating_sub(offset);
        usize::try_from(room).map_or(len, |room| room.min(len))
    }
}

impl Device for Padded {
    fn name(&self) -> &'static str {
        "padding"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size,
            min_block: 1,
            ..self.inner.geometry()
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (stored, pad) = buf.split_at_mut(self.stored_len(offset, buf.len()));
        pad.fill(0);
        if stored.is_empty() {
            return Ok(());
        }
        self.inner.read_at(stored, offset)
    }

    fn lend(&self, range: ByteRange) -> Result<Option<Lent>> {
        if self.stored(range) != range {
            return Ok(None);
        }
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        self.inner.lend(range.start(), len)
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        let stored = self.stored(range);
        if !stored.is_empty() {
            let found = self.inner.extents_limited(stored, out.room())?;
            for run in found.runs() {
                out.push_until(run.range.end(), run.flags);
            }
            if out.next_offset() < stored.end() {
                return Ok(());
            }
        }
        out.push_until(range.end(), ExtentFlags::HOLE);
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.inner.writer().is_some().then_some(self)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        self.inner.will_need_parts(ranges);
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

impl Padded {
    /// The inner writer; `writer()` has made sure that there is one.
    fn below(&self) -> Result<crate::VolumeWriter<'_>> {
        self.inner
            .writer()
            .ok_or_else(|| Error::new(Kind::ReadOnly, "the image cannot be written"))
    }
}

impl Writer for Padded {
    fn features(&self) -> WriteFeatures {
        self.inner
            .writer()
            .map_or_else(WriteFeatures::default, |writer| writer.features())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        let (stored, pad) = buf.split_at(self.stored_len(offset, buf.len()));
        if pad.iter().any(|byte| *byte != 0) {
            return Err(Error::new(
                Kind::NoSpace,
                format!(
                    "data beyond the image's last byte {} cannot be stored: its size is not a multiple of the block size",
                    self.inner.size()
                ),
            ));
        }
        if stored.is_empty() {
            return Ok(());
        }
        self.below()?.write_at(stored, offset, fua)
    }

    fn flush(&self) -> Result<()> {
        self.below()?.flush()
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        self.below()?.zero(self.stored(range), opts)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        self.below()?.trim(self.stored(range), fua)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Memory;

    #[test]
    fn the_tail_reads_as_zeroes_and_takes_only_zeroes() {
        let image = Memory::volume(vec![7; 1000]);
        let padded = pad_to_block(&image, 512).unwrap();
        assert_eq!(padded.size(), 1024);
        let bytes = padded.read_vec(990, 34).unwrap();
        assert_eq!(bytes, [vec![7; 10], vec![0; 24]].concat());

        let writer = padded.writer().unwrap();
        let mut block = vec![9; 488];
        block.resize(512, 0);
        writer.write_at(&block, 512, true).unwrap();
        assert_eq!(image.read_vec(512, 488).unwrap(), vec![9; 488]);
        block[511] = 1;
        let error = writer.write_at(&block, 512, false).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(image.read_vec(512, 488).unwrap(), vec![9; 488]);
    }

    #[test]
    fn zeroing_across_the_end_zeroes_what_is_stored() {
        let image = Memory::volume(vec![7; 1000]);
        let padded = pad_to_block(&image, 512).unwrap();
        let range = ByteRange::between(900, 1024);
        let done = padded
            .writer()
            .unwrap()
            .zero(range, ZeroOpts::default())
            .unwrap();
        assert_eq!(done, Done::Yes);
        let expected = [vec![7; 900], vec![0; 100]].concat();
        assert_eq!(image.read_vec(0, 1000).unwrap(), expected);
    }

    #[test]
    fn the_padding_is_a_hole() {
        let padded = pad_to_block(&Memory::volume(vec![7; 1000]), 512).unwrap();
        let found = padded.extents(ByteRange::between(0, 1024)).unwrap();
        let runs: Vec<_> = found
            .runs()
            .iter()
            .map(|run| (run.range, run.flags))
            .collect();
        assert_eq!(
            runs,
            [
                (ByteRange::between(0, 1000), ExtentFlags::DATA),
                (ByteRange::between(1000, 1024), ExtentFlags::HOLE)
            ]
        );
    }

    #[test]
    fn a_whole_number_of_blocks_is_left_alone() {
        let padded = pad_to_block(&Memory::volume(vec![7; 1024]), 512).unwrap();
        assert_eq!(padded.name(), "memory");
    }
}
