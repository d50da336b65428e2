//! Compressed grains: each is a zlib stream of its own behind a marker.

use std::sync::Arc;

use super::disk::Disk;
use super::header::{self, MARKER, SECTOR};
use super::sparse::{Grain, Sparse};
use crate::bytes::{array, slice};
use crate::cache::{Decode, Job};
use crate::layer::cut::cut_off;
use crate::sys::zlib::{Inflate, Place, Stop, adler32};
use crate::{Error, Kind, Result};

/// Bits of a block's number that are the grain's, the others are the extent's.
const GRAIN_BITS: u32 = 48;
/// Bytes before and behind the deflate data of a zlib stream.
const ZLIB_HEADER: usize = 2;
const ZLIB_TRAILER: usize = 4;

/// The number of a grain of an extent.
pub(super) fn number(extent: usize, grain: u64) -> u64 {
    let extent = u64::try_from(extent).unwrap_or(u64::MAX);
    extent << GRAIN_BITS | grain
}

/// Extent and grain of a number.
fn parts(number: u64) -> (usize, u64) {
    let extent = usize::try_from(number >> GRAIN_BITS).unwrap_or(usize::MAX);
    (extent, number & ((1 << GRAIN_BITS) - 1))
}

/// Decodes grains of a disk.
#[derive(Debug)]
pub(super) struct Grains(pub(super) Arc<Disk>);

/// A grain: its extent, where that begins in the disk, where it begins in the extent.
struct Target<'a> {
    sparse: &'a Sparse,
    start: u64,
    grain: u64,
    offset: u64,
}

impl Grains {
    fn target(&self, number: u64) -> Option<Target<'_>> {
        let (extent, grain) = parts(number);
        let (start, sparse) = self.0.sparse(extent)?;
        let offset = grain.checked_mul(sparse.header.grain)?;
        Some(Target {
            sparse,
            start,
            grain,
            offset,
        })
    }
}

