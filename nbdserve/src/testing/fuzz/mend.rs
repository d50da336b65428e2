//! Makes checksums right again after a mutation, so that it reaches the code behind them.

use crate::sys::lzma::crc32;

/// Bytes of an xz Stream Header and of a Stream Footer.
const XZ_EDGE: usize = 12;
/// More blocks than this are left as they are.
const XZ_BLOCKS: usize = 64;

/// Puts the CRC32 of `bytes[from..to]` at `at`; nothing where that is outside.
fn put_crc(bytes: &mut [u8], from: usize, to: usize, at: usize) -> Option<()> {
    let crc = crc32(bytes.get(from..to)?, 0).to_le_bytes();
    bytes.get_mut(at..at.checked_add(4)?)?.copy_from_slice(&crc);
    Some(())
}

fn le32(bytes: &[u8], at: usize) -> Option<usize> {
    let part = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(part.try_into().ok()?)).ok()
}

fn le64(bytes: &[u8], at: usize) -> Option<usize> {
    let part = bytes.get(at..at.checked_add(8)?)?;
    usize::try_from(u64::from_le_bytes(part.try_into().ok()?)).ok()
}

/// An .xz file of one stream: its header, footer, index and block headers. What does not look like
/// one stays as it is.
pub(super) fn xz(file: &mut [u8]) -> Option<()> {
    put_crc(file, 6, 8, 8)?;
    let footer = file.len().checked_sub(XZ_EDGE)?;
    put_crc(file, footer + 4, footer + 10, footer)?;
    let index_size = le32(file, footer + 4)?.checked_add(1)?.checked_mul(4)?;
    let index = footer.checked_sub(index_size)?;
    put_crc(file, index, footer - 4, footer - 4)?;
    for at in xz_blocks(file, index)? {
        let first = usize::from(*file.get(at)?);
        let size = (first + 1) * 4;
        put_crc(file, at, at + size - 4, at + size - 4)?;
    }
    Some(())
}

/// Where the Index at `index` says that blocks begin.
fn xz_blocks(file: &[u8], index: usize) -> Option<Vec<usize>> {
    let mut rest = file.get(index.checked_add(1)?..)?;
    let count = vli(&mut rest)?.min(XZ_BLOCKS);
    let mut at = XZ_EDGE;
    let mut blocks = Vec::new();
    for _ in 0..count {
        let (Some(unpadded), Some(_)) = (vli(&mut rest), vli(&mut rest)) else {
            break;
        };
        blocks.push(at);
        at = at.checked_add(unpadded.checked_next_multiple_of(4)?)?;
    }
    Some(blocks)
}

fn vli(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(value).ok();
        }
    }
    None
}

/// A tar archive: the checksum of each header, as far as the sizes lead from one to the next.
pub(super) fn tar(file: &mut [u8]) {
    let mut at = 0_usize;
    while let Some(header) = file.get_mut(at..).and_then(|rest| rest.get_mut(..512)) {
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = String::from_utf8_lossy(&header[124..135]).into_owned();
        let size = usize::from_str_radix(digits.trim(), 8).unwrap_or(0);
        let body = size.checked_next_multiple_of(512);
        let Some(next) = body.and_then(|body| at.checked_add(512)?.checked_add(body)) else {
            return;
        };
        at = next;
    }
}

/// A GPT disk: the entries' and the header's checksum of both copies, for both sector sizes.
pub(super) fn gpt(disk: &mut [u8]) {
    for sector in [512, 4096] {
        let last = disk.len().saturating_sub(sector);
        for at in [sector, last] {
            // What is not there has no checksum.
            let _ = gpt_copy(disk, at, sector);
        }
    }
}

fn gpt_copy(disk: &mut [u8], at: usize, sector: usize) -> Option<()> {
    if !disk.get(at..)?.starts_with(b"EFI PART") {
        return None;
    }
    let entries = le64(disk, at + 72)?.checked_mul(sector)?;
    let len = le32(disk, at + 80)?.checked_mul(le32(disk, at + 84)?)?;
    if let Some(end) = entries.checked_add(len) {
        let _ = put_crc(disk, entries, end, at + 88);
    }
    let header = le32(disk, at + 12)?;
    disk.get_mut(at + 16..at + 20)?.fill(0);
    put_crc(disk, at, at.checked_add(header)?, at + 16)
}

/// Physical volumes of LVM2, wherever a sector begins like a label: its checksum, and those of the
/// metadata areas that it names and of their texts.
pub(super) fn lvm(image: &mut [u8]) {
    for at in (0..image.len()).step_by(512) {
        if image
            .get(at..)
            .is_some_and(|rest| rest.starts_with(b"LABELONE"))
        {
            // What is not there has no checksum.
            let _ = lvm_label(image, at);
        }
    }
}

fn lvm_label(image: &mut [u8], at: usize) -> Option<()> {
    let number = le64(image, at + 8)?.min(3);
    put_lvm(image, at + 20, at + 512, at + 16)?;
    let start = at.checked_sub(number.checked_mul(512)?)?;
    // The identifier, the size, a list of data areas and one of metadata areas.
    let mut next = at.checked_add(le32(image, at + 20)?)?.checked_add(40)?;
    let mut lists = 0;
    while lists < 2 && next < at + 512 {
        let offset = le64(image, next)?;
        next += 16;
        if offset == 0 {
            lists += 1;
        } else if lists == 1 {
            let _ = lvm_area(image, start.checked_add(offset)?);
        }
    }
    Some(())
}

fn lvm_area(image: &mut [u8], at: usize) -> Option<()> {
    let (size, offset, len) = (
        le64(image, at + 32)?,
        le64(image, at + 40)?,
        le64(image, at + 48)?,
    );
    let area = image.get(at..at.checked_add(size)?)?;
    let rest = area.get(512..)?;
    if len <= rest.len() {
        let text: Vec<u8> = area
            .get(offset..)?
            .iter()
            .chain(rest)
            .take(len)
            .copied()
            .collect();
        let sum = lvm_sum(&text).to_le_bytes();
        image.get_mut(at + 56..at + 60)?.copy_from_slice(&sum);
    }
    put_lvm(image, at + 4, at + 512, at)
}

fn lvm_sum(bytes: &[u8]) -> u32 {
    crate::layer::lvm::header::checksum(bytes)
}

fn put_lvm(bytes: &mut [u8], from: usize, to: usize, at: usize) -> Option<()> {
    let sum = lvm_sum(bytes.get(from..to)?).to_le_bytes();
    bytes.get_mut(at..at.checked_add(4)?)?.copy_from_slice(&sum);
    Some(())
}

/// Superblocks of MD, wherever a sector begins like one.
pub(super) fn raid(image: &mut [u8]) {
    for at in (0..image.len()).step_by(512) {
        if let Some(rest) = image.get_mut(at..) {
            md_superblock(rest);
        }
    }
}

/// The superblock of MD at the start of `bytes`, if there is one.
pub(super) fn md_superblock(bytes: &mut [u8]) {
    if !bytes.starts_with(&0xa92b_4efc_u32.to_le_bytes()) {
        return;
    }
    let (sum, at) = match le32(bytes, 4) {
        Some(0) => (crate::layer::raid::header::old_sum(bytes), 152),
        Some(1) => {
            let roles = le32(bytes, 220).unwrap_or(0);
            (crate::layer::raid::header::new_sum(bytes, roles), 216)
        }
        _ => return,
    };
    if let (Some(sum), Some(place)) = (sum, bytes.get_mut(at..at + 4)) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}
