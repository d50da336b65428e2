//! The lzip layer against `lzip` and `plzip`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nbdserve::layer::lzip::LZIP;
use nbdserve::source::Memory;
use nbdserve::store::{Place, Store};
use nbdserve::testing::conformance::{self, read_all};
use nbdserve::testing::packed::{self, roomy, verifying};
use nbdserve::testing::{Counting, disk_like, noise, tools};
use nbdserve::{Access, ByteRange, Cx, Kind, Result, Volume};

const TRAILER: usize = 20;

fn lzip(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter("lzip", args, bytes)
}

/// Many members.
fn plzip(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter("plzip", args, bytes)
}

fn image(len: usize) -> Vec<u8> {
    disk_like(len, 1)
}

fn open(file: Vec<u8>, cx: &Cx) -> Result<Volume> {
    packed::open(&LZIP, file, cx)
}

fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    packed::open_on(&LZIP, below, cx)
}

#[track_caller]
fn kind_of_open(file: Vec<u8>) -> Option<Kind> {
    open(file, &roomy()).err().map(|error| error.kind())
}

/// The places of all members in a file.
fn members(file: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut all = Vec::new();
    let mut end = file.len();
    while end > 0 {
        let size = u64::from_le_bytes(file[end - 8..end].try_into().unwrap()) as usize;
        all.push(end - size..end);
        end -= size;
    }
    all.reverse();
    all
}

#[test]
fn files_of_both_tools_read_back() {
    let bytes = image(3_000_000);
    for file in [
        lzip(&bytes, &["-0"]),
        lzip(&bytes, &["-6"]),
        lzip(&bytes, &["-0", "-b", "100KiB"]),
        plzip(&bytes, &["-n2", "-1", "-B", "300KiB"]),
        plzip(&bytes, &["-n2", "-0", "-s", "64KiB", "-B", "64KiB"]),
    ] {
        let volume = open(file, &roomy()).unwrap();
        assert!(read_all(&volume) == bytes);
    }
}

#[test]
fn members_of_all_sizes_and_empty_ones_are_one_image() {
    let parts = [
        image(50_000),
        vec![],
        image(2_000_000),
        vec![7; 5],
        vec![],
        vec![],
    ];
    let file: Vec<u8> = parts.iter().flat_map(|part| lzip(part, &["-0"])).collect();
    assert!(read_all(&open(file, &roomy()).unwrap()) == parts.concat());
    assert_eq!(open(lzip(b"", &[]), &roomy()).unwrap().size(), 0);
    assert_eq!(kind_of_open(vec![]), Some(Kind::NotThisFormat));
}

#[test]
fn the_suite_in_memory_and_in_a_temp_file() {
    let bytes = image(800_000);
    for file in [
        lzip(&bytes, &["-0"]),
        plzip(&bytes, &["-0", "-B", "200KiB"]),
    ] {
        for (budget, verify) in [(128 << 20, false), (3 << 20, false), (128 << 20, true)] {
            let cx = || {
                let mut cx = Cx::new(budget);
                cx.verify = verify;
                cx
            };
            conformance::check(|| (open(file.clone(), &cx()).unwrap(), bytes.clone()));
            conformance::check_errors("lzip", &file, |below: &Volume| open_on(below, &cx()));
        }
    }
    for bytes in [vec![], vec![1]] {
        let file = lzip(&bytes, &[]);
        conformance::check(|| (open(file.clone(), &roomy()).unwrap(), bytes.clone()));
    }
}

#[test]
fn an_opening_decodes_nothing_and_a_read_decodes_its_member() {
    let bytes = noise(8_000_000, 2);
    let file = plzip(&bytes, &["-n2", "-0", "-B", "1MiB"]);
    let count = members(&file).len();
    assert_eq!(count, 8);
    let (below, counts) = Counting::volume(Memory::volume(file));
    let volume = open_on(&below, &roomy()).unwrap();
    assert_eq!(volume.size(), 8_000_000);
    assert_eq!(volume.geometry().access, Access::Block(1 << 20));
    // One request for the beginning, one for each member.
    assert!(counts.reads() <= 2 + count as u64, "{}", counts.reads());
    assert!(counts.read_bytes() <= 16 * 1024 * (2 + count as u64));
    counts.reset();
    assert!(volume.read_vec(4_500_000, 100).unwrap() == bytes[4_500_000..4_500_100]);
    assert!(counts.read_bytes() < 1_100_000, "{}", counts.read_bytes());
}

