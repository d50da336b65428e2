//! Images that were cut or have grown, and changed bytes.

use nbdserve::Kind;
use nbdserve::layer::partition::{open_partition, read_table};
use nbdserve::source::Memory;

use crate::gpt::seal;
use crate::made::{Disk, GPT, LOGICAL, SECTORS, sector, table_of};
use crate::tables::probe;

#[test]
fn a_truncated_or_grown_image_is_noted_and_usable() {
    let good = Disk::new(SECTORS, GPT).bytes();
    let cut = Memory::volume(good[..sector(610)].to_vec());
    let table = read_table(&cut, None).unwrap();
    assert!(
        table.notes[0].contains("it was cut off"),
        "{:?}",
        table.notes
    );
    assert_eq!(table.first_problem(), None);
    assert!(open_partition(&cut, &table, 3).is_ok());

    let short = Memory::volume(good[..sector(400)].to_vec());
    let table = read_table(&short, None).unwrap();
    assert!(open_partition(&short, &table, 1).is_ok());
    let error = open_partition(&short, &table, 2).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);

    let mut grown = good;
    grown.resize(sector(4096), 0);
    let table = table_of(&grown).unwrap();
    assert!(
        table.notes[0].contains("goes on for 2048 sectors"),
        "{:?}",
        table.notes
    );
}

#[test]
fn no_changed_byte_makes_the_parser_panic() {
    let gpt = Disk::new(SECTORS, GPT).bytes();
    let logical = Disk::new(SECTORS, LOGICAL).bytes();
    let look = |image: &[u8]| {
        let _ = probe(image);
        let below = Memory::volume(image.to_vec());
        if let Ok(table) = read_table(&below, None) {
            for entry in &table.partitions {
                let _ = open_partition(&below, &table, entry.number);
            }
            let _ = serde_json::to_string(&table).unwrap();
        }
    };
    // Protective MBR, header, three entries; and both checksums made right again.
    for at in (440..sector(1) + 92).chain(sector(2)..sector(2) + 384) {
        for change in [1, 0x80, 0xff, gpt[at]] {
            let mut image = gpt.clone();
            image[at] ^= change;
            look(&image);
            if at >= sector(1) {
                seal(&mut image, 1);
                look(&image);
            }
        }
    }
    for record in [0, 200] {
        for at in sector(record) + 440..sector(record + 1) {
            for change in [1, 0x80, 0xff, logical[at]] {
                let mut image = logical.clone();
                image[at] ^= change;
                look(&image);
            }
        }
    }
    for len in (0..2048).chain([sector(33), sector(34) - 1, sector(34)]) {
        look(&gpt[..len]);
        look(&logical[..len]);
    }
}
