//! What is fetched for what is read.

use std::sync::Barrier;
use std::time::Duration;

use nbdserve::source::{Http, HttpOptions};
use nbdserve::testing::{Rng, conformance, noise};
use nbdserve::{ByteRange, Cx, Device, Volume};
use proptest::prelude::*;

use crate::readers::{Readers, assert_reads};
use crate::server::{Asked, File, Server, Step};
use crate::{open, options, read};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// No byte was asked for twice.
fn assert_disjoint(mut ranges: Vec<(usize, usize)>) {
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(pair[0].1 < pair[1].0, "{pair:?} in {ranges:?}");
    }
}

#[test]
fn it_keeps_the_contract() {
    for len in [0, 1, 4097, 300_000, 3_000_000] {
        let bytes = noise(len, 1);
        let server = Server::of(&File::new(bytes.clone()));
        conformance::check(|| {
            let http = open(&server.url("/disk")).unwrap();
            (Volume::new(http), bytes.clone())
        });
    }
}

#[test]
fn opening_and_reading_the_first_bytes_is_one_request() {
    let bytes = noise(MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk?key=secret")).unwrap();
    assert!(read(&http, 0, 256 * KIB) == bytes[..256 * KIB]);
    assert!(read(&http, 1000, 3) == bytes[1000..1003]);
    assert_eq!(server.ranges(), [(0, 256 * KIB - 1)]);
    let asked = &server.asked()[0];
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
    assert_eq!(asked.header("if-match"), None);
    assert!(
        asked
            .header("user-agent")
            .unwrap()
            .starts_with("loopmount/")
    );
    let identity = http.identity();
    assert_eq!(identity.url, server.url("/disk?..."));
    assert_eq!(identity.strong_etag.as_deref(), Some("\"v1\""));
    assert_eq!(
        identity.last_modified.as_deref(),
        Some("Sun, 06 Nov 1994 08:49:37 GMT")
    );
    assert_eq!(identity.size, MIB as u64);
    assert_eq!(
        (http.stats().requests, http.stats().bytes),
        (1, 256 * KIB as u64)
    );
}

#[test]
fn a_read_out_of_the_blue_fetches_64_kib_and_nothing_twice() {
    let bytes = noise(64 * MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    // Far apart, in no order, never twice in the same window.
    for number in 0..30 {
        let at = MIB + number * 17 % 30 * 2 * MIB + 5000;
        assert!(read(&http, at, 4096) == bytes[at..at + 4096]);
        assert!(read(&http, at - 900, 4096) == bytes[at - 900..at + 3196]);
    }
    assert_eq!(server.ranges().len(), 1 + 30);
    assert_eq!(http.stats().bytes as usize, 256 * KIB + 30 * 64 * KIB);
}

#[test]
fn a_sequential_reader_needs_few_requests_and_no_byte_twice() {
    let bytes = noise(32 * MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    for at in (0..bytes.len()).step_by(128 * KIB) {
        assert!(read(&http, at, 128 * KIB) == bytes[at..at + 128 * KIB]);
    }
    assert_eq!(http.stats().bytes as usize, bytes.len());
    let requests = server.ranges();
    assert!(requests.len() <= 20, "{} requests", requests.len());
    assert!(
        server.connections() <= 6,
        "{} connections",
        server.connections()
    );
    assert!(
        requests[1..]
            .iter()
            .all(|&(first, last)| last - first < 4 * MIB)
    );
}

#[test]
fn interleaved_readers_each_get_long_requests() {
    let bytes = noise(64 * MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    for at in (0..5 * MIB).step_by(64 * KIB) {
        for reader in 0..6 {
            let at = reader * 11 * MIB + at;
            assert!(read(&http, at, 64 * KIB) == bytes[at..at + 64 * KIB]);
        }
    }
    let requests = server.ranges();
    assert!(
        requests.len() <= 6 * 8,
        "{} requests for 6 readers",
        requests.len()
    );
    assert_disjoint(requests);
}

#[test]
fn many_readers_of_the_same_bytes_cost_one_fetch() {
    let bytes = noise(8 * MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    let start = Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                start.wait();
                for at in (0..bytes.len()).step_by(100_000) {
                    let len = 100_000.min(bytes.len() - at);
                    assert!(read(&http, at, len) == bytes[at..at + len]);
                }
            });
        }
    });
    assert_eq!(http.stats().bytes as usize, bytes.len());
}

