//! The lzma layer against `xz --format=lzma`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nbdserve::layer::lzma::LZMA;
use nbdserve::layer::{Confidence, Sample, Verdict};
use nbdserve::source::Memory;
use nbdserve::testing::conformance::{self, read_all};
use nbdserve::testing::packed::{self, roomy, verifying};
use nbdserve::testing::{Counting, disk_like, noise, tools};
use nbdserve::{Access, ByteRange, Cx, Kind, Result, Volume};

/// `xz --format=lzma ARGS < bytes`: of unknown size, with an end marker.
fn lzma(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter("xz", &[&["--format=lzma"], args].concat(), bytes)
}

/// A file that states its size, as the LZMA SDK makes it; its end marker is allowed.
fn sized(bytes: &[u8], args: &[&str], size: u64) -> Vec<u8> {
    let mut file = lzma(bytes, args);
    file[5..13].copy_from_slice(&size.to_le_bytes());
    file
}

fn image(len: usize) -> Vec<u8> {
    disk_like(len, 1)
}

/// Nothing is served before all of it is known to be right.
fn strict() -> Cx {
    verifying(roomy())
}

fn open(file: Vec<u8>, cx: &Cx) -> Result<Volume> {
    packed::open(&LZMA, file, cx)
}

fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    packed::open_on(&LZMA, below, cx)
}

fn keeping(folder: &std::path::Path, budget: u64) -> Cx {
    packed::keeping(Cx::new(budget), folder)
}

#[test]
fn files_of_all_sorts_read_back() {
    let bytes = image(3_000_000);
    for args in [
        &["-0"][..],
        &["-6"],
        &["--lzma1=preset=0,dict=4KiB"],
        &["--lzma1=preset=0,lc=0,lp=4,pb=4"],
        &["--lzma1=preset=0,dict=6MiB,lc=4,lp=0,pb=0"],
    ] {
        for file in [lzma(&bytes, args), sized(&bytes, args, 3_000_000)] {
            let volume = open(file, &roomy()).unwrap();
            assert!(read_all(&volume) == bytes, "{args:?}");
        }
    }
    for bytes in [&b""[..], b"x"] {
        let len = bytes.len() as u64;
        for file in [lzma(bytes, &[]), sized(bytes, &[], len)] {
            assert!(read_all(&open(file, &roomy()).unwrap()) == bytes);
        }
    }
}

#[test]
fn the_suite_with_an_unknown_and_a_known_size() {
    let bytes = image(800_000);
    for file in [lzma(&bytes, &["-0"]), sized(&bytes, &["-0"], 800_000)] {
        // In memory, and too long for that.
        for budget in [128 << 20, 3 << 20] {
            conformance::check(|| (open(file.clone(), &Cx::new(budget)).unwrap(), bytes.clone()));
            conformance::check_errors("lzma", &file, |below: &Volume| {
                open_on(below, &Cx::new(budget))
            });
        }
    }
}

#[test]
fn an_unknown_size_is_found_once_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(2_000_000);
    let file = lzma(&bytes, &["-0"]);
    let (below, counts) = Counting::volume(Memory::volume(file.clone()));
    let first = open_on(&below, &keeping(folder.path(), 128 << 20)).unwrap();
    assert!(counts.read_bytes() <= file.len() as u64 + 13);
    counts.reset();
    assert!(read_all(&first) == bytes);
    assert_eq!(counts.reads(), 0, "it was decoded at opening");

    let second = open_on(&below, &keeping(folder.path(), 128 << 20)).unwrap();
    assert_eq!((second.size(), counts.read_bytes()), (2_000_000, 13));
    assert!(read_all(&second) == bytes);

    // A size that is wrong gives errors, never other bytes.
    for wrong in [1_999_999_u64, 2_000_001, 1 << 62] {
        // A store of its own: with the decoded bytes in it nothing would be decoded and compared.
        let folder = tempfile::tempdir().unwrap();
        let mut cx = keeping(folder.path(), 128 << 20);
        cx.verify = true;
        let kept = [(file.len() as u64).to_le_bytes(), wrong.to_le_bytes()].concat();
        cx.place.as_ref().unwrap().save("lzma-size-1", &kept);
        let volume = open(file.clone(), &cx).unwrap();
        let last = volume.read_vec(wrong - 1, 1).unwrap_err();
        assert_eq!(last.kind(), Kind::Corrupt, "{wrong}: {last}");
    }
}

