//! Partition tables.

use super::{cx, exercise, may_refuse, mend};
use crate::Volume;
use crate::layer::Args;
use crate::layer::partition::{PARTITION, open_partition, read_table};
use crate::source::Memory;

/// Most partitions of one table that are opened.
const MOST: usize = 8;

/// A disk, once as it is and once with right checksums of a GPT.
pub(super) fn gpt(data: &[u8]) {
    table(&Memory::volume(data.to_vec()));
    let mut disk = data.to_vec();
    mend::gpt(&mut disk);
    table(&Memory::volume(disk));
}

/// A disk whose first sector has the signature of a boot record.
pub(super) fn mbr(data: &[u8]) {
    let mut disk = data.to_vec();
    if let Some(signature) = disk.get_mut(510..512) {
        signature.copy_from_slice(&[0x55, 0xaa]);
    }
    table(&Memory::volume(disk));
}

fn table(disk: &Volume) {
    for sector in [None, Some(512), Some(4096)] {
        let table = match read_table(disk, sector) {
            Ok(table) => table,
            Err(error) => {
                may_refuse(&error);
                continue;
            }
        };
        // A table of a few MiB holds no more than this: 8192 entries of GPT, 260 of MBR.
        assert!(table.partitions.len() <= 8192);
        for entry in table.partitions.iter().take(MOST) {
            let Ok(volume) = open_partition(disk, &table, entry.number) else {
                assert!(entry.problem.is_some(), "{entry:?} cannot be opened");
                continue;
            };
            assert_eq!(volume.size(), entry.size);
            assert!(entry.range().end() <= disk.size());
            exercise(&volume);
            by_name(disk, entry.number, sector, volume.size());
        }
    }
}

/// The same partition the way a plan opens it.
fn by_name(disk: &Volume, number: u32, sector: Option<u32>, size: u64) {
    let mut args = Args::from([("number".to_owned(), number.to_string())]);
    if let Some(sector) = sector {
        args.insert("sector".to_owned(), sector.to_string());
    }
    match (PARTITION.open)(disk, &args, &cx()) {
        Ok(volume) => assert_eq!(volume.size(), size),
        Err(error) => panic!("partition {number}: {error:?}"),
    }
}
