//! A file that is fetched as a whole.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbdserve::cx::Observer;
use nbdserve::source::Http;
use nbdserve::testing::noise;
use nbdserve::{Cx, Kind, Result};

use crate::server::{Asked, File, Reply, Server, Step};
use crate::{assert_says, options};

const MIB: usize = 1 << 20;

fn download(
    handler: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> (Result<Vec<u8>>, Vec<Asked>) {
    let server = Server::start(handler);
    let mut cx = Cx::new(0);
    cx.no_progress = Duration::from_secs(6);
    let bytes = Http::download(&server.url("/disk"), &options(), &cx).map(|mut file| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    });
    (bytes, server.asked())
}

#[test]
fn a_server_without_ranges_serves_a_download() {
    for len in [0, 1, 3 * MIB + 5] {
        let file = File::new(noise(len, 1));
        let bytes = Arc::clone(&file.bytes);
        let (found, asked) = download(move |_| Some(file.whole()));
        assert!(found.unwrap() == *bytes);
        assert_eq!((asked.len(), asked[0].header("range")), (1, None));
    }
}

#[test]
fn the_file_is_reached_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of(&File::new(noise(1000, 1)));
    let mut cx = Cx::new(0);
    cx.temp_dir = dir.path().to_owned();
    let file = Http::download(&server.url("/disk"), &options(), &cx).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    assert!(link.starts_with(dir.path()), "{link:?}");

    cx.temp_dir = dir.path().join("missing");
    let error = Http::download(&server.url("/disk"), &options(), &cx).unwrap_err();
    assert_says(&error, &["temp file", "missing"]);
}