#[test]
fn many_small_members_cost_few_requests_and_are_decoded_together() {
    let one = lzip(b"a small member\n", &[]);
    let file = one.repeat(5000);
    let (below, counts) = Counting::volume(Memory::volume(file.clone()));
    let volume = open_on(&below, &roomy()).unwrap();
    assert!(counts.reads() <= 12, "{}", counts.reads());
    assert!(read_all(&volume) == b"a small member\n".repeat(5000));
    let stats = volume.stats().blocks;
    assert!(stats.is_none_or(|stats| stats.decodes == 1), "{stats:?}");
}

#[test]
fn where_members_lie_is_kept_for_the_next_opening() {
    let folder = tempfile::tempdir().unwrap();
    let mut cx = roomy();
    let store = Store::open(folder.path()).unwrap();
    cx.place = Some(Place::new(store, "the disk"));
    let bytes = noise(2_000_000, 3);
    let file = plzip(&bytes, &["-0", "-B", "64KiB", "-s", "64KiB"]);
    let (below, counts) = Counting::volume(Memory::volume(file));
    assert!(read_all(&open_on(&below, &cx).unwrap()) == bytes);
    counts.reset();
    let volume = open_on(&below, &cx).unwrap();
    assert_eq!((volume.size(), counts.reads()), (2_000_000, 0));
    assert!(read_all(&volume) == bytes);
    // Lies of it are noticed.
    let place = cx.place.clone().unwrap();
    let index = place.load("lzip-index-1", 1 << 20).unwrap();
    for at in 0..17 * 3 {
        let mut wrong = index.clone();
        wrong[at] ^= 1;
        place.save("lzip-index-1", &wrong);
        match open_on(&below, &cx).and_then(|volume| volume.read_vec(0, 200_000)) {
            Ok(found) => assert!(found == bytes[..200_000], "byte {at}"),
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "byte {at}: {error}"),
        }
    }
}

