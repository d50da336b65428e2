//! The contract of `Volume`, held against a model, a strict disk and injected faults.

use std::sync::Barrier;
use std::time::Duration;

use nbdserve::source::Memory;
use nbdserve::testing::{
    Counting, Faulty, Model, Op, Slow, Strict, StrictDisk, conformance, noise,
};
use nbdserve::{ByteRange, Done, Kind, Volume, WriteFeatures, ZeroOpts};
use proptest::prelude::*;

const NATIVE: WriteFeatures = WriteFeatures {
    fua: true,
    zero: true,
    trim: true,
};

/// Half noise, half zeroes, in stretches of a few blocks.
fn patchy(len: usize) -> Vec<u8> {
    let mut bytes = noise(len, 42);
    for (number, piece) in bytes.chunks_mut(3000).enumerate() {
        if number % 3 != 0 {
            piece.fill(0);
        }
    }
    bytes
}

#[test]
fn memory_keeps_the_contract() {
    for len in [0, 1, 511, 512, 70_000] {
        conformance::check(|| (Memory::volume(patchy(len)), patchy(len)));
        conformance::check_writer(|| (Memory::volume(patchy(len)), patchy(len)));
    }
}

#[test]
fn a_volume_over_a_disk_of_blocks_keeps_the_contract() {
    for block in [1, 512, 4096] {
        // The last one ends in the middle of a block.
        for len in [0, 4096, 65536, 70_001] {
            let open = || {
                let (volume, _) = StrictDisk::new(block).volume(patchy(len));
                (volume, patchy(len))
            };
            conformance::check(open);
            conformance::check_writer(open);
        }
    }
}

#[test]
fn the_wrappers_for_tests_keep_the_contract_themselves() {
    let disk = || StrictDisk::new(512).volume(patchy(50_000)).0;
    conformance::check(|| (Faulty::volume(disk()).0, patchy(50_000)));
    conformance::check_writer(|| (Faulty::volume(disk()).0, patchy(50_000)));
    conformance::check(|| (Counting::volume(disk()).0, patchy(50_000)));
    conformance::check_writer(|| (Counting::volume(disk()).0, patchy(50_000)));
    conformance::check(|| (Slow::volume(disk()).0, patchy(50_000)));
    conformance::check_errors("counting", &patchy(50_000), |below| {
        Ok(Counting::volume(below.clone()).0)
    });
}

fn features() -> impl Strategy<Value = WriteFeatures> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(fua, zero, trim)| WriteFeatures {
        fua,
        zero,
        trim,
    })
}

