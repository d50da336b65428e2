//! Several ranges with one request: `multipart/byteranges`, and servers that do not send it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use nbdserve::source::Http;
use nbdserve::testing::{Rng, noise};
use nbdserve::{ByteRange, Cx, Device, Kind};
use proptest::prelude::*;

use crate::readers::{Readers, assert_reads};
use crate::server::{Asked, File, Reply, Server, Step};
use crate::{open, options, read};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// Made once: it takes longer than most of these tests.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| noise(64 * MIB, 1));

fn image(mib: usize) -> Vec<u8> {
    NOISE[..mib * MIB].to_vec()
}

/// `count` pages, one in each MiB from the second on.
fn scattered(count: usize) -> Vec<ByteRange> {
    let page = |number: usize| {
        let at = (number * MIB + number % 7 * PAGE) as u64;
        ByteRange::between(at, at + PAGE as u64)
    };
    (1..=count).map(page).collect()
}

/// Reads each range after the hint and compares it.
fn read_all(http: &Http, bytes: &[u8], ranges: &[ByteRange]) {
    for range in ranges {
        assert_reads(http, bytes, *range);
    }
}

/// Requests for more than one range.
fn sets(server: &Server) -> usize {
    let asked = server.asked();
    let several = |asked: &&Asked| asked.all_ranges().len() > 1;
    asked.iter().filter(several).count()
}

#[test]
fn scattered_pages_are_one_request_and_hardly_more_bytes() {
    let bytes = image(64);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    let mut ranges = scattered(60);
    ranges.reverse();
    http.will_need_parts(&ranges);
    read_all(&http, &bytes, &ranges);
    // Once more: it is there.
    http.will_need_parts(&ranges);
    let asked = server.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    let mut expected: Vec<_> = ranges
        .iter()
        .map(|range| (range.start() as usize, range.end() as usize - 1))
        .collect();
    expected.sort_unstable();
    assert_eq!(asked[1].all_ranges(), expected);
    assert!(asked[1].header("range").unwrap().len() < 4096);
    assert_eq!(asked[1].header("if-match"), Some("\"v1\""));
    let fetched = http.stats().bytes as usize;
    assert!(fetched <= 256 * KIB + 60 * (PAGE + 200), "{fetched}");
    assert_eq!(http.stats().retries, 0);
    // Nothing is left unread on the connection: it serves again. One request may find it busy with the
    // last bytes of the one before.
    for at in 0..5 {
        read(&http, (at * 12 + 2) * MIB + 512 * KIB, 10);
    }
    assert!(server.connections() <= 2, "{}", server.connections());
}

#[test]
fn neighbours_are_one_range_and_what_is_there_is_not_asked_for() {
    let bytes = image(16);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    read(&http, 4 * MIB, 100);
    let at = |start: usize, end: usize| ByteRange::between(start as u64, end as u64);
    let ranges = [
        at(9 * MIB + 5, 9 * MIB + 10),
        at(100, 200),
        at(4 * MIB + 60 * KIB, 4 * MIB + 70 * KIB),
        at(9 * MIB + PAGE, 9 * MIB + 3 * PAGE),
        at(9 * MIB, 9 * MIB + PAGE + 1),
    ];
    http.will_need_parts(&ranges);
    read_all(&http, &bytes, &ranges);
    let asked = server.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    let expected = [
        (4 * MIB + 64 * KIB, 4 * MIB + 72 * KIB - 1),
        (9 * MIB, 9 * MIB + 3 * PAGE - 1),
    ];
    assert_eq!(asked[2].all_ranges(), expected);
}

#[test]
fn a_set_stays_within_ranges_and_memory() {
    let bytes = image(40);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    // Every second page of 4 MiB: 512 ranges in 16 chunks.
    let pages = (0..512).map(|number| {
        let at = (8 * MIB + number * 2 * PAGE) as u64;
        ByteRange::between(at, at + 1)
    });
    let pages: Vec<_> = pages.collect();
    http.will_need_parts(&pages);
    read_all(&http, &bytes, &pages);
    assert_eq!(server.asked().len(), 1 + 8);
    assert!(
        server
            .asked()
            .iter()
            .all(|one| one.all_ranges().len() <= 64)
    );
    // More than there is memory for is cut.
    let all = ByteRange::between(0, u64::MAX);
    http.will_need_parts(&[all, all]);
    assert!(read(&http, 0, 16 * MIB) == bytes[..16 * MIB]);
    let fetched = http.stats().bytes as usize;
    assert!(fetched < 16 * MIB + 512 * 2 * 200, "{fetched}");
}