/// Three members in a few hundred bytes.
fn small() -> (Vec<u8>, Vec<u8>) {
    let parts = [image(400), vec![], b"and a third member".to_vec()];
    let file = parts.iter().flat_map(|part| lzip(part, &[])).collect();
    (parts.concat(), file)
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, file) = small();
    let ends: Vec<_> = members(&file).iter().map(|range| range.end).collect();
    for len in 0..file.len() {
        match open(file[..len].to_vec(), &roomy()) {
            Ok(volume) => {
                assert!(ends.contains(&len), "cut at {len}");
                assert!(bytes.starts_with(&read_all(&volume)));
            }
            Err(error) if len < 4 => assert_eq!(error.kind(), Kind::NotThisFormat),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt, "cut at {len}: {error}");
                assert!(error.to_string().contains("cut short"), "{error}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_gives_an_error_or_the_right_bytes() {
    let (bytes, file) = small();
    let cx = verifying(roomy());
    let kinds = [Kind::Corrupt, Kind::NotThisFormat, Kind::Unsupported];
    let survived = packed::flips_without_effect(&file, &bytes, &kinds, |bad| {
        let volume = open(bad, &cx)?;
        volume.read_vec(0, volume.size().min(5000) as usize)
    });
    // The dictionary may be larger or smaller.
    assert!(survived < 30, "{survived} flips were not noticed");
}

#[test]
fn trailing_garbage_is_refused_by_name() {
    let (_, file) = small();
    for garbage in [&b"\0"[..], b"garbage", &[0; 30], &[0xff; 1000]] {
        let error = open([&file, garbage].concat(), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("trailing garbage"), "{error}");
    }
}

#[test]
fn each_size_of_a_trailer_at_its_bounds() {
    let (_, file) = small();
    let ranges = members(&file);
    for range in &ranges {
        let size_at = range.end - 8;
        let size = range.len() as u64;
        for lie in [
            0,
            1,
            35,
            36,
            size - 1,
            size + 1,
            file.len() as u64,
            1 << 40,
            u64::MAX - 1,
            u64::MAX,
        ] {
            if lie == size {
                continue;
            }
            let mut bad = file.clone();
            bad[size_at..range.end].copy_from_slice(&lie.to_le_bytes());
            // A member over several others is found out when it is decoded.
            let cx = verifying(roomy());
            let result = open(bad, &cx).and_then(|volume| {
                let len = volume.size().min(5000) as usize;
                volume.read_vec(0, len)
            });
            assert_eq!(result.unwrap_err().kind(), Kind::Corrupt, "{lie}");
        }
    }
    let last = ranges.last().unwrap().end;
    for lie in [0, 1, 17, 19, 1 << 40, u64::MAX >> 1, u64::MAX - 1, u64::MAX] {
        let mut bad = file.clone();
        bad[last - 16..last - 8].copy_from_slice(&lie.to_le_bytes());
        let cx = verifying(roomy());
        match open(bad, &cx) {
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{lie}: {error}"),
            Ok(volume) => {
                let at = volume.size().saturating_sub(1);
                assert_eq!(volume.size(), 400 + lie);
                let error = volume.read_vec(at, 1);
                // Members that are decoded together fail together.
                assert_eq!(error.unwrap_err().kind(), Kind::Corrupt, "{lie}");
            }
        }
    }
}

#[test]
fn a_member_that_is_said_to_be_empty_is_looked_into() {
    let bytes = noise(5 << 20, 9);
    let large = lzip(&bytes, &["-0"]);
    let mut liar = lzip(&image(3 << 20), &["-0"]);
    let at = liar.len() - 16;
    liar[at..at + 8].fill(0);
    let empty = lzip(b"", &["-0"]);
    for file in [
        liar.clone(),
        [&large[..], &liar].concat(),
        [&large[..], &empty, &liar, &large].concat(),
    ] {
        let all = open(file, &verifying(roomy())).and_then(|volume| {
            let len = volume.size() as usize;
            volume.read_vec(0, len)
        });
        assert_eq!(all.unwrap_err().kind(), Kind::Corrupt);
    }
    let file = [&large[..], &empty, &empty].concat();
    let volume = open(file, &roomy()).unwrap();
    assert!(volume.read_vec(0, bytes.len()).unwrap() == bytes);
}

#[test]
fn a_wrong_check_costs_its_member_and_no_other() {
    let bytes = noise(5 << 20, 4);
    let mut file = plzip(&bytes, &["-0", "-B", "1MiB"]);
    let wrong = members(&file)[2].end - TRAILER;
    file[wrong] ^= 1;
    let cx = verifying(roomy());
    let volume = open(file, &cx).unwrap();
    for member in [0, 1, 3, 4] {
        let at = member << 20;
        assert!(volume.read_vec(at, 1 << 20).unwrap() == bytes[at as usize..][..1 << 20]);
    }
    let error = volume.read_vec(5 << 19, 1).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("lzip: the member at"), "{error}");
}

#[test]
fn versions_and_dictionaries_that_we_do_not_know() {
    let file = lzip(&image(5000), &[]);
    let with = |at: usize, byte: u8| {
        let mut file = file.clone();
        file[at] = byte;
        file
    };
    assert_eq!(kind_of_open(with(4, 0)), Some(Kind::Unsupported));
    assert_eq!(kind_of_open(with(4, 2)), Some(Kind::Unsupported));
    for byte in [0, 11, 30, 0x2c, 0xff] {
        assert_eq!(kind_of_open(with(5, byte)), Some(Kind::Corrupt), "{byte}");
    }
    // 512 MiB for 5000 bytes: no more is taken than they need.
    let cx = Cx::new(4 << 20);
    assert!(read_all(&open(with(5, 29), &cx).unwrap()) == image(5000));
    // For as many as that it would be needed.
    let mut claims = with(5, 29);
    let end = claims.len();
    claims[end - 16..end - 8].copy_from_slice(&4_500_000_u64.to_le_bytes());
    let error = open(claims, &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.report().hint.unwrap().starts_with("--cache-size="));
}

#[test]
fn zeroes_are_passed_up() {
    let mut bytes = vec![0; 24 << 20];
    bytes[9 << 20] = 1;
    let file = plzip(&bytes, &["-0", "-B", "2MiB"]);
    let volume = open(file, &roomy()).unwrap();
    let all = ByteRange::between(0, volume.size());
    let extents = volume.extents(all).unwrap();
    let zero = extents.runs().iter().filter(|run| run.flags.zero);
    let zero: u64 = zero.map(|run| run.range.len()).sum();
    assert_eq!(zero, (24 << 20) - (256 << 10), "all but one piece");
}
