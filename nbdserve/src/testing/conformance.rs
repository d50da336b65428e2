//! What every source and layer must do, checked from outside through a [`Volume`].
//!
//! * [`check`]: reading, extents, threads, hints, closing.
//! * [`check_writer`]: writing, against the [`Model`] and with many threads.
//! * [`check_hint_set`]: hints that belong together stay together.
//! * [`check_errors`]: what fails below comes up with its kind, and with the layer's name.

use std::sync::Barrier;

use super::{Counting, Faulty, Model, Op, Rng};
use crate::{ByteRange, Error, ExtentFlags, Kind, Result, Volume};

/// Random requests of each sort.
const REQUESTS: usize = 200;
/// Readers or writers at once.
const THREADS: usize = 8;
/// Longest random request.
const LONGEST: u64 = 100_000;

/// Checks the read side. `open` makes a fresh volume and says what it must read as.
///
/// # Panics
/// When the volume breaks its contract.
pub fn check(open: impl Fn() -> (Volume, Vec<u8>)) {
    let (volume, expected) = open();
    check_geometry(&volume, &expected);
    check_edges(&volume, &expected);
    check_beyond(&volume);
    check_random_reads(&volume, &expected, 1);
    check_extents(&volume, &expected);
    volume.close().expect("close of a volume that was read");
    drop(volume);

    // A fresh one, where nothing is cached yet: the readers race for the same first bytes.
    let (volume, expected) = open();
    check_parallel_reads(&volume, &expected);
    drop(volume);

    let (volume, expected) = open();
    check_hints(&volume, &expected);
    volume.close().expect("close while hints are served");

    // Closing and dropping a volume that was never read.
    let (volume, _) = open();
    volume.close().expect("close of an unread volume");
    drop(open());
}

/// Checks the write side, after [`check`]. `open` makes a fresh, writable volume and says what it
/// reads as; what it held is overwritten.
///
/// # Panics
/// When the volume breaks its contract.
pub fn check_writer(open: impl Fn() -> (Volume, Vec<u8>)) {
    let (volume, expected) = open();
    check_writes_beyond(&volume, &expected);
    let mut model = Model::new(expected);
    for seed in 0..2 * REQUESTS as u64 {
        let op = Op::from_seed(seed, volume.size(), LONGEST);
        model.apply(&volume, op);
    }
    model.compare_all(&volume);
    check_extents(&volume, &read_all(&volume));
    volume.close().expect("close of a volume that was written");
    drop(volume);

    let (volume, _) = open();
    check_parallel_writes(&volume);
    volume.close().expect("close of a volume that was written");
}

/// Checks that errors from below come up. `open` opens the device on a volume that reads as
/// `below`; `name` is what the device calls itself.
///
/// # Panics
/// When an error is lost, changes its kind, or lacks the names of the layers it passed.
pub fn check_errors(name: &str, below: &[u8], open: impl Fn(&Volume) -> Result<Volume>) {
    let memory = crate::source::Memory::volume(below.to_vec());
    let (source, faults) = Faulty::volume(memory);
    let volume = open(&source).unwrap_or_else(|error| panic!("open without a fault: {error:?}"));
    assert_eq!(volume.name(), name);
    let to_open = faults.requests();
    let expected = read_all(&volume);
    drop(volume);

    // Each request of the opening fails once.
    for skip in 0..to_open.min(64) {
        faults.clear();
        faults.fail_nth(skip, Kind::TimedOut);
        match open(&source) {
            Ok(volume) => {
                faults.clear();
                assert_eq!(read_all(&volume), expected, "after a fault at {skip}");
            }
            Err(error) => assert_passed_on(&error, Kind::TimedOut, &["faulty"]),
        }
    }

    // Everything fails once it is open: what is cached may still be read.
    for kind in [Kind::Io, Kind::Changed] {
        faults.clear();
        let volume = open(&source).expect("open without a fault");
        faults.fail_all(kind);
        let mut failed = 0;
        let mut rng = Rng::new(7);
        for _ in 0..REQUESTS {
            let range = rng.range(volume.size(), LONGEST);
            match volume.read_vec(range.start(), index(range).len()) {
                Ok(found) => assert!(found == expected[index(range)], "{range} differs"),
                Err(error) => {
                    assert_passed_on(&error, kind, &[name, "faulty"]);
                    failed += 1;
                }
            }
        }
        let whole = volume.read_vec(0, expected.len());
        assert!(
            failed > 0 || expected.is_empty() || whole.is_ok_and(|found| found == expected),
            "no read failed, and the whole cannot be read"
        );
        // Closing has nothing to store and must not hang on a dead source.
        let _ = volume.close();
    }

    // A medium that ends early: what lies before can be read or fails, but is never wrong.
    faults.clear();
    let volume = open(&source).expect("open without a fault");
    faults.short_medium(below.len() as u64 / 2);
    let mut at = 0;
    while at < volume.size() {
        let len = (volume.size() - at).min(4096);
        let range = ByteRange::between(at, at + len);
        match volume.read_vec(at, index(range).len()) {
            Ok(found) => assert!(found == expected[index(range)], "{range} differs"),
            Err(error) => assert_passed_on(&error, Kind::Io, &[name, "faulty"]),
        }
        at += len;
    }
}

