//! What the tools say of a table is what we say of it.

use std::fs;
use std::path::Path;

use nbdserve::Kind;
use nbdserve::layer::partition::{PARTITION, Scheme, Table, read_table};
use nbdserve::layer::{Confidence, Sample, Verdict};
use nbdserve::source::Memory;
use nbdserve::testing::{noise, tools};
use serde_json::Value;

use crate::made::{Disk, GPT, LOGICAL, LoopDevice, SECTORS, sfdisk, table_of};

/// Compares a table with what sfdisk says of it.
fn compare(table: &Table, path: &Path) {
    let mut command = tools::command("sfdisk");
    let json = tools::run_command(command.arg("--json").arg(path));
    let json: Value = serde_json::from_str(&json).unwrap();
    let theirs = &json["partitiontable"];
    let sector = u64::from(table.sector);
    assert_eq!(theirs["sectorsize"], sector);
    let text = |value: &Value| value.as_str().map(str::to_ascii_lowercase);
    let id = text(&theirs["id"]).unwrap();
    assert_eq!(table.disk_id.as_deref(), Some(id.trim_start_matches("0x")));
    assert!(table.damage.is_none());

    let list = theirs["partitions"].as_array().unwrap();
    assert_eq!(table.partitions.len(), list.len());
    let device = path.to_str().unwrap();
    for (ours, theirs) in table.partitions.iter().zip(list) {
        let node = theirs["node"].as_str().unwrap();
        let number = node.trim_start_matches(device).trim_start_matches('p');
        assert_eq!(ours.number.to_string(), number);
        assert_eq!(ours.start, theirs["start"].as_u64().unwrap() * sector);
        assert_eq!(ours.size, theirs["size"].as_u64().unwrap() * sector);
        let kind = text(&theirs["type"]).unwrap();
        match table.scheme {
            Scheme::Gpt => {
                assert_eq!(ours.type_id, kind);
                assert_eq!(ours.uuid, text(&theirs["uuid"]));
                assert_eq!(ours.label.as_deref(), theirs["name"].as_str());
                let bootable = theirs["attrs"].as_str() == Some("LegacyBIOSBootable");
                assert_eq!(ours.attributes, if bootable { 1 << 2 } else { 0 });
            }
            Scheme::Mbr => {
                assert_eq!(ours.type_id, format!("0x{kind:0>2}"));
                let uuid = format!("{}-{:02x}", id.trim_start_matches("0x"), ours.number);
                assert_eq!(ours.uuid, Some(uuid));
                let bootable = theirs["bootable"] == true;
                assert_eq!(ours.attributes, u64::from(bootable));
            }
        }
        assert_eq!(ours.problem, None);
    }
}

pub(crate) fn probe(bytes: &[u8]) -> Verdict {
    let head = &bytes[..bytes.len().min(Sample::HEAD)];
    (PARTITION.probe)(&Sample {
        head,
        tail: None,
        size: bytes.len() as u64,
    })
}

pub(crate) fn confidence(bytes: &[u8]) -> Option<Confidence> {
    match probe(bytes) {
        Verdict::Yes { confidence, .. } => Some(confidence),
        Verdict::No => None,
    }
}

#[test]
fn gpt_reads_as_sfdisk_says() {
    let disk = Disk::new(SECTORS, GPT);
    let table = table_of(&disk.bytes()).unwrap();
    assert_eq!(table.scheme, Scheme::Gpt);
    assert!(table.notes.is_empty(), "{:?}", table.notes);
    assert_eq!(table.partitions[1].type_name, Some("EFI System"));
    compare(&table, &disk.path);
    assert_eq!(confidence(&disk.bytes()), Some(Confidence::CHECKED));
}