/// After `op` with FUA the bytes it names are what a power failure would leave. What a trim left
/// as it was (all of it, or ragged ends) is undefined either way.
fn check_durable(op: Op, disk: &Strict, block: u64, features: WriteFeatures) {
    let size = disk.bytes().len() as u64;
    let (range, fua) = match op {
        Op::Write { range, fua, .. } => (range, fua),
        Op::Trim { range, fua } => {
            let start = range.start().next_multiple_of(block);
            let end = match range.end() {
                end if end == size => end,
                end => end - end % block,
            };
            (
                ByteRange::between(start.min(end), end),
                fua && features.trim,
            )
        }
        Op::Zero { range, opts } => (range, opts.fua && !opts.fast_only),
        Op::Flush => (ByteRange::between(0, size), true),
        Op::Read(range) => (range, false),
    };
    if fua {
        let range = range.start() as usize..range.end() as usize;
        assert!(
            disk.durable()[range.clone()] == disk.bytes()[range],
            "{op:?} is not durable"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_sequence_of_operations_reads_as_the_model_says(
        block in prop::sample::select(vec![1u32, 512, 4096]),
        len in 0usize..40_000,
        features in features(),
        declines in any::<bool>(),
        seeds in prop::collection::vec(any::<u64>(), 1..60),
    ) {
        let mut disk = StrictDisk::new(block).features(features);
        disk.declines = declines;
        let (volume, disk) = disk.volume(patchy(len));
        let mut model = Model::new(patchy(len));
        for seed in seeds {
            let op = Op::from_seed(seed, volume.size(), 10_000);
            model.apply(&volume, op);
            check_durable(op, &disk, u64::from(block), features);
        }
        model.compare_all(&volume);
        model.compare(&disk.bytes(), ByteRange::between(0, volume.size()));
    }
}

#[test]
fn zeroing_an_unaligned_range_leaves_the_middle_to_the_device() {
    let (disk, _) = StrictDisk::new(512).features(NATIVE).volume(noise(8192, 1));
    let (volume, counts) = Counting::volume(disk);
    // Counting hands the geometry on, so the blocks are those of the disk.
    let done = volume
        .writer()
        .unwrap()
        .zero(ByteRange::between(100, 8000), ZeroOpts::default());
    assert_eq!(done.unwrap(), Done::Yes);
    assert_eq!((counts.zeroes(), counts.writes()), (1, 2));
    assert!(
        conformance::read_all(&volume)[100..8000]
            .iter()
            .all(|&byte| byte == 0)
    );
}

#[test]
fn fast_zero_is_declined_before_anything_is_written() {
    let before = noise(8192, 1);
    let opts = ZeroOpts {
        fast_only: true,
        ..ZeroOpts::default()
    };
    for (features, declines) in [(WriteFeatures::default(), false), (NATIVE, true)] {
        let mut disk = StrictDisk::new(512).features(features);
        disk.declines = declines;
        let (volume, disk) = disk.volume(before.clone());
        let writer = volume.writer().unwrap();
        let done = writer.zero(ByteRange::between(100, 8000), opts).unwrap();
        assert_eq!(done, Done::Declined);
        assert!(disk.bytes() == before);
    }
}

#[test]
fn trim_touches_whole_blocks_within_the_range_only() {
    let before = noise(8192, 1);
    let (volume, disk) = StrictDisk::new(512).features(NATIVE).volume(before.clone());
    let writer = volume.writer().unwrap();
    writer.trim(ByteRange::between(100, 500), false).unwrap();
    assert!(disk.bytes() == before);
    writer.trim(ByteRange::between(100, 1100), false).unwrap();
    let after = disk.bytes();
    assert!(after[..512] == before[..512] && after[1024..] == before[1024..]);
    assert!(after[512..1024].iter().all(|&byte| byte == Strict::TRIMMED));
}

#[test]
fn fua_without_native_support_costs_one_flush() {
    let (volume, disk) = StrictDisk::new(512).volume(noise(8192, 1));
    let writer = volume.writer().unwrap();
    // Two ragged blocks and more than one request in the middle.
    writer.write_at(&noise(7000, 2), 100, true).unwrap();
    assert_eq!(disk.flushes(), 1);
    writer.write_at(&noise(512, 3), 0, false).unwrap();
    assert_eq!(disk.flushes(), 1);
}

#[test]
fn ranges_near_the_end_of_u64_do_not_overflow() {
    #[derive(Debug)]
    struct Endless;
    impl nbdserve::Device for Endless {
        fn name(&self) -> &'static str {
            "endless"
        }
        fn geometry(&self) -> nbdserve::Geometry {
            nbdserve::Geometry {
                min_block: 4096,
                ..nbdserve::Geometry::bytes(u64::MAX)
            }
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> nbdserve::Result<()> {
            assert!(offset.is_multiple_of(4096));
            assert!(offset.checked_add(buf.len() as u64).is_some());
            buf.fill(1);
            Ok(())
        }
        fn writer(&self) -> Option<&dyn nbdserve::Writer> {
            Some(self)
        }
    }
    impl nbdserve::Writer for Endless {
        fn features(&self) -> WriteFeatures {
            NATIVE
        }
        fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> nbdserve::Result<()> {
            assert!(offset.is_multiple_of(4096));
            assert!(offset.checked_add(buf.len() as u64).is_some());
            Ok(())
        }
        fn flush(&self) -> nbdserve::Result<()> {
            Ok(())
        }
        fn zero(&self, range: ByteRange, _opts: ZeroOpts) -> nbdserve::Result<Done> {
            assert!(range.start().is_multiple_of(4096));
            Ok(Done::Yes)
        }
        fn trim(&self, range: ByteRange, _fua: bool) -> nbdserve::Result<()> {
            assert!(range.start().is_multiple_of(4096));
            Ok(())
        }
    }
    let volume = Volume::new(Endless);
    let writer = volume.writer().unwrap();
    for start in [
        u64::MAX - 1,
        u64::MAX - 4095,
        u64::MAX - 4096,
        u64::MAX - 10_000,
    ] {
        let range = ByteRange::between(start, u64::MAX);
        let len = range.len() as usize;
        assert!(volume.read_vec(start, len).unwrap() == vec![1; len]);
        writer.write_at(&vec![0; len], start, true).unwrap();
        assert_eq!(writer.zero(range, ZeroOpts::default()).unwrap(), Done::Yes);
        writer.trim(range, true).unwrap();
        volume.will_need(range);
        assert_eq!(volume.extents(range).unwrap().next_offset(), u64::MAX);
    }
    let error = volume.read_vec(u64::MAX, 1).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
}

#[test]
fn a_failing_part_of_a_split_request_fails_the_request() {
    let (disk, _) = StrictDisk::new(512).volume(noise(16384, 1));
    let (volume, faults) = Faulty::volume(disk);
    // Requests of at most 2048 bytes: the third of four.
    faults.fail_nth(2, Kind::Io);
    let error = volume.read_vec(0, 8192).unwrap_err();
    assert_eq!((error.kind(), faults.requests()), (Kind::Io, 3));
    assert_eq!(
        error.to_string(),
        "faulty: injected fault: read bytes 4096..6144"
    );
    assert!(volume.read_vec(0, 8192).is_ok());

    faults.fail_nth(1, Kind::NoSpace);
    let writer = volume.writer().unwrap();
    // Reading the first block works, writing it back does not.
    let error = writer.write_at(&[1, 2, 3], 5, false).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(conformance::read_all(&volume) == noise(16384, 1));
}

#[test]
fn reads_reach_the_device_at_the_same_time() {
    const READERS: usize = 16;
    let (volume, gate) = Slow::volume(Memory::volume(noise(READERS * 512, 1)));
    gate.shut();
    let start = Barrier::new(READERS);
    std::thread::scope(|scope| {
        for number in 0..READERS as u64 {
            let (volume, start) = (&volume, &start);
            scope.spawn(move || {
                start.wait();
                volume.read_vec(number * 512, 512).unwrap();
            });
        }
        let all = gate.wait_in_flight(READERS, Duration::from_secs(30));
        gate.open();
        assert!(
            all,
            "{} of {READERS} readers in flight",
            gate.most_in_flight()
        );
    });
    assert_eq!((gate.in_flight(), gate.served()), (0, READERS as u64));
}

#[test]
fn what_is_a_file_of_its_own_grows_and_a_part_of_it_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, patchy(5000)).unwrap();
    let file = nbdserve::source::File::open(&path, nbdserve::source::OpenMode::Write).unwrap();
    for volume in [Memory::volume(patchy(5000)), Volume::new(file)] {
        let args = [("offset".to_owned(), "1000".to_owned())];
        let args = nbdserve::layer::Args::from(args);
        let cx = nbdserve::Cx::new(1 << 20);
        let part = (nbdserve::layer::offset::OFFSET.open)(&volume, &args, &cx).unwrap();
        assert_eq!(part.writer().unwrap().grow(5000).unwrap(), Done::Declined);
        assert_eq!((part.size(), volume.size()), (4000, 5000));

        let clone = volume.clone();
        let writer = volume.writer().unwrap();
        assert_eq!(writer.grow(70_000).unwrap(), Done::Yes);
        assert_eq!((clone.size(), clone.geometry().size), (70_000, 70_000));
        assert_eq!(part.size(), 4000, "it was made before");
        assert!(clone.read_vec(0, 5000).unwrap() == patchy(5000));
        assert!(
            clone
                .read_vec(5000, 65_000)
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
        // Never shorter.
        assert_eq!(writer.grow(10).unwrap(), Done::Yes);
        assert_eq!(volume.size(), 70_000);
        writer.write_at(&[7; 1000], 69_000, true).unwrap();
        assert_eq!(clone.read_vec(69_999, 1).unwrap(), [7]);
        let error = writer.write_at(&[7], 70_000, false).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfRange);
        let extents = volume.extents(ByteRange::between(0, 70_000)).unwrap();
        assert_eq!(extents.runs().last().unwrap().range.end(), 70_000);
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 70_000);
}

#[test]
fn no_read_sees_a_volume_that_grows_in_two_sizes() {
    let volume = Memory::volume(patchy(4096));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for step in 2..200 {
                let _ = volume.writer().unwrap().grow(step * 4096).unwrap();
            }
        });
        scope.spawn(|| {
            for _ in 0..2000 {
                let size = volume.size();
                volume.read_vec(size - 1, 1).unwrap();
                volume
                    .writer()
                    .unwrap()
                    .write_at(&[1], size - 1, false)
                    .unwrap();
            }
        });
    });
    assert_eq!(volume.size(), 199 * 4096);
}
