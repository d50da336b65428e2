//! Writes through stacks of layers: durable when they say so, holes where the bottom can make them,
//! nobody's neighbours lost, no second writer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nbdserve::plan::{self, Pick, Purpose, Request};
use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::{StrictDisk, conformance, noise, tools};
use nbdserve::{ByteRange, Cx, Done, Kind, Result, Volume, WriteFeatures, ZeroOpts};

/// Bytes of a partition, whose ends are not those of a block.
const PART: usize = 200 * 512;

/// A disk with two partitions beside each other, at odd sectors.
fn disk() -> Vec<u8> {
    let mut bytes = noise(512 * 500, 1);
    bytes[..512].fill(0);
    for (slot, first) in [(446, 33_u32), (462, 233)] {
        bytes[slot + 4] = 0x83;
        bytes[slot + 8..slot + 12].copy_from_slice(&first.to_le_bytes());
        bytes[slot + 12..slot + 16].copy_from_slice(&200_u32.to_le_bytes());
    }
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

/// An archive with the disk between two other files.
fn archive(dir: &Path) -> PathBuf {
    fs::write(dir.join("before"), "before\n").unwrap();
    fs::write(dir.join("disk.raw"), disk()).unwrap();
    fs::write(dir.join("after"), "after\n").unwrap();
    let mut tar = tools::command("tar");
    let tar = tar.current_dir(dir).args(["-cf", "a.tar"]);
    tools::run_command(tar.args(["before", "disk.raw", "after"]));
    dir.join("a.tar")
}

fn opened(source: Volume, layers: &[&str]) -> Result<Volume> {
    let request = Request {
        layers: layers.iter().map(|spec| spec.parse().unwrap()).collect(),
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        ..Request::default()
    };
    let cx = Cx::new(16 << 20);
    plan::resolve(source, "image", &request, &|_, _| None, &cx).map(|found| found.volume)
}

/// Each stack, how its bytes come from those of the bottom, and where they begin there.
fn stacks(dir: &Path) -> Vec<(Vec<&'static str>, Vec<u8>, usize)> {
    let tar = fs::read(archive(dir)).unwrap();
    let at = tar.windows(512).position(|part| part == &disk()[..512]);
    let at = at.unwrap();
    vec![
        (vec!["raw"], disk(), 0),
        (vec!["offset:777"], disk(), 777),
        (vec!["partition:1"], disk(), 33 * 512),
        (vec!["tar:disk.raw", "raw"], tar.clone(), at),
        (
            vec!["tar:disk.raw", "partition:2"],
            tar.clone(),
            at + 233 * 512,
        ),
        (
            vec!["tar:disk.raw", "offset:offset=1000,size=5555"],
            tar,
            at + 1000,
        ),
    ]
}

#[test]
fn every_stack_of_writable_layers_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    for (layers, bottom, at) in stacks(dir.path()) {
        conformance::check_writer(|| {
            let volume = opened(Memory::volume(bottom.clone()), &layers).unwrap();
            let bytes = bottom[at..at + volume.size() as usize].to_vec();
            (volume, bytes)
        });
    }
}

#[test]
fn flush_and_fua_reach_the_bottom_and_the_neighbours_stay() {
    let dir = tempfile::tempdir().unwrap();
    let native = WriteFeatures {
        fua: true,
        zero: true,
        trim: true,
    };
    for (layers, bottom, at) in stacks(dir.path()) {
        for features in [WriteFeatures::default(), native] {
            let strict = StrictDisk::new(512).features(features);
            let (source, disk) = strict.volume(bottom.clone());
            let volume = opened(source, &layers).unwrap();
            let writer = volume.writer().unwrap();
            let mut expected = bottom.clone();
            let new = noise(1500, 2);
            writer.write_at(&new, 301, true).unwrap();
            expected[at + 301..at + 1801].copy_from_slice(&new);
            assert!(disk.durable() == expected, "{layers:?}: FUA");
            writer.write_at(&new, 3000, false).unwrap();
            expected[at + 3000..at + 4500].copy_from_slice(&new);
            assert!(disk.durable() != expected);
            let opts = ZeroOpts {
                may_trim: true,
                ..ZeroOpts::default()
            };
            let done = writer.zero(ByteRange::between(400, 1700), opts).unwrap();
            assert_eq!(done, Done::Yes);
            expected[at + 400..at + 1700].fill(0);
            writer.flush().unwrap();
            assert!(disk.durable() == expected, "{layers:?}: flush");
        }
    }
}

#[test]
fn what_is_trimmed_becomes_a_hole_of_the_file_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let bytes = noise(8 << 20, 3);
    fs::write(&image, &bytes).unwrap();
    let source = Volume::new(File::open(&image, OpenMode::Write).unwrap());
    let volume = opened(source, &["offset:1M", "raw"]).unwrap();
    let writer = volume.writer().unwrap();
    let blocks = || fs::metadata(&image).unwrap().blocks() * 512;
    let full = blocks();
    writer
        .trim(ByteRange::between(100, 2 << 20), false)
        .unwrap();
    writer.flush().unwrap();
    let trimmed = blocks();
    assert!(trimmed <= full - (1 << 20), "{full} {trimmed}");
    let opts = ZeroOpts {
        may_trim: true,
        ..ZeroOpts::default()
    };
    let range = ByteRange::between(3 << 20, 4 << 20);
    assert_eq!(writer.zero(range, opts).unwrap(), Done::Yes);
    writer.flush().unwrap();
    assert!(blocks() < trimmed);
    let found = fs::read(&image).unwrap();
    assert_eq!(found.len(), bytes.len());
    assert!(found[..(1 << 20) + 100] == bytes[..(1 << 20) + 100]);
    assert!(found[3 << 20..4 << 20] == bytes[3 << 20..4 << 20]);
    assert!(found[5 << 20..] == bytes[5 << 20..]);
}

#[test]
fn tar_reads_what_was_written_into_its_archive_and_qemu_stays_out_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let tar = archive(dir.path());
    let open = |mode| -> Result<Volume> {
        let source = Volume::new(File::open(&tar, mode)?);
        opened(source, &["tar:disk.raw", "partition:2"])
    };
    let qemu = || {
        let mut command = tools::command("qemu-io");
        let output = command.args(["-f", "raw", "-c", "write 0 512"]).arg(&tar);
        let output = output.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let volume = open(OpenMode::Write).unwrap();
    let said = qemu();
    assert!(said.contains("Failed to get \"write\" lock"), "{said}");
    for mode in [OpenMode::Write, OpenMode::ReadOnly] {
        let error = open(mode).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{error:?}");
    }
    let new = noise(PART, 7);
    volume.writer().unwrap().write_at(&new, 0, true).unwrap();
    drop(volume);
    let reader = open(OpenMode::ReadOnly).unwrap();
    let said = qemu();
    assert!(said.contains("Failed to get \"write\" lock"), "{said}");
    open(OpenMode::Write).unwrap_err();
    assert!(reader.read_vec(0, PART).unwrap() == new);
    drop(reader);
    for name in ["before", "disk.raw", "after"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    tools::run_command(
        tools::command("tar")
            .current_dir(&dir)
            .args(["-xf", "a.tar"]),
    );
    let mut expected = disk();
    expected[233 * 512..433 * 512].copy_from_slice(&new);
    assert!(fs::read(dir.path().join("disk.raw")).unwrap() == expected);
    assert_eq!(fs::read(dir.path().join("before")).unwrap(), b"before\n");
    assert_eq!(fs::read(dir.path().join("after")).unwrap(), b"after\n");
}
