//! What a file of fixed size does on top of a volume.

use nbdserve::{
    Access, ByteRange, Done, Error, Kind, Lent, Result, Volume, VolumeWriter, ZeroOpts,
};

/// Runs looked at in one step of a search, and to count allocated bytes.
const EXTENTS_STEP: usize = 1024;
/// Runs looked at in the first step of a search; in the next ones as many times as many.
const FIRST_STEP: usize = 2;
/// Two blocks of st_blocks: the smallest difference that survives rounding.
const NOT_COUNTED: u64 = 1024;
/// Steps of a search before its answer is cut short: every answer of lseek(2) may call data what
/// is a hole.
const MAX_SEARCH_STEPS: usize = 64;

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whence {
    /// The next byte that is stored.
    Data,
    /// The next byte that is in a hole; there is one at the end.
    Hole,
}

/// A volume with the manners of a regular file whose size cannot change.
#[derive(Debug)]
pub(crate) struct Image {
    volume: Volume,
    writable: bool,
}

impl Image {
    /// `writable` asks for the write side, which the volume may still lack.
    pub(crate) fn new(volume: Volume, writable: bool) -> Self {
        let writable = writable && volume.writer().is_some();
        Self { volume, writable }
    }

    pub(crate) fn size(&self) -> u64 {
        self.volume.size()
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// How many of the `len` bytes at `offset` lie within the file.
    pub(crate) fn clip(&self, offset: u64, len: usize) -> usize {
        let left = self.size().saturating_sub(offset);
        usize::try_from(left).map_or(len, |left| left.min(len))
    }

    /// Fills `buf`, which [`Self::clip`] has measured.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.volume.read_at(buf, offset)
    }

    /// As [`Self::read`], where it can be done without a copy.
    pub(crate) fn lend(&self, offset: u64, len: usize) -> Result<Option<Lent>> {
        if len == 0 {
            return Ok(None);
        }
        self.volume.lend(offset, len)
    }

    /// Writes what fits and says how much that was.
    ///
    /// # Errors
    /// `NoSpace` at the end, `ReadOnly`, else what the volume says.
    pub(crate) fn write(&self, data: &[u8], offset: u64) -> Result<usize> {
        let writer = self.writer()?;
        let len = self.clip(offset, data.len());
        if len == 0 && !data.is_empty() {
            return Err(self.past_the_end(offset));
        }
        writer.write_at(&data[..len], offset, false)?;
        Ok(len)
    }

