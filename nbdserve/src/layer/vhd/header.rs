//! Pure parsers of the parts of a VHD (Virtual Hard Disk Image Format Specification 1.0): bytes in,
//! values that hold the format's rules out. All numbers are big-endian.

use crate::bytes::{array, be16, be32, be64, has, slice};
use crate::layer::cut::cut_off;
use crate::{Error, Kind, Result};

/// Bytes of the footer, and of its copy at the start.
pub(super) const FOOTER: u64 = 512;
/// Bytes of the dynamic disk header.
pub(super) const DYNAMIC: u64 = 1024;
/// How a footer begins.
pub(super) const COOKIE: &[u8] = b"conectix";
/// How a dynamic disk header begins.
const DYNAMIC_COOKIE: &[u8] = b"cxsparse";
/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// The only version of both structures: 1.0.
const VERSION: u32 = 0x0001_0000;
/// Cylinders, heads and sectors that stand for "as many as there can be".
const LARGEST: (u16, u8, u8) = (65535, 16, 255);
/// Most bytes of a path of the parent.
const LONGEST_PATH: u32 = 4096;
/// Where the parent's name and its locators are in the dynamic disk header.
const PARENT_NAME: usize = 0x40;
const LOCATORS: usize = 0x240;

/// What sort of disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskType {
    /// All of it, as it is.
    Fixed,
    /// Blocks, those that were written.
    Dynamic,
    /// Sectors, those that were written since the parent was left alone.
    Differencing,
}

/// The footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Where the dynamic disk header lies.
    pub(super) data_offset: u64,
    /// Bytes of the disk: a multiple of 512.
    pub(super) size: u64,
    pub(super) disk_type: DiskType,
    pub(super) unique_id: [u8; 16],
}

/// A place where a path of the parent lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    /// The path starts in the folder of this file.
    pub(super) relative: bool,
    pub(super) at: u64,
    pub(super) len: u32,
}

/// The dynamic disk header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dynamic {
    /// Where the block allocation table lies.
    pub(super) table_offset: u64,
    /// Bytes of a block: a power of two, at least 512.
    pub(super) block_size: u64,
    /// Identifies the parent.
    pub(super) parent_id: [u8; 16],
    /// What the parent was called.
    pub(super) parent_name: String,
    /// Where its paths are; the relative ones first.
    pub(super) locators: Vec<Locator>,
}

impl Dynamic {
    /// Bytes of the bitmap before each block: whole sectors.
    pub(super) fn bitmap_len(&self) -> u64 {
        let bits = self.block_size.div_ceil(SECTOR);
        bits.div_ceil(8).next_multiple_of(SECTOR)
    }
}

fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// The ones' complement of the sum of all bytes but those of the checksum itself.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at.saturating_add(4);
    let counted = bytes.iter().enumerate().filter(|(at, _)| !own.contains(at));
    !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// Whether a footer with the right checksum stands at the start of `bytes`.
pub(super) fn is_footer(bytes: &[u8]) -> bool {
    let footer = usize::try_from(FOOTER)
        .ok()
        .and_then(|len| slice(bytes, 0, len));
    footer.is_some_and(|footer| {
        has(footer, 0, COOKIE) && be32(footer, 0x40) == Some(checksum(footer, 0x40))
    })
}

/// How many bytes of the cookie must be there for a footer to be taken for a damaged one.
const NEARLY: usize = 6;

/// What is wrong with the footer at the end of `bytes`, where there is one that is damaged: its cookie is
/// there, or most of it and the version.
pub(super) fn damage(bytes: &[u8]) -> Option<Error> {
    let at = bytes.len().checked_sub(usize::try_from(FOOTER).ok()?)?;
    let end = bytes.get(at..)?;
    let same = end.iter().zip(COOKIE).filter(|(byte, own)| byte == own);
    let is_one = match same.count() {
        count if count == COOKIE.len() => true,
        count => count >= NEARLY && be32(end, 0xc) == Some(VERSION),
    };
    if !is_one || is_footer(end) {
        return None;
    }
    let damaged = || corrupt("its mark \"conectix\" is damaged".to_owned());
    Some(match footer(end) {
        Err(error) if error.kind() == Kind::Corrupt => error,
        _ => damaged(),
    })
}

