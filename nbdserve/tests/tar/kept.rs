//! What is kept for the next mount.

use std::fs;
use std::path::{Path, PathBuf};

use nbdserve::layer::tar::TAR;
use nbdserve::source::Memory;
use nbdserve::store::{Place, Store};
use nbdserve::testing::{Counting, Counts};
use nbdserve::{Cx, Volume};

use crate::forge::{Header, end, file};
use crate::tools::{cx, named, noise, read_all, resolve};

/// Twenty files of which each takes a request.
fn twenty() -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 0..20 {
        bytes.extend(file(&format!("f{n}"), &noise(100_000, n)));
        bytes.extend(
            Header::new(b'1', &format!("l{n}"), 0)
                .link(&format!("f{n}"))
                .done(),
        );
    }
    bytes.extend(end());
    bytes
}

/// The files of kept indexes, in any folder.
fn indexes(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(indexes(&path));
        } else if path.to_str().unwrap().contains(".tar-index-") {
            found.push(path);
        }
    }
    found
}

fn counting(bytes: &[u8]) -> (Volume, Counts) {
    Counting::volume(Memory::volume(bytes.to_vec()))
}

#[test]
fn the_second_time_no_header_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let with_place = |identity: &str| Cx {
        place: Some(Place::new(store.clone(), identity)),
        ..cx()
    };
    let bytes = twenty();
    let (below, counts) = counting(&bytes);
    (TAR.open)(&below, &named("f7"), &with_place("one")).unwrap();
    assert!(counts.reads() >= 20);
    for name in ["f7", "l7"] {
        counts.reset();
        let volume = (TAR.open)(&below, &named(name), &with_place("one")).unwrap();
        assert_eq!(counts.reads(), 0);
        assert!(read_all(&volume) == noise(100_000, 7));
    }
    // Another image, and one that is not as long any more.
    counts.reset();
    (TAR.open)(&below, &named("f7"), &with_place("two")).unwrap();
    assert!(counts.reads() >= 20);
    let longer = [bytes.clone(), vec![0; 512]].concat();
    let (below, counts) = counting(&longer);
    (TAR.open)(&below, &named("f7"), &with_place("one")).unwrap();
    assert!(counts.reads() >= 20);
}

#[test]
fn what_is_damaged_is_read_again() {
    let bytes = twenty();
    let dir = tempfile::tempdir().unwrap();
    let cx = Cx {
        place: Some(Place::new(Store::open(dir.path()).unwrap(), "it")),
        ..cx()
    };
    let open = || {
        let (below, counts) = counting(&bytes);
        let volume = (TAR.open)(&below, &named("f3"), &cx).unwrap();
        let requests = counts.reads();
        assert!(read_all(&volume) == noise(100_000, 3));
        requests
    };
    assert!(open() > 20);
    assert_eq!(open(), 0);
    let damaged = indexes(dir.path());
    for path in &damaged {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(damaged.len(), 1);
    assert!(open() > 20);
}

#[test]
fn a_small_archive_is_not_worth_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let cx = Cx {
        place: Some(Place::new(store, "it")),
        ..cx()
    };
    let bytes = [file("disk", b"content"), end()].concat();
    (TAR.open)(&Memory::volume(bytes), &named("disk"), &cx).unwrap();
    assert_eq!(indexes(dir.path()).len(), 0);
}

#[test]
fn a_plan_is_followed_without_reading_headers_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let with_place = || Cx {
        place: Some(Place::new(store.clone(), "it")),
        ..cx()
    };
    let bytes = twenty();
    // Without a name, by a pattern, and by the name that the plan has.
    let (source, counts) = counting(&bytes);
    let found = resolve(source.clone(), &["tar:?1?"], &with_place());
    assert_eq!(found.unwrap_err().kind(), nbdserve::Kind::OutOfRange);
    assert!(counts.reads() >= 20);
    counts.reset();
    let found = resolve(source.clone(), &["tar:f1[3]"], &with_place()).unwrap();
    assert_eq!(found.plan.layers[0].to_string(), "tar:f13");
    counts.reset();
    let opened = nbdserve::plan::reopen(source, &found.plan, &with_place()).unwrap();
    assert_eq!(counts.reads(), 0);
    assert!(read_all(&opened.volume) == noise(100_000, 13));
}
