//! Several files as one device.

use crate::hints::Hints;
use crate::source::File;
use crate::{
    ByteRange, Device, Done, Error, Extents, Geometry, Kind, Result, Volume, WriteFeatures, Writer,
    ZeroOpts,
};

/// Several files, one after the other, as one device. It can be written to when all of them can.
#[derive(Debug)]
pub struct Joined {
    parts: Vec<Part>,
    geometry: Geometry,
}

#[derive(Debug)]
struct Part {
    start: u64,
    volume: Volume,
}

impl Joined {
    /// The files as one volume; a single one as it is.
    ///
    /// # Errors
    /// When there is none, or they are longer together than a file can be.
    pub fn volume(files: Vec<File>) -> Result<Volume> {
        let mut volumes: Vec<_> = files.into_iter().map(Volume::new).collect();
        if volumes.len() == 1
            && let Some(only) = volumes.pop()
        {
            return Ok(only);
        }
        Self::of(volumes)
    }

    /// Any volumes as one.
    ///
    /// # Errors
    /// As [`Self::volume`].
    pub fn of(volumes: Vec<Volume>) -> Result<Volume> {
        let Some(first) = volumes.first() else {
            return Err(Error::new(Kind::OutOfRange, "an image without parts"));
        };
        let mut geometry = Geometry {
            size: 0,
            // Parts begin anywhere.
            min_block: 1,
            ..first.geometry()
        };
        let mut parts = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let own = volume.geometry();
            geometry.preferred_block = geometry.preferred_block.max(own.preferred_block);
            geometry.access = geometry.access.max(own.access);
            let start = geometry.size;
            geometry.size = start
                .checked_add(own.size)
                .filter(|size| *size <= u64::MAX >> 1)
                .ok_or_else(|| Error::new(Kind::Limit, "the parts have more than 2^63 bytes"))?;
            parts.push(Part { start, volume });
        }
        Ok(Volume::new(Self { parts, geometry }))
    }

    /// The parts that hold `range`: each with the range in it, and where that is in the whole.
    fn covering(&self, range: ByteRange) -> impl Iterator<Item = (&Volume, ByteRange, u64)> {
        let after = self
            .parts
            .partition_point(|part| part.start <= range.start());
        let parts = &self.parts[after.saturating_sub(1)..];
        parts
            .iter()
            .take_while(move |part| part.start < range.end())
            .filter_map(move |part| {
                let end = part.start.saturating_add(part.volume.size());
                let both = ByteRange::between(part.start, end).intersect(range);
                let inner = ByteRange::between(
                    both.start().saturating_sub(part.start),
                    both.end().saturating_sub(part.start),
                );
                (!both.is_empty()).then_some((&part.volume, inner, both.start()))
            })
    }

    fn writers(&self) -> impl Iterator<Item = Result<crate::VolumeWriter<'_>>> {
        self.parts.iter().map(|part| part.volume.need_writer())
    }
}

impl Device for Joined {
    fn name(&self) -> &str {
        self.parts.first().map_or("", |part| part.volume.name())
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn parts(&self) -> Option<usize> {
        Some(self.parts.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut rest = buf;
        for (volume, inner, _) in self.covering(range) {
            // At most the length of buf.
            let (now, later) = rest.split_at_mut(inner.len() as usize);
            volume.read_at(now, inner.start())?;
            rest = later;
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        for (volume, inner, at) in self.covering(range) {
            volume.extents_placed(inner, at, out)?;
            if out.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        let all = self.parts.iter().all(|part| part.volume.writer().is_some());
        let writer: &dyn Writer = self;
        all.then_some(writer)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let mut hints = Hints::new();
        for (volume, inner, _) in ranges.iter().flat_map(|range| self.covering(*range)) {
            hints.add(volume, inner);
        }
        hints.send();
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        self.covering(range)
            .map(|(volume, inner, _)| volume.stored(inner))
            .sum()
    }

    fn source_identity(&self) -> Option<String> {
        let parts = self.parts.iter().map(|part| part.volume.source_identity());
        Some(joined_identity(&parts.collect::<Option<Vec<_>>>()?))
    }

    /// All parts are closed; the first failure is told.
    fn close(&self) -> Result<()> {
        let results: Vec<_> = self.parts.iter().map(|part| part.volume.close()).collect();
        results.into_iter().collect()
    }
}

impl Writer for Joined {
    fn features(&self) -> WriteFeatures {
        let mut all = WriteFeatures {
            fua: true,
            zero: true,
            trim: true,
        };
        for writer in self.writers().flatten() {
            let own = writer.features();
            all.fua &= own.fua;
            all.zero &= own.zero;
            all.trim &= own.trim;
        }
        all
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut rest = buf;
        for (volume, inner, _) in self.covering(range) {
            let (now, later) = rest.split_at(inner.len() as usize);
            volume.need_writer()?.write_at(now, inner.start(), fua)?;
            rest = later;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        for writer in self.writers() {
            writer?.flush()?;
        }
        Ok(())
    }

    /// What is declined must be left as it was, so a quick one is within one part.
    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        if opts.fast_only && self.covering(range).count() > 1 {
            return Ok(Done::Declined);
        }
        for (volume, inner, _) in self.covering(range) {
            if volume.need_writer()?.zero(inner, opts)? == Done::Declined {
                return Ok(Done::Declined);
            }
        }
        Ok(Done::Yes)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        for (volume, inner, _) in self.covering(range) {
            volume.need_writer()?.trim(inner, fua)?;
        }
        Ok(())
    }
}

/// As [`Device::source_identity`] of parts that have these.
pub(super) fn joined_identity(parts: &[String]) -> String {
    format!("split\n{}", parts.join("\nthen\n"))
}
