//! The pure parser of master and extended boot records.
//!
//! There is no specification; the layout is that of every PC, the numbering of logical partitions
//! that of Linux (`block/partitions/msdos.c`).

use crate::bytes::{array, has, le16, le32};

/// Type bytes of a partition that holds logical ones.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Type byte of the entry that protects a GPT from tools that know only MBRs.
const PROTECTIVE: u8 = 0xee;

/// One of the four entries of a boot record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) bootable: bool,
    pub(super) kind: u8,
    /// First sector, relative to what the kind of record says.
    pub(super) first: u32,
    /// Sectors; an entry without any is unused.
    pub(super) sectors: u32,
}

impl Entry {
    pub(super) fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    pub(super) fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    pub(super) fn is_protective(&self) -> bool {
        self.kind == PROTECTIVE
    }
}

/// A master boot record, or one of the extended boot records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BootRecord {
    pub(super) disk_id: u32,
    pub(super) entries: [Entry; 4],
}

impl BootRecord {
    /// `None` without the signature `55 aa`, or when a boot indicator is neither 0 nor 0x80: then
    /// the bytes are code or text.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        if !has(sector, 510, &[0x55, 0xaa]) {
            return None;
        }
        let mut entries = [Entry {
            bootable: false,
            kind: 0,
            first: 0,
            sectors: 0,
        }; 4];
        let table: [u8; 64] = array(sector, 446)?;
        for (entry, bytes) in entries.iter_mut().zip(table.as_chunks::<16>().0) {
            let [indicator, _, _, _, kind, ..] = *bytes;
            if indicator & 0x7f != 0 {
                return None;
            }
            *entry = Entry {
                bootable: indicator == 0x80,
                kind,
                first: le32(bytes, 8)?,
                sectors: le32(bytes, 12)?,
            };
        }
        Some(Self {
            disk_id: le32(sector, 440)?,
            entries,
        })
    }

    pub(super) fn used(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_used())
    }

    /// Whether an entry announces a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(Entry::is_protective)
    }
}

/// Whether the first sector is the boot sector of a file system, which carries `55 aa` too and
/// text or code where an MBR has its entries.
pub(super) fn is_file_system(sector: &[u8]) -> bool {
    let names = [
        b"NTFS    ".as_slice(),
        b"EXFAT   ",
        b"ReFS\0\0\0\0",
        b"-FVE-FS-",
    ];
    names.iter().any(|name| has(sector, 3, name)) || is_fat(sector)
}

/// Whether the first sector is that of a FAT file system. It has no reliable name: a jump, sizes
/// and a media byte that all make sense are no MBR, whose code may begin with a jump but does not
/// go on like this.
pub(crate) fn is_fat(sector: &[u8]) -> bool {
    let jump = has(sector, 0, &[0xe9]) || (has(sector, 0, &[0xeb]) && has(sector, 2, &[0x90]));
    let bytes_per_sector = le16(sector, 11).unwrap_or(0);
    let (Some([sectors_per_cluster, reserved_low, reserved_high, fats]), Some([media])) =
        (array(sector, 13), array(sector, 21))
    else {
        return false;
    };
    jump && has(sector, 510, &[0x55, 0xaa])
        && matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
        && sectors_per_cluster.is_power_of_two()
        && (reserved_low, reserved_high) != (0, 0)
        && (1..=2).contains(&fats)
        && (media == 0xf0 || media >= 0xf8)
}

/// What people call an MBR type, with the names that fdisk(8) gives.
pub(super) fn type_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x01 => "FAT12",
        0x04 => "FAT16 <32M",
        0x05 => "Extended",
        0x06 => "FAT16",
        0x07 => "HPFS/NTFS/exFAT",
        0x0b => "W95 FAT32",
        0x0c => "W95 FAT32 (LBA)",
        0x0e => "W95 FAT16 (LBA)",
        0x0f => "W95 Ext'd (LBA)",
        0x11 => "Hidden FAT12",
        0x17 => "Hidden HPFS/NTFS",
        0x1b => "Hidden W95 FAT32",
        0x1c => "Hidden W95 FAT32 (LBA)",
        0x27 => "Hidden NTFS WinRE",
        0x41 => "PPC PReP Boot",
        0x82 => "Linux swap / Solaris",
        0x83 => "Linux",
        0x85 => "Linux extended",
        0x8e => "Linux LVM",
        0xa5 => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa8 => "Darwin UFS",
        0xa9 => "NetBSD",
        0xaf => "HFS / HFS+",
        0xda => "Non-FS data",
        0xea => "Linux extended boot",
        0xee => "GPT",
        0xef => "EFI (FAT-12/16/32)",
        0xfd => "Linux raid autodetect",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdisk_calls_the_types_the_same() {
        let list = crate::testing::tools::run("sfdisk", ["--label", "dos", "-T"]);
        let mut seen = 0;
        for kind in 0..=u8::MAX {
            let Some(name) = type_name(kind) else {
                continue;
            };
            let mine = format!("{kind:x} ");
            let line = list
                .lines()
                .find(|line| line.trim_start().starts_with(&mine));
            if let Some(line) = line {
                let theirs = line.trim_start().split_at(mine.len()).1.trim();
                assert_eq!(theirs, name, "{kind:#04x}");
                seen += 1;
            }
        }
        assert!(seen > 20, "only {seen} types were compared");
    }
}
