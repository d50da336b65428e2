//! The http source against a real server in this process.
#![expect(
    clippy::unwrap_used,
    reason = "helpers fail with the test that calls them"
)]

mod apache;
mod downloading;
mod failing;
mod foresight;
mod kept;
mod layers;
mod opening;
mod qcow2;
mod readers;
mod reading;
mod redirects;
mod server;
mod sets;
mod split;
mod tls;

use nbdserve::source::{Http, HttpOptions};
use nbdserve::{Cx, Device, Error, Result};

/// Options that depend on nothing around the test.
fn options() -> HttpOptions {
    HttpOptions {
        netrc: None,
        proxy_from_env: false,
        ..HttpOptions::default()
    }
}

fn open(url: &str) -> Result<Http> {
    Http::open(url, &options(), &Cx::new(0))
}

fn read(http: &Http, offset: usize, len: usize) -> Vec<u8> {
    let mut found = vec![0xee; len];
    http.read_at(&mut found, offset as u64)
        .unwrap_or_else(|error| panic!("{len} bytes at {offset}: {error:?}"));
    found
}

/// What is printed of the error has all these words.
fn assert_says(error: &Error, words: &[&str]) {
    let text = error.report().to_string();
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}
