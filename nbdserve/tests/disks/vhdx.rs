//! VHDX.

use std::fs;
use std::path::Path;

use nbdserve::layer::vhdx::VHDX;
use nbdserve::testing::{conformance, noise, tools};
use nbdserve::{ByteRange, Kind};

use crate::tools::{
    MIB, Made, a_cut_is_told_of, cx, disk, error_of, error_of_file, is_probed, is_right_or_refused,
    lie_in_each_field, open_bytes, open_file, our_data, qemu_reads, read_all, with,
};

const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const TABLES: [usize; 2] = [192 << 10, 256 << 10];
const SECTOR: usize = 4096;

/// CRC-32C of `bytes` with the four at 4 as zeroes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in bytes.iter().enumerate() {
        let byte = if (4..8).contains(&at) { 0 } else { *byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

fn mend(bytes: &mut [u8]) {
    let sum = crc32c(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Mends headers and region tables.
fn mend_all(image: &mut [u8]) {
    for at in HEADERS {
        mend(&mut image[at..at + SECTOR]);
    }
    for at in TABLES {
        mend(&mut image[at..at + (64 << 10)]);
    }
}

fn le64(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn le32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Where the newer header lies.
fn header(image: &[u8]) -> usize {
    let [one, two] = HEADERS;
    if le64(image, two + 8) > le64(image, one + 8) {
        two
    } else {
        one
    }
}

/// Where a region lies: the first four bytes of its GUID.
fn region(image: &[u8], guid: [u8; 4]) -> usize {
    let entries = (TABLES[0] + 16..).step_by(32).take(2);
    let mut found = entries.filter(|at| image[*at..*at + 4] == guid);
    le64(image, found.next().unwrap() + 16)
}

fn bat(image: &[u8]) -> usize {
    region(image, [0x66, 0x77, 0xc2, 0x2d])
}

fn metadata(image: &[u8]) -> usize {
    region(image, [0x06, 0xa2, 0x7c, 0x8b])
}

/// Where an item of the metadata lies: the first four bytes of its GUID.
fn item(image: &[u8], guid: [u8; 4]) -> usize {
    let table = metadata(image);
    let entries = (table + 32..).step_by(32).take(10);
    let mut found = entries.filter(|at| image[*at..*at + 4] == guid);
    table + le32(image, found.next().unwrap() + 16)
}

const PARAMETERS: [u8; 4] = [0x37, 0x67, 0xa1, 0xca];
const SIZE: [u8; 4] = [0x24, 0x42, 0xa5, 0x2f];
const LOGICAL: [u8; 4] = [0x1d, 0xbf, 0x41, 0x81];

fn made(bytes: &[u8], options: &str) -> Vec<u8> {
    Made::new(bytes, "vhdx", options).bytes()
}

#[test]
fn the_suite_holds_on_what_qemu_makes() {
    let disk = disk(5);
    for options in ["block_size=1M", "block_size=2M,subformat=fixed"] {
        let image = made(&disk, options);
        conformance::check(|| (open_bytes(&VHDX, &image).unwrap(), disk.clone()));
    }
    let image = made(&disk, "block_size=1M,block_state_zero=off");
    conformance::check_errors("vhdx", &image, |below| {
        (VHDX.open)(below, &Default::default(), &cx())
    });
}

#[test]
fn blocks_that_were_never_written_are_holes() {
    let mut disk = disk(12);
    disk[3 * MIB..9 * MIB].fill(0);
    for options in ["block_size=1M", "block_size=2M,block_state_zero=off"] {
        let volume = open_bytes(&VHDX, &made(&disk, options)).unwrap();
        // qemu does not look for holes in a VHDX.
        let blocks = [(0, 3 << 20), (9 << 20, 3 << 20)];
        let larger = [(0, 4 << 20), (8 << 20, 4 << 20)];
        let expected = if options.contains("2M") {
            larger
        } else {
            blocks
        };
        assert_eq!(our_data(&volume), expected);
    }
}

#[test]
fn blocks_behind_the_first_chunk_are_found() {
    // With blocks of 256 MiB there is an entry for sector bits behind every 16th of them.
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.vhdx");
    let mut command = tools::command("qemu-img");
    command.args(["create", "-q", "-f", "vhdx", "-o", "block_size=256M"]);
    tools::run_command(command.arg(&image).arg("9G"));
    let mut command = tools::command("qemu-io");
    for at in ["0", "4095M", "4096M", "8600M"] {
        let seed = at.len()
            + at.as_bytes()[1..]
                .iter()
                .map(|byte| *byte as usize)
                .sum::<usize>();
        command.args(["-c", &format!("write -P {} {at} 8k", seed % 250)]);
    }
    tools::run_command(command.args(["-f", "vhdx"]).arg(&image));
    let volume = open_file(&VHDX, &image).unwrap();
    assert_eq!(volume.size(), 9 << 30);
    let mut all = Vec::new();
    for at in [0_u64, 4095 << 20, 4096 << 20, 8600 << 20] {
        let found = volume.read_vec(at, 16 << 10).unwrap();
        let (first, second) = found.split_at(8 << 10);
        assert!(
            first[0] != 0 && first.iter().all(|byte| *byte == first[0]),
            "{at}"
        );
        assert!(second.iter().all(|byte| *byte == 0), "{at}");
        all.push(first[0]);
    }
    all.dedup();
    assert_eq!(all.len(), 4);
}

#[test]
fn sectors_of_4096_bytes() {
    let disk = disk(3);
    let image = made(&disk, "block_size=1M");
    let at = item(&image, LOGICAL);
    // Blocks of a disk below 2^23 sectors lie the same.
    let image = with(&image, at, &[0, 16]);
    let volume = open_bytes(&VHDX, &image).unwrap();
    assert!(read_all(&volume).unwrap() == disk);
    let odd = with(&image, item(&image, SIZE), &[0, 2]);
    assert_eq!(error_of(&VHDX, &odd).kind(), Kind::Corrupt);
}

#[test]
fn all_states_of_a_block() {
    let disk = disk(3);
    let image = made(&disk, "block_size=1M");
    assert!(is_probed(&VHDX, &image).is_some());
    let bat = bat(&image);
    for (state, zero) in [(0, true), (1, true), (2, true), (3, true), (6, false)] {
        let entry = image[bat + 8] & !7 | state;
        let volume = open_bytes(&VHDX, &with(&image, bat + 8, &[entry])).unwrap();
        let found = volume.read_vec(MIB as u64, MIB).unwrap();
        let expected = if zero {
            vec![0; MIB]
        } else {
            disk[MIB..2 * MIB].to_vec()
        };
        assert!(found == expected, "state {state}");
        assert_eq!(our_data(&volume) == [(0, 3 << 20)], !zero);
    }
    for state in [4, 5, 7] {
        let entry = image[bat + 8] & !7 | state;
        let error = error_of(&VHDX, &with(&image, bat + 8, &[entry]));
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }
}

#[test]
fn the_sound_and_newer_header_is_used() {
    let disk = disk(3);
    let image = made(&disk, "block_size=1M");
    for at in HEADERS.into_iter().chain(TABLES) {
        let volume = open_bytes(&VHDX, &with(&image, at + 20, &[0x77, 0x78])).unwrap();
        assert!(read_all(&volume).unwrap() == disk);
    }
    for both in [HEADERS, TABLES] {
        let image = with(
            &with(&image, both[0] + 20, &[0x77, 7]),
            both[1] + 20,
            &[0x77, 7],
        );
        let error = error_of(&VHDX, &image);
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}

#[test]
fn every_field_may_lie() {
    let image = made(&disk(3), "block_size=1M");
    let table = metadata(&image);
    let mut fields = Vec::new();
    let newer = header(&image);
    for (at, width) in [(0, 4), (8, 8), (64, 2), (66, 2), (68, 4), (72, 8), (48, 16)] {
        fields.push((newer + at, width));
    }
    for (at, width) in [
        (8, 4),
        (16, 16),
        (32, 8),
        (40, 4),
        (44, 4),
        (48, 16),
        (64, 8),
        (72, 4),
    ] {
        fields.push((TABLES[0] + at, width));
    }
    for (at, width) in [(0, 8), (10, 2), (32, 16), (48, 4), (52, 4), (56, 4)] {
        fields.push((table + at, width));
    }
    for (guid, width) in [(PARAMETERS, 4), (SIZE, 8), (LOGICAL, 4)] {
        fields.push((item(&image, guid), width));
    }
    fields.push((item(&image, PARAMETERS) + 4, 4));
    fields.push((bat(&image), 8));
    fields.push((bat(&image) + 8, 8));
    let check = |bytes: &[u8], what: &str| is_right_or_refused(&VHDX, bytes, what);
    lie_in_each_field(&image, &fields, |_| {}, check);
    let mended: Vec<_> = fields.into_iter().filter(|(at, _)| *at < MIB).collect();
    lie_in_each_field(&image, &mended, |bytes| mend_all(bytes), check);
}

#[test]
fn each_lie_is_named() {
    let image = made(&disk(3), "block_size=1M");
    let mended = |at: usize, new: &[u8]| {
        let mut bytes = with(&image, at, new);
        mend_all(&mut bytes);
        bytes
    };
    let head = header(&image);
    let table = metadata(&image);
    let both = |at: usize, new: &[u8]| {
        let mut bytes = with(&with(&image, TABLES[0] + at, new), TABLES[1] + at, new);
        mend_all(&mut bytes);
        bytes
    };
    let mut unknown = with(&both(16, &[9]), TABLES[0] + 16 + 28, &[1]);
    mend_all(&mut unknown);
    let mut older = mended(head + 66, &[2]);
    let other = HEADERS[0] + HEADERS[1] - head;
    older[other..other + 4].fill(0);
    for (bytes, kind, word) in [
        (with(&image, 0, b"x"), Kind::NotThisFormat, "magic"),
        (older, Kind::Unsupported, "version 2"),
        (
            mended(other + 8, &image[head + 8..head + 16]),
            Kind::Corrupt,
            "same sequence",
        ),
        (both(8, &[0, 8]), Kind::Corrupt, "too many"),
        (unknown, Kind::Unsupported, "required"),
        (both(33, &[9]), Kind::Corrupt, "region"),
        (both(38, &[9]), Kind::Corrupt, "region"),
        (both(43, &[0xff]), Kind::Corrupt, "region"),
        (
            both(16, &image[TABLES[0] + 48..TABLES[0] + 64]),
            Kind::Corrupt,
            "twice",
        ),
        (both(8, &[1]), Kind::Corrupt, "no region"),
        (with(&image, table, b"M"), Kind::Corrupt, "metadata"),
        (
            with(&image, table + 10, &[0xff, 0xff]),
            Kind::Corrupt,
            "65535 entries",
        ),
        (
            with(&image, table + 32, &[9]),
            Kind::Unsupported,
            "required",
        ),
        (
            with(&image, table + 48, &[1, 0, 0]),
            Kind::Corrupt,
            "metadata",
        ),
        (
            with(&image, table + 52, &[0xff, 0xff, 0xff]),
            Kind::Corrupt,
            "metadata",
        ),
        (with(&image, table + 10, &[1]), Kind::Corrupt, "no item"),
        (
            with(&image, item(&image, PARAMETERS), &[1]),
            Kind::Corrupt,
            "power of two",
        ),
        (
            with(&image, item(&image, PARAMETERS), &[0, 0, 8]),
            Kind::Corrupt,
            "power of two",
        ),
        (
            with(&image, item(&image, PARAMETERS) + 4, &[4]),
            Kind::Unsupported,
            "parameters",
        ),
        (
            with(&image, item(&image, PARAMETERS) + 4, &[2]),
            Kind::Corrupt,
            "ParentLocator",
        ),
        (
            with(&image, item(&image, SIZE), &[1]),
            Kind::Corrupt,
            "whole sectors",
        ),
        (
            with(&image, item(&image, SIZE) + 6, &[1]),
            Kind::Corrupt,
            "64 TiB",
        ),
        (
            with(&image, item(&image, SIZE) + 4, &[0xff]),
            Kind::Corrupt,
            "allocation table",
        ),
        (
            with(&image, item(&image, LOGICAL), &[0, 4]),
            Kind::Unsupported,
            "1024",
        ),
        (
            with(&image, bat(&image) + 2, &[0, 0]),
            Kind::Corrupt,
            "in the header",
        ),
        (
            with(&image, bat(&image) + 7, &[0xff]),
            Kind::Corrupt,
            "block 0",
        ),
    ] {
        let error = error_of(&VHDX, &bytes);
        assert_eq!(error.kind(), kind, "{word}: {error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn what_was_cut_off_is_told_of() {
    let disk = disk(3);
    for options in ["block_size=1M", "subformat=fixed,block_size=1M"] {
        let image = made(&disk, options);
        for missing in [1, 4096, MIB, MIB + 1] {
            a_cut_is_told_of(&VHDX, &image, image.len() - missing, &disk);
        }
    }
}

#[test]
fn a_file_that_is_cut_is_corrupt() {
    let image = made(&disk(3), "block_size=1M");
    for len in [
        8,
        64 << 10,
        (64 << 10) + 70,
        150 << 10,
        200 << 10,
        MIB,
        2 * MIB + 40,
        image.len() - SECTOR,
    ] {
        let error = error_of(&VHDX, &image[..len]);
        assert_eq!(error.kind(), Kind::Corrupt, "{len}: {error}");
    }
    for len in [0, 7] {
        assert_eq!(error_of(&VHDX, &image[..len]).kind(), Kind::NotThisFormat);
    }
}

/// A part of an entry of a log.
enum Change {
    Data(usize, Vec<u8>),
    Zero(usize, usize),
}

const LOG: [u8; 16] = [7; 16];

/// An entry of a log. `file` is how long the file is.
fn entry(sequence: u64, tail: usize, file: usize, changes: &[Change]) -> Vec<u8> {
    let mut out = vec![0; SECTOR];
    out[..4].copy_from_slice(b"loge");
    out[12..16].copy_from_slice(&(tail as u32).to_le_bytes());
    out[16..24].copy_from_slice(&sequence.to_le_bytes());
    out[24..28].copy_from_slice(&(changes.len() as u32).to_le_bytes());
    out[32..48].copy_from_slice(&LOG);
    out[48..56].copy_from_slice(&(file as u64).to_le_bytes());
    out[56..64].copy_from_slice(&(file as u64).to_le_bytes());
    for (number, change) in changes.iter().enumerate() {
        let at = 64 + 32 * number;
        let place = match change {
            Change::Data(place, data) => {
                out[at..at + 4].copy_from_slice(b"desc");
                out[at + 4..at + 8].copy_from_slice(&data[SECTOR - 4..]);
                out[at + 8..at + 16].copy_from_slice(&data[..8]);
                let mut sector = data.clone();
                sector[..4].copy_from_slice(b"data");
                sector[4..8].copy_from_slice(&((sequence >> 32) as u32).to_le_bytes());
                sector[SECTOR - 4..].copy_from_slice(&(sequence as u32).to_le_bytes());
                out.extend(sector);
                place
            }
            Change::Zero(place, len) => {
                out[at..at + 4].copy_from_slice(b"zero");
                out[at + 8..at + 16].copy_from_slice(&(*len as u64).to_le_bytes());
                place
            }
        };
        out[at + 16..at + 24].copy_from_slice(&(*place as u64).to_le_bytes());
        out[at + 24..at + 32].copy_from_slice(&sequence.to_le_bytes());
    }
    let len = out.len() as u32;
    out[8..12].copy_from_slice(&len.to_le_bytes());
    mend(&mut out);
    out
}

/// `image` with this log, from `start` of the log on.
fn with_log(image: &[u8], start: usize, log: &[u8]) -> Vec<u8> {
    let mut bytes = image.to_vec();
    let head = header(image);
    bytes[head + 48..head + 64].copy_from_slice(&LOG);
    let (at, len) = (le64(image, head + 72), le32(image, head + 68));
    for (number, byte) in log.iter().enumerate() {
        bytes[at + (start + number) % len] = *byte;
    }
    mend_all(&mut bytes);
    bytes
}

/// What qemu reads once it has replayed the log, in a copy.
fn qemu_replays(image: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.vhdx");
    fs::write(&path, image).unwrap();
    let mut command = tools::command("qemu-img");
    tools::run_command(
        command
            .args(["check", "-q", "-r", "all", "-f", "vhdx"])
            .arg(&path),
    );
    qemu_reads(&path, "vhdx")
}

#[test]
fn the_log_is_replayed_in_memory_as_qemu_replays_it_on_disk() {
    let disk = disk(3);
    let image = made(&disk, "block_size=1M");
    let len = image.len();
    let block = |number: usize| le64(&image, bat(&image) + 8 * number) & !0xf_ffff;
    let one = || {
        vec![
            Change::Data(block(0) + SECTOR, noise(SECTOR, 3)),
            Change::Zero(block(1), 3 * SECTOR),
            Change::Data(block(1) + SECTOR, noise(SECTOR, 4)),
        ]
    };
    // Metadata, too: the first block of the disk is where the second was.
    let mut table = image[bat(&image)..bat(&image) + SECTOR].to_vec();
    table.copy_within(8..16, 0);
    let two = || {
        vec![
            Change::Data(bat(&image), table.clone()),
            Change::Zero(block(1) + 2 * SECTOR, SECTOR),
        ]
    };
    let first = entry(5, 0, len, &one());
    let both = [first.clone(), entry(6, 0, len, &two())].concat();
    let mut stale = first.clone();
    stale.resize(100 * SECTOR, 0);
    stale.extend(entry(3, 100 * SECTOR, len, &two()));
    let log_len = le32(&image, header(&image) + 68);
    let wraps = log_len - 2 * SECTOR;
    for (what, start, log) in [
        ("one", 0, first.clone()),
        ("two", 0, both.clone()),
        ("an old one behind it", 0, stale),
        (
            "in the middle",
            10 * SECTOR,
            entry(9, 10 * SECTOR, len, &one()),
        ),
        ("around the end", wraps, entry(9, wraps, len, &one())),
    ] {
        let dirty = with_log(&image, start, &log);
        let volume = open_bytes(&VHDX, &dirty).unwrap();
        let found = read_all(&volume).unwrap();
        assert!(found != disk, "{what}");
        assert!(found == qemu_replays(&dirty), "{what}");
    }
    // One before it, which qemu stumbles over.
    let old = entry(3, 0, len, &two());
    let place = old.len();
    let log = [old, entry(5, place, len, &one())].concat();
    let volume = open_bytes(&VHDX, &with_log(&image, 0, &log)).unwrap();
    assert!(read_all(&volume).unwrap() == qemu_replays(&with_log(&image, 0, &first)));

    let dirty = with_log(&image, 0, &both);
    let expected = qemu_replays(&dirty);
    conformance::check(|| (open_bytes(&VHDX, &dirty).unwrap(), expected.clone()));
}

#[test]
fn a_torn_entry_at_the_end_is_not_replayed() {
    let disk = disk(3);
    let image = made(&disk, "block_size=1M");
    let len = image.len();
    let place = (le64(&image, bat(&image)) & !0xf_ffff) + SECTOR;
    let first = entry(5, 0, len, &[Change::Data(place, noise(SECTOR, 3))]);
    let second = entry(6, 0, len, &[Change::Data(place, noise(SECTOR, 4))]);
    let good = [first.clone(), second.clone()].concat();
    let torn = with(&good, good.len() - 100, &[!good[good.len() - 100]]);
    let read = |log: &[u8]| {
        let volume = open_bytes(&VHDX, &with_log(&image, 0, log)).unwrap();
        volume.read_vec(SECTOR as u64, SECTOR).unwrap()
    };
    assert!(read(&good) == noise(SECTOR, 4));
    assert!(read(&torn) == noise(SECTOR, 3));
}

#[test]
fn a_log_that_lies_is_refused() {
    let image = made(&disk(3), "block_size=1M");
    let len = image.len();
    let data = |at: usize| Change::Data(at, noise(SECTOR, 3));
    let good = entry(5, 0, len, &[data(3 * MIB)]);
    let mended = |at: usize, new: &[u8]| {
        let mut bytes = with(&good, at, new);
        let end = le32(&bytes, 8).clamp(SECTOR, bytes.len());
        mend(&mut bytes[..end]);
        bytes
    };
    let cases = [
        (vec![0; SECTOR], Kind::Corrupt, "no entry"),
        (with(&good, 5000, &[!good[5000]]), Kind::Corrupt, "no entry"),
        (mended(0, b"x"), Kind::Corrupt, "no entry"),
        (mended(8, &[0, 0, 0, 0]), Kind::Corrupt, "no entry"),
        (mended(8, &[1, 0x20, 0, 0]), Kind::Corrupt, "no entry"),
        (mended(8, &[0xff; 4]), Kind::Corrupt, "no entry"),
        (mended(12, &[0, 0x10]), Kind::Corrupt, "no entry"),
        (mended(12, &[0xff; 4]), Kind::Corrupt, "no entry"),
        (mended(16, &[0; 8]), Kind::Corrupt, "no entry"),
        (mended(32, &[8]), Kind::Corrupt, "no entry"),
        (mended(24, &[0xff; 4]), Kind::Corrupt, "descriptors"),
        (mended(24, &[2]), Kind::Corrupt, "another entry"),
        (mended(64, b"x"), Kind::Corrupt, "no known sort"),
        (mended(80, &[1]), Kind::Corrupt, "whole sectors"),
        (
            mended(80, &[0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Kind::Corrupt,
            "whole sectors",
        ),
        (mended(88, &[6]), Kind::Corrupt, "another entry"),
        (mended(SECTOR, b"x"), Kind::Corrupt, "another entry"),
        (mended(SECTOR + 4, &[1]), Kind::Corrupt, "another entry"),
        (mended(2 * SECTOR - 4, &[1]), Kind::Corrupt, "another entry"),
        (
            entry(5, 0, len + SECTOR, &[data(3 * MIB)]),
            Kind::Corrupt,
            "when its log was written",
        ),
        (
            entry(5, 0, len, &[Change::Zero(0, 1000)]),
            Kind::Corrupt,
            "whole sectors",
        ),
    ];
    for (log, kind, word) in cases {
        let error = error_of(&VHDX, &with_log(&image, 0, &log));
        assert_eq!(error.kind(), kind, "{word}: {error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    // Zeroes over everything, and far behind the end.
    for (at, far) in [(0, len), (1 << 50, 1 << 40)] {
        let log = entry(5, 0, len, &[Change::Zero(at, far)]);
        is_right_or_refused(&VHDX, &with_log(&image, 0, &log), "zeroes");
    }
    // Where the log lies.
    let dirty = with_log(&image, 0, &good);
    let head = header(&dirty);
    for (at, new) in [
        (72, &[0; 8][..]),
        (72, &[0xff; 8]),
        (68, &[0; 4]),
        (68, &[0xff; 4]),
        (68, &[1, 0]),
        (64, &[1]),
    ] {
        let mut bytes = with(&dirty, head + at, new);
        mend_all(&mut bytes);
        let kind = error_of(&VHDX, &bytes).kind();
        assert!(
            matches!(kind, Kind::Corrupt | Kind::Unsupported),
            "{at}: {kind:?}"
        );
    }
}

#[test]
fn entries_that_all_claim_the_whole_log_are_not_summed_up_one_by_one() {
    let image = made(&disk(3), "block_size=1M");
    let mut log = Vec::new();
    for number in 0..256_u64 {
        let mut sector = entry(number + 1, 0, image.len(), &[]);
        sector[8..12].copy_from_slice(&(MIB as u32).to_le_bytes());
        log.extend(sector);
    }
    let error = error_of(&VHDX, &with_log(&image, 0, &log));
    assert_eq!(error.kind(), Kind::Limit, "{error}");
}

/// A differencing disk made of a copy of `base` with blocks of one MiB: the first is partly here, the
/// second not at all, the third wholly.
fn differencing(
    base: &[u8],
    base_disk: &[u8],
    relative: &str,
    absolute: &str,
) -> (Vec<u8>, Vec<u8>) {
    let mut image = base.to_vec();
    let mut expected = base_disk.to_vec();
    let parameters = item(base, PARAMETERS);
    image[parameters + 4] |= 2;
    let guid = |bytes: &[u8]| {
        let part = |range: std::ops::Range<usize>, turn: bool| -> String {
            let mut bytes = bytes[range].to_vec();
            if turn {
                bytes.reverse();
            }
            bytes.iter().map(|byte| format!("{byte:02X}")).collect()
        };
        let parts = [
            part(0..4, true),
            part(4..6, true),
            part(6..8, true),
            part(8..10, false),
            part(10..16, false),
        ];
        format!("{{{}}}", parts.join("-"))
    };
    let head = header(base);
    let linkage = guid(&base[head + 32..head + 48]);
    let mut locator = vec![
        0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59,
        0x13,
    ];
    let pairs = [
        ("parent_linkage", linkage.as_str()),
        ("relative_path", relative),
        ("absolute_win32_path", absolute),
    ];
    let pairs: Vec<_> = pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    locator.extend([0, 0, pairs.len() as u8, 0]);
    let mut text: Vec<u8> = Vec::new();
    let start = 20 + 12 * pairs.len();
    for (key, value) in &pairs {
        let wide =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let (key, value) = (wide(key), wide(value));
        let at = (start + text.len()) as u32;
        locator.extend(at.to_le_bytes());
        locator.extend((at + key.len() as u32).to_le_bytes());
        locator.extend((key.len() as u16).to_le_bytes());
        locator.extend((value.len() as u16).to_le_bytes());
        text.extend(key);
        text.extend(value);
    }
    locator.extend(text);
    // Behind the other items.
    let table = metadata(base);
    let count = image[table + 10] as usize;
    let slot = table + 32 + 32 * count;
    let place = 100 << 10;
    image[table + 10] += 1;
    image[slot..slot + 16].copy_from_slice(&[
        0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab,
        0x0c,
    ]);
    image[slot + 16..slot + 20].copy_from_slice(&(place as u32).to_le_bytes());
    image[slot + 20..slot + 24].copy_from_slice(&(locator.len() as u32).to_le_bytes());
    image[slot + 24] = 4;
    image[table + place..table + place + locator.len()].copy_from_slice(&locator);

    // The table has an entry for sector bits behind 4096 blocks of one MiB.
    let bat = bat(base);
    let bits = image.len().next_multiple_of(MIB);
    image.resize(bits + MIB, 0);
    image[bat + 8 * 4096..bat + 8 * 4096 + 8].copy_from_slice(&(bits as u64 | 6).to_le_bytes());
    image[bat] = image[bat] & !7 | 7;
    image[bat + 8..bat + 16].fill(0);
    for number in [0_usize, 2] {
        let at = le64(&image, bat + 8 * number) & !0xf_ffff;
        let new = noise(MIB, 50 + number as u64);
        image[at..at + MIB].copy_from_slice(&new);
        for sector in 0..2048 {
            let here = number == 2 || sector % 11 < 3 || (100..900).contains(&sector);
            let place = number * MIB + sector * 512;
            if here {
                image[bits + (number * 2048 + sector) / 8] |= 1 << (sector % 8);
                expected[place..place + 512]
                    .copy_from_slice(&new[sector * 512..sector * 512 + 512]);
            }
        }
    }
    let id = noise(16, image.len() as u64 + u64::from(base[0x10020]));
    for at in HEADERS {
        image[at + 32..at + 48].copy_from_slice(&id);
    }
    mend_all(&mut image);
    (image, expected)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_a_differencing_disk_does_not_have_is_in_its_parent() {
    let base_disk = disk(3);
    let base = made(&base_disk, "block_size=1M");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base.vhdx", &base);
    for (relative, absolute) in [
        (".\\base.vhdx", ""),
        ("..\\gone\\base.vhdx", ""),
        ("", "C:\\disks\\base.vhdx"),
        ("other.vhdx", "D:\\base.vhdx"),
    ] {
        let (image, expected) = differencing(&base, &base_disk, relative, absolute);
        let path = write(dir.path(), "child.vhdx", &image);
        let volume = open_file(&VHDX, &path).unwrap();
        assert!(
            read_all(&volume).unwrap() == expected,
            "{relative} {absolute}"
        );
    }
    let (middle, expected) = differencing(&base, &base_disk, "base.vhdx", "");
    write(dir.path(), "middle.vhdx", &middle);
    let (last, expected) = differencing_of(&middle, &base, &expected);
    let path = write(dir.path(), "last.vhdx", &last);
    conformance::check(|| (open_file(&VHDX, &path).unwrap(), expected.clone()));
}

/// A differencing disk on `middle`, which is one itself: made of `base` with the identity of `middle`.
fn differencing_of(middle: &[u8], base: &[u8], expected: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut like = base.to_vec();
    for at in HEADERS {
        like[at + 32..at + 48].copy_from_slice(&middle[at + 32..at + 48]);
    }
    differencing(&like, expected, "middle.vhdx", "")
}

#[test]
fn a_parent_that_has_changed_or_is_elsewhere_is_refused() {
    let base_disk = disk(3);
    let base = made(&base_disk, "block_size=1M");
    let dir = tempfile::tempdir().unwrap();
    let at = |relative: &str| differencing(&base, &base_disk, relative, "").0;
    let path = write(dir.path(), "in/child.vhdx", &at("base.vhdx"));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Io);
    let mut other = base.clone();
    for at in HEADERS {
        other[at + 32] ^= 1;
    }
    mend_all(&mut other);
    write(dir.path(), "in/base.vhdx", &other);
    let error = error_of_file(&VHDX, &path);
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("written to since"), "{error}");
    write(dir.path(), "out/far.vhdx", &base);
    let path = write(dir.path(), "in/child.vhdx", &at("..\\out\\far.vhdx"));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Denied);
    let path = write(dir.path(), "in/child.vhdx", &at("child.vhdx"));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Corrupt);
    let path = write(dir.path(), "in/child.vhdx", &at(""));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Corrupt);
    assert_eq!(error_of(&VHDX, &at("base.vhdx")).kind(), Kind::Unsupported);
}

#[test]
fn a_locator_that_lies_is_refused() {
    let base_disk = disk(3);
    let base = made(&base_disk, "block_size=1M");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base.vhdx", &base);
    let (image, _) = differencing(&base, &base_disk, "base.vhdx", "");
    let locator = metadata(&image) + (100 << 10);
    for (at, new, kind) in [
        (0, &[0][..], Kind::Unsupported),
        (18, &[0, 0], Kind::Corrupt),
        (18, &[0xff, 0xff], Kind::Corrupt),
        (20, &[0xff; 4], Kind::Corrupt),
        (24, &[0xff; 4], Kind::Corrupt),
        (28, &[0xff; 2], Kind::Corrupt),
        (30, &[0xff; 2], Kind::Corrupt),
        (30, &[0; 2], Kind::Corrupt),
    ] {
        let path = write(dir.path(), "child.vhdx", &with(&image, locator + at, new));
        let error = error_of_file(&VHDX, &path);
        assert_eq!(error.kind(), kind, "{at}: {error}");
    }
    // Sector bits that are not there.
    let path = write(
        dir.path(),
        "child.vhdx",
        &with(&image, bat(&image) + 8 * 4096, &[0; 8]),
    );
    let error = error_of_file(&VHDX, &path);
    assert!(error.to_string().contains("sector bits"), "{error}");
    let volume = open_file(&VHDX, &path).unwrap();
    assert!(volume.extents(ByteRange::between(0, 1 << 20)).is_err());
    assert!(volume.read_vec(2 << 20, MIB).is_ok());
}