#[test]
fn a_stated_size_that_lies_is_corrupt() {
    let bytes = image(300_000);
    let last = |size: u64| {
        let volume = open(sized(&bytes, &["-0"], size), &strict()).unwrap();
        assert_eq!(volume.size(), size);
        volume.read_vec(size - 1, 1).map_err(|error| error.kind())
    };
    assert_eq!(last(300_000), Ok(vec![bytes[299_999]]));
    for size in [1, 299_999, 300_001, 1 << 24] {
        assert_eq!(last(size), Err(Kind::Corrupt), "{size}");
    }
    // Nothing, where there is something.
    let error = open(sized(&bytes, &["-0"], 0), &roomy()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    // More than can be.
    for size in [1 << 40, (1 << 63) - 1, 1 << 63, u64::MAX - 1] {
        let error = open(sized(&bytes, &["-0"], size), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = image(400);
    let cx = strict();
    for file in [lzma(&bytes, &[]), sized(&bytes, &[], 400)] {
        for len in 0..file.len() {
            let result = open(file[..len].to_vec(), &cx).and_then(|volume| volume.read_vec(0, 400));
            let error = result.unwrap_err();
            let expected = if len < 13 {
                Kind::NotThisFormat
            } else {
                Kind::Corrupt
            };
            assert_eq!(error.kind(), expected, "cut at {len}: {error}");
            assert!(
                len < 13 || error.to_string().contains("cut short"),
                "{error}"
            );
        }
    }
}

#[test]
fn trailing_garbage_is_refused_by_name() {
    let bytes = image(5000);
    for garbage in [&b"\0"[..], b"garbage", &[0; 100_000]] {
        let mut unknown = lzma(&bytes, &[]);
        let mut known = sized(&bytes, &[], 5000);
        let at = known.len();
        unknown.extend(garbage);
        known.extend(garbage);
        let expected = format!("trailing garbage: {} bytes at {at}", garbage.len());
        let error = open(unknown, &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains(&expected), "{error}");
        let volume = open(known, &strict()).unwrap();
        let error = volume.read_vec(4999, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn a_dictionary_that_does_not_fit_is_refused_before_memory_is_taken() {
    let mut file = lzma(&image(5000), &[]);
    file[1..5].fill(0xff);
    let cx = roomy();
    let error = open(file.clone(), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.report().hint.unwrap().starts_with("--cache-size="));
    assert_eq!(cx.cache.peak(), 0);
    // Where the size is stated, no more than that is needed.
    file[5..13].copy_from_slice(&5000_u64.to_le_bytes());
    assert!(read_all(&open(file, &cx).unwrap()) == image(5000));
}

#[test]
fn zeroes_are_passed_up_and_the_cost_of_a_jump_is_told() {
    let bytes = vec![0; 40 << 20];
    let mut cx = Cx::new(64 << 20);
    cx.temp_limit = 1 << 20;
    let volume = open(lzma(&bytes, &["-0"]), &cx).unwrap();
    assert_eq!(volume.geometry().access, Access::Random);
    let all = ByteRange::between(0, volume.size());
    assert!(volume.extents(all).unwrap().runs()[0].flags.zero);
    let volume = open(sized(&bytes, &["-0"], 40 << 20), &cx).unwrap();
    assert_eq!(
        volume.geometry().access,
        Access::Block(40 << 20).min(volume.geometry().access)
    );
    assert_eq!(volume.read_vec(30 << 20, 5).unwrap(), [0; 5]);
}

fn verdict(file: &[u8]) -> Option<Confidence> {
    let sample = Sample {
        head: &file[..file.len().min(Sample::HEAD)],
        tail: None,
        size: file.len() as u64,
    };
    match (LZMA.probe)(&sample) {
        Verdict::No => None,
        Verdict::Yes { confidence, .. } => Some(confidence),
    }
}

#[test]
fn real_files_are_recognised() {
    for bytes in [
        &b"x"[..],
        &image(3000),
        &image(2_000_000),
        &noise(200_000, 1),
        &[0; 90_000],
    ] {
        for args in [
            &["-0"][..],
            &["-9"],
            &["--lzma1=preset=0,lc=0,lp=4,pb=4,dict=4KiB"],
        ] {
            let file = lzma(bytes, args);
            assert_eq!(verdict(&file), Some(Confidence::SHORT_MAGIC), "{args:?}");
            let file = sized(bytes, args, bytes.len() as u64);
            assert_eq!(verdict(&file), Some(Confidence::SHORT_MAGIC), "{args:?}");
        }
    }
}

#[test]
fn what_only_looks_like_a_header_is_not_recognised() {
    assert_eq!(verdict(&[0; 100_000]), None);
    assert_eq!(verdict(b"\x5d\0\0\x80"), None);
    let header = b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(verdict(header), None);
    assert_eq!(verdict(&[&header[..], &[0; 100_000]].concat()), None);
    // Random bytes behind a header: whatever they are, decoding fails.
    for seed in 0..500 {
        let mut bytes = [&header[..], b"\0", &noise(70_000, seed)].concat();
        assert_eq!(verdict(&bytes), None, "{seed}");
        bytes.truncate(400);
        assert_eq!(verdict(&bytes), None, "{seed}");
    }
    // A good beginning, and not that of the file.
    let file = lzma(b"a short text", &[]);
    assert!(verdict(&file).is_some());
    assert_eq!(verdict(&[file, vec![0; 1000]].concat()), None);
}