/// The footer in `bytes`.
///
/// # Errors
/// `NotThisFormat` without the cookie; `Unsupported` for another version or type; `Corrupt`, also for
/// a wrong checksum.
pub(super) fn footer(bytes: &[u8]) -> Result<Footer> {
    if !has(bytes, 0, COOKIE) {
        let what = "the mark \"conectix\" is neither at the end nor at the start";
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    let cut = || cut_off(format!("the file ends within a footer of {FOOTER} bytes"));
    let footer = usize::try_from(FOOTER)
        .ok()
        .and_then(|len| slice(bytes, 0, len));
    let bytes = footer.ok_or_else(cut)?;
    let word = |at| be32(bytes, at).ok_or_else(cut);
    let (stored, sum) = (word(0x40)?, checksum(bytes, 0x40));
    if stored != sum {
        let what = format!("the checksum of the footer is {sum:08x}, {stored:08x} is stored");
        return Err(corrupt(what));
    }
    let version = word(0xc)?;
    if version >> 16 != 1 {
        let (major, minor) = (version >> 16, version & 0xffff);
        let what = format!("version {major}.{minor} of the format, only 1.0 is known");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let disk_type = match word(0x3c)? {
        2 => DiskType::Fixed,
        3 => DiskType::Dynamic,
        4 => DiskType::Differencing,
        other => {
            let what = format!("a disk of type {other}, which is none that the format defines");
            return Err(Error::new(Kind::Unsupported, what));
        }
    };
    Ok(Footer {
        data_offset: be64(bytes, 0x10).ok_or_else(cut)?,
        size: size(bytes).ok_or_else(cut)?,
        disk_type,
        unique_id: array(bytes, 0x44).ok_or_else(cut)?,
    })
}

/// The size of the disk that the footer `bytes` stands for. Virtual PC, and qemu when it makes images
/// for it, show the guest the product of cylinders, heads and sectors, as far as that can say it; all
/// others show the size that is stored.
fn size(bytes: &[u8]) -> Option<u64> {
    let creator: [u8; 4] = array(bytes, 0x1c)?;
    let current = be64(bytes, 0x30)?;
    let [heads, sectors] = array(bytes, 0x3a)?;
    let geometry = (be16(bytes, 0x38)?, heads, sectors);
    let stored = current.checked_div(SECTOR)?.saturating_mul(SECTOR);
    let chs = u64::from(geometry.0)
        .saturating_mul(u64::from(heads))
        .saturating_mul(u64::from(sectors))
        .saturating_mul(SECTOR);
    let by_geometry = matches!(&creator, b"vpc " | b"qemu") && geometry != LARGEST && chs > 0;
    Some(if by_geometry { chs } else { stored })
}

/// The dynamic disk header in `bytes`, of a disk of `size` bytes.
///
/// # Errors
/// `Unsupported` for another version; `Corrupt`.
pub(super) fn dynamic(bytes: &[u8], size: u64) -> Result<Dynamic> {
    let cut = || {
        cut_off(format!(
            "the file ends within the dynamic disk header of {DYNAMIC} bytes"
        ))
    };
    let header = usize::try_from(DYNAMIC)
        .ok()
        .and_then(|len| slice(bytes, 0, len));
    let bytes = header.ok_or_else(cut)?;
    if !has(bytes, 0, DYNAMIC_COOKIE) {
        let what = "the mark \"cxsparse\" of the dynamic disk header is not there";
        return Err(corrupt(what.to_owned()));
    }
    let word = |at| be32(bytes, at).ok_or_else(cut);
    let (stored, sum) = (word(0x24)?, checksum(bytes, 0x24));
    if stored != sum {
        let what =
            format!("the checksum of the dynamic disk header is {sum:08x}, {stored:08x} is stored");
        return Err(corrupt(what));
    }
    let version = word(0x18)?;
    if version >> 16 != VERSION >> 16 {
        let (major, minor) = (version >> 16, version & 0xffff);
        let what = format!("version {major}.{minor} of the dynamic disk header, only 1.0 is known");
        return Err(Error::new(Kind::Unsupported, what));
    }
    let block_size = u64::from(word(0x20)?);
    if !block_size.is_power_of_two() || block_size < SECTOR {
        let what = format!("blocks of {block_size} bytes, no power of two from 512 on");
        return Err(corrupt(what));
    }
    let (entries, needed) = (u64::from(word(0x1c)?), size.div_ceil(block_size));
    if entries < needed {
        let what = format!(
            "{entries} blocks of {block_size} bytes for a disk of {size}, which takes {needed}"
        );
        return Err(corrupt(what));
    }
    let mut locators = Vec::new();
    for at in (LOCATORS..).step_by(24).take(8) {
        let code: [u8; 4] = array(bytes, at).ok_or_else(cut)?;
        let relative = match &code {
            b"W2ru" => true,
            b"W2ku" => false,
            _ => continue,
        };
        let len = word(at.saturating_add(8))?;
        if len > LONGEST_PATH {
            return Err(corrupt(format!("a path of the parent of {len} bytes")));
        }
        locators.push(Locator {
            relative,
            at: be64(bytes, at.saturating_add(16)).ok_or_else(cut)?,
            len,
        });
    }
    locators.sort_by_key(|locator| !locator.relative);
    Ok(Dynamic {
        table_offset: be64(bytes, 0x10).ok_or_else(cut)?,
        block_size,
        parent_id: array(bytes, 0x28).ok_or_else(cut)?,
        parent_name: utf16(
            slice(bytes, PARENT_NAME, 512).ok_or_else(cut)?,
            u16::from_be_bytes,
        ),
        locators,
    })
}

/// Text in UTF-16, up to the first zero.
pub(super) fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).filter_map(|pair| array(pair, 0));
    let units: Vec<u16> = units.map(unit).take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_footer_is_told_from_a_sound_one_and_from_none() {
        let mut sound = vec![0; 600];
        sound[88..96].copy_from_slice(COOKIE);
        sound[100..104].copy_from_slice(&VERSION.to_be_bytes());
        let sum = checksum(&sound[88..], 0x40);
        sound[152..156].copy_from_slice(&sum.to_be_bytes());
        assert!(is_footer(&sound[88..]) && damage(&sound).is_none());
        let with = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            damage(&bytes).map(|error| error.to_string())
        };
        assert!(with(599, 1).unwrap().contains("checksum"));
        // Another version matters only where the mark is damaged too.
        assert!(with(101, 9).unwrap().contains("checksum"));
        assert!(with(88, b'X').unwrap().contains("mark"));
        let mut bytes = sound.clone();
        bytes[88..91].fill(0);
        assert!(damage(&bytes).is_none());
        bytes[88..96].copy_from_slice(b"connects");
        bytes[101] = 9;
        assert!(damage(&bytes).is_none());
        assert!(damage(&sound[..599]).is_none() && damage(&sound[300..]).is_none());
        assert!(damage(&[0; 512]).is_none());
    }

    #[test]
    fn text_ends_at_a_zero() {
        assert_eq!(utf16(b"a\0b\0\0\0c\0", u16::from_le_bytes), "ab");
        assert_eq!(utf16(b"\0a\0b", u16::from_be_bytes), "ab");
        assert_eq!(utf16(b"\0", u16::from_be_bytes), "");
    }
}
