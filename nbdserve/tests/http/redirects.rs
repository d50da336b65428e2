//! Redirects: followed once, pinned, followed anew when the target expires; and what is sent on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nbdserve::source::{Http, HttpOptions};
use nbdserve::testing::noise;
use nbdserve::{ByteRange, Cx, Device, Kind};

use crate::server::{File, Reply, Server};
use crate::{assert_says, open, options, read};

const MIB: usize = 1 << 20;

fn targets(server: &Server) -> Vec<String> {
    server
        .asked()
        .into_iter()
        .map(|asked| asked.target)
        .collect()
}

/// `/disk` redirects to `/signed?N`, where N counts up; a target is good for `lives` requests,
/// then it answers `status`.
fn expiring(file: File, lives: usize, status: u16) -> Server {
    let (current, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Server::start(move |asked| {
        if asked.target == "/disk" {
            used.store(0, Ordering::SeqCst);
            let number = current.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(Reply::redirect(&format!("/signed?{number}")));
        }
        let now = format!("/signed?{}", current.load(Ordering::SeqCst));
        let alive = asked.target == now && used.fetch_add(1, Ordering::SeqCst) < lives;
        Some(if alive {
            file.serve(asked)
        } else {
            Reply::status(status)
        })
    })
}

#[test]
fn the_target_of_a_redirect_is_found_once() {
    let file = File::new(noise(4 * MIB, 1));
    let bytes = Arc::clone(&file.bytes);
    let server = Server::start(move |asked| {
        Some(match asked.target.as_str() {
            "/a" => Reply::redirect("b?c").with("set-cookie", "a=b"),
            "/b?c" => Reply {
                status: 307,
                ..Reply::redirect("/real")
            },
            _ => file.serve(asked),
        })
    });
    let http = open(&server.url("/a")).unwrap();
    for at in [1, 2, 3] {
        assert!(read(&http, at * MIB, 4096) == bytes[at * MIB..at * MIB + 4096]);
    }
    assert_eq!(
        targets(&server),
        ["/a", "/b?c", "/real", "/real", "/real", "/real"]
    );
    assert_eq!(http.identity().url, server.url("/a"));
}

#[test]
fn an_expired_target_is_found_anew() {
    for status in [401, 403, 404, 410, 302] {
        let file = File::new(noise(8 * MIB, 1));
        let server = expiring(file.clone(), 3, status);
        let http = open(&server.url("/disk")).unwrap();
        for at in [1, 2, 3, 4, 5, 6, 7] {
            assert!(read(&http, at * MIB, 10) == file.bytes[at * MIB..at * MIB + 10]);
        }
        let expected = [
            "/disk",
            "/signed?1",
            "/signed?1",
            "/signed?1",
            "/signed?1",
            "/disk",
            "/signed?2",
            "/signed?2",
            "/signed?2",
            "/signed?2",
            "/disk",
            "/signed?3",
            "/signed?3",
        ];
        assert_eq!(targets(&server), expected, "{status}");
    }
}

#[test]
fn many_requests_that_find_it_expired_follow_the_redirects_once() {
    let file = File::new(noise(8 * MIB, 1));
    let expired = Arc::new(AtomicBool::new(false));
    let (flag, served) = (Arc::clone(&expired), file.clone());
    let server = Server::start(move |asked| {
        Some(match (asked.target.as_str(), flag.load(Ordering::SeqCst)) {
            ("/disk", false) => Reply::redirect("/old"),
            ("/disk", true) => Reply::redirect("/new"),
            ("/old", true) => Reply::status(403),
            _ => served.serve(asked),
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    expired.store(true, Ordering::SeqCst);
    for at in [1, 3, 5, 7] {
        http.will_need(ByteRange::between(at * MIB as u64, at * MIB as u64 + 4096));
    }
    for at in [1, 3, 5, 7] {
        assert!(read(&http, at * MIB, 4096) == file.bytes[at * MIB..at * MIB + 4096]);
    }
    let again = targets(&server)
        .iter()
        .filter(|target| *target == "/disk")
        .count();
    assert_eq!(again, 2);
}

#[test]
fn a_set_that_finds_it_expired_follows_the_redirects_as_a_set() {
    let file = File::new(noise(8 * MIB, 1));
    let server = expiring(file.clone(), 3, 403);
    let http = open(&server.url("/disk")).unwrap();
    for from in 0..4 {
        let pages = (1..8).map(|mib| {
            let at = (mib * MIB + from * 4096) as u64;
            ByteRange::between(at, at + 4096)
        });
        let pages: Vec<_> = pages.collect();
        http.will_need_parts(&pages);
        for page in &pages {
            let at = page.start() as usize;
            assert!(read(&http, at, 4096) == file.bytes[at..at + 4096]);
        }
    }
    let expected = [
        "/disk",
        "/signed?1",
        "/signed?1",
        "/signed?1",
        "/signed?1",
        "/disk",
        "/signed?2",
        "/signed?2",
    ];
    assert_eq!(targets(&server), expected);
}

#[test]
fn a_target_that_is_another_file_is_a_change() {
    for other in [
        File {
            etag: Some("\"v2\"".to_owned()),
            ..File::new(noise(2 * MIB, 1))
        },
        File::new(noise(2 * MIB + 1, 1)),
    ] {
        let file = File::new(noise(2 * MIB, 1));
        let resolved = AtomicUsize::new(0);
        let server = Server::start(move |asked| {
            Some(match (asked.target.as_str(), asked.number) {
                ("/disk", _) => {
                    let number = resolved.fetch_add(1, Ordering::SeqCst);
                    Reply::redirect(&format!("/{number}"))
                }
                ("/0", 1) => file.serve(asked),
                ("/0", _) => Reply::status(404),
                _ => other.ranges(asked),
            })
        });
        let http = open(&server.url("/disk")).unwrap();
        for _ in 0..2 {
            let error = http.read_at(&mut [0; 10], MIB as u64).unwrap_err();
            assert_eq!(error.kind(), Kind::Changed);
        }
        assert_eq!(
            http.read_at(&mut [0; 10], 0).unwrap_err().kind(),
            Kind::Changed
        );
        assert_eq!(server.asked().len(), 5);
    }
}

#[test]
fn a_target_that_stays_expired_is_an_error_but_not_for_good() {
    let file = File::new(noise(2 * MIB, 1));
    let bytes = Arc::clone(&file.bytes);
    let server = Server::start(move |asked| {
        Some(match (asked.target.as_str(), asked.number) {
            ("/disk", _) => Reply::redirect("/real"),
            (_, 2..5) => Reply::status(403),
            _ => file.serve(asked),
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    let error = http.read_at(&mut [0; 10], MIB as u64).unwrap_err();
    assert_eq!((error.kind(), server.asked().len()), (Kind::Denied, 5));
    assert!(read(&http, MIB, 10) == bytes[MIB..MIB + 10]);
}

#[test]
fn endless_and_forbidden_redirects_are_refused() {
    let server = Server::start(|asked| Some(Reply::redirect(&format!("/{}", asked.number))));
    let error = open(&server.url("/disk")).unwrap_err();
    assert_says(&error, &["more than 10 redirects"]);
    assert_eq!(server.asked().len(), 11);

    for location in ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"] {
        let server = Server::start(move |_| Some(Reply::redirect(location)));
        let error = open(&server.url("/disk")).unwrap_err();
        assert_eq!((error.kind(), server.asked().len()), (Kind::Denied, 1));
    }
    // A redirect that leads nowhere.
    let server = Server::start(|_| Some(Reply::status(302)));
    assert_says(&open(&server.url("/disk")).unwrap_err(), &["302 Found"]);
}

/// Opens a file with a host that redirects to another one (the same machine, another port) and
/// returns what each of them was told in the fields that may hold credentials.
fn told(url: impl Fn(&Server) -> String, options: &HttpOptions) -> [Vec<String>; 2] {
    let file = File::new(noise(2 * MIB, 1));
    let other = Server::of(&file);
    let location = other.url("/real");
    let first = Server::start(move |_| Some(Reply::redirect(&location)));
    let http = Http::open(&url(&first), options, &Cx::new(0)).unwrap();
    assert!(read(&http, MIB, 10) == file.bytes[MIB..MIB + 10]);
    [&first, &other].map(|server| {
        let fields = server.asked().into_iter().flat_map(|asked| {
            ["authorization", "x-token", "cookie", "referer"]
                .into_iter()
                .filter_map(move |name| Some(format!("{name}: {}", asked.header(name)?)))
        });
        fields.collect()
    })
}

#[test]
fn credentials_stay_with_the_host_they_were_given_for() {
    let nothing: Vec<String> = Vec::new();
    // echo -n me:secret | base64
    let basic = "authorization: Basic bWU6c2VjcmV0".to_owned();
    let with_login = |server: &Server| server.url("/disk").replace("://", "://me:secret@");

    assert_eq!(
        told(with_login, &options()),
        [vec![basic.clone()], nothing.clone()]
    );

    let mut headers = options();
    headers.headers = vec![
        ("X-Token".to_owned(), "t".to_owned()),
        ("Authorization".to_owned(), "Bearer b".to_owned()),
    ];
    // What the user writes out goes before the login in the URL.
    let expected = vec![
        "authorization: Bearer b".to_owned(),
        "x-token: t".to_owned(),
    ];
    assert_eq!(told(with_login, &headers), [expected, nothing.clone()]);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "machine 127.0.0.1 login me password secret").unwrap();
    let netrc = HttpOptions {
        netrc: Some(file.path().to_owned()),
        ..options()
    };
    let plain = |server: &Server| server.url("/disk");
    // Host names are all that a netrc file tells apart; a redirect is another matter.
    assert_eq!(told(plain, &netrc), [vec![basic], nothing.clone()]);
    let missing = HttpOptions {
        netrc: Some("/nonexistent".into()),
        ..options()
    };
    assert_eq!(told(plain, &missing), [nothing.clone(), nothing]);
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let server = Server::start(|asked| {
        Some(match asked.number {
            0 => Reply::redirect("/real?sig=secret"),
            _ => Reply::status(403),
        })
    });
    let url = server
        .url("/disk?key=secret")
        .replace("://", "://secret:secret@");
    let mut options = options();
    options.headers = vec![("X-Token".to_owned(), "secret".to_owned())];
    let error = Http::open(&url, &options, &Cx::new(0)).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_says(&error, &["/real?..."]);
    let all = format!("{error} {error:?} {} {options:?}", error.report());
    assert!(!all.contains("secret"), "{all}");

    let file = File::new(noise(10, 1));
    let server = Server::of(&file);
    let url = server
        .url("/disk?key=secret")
        .replace("://", "://secret:secret@");
    let http = Http::open(&url, &options, &Cx::new(0)).unwrap();
    let all = format!("{http:?} {:?}", http.identity());
    assert!(!all.contains("secret"), "{all}");

    drop(server);
    let error = Http::open(&url, &options, &Cx::new(0)).unwrap_err();
    assert!(!format!("{error:?} {}", error.report()).contains("secret"));
}
