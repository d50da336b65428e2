//! What was fetched once, in the cache on disk.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nbdserve::source::Http;
use nbdserve::store::Store;
use nbdserve::testing::{Rng, conformance, noise};
use nbdserve::{ByteRange, Cx, Device, Kind, Volume};

use crate::server::{File, Server};
use crate::{options, read};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn keeping(folder: &Path) -> Cx {
    let mut cx = Cx::new(0);
    cx.store = Some(Store::open(folder).unwrap());
    cx
}

fn open(server: &Server, path: &str, folder: &Path) -> Http {
    Http::open(&server.url(path), &options(), &keeping(folder)).unwrap()
}

fn kept(folder: &Path) -> usize {
    Store::open(folder).unwrap().usage().images.len()
}

#[test]
fn it_keeps_the_contract_with_a_cache() {
    for len in [0, 1, 4097, 300_000, 3_000_000] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = noise(len, 1);
        let server = Server::of(&File::new(bytes.clone()));
        // Several times: with nothing, something, all of it there.
        conformance::check(|| {
            let http = open(&server, "/disk", folder.path());
            (Volume::new(http), bytes.clone())
        });
    }
}

#[test]
fn the_second_time_one_request_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = noise(5 * MIB + 777, 2);
    bytes[2 * MIB..3 * MIB].fill(0);
    let server = Server::of(&File::new(bytes.clone()));
    let mut rng = Rng::new(3);
    let places: Vec<_> = (0..60)
        .map(|_| {
            let at = rng.below(bytes.len() as u64) as usize;
            let len = (rng.below(200_000) as usize).min(bytes.len() - at);
            (at, len)
        })
        .collect();
    let first = open(&server, "/disk", folder.path());
    for (at, len) in &places {
        assert!(read(&first, *at, *len) == bytes[*at..at + len]);
    }
    first.close().unwrap();
    let before = server.ranges().len();
    assert!(before > 1);
    let second = open(&server, "/disk", folder.path());
    for (at, len) in &places {
        assert!(read(&second, *at, *len) == bytes[*at..at + len]);
    }
    assert_eq!(server.ranges().len(), before + 1);
    assert_eq!(second.stats().requests, 1);
    second.close().unwrap();
}

#[test]
fn only_what_is_missing_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(4 * MIB, 4);
    let server = Server::of(&File::new(bytes.clone()));
    let first = open(&server, "/disk", folder.path());
    first.will_need(ByteRange::between(1 << 20, (1 << 20) + 40_960));
    assert!(read(&first, MIB, 40 * KIB) == bytes[MIB..MIB + 40 * KIB]);
    first.close().unwrap();
    let fetched = server.ranges();
    let second = open(&server, "/disk", folder.path());
    let wide = ByteRange::between((1 << 20) - 65_536, (1 << 20) + 131_072);
    second.will_need(wide);
    let (start, end) = (wide.start() as usize, wide.end() as usize);
    assert!(read(&second, start, end - start) == bytes[start..end]);
    for (from, last) in &server.ranges()[fetched.len() + 1..] {
        let apart = |(other, end): &&(usize, usize)| last < other || end < from;
        assert!(
            fetched.iter().all(|old| apart(&old)),
            "{from}..{last} again: {fetched:?}"
        );
    }
    second.close().unwrap();
}

#[test]
fn another_version_another_query_and_another_path_are_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|asked| {
        let seed = u64::from(asked.target.len() as u32);
        let mut file = File::new(noise(MIB, seed));
        if asked.target.contains("v=two") {
            file.etag = Some("\"v2\"".to_owned());
        }
        Some(file.serve(asked))
    });
    let paths = ["/disk", "/disk?a=1", "/disk?v=two", "/disks?file=12"];
    for _ in 0..2 {
        for path in paths {
            let http = open(&server, path, folder.path());
            let bytes = noise(MIB, path.len() as u64);
            assert!(
                read(&http, 300_000, 400_000) == bytes[300_000..700_000],
                "{path}"
            );
            http.close().unwrap();
        }
    }
    assert_eq!(kept(folder.path()), paths.len());
    // Nothing of a query is written down.
    let shown = format!("{:?}", Store::open(folder.path()).unwrap().usage());
    assert!(!shown.contains("v=two"), "{shown}");
}

#[test]
fn without_a_strong_validator_nothing_is_kept() {
    for etag in [None, Some("W/\"v1\"".to_owned())] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = noise(MIB, 5);
        let mut file = File::new(bytes.clone());
        file.etag = etag;
        let server = Server::of(&file);
        for _ in 0..2 {
            let http = open(&server, "/disk", folder.path());
            assert_eq!(Device::source_identity(&http), None);
            assert!(read(&http, 500_000, 1000) == bytes[500_000..501_000]);
            http.close().unwrap();
        }
        assert_eq!(kept(folder.path()), 0);
        assert!(server.ranges().len() >= 4);
    }
}

#[test]
fn damage_is_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(2 * MIB, 6);
    let server = Server::of(&File::new(bytes.clone()));
    let first = open(&server, "/disk", folder.path());
    assert!(read(&first, 0, 2 * MIB) == bytes);
    first.close().unwrap();
    let image = fs::read_dir(folder.path().join("images")).unwrap().next();
    let files = fs::read_dir(image.unwrap().unwrap().path()).unwrap();
    let path = files
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|ext| ext == "pages"));
    let pages = OpenOptions::new().write(true).open(path.unwrap()).unwrap();
    let len = pages.metadata().unwrap().len();
    let second = open(&server, "/disk", folder.path());
    pages.write_all_at(&[0x77; 5000], len - MIB as u64).unwrap();
    let before = server.ranges().len();
    assert!(read(&second, 0, 2 * MIB) == bytes);
    assert!(server.ranges().len() > before);
    pages.set_len(0).unwrap();
    assert!(read(&second, 0, 2 * MIB) == bytes);
    second.close().unwrap();
}

#[test]
fn a_file_that_changes_fails_even_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(2 * MIB, 7);
    let file = File::new(bytes.clone());
    let changed = Arc::new(AtomicBool::new(false));
    let server = {
        let changed = Arc::clone(&changed);
        Server::start(move |asked| {
            let mut file = file.clone();
            if changed.load(Ordering::Relaxed) {
                file.etag = Some("\"v2\"".to_owned());
            }
            Some(file.serve(asked))
        })
    };
    let first = open(&server, "/disk", folder.path());
    assert!(read(&first, 0, MIB) == bytes[..MIB]);
    first.close().unwrap();
    let second = open(&server, "/disk", folder.path());
    changed.store(true, Ordering::Relaxed);
    assert!(read(&second, 600_000, 1000) == bytes[600_000..601_000]);
    let mut buf = [0; 100];
    let error = second.read_at(&mut buf, 2 * MIB as u64 - 100).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
    let error = second.read_at(&mut buf, 600_000).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
}