/// Reads all of a volume, in pieces.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read_all(volume: &Volume) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(volume.size()).expect("a test image fits memory")];
    for (number, piece) in out.chunks_mut(1 << 20).enumerate() {
        let offset = (number as u64) << 20;
        volume
            .read_at(piece, offset)
            .unwrap_or_else(|error| panic!("reading at {offset}: {error:?}"));
    }
    out
}

fn check_geometry(volume: &Volume, expected: &[u8]) {
    assert_eq!(volume.size(), expected.len() as u64, "size of {volume:?}");
    assert_eq!(volume.geometry(), volume.geometry());
    assert!(!volume.name().is_empty());
    assert_eq!(crate::error::escape(volume.name()), volume.name());
}

fn check_edges(volume: &Volume, expected: &[u8]) {
    let size = volume.size();
    let mut ranges = vec![ByteRange::between(0, 0), ByteRange::between(size, size)];
    ranges.push(ByteRange::between(0, size));
    for block in [1, 2, 511, 512, 513, 4096, 65536] {
        let block = size.min(block);
        ranges.push(ByteRange::between(0, block));
        ranges.push(ByteRange::between(size - block, size));
        ranges.push(ByteRange::between(block, size.min(2 * block + 1)));
    }
    for range in ranges {
        check_read(volume, expected, range);
    }
}

fn check_beyond(volume: &Volume) {
    let size = volume.size();
    let wrong = [
        (size, 1),
        (size.saturating_sub(1), 2),
        (size + 1, 0),
        (size + 1, 1),
        (u64::MAX, 0),
        (u64::MAX, 1),
        (u64::MAX - 1, 2),
    ];
    for (offset, len) in wrong {
        let error = volume.read_at(&mut vec![0; len], offset);
        assert_out_of_range(volume, error, offset, len);
        if let Some(range) = ByteRange::new(offset, len as u64) {
            let error = volume.extents(range).map(|_| ());
            assert_out_of_range(volume, error, offset, len);
        }
    }
}

fn assert_out_of_range(volume: &Volume, result: Result<()>, offset: u64, len: usize) {
    let error = result.expect_err("a range beyond the end must be refused");
    assert_eq!(error.kind(), Kind::OutOfRange, "{error:?}");
    let text = error.to_string();
    let names = [volume.name(), &offset.to_string(), &len.to_string()];
    assert!(names.iter().all(|name| text.contains(*name)), "{text}");
}

fn check_read(volume: &Volume, expected: &[u8], range: ByteRange) {
    // Not zero, so that a byte that is not filled in shows.
    let mut found = vec![0xee; index(range).len()];
    volume
        .read_at(&mut found, range.start())
        .unwrap_or_else(|error| panic!("reading {range}: {error:?}"));
    if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[index(range)][at]) {
        let offset = range.start() + at as u64;
        panic!("reading {range}: byte {offset} differs");
    }
}

fn check_random_reads(volume: &Volume, expected: &[u8], seed: u64) {
    let mut rng = Rng::new(seed);
    for _ in 0..REQUESTS {
        check_read(volume, expected, rng.range(volume.size(), LONGEST));
    }
}

fn check_parallel_reads(volume: &Volume, expected: &[u8]) {
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for seed in 0..THREADS as u64 {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                let first = ByteRange::between(0, volume.size().min(LONGEST));
                check_read(volume, expected, first);
                check_random_reads(volume, expected, 100 + seed);
            });
        }
    });
}

/// Extents must be gapless from the start of the asked range on, merged, within the limit, and
/// say ZERO only where the bytes are zero.
fn check_extents(volume: &Volume, expected: &[u8]) {
    let size = volume.size();
    let nothing = volume.extents(ByteRange::between(size / 2, size / 2));
    assert!(
        nothing.expect("extents of nothing").runs().is_empty(),
        "an empty range has no runs"
    );
    let mut rng = Rng::new(3);
    let mut asked = vec![ByteRange::between(0, size)];
    asked.extend((0..REQUESTS).map(|_| rng.range(size, size)));
    for (number, range) in asked.into_iter().enumerate() {
        for limit in [usize::MAX, 1, 2, 3, 7] {
            walk_extents(volume, expected, range, limit);
            // The other limits are as good with fewer ranges.
            if number > 16 {
                break;
            }
        }
    }
}

fn walk_extents(volume: &Volume, expected: &[u8], range: ByteRange, limit: usize) {
    let mut at = range.start();
    while at < range.end() {
        let rest = ByteRange::between(at, range.end());
        let extents = volume
            .extents_limited(rest, limit)
            .unwrap_or_else(|error| panic!("extents of {rest}: {error:?}"));
        let runs = extents.runs();
        assert!(!runs.is_empty() && runs.len() <= limit, "{}", runs.len());
        let mut before: Option<ExtentFlags> = None;
        for run in runs {
            assert_eq!(run.range.start(), at, "a gap in {runs:?}");
            assert!(!run.range.is_empty() && run.range.end() <= range.end());
            assert_ne!(before, Some(run.flags), "not merged: {runs:?}");
            if run.flags.zero {
                let bytes = &expected[index(run.range)];
                assert!(
                    bytes.iter().all(|&byte| byte == 0),
                    "{} is said to be zero and is not",
                    run.range
                );
            }
            before = Some(run.flags);
            at = run.range.end();
        }
        if limit == usize::MAX && runs.len() < 1 << 18 {
            assert_eq!(at, range.end(), "the answer ends early");
        }
    }
}