#[test]
fn a_file_that_has_no_room_is_not_even_begun() {
    let file = File::new(noise(MIB, 1));
    let mut cx = Cx::new(0);
    cx.temp_limit = MIB as u64 - 1;
    let server = Server::of(&file);
    let error = Http::download(&server.url("/disk"), &options(), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert_says(&error, &["0 bytes are stored", "1048576", "--temp-dir"]);
    // A length that nobody tells shows only when the room is used up.
    let server = Server::start(move |_| Some(file.whole().without("content-length")));
    let error = Http::download(&server.url("/disk"), &options(), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
}

#[test]
fn a_download_that_breaks_off_is_resumed_where_the_server_can() {
    let file = File::new(noise(2 * MIB, 1));
    let bytes = Arc::clone(&file.bytes);
    let (found, asked) = download(move |asked| {
        let reply = file.serve(asked);
        Some(if asked.number < 2 {
            reply.cut(500_000, Step::Break)
        } else {
            reply
        })
    });
    assert!(found.unwrap() == *bytes);
    let ranges: Vec<_> = asked.iter().map(Asked::range).collect();
    assert_eq!(
        ranges,
        [
            None,
            Some((500_000, 2 * MIB - 1)),
            Some((1_000_000, 2 * MIB - 1))
        ]
    );
    assert_eq!(asked[1].header("if-match"), Some("\"v1\""));
}

#[test]
fn a_download_that_breaks_off_begins_again_where_the_server_cannot() {
    let file = File::new(noise(2 * MIB, 1));
    let bytes = Arc::clone(&file.bytes);
    let (found, asked) = download(move |asked| {
        let reply = file.whole();
        Some(if asked.number < 2 {
            reply.cut(500_000, Step::Break)
        } else {
            reply
        })
    });
    assert!(found.unwrap() == *bytes);
    assert_eq!(asked.len(), 3);
}

#[test]
fn a_download_that_always_breaks_at_the_same_place_is_given_up() {
    let file = File::new(noise(2 * MIB, 1));
    let (found, asked) = download(move |_| Some(file.whole().cut(500_000, Step::Break)));
    let error = found.unwrap_err();
    assert_eq!((error.kind(), asked.len()), (Kind::TimedOut, 7));
    assert_says(&error, &["broke off 6 times", "500000 bytes"]);
}

#[test]
fn a_file_that_changes_between_two_parts_is_no_download() {
    let file = File::new(noise(2 * MIB, 1));
    let other = File {
        etag: Some("\"v2\"".to_owned()),
        ..file.clone()
    };
    for serve in [File::serve, File::ranges] {
        let (file, other) = (file.clone(), other.clone());
        let (found, _) = download(move |asked| {
            Some(match asked.number {
                0 => file.serve(asked).cut(500_000, Step::Break),
                _ => serve(&other, asked),
            })
        });
        assert_eq!(found.unwrap_err().kind(), Kind::Changed);
    }
}

#[test]
fn a_body_without_length_is_taken_only_if_its_end_is_marked() {
    // hyper sends it in chunks, the last of which is empty.
    let (found, _) = download(|_| Some(Reply::status(200).body(b"disk").without("content-length")));
    assert_eq!(found.unwrap(), b"disk");
    let (found, _) = download(|_| {
        let reply = Reply::status(200)
            .body(&[7; 5000])
            .without("content-length");
        Some(reply.cut(4000, Step::Break))
    });
    assert_eq!(found.unwrap_err().kind(), Kind::TimedOut);

    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nhalf of it")
            .unwrap();
    });
    let error = Http::download(&url, &options(), &Cx::new(0)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    server.join().unwrap();
}

#[test]
fn a_page_or_an_encoded_body_is_no_download() {
    let (found, _) = download(|_| {
        Some(
            Reply::status(200)
                .body(b"<p>")
                .with("content-type", "text/html"),
        )
    });
    assert_eq!(found.unwrap_err().kind(), Kind::NotThisFormat);
    let (found, _) = download(|_| {
        Some(
            Reply::status(200)
                .body(b"x")
                .with("content-encoding", "gzip"),
        )
    });
    assert_eq!(found.unwrap_err().kind(), Kind::Unsupported);
    let (found, asked) = download(|_| Some(Reply::status(404)));
    assert_eq!((found.unwrap_err().kind(), asked.len()), (Kind::Io, 1));
}

#[test]
fn the_progress_ends_at_the_whole() {
    #[derive(Default)]
    struct Seen {
        all: Mutex<Vec<(u64, u64)>>,
        last: Arc<AtomicU64>,
    }
    impl Observer for Seen {
        fn progress(&self, what: &str, done: u64, total: u64) {
            assert_eq!(what, "downloading");
            self.all.lock().unwrap().push((done, total));
            self.last.store(done, Ordering::SeqCst);
        }
    }
    let seen = Arc::new(Seen::default());
    let told = Arc::clone(&seen.last);
    let file = File::new(noise(MIB, 1));
    let server = Server::start(move |_| {
        let mut reply = file.whole();
        reply.steps.insert(0, Step::Send(vec![].into()));
        let Some(Step::Send(bytes)) = reply.steps.pop() else {
            return None;
        };
        for at in 0..4 {
            let start = at * MIB / 4;
            if at > 0 {
                // Some of the quarter before was told of.
                let before = (start - MIB / 4) as u64;
                reply.steps.push(Step::Above(Arc::clone(&told), before));
            }
            // Longer than between two tellings.
            reply.steps.push(Step::Sleep(Duration::from_millis(300)));
            reply
                .steps
                .push(Step::Send(bytes.slice(start..start + MIB / 4)));
        }
        Some(reply)
    });
    let mut cx = Cx::new(0);
    cx.observer = seen.clone();
    Http::download(&server.url("/disk"), &options(), &cx).unwrap();
    let seen = seen.all.lock().unwrap();
    assert!(seen.len() > 4, "{seen:?}");
    assert!(
        seen.iter().all(|&(_, total)| total == MIB as u64),
        "{seen:?}"
    );
    assert!(
        seen.is_sorted() && seen.last() == Some(&(MIB as u64, MIB as u64)),
        "{seen:?}"
    );
}