/// Opens what `serve` sends for requests of several ranges, hints at ten pages twice, reads them,
/// and returns how many requests there were for several ranges.
fn with(
    serve: impl Fn(&File, &[(usize, usize)]) -> Option<Reply> + Send + Sync + 'static,
) -> usize {
    let bytes = image(32);
    let file = File::new(bytes.clone());
    let server = Server::start(move |asked| match asked.all_ranges().as_slice() {
        several @ [_, _, ..] => serve(&file, several),
        _ => Some(file.serve(asked)),
    });
    let http = open(&server.url("/disk")).unwrap();
    let all = scattered(30);
    for ranges in all.chunks(10) {
        http.will_need_parts(ranges);
        read_all(&http, &bytes, ranges);
    }
    let fetched = http.stats().bytes as usize;
    assert!(fetched < MIB, "{fetched} bytes");
    let sets = sets(&server);
    let singles = server.ranges().len() - 1;
    assert!(singles <= 30, "{singles} of one range, {sets} of several");
    sets
}

#[test]
fn parts_may_come_in_any_order_and_be_more_than_asked_for() {
    let turned = with(|file, ranges| {
        let turned: Vec<_> = ranges.iter().rev().copied().collect();
        Some(file.parts(&turned))
    });
    assert_eq!(turned, 3);
    let more = with(|file, ranges| {
        let mut more = vec![(0, 99)];
        more.extend(ranges.iter().map(|(first, last)| (first - 50, last + 50)));
        more.push((100, 200));
        Some(file.parts(&more))
    });
    assert_eq!(more, 3);
    let twice = with(|file, ranges| {
        let mut twice = ranges.to_vec();
        twice.splice(0..0, ranges.iter().take(3).copied());
        Some(file.parts(&twice))
    });
    assert_eq!(twice, 3);
}

#[test]
fn fewer_parts_are_followed_by_a_request_for_the_others() {
    let sets = with(|file, ranges| Some(file.parts(&ranges[..ranges.len().min(4)])));
    // 4, 4 and 2 of ten.
    assert_eq!(sets, 3 * 3);
}

#[test]
fn ranges_that_the_server_has_joined_are_taken() {
    let bytes = image(32);
    let file = File::new(bytes.clone());
    let server = Server::start(move |asked| {
        let ranges = asked.all_ranges();
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Some(file.serve(asked));
        };
        let size = file.bytes.len();
        let reply = file.serve(asked).body(&file.bytes[first.0..=last.1]);
        let place = format!("bytes {}-{}/{size}", first.0, last.1);
        let reply = reply.with("content-range", &place);
        Some(reply.with("content-type", "application/octet-stream"))
    });
    let http = open(&server.url("/disk")).unwrap();
    for mib in [3, 5, 7] {
        let pages = [0, 2, 3, 5].map(|page| {
            let at = (mib * MIB + page * PAGE) as u64;
            ByteRange::between(at, at + PAGE as u64)
        });
        http.will_need_parts(&pages);
        read_all(&http, &bytes, &pages);
    }
    assert_eq!(server.asked().len(), 1 + 3);
    assert_eq!(sets(&server), 3);
}

#[test]
fn a_server_that_sends_the_whole_file_is_cut_off_and_asked_once() {
    let whole = with(|file, _| Some(file.whole()));
    assert_eq!(whole, 1);
    // With chunks and no length.
    let whole = with(|file, _| Some(file.whole().without("content-length")));
    assert_eq!(whole, 1);
}

#[test]
fn a_server_that_sends_the_first_range_only_is_asked_once() {
    let first = with(|file, ranges| {
        let (first, last) = ranges[0];
        let size = file.bytes.len();
        let reply = file.parts(ranges).body(&file.bytes[first..=last]);
        let reply = reply.with("content-range", &format!("bytes {first}-{last}/{size}"));
        Some(reply.with("content-type", "application/octet-stream"))
    });
    assert_eq!(first, 1);
    let first = with(|file, ranges| Some(file.parts(&ranges[..1])));
    assert_eq!(first, 1);
}

#[test]
fn answers_that_make_no_sense_are_met_once() {
    type Spoil = fn(Reply, &File) -> Reply;
    let spoils: [Spoil; 9] = [
        |reply, _| reply.with("content-type", "multipart/byteranges"),
        |reply, _| reply.with("content-type", "multipart/byteranges; boundary=other"),
        |reply, _| reply.without("content-type"),
        |reply, _| reply.with("content-type", "text/plain"),
        |reply, _| reply.body(b"\r\n--00000000000000000017--\r\n"),
        |reply, _| reply.body(b"\r\n--00000000000000000017\r\n\r\nabc"),
        |_, file| {
            let reply = file.parts(&[(0, 30 * MIB)]);
            reply.without("content-length")
        },
        |_, file| file.parts(&[(0, 30 * MIB)]),
        |_, file| file.parts(&[(0, 99), (100, 199)]),
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        let sets = with(move |file, ranges| Some(spoil(file.parts(ranges), file)));
        assert_eq!(sets, 1, "{number}");
    }
}

