//! The bzip2 layer against `bzip2`, `pbzip2` and `lbzip2`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod damage;
mod forge;
mod lies;
mod opening;
mod tools;

use nbdserve::testing::conformance::read_all;
use nbdserve::testing::tools::filter;
use nbdserve::{Cx, Kind};
use tools::{bzip2, image, noise, open, roomy, text};

#[track_caller]
fn assert_reads_back(file: Vec<u8>, bytes: &[u8]) {
    let volume = open(file, &roomy()).unwrap();
    assert_eq!(volume.size(), bytes.len() as u64);
    assert!(read_all(&volume) == bytes, "other bytes");
}

#[test]
fn all_levels_and_tools_read_back() {
    let bytes = image(3_000_000);
    for level in ["-1", "-5", "-9"] {
        assert_reads_back(bzip2(&bytes, &[level]), &bytes);
    }
    assert_reads_back(filter("lbzip2", &["-n2", "-3"], &bytes), &bytes);
    // One stream for each 100 kB.
    assert_reads_back(
        filter("pbzip2", &["-c", "-p2", "-b1", "-1"], &bytes),
        &bytes,
    );
}

#[test]
fn what_cannot_be_compressed_reads_back() {
    let bytes = noise(1_500_000, 1);
    assert_reads_back(bzip2(&bytes, &["-9"]), &bytes);
    assert_reads_back(bzip2(&bytes, &["-1"]), &bytes);
}

#[test]
fn lengths_around_a_block_read_back() {
    let bytes = noise(200_100, 2);
    for len in [
        1, 2, 4, 99_980, 99_981, 99_982, 100_000, 199_962, 199_963, 200_100,
    ] {
        assert_reads_back(bzip2(&bytes[..len], &["-1"]), &bytes[..len]);
    }
}

#[test]
fn streams_of_different_levels_and_empty_ones_are_one_image() {
    let parts = [
        text(250_000),
        Vec::new(),
        image(1_000_000),
        vec![7; 5],
        Vec::new(),
    ];
    let mut file = Vec::new();
    for (part, level) in parts.iter().zip(["-1", "-9", "-4", "-9", "-1"]) {
        file.extend(bzip2(part, &[level]));
    }
    assert_reads_back(file, &parts.concat());
}

#[test]
fn thousands_of_small_streams_are_one_image() {
    let (one, empty) = (bzip2(b"a small stream\n", &[]), bzip2(b"", &[]));
    let mut file = Vec::new();
    let mut bytes = Vec::new();
    for _ in 0..1500 {
        file.extend([&empty[..], &one].concat());
        bytes.extend(b"a small stream\n");
    }
    assert_reads_back(file, &bytes);
}

#[test]
fn an_empty_file_and_an_empty_stream_are_told_apart() {
    assert_reads_back(bzip2(b"", &[]), b"");
    for bytes in [&b""[..], b"BZ", b"BZh", b"BZh0", b"bZh9"] {
        let error = open(bytes.to_vec(), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotThisFormat, "{bytes:?}");
    }
}

#[test]
fn little_memory_is_enough_and_too_little_is_said() {
    let bytes = image(2_500_000);
    let file = bzip2(&bytes, &[]);
    let cx = Cx::new(8 << 20);
    let volume = open(file.clone(), &cx).unwrap();
    assert!(read_all(&volume) == bytes);
    assert!(cx.cache.peak() <= 8 << 20, "{}", cx.cache.peak());
    drop(volume);
    assert_eq!(cx.cache.used(), 0);
    let error = open(file, &Cx::new(4 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    let hint = error.report().hint.unwrap_or_default();
    assert!(hint.starts_with("--cache-size="), "{hint}");
}
