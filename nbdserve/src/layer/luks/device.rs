//! The decrypted volume.
//!
//! A sector is encrypted by itself, so a write changes no other sector, and a write that is cut short
//! leaves old sectors and new ones, as on a disk: there is nothing to repair after a crash.

use super::cipher::{self, SectorCipher};
use crate::{
    ByteRange, Device, ExtentFlags, Extents, Geometry, Result, Volume, WriteFeatures, Writer,
};

/// Name of the layer.
pub(super) const NAME: &str = "luks";
/// Numbers of sectors count these, however long the sectors are.
const IV_UNIT: u64 = 512;
/// Bytes that are encrypted at a time before they are written.
const PIECE: usize = 1 << 20;

/// The data of a LUKS image.
#[derive(Debug)]
pub(super) struct Luks {
    pub(super) below: Volume,
    pub(super) cipher: SectorCipher,
    /// Where the data are in `below`: whole sectors.
    pub(super) data: ByteRange,
    /// Number of the first sector.
    pub(super) iv_tweak: u64,
    /// Whether what is no longer needed may be seen from outside.
    pub(super) discards: bool,
}

impl Luks {
    /// The number of the sector at `offset`.
    fn number(&self, offset: u64) -> u64 {
        self.iv_tweak.wrapping_add(offset / IV_UNIT)
    }

    /// Where the byte `offset` lies below: within the data, so within `below`.
    fn at(&self, offset: u64) -> u64 {
        self.data.start().saturating_add(offset)
    }

    fn placed(&self, range: ByteRange) -> ByteRange {
        ByteRange::between(self.at(range.start()), self.at(range.end()))
    }
}

impl Device for Luks {
    fn name(&self) -> &'static str {
        NAME
    }

    fn geometry(&self) -> Geometry {
        let below = self.below.geometry();
        Geometry {
            size: self.data.len(),
            // At most 4096.
            min_block: u32::try_from(self.cipher.sector()).unwrap_or(512),
            ..below
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let number = self.number(offset);
        let preferred = usize::try_from(self.below.geometry().preferred_block);
        if preferred.is_ok_and(|preferred| preferred <= cipher::PIECE) {
            let at = self.at(offset);
            let read = |piece: &mut [u8], from| self.below.read_at(piece, at.saturating_add(from));
            return self.cipher.decrypt_read(buf, number, read);
        }
        // What is below likes long requests.
        self.below.read_at(buf, self.at(offset))?;
        self.cipher.decrypt(buf, number);
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        // A hole below is noise here.
        out.push_until(range.end(), ExtentFlags::DATA);
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        self.below.writer().is_some().then_some(self)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let placed = ranges.iter().map(|range| self.placed(*range));
        self.below.will_need_parts(&placed.collect::<Vec<_>>());
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        // What was never written has no place below.
        self.below.stored(self.placed(range))
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}

impl Writer for Luks {
    fn features(&self) -> WriteFeatures {
        let below = self.below.writer().map(|below| below.features());
        let below = below.unwrap_or_default();
        WriteFeatures {
            fua: below.fua,
            // Zeroes must be encrypted.
            zero: false,
            trim: below.trim && self.discards,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        let below = self.below.need_writer()?;
        let mut piece = Vec::with_capacity(buf.len().min(PIECE));
        let mut at = offset;
        for plain in buf.chunks(PIECE) {
            piece.clear();
            piece.extend_from_slice(plain);
            self.cipher.encrypt(&mut piece, self.number(at));
            below.write_at(&piece, self.at(at), fua)?;
            // Within the device.
            at = at.saturating_add(u64::try_from(plain.len()).unwrap_or(0));
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.below.need_writer()?.flush()
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        if !self.discards {
            return Ok(());
        }
        self.below.need_writer()?.trim(self.placed(range), fua)
    }
}
