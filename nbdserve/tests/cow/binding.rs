//! A cow file and the image that it goes with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nbdserve::layer::cow::COW;
use nbdserve::plan::{self, LayerSpec, Pick, Purpose, Request};
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::noise;
use nbdserve::{Error, Kind, Result, Volume};

use super::{cx, disk, kept};

/// Opens `image` with `file` as a user does.
fn open(image: &Path, file: &Path, layers: &[&str]) -> Result<Volume> {
    let source = Volume::new(File::open(image, OpenMode::ReadOnly)?);
    let request = Request {
        layers: layers.iter().map(|layer| layer.parse().unwrap()).collect(),
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        cow: Some(LayerSpec::cow(Some(file))),
    };
    let name = image.to_str().unwrap();
    plan::resolve(source, name, &request, &|_, _| None, &cx()).map(|resolved| resolved.volume)
}

fn refused(result: Result<Volume>, kind: Kind, words: &[&str]) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    let report = error.report().to_string();
    assert!(report.starts_with("cow: "), "{report}");
    assert!(error.report().hint.is_some(), "{report}");
    for word in words {
        assert!(report.contains(word), "{word}: not in {report}");
    }
    error
}

struct Case {
    _dir: tempfile::TempDir,
    image: std::path::PathBuf,
    file: std::path::PathBuf,
}

/// An image and a file with some writes to it.
fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let (image, file) = (dir.path().join("image"), dir.path().join("kept"));
    fs::write(&image, noise(200_000, 1)).unwrap();
    let volume = open(&image, &file, &[]).unwrap();
    volume
        .writer()
        .unwrap()
        .write_at(b"kept", 5000, false)
        .unwrap();
    volume.close().unwrap();
    Case {
        _dir: dir,
        image,
        file,
    }
}

fn has_writes(volume: &Volume) -> bool {
    volume.read_vec(5000, 4).unwrap() == b"kept"
}

#[test]
fn writes_are_there_the_next_time_and_the_file_is_private() {
    let case = case();
    assert!(has_writes(&open(&case.image, &case.file, &[]).unwrap()));
    let mode = fs::metadata(&case.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(fs::read(&case.image).unwrap() == noise(200_000, 1));
}

#[test]
fn an_image_that_was_moved_or_copied_with_its_times_is_the_same() {
    let case = case();
    let moved = case.image.with_file_name("moved");
    fs::rename(&case.image, &moved).unwrap();
    assert!(has_writes(&open(&moved, &case.file, &[]).unwrap()));
    let copied = case.image.with_file_name("copied");
    nbdserve::testing::tools::run("cp", [Path::new("--preserve=timestamps"), &moved, &copied]);
    assert!(has_writes(&open(&copied, &case.file, &[]).unwrap()));
    let layers = open(&copied, &case.file, &[]);
    assert!(layers.is_ok());
}

#[test]
fn an_image_that_was_written_to_is_refused() {
    let case = case();
    let mut bytes = fs::read(&case.image).unwrap();
    // In the middle, where no sample is taken.
    bytes[100_000] ^= 1;
    std::thread::sleep(std::time::Duration::from_millis(30));
    fs::write(&case.image, bytes).unwrap();
    let words = ["is not what it was", "modified", "remove the file"];
    refused(open(&case.image, &case.file, &[]), Kind::Changed, &words);
}

#[test]
fn an_image_of_the_same_time_with_other_bytes_is_refused() {
    let case = case();
    let other = case.image.with_file_name("other");
    fs::write(&other, noise(200_000, 2)).unwrap();
    let time = fs::metadata(&case.image).unwrap().modified().unwrap();
    fs::File::options()
        .write(true)
        .open(&other)
        .unwrap()
        .set_modified(time)
        .unwrap();
    refused(
        open(&other, &case.file, &[]),
        Kind::Changed,
        &["has other bytes"],
    );
}

#[test]
fn another_size_and_other_layers_are_refused() {
    let case = case();
    let longer = case.image.with_file_name("longer");
    fs::write(&longer, noise(200_001, 1)).unwrap();
    let words = ["200000", "200001", "image"];
    refused(open(&longer, &case.file, &[]), Kind::Changed, &words);
    let words = ["the bytes of the image as they are", "offset:"];
    let layers = ["offset:offset=0,size=200000"];
    refused(
        open(&case.image, &case.file, &layers),
        Kind::Changed,
        &words,
    );
}

#[test]
fn one_that_is_in_use_is_refused() {
    let case = case();
    let first = open(&case.image, &case.file, &[]).unwrap();
    refused(
        open(&case.image, &case.file, &[]),
        Kind::Denied,
        &["in use", "--list"],
    );
    drop(first);
    open(&case.image, &case.file, &[]).unwrap();
}

#[test]
fn what_is_no_cow_file_is_left_alone() {
    let case = case();
    for bytes in [&b"some text of the user"[..], &[0; 5000], &[1; 9000]] {
        fs::write(&case.file, bytes).unwrap();
        let words = ["does not begin as a cow file", "kept"];
        refused(
            open(&case.image, &case.file, &[]),
            Kind::NotThisFormat,
            &words,
        );
        assert!(fs::read(&case.file).unwrap() == bytes);
    }
    // The image itself.
    let error = open(&case.image, &case.image, &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    let folder = case.image.parent().unwrap();
    let error = open(&case.image, folder, &[]).unwrap_err();
    assert!(
        error.to_string().contains(folder.to_str().unwrap()),
        "{error}"
    );
    let error = open(&case.image, Path::new("/nonexistent/kept"), &[]).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/kept"), "{error}");
}

#[test]
fn what_has_no_identity_is_told_by_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept");
    let (below, mut bytes) = disk();
    let volume = (COW.open)(&below, &kept(&file), &cx()).unwrap();
    volume.writer().unwrap().write_at(b"new", 0, true).unwrap();
    volume.close().unwrap();
    drop(volume);
    (COW.open)(&below, &kept(&file), &cx()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let below = nbdserve::source::Memory::volume(bytes);
    let error = (COW.open)(&below, &kept(&file), &cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
}

/// A mount that came to nothing leaves such a file.
#[test]
fn one_in_which_nothing_was_stored_goes_with_any_image() {
    let dir = tempfile::tempdir().unwrap();
    let (image, other) = (dir.path().join("image"), dir.path().join("other"));
    let file = dir.path().join("kept");
    fs::write(&image, noise(200_000, 1)).unwrap();
    fs::write(&other, noise(300_000, 2)).unwrap();
    open(&image, &file, &[]).unwrap().close().unwrap();
    let volume = open(&other, &file, &[]).unwrap();
    assert_eq!(volume.size(), 300_000);
    volume
        .writer()
        .unwrap()
        .write_at(b"kept", 5000, true)
        .unwrap();
    volume.close().unwrap();
    drop(volume);
    assert!(has_writes(&open(&other, &file, &[]).unwrap()));
    let words = ["200000", "300000", "image"];
    refused(open(&image, &file, &[]), Kind::Changed, &words);
}
