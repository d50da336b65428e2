//! What every layer must do.

use std::cell::Cell;

use nbdserve::layer::Args;
use nbdserve::layer::cow::COW;
use nbdserve::source::Memory;
use nbdserve::testing::{StrictDisk, conformance, disk_like, noise};
use nbdserve::{ByteRange, Cx, Done, ExtentFlags, Volume, ZeroOpts};

use super::{SIZE, cx, disk, kept, scratch_on};

/// Opens fresh layers of all sorts: in memory, in memory and a temp file, in a file.
fn each(check: impl Fn(&dyn Fn(&Volume) -> Volume)) {
    check(&scratch_on);
    let small = Cx::new(200_000);
    check(&|below| (COW.open)(below, &Args::new(), &small).unwrap());
    let nothing = Cx::new(0);
    check(&|below| (COW.open)(below, &Args::new(), &nothing).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let number = Cell::new(0);
    check(&|below| {
        number.set(number.get() + 1);
        let file = dir.path().join(number.get().to_string());
        (COW.open)(below, &kept(&file), &cx()).unwrap()
    });
}

#[test]
fn an_empty_layer_reads_as_what_is_below() {
    each(|open| {
        conformance::check(|| {
            let (below, bytes) = disk();
            (open(&below), bytes)
        });
    });
}

#[test]
fn a_layer_with_writes_reads_as_what_was_written() {
    each(|open| {
        conformance::check(|| {
            let mut bytes = disk_like(SIZE, 3);
            let volume = open(&Memory::volume(bytes.clone()));
            let writer = volume.writer().unwrap();
            for (at, len, seed) in [
                (0, 1, 1),
                (4096, 8192, 2),
                (70_000, 50_000, 3),
                (299_000, 1000, 4),
            ] {
                let new = noise(len, seed);
                writer.write_at(&new, at as u64, false).unwrap();
                bytes[at..at + len].copy_from_slice(&new);
            }
            for (start, end) in [
                (100, 200),
                (8192, 12288),
                (90_000, 110_001),
                (299_100, 300_000),
            ] {
                let range = ByteRange::between(start as u64, end as u64);
                let done = writer.zero(range, ZeroOpts::default()).unwrap();
                assert_eq!(done, Done::Yes);
                bytes[start..end].fill(0);
            }
            (volume, bytes)
        });
    });
}

#[test]
fn writes_are_those_of_the_model_and_neighbours_stay() {
    each(|open| {
        conformance::check_writer(|| {
            let (below, bytes) = disk();
            (open(&below), bytes)
        });
    });
}

#[test]
fn what_is_below_is_asked_in_its_own_blocks() {
    each(|open| {
        for block in [512, 4096, 65536] {
            conformance::check_writer(|| {
                let bytes = noise(SIZE, 5);
                let (below, _) = StrictDisk::new(block).volume(bytes.clone());
                (open(&below), bytes)
            });
        }
    });
}

#[test]
fn errors_from_below_come_up() {
    let (_, bytes) = disk();
    conformance::check_errors("cow", &bytes, |below| {
        (COW.open)(below, &Args::new(), &cx())
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept");
    conformance::check_errors("cow", &bytes, |below| {
        (COW.open)(below, &kept(&file), &cx())
    });
}

#[test]
fn nothing_below_is_ever_written() {
    each(|open| {
        let bytes = noise(SIZE, 6);
        let (below, disk) = StrictDisk::new(512).volume(bytes.clone());
        let volume = open(&below);
        let writer = volume.writer().unwrap();
        writer.write_at(&noise(100_000, 7), 12_345, true).unwrap();
        let all = ByteRange::between(0, volume.size());
        writer.trim(all, false).unwrap();
        assert_eq!(writer.zero(all, ZeroOpts::default()).unwrap(), Done::Yes);
        writer.flush().unwrap();
        volume.close().unwrap();
        assert!(disk.bytes() == bytes);
        assert_eq!(disk.flushes(), 0);
    });
}

#[test]
fn extents_tell_of_zeroes_and_of_what_is_below() {
    each(|open| {
        let mut bytes = noise(64 << 10, 8);
        bytes[40_960..].fill(0);
        let (below, _) = StrictDisk::new(4096).volume(bytes);
        let volume = open(&below);
        let writer = volume.writer().unwrap();
        let zero = ByteRange::between(4096, 12_288);
        assert_eq!(writer.zero(zero, ZeroOpts::default()).unwrap(), Done::Yes);
        writer.write_at(&[1; 4096], 45_056, false).unwrap();
        let extents = volume.extents(ByteRange::between(0, 64 << 10)).unwrap();
        let found: Vec<_> = extents
            .runs()
            .iter()
            .map(|run| (run.range.start(), run.flags))
            .collect();
        let expected = [
            (0, ExtentFlags::DATA),
            (4096, ExtentFlags::HOLE),
            (12_288, ExtentFlags::DATA),
            (40_960, ExtentFlags::ZERO),
            (45_056, ExtentFlags::DATA),
            (49_152, ExtentFlags::ZERO),
        ];
        assert_eq!(found, expected);
    });
}

#[test]
fn what_is_trimmed_is_zero_where_it_was_written_and_as_below_elsewhere() {
    each(|open| {
        let (below, bytes) = disk();
        let volume = open(&below);
        let writer = volume.writer().unwrap();
        writer.write_at(&[1; 8192], 8192, false).unwrap();
        writer.trim(ByteRange::between(0, 16_000), false).unwrap();
        let found = volume.read_vec(0, 20_000).unwrap();
        assert!(found[..8192] == bytes[..8192]);
        assert!(found[8192..12_288].iter().all(|byte| *byte == 0));
        // Not a whole block.
        assert!(found[12_288..16_384].iter().all(|byte| *byte == 1));
        assert!(found[16_384..] == bytes[16_384..20_000]);
    });
}
