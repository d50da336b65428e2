//! Tables of GPT that lie or are damaged.

use nbdserve::layer::partition::{open_partition, read_table};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, StrictDisk};
use nbdserve::{Access, Kind};

use crate::made::{Disk, GPT, SECTORS, sector, sectors, table_of};
use crate::tables::confidence;

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// Makes the checksums of the table with a header in sector `lba` right again.
pub(crate) fn seal(image: &mut [u8], lba: u64) {
    let header = sector(lba);
    let entries = u64::from_le_bytes(image[header + 72..header + 80].try_into().unwrap());
    let count = u32::from_le_bytes(image[header + 80..header + 84].try_into().unwrap());
    let len = u32::from_le_bytes(image[header + 84..header + 88].try_into().unwrap());
    let range = usize::try_from(entries)
        .ok()
        .and_then(|lba| lba.checked_mul(512))
        .and_then(|at| Some(at..at.checked_add(count.checked_mul(len)? as usize)?));
    if let Some(entries) = range.and_then(|range| image.get(range)) {
        let crc = crc32(entries);
        image[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
    }
    image[header + 16..header + 20].fill(0);
    let crc = crc32(&image[header..header + 92]);
    image[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
}

/// The image with `change` made to both headers, and all checksums right.
fn with_headers(image: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut image = image.to_vec();
    for lba in [1, SECTORS - 1] {
        change(&mut image[sector(lba)..sector(lba + 1)]);
        seal(&mut image, lba);
    }
    image
}

/// The image with entry `index` of the primary table changed, and the checksums right.
fn with_entry(image: &[u8], index: usize, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut image = image.to_vec();
    let at = sector(2) + index * 128;
    change(&mut image[at..at + 128]);
    seal(&mut image, 1);
    image
}

#[test]
fn a_damaged_primary_gpt_is_replaced_by_the_backup() {
    let disk = Disk::new(SECTORS, GPT);
    let good = disk.bytes();
    let expected = table_of(&good).unwrap();
    let damages: [(&str, usize); 3] = [
        ("signature", sector(1)),
        ("checksum", sector(1) + 60),
        ("partition entries", sector(2) + 56),
    ];
    for (text, at) in damages {
        let mut image = good.clone();
        image[at] ^= 1;
        let table = table_of(&image).unwrap();
        assert_eq!(table.partitions, expected.partitions);
        let note = &table.notes[0];
        assert!(
            note.contains("primary table is damaged") && note.contains(text),
            "{note}"
        );
        assert!(confidence(&image).is_some());
    }
    // Damage to the backup is said, and does no harm.
    let mut image = good.clone();
    image[sector(SECTORS - 1) + 60] ^= 1;
    let table = table_of(&image).unwrap();
    assert_eq!(table.partitions, expected.partitions);
    assert!(
        table.notes[0].contains("backup table is damaged"),
        "{:?}",
        table.notes
    );
}

#[test]
fn two_damaged_gpts_are_corrupt_and_both_are_named() {
    let mut image = Disk::new(SECTORS, GPT).bytes();
    image[sector(1) + 60] ^= 1;
    image[sector(SECTORS - 1) + 60] ^= 1;
    let error = table_of(&image).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let text = error.to_string();
    assert!(text.contains("header in sector 1 has checksum"), "{text}");
    assert!(
        text.contains("header in sector 2047 has checksum"),
        "{text}"
    );
}

#[test]
fn headers_that_claim_too_much_are_refused_before_memory_is_taken() {
    let good = Disk::new(SECTORS, GPT).bytes();
    let put32 = |at: usize, value: u32| {
        move |header: &mut [u8]| header[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    for count in [u32::MAX, 1 << 20, 8193] {
        let error = table_of(&with_headers(&good, put32(80, count))).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit, "{error}");
        assert!(error.to_string().contains(&count.to_string()), "{error}");
    }
    for entry in [0, 1, 127, 129, 192, 8192, u32::MAX] {
        let error = table_of(&with_headers(&good, put32(84, entry))).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }
    for lba in [u64::MAX, u64::MAX / 512, SECTORS, SECTORS - 1] {
        let image = with_headers(&good, |header| {
            header[72..80].copy_from_slice(&lba.to_le_bytes());
        });
        let error = table_of(&image).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }
    let revision = with_headers(&good, put32(8, 0x0002_0000));
    assert_eq!(table_of(&revision).unwrap_err().kind(), Kind::Unsupported);
    for len in [0, 91, 513, u32::MAX] {
        let mut image = good.clone();
        for lba in [1, SECTORS - 1] {
            put32(12, len)(&mut image[sector(lba)..]);
        }
        assert_eq!(table_of(&image).unwrap_err().kind(), Kind::Corrupt, "{len}");
    }
}

#[test]
fn entries_of_4096_bytes_are_read() {
    // sgdisk and sfdisk make 128 only, so this one is spread out by hand.
    let good = Disk::new(SECTORS, GPT).bytes();
    let mut image = good.clone();
    for index in 0..3 {
        let entry = good[sector(2) + index * 128..][..128].to_vec();
        image[sector(1024) + index * 4096..][..4096].fill(0);
        image[sector(1024) + index * 4096..][..128].copy_from_slice(&entry);
    }
    let header = &mut image[sector(1)..sector(2)];
    header[72..80].copy_from_slice(&1024_u64.to_le_bytes());
    header[80..84].copy_from_slice(&3_u32.to_le_bytes());
    header[84..88].copy_from_slice(&4096_u32.to_le_bytes());
    seal(&mut image, 1);
    let table = table_of(&image).unwrap();
    assert_eq!(table.partitions, table_of(&good).unwrap().partitions);
}

#[test]
fn bad_gpt_entries_are_corrupt_by_number_and_the_others_open() {
    let good = Disk::new(SECTORS, GPT).bytes();
    let put = |first: u64, last: u64| {
        move |entry: &mut [u8]| {
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
    };
    let cases = [
        (put(500, 499), "starts at sector 500, after its end at 499"),
        (
            put(600, SECTORS),
            "ends at byte 1049088, the image at 1048576",
        ),
        (put(600, u64::MAX), "beyond any disk"),
        (put(0, u64::MAX), "beyond any disk"),
        (put(u64::MAX, u64::MAX), "beyond any disk"),
        (put(u64::MAX, 0), "after its end at 0"),
    ];
    for (change, text) in cases {
        let image = with_entry(&good, 2, change);
        let below = Memory::volume(image);
        let table = read_table(&below, None).unwrap();
        let error = open_partition(&below, &table, 3).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let found = error.to_string();
        assert!(
            found.contains("partition 3 ") && found.contains(text),
            "{found}"
        );
        assert!(table.first_problem().unwrap().contains(text));
        assert_eq!(open_partition(&below, &table, 1).unwrap().size(), 100 * 512);
    }
    // Three entries on top of each other: all are named, whatever their order.
    let image = with_entry(&good, 1, put(100, 120));
    let below = Memory::volume(with_entry(&image, 2, put(110, 300)));
    let table = read_table(&below, None).unwrap();
    for number in 1..=3 {
        let error = open_partition(&below, &table, number).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("overlaps partition"), "{error}");
    }
}

#[test]
fn the_tail_is_read_only_when_the_primary_is_damaged_or_reading_is_cheap() {
    let good = Disk::new(SECTORS, GPT).bytes();
    let tail = sectors(SECTORS - 64, 64);
    let reads_tail = |image: &[u8], access| {
        let (disk, _) = StrictDisk::new(1).access(access).volume(image.to_vec());
        let (volume, counts) = Counting::volume(disk);
        assert_eq!(read_table(&volume, None).unwrap().partitions.len(), 3);
        counts.has_read(tail)
    };
    let mut bad = good.clone();
    bad[sector(1) + 60] ^= 1;
    for access in [Access::FirstPass, Access::Block(1 << 20)] {
        assert!(!reads_tail(&good, access));
        assert!(reads_tail(&bad, access));
    }
    assert!(reads_tail(&good, Access::Random));
}