#[test]
fn a_hint_is_one_request_for_exactly_its_pages() {
    let bytes = noise(32 * MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    let hint = ByteRange::between(10_000_000, 16_000_000);
    http.will_need(hint);
    // It is read in order, which would otherwise be guessed to go on.
    for at in (10_000_000..16_000_000).step_by(50_000) {
        assert!(read(&http, at, 50_000) == bytes[at..at + 50_000]);
    }
    http.will_need(hint);
    let pages = (
        10_000_000 / 4096 * 4096,
        16_000_000usize.next_multiple_of(4096) - 1,
    );
    assert_eq!(server.ranges(), [(0, 256 * KIB - 1), pages]);
}

#[test]
fn a_hint_that_covers_everything_stays_within_memory() {
    let bytes = noise(40 * MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    http.will_need(ByteRange::between(0, u64::MAX));
    assert!(read(&http, 0, 16 * MIB) == bytes[..16 * MIB]);
    assert_eq!(http.stats().bytes as usize, 16 * MIB);
    assert!(read(&http, 39 * MIB, MIB) == bytes[39 * MIB..]);
}

#[test]
fn a_read_is_answered_as_soon_as_its_own_bytes_are_there() {
    let bytes = noise(4 * MIB, 1);
    let file = File::new(bytes.clone());
    let server = Server::start(move |asked| {
        let reply = file.serve(asked);
        Some(if asked.number == 0 {
            reply
        } else {
            reply.cut(MIB + 4096, Step::Hang)
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    http.will_need(ByteRange::between(MIB as u64, 4 * MIB as u64));
    // The other two thirds of the body never come.
    assert!(read(&http, MIB, MIB + 4096) == bytes[MIB..2 * MIB + 4096]);
    assert_eq!(server.ranges().len(), 2);
}

#[test]
fn what_was_given_up_for_lack_of_memory_is_fetched_again() {
    let bytes = noise(24 * MIB, 1);
    let server = Server::of(&File::new(bytes.clone()));
    let options = HttpOptions {
        memory: 0,
        ..options()
    };
    let http = Http::open(&server.url("/disk"), &options, &Cx::new(0)).unwrap();
    for _ in 0..2 {
        for at in (0..bytes.len()).step_by(MIB) {
            assert!(read(&http, at, MIB) == bytes[at..at + MIB]);
        }
    }
    let fetched = http.stats().bytes as usize;
    assert!(
        fetched > bytes.len() && fetched <= 2 * bytes.len(),
        "{fetched}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_readers_in_parallel_see_the_file(
        len in 1usize..12 * MIB,
        seed in any::<u64>(),
        memory in 0u64..32 << 20,
        readers in 1u64..8,
        // How many of three answers break off somewhere.
        broken in 0usize..3,
    ) {
        let all = Readers { len, seed, memory, count: readers, turns: 30 };
        let serve = move |file: &File, asked: &Asked| {
            let reply = file.serve(asked);
            let mut rng = Rng::new(seed ^ asked.number as u64);
            Some(if asked.number % 3 < broken && asked.number > 0 {
                reply.cut(rng.below(300_000) as usize, Step::Break)
            } else {
                reply
            })
        };
        all.run(serve, |http, bytes, rng| {
            let range = rng.range(bytes.len() as u64, 600_000);
            if rng.below(4) == 0 {
                http.will_need(range);
            }
            if !range.is_empty() {
                assert_reads(http, bytes, range);
            }
        });
    }
}

#[test]
fn several_requests_are_in_flight_and_hints_leave_some_to_readers() {
    let file = File::new(noise(32 * MIB, 1));
    let server = Server::start(move |asked| {
        let reply = file.serve(asked);
        Some(if asked.number == 0 {
            reply
        } else {
            reply.cut(0, Step::Hang)
        })
    });
    let cx = Cx::new(0);
    let http = Http::open(&server.url("/disk"), &options(), &cx).unwrap();
    for number in 1..10 {
        let at = number * 3 * MIB as u64;
        http.will_need(ByteRange::between(at, at + 4096));
    }
    // None of them ends, so these are the first ones: all that hints may have.
    let wait_for = |requests| {
        while server.asked().len() < requests {
            std::thread::yield_now();
        }
    };
    wait_for(1 + 4);
    std::thread::scope(|scope| {
        let readers = [31, 28].map(|at| {
            let http = &http;
            scope.spawn(move || http.read_at(&mut [0; 10], (at * MIB) as u64))
        });
        wait_for(1 + 4 + 2);
        cx.cancel.cancel();
        for reader in readers {
            assert!(reader.join().unwrap().is_err());
        }
    });
    assert_eq!(server.asked().len(), 7);
}

#[test]
fn a_read_may_end_before_its_bytes_are_there() {
    let file = File::new(noise(MIB, 1));
    let server = Server::start(move |asked| {
        let reply = file.serve(asked);
        Some(if asked.number == 0 {
            reply
        } else {
            reply.cut(0, Step::Hang)
        })
    });
    let answer_within = Some(Duration::from_millis(200));
    let options = HttpOptions {
        answer_within,
        ..options()
    };
    let http = Http::open(&server.url("/disk"), &options, &Cx::new(0)).unwrap();
    let error = http.read_at(&mut [0; 10], 500_000).unwrap_err();
    assert_eq!(error.kind(), nbdserve::Kind::TimedOut);
}