    /// Makes every finished write durable.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.writable {
            self.writer()?.flush()
        } else {
            Ok(())
        }
    }

    /// fallocate(2) without its flag for the size, which never changes here.
    ///
    /// # Errors
    /// `Unsupported` for other modes, and for holes where only zeroes could be written; `NoSpace`
    /// beyond the end, else as [`Self::write`].
    pub(crate) fn allocate(&self, offset: u64, len: u64, mode: i32) -> Result<()> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let writer = self.writer()?;
        let asked = ByteRange::new(offset, len).ok_or_else(|| self.past_the_end(offset))?;
        if asked.end() > self.size() && !keep_size {
            return Err(self.past_the_end(asked.end()));
        }
        let range = asked.intersect(ByteRange::between(0, self.size()));
        let may_trim = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            // Every byte has its place already, or gets it when it is written.
            0 => return Ok(()),
            // Somebody gives space back, as a loop device does with all that a file system discards.
            // Writing zeroes would take space instead; who wants zeroes can write them.
            libc::FALLOC_FL_PUNCH_HOLE if !writer.features().zero => {
                let what = "no holes can be made in this image";
                return Err(Error::new(Kind::Unsupported, what));
            }
            libc::FALLOC_FL_PUNCH_HOLE => true,
            libc::FALLOC_FL_ZERO_RANGE => false,
            other => {
                let what = format!("fallocate mode {other:#x} is not possible on an image");
                return Err(Error::new(Kind::Unsupported, what));
            }
        };
        let opts = ZeroOpts {
            may_trim,
            ..ZeroOpts::default()
        };
        match writer.zero(range, opts)? {
            Done::Yes => Ok(()),
            Done::Declined => Err(Error::new(Kind::Unsupported, "zeroing was declined")),
        }
    }

    /// The next offset from `offset` on that is data or hole; `None` when there is none, which
    /// lseek(2) calls ENXIO. Holes are runs that read as zeroes.
    pub(crate) fn seek(&self, offset: u64, whence: Whence) -> Result<Option<u64>> {
        let size = self.size();
        if offset >= size {
            return Ok(None);
        }
        let mut at = offset;
        // Most often the run at the offset and the next one are all that is needed.
        let mut most = FIRST_STEP;
        for _ in 0..MAX_SEARCH_STEPS {
            let rest = ByteRange::between(at, size);
            let extents = self.volume.extents_limited(rest, most)?;
            most = most.saturating_mul(FIRST_STEP).min(EXTENTS_STEP);
            let wanted = whence == Whence::Hole;
            let hit = extents.runs().iter().find(|run| run.flags.zero == wanted);
            if let Some(run) = hit {
                return Ok(Some(run.range.start()));
            }
            // A volume's answer holds at least one run; should it not, this is the end.
            at = extents.next_offset().max(at);
            if at >= size || extents.runs().is_empty() {
                return Ok((whence == Whence::Hole).then_some(size));
            }
        }
        Ok(Some(match whence {
            Whence::Data => at,
            Whence::Hole => size,
        }))
    }

    /// Bytes that are stored, for st_blocks: estimated by what the layers know, else counted where
    /// that costs little, else all but a few:
    /// cp(1) and tar(1) ask for holes only where fewer bytes are stored than the size says.
    pub(crate) fn allocated(&self) -> u64 {
        let size = self.size();
        if let Some(stored) = self.volume.stored(ByteRange::between(0, size)) {
            return stored.min(size.saturating_sub(NOT_COUNTED));
        }
        if size == 0 || self.volume.geometry().access != Access::Random {
            return size.saturating_sub(NOT_COUNTED);
        }
        let whole = ByteRange::between(0, size);
        let Ok(extents) = self.volume.extents_limited(whole, EXTENTS_STEP) else {
            return size.saturating_sub(NOT_COUNTED);
        };
        let holes: u64 = extents
            .runs()
            .iter()
            .filter(|run| run.flags.hole)
            .map(|run| run.range.len())
            .sum();
        size.saturating_sub(holes)
    }

    fn writer(&self) -> Result<VolumeWriter<'_>> {
        self.volume
            .writer()
            .filter(|_| self.writable)
            .ok_or_else(|| Error::new(Kind::ReadOnly, "the image was mounted read-only"))
    }

    fn past_the_end(&self, offset: u64) -> Error {
        let size = self.size();
        let what = format!("byte {offset} is beyond the image's fixed size of {size} bytes");
        Error::new(Kind::NoSpace, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdserve::source::{File, Memory, OpenMode};
    use nbdserve::{Device, ExtentFlags, Extents, Geometry};

    /// Holes of `unit` bytes between data of `unit` bytes, data first.
    #[derive(Debug)]
    struct Striped {
        size: u64,
        unit: u64,
    }

    impl Device for Striped {
        fn name(&self) -> &'static str {
            "striped"
        }
        fn geometry(&self) -> Geometry {
            Geometry::bytes(self.size)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            for (at, byte) in (offset..).zip(buf) {
                *byte = u8::from((at / self.unit).is_multiple_of(2));
            }
            Ok(())
        }
        fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
            while !out.is_full() && out.next_offset() < range.end() {
                let stripe = out.next_offset() / self.unit;
                let flags = if stripe.is_multiple_of(2) {
                    ExtentFlags::DATA
                } else {
                    ExtentFlags::HOLE
                };
                out.push_until((stripe + 1) * self.unit, flags);
            }
            Ok(())
        }
    }

    #[test]
    fn a_search_finds_the_next_change_and_ends_at_the_end() {
        let device = Striped { size: 70, unit: 10 };
        let image = Image::new(Volume::new(device), false);
        let seek = |offset, whence| image.seek(offset, whence).unwrap();
        assert_eq!(seek(0, Whence::Data), Some(0));
        assert_eq!(seek(3, Whence::Hole), Some(10));
        assert_eq!(seek(13, Whence::Hole), Some(13));
        assert_eq!(seek(13, Whence::Data), Some(20));
        assert_eq!(seek(65, Whence::Hole), Some(70));
        assert_eq!(seek(70, Whence::Data), None);
        assert_eq!(image.allocated(), 40);
        let even = Image::new(Volume::new(Striped { size: 20, unit: 10 }), false);
        assert_eq!(even.seek(15, Whence::Data).unwrap(), None);
    }

    #[test]
    fn a_write_across_the_end_is_cut_and_one_behind_it_refused() {
        let image = Image::new(Memory::volume(vec![0; 10]), true);
        assert_eq!(image.write(b"abcdef", 7).unwrap(), 3);
        assert_eq!(image.write(b"x", 10).unwrap_err().kind(), Kind::NoSpace);
        let mut back = [0; 3];
        image.read(&mut back, 7).unwrap();
        assert_eq!(&back, b"abc");
    }

    #[test]
    fn a_punched_range_reads_as_zeroes_and_is_clipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [7; 10]).unwrap();
        let file = File::open(&path, OpenMode::Write).unwrap();
        let image = Image::new(Volume::new(file), true);
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        image.allocate(8, 100, punch).unwrap();
        let mut back = [9; 3];
        image.read(&mut back, 7).unwrap();
        assert_eq!(back, [7, 0, 0]);
        let beyond = image.allocate(8, 100, libc::FALLOC_FL_ZERO_RANGE);
        assert_eq!(beyond.unwrap_err().kind(), Kind::NoSpace);
        let collapse = image.allocate(0, 4, libc::FALLOC_FL_COLLAPSE_RANGE);
        assert_eq!(collapse.unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn where_no_hole_can_be_made_zeroes_are_not_written_in_its_place() {
        let image = Image::new(Memory::volume(vec![7; 10]), true);
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let punch = image.allocate(2, 4, libc::FALLOC_FL_PUNCH_HOLE | keep);
        assert_eq!(punch.unwrap_err().errno(), libc::EOPNOTSUPP);
        let mut back = [0; 10];
        image.read(&mut back, 0).unwrap();
        assert_eq!(back, [7; 10]);
        image
            .allocate(8, 100, libc::FALLOC_FL_ZERO_RANGE | keep)
            .unwrap();
        image.read(&mut back, 0).unwrap();
        assert_eq!(back, [7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
    }

    #[test]
    fn a_read_only_image_takes_no_write() {
        let image = Image::new(Memory::volume(vec![0; 10]), false);
        assert_eq!(image.write(b"x", 0).unwrap_err().kind(), Kind::ReadOnly);
        assert_eq!(image.allocate(0, 1, 0).unwrap_err().kind(), Kind::ReadOnly);
        image.sync().unwrap();
    }
}
