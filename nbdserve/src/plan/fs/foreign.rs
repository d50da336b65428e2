//! The file systems of others, and those of discs.

use super::{BEHIND, DISC, FIRST, Found, serial, text, uuid};
use crate::bytes::{array, has, le16, le32, le64, slice};
use crate::layer::Sample;
use crate::layer::partition::is_fat;

pub(super) fn probe(sample: &Sample<'_>) -> Option<Found> {
    let head = sample.head;
    disc(head)
        .or_else(|| named_boot_sector(head))
        .or_else(|| fat(head))
        .or_else(|| apfs(head))
        .or_else(|| hfs(head))
}

/// The volume descriptors from 32 KiB on: ISO 9660 (ECMA-119, 8), UDF (ECMA-167, 2/8 and 2/9).
fn disc(head: &[u8]) -> Option<Found> {
    const START: usize = 32768;
    const DESCRIPTOR: usize = 2048;
    let descriptors = head.get(START..)?;
    let mut iso = None;
    for (number, descriptor) in descriptors.chunks_exact(DESCRIPTOR).enumerate() {
        let at = number.saturating_mul(DESCRIPTOR).saturating_add(START);
        let magic: [u8; 5] = array(descriptor, 1)?;
        match &magic {
            // Primary, version 1.
            b"CD001" => {
                if iso.is_none() && has(descriptor, 0, &[1]) && has(descriptor, 6, &[1]) {
                    iso = Some((descriptor, at));
                }
            }
            b"BEA01" | b"BOOT2" | b"CDW02" | b"TEA01" => {}
            b"NSR02" | b"NSR03" => {
                let at = at.saturating_add(1);
                return Some(Found::file_system("udf", DISC, &magic, at));
            }
            _ => break,
        }
    }
    let (descriptor, at) = iso?;
    let found = Found::file_system("iso9660", DISC, b"CD001", at.saturating_add(1));
    Some(
        found
            .label(text(descriptor, 40, 32))
            .uuid(iso_uuid(descriptor)),
    )
}

/// The time of the last change, or else of making, as blkid(8) writes it.
fn iso_uuid(descriptor: &[u8]) -> Option<String> {
    let date = |at| {
        let digits = slice(descriptor, at, 16)?;
        let is_date = digits.iter().all(u8::is_ascii_digit) && digits.iter().any(|&d| d != b'0');
        let text = std::str::from_utf8(digits).ok().filter(|_| is_date)?;
        let (year, mut rest) = text.split_at_checked(4)?;
        let mut out = year.to_owned();
        while let Some((pair, more)) = rest.split_at_checked(2) {
            out.push('-');
            out.push_str(pair);
            if more.is_empty() {
                break;
            }
            rest = more;
        }
        Some(out)
    };
    date(830).or_else(|| date(813))
}

/// Boot sectors with a name at 3: NTFS, exFAT, ReFS, BitLocker.
fn named_boot_sector(head: &[u8]) -> Option<Found> {
    let found = |name: &str, magic: &[u8]| Found::file_system(name, FIRST, magic, 3);
    if has(head, 3, b"NTFS    ") {
        let serial = le64(head, 72).filter(|&serial| serial != 0);
        let serial = serial.map(|serial| format!("{serial:016X}"));
        return Some(found("ntfs", b"NTFS    ").uuid(serial));
    }
    if has(head, 3, b"EXFAT   ") {
        return Some(found("exfat", b"EXFAT   ").uuid(serial(head, 100)));
    }
    if has(head, 3, b"ReFS\0\0\0\0") {
        return Some(found("refs", b"ReFS"));
    }
    None
}

/// FAT12, FAT16 and FAT32 (Microsoft's "FAT: General Overview of On-Disk Format" 1.03). The number
/// of clusters alone tells which.
fn fat(head: &[u8]) -> Option<Found> {
    if !is_fat(head) {
        return None;
    }
    let [sectors_per_cluster, ..] = array::<1>(head, 13)?;
    let [fats] = array::<1>(head, 16)?;
    let bytes_per_sector = u64::from(le16(head, 11)?);
    let reserved = u64::from(le16(head, 14)?);
    let root_entries = u64::from(le16(head, 17)?);
    let either = |short: u16, long: u32| match short {
        0 => u64::from(long),
        short => u64::from(short),
    };
    let sectors = either(le16(head, 19)?, le32(head, 32)?);
    let fat_sectors = either(le16(head, 22)?, le32(head, 36)?);
    let root_sectors = root_entries
        .saturating_mul(32)
        .div_ceil(bytes_per_sector.max(1));
    let system = u64::from(fats)
        .saturating_mul(fat_sectors)
        .saturating_add(reserved)
        .saturating_add(root_sectors);
    let clusters = sectors
        .checked_sub(system)?
        .checked_div(u64::from(sectors_per_cluster))?;
    let (detail, extended) = match clusters {
        // FAT32 has no root entries and no short FAT length, whatever the number.
        _ if root_entries == 0 => ("FAT32", 64),
        0..4085 => ("FAT12", 36),
        4085..65525 => ("FAT16", 36),
        _ => ("FAT32", 64),
    };
    // Offsets from the drive number: signature 2, serial 3, label 7.
    let at = |offset: usize| offset.saturating_add(extended);
    let mut found = Found::file_system("vfat", FIRST, &[0x55, 0xaa], 510).detail(detail);
    if has(head, at(2), &[0x29]) || has(head, at(2), &[0x28]) {
        found = found.uuid(serial(head, at(3)));
    }
    if has(head, at(2), &[0x29]) {
        let label = text(head, at(7), 11).filter(|label| label != "NO NAME");
        found = found.label(label);
    }
    Some(found)
}

/// Apple File System Reference, `nx_superblock_t`.
fn apfs(head: &[u8]) -> Option<Found> {
    let magic = b"NXSB";
    has(head, 32, magic).then(|| Found::file_system("apfs", FIRST, magic, 32).uuid(uuid(head, 72)))
}

/// Apple TN1150: `H+` is HFS+, `HX` its case-sensitive brother, `BD` what was before.
fn hfs(head: &[u8]) -> Option<Found> {
    let version = array(head, 1026).map(u16::from_be_bytes)?;
    if (has(head, 1024, b"H+") && version == 4) || (has(head, 1024, b"HX") && version == 5) {
        let magic = slice(head, 1024, 2)?;
        return Some(Found::file_system("hfsplus", BEHIND, magic, 1024));
    }
    // Two letters are little: drAlBlkSiz, the size of an allocation block, is a multiple of 512.
    let block = array(head, 1044).map(u32::from_be_bytes)?;
    let is_hfs = has(head, 1024, b"BD") && block != 0 && block.is_multiple_of(512);
    is_hfs.then(|| Found::file_system("hfs", BEHIND, b"BD", 1024))
}
