//! Blocks too large for memory, memory and waits.

use std::sync::Arc;

use nbdserve::testing::conformance::read_all;
use nbdserve::{Access, ByteRange, Cx, Kind};

use crate::tools::{MIB, Probe, Witness, image, noise, open, open_on, read, roomy, xz};

/// Blocks of more than 2 MiB go to the temp file.
fn tight() -> Cx {
    Cx::new(8 << 20)
}

#[test]
fn a_huge_block_is_read_from_the_source_once() {
    let bytes = noise(8 * MIB, 51);
    let file = xz(&bytes, &["-0"]);
    let size = file.len() as u64;
    let probe = Probe::new(file);
    let folder = tempfile::tempdir().unwrap();
    let witness = Arc::new(Witness::default());
    let mut cx = tight();
    cx.temp_dir = folder.path().to_owned();
    cx.observer = witness.clone();
    let volume = open_on(&probe.volume(), &cx).unwrap();
    let before = probe.read_bytes();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (volume, bytes) = (&volume, &bytes);
            scope.spawn(move || {
                for step in 0..20 {
                    let at = (reader * 777_777 + step * 3_333_333) % (8 * MIB - 50_000);
                    let found = read(volume, at, 50_000).unwrap();
                    assert!(found == bytes[at..at + 50_000]);
                }
            });
        }
    });
    assert!(read_all(&volume) == bytes);
    // The last bytes may be served before the check behind them has been read.
    let read = probe.wait_for_bytes(before + size - 100) - before;
    assert!(read < size, "{read} of {size}");
    assert!(cx.cache.peak() <= cx.cache.budget());
    assert_eq!(witness.wait_complete(), 8 << 20);
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 0, "the temp file has no name");
}

#[test]
fn what_is_behind_the_frontier_does_not_wait() {
    let bytes = noise(8 * MIB, 52);
    let probe = Probe::new(xz(&bytes, &["-0"]));
    let volume = open_on(&probe.volume(), &tight()).unwrap();
    probe.hold_from(5 << 20);
    std::thread::scope(|scope| {
        let ahead = scope.spawn(|| read(&volume, 7 * MIB, 10).unwrap());
        for at in [3 * MIB, 0, 2 * MIB, 12_345] {
            assert!(read(&volume, at, 9000).unwrap() == bytes[at..at + 9000]);
        }
        assert!(!ahead.is_finished());
        probe.release();
        assert!(ahead.join().unwrap() == bytes[7 * MIB..7 * MIB + 10]);
    });
}

#[test]
fn a_hint_starts_the_pass() {
    let bytes = noise(4 * MIB, 53);
    let probe = Probe::new(xz(&bytes, &["-0"]));
    let volume = open_on(&probe.volume(), &tight()).unwrap();
    probe.take_reads();
    volume.will_need(ByteRange::between(0, 1));
    probe.wait_for_reads(4);
    assert!(read_all(&volume) == bytes);
}

#[test]
fn several_huge_blocks_are_independent() {
    let bytes = image(16 * MIB, 54);
    let file = xz(&bytes, &["-0", "--block-size=5MiB"]);
    let probe = Probe::new(file);
    let volume = open_on(&probe.volume(), &tight()).unwrap();
    for at in [11 * MIB, 15 * MIB, 6 * MIB, 0] {
        assert!(read(&volume, at, 70_000).unwrap() == bytes[at..at + 70_000]);
    }
    assert!(read_all(&volume) == bytes);
}

#[test]
fn zeroes_take_no_space_in_the_temp_file_and_are_known() {
    let mut bytes = vec![0; 64 * MIB];
    bytes[40 * MIB..40 * MIB + 4].copy_from_slice(b"data");
    let mut cx = tight();
    cx.temp_limit = 256 << 10;
    let volume = open(xz(&bytes, &["-0"]), &cx).unwrap();
    assert!(read_all(&volume) == bytes);
    let all = ByteRange::between(0, volume.size());
    let runs: Vec<_> = volume
        .extents(all)
        .unwrap()
        .runs()
        .iter()
        .map(|run| (run.range.len(), run.flags.zero))
        .collect();
    let mib = 1 << 20;
    let expected = [
        (40 * mib, true),
        (mib / 4, false),
        (24 * mib - mib / 4, true),
    ];
    assert_eq!(runs, expected);
}

#[test]
fn no_space_ends_the_pass_but_not_what_is_behind_it() {
    let bytes = image(16 * MIB, 55);
    let mut cx = tight();
    cx.temp_limit = 4 << 20;
    let volume = open(xz(&bytes, &["-0"]), &cx).unwrap();
    for _ in 0..2 {
        let error = read(&volume, 15 * MIB, 10).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        let report = error.report();
        assert!(report.hint.is_some_and(|hint| hint.contains("--temp-dir")));
        assert!(read(&volume, 0, MIB).unwrap() == bytes[..MIB]);
    }
}