#[test]
fn logical_partitions_have_the_numbers_that_sfdisk_gives() {
    let disk = Disk::new(SECTORS, LOGICAL);
    let table = table_of(&disk.bytes()).unwrap();
    assert_eq!(table.scheme, Scheme::Mbr);
    let numbers: Vec<u32> = table.partitions.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, [1, 2, 3, 5, 6, 7]);
    compare(&table, &disk.path);
    assert_eq!(confidence(&disk.bytes()), Some(Confidence::TABLE));
}

#[test]
fn gpt_made_by_sgdisk_with_many_entries_and_gaps() {
    let disk = Disk::new(SECTORS, "label: gpt\n");
    let mut command = tools::command("sgdisk");
    command.args(["-S", "256", "-a", "1"]);
    command.args(["-n", "3:100:199", "-c", "3:three", "-n", "200:300:300"]);
    tools::run_command(command.arg(&disk.path));
    let table = table_of(&disk.bytes()).unwrap();
    let numbers: Vec<u32> = table.partitions.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, [3, 200]);
    compare(&table, &disk.path);
}

#[test]
fn sectors_of_4096_bytes_are_found_for_gpt_and_believed_for_mbr() {
    let disk = Disk::new(16384, "label: dos\n");
    for (script, sector) in [
        ("label: gpt\nstart=256, size=100\nstart=400, size=3\n", None),
        (
            "label: dos\n1 : start=256, size=100\n2 : start=400, size=900, type=5\n5 : start=500, size=3\n",
            Some(4096),
        ),
    ] {
        let device = LoopDevice::on(&disk.path);
        sfdisk(Path::new(&device.0), script);
        let volume = Memory::volume(fs::read(&device.0).unwrap());
        let table = read_table(&volume, sector).unwrap();
        assert_eq!(table.sector, 4096);
        compare(&table, Path::new(&device.0));
        assert!(confidence(&fs::read(&device.0).unwrap()).is_some());
    }
}

#[test]
fn gpt_wins_over_a_hybrid_mbr() {
    let disk = Disk::new(SECTORS, GPT);
    tools::run_command(tools::command("sgdisk").args(["-h", "1:2"]).arg(&disk.path));
    let table = table_of(&disk.bytes()).unwrap();
    assert_eq!(table.scheme, Scheme::Gpt);
    assert!(table.notes[0].contains("hybrid"), "{:?}", table.notes);
    assert_eq!(table.partitions.len(), 3);
}

#[test]
fn a_boot_sector_of_a_file_system_is_no_mbr() {
    let dir = tempfile::tempdir().unwrap();
    for (size, bits) in [(1 << 20, "12"), (16 << 20, "16"), (64 << 20, "32")] {
        let path = dir.path().join(bits);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        tools::run_command(tools::command("mkfs.vfat").args(["-F", bits]).arg(&path));
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[510..512], [0x55, 0xaa]);
        assert_eq!(probe(&bytes), Verdict::No);
        assert_eq!(table_of(&bytes).unwrap_err().kind(), Kind::NotThisFormat);
    }
    // There is no mkntfs here: a boot sector is jump, name and 55 aa, and code where an MBR has
    // entries, which may look like some.
    let disk = Disk::new(SECTORS, LOGICAL);
    let mut bytes = disk.bytes();
    bytes[..11].copy_from_slice(b"\xeb\x52\x90NTFS    ");
    assert_eq!(probe(&bytes), Verdict::No);
    assert_eq!(table_of(&bytes).unwrap_err().kind(), Kind::NotThisFormat);
}

#[test]
fn what_is_no_table_is_not_taken_for_one() {
    let mut with_code = noise(4096, 3);
    with_code[510..512].copy_from_slice(&[0x55, 0xaa]);
    for bytes in [
        vec![0; 4096],
        noise(4096, 5),
        vec![0; 511],
        Vec::new(),
        with_code,
    ] {
        assert_eq!(probe(&bytes), Verdict::No);
        assert_eq!(table_of(&bytes).unwrap_err().kind(), Kind::NotThisFormat);
    }
}
