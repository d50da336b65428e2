//! Images that were cut into files, on a web server.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileExt;

use nbdserve::source::Http;
use nbdserve::source::split::Look;
use nbdserve::testing::{conformance, noise};
use nbdserve::{Cx, Device, Kind, Result, Volume};

use crate::server::{Asked, File, Reply, Server};
use crate::{assert_says, options};

/// Parts by path, and what else is asked for.
type Parts = BTreeMap<String, File>;

/// `/disk.001` and so on, of these lengths, and all bytes.
fn parts(lengths: &[usize]) -> (Parts, Vec<u8>) {
    let mut all = Vec::new();
    let mut parts = Parts::new();
    for (number, len) in lengths.iter().enumerate() {
        let bytes = noise(*len, number as u64 + 1);
        all.extend(&bytes);
        parts.insert(format!("/disk.{:03}", number + 1), File::new(bytes));
    }
    (parts, all)
}

fn serve(parts: Parts, otherwise: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |asked| {
        let path = asked.target.split('?').next().unwrap();
        Some(match parts.get(path) {
            Some(file) => file.serve(asked),
            None => otherwise(asked),
        })
    })
}

fn not_found(_: &Asked) -> Reply {
    Reply::status(404)
}

fn open(server: &Server, look: Look) -> Result<Http> {
    Http::open_split(&server.url("/disk.001"), &options(), look, &Cx::new(0))
}

fn targets(server: &Server) -> Vec<String> {
    let mut targets: Vec<_> = server
        .asked()
        .into_iter()
        .map(|asked| asked.target)
        .collect();
    targets.sort();
    targets
}

#[test]
fn the_suite_holds_on_parts_of_any_length() {
    let (parts, all) = parts(&[300_001, 5, 0, 262_144, 4096, 100]);
    let server = serve(parts, not_found);
    conformance::check(|| {
        let http = open(&server, Look::Auto).unwrap();
        (Volume::new(http), all.clone())
    });
}

#[test]
fn parts_are_asked_for_until_one_is_not_found() {
    let (parts, all) = parts(&[1000, 1000, 1000]);
    let server = serve(parts, not_found);
    let http = open(&server, Look::Auto).unwrap();
    assert_eq!(http.parts(), Some(3));
    assert_eq!(http.geometry().size, 3000);
    assert_eq!(http.identity().size, 3000);
    assert_eq!(
        http.identity().strong_etag.unwrap(),
        "\"v1\", \"v1\", \"v1\""
    );
    // The first two that may follow at once, then more.
    let expected = (1..=7).map(|number| format!("/disk.{number:03}"));
    assert_eq!(targets(&server), expected.collect::<Vec<_>>());
    let mut found = vec![0; 3000];
    http.read_at(&mut found, 0).unwrap();
    assert!(found == all);
}

#[test]
fn a_number_of_parts_is_taken_as_said() {
    let (parts, _) = parts(&[1000, 1000, 1000]);
    let server = serve(parts, |_| Reply::status(403));
    assert_eq!(open(&server, Look::Exactly(3)).unwrap().parts(), Some(3));
    assert_eq!(targets(&server), ["/disk.001", "/disk.002", "/disk.003"]);
    for look in [Look::Exactly(1), Look::Never] {
        assert_eq!(open(&server, look).unwrap().parts(), Some(1));
    }
    assert_eq!(server.asked().len(), 5);
    // Whether there are more a server that refuses does not tell.
    let error = open(&server, Look::Auto).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_says(&error, &["disk.004", "cannot be told", "split:parts=N"]);
}

#[test]
fn a_missing_part_is_named() {
    let (mut all, _) = parts(&[1000; 5]);
    for gap in [2, 3, 4] {
        let mut some = all.clone();
        some.remove(&format!("/disk.00{gap}"));
        let server = serve(some, not_found);
        let error = open(&server, Look::Auto).unwrap_err();
        assert_says(&error, &[&format!("disk.00{gap} is missing")]);
        let error = open(&server, Look::Exactly(5)).unwrap_err();
        assert_says(&error, &[&format!("there is no part disk.00{gap}")]);
    }
    all.clear();
    let error = open(&serve(all, not_found), Look::Auto).unwrap_err();
    assert_says(&error, &["there is no", "disk.001"]);
}

#[test]
fn the_same_credentials_and_the_same_query_go_to_every_part() {
    let (parts, _) = parts(&[1000, 1000]);
    let server = serve(parts, not_found);
    let url = server
        .url("/disk.001?key=1")
        .replace("http://", "http://joe:secret@");
    Http::open_split(&url, &options(), Look::Auto, &Cx::new(0)).unwrap();
    for asked in server.asked() {
        assert!(asked.header("authorization").is_some(), "{asked:?}");
        assert!(asked.target.ends_with("?key=1"), "{asked:?}");
    }
}

#[test]
fn other_names_are_not_taken_for_first_parts() {
    let file = File::new(noise(1000, 1));
    let server = Server::of(&file);
    for path in ["/disk.raw", "/disk.002", "/", "/get?file=disk.001"] {
        let url = server.url(path);
        let http = Http::open_split(&url, &options(), Look::Auto, &Cx::new(0)).unwrap();
        assert_eq!(http.parts(), Some(1), "{path}");
        let error = Http::open_split(&url, &options(), Look::All, &Cx::new(0)).unwrap_err();
        assert_says(&error, &["name of a first part"]);
    }
}

#[test]
fn a_part_that_changes_is_noticed() {
    let (parts, all) = parts(&[400_000, 400_000]);
    let changed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let now = std::sync::Arc::clone(&changed);
    let server = Server::start(move |asked| {
        let mut file = match parts.get(&asked.target) {
            Some(file) => file.clone(),
            None => return Some(Reply::status(404)),
        };
        if asked.target.ends_with("2") && now.load(std::sync::atomic::Ordering::SeqCst) {
            file.etag = Some("\"v2\"".to_owned());
        }
        Some(file.serve(asked))
    });
    let http = open(&server, Look::Auto).unwrap();
    let mut found = vec![0; 1000];
    http.read_at(&mut found, 0).unwrap();
    assert!(found == all[..1000]);
    changed.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = http.read_at(&mut found, 500_000).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
}

#[test]
fn parts_can_be_fetched_whole() {
    let (parts, all) = parts(&[300_000, 7, 100_000]);
    // A server without ranges.
    let server = Server::start(move |asked| {
        Some(match parts.get(&asked.target) {
            Some(file) => file.whole(),
            None => Reply::status(404),
        })
    });
    let url = server.url("/disk.001");
    let files = Http::download_split(&url, &options(), Look::Auto, &Cx::new(0)).unwrap();
    let mut fetched = Vec::new();
    for mut file in files {
        assert_eq!(file.write_at(b"", 0).unwrap(), 0);
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut fetched).unwrap();
    }
    assert!(fetched == all);
}
