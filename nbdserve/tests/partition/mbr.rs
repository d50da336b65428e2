//! Chains of logical partitions that lie.

use nbdserve::Kind;
use nbdserve::layer::partition::{open_partition, read_table};
use nbdserve::source::Memory;

use crate::made::{Disk, LOGICAL, SECTORS, sector, table_of};

/// Puts an entry into a boot record.
fn put_entry(image: &mut [u8], record: u64, slot: usize, kind: u8, first: u32, count: u32) {
    let at = sector(record) + 446 + slot * 16;
    let entry = &mut image[at..at + 16];
    entry.fill(0);
    entry[4] = kind;
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..16].copy_from_slice(&count.to_le_bytes());
}

/// A boot record without entries.
fn put_record(image: &mut [u8], record: u64) {
    let at = sector(record);
    image[at..at + 512].fill(0);
    image[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
}

#[test]
fn chains_of_logical_partitions_that_do_not_end_well_are_named() {
    let good = Disk::new(SECTORS, LOGICAL).bytes();
    // The first extended record is in sector 200; its second slot points to the next one.
    let next = |first: u32| {
        let mut image = good.clone();
        put_entry(&mut image, 200, 1, 5, first, 10);
        image
    };
    let cases = [
        (next(0), "comes back to sector 200"),
        (
            next(1_000_000),
            "sector 1000200, beyond the image's 1048576 bytes",
        ),
        (next(u32::MAX), "beyond the image's"),
        (next(900), "sector 1100, which is no boot record"),
    ];
    for (image, text) in cases {
        let below = Memory::volume(image);
        let table = read_table(&below, None).unwrap();
        let damage = table.first_problem().unwrap();
        assert!(damage.contains(text), "{damage}");
        // What was found before is there, what is missing is corrupt and not absent.
        assert!(open_partition(&below, &table, 1).is_ok());
        assert!(open_partition(&below, &table, 5).is_ok());
        let error = open_partition(&below, &table, 6).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_loop_of_three_and_an_endless_chain_are_ended() {
    let mut image = vec![0; sector(SECTORS)];
    put_record(&mut image, 0);
    put_entry(&mut image, 0, 0, 5, 10, 2000);
    for (record, next) in [(10, 20), (30, 40), (50, 20)] {
        put_record(&mut image, record);
        put_entry(&mut image, record, 0, 0x83, 1, 1);
        put_entry(&mut image, record, 1, 5, next, 5);
    }
    let table = table_of(&image).unwrap();
    assert_eq!(table.partitions.len(), 4);
    let damage = table.damage.unwrap();
    assert!(damage.contains("comes back to sector 30"), "{damage}");

    put_record(&mut image, 0);
    put_entry(&mut image, 0, 0, 5, 10, 2000);
    for record in 10..600_u32 {
        put_record(&mut image, u64::from(record));
        put_entry(&mut image, u64::from(record), 1, 5, record - 9, 1);
    }
    let table = table_of(&image).unwrap();
    let damage = table.damage.unwrap();
    assert!(damage.contains("more than 256"), "{damage}");
}

#[test]
fn overlapping_logical_partitions_are_corrupt_by_number() {
    let mut image = Disk::new(SECTORS, LOGICAL).bytes();
    // The record of partition 5 is in sector 200: 208 + 300 reaches into partition 6.
    put_entry(&mut image, 200, 0, 0x82, 8, 300);
    let below = Memory::volume(image);
    let table = read_table(&below, None).unwrap();
    for (number, other) in [(5, 6), (6, 5)] {
        let error = open_partition(&below, &table, number).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = format!("partition {number} overlaps partition {other}");
        assert!(error.to_string().contains(&text), "{error}");
    }
    assert!(open_partition(&below, &table, 7).is_ok());
}
