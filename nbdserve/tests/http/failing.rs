//! What happens when a server fails, lies or is replaced, after the file was opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nbdserve::source::Http;
use nbdserve::testing::noise;
use nbdserve::{Cx, Device, Error, Kind};

use crate::server::{Asked, File, Reply, Server, Step};
use crate::{assert_says, open, options, read};

const MIB: usize = 1 << 20;

/// A server that answers the first request honestly and the others as `then` says.
fn after_opening(
    file: &File,
    then: impl Fn(&File, &Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let file = file.clone();
    Server::start(move |asked| match asked.number {
        0 => Some(file.serve(asked)),
        _ => then(&file, asked),
    })
}

/// With a limit that a test can wait for.
fn impatient(limit: Duration) -> Cx {
    let mut cx = Cx::new(0);
    cx.no_progress = limit;
    cx
}

/// Opens a file of 2 MiB, reads beyond its first bytes and returns the error; then `first` says
/// whether the bytes that were fetched on opening can still be read.
fn failure(then: impl Fn(&File, &Asked) -> Option<Reply> + Send + Sync + 'static) -> (Error, bool) {
    let file = File::new(noise(2 * MIB, 1));
    let server = after_opening(&file, then);
    // A quarter of it is the longest silence, also for a machine that does much else.
    let cx = impatient(Duration::from_secs(6));
    let http = Http::open(&server.url("/disk"), &options(), &cx).unwrap();
    assert!(read(&http, 0, 10) == file.bytes[..10]);
    let error = http.read_at(&mut [0; 4096], MIB as u64).unwrap_err();
    let first = http.read_at(&mut [0; 10], 0);
    if let Err(later) = &first {
        assert_eq!(later.to_string(), error.to_string());
    }
    (error, first.is_ok())
}

#[test]
fn a_body_that_breaks_off_is_resumed_at_the_missing_byte() {
    let file = File::new(noise(4 * MIB, 1));
    let server = after_opening(&file, |file, asked| {
        let reply = file.serve(asked);
        Some(match asked.number {
            1 => reply.cut(100_001, Step::Break),
            2 => reply.cut(0, Step::Break),
            3 => reply.cut(77_777, Step::Break),
            _ => reply,
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    assert!(read(&http, MIB, MIB) == file.bytes[MIB..2 * MIB]);
    let last = 2 * MIB - 1;
    let ranges = server.ranges();
    assert_eq!(ranges[1..3], [(MIB, last), (MIB + 100_001, last)]);
    assert_eq!(ranges[3..], [(MIB + 100_001, last), (MIB + 177_778, last)]);
    assert_eq!(
        (http.stats().bytes as usize, http.stats().retries),
        (MIB + 262_144, 3)
    );
    // Each of them was asked for the version that was opened.
    assert!(
        server.asked()[1..]
            .iter()
            .all(|asked| asked.header("if-match") == Some("\"v1\""))
    );
}

#[test]
fn a_shorter_answer_than_asked_for_is_taken_and_continued() {
    let file = File::new(noise(4 * MIB, 1));
    let server = after_opening(&file, |file, asked| {
        let (first, last) = asked.range()?;
        let last = last.min(first + 99_999);
        let reply = Reply::status(206)
            .body(&file.bytes[first..=last])
            .with("etag", "\"v1\"");
        Some(reply.with(
            "content-range",
            &format!("bytes {first}-{last}/{}", 4 * MIB),
        ))
    });
    let http = open(&server.url("/disk")).unwrap();
    assert!(read(&http, MIB, MIB) == file.bytes[MIB..2 * MIB]);
    assert_eq!((server.ranges().len(), http.stats().retries), (1 + 11, 0));
}

#[test]
fn a_server_that_sends_crumbs_is_given_up() {
    let (error, _) = failure(|file, asked| {
        let (first, _) = asked.range()?;
        let reply = Reply::status(206)
            .body(&file.bytes[first..=first])
            .with("etag", "\"v1\"");
        Some(reply.with(
            "content-range",
            &format!("bytes {first}-{first}/{}", 2 * MIB),
        ))
    });
    assert_eq!(error.kind(), Kind::TimedOut);
    assert_says(
        &error,
        &["no progress", "are sent, asked for all up to 1114112"],
    );
}

#[test]
fn a_busy_server_is_asked_again() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let file = File::new(noise(MIB, 1));
        let server = after_opening(&file, move |file, asked| {
            Some(match asked.number {
                1 => Reply::status(status).with("retry-after", "0"),
                2 => Reply::status(status),
                _ => file.serve(asked),
            })
        });
        let http = open(&server.url("/disk")).unwrap();
        assert!(read(&http, 500_000, 4096) == file.bytes[500_000..504_096]);
        assert_eq!(
            (server.asked().len(), http.stats().retries),
            (4, 2),
            "{status}"
        );
    }
}

#[test]
fn the_time_that_a_server_asks_for_is_given_or_refused() {
    let file = File::new(noise(MIB, 1));
    let pause = Duration::from_secs(1);
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let server = after_opening(&file, move |file, asked| {
        seen.lock().unwrap().push(std::time::Instant::now());
        Some(match asked.number {
            1 => Reply::status(429).with("retry-after", "1"),
            _ => file.serve(asked),
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    assert!(read(&http, 500_000, 10) == file.bytes[500_000..500_010]);
    let times = times.lock().unwrap().clone();
    assert!(times[1] - times[0] >= pause, "not left alone for {pause:?}");

    let (error, _) = failure(|_, _| Some(Reply::status(503).with("retry-after", "3600")));
    assert_eq!(error.kind(), Kind::TimedOut);
    assert_says(&error, &["3600s", "503 Service Unavailable"]);
}

#[test]
fn a_server_that_stays_broken_is_given_up_and_tried_again_later() {
    let broken = Arc::new(AtomicBool::new(true));
    let file = File::new(noise(2 * MIB, 1));
    let flag = Arc::clone(&broken);
    let server = after_opening(&file, move |file, asked| {
        Some(if flag.load(Ordering::SeqCst) {
            Reply::status(502)
        } else {
            file.serve(asked)
        })
    });
    let cx = impatient(Duration::from_secs(5));
    let http = Http::open(&server.url("/disk"), &options(), &cx).unwrap();
    let error = http.read_at(&mut [0; 10], MIB as u64).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
    assert_says(
        &error,
        &["the limit is 5s", "502 Bad Gateway", &server.url("/disk")],
    );
    assert!(server.asked().len() > 2, "it was asked once only");
    broken.store(false, Ordering::SeqCst);
    assert!(read(&http, MIB, MIB) == file.bytes[MIB..]);
}

#[test]
fn a_silent_server_is_asked_anew_over_another_connection() {
    let file = File::new(noise(2 * MIB, 1));
    let server = after_opening(&file, |file, asked| {
        let reply = file.serve(asked);
        Some(match asked.number {
            1 => reply.cut(10_000, Step::Hang),
            2 => reply.cut(0, Step::Hang),
            _ => reply,
        })
    });
    let cx = impatient(Duration::from_secs(8));
    let http = Http::open(&server.url("/disk"), &options(), &cx).unwrap();
    assert!(read(&http, MIB, 65_536) == file.bytes[MIB..MIB + 65_536]);
    let ranges = server.ranges();
    assert_eq!(
        ranges[2..],
        [(MIB + 10_000, MIB + 65_535), (MIB + 10_000, MIB + 65_535)]
    );
}

#[test]
fn a_trickle_of_bytes_is_no_progress() {
    let (error, first) = failure(|file, asked| {
        let mut reply = file.serve(asked);
        let Step::Send(bytes) = reply.steps.remove(0) else {
            return None;
        };
        for at in 0..1000 {
            reply.steps.push(Step::Send(bytes.slice(at..at + 1)));
            reply.steps.push(Step::Sleep(Duration::from_millis(20)));
        }
        Some(reply)
    });
    assert!(first);
    assert_eq!(error.kind(), Kind::TimedOut);
    assert_says(&error, &["no progress", "in 1 attempts"]);
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let file = File::new(noise(2 * MIB, 1));
    // An address of its own: nobody else takes the port while it is free.
    let first = file.clone();
    let server = Server::start_at("127.0.0.3:0", None, move |asked| Some(first.serve(asked)));
    let address = server.address.to_string();
    let http = open(&server.url("/disk")).unwrap();
    drop(server);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&http, MIB, MIB));
        // Only once it was refused it is there again.
        while http.stats().retries == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let again = file.clone();
        let _server = Server::start_at(&address, None, move |asked| Some(again.serve(asked)));
        assert!(reader.join().unwrap() == file.bytes[MIB..]);
    });
}

#[test]
fn a_connection_that_breaks_before_the_answer_is_no_error() {
    let file = File::new(noise(2 * MIB, 1));
    let server = after_opening(&file, |file, asked| {
        (asked.number > 2).then(|| file.serve(asked))
    });
    let http = open(&server.url("/disk")).unwrap();
    assert!(read(&http, MIB, MIB) == file.bytes[MIB..]);
}

#[test]
fn a_changed_file_is_never_read_again_not_even_from_memory() {
    let other = || File {
        etag: Some("\"v2\"".to_owned()),
        ..File::new(noise(2 * MIB, 2))
    };
    // A server that knows preconditions, one that ignores them, and one without ranges.
    type Serve = fn(&File, &Asked) -> Reply;
    let cases: [(Serve, &[&str]); 3] = [
        (File::serve, &["412", "\"v1\""]),
        (File::ranges, &["\"v1\"", "\"v2\""]),
        (|file, _| file.whole(), &["\"v1\"", "\"v2\""]),
    ];
    for (serve, words) in cases {
        let (error, first) = failure(move |_, asked| Some(serve(&other(), asked)));
        assert_eq!((error.kind(), first), (Kind::Changed, false), "{error:?}");
        assert_says(&error, words);
    }
}

#[test]
fn a_changed_date_or_length_is_a_change_too() {
    let day = |date: &str| File {
        etag: None,
        date: Some(date.to_owned()),
        ..File::new(noise(2 * MIB, 1))
    };
    let monday = "Mon, 07 Nov 1994 08:49:37 GMT";
    for serve in [File::serve, File::ranges] {
        let server = Server::start(move |asked| {
            let file = if asked.number == 0 {
                day("Sun, 06 Nov 1994 08:49:37 GMT")
            } else {
                day(monday)
            };
            Some(serve(&file, asked))
        });
        let http = open(&server.url("/disk")).unwrap();
        let error = http.read_at(&mut [0; 10], MIB as u64).unwrap_err();
        assert_eq!(error.kind(), Kind::Changed);
        assert_eq!(
            server.asked()[1].header("if-unmodified-since"),
            Some("Sun, 06 Nov 1994 08:49:37 GMT")
        );
        assert_eq!(server.asked().len(), 2);
    }

    let longer = |file: &File, asked: &Asked| {
        let reply = file.serve(asked);
        let (first, last) = asked.range().unwrap();
        reply.with(
            "content-range",
            &format!("bytes {first}-{last}/{}", 2 * MIB + 1),
        )
    };
    let (error, first) = failure(move |file, asked| Some(longer(file, asked)));
    assert_eq!((error.kind(), first), (Kind::Changed, false));
    assert_says(&error, &["2097152", "2097153"]);

    let (error, first) =
        failure(|_, _| Some(Reply::status(416).with("content-range", "bytes */5")));
    assert_eq!((error.kind(), first), (Kind::Changed, false));
    assert_says(&error, &["2097152", "now it has 5"]);
}

#[test]
fn a_reader_of_a_file_without_validators_relies_on_its_length() {
    let bare = |len| File {
        etag: None,
        date: None,
        ..File::new(noise(len, 1))
    };
    let server = Server::start(move |asked| {
        Some(bare(if asked.number < 2 { 2 * MIB } else { MIB + 5 }).serve(asked))
    });
    let http = open(&server.url("/disk")).unwrap();
    assert!(read(&http, MIB, 100) == noise(2 * MIB, 1)[MIB..MIB + 100]);
    let error = http
        .read_at(&mut [0; 10], MIB as u64 - 100_000)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Changed);
}

#[test]
fn a_wrong_range_is_an_error_with_the_numbers() {
    let ranged = |text: &'static str| {
        move |file: &File, asked: &Asked| Some(file.serve(asked).with("content-range", text))
    };
    let asked = "bytes 1048576..1114112";
    let (error, first) = failure(ranged("bytes 1048577-1114112/2097152"));
    assert_eq!((error.kind(), first), (Kind::Io, true));
    assert_says(&error, &[asked, "bytes 1048577..1114113 of 2097152"]);
    let (error, _) = failure(ranged("bytes 0-65535/2097152"));
    assert_says(&error, &[asked, "bytes 0..65536"]);
    let (error, _) = failure(ranged("rubbish"));
    assert_says(&error, &[asked, "without a usable Content-Range"]);
    let (error, _) = failure(|file, asked| Some(file.serve(asked).without("content-range")));
    assert_eq!(error.kind(), Kind::Io);
    let (error, first) = failure(|file, _| Some(file.whole()));
    assert_eq!((error.kind(), first), (Kind::Io, true));
    assert_says(&error, &[asked, "the whole file (2097152 bytes)"]);
}

#[test]
fn a_validator_that_is_missing_all_at_once_proves_nothing() {
    let (error, first) =
        failure(|file, asked| Some(file.serve(asked).without("etag").without("last-modified")));
    assert_eq!((error.kind(), first), (Kind::Io, true));
    assert_says(&error, &["\"v1\"", "no validator"]);
}

#[test]
fn an_encoded_body_is_refused() {
    let (error, first) =
        failure(|file, asked| Some(file.serve(asked).with("content-encoding", "gzip")));
    assert_eq!((error.kind(), first), (Kind::Unsupported, true));
    assert_says(&error, &["Content-Encoding gzip"]);
}

#[test]
fn a_login_page_in_the_middle_is_neither_data_nor_a_change() {
    let (error, first) = failure(|_, _| {
        Some(
            Reply::status(200)
                .body(b"<html>")
                .with("content-type", "text/html")
                .with("etag", "\"x\""),
        )
    });
    assert_eq!((error.kind(), first), (Kind::NotThisFormat, true));
}

#[test]
fn a_body_longer_than_announced_does_not_spill_over() {
    let file = File::new(noise(2 * MIB, 1));
    let server = after_opening(&file, |file, asked| {
        let (first, last) = asked.range()?;
        let mut body = file.bytes[first..=last].to_vec();
        body.extend_from_slice(&[0xcc; 300_000]);
        let reply = file.serve(asked);
        let range = format!("bytes {first}-{last}/{}", 2 * MIB);
        Some(reply.body(&body).with("content-range", &range))
    });
    let http = open(&server.url("/disk")).unwrap();
    assert!(read(&http, MIB, MIB / 2) == file.bytes[MIB..MIB + MIB / 2]);
    assert!(read(&http, MIB + MIB / 2, MIB / 2) == file.bytes[MIB + MIB / 2..]);
}

#[test]
fn a_body_shorter_than_announced_is_resumed() {
    let file = File::new(noise(2 * MIB, 1));
    let server = after_opening(&file, |file, asked| {
        let (first, last) = asked.range()?;
        let reply = file.serve(asked);
        // The length of the body agrees with the body, but not with the range.
        Some(if asked.number == 1 {
            reply.body(&file.bytes[first..first + 5000])
        } else {
            assert!(first < last);
            reply
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    assert!(read(&http, MIB, 65_536) == file.bytes[MIB..MIB + 65_536]);
    assert_eq!(server.ranges()[2], (MIB + 5000, MIB + 65_535));
}

#[test]
fn taking_the_unit_down_ends_every_wait() {
    let file = File::new(noise(8 * MIB, 1));
    let hang = |file: &File, asked: &Asked| Some(file.serve(asked).cut(0, Step::Hang));
    for close in [false, true] {
        let server = after_opening(&file, hang);
        let cx = Cx::new(0);
        let http = Http::open(&server.url("/disk"), &options(), &cx).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| http.read_at(&mut [0; 10], 5 * MIB as u64));
            while server.asked().len() < 2 {
                std::thread::yield_now();
            }
            if close {
                http.close().unwrap();
            } else {
                cx.cancel.cancel();
            }
            assert_eq!(reader.join().unwrap().unwrap_err().kind(), Kind::Io);
        });
    }
    // And the opening itself.
    let server = Server::start(|_| Some(Reply::status(503)));
    let cx = Cx::new(0);
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| Http::open(&server.url("/disk"), &options(), &cx).map(drop));
        while server.asked().is_empty() {
            std::thread::yield_now();
        }
        cx.cancel.cancel();
        assert!(opener.join().unwrap().is_err());
    });
}
