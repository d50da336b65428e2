//! The suite that all layers run through.

use std::fs;

use nbdserve::testing::conformance;
use nbdserve::{Access, Volume};

use crate::tools::{named, noise, open, open_on, tar};

#[test]
fn a_file_in_one_piece() {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(300_001, 1);
    fs::write(dir.path().join("disk"), &content).unwrap();
    fs::write(dir.path().join("next"), noise(5000, 2)).unwrap();
    let bytes = tar(dir.path(), &["next", "disk", "."]);
    let fresh = || (open(&bytes, "disk").unwrap(), content.clone());
    conformance::check(fresh);
    let open = |below: &Volume| open_on(below, &named("disk"));
    conformance::check_errors("tar:disk", &bytes, open);
}

#[test]
fn an_empty_file_and_one_of_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    for content in [&b""[..], b"x"] {
        fs::write(dir.path().join("disk"), content).unwrap();
        let bytes = tar(dir.path(), &["disk"]);
        conformance::check(|| (open(&bytes, "disk").unwrap(), content.to_vec()));
    }
}

#[test]
fn names_are_escaped_where_they_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let name = "a\u{1b}[31m\nb";
    fs::write(dir.path().join(name), b"content").unwrap();
    let bytes = tar(dir.path(), &["."]);
    let fresh = || (open(&bytes, name).unwrap(), b"content".to_vec());
    conformance::check(fresh);
    let (volume, _) = fresh();
    assert_eq!(volume.name(), "tar:a\\u{1b}[31m\\nb");
    assert_eq!(volume.geometry().access, Access::Random);
}