#[test]
fn what_can_never_fit_is_refused_at_open() {
    let mut cx = tight();
    cx.temp_limit = 3 << 20;
    let error = open(xz(&noise(4 * MIB, 56), &["-0"]), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    cx.temp_dir = "/nonexistent".into();
    let error = open(xz(&noise(4 * MIB, 56), &["-0"]), &cx).unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

#[test]
fn a_pass_that_broke_off_is_made_again_when_it_is_needed() {
    let bytes = noise(6 * MIB, 57);
    let probe = Probe::new(xz(&bytes, &["-0"]));
    let volume = open_on(&probe.volume(), &tight()).unwrap();
    probe.fail_from(Some(4 << 20));
    assert_eq!(read(&volume, 5 * MIB, 10).unwrap_err().kind(), Kind::Io);
    assert!(read(&volume, 0, 2 * MIB).unwrap() == bytes[..2 * MIB]);
    probe.fail_from(None);
    assert!(read_all(&volume) == bytes);
}

#[test]
fn a_huge_block_whose_check_fails_is_taken_back_whole() {
    let bytes = noise(6 * MIB, 58);
    let mut file = xz(&bytes, &["-0"]);
    file[3 * MIB] ^= 1;
    let probe = Probe::new(file);
    let witness = Arc::new(Witness::default());
    let mut cx = tight();
    cx.observer = witness.clone();
    let volume = open_on(&probe.volume(), &cx).unwrap();
    probe.hold_from(5 << 20);
    assert!(read(&volume, 0, 100).unwrap() == bytes[..100]);
    probe.release();
    for at in [6 * MIB - 1, 0] {
        assert_eq!(read(&volume, at, 1).unwrap_err().kind(), Kind::Corrupt);
    }
    assert_eq!(witness.wait_poisoned().len(), 1);
}

#[test]
fn cancelling_ends_every_wait() {
    let bytes = noise(6 * MIB, 59);
    for cx in [roomy(), tight()] {
        let probe = Probe::new(xz(&bytes, &["-0"]));
        let volume = open_on(&probe.volume(), &cx).unwrap();
        probe.take_reads();
        probe.hold_from(1 << 20);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4)
                .map(|n| {
                    let volume = &volume;
                    scope.spawn(move || read(volume, n * MIB, 10).unwrap_err())
                })
                .collect();
            probe.wait_for_reads(1);
            cx.cancel.cancel();
            // The source still holds its answer back; the readers do not wait for it.
            for reader in readers {
                let error = reader.join().unwrap();
                assert!(error.to_string().contains("taken down"), "{error}");
            }
        });
        probe.release();
        assert!(read(&volume, 0, 1).is_err());
        volume.close().unwrap();
    }
}

#[test]
fn a_source_that_hangs_times_out() {
    let bytes = noise(6 * MIB, 60);
    for mut cx in [roomy(), tight()] {
        cx.no_progress = std::time::Duration::from_millis(20);
        let probe = Probe::new(xz(&bytes, &["-0"]));
        let volume = open_on(&probe.volume(), &cx).unwrap();
        probe.hold_from(2 << 20);
        let error = read(&volume, 5 * MIB, 10).unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut, "{error:?}");
        probe.release();
    }
}

#[test]
fn a_closed_layer_reads_no_more_and_holds_no_memory() {
    let bytes = image(3 * MIB, 61);
    let cx = roomy();
    let volume = open(xz(&bytes, &["-0", "--block-size=1MiB"]), &cx).unwrap();
    assert!(read_all(&volume) == bytes);
    assert!(cx.cache.used() > 0);
    volume.close().unwrap();
    assert!(read(&volume, 0, 1).is_err());
    assert_eq!(cx.cache.used(), 0);
}

#[test]
fn the_budget_holds_with_many_readers() {
    let bytes = image(24 * MIB, 62);
    let file = xz(&bytes, &["--lzma2=preset=0,dict=1MiB", "--block-size=1MiB"]);
    let cx = Cx::new(10 << 20);
    let volume = open(file, &cx).unwrap();
    assert_eq!(volume.geometry().access, Access::Block(1 << 20));
    std::thread::scope(|scope| {
        for reader in 0..6 {
            let (volume, bytes) = (&volume, &bytes);
            scope.spawn(move || {
                for step in 0..40 {
                    let at = (reader * 4 * MIB + step * 100_000) % (23 * MIB);
                    let found = read(volume, at, 100_000).unwrap();
                    assert!(found == bytes[at..at + 100_000]);
                }
            });
        }
    });
    let (peak, budget) = (cx.cache.peak(), cx.cache.budget());
    assert!(peak <= budget, "{peak} of {budget}");
}

#[test]
fn a_sequential_stream_is_decoded_ahead_and_a_single_read_is_not() {
    let bytes = noise(8 * MIB, 63);
    let file = xz(&bytes, &["-0", "--block-size=1000000"]);
    let probe = Probe::new(file);
    let cx = roomy();
    let volume = open_on(&probe.volume(), &cx).unwrap();
    probe.take_reads();
    assert!(read(&volume, 5_000_000, 10).is_ok());
    assert_eq!(probe.take_reads().len(), 1);
    for step in 0..9 {
        assert!(read(&volume, step * 100_000, 100_000).is_ok());
    }
    // Only block 0 was asked for, those behind it come by themselves.
    probe.wait_for_reads(2);
    let ahead = 1_000_000..(3 + cx.pool.threads() as u64) * 1_001_000;
    for (offset, _) in &probe.take_reads()[1..] {
        assert!(ahead.contains(offset), "{offset}");
    }
}
