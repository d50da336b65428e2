//! VHDX.

mod differencing;
mod lies;
mod log;

use nbdserve::Kind;
use nbdserve::layer::vhdx::VHDX;
use nbdserve::testing::{conformance, tools};

use crate::tools::{
    MIB, Made, cx, disk, error_of, is_probed, open_bytes, open_file, our_data, read_all, with,
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