impl Target<'_> {
    /// The grain at the end of an extent may be cut.
    fn len(&self) -> u64 {
        let header = &self.sparse.header;
        header
            .grain
            .min(header.capacity.saturating_sub(self.offset))
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::new(Kind::Corrupt, format!("grain {}: {what}", self.grain))
    }

    /// The compressed bytes of the grain.
    fn read(&self, job: &Job<'_>) -> Result<Vec<u8>> {
        let header = &self.sparse.header;
        let file = self.sparse.file();
        let (found, _) = self
            .sparse
            .grains(self.offset, self.offset.saturating_add(1))?;
        let Grain::At(at) = found else {
            return Err(self.corrupt("it is not there any more"));
        };
        let left = file.size().saturating_sub(at);
        // Deflate makes nothing longer by more than this, and a marker and the rest of a sector.
        let most = header
            .grain
            .saturating_add(header.grain / 64)
            .saturating_add(2 * SECTOR);
        let guess = self.sparse.distance(self.offset, at).unwrap_or(most);
        let guess = guess.min(most).max(SECTOR).min(left);
        job.beat()?;
        let mut bytes = file.read_vec(at.min(file.size()), usize::try_from(guess).unwrap_or(0))?;
        let Some((sector, size)) = header::marker(&bytes) else {
            let size = file.size();
            let what = format!("it lies at {at}, the file has {size} bytes");
            return Err(cut_off(format!("grain {}: {what}", self.grain)));
        };
        if sector.checked_mul(SECTOR) != Some(self.offset) {
            let own = self.offset / SECTOR;
            let what = format!("the marker at {at} is that of sector {sector}, not {own}");
            return Err(self.corrupt(&what));
        }
        let end = MARKER.saturating_add(size);
        if size == 0 || end > most.max(SECTOR) {
            let what = format!("{size} compressed bytes at {at}, which cannot be");
            return Err(self.corrupt(&what));
        }
        if end > left {
            let what = format!("{size} compressed bytes at {at}, of which {left} are there");
            return Err(cut_off(format!("grain {}: {what}", self.grain)));
        }
        let have = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if end > have {
            let missing = usize::try_from(end.saturating_sub(have)).unwrap_or(0);
            bytes.extend(file.read_vec(at.saturating_add(have), missing)?);
        }
        bytes.truncate(usize::try_from(end).unwrap_or(0));
        Ok(bytes)
    }

    /// Decodes `packed`, a marker and a zlib stream.
    fn decode(&self, packed: &[u8], inflate: &mut Inflate, job: &mut Job<'_>) -> Result<()> {
        let marker = usize::try_from(MARKER).unwrap_or(0);
        let stream = packed.get(marker..).unwrap_or(&[]);
        let [first, second] = array(stream, 0).ok_or_else(|| self.corrupt("it is cut short"))?;
        let check = u16::from_be_bytes([first, second]);
        if first & 0xf != 8 || check % 31 != 0 || second & 0x20 != 0 {
            return Err(self.corrupt(&format!("{check:04x} is no header of a zlib stream")));
        }
        let mut input = stream.get(ZLIB_HEADER..).unwrap_or(&[]);
        let failed = |failure| self.corrupt("it cannot be decoded").caused_by(failure);
        inflate.reset().map_err(failed)?;
        // The checksum is of what is decoded, which does not stay in one piece.
        let mut all = Vec::new();
        let grain = usize::try_from(self.sparse.header.grain).unwrap_or(0);
        all.resize(grain, 0);
        let mut done = 0;
        let ended = loop {
            let room = all.get_mut(done..).unwrap_or(&mut []);
            let step = inflate.step(input, room, Stop::Never);
            done = done.saturating_add(step.written);
            input = input.get(step.read..).unwrap_or(&[]);
            match step.place.map_err(failed)? {
                Place::End => break true,
                _ if step.read == 0 && step.written == 0 => break false,
                _ => {}
            }
        };
        if !ended {
            let what = match done == grain {
                true => format!("it decodes to more than the {grain} bytes of a grain"),
                false => format!("its data ends after {done} bytes"),
            };
            return Err(self.corrupt(&what));
        }
        let len = usize::try_from(self.len()).unwrap_or(0);
        if done < len {
            let what = format!("it decodes to {done} bytes, not {len}");
            return Err(self.corrupt(&what));
        }
        let trailer = slice(input, 0, ZLIB_TRAILER).and_then(|bytes| array(bytes, 0));
        let stored = trailer.map(u32::from_be_bytes);
        let sum = adler32(all.get(..done).unwrap_or(&[]));
        if stored != Some(sum) {
            return Err(self.corrupt(&format!("its checksum is not {sum:08x}")));
        }
        let mut rest = all.get(..len).unwrap_or(&[]);
        while !rest.is_empty() {
            let spare = job.spare()?;
            let (now, later) = rest.split_at(spare.len().min(rest.len()));
            if now.is_empty() {
                break;
            }
            if let Some(spare) = spare.get_mut(..now.len()) {
                spare.copy_from_slice(now);
            }
            job.advance(now.len())?;
            rest = later;
        }
        Ok(())
    }
}

impl Decode for Grains {
    fn len(&self, number: u64) -> u64 {
        self.target(number).map_or(0, |target| target.len())
    }

    fn offset(&self, number: u64) -> u64 {
        let target = self.target(number);
        target.map_or(0, |target| target.start.saturating_add(target.offset))
    }

    fn describe(&self, number: u64) -> String {
        let (_, grain) = parts(number);
        format!("grain {grain}")
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let Some(target) = self.target(number) else {
            let what = format!("there is no grain {number}");
            return Err(Error::new(Kind::Corrupt, what));
        };
        // What is read and what is decoded, each once.
        let buffers = target.sparse.header.grain.saturating_mul(3);
        if !job.start(Inflate::MEMORY.saturating_add(buffers))? {
            return Ok(());
        }
        let packed = target.read(job)?;
        let spare = job.take_spare_decoder::<Inflate>();
        let mut inflate = match spare {
            Some(spare) => spare,
            None => Box::new(Inflate::new().map_err(|failure| {
                Error::new(Kind::Limit, "no memory for a decoder").caused_by(failure)
            })?),
        };
        target.decode(&packed, &mut inflate, job)?;
        job.leave_decoder(inflate);
        Ok(())
    }
}
