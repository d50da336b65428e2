//! What an image compressed with xz costs to read over http.

use std::process::Command;

use nbdserve::layer;
use nbdserve::testing::{Rng, noise};
use nbdserve::{Cx, Kind, Volume, plan};

use crate::open;
use crate::server::{File, Server};

const MIB: usize = 1 << 20;

/// `len` bytes that shrink to about half, and what xz makes of them in blocks of `block` bytes.
fn compressed(len: usize, block: usize) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = noise(len, 1);
    for piece in bytes.chunks_mut(64) {
        let half = piece.len() / 2;
        piece[half..].fill(7);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, &bytes).unwrap();
    let status = Command::new("xz")
        .args(["-T1", "-0", "--keep", &format!("--block-size={block}")])
        .arg(&path)
        .status()
        .unwrap();
    assert!(status.success());
    let packed = std::fs::read(path.with_extension("xz")).unwrap();
    (bytes, packed)
}

fn open_xz(server: &Server, cx: &Cx) -> (Volume, Volume) {
    let http = Volume::new(open(&server.url("/disk.xz")).unwrap());
    let xz = (layer::xz::XZ.open)(&http, &layer::Args::new(), cx).unwrap();
    (http, xz)
}

/// Bytes that were asked for.
fn fetched(server: &Server) -> usize {
    server
        .ranges()
        .iter()
        .map(|(first, last)| last + 1 - first)
        .sum()
}

#[test]
fn a_block_of_xz_is_one_request_for_little_more_than_the_block() {
    let (bytes, packed) = compressed(16 * MIB, 2 * MIB);
    let server = Server::of(&File::new(packed.clone()));
    let cx = Cx::new(64 << 20);
    let (_http, xz) = open_xz(&server, &cx);
    let mut rng = Rng::new(1);
    // Opening has begun with block 0.
    let blocks = [0, 5, 2, 7];
    for block in blocks {
        let at = block * 2 * MIB + rng.below(2 * MIB as u64 - 4096) as usize;
        assert!(xz.read_vec(at as u64, 4096).unwrap() == bytes[at..at + 4096]);
    }
    xz.close().unwrap();
    // The first bytes, the index, and the blocks.
    let ranges = server.ranges();
    assert!(ranges.len() <= 2 + blocks.len(), "{ranges:?}");
    let needed = packed.len() / 8 * blocks.len();
    assert!(fetched(&server) * 10 <= needed * 13, "{ranges:?}");
}

#[test]
fn all_of_an_xz_file_is_fetched_once_with_few_requests() {
    for (block, most) in [(MIB, 14), (3 * MIB, 6), (12 * MIB, 6)] {
        let (bytes, packed) = compressed(12 * MIB, block);
        let server = Server::of(&File::new(packed.clone()));
        let cx = Cx::new(64 << 20);
        let (_http, xz) = open_xz(&server, &cx);
        for at in (0..bytes.len()).step_by(MIB) {
            assert!(xz.read_vec(at as u64, MIB).unwrap() == bytes[at..at + MIB]);
        }
        assert_eq!(fetched(&server), packed.len(), "blocks of {block}");
        let ranges = server.ranges();
        assert!(
            ranges.len() <= most,
            "blocks of {block}: {} requests: {ranges:?}",
            ranges.len()
        );
    }
}

#[test]
fn the_first_pass_over_a_gzip_file_makes_longer_and_longer_requests() {
    let bytes = noise(64 * MIB, 3);
    let packed = {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, &bytes).unwrap();
        let status = Command::new("gzip").arg("-1").arg(&path).status();
        assert!(status.unwrap().success());
        std::fs::read(path.with_extension("gz")).unwrap()
    };
    let server = Server::of(&File::new(packed.clone()));
    let http = Volume::new(open(&server.url("/disk.gz")).unwrap());
    let cx = Cx::new(64 << 20);
    let gzip = (layer::gzip::GZIP.open)(&http, &layer::Args::new(), &cx).unwrap();
    assert_eq!(gzip.size(), bytes.len() as u64);
    assert_eq!(fetched(&server), packed.len());
    let ranges = server.ranges();
    assert!(ranges.len() <= 12, "{} requests: {ranges:?}", ranges.len());
    let longest = ranges.iter().map(|(first, last)| last + 1 - first).max();
    assert!(longest > Some(8 * MIB), "{ranges:?}");
}

/// Where nothing tells one version of a file from another, some places of it are looked at, all of them
/// at about the same time.
#[test]
fn a_cow_file_for_a_remote_image_looks_at_few_places() {
    let mut file = File::new(noise(64 * MIB, 3));
    file.etag = None;
    let server = Server::of(&file);
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let resolve = |server: &Server| {
        let http = Volume::new(open(&server.url("/disk")).unwrap());
        let request = plan::Request {
            layers: vec!["raw".parse().unwrap()],
            pick: plan::Pick::Disk,
            purpose: plan::Purpose::Bytes,
            cow: Some(plan::LayerSpec::cow(Some(&kept))),
        };
        let cx = Cx::new(16 << 20);
        plan::resolve(http, "disk", &request, &|_, _| None, &cx)
    };
    let volume = resolve(&server).unwrap().volume;
    let requests = server.asked().len();
    volume.writer().unwrap().write_at(b"new", 0, true).unwrap();
    volume.close().unwrap();
    drop(volume);
    assert!(requests <= 25, "{requests}");
    assert!(
        server
            .asked()
            .iter()
            .any(|asked| asked.all_ranges().len() > 9)
    );
    // Another file of the same size is noticed by one of them.
    let mut other = file.clone();
    let mut bytes = other.bytes.to_vec();
    bytes[32 * MIB + 5] ^= 1;
    other.bytes = bytes.into();
    let error = resolve(&Server::of(&other)).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
}
