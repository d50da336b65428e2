//! Where the layer lies in a stack, and what `--info` says of it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nbdserve::plan::{self, Info, LayerSpec, Pick, Purpose, Request, Resolved};
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::{noise, tools};
use nbdserve::{Result, Volume};

use super::cx;

fn resolve(image: &Path, layers: &[&str], pick: Pick, cow: LayerSpec) -> Result<Resolved> {
    let source = Volume::new(File::open(image, OpenMode::ReadOnly)?);
    let request = Request {
        layers: layers.iter().map(|layer| layer.parse().unwrap()).collect(),
        pick,
        purpose: Purpose::Bytes,
        cow: Some(cow),
    };
    plan::resolve(source, "image", &request, &|_, _| None, &cx())
}

fn names(resolved: &Resolved) -> Vec<&str> {
    resolved.chain.iter().map(Volume::name).collect()
}

/// A disk with an MBR and two partitions of a megabyte.
fn disk() -> Vec<u8> {
    let mut bytes = noise(3 << 20, 1);
    bytes[..512].fill(0);
    for (slot, first) in [(446, 2048_u32), (462, 4096)] {
        bytes[slot + 4] = 0x83;
        bytes[slot + 8..slot + 12].copy_from_slice(&first.to_le_bytes());
        bytes[slot + 12..slot + 16].copy_from_slice(&2048_u32.to_le_bytes());
    }
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

fn xz(dir: &Path) -> std::path::PathBuf {
    let raw = dir.join("raw");
    fs::write(&raw, disk()).unwrap();
    tools::run("xz", [Path::new("-0"), &raw]);
    dir.join("raw.xz")
}

#[test]
fn it_lies_on_the_decoded_disk_below_the_partition() {
    let dir = tempfile::tempdir().unwrap();
    let image = xz(dir.path());
    let scratch = || LayerSpec::cow(None);
    let two = || Pick::Partition("2".to_owned());
    let found = resolve(&image, &[], two(), scratch()).unwrap();
    assert_eq!(names(&found), ["file", "xz", "cow", "partition:2"]);
    assert!(found.volume.writer().is_some());
    assert_eq!(found.source_range, None);
    let plan = found.plan.to_string();
    assert!(plan.contains("image -> xz -> cow -> partition:2"), "{plan}");
    let named = resolve(&image, &["xz", "partition:1"], Pick::Disk, scratch()).unwrap();
    assert_eq!(names(&named), ["file", "xz", "cow", "partition:1"]);
    let whole = resolve(&image, &[], Pick::Disk, scratch()).unwrap();
    assert_eq!(names(&whole), ["file", "xz", "cow"]);
    let raw = resolve(&image, &["raw"], Pick::Disk, scratch()).unwrap();
    assert_eq!(names(&raw), ["file", "cow"]);
    let part = resolve(&image, &["xz", "offset:1M"], Pick::Disk, scratch()).unwrap();
    assert_eq!(names(&part), ["file", "xz", "offset", "cow"]);
}

#[test]
fn one_file_serves_every_partition_and_a_plan_opens_it_again() {
    one_file_serves_all(OsStr::new("kept, with = and,"));
}

#[test]
fn so_does_a_file_whose_name_is_not_text() {
    one_file_serves_all(OsStr::from_bytes(b"kept, \xff\n=\xfe"));
}

fn one_file_serves_all(name: &OsStr) {
    let dir = tempfile::tempdir().unwrap();
    let image = xz(dir.path());
    let file = dir.path().join(name);
    let kept = || LayerSpec::cow(Some(&file));
    for (part, text) in [("1", b"one"), ("2", b"two")] {
        let pick = Pick::Partition(part.to_owned());
        let found = resolve(&image, &[], pick, kept()).unwrap();
        found
            .volume
            .writer()
            .unwrap()
            .write_at(text, 0, false)
            .unwrap();
        found.volume.close().unwrap();
    }
    let pick = Pick::Partition("2".to_owned());
    let found = resolve(&image, &[], pick, kept()).unwrap();
    assert_eq!(found.volume.read_vec(0, 3).unwrap(), b"two");
    let plan = found.plan.clone();
    drop(found);
    let text = serde_json::to_string(&plan).unwrap();
    let plan = serde_json::from_str(&text).unwrap();
    let source = Volume::new(File::open(&image, OpenMode::ReadOnly).unwrap());
    let again = plan::reopen(source, &plan, &cx()).unwrap();
    assert_eq!(again.volume.read_vec(0, 3).unwrap(), b"two");
    drop(again);
    assert!(file.exists());
    let whole = resolve(&image, &[], Pick::Disk, kept()).unwrap();
    assert_eq!(whole.volume.read_vec(2048 * 512, 3).unwrap(), b"one");
    let info = Info::new(&whole).to_string();
    assert!(info.contains("8 KiB written; made 20"), "{info}");
    assert!(info.contains("for image"), "{info}");
}

#[test]
fn a_table_that_was_written_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (image, file) = (dir.path().join("blank"), dir.path().join("kept"));
    fs::write(&image, vec![0; 3 << 20]).unwrap();
    let kept = || LayerSpec::cow(Some(&file));
    let blank = resolve(&image, &["raw"], Pick::Disk, kept()).unwrap();
    blank
        .volume
        .writer()
        .unwrap()
        .write_at(&disk()[..512], 0, false)
        .unwrap();
    blank.volume.close().unwrap();
    drop(blank);
    let pick = Pick::Partition("2".to_owned());
    let found = resolve(&image, &[], pick, kept()).unwrap();
    assert_eq!(names(&found), ["file", "cow", "partition:2"]);
}
