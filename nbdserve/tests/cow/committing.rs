//! Writing back what was kept.

use std::fs;
use std::path::{Path, PathBuf};

use nbdserve::layer::cow::{self, Base, COW, Committed};
use nbdserve::plan::{self, LayerSpec, Pick, Purpose, Request};
use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::{Faulty, StrictDisk, noise, tools};
use nbdserve::{ByteRange, Done, Kind, Result, Volume, ZeroOpts};

use super::{cx, kept};

const SIZE: usize = 300_000;

fn open(image: &Path, file: &Path) -> Result<Volume> {
    let source = Volume::new(File::open(image, OpenMode::ReadOnly)?);
    let request = Request {
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        cow: Some(LayerSpec::cow(Some(file))),
        ..Request::default()
    };
    let name = image.to_str().unwrap();
    plan::resolve(source, name, &request, &|_, _| None, &cx()).map(|resolved| resolved.volume)
}

fn commit(image: &Path, file: &Path, layers: &[LayerSpec]) -> Result<Committed> {
    let source = File::open(image, OpenMode::Write)?;
    let handle = source.try_clone()?;
    let name = image.to_str().unwrap();
    let identity = || handle.identity();
    plan::commit(Volume::new(source), name, layers, file, &identity, &cx())
}

/// Writes to `volume`, and to `bytes` as well.
fn change(volume: &Volume, bytes: &mut [u8]) {
    let writer = volume.writer().unwrap();
    let new = noise(50_000, 9);
    writer.write_at(&new, 1234, false).unwrap();
    bytes[1234..51_234].copy_from_slice(&new);
    let range = ByteRange::between(100_000, 150_000);
    assert_eq!(writer.zero(range, ZeroOpts::default()).unwrap(), Done::Yes);
    bytes[100_000..150_000].fill(0);
    writer
        .write_at(&[7; 10], bytes.len() as u64 - 10, false)
        .unwrap();
    let end = bytes.len();
    bytes[end - 10..].fill(7);
    volume.close().unwrap();
}

struct Case {
    dir: tempfile::TempDir,
    image: PathBuf,
    file: PathBuf,
    bytes: Vec<u8>,
}

fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let (image, file) = (dir.path().join("image"), dir.path().join("kept"));
    let mut bytes = noise(SIZE, 1);
    fs::write(&image, &bytes).unwrap();
    change(&open(&image, &file).unwrap(), &mut bytes);
    Case {
        dir,
        image,
        file,
        bytes,
    }
}

#[test]
fn the_image_has_the_writes_and_the_file_is_empty_and_goes_on() {
    let mut case = case();
    let done = commit(&case.image, &case.file, &[]).unwrap();
    assert!(done.written > 50_000 && done.zeroed > 40_000, "{done:?}");
    assert!(fs::read(&case.image).unwrap() == case.bytes);
    let volume = open(&case.image, &case.file).unwrap();
    assert!(volume.read_vec(0, SIZE).unwrap() == case.bytes);
    // Empty: nothing is read from it.
    change(&volume, &mut case.bytes);
    drop(volume);
    commit(&case.image, &case.file, &[]).unwrap();
    assert!(fs::read(&case.image).unwrap() == case.bytes);
    let nothing = commit(&case.image, &case.file, &[]).unwrap();
    assert_eq!(nothing, Committed::default());
}

#[test]
fn a_file_of_a_disk_in_an_archive_is_written_back_into_the_archive() {
    let case = case();
    let (tar, file) = (case.dir.path().join("a.tar"), case.dir.path().join("k"));
    tools::run_command(
        tools::command("tar")
            .current_dir(&case.dir)
            .args(["-cf", "a.tar", "image"]),
    );
    let mut bytes = fs::read(&case.image).unwrap();
    // Named, since noise is no disk.
    let layers = ["tar:image".parse::<LayerSpec>().unwrap()];
    let source = Volume::new(File::open(&tar, OpenMode::ReadOnly).unwrap());
    let request = Request {
        layers: layers.to_vec(),
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        cow: Some(LayerSpec::cow(Some(&file))),
    };
    let name = tar.to_str().unwrap();
    let resolved = plan::resolve(source, name, &request, &|_, _| None, &cx()).unwrap();
    change(&resolved.volume, &mut bytes);
    drop(resolved);
    commit(&tar, &file, &layers).unwrap();
    fs::remove_file(&case.image).unwrap();
    tools::run_command(
        tools::command("tar")
            .current_dir(&case.dir)
            .args(["-xf", "a.tar"]),
    );
    assert!(fs::read(&case.image).unwrap() == bytes);
}