#[test]
fn a_refusal_is_remembered_and_the_ranges_are_had_one_by_one() {
    for status in [400, 416, 431, 414, 501] {
        let sets = with(move |_, _| Some(Reply::status(status)));
        assert_eq!(sets, 1, "{status}");
    }
    // These may have other reasons: tried twice, each time where the redirects lead by now too.
    for status in [403, 404] {
        let sets = with(move |_, _| Some(Reply::status(status)));
        assert_eq!(sets, 4, "{status}");
    }
    // So may these, and each is repeated once.
    let sets = with(|_, _| Some(Reply::status(503)));
    assert_eq!(sets, 4);
    let sets = with(|_, _| None);
    assert!(sets >= 4, "{sets}");
}

#[test]
fn what_came_before_a_break_is_not_asked_for_again() {
    let bytes = image(32);
    let file = File::new(bytes.clone());
    let server = Server::start(move |asked| {
        let reply = file.serve(asked);
        Some(match asked.number {
            // In the middle of the third part.
            1 => reply.cut(2 * (PAGE + 107) + 3000, Step::Break),
            // In the header of the second.
            2 => reply.cut(PAGE + 150, Step::Break),
            _ => reply,
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    let ranges = scattered(10);
    http.will_need_parts(&ranges);
    read_all(&http, &bytes, &ranges);
    let asked = server.asked();
    let counts: Vec<_> = asked.iter().map(|one| one.all_ranges().len()).collect();
    assert_eq!(counts[..2], [1, 10]);
    assert_eq!(counts.len(), 4, "{counts:?}");
    assert!((7..=8).contains(&counts[2]), "{counts:?}");
    assert_eq!(counts[3], counts[2] - 1, "{counts:?}");
    let (first, _) = asked[2].all_ranges()[0];
    let third = ranges[2].start() as usize;
    assert!((third..third + PAGE).contains(&first) || counts[2] == 8);
    assert_eq!(http.stats().retries, 2);
}

#[test]
fn a_body_that_ends_without_its_last_delimiter_is_resumed() {
    let sets = with(|file, ranges| {
        let reply = file.parts(ranges);
        let whole = match reply.steps.as_slice() {
            [Step::Send(bytes)] => bytes.clone(),
            _ => unreachable!(),
        };
        // As if it were complete.
        let end = (5 * (PAGE + 110)).min(whole.len());
        Some(reply.body(&whole[..end]))
    });
    assert!((6..=9).contains(&sets), "{sets}");
}

#[test]
fn readers_are_answered_as_their_part_comes_and_wait_for_no_other() {
    let bytes = image(16);
    let file = File::new(bytes.clone());
    let server = Server::start(move |asked| {
        let reply = file.serve(asked);
        Some(if asked.number == 0 {
            reply
        } else {
            reply.cut(4 * (PAGE + 107), Step::Hang)
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    let ranges = scattered(10);
    http.will_need_parts(&ranges);
    read_all(&http, &bytes, &ranges[..3]);
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn a_changed_file_is_noticed_in_a_part_too() {
    type Change = fn(&File, &[(usize, usize)]) -> Reply;
    let change: [Change; 5] = [
        |file, ranges| file.parts(ranges).with("etag", "\"v2\""),
        |file, ranges| {
            let mut longer = file.clone();
            longer.bytes = Arc::new([&file.bytes[..], b"x"].concat());
            longer.parts(ranges)
        },
        |_, _| Reply::status(412),
        |file, _| file.whole().with("etag", "\"v2\""),
        |_, _| Reply::status(416).with("content-range", "bytes */5"),
    ];
    for (number, change) in change.into_iter().enumerate() {
        let file = File::new(image(16));
        let server = Server::start(move |asked| match asked.all_ranges().as_slice() {
            several @ [_, _, ..] => Some(change(&file, several)),
            _ => Some(file.serve(asked)),
        });
        let http = open(&server.url("/disk")).unwrap();
        let ranges = scattered(10);
        http.will_need_parts(&ranges);
        let error = http.read_at(&mut [0; 10], ranges[5].start()).unwrap_err();
        assert_eq!(error.kind(), Kind::Changed, "{number}: {error}");
    }
}

#[test]
fn a_server_that_falls_silent_is_given_up_in_time() {
    let file = File::new(image(16));
    let server = Server::start(move |asked| {
        let reply = file.serve(asked);
        Some(if asked.number == 0 {
            reply
        } else {
            reply.cut(0, Step::Hang)
        })
    });
    let mut cx = Cx::new(0);
    cx.no_progress = Duration::from_secs(2);
    let http = Http::open(&server.url("/disk"), &options(), &cx).unwrap();
    let ranges = scattered(5);
    http.will_need_parts(&ranges);
    let error = http.read_at(&mut [0; 10], ranges[3].start()).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut);
}

#[test]
fn a_server_of_single_ranges_sends_near_ones_together() {
    let bytes = image(32);
    let file = File::new(bytes.clone());
    let server = Server::start(move |asked| {
        Some(match asked.all_ranges().len() {
            0 | 1 => file.serve(asked),
            _ => file.whole(),
        })
    });
    let http = open(&server.url("/disk")).unwrap();
    let first = scattered(2);
    http.will_need_parts(&first);
    read_all(&http, &bytes, &first);
    let before = server.asked().len();
    let near: Vec<_> = (0..20)
        .map(|number| {
            let at = (20 * MIB + number * 32 * KIB) as u64;
            ByteRange::between(at, at + PAGE as u64)
        })
        .collect();
    http.will_need_parts(&near);
    read_all(&http, &bytes, &near);
    assert_eq!(server.asked().len(), before + 1);
}

#[test]
fn a_set_is_cut_where_a_part_of_an_image_ends() {
    let bytes = image(8);
    // The cut is within a page.
    let cut = 3 * MIB + 100;
    let files = [
        File::new(bytes[..cut].to_vec()),
        File::new(bytes[cut..].to_vec()),
    ];
    let server = Server::start(move |asked| match asked.target.as_str() {
        "/disk.001" => Some(files[0].serve(asked)),
        "/disk.002" => Some(files[1].serve(asked)),
        _ => Some(Reply::status(404)),
    });
    let look = nbdserve::source::split::Look::Exactly(2);
    let url = server.url("/disk.001");
    let http = Http::open_split(&url, &options(), look, &Cx::new(0)).unwrap();
    let page = |at: usize| ByteRange::between(at as u64, (at + PAGE) as u64);
    let ranges = [MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, 6 * MIB].map(page);
    let before = server.asked().len();
    http.will_need_parts(&ranges);
    read_all(&http, &bytes, &ranges);
    let asked = server.asked();
    let counts: Vec<_> = asked[before..]
        .iter()
        .map(|one| (one.target.as_str(), one.all_ranges().len()))
        .collect();
    let mut sorted = counts.clone();
    sorted.sort_unstable();
    // The page in both files is two requests of its own.
    let expected = [
        ("/disk.001", 1),
        ("/disk.001", 2),
        ("/disk.002", 1),
        ("/disk.002", 3),
    ];
    assert_eq!(sorted, expected);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_sets_and_readers_in_parallel_see_the_file(
        len in 1usize..12 * MIB,
        seed in any::<u64>(),
        memory in 0u64..32 << 20,
        // What the server does wrong with sets, and how often of eight times.
        sort in 0u64..6,
        often in 0u64..8,
    ) {
        let all = Readers { len, seed, memory, count: 4, turns: 12 };
        let count = AtomicUsize::new(0);
        let serve = move |file: &File, asked: &Asked| {
            let reply = file.serve(asked);
            let ranges = asked.all_ranges();
            let mut rng = Rng::new(seed ^ count.fetch_add(1, Ordering::Relaxed) as u64);
            if asked.number == 0 || rng.below(8) >= often {
                return Some(reply);
            }
            let some = rng.below(ranges.len() as u64) as usize;
            match (sort, ranges.len()) {
                (0, _) => Some(reply.cut(rng.below(100_000) as usize, Step::Break)),
                (_, 1) => Some(reply),
                (1, _) => Some(file.parts(&ranges[some..])),
                (2, _) => {
                    let turned: Vec<_> = ranges.iter().rev().copied().collect();
                    Some(file.parts(&turned))
                }
                (3, _) => {
                    let (first, last) = ranges[some];
                    let middle = first.midpoint(last);
                    Some(file.parts(&[(middle, last), (first, middle), (first, last)]))
                }
                (4, _) => Some(file.whole()),
                _ => Some(Reply::status(400)),
            }
        };
        all.run(serve, |http, bytes, rng| {
            let count = rng.below(20);
            let ranges = (0..count).map(|_| rng.range(bytes.len() as u64, 20_000));
            let ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
            http.will_need_parts(&ranges);
            read_all(http, bytes, &ranges);
        });
    }
}
