//! The log.

use std::fs;

use nbdserve::Kind;
use nbdserve::layer::vhdx::VHDX;
use nbdserve::testing::{conformance, noise, tools};

use super::{SECTOR, bat, header, le32, le64, made, mend, mend_all};
use crate::tools::{
    MIB, disk, error_of, is_right_or_refused, open_bytes, qemu_reads, read_all, with,
};

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