#[test]
fn an_image_that_cannot_be_written_is_refused_by_the_layer_with_advice() {
    let case = case();
    let (xz, file) = (case.dir.path().join("image.xz"), case.dir.path().join("k"));
    tools::run("xz", [Path::new("-0k"), &case.image]);
    let volume = open(&xz, &file).unwrap();
    volume.writer().unwrap().write_at(b"new", 0, false).unwrap();
    volume.close().unwrap();
    drop(volume);
    let error = commit(&xz, &file, &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::ReadOnly);
    let report = error.report().to_string();
    assert!(
        report.contains("the layer xz cannot be written"),
        "{report}"
    );
    assert!(report.contains("--fuse --cow="), "{report}");
    // It can still be used.
    assert_eq!(open(&xz, &file).unwrap().read_vec(0, 3).unwrap(), b"new");
    let missing = commit(&case.image, Path::new("/nonexistent"), &[]).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent"), "{missing}");
}

/// Each request to the image fails once: the commit can be made again, a mount is refused until
/// then, and nothing is lost.
#[test]
fn a_commit_that_was_interrupted_anywhere_can_be_made_again() {
    let bytes = noise(SIZE, 1);
    let base = Base {
        name: "image".to_owned(),
        ..Base::default()
    };
    let mut interrupted = 0;
    for skip in (0..1000).step_by(9) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept");
        let mut expected = bytes.clone();
        let below = Memory::volume(bytes.clone());
        let layer = cow::open_on(&below, &kept(&file), &base, &cx()).unwrap().0;
        change(&layer, &mut expected);
        drop(layer);
        let (strict, disk) = StrictDisk::new(512).volume(bytes.clone());
        let (faulty, faults) = Faulty::volume(strict);
        faults.fail_nth(skip, Kind::Io);
        let first = cow::commit(&faulty, &file, &base, &|| None, &cx());
        faults.clear();
        if first.is_ok() {
            assert!(disk.durable() == expected);
            break;
        }
        if disk.bytes() != bytes {
            interrupted += 1;
            let open = cow::open_on(&faulty, &kept(&file), &base, &cx());
            let error = open.unwrap_err();
            assert_eq!(error.kind(), Kind::Denied);
            let hint = error.report().hint.unwrap();
            assert!(hint.contains("loopmount --commit --cow="), "{hint}");
        }
        cow::commit(&faulty, &file, &base, &|| None, &cx()).unwrap();
        assert!(disk.durable() == expected, "after a fault at {skip}");
        let after = cow::open_on(&faulty, &kept(&file), &base, &cx()).unwrap().0;
        assert!(after.read_vec(0, SIZE).unwrap() == expected);
    }
    assert!(interrupted > 3, "{interrupted}");
}

#[test]
fn an_unfinished_commit_goes_to_its_own_image_only() {
    let case = case();
    let other = case.dir.path().join("other");
    let image = File::open(&case.image, OpenMode::Write).unwrap();
    let handle = image.try_clone().unwrap();
    let (faulty, faults) = Faulty::volume(Volume::new(image));
    let base = Base {
        name: case.image.to_str().unwrap().to_owned(),
        identity: handle.identity(),
        ..Base::default()
    };
    // Reads for the fingerprint come first.
    faults.fail_bytes(ByteRange::between(120_000, 120_001), Kind::Io);
    cow::commit(&faulty, &case.file, &base, &|| handle.identity(), &cx()).unwrap_err();
    drop((faulty, handle));
    fs::copy(&case.image, &other).unwrap();
    let error = commit(&other, &case.file, &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
    let report = error.report().to_string();
    assert!(report.contains("begun and not finished"), "{report}");
    commit(&case.image, &case.file, &[]).unwrap();
    assert!(fs::read(&case.image).unwrap() == case.bytes);
}

#[test]
fn the_layer_by_its_name_is_the_same_thing() {
    let (below, bytes) = super::disk();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept");
    let volume = (COW.open)(&below, &kept(&file), &cx()).unwrap();
    volume.writer().unwrap().write_at(b"new", 0, true).unwrap();
    drop(volume);
    let again = (COW.open)(&below, &kept(&file), &cx()).unwrap();
    assert_eq!(again.read_vec(0, 3).unwrap(), b"new");
    assert!(again.read_vec(3, 1000).unwrap() == bytes[3..1003]);
}