fn check_hints(volume: &Volume, expected: &[u8]) {
    let size = volume.size();
    for range in [
        ByteRange::between(0, 0),
        ByteRange::between(0, size),
        ByteRange::between(0, u64::MAX),
        ByteRange::between(size / 2, size / 2 + 1),
        ByteRange::between(size, u64::MAX),
        ByteRange::between(u64::MAX, u64::MAX),
    ] {
        volume.will_need(range);
        volume.will_need_parts(&[range, ByteRange::between(1, 2), range]);
    }
    volume.will_need_parts(&[]);
    let mut rng = Rng::new(5);
    for _ in 0..REQUESTS {
        volume.will_need(rng.range(size, LONGEST));
        let set: Vec<_> = (0..4).map(|_| rng.range(size, 5000)).collect();
        volume.will_need_parts(&set);
        check_read(volume, expected, rng.range(size, 5000));
    }
}

/// Checks that a layer over `below` which only moves bytes passes on a set of hints as one set, which
/// names what is read below for these bytes and not more.
///
/// # Panics
/// When it does not.
pub fn check_hint_set(below: &Volume, open: impl FnOnce(&Volume) -> Volume) {
    const LEN: u64 = 8192;
    let (below, counts) = Counting::volume(below.clone());
    let volume = open(&below);
    let name = volume.name();
    let ranges = [6, 1, 3].map(|eighth| {
        let at = volume.size() / 8 * eighth / 4096 * 4096;
        ByteRange::between(at, at + LEN)
    });
    // Tables are read.
    volume.will_need_parts(&ranges);
    counts.reset();
    volume.will_need_parts(&ranges);
    let sets = counts.hint_sets();
    let [set] = sets.as_slice() else {
        panic!("{name}: {sets:?}")
    };
    let hinted: u64 = set.iter().map(|range| range.len()).sum();
    assert_eq!(hinted, LEN * 3, "{name}: {set:?}");
    for range in ranges {
        volume
            .read_vec(range.start(), LEN as usize)
            .expect("a read within the volume");
    }
    for read in counts.read_ranges() {
        let known = set.iter().any(|range| range.contains(read));
        assert!(known, "{name}: {read} is none of {set:?}");
    }
}

fn check_writes_beyond(volume: &Volume, expected: &[u8]) {
    let size = volume.size();
    let writer = volume.writer().expect("a volume that can be written");
    for (offset, len) in [(size, 1), (size.saturating_sub(1), 2), (u64::MAX, 1)] {
        let result = writer.write_at(&vec![1; len], offset, false);
        assert_out_of_range(volume, result, offset, len);
        if let Some(range) = ByteRange::new(offset, len as u64) {
            let result = writer.zero(range, crate::ZeroOpts::default()).map(|_| ());
            assert_out_of_range(volume, result, offset, len);
            assert_out_of_range(volume, writer.trim(range, false), offset, len);
        }
    }
    // Nothing of what was refused may have been carried out.
    assert!(read_all(volume) == expected);
    writer
        .write_at(&[], size, true)
        .expect("nothing, at the end");
}

/// Each thread owns every eighth stripe of seven bytes: a lost or doubled neighbour shows.
fn check_parallel_writes(volume: &Volume) {
    const STRIPE: u64 = 7;
    let size = volume.size().min(64 * 1024);
    let start = Barrier::new(THREADS);
    let run = |thread: u64| {
        let writer = volume.writer().expect("a volume that can be written");
        start.wait();
        for round in 0..3 {
            let mut at = thread * STRIPE;
            while at < size {
                let len = (size - at).min(STRIPE);
                let byte = 1 + (thread + round) as u8;
                writer
                    .write_at(&vec![byte; len as usize], at, false)
                    .unwrap_or_else(|error| panic!("writing at {at}: {error:?}"));
                at += STRIPE * THREADS as u64;
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            let run = &run;
            scope.spawn(move || run(thread));
        }
    });
    let found = read_all(volume);
    for (at, &byte) in found.iter().take(size as usize).enumerate() {
        let thread = at as u64 / STRIPE % THREADS as u64;
        assert_eq!(u64::from(byte), 1 + thread + 2, "byte {at}");
    }
}

fn assert_passed_on(error: &Error, kind: Kind, names: &[&str]) {
    assert_eq!(error.kind(), kind, "{error:?}");
    let report = error.report();
    let text = format!("{}\n{}", report.what, report.because.join("\n"));
    for name in names {
        assert!(text.contains(&format!("{name}: ")), "{name}: not in {text}");
    }
}

/// A range as indices; test images fit memory.
fn index(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}
