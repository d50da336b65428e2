//! Partition tables as sfdisk and sgdisk make them and read them, and as enemies make them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nbdserve::layer::partition::{PARTITION, Scheme, Table, open_partition, read_table};
use nbdserve::layer::{Args, Confidence, LAYERS, LayerType, Sample, Verdict};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, StrictDisk, conformance, noise, tools};
use nbdserve::{Access, ByteRange, Cx, Kind, Result, Volume};
use serde_json::Value;
use tempfile::TempDir;

/// Sectors of the small images.
const SECTORS: u64 = 2048;

fn sector(number: u64) -> usize {
    number as usize * 512
}

/// An image file that sfdisk has partitioned by `script`.
struct Disk {
    _dir: TempDir,
    path: PathBuf,
}

impl Disk {
    fn new(sectors: u64, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        fs::write(&path, noise(sector(sectors), 11)).unwrap();
        let disk = Self { _dir: dir, path };
        disk.sfdisk(script);
        disk
    }

    fn sfdisk(&self, script: &str) {
        sfdisk(&self.path, script);
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

fn sfdisk(path: &Path, script: &str) {
    let mut command = tools::command("sfdisk");
    command
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(path);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "sfdisk: {text}");
}

/// A loop device with sectors of 4096 bytes, detached in the end.
struct LoopDevice(String);

impl LoopDevice {
    fn on(path: &Path) -> Self {
        let mut command = tools::command("losetup");
        command.args(["--find", "--show", "--sector-size", "4096"]);
        Self(tools::run_command(command.arg(path)).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        tools::run("losetup", ["-d", &self.0]);
    }
}

const GPT: &str = "label: gpt\nfirst-lba: 34\n\
    start=64, size=100, type=L, name=\"röot ☃\"\n\
    start=200, size=300, type=U, attrs=\"LegacyBIOSBootable\"\n\
    start=600, size=1\n";

const LOGICAL: &str = "label: dos\n\
    1 : start=64, size=100, bootable\n\
    2 : start=200, size=1500, type=5\n\
    3 : start=1800, size=10, type=c\n\
    5 : start=208, size=100, type=82\n\
    6 : start=320, size=50\n\
    7 : start=1000, size=700, type=7\n";

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

fn table_of(bytes: &[u8]) -> Result<Table> {
    read_table(&Memory::volume(bytes.to_vec()), None)
}

fn probe(bytes: &[u8]) -> Verdict {
    let head = &bytes[..bytes.len().min(Sample::HEAD)];
    (PARTITION.probe)(&Sample {
        head,
        tail: None,
        size: bytes.len() as u64,
    })
}

fn confidence(bytes: &[u8]) -> Option<Confidence> {
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

/// Keys and values.
type LayerArgs<'a> = &'a [(&'a str, &'a str)];

/// Opens a layer by its name, as a plan does.
fn open_layer(name: &str, args: LayerArgs<'_>, below: &Volume) -> Result<Volume> {
    let layer: &LayerType = LAYERS.iter().find(|layer| layer.name == name).unwrap();
    let args: Args = args
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let opened = (layer.open)(below, &args, &Cx::new(1 << 20));
    opened.map_err(|error| error.in_layer(layer.name))
}

#[test]
fn the_layers_keep_the_contract() {
    let gpt = Disk::new(SECTORS, GPT).bytes();
    let logical = Disk::new(SECTORS, LOGICAL).bytes();
    type Case<'a> = (&'a [u8], &'a str, LayerArgs<'a>, &'a str, ByteRange);
    let cases: [Case<'_>; 5] = [
        (
            &gpt,
            "partition",
            &[("number", "2")],
            "partition:2",
            sectors(200, 300),
        ),
        (
            &logical,
            "partition",
            &[("number", "6")],
            "partition:6",
            sectors(320, 50),
        ),
        (
            &gpt,
            "offset",
            &[("offset", "100"), ("size", "70001")],
            "offset",
            bytes(100, 70_001),
        ),
        (
            &gpt,
            "offset",
            &[("offset", "1000K")],
            "offset",
            sectors(2000, 48),
        ),
        (
            &gpt,
            "offset",
            &[("offset", "1M")],
            "offset",
            sectors(2048, 0),
        ),
    ];
    for (image, layer, args, name, range) in cases {
        let expected = image[range.start() as usize..range.end() as usize].to_vec();
        for block in [1, 4096] {
            let open = || {
                let (below, _) = StrictDisk::new(block).volume(image.to_vec());
                (open_layer(layer, args, &below).unwrap(), expected.clone())
            };
            assert_eq!(open().0.name(), name);
            conformance::check(open);
            conformance::check_writer(open);
        }
        conformance::check_errors(name, image, |below| open_layer(layer, args, below));
    }
}

fn bytes(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

fn sectors(start: u64, len: u64) -> ByteRange {
    bytes(start * 512, len * 512)
}

#[test]
fn writes_to_a_partition_stay_in_it() {
    let before = Disk::new(SECTORS, GPT).bytes();
    let (below, disk) = StrictDisk::new(4096).volume(before.clone());
    let volume = open_layer("partition", &[("number", "1")], &below).unwrap();
    let new = noise(volume.size() as usize, 77);
    volume.writer().unwrap().write_at(&new, 0, true).unwrap();
    let mut expected = before;
    expected[sector(64)..sector(164)].copy_from_slice(&new);
    assert!(disk.durable() == expected);
}

#[test]
fn neighbours_in_one_block_written_through_two_partitions_are_not_lost() {
    // Sector 163 ends the first partition, 164 starts the second: one block of 4096 bytes.
    let script = "label: dos\n1 : start=64, size=100\n2 : start=164, size=100\n";
    let image = Disk::new(SECTORS, script).bytes();
    let (below, disk) = StrictDisk::new(4096).volume(image);
    let partition = |number| open_layer("partition", &[("number", number)], &below).unwrap();
    let (first, second) = (partition("1"), partition("2"));
    std::thread::scope(|scope| {
        for (volume, offset, byte) in [(&first, 99 * 512, 1), (&second, 0, 2)] {
            scope.spawn(move || {
                let writer = volume.writer().unwrap();
                for at in 0..512 {
                    writer.write_at(&[byte], offset + at, false).unwrap();
                }
            });
        }
    });
    let bytes = disk.bytes();
    assert!(bytes[sector(163)..sector(164)] == [1; 512]);
    assert!(bytes[sector(164)..sector(165)] == [2; 512]);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let below = Memory::volume(Disk::new(SECTORS, GPT).bytes());
    let size = below.size().to_string();
    let beyond = (below.size() + 1).to_string();
    let most = u64::MAX.to_string();
    let cases: [(&str, LayerArgs<'_>, &str); 9] = [
        ("offset", &[("offset", &beyond)], "beyond its 1048576 bytes"),
        ("offset", &[("offset", &most)], "beyond its 1048576 bytes"),
        (
            "offset",
            &[("offset", &size), ("size", "1")],
            "1 bytes at 1048576",
        ),
        (
            "offset",
            &[("offset", "1"), ("size", &most)],
            "are not within its",
        ),
        ("offset", &[("size", "x")], "\"x\" is not a number of bytes"),
        ("partition", &[], "which partition is not said"),
        ("partition", &[("number", "-1")], "\"-1\" is not the number"),
        (
            "partition",
            &[("number", "4")],
            "the GPT has no partition 4",
        ),
        (
            "partition",
            &[("number", "1"), ("sector", "520")],
            "\"520\" bytes",
        ),
    ];
    for (layer, args, text) in cases {
        let error = open_layer(layer, args, &below).unwrap_err();
        let found = error.to_string();
        assert!(found.contains(text), "{found}");
        assert!(found.starts_with(&format!("{layer}: ")), "{found}");
    }
}

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
fn seal(image: &mut [u8], lba: u64) {
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
