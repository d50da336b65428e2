//! What is said about a URL that leads to no file, and by how many requests that is found out.

use nbdserve::source::Http;
use nbdserve::testing::noise;
use nbdserve::{Cx, Error, Kind};

use crate::server::{Asked, File, Reply, Server};
use crate::{assert_says, open, options, read};

/// Opens `/disk` on a server that answers so; the error, and how many requests it took.
fn refusal(handler: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> (Error, usize) {
    let server = Server::start(handler);
    let error = open(&server.url("/disk")).unwrap_err();
    (error, server.asked().len())
}

#[test]
fn a_mistake_in_the_url_is_told_at_once() {
    let server = Server::start(|_| None);
    let port = server.address.port();
    drop(server);
    let error = open(&format!("http://127.0.0.1:{port}/disk")).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert_says(
        &error,
        &[
            &format!("nothing listens at 127.0.0.1:{port}"),
            "hint",
            "refused",
        ],
    );

    // A name that can never exist (RFC 6761).
    let error = open("http://disks.invalid/disk").unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert_says(&error, &["cannot find the host disks.invalid", "hint"]);

    let error = open("ftp://host/disk").unwrap_err();
    assert_says(&error, &["ftp", "http://HOST/PATH"]);
}

#[test]
fn a_file_that_is_not_there_or_not_allowed_is_told_at_once() {
    let cases = [
        (404, Kind::Io, "there is no http://"),
        (410, Kind::Io, "410 Gone"),
        (401, Kind::Denied, "--header"),
        (403, Kind::Denied, "403 Forbidden"),
        (400, Kind::Io, "400 Bad Request"),
        (501, Kind::Io, "501 Not Implemented"),
    ];
    for (status, kind, words) in cases {
        let (error, requests) = refusal(move |_| Some(Reply::status(status)));
        assert_eq!((error.kind(), requests), (kind, 1), "{status}");
        assert_says(&error, &[words]);
    }
}

#[test]
fn a_busy_server_is_asked_again_even_on_opening() {
    let file = File::new(noise(10, 1));
    let server = Server::start(move |asked| match asked.number {
        0 => Some(Reply::status(503)),
        1 => None,
        _ => Some(file.serve(asked)),
    });
    let http = open(&server.url("/disk")).unwrap();
    assert_eq!((http.identity().size, http.stats().retries), (10, 2));
}

#[test]
fn a_page_is_no_image() {
    let page = |status: u16| {
        move |_: &Asked| {
            let reply = Reply::status(status).body(b"<!DOCTYPE html><title>Index of /</title>");
            let reply = reply.with("content-range", "bytes 0-39/40");
            Some(reply.with("content-type", "text/html; charset=utf-8"))
        }
    };
    for status in [200, 206] {
        let (error, requests) = refusal(page(status));
        assert_eq!((error.kind(), requests), (Kind::NotThisFormat, 1));
        assert_says(&error, &["HTML page", "folder", "login"]);
    }
}

#[test]
fn a_server_without_ranges_is_told_and_what_helps() {
    let file = File::new(noise(1 << 20, 1));
    let (error, requests) = refusal(move |_| Some(file.whole()));
    assert_eq!((error.kind(), requests), (Kind::Unsupported, 1));
    assert_says(&error, &["cannot send parts", "--download"]);

    let file = File::new(noise(1 << 20, 1));
    let (error, _) =
        refusal(move |asked| Some(file.serve(asked).with("content-range", "bytes 0-262143/*")));
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_says(&error, &["how long", "--download"]);
}

#[test]
fn a_short_or_empty_file_needs_no_ranges() {
    for len in [0, 1, 5000, 256 << 10] {
        let file = File::new(noise(len, 1));
        let bytes = file.bytes.clone();
        let server = Server::start(move |_| Some(file.whole()));
        let http = open(&server.url("/disk")).unwrap();
        assert_eq!(http.identity().size, len as u64);
        if len > 0 {
            assert!(read(&http, 0, len) == bytes[..]);
            assert!(read(&http, len - 1, 1) == bytes[len - 1..]);
        }
        assert_eq!(server.asked().len(), 1);
    }
}

#[test]
fn a_wrong_first_answer_is_an_error() {
    let file = File::new(noise(1 << 20, 1));
    let other = file.clone();
    let (error, _) = refusal(move |asked| {
        Some(
            file.serve(asked)
                .with("content-range", "bytes 1-262144/1048576"),
        )
    });
    assert_eq!(error.kind(), Kind::Io);
    assert_says(&error, &["bytes 0..262144", "bytes 1..262145 of 1048576"]);
    let (error, _) = refusal(move |asked| Some(other.serve(asked).with("content-encoding", "br")));
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
fn endless_headers_are_not_stored() {
    let (error, _) = refusal(|_| {
        let mut reply = Reply::status(200);
        for number in 0..2000 {
            reply = reply.with(&format!("x-{number}"), &"x".repeat(1000));
        }
        Some(reply)
    });
    assert_eq!(error.kind(), Kind::Io);
    assert_says(&error, &["header", "too large"]);
}

#[test]
fn what_is_no_web_server_is_told_at_once() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ssh = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        stream
    });
    let error = open(&format!("http://127.0.0.1:{port}/disk")).unwrap_err();
    assert_says(&error, &["does not speak HTTP"]);
    drop(ssh.join());
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_sent() {
    let server = Server::start(|_| None);
    for (name, value) in [
        ("Range", "bytes=0-1"),
        ("a b", "c"),
        ("X", "secret\r\nY: z"),
        ("Host", "x"),
    ] {
        let mut options = options();
        options.headers = vec![(name.to_owned(), value.to_owned())];
        let error = Http::open(&server.url("/disk"), &options, &Cx::new(0)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{name}");
        assert!(!error.report().to_string().contains("secret"));
    }
    let mut options = options();
    options.ca = Some("/nonexistent/ca.pem".into());
    let error = Http::open(&server.url("/disk"), &options, &Cx::new(0)).unwrap_err();
    assert_says(&error, &["/nonexistent/ca.pem"]);
    options.ca = Some("/proc/self/status".into());
    let error = Http::open(&server.url("/disk"), &options, &Cx::new(0)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(server.asked().is_empty());
}
