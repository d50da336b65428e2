//! Android sparse images: made by img2simg and by hand, read back by simg2img, damaged in every
//! field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use nbdserve::layer::simg::SIMG;
use nbdserve::layer::{Args, Sample, Verdict};
use nbdserve::source::Memory;
use nbdserve::store::{Place, Store};
use nbdserve::testing::{Counting, Rng, conformance, noise, tools};
use nbdserve::{ByteRange, Cx, ExtentFlags, Kind, Result, Volume};

const MIB: usize = 1 << 20;

fn cx() -> Cx {
    Cx::new(16 << 20)
}

fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    (SIMG.open)(below, &Args::new(), cx)
}

fn open(file: &[u8]) -> Result<Volume> {
    open_on(&Memory::volume(file.to_vec()), &cx())
}

fn kind_of(file: &[u8]) -> (Kind, String) {
    let error = open(file).expect_err("it must not be opened");
    (error.kind(), error.to_string())
}

/// `img2simg` with blocks of so many bytes.
fn img2simg(bytes: &[u8], block: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (raw, simg) = (dir.path().join("raw"), dir.path().join("simg"));
    fs::write(&raw, bytes).unwrap();
    let mut command = tools::command("img2simg");
    tools::run_command(command.arg(&raw).arg(&simg).arg(block.to_string()));
    fs::read(&simg).unwrap()
}

/// `simg2img`.
fn simg2img(file: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (raw, simg) = (dir.path().join("raw"), dir.path().join("simg"));
    fs::write(&simg, file).unwrap();
    tools::run("simg2img", [&simg, &raw]);
    let mut bytes = fs::read(&raw).unwrap();
    // It does not write what is left out at the end.
    bytes.resize(open(file).unwrap().size() as usize, 0);
    bytes
}

/// A chunk: its type, its blocks, what follows its header.
type Chunk = (u16, u32, Vec<u8>);

const RAW: u16 = 0xcac1;
const FILL: u16 = 0xcac2;
const HOLE: u16 = 0xcac3;
const CRC: u16 = 0xcac4;

/// A file with these chunks, with headers that are longer than they must be by so much.
fn forge_wide(block: u32, chunks: &[Chunk], wide: u16) -> Vec<u8> {
    let pad = vec![0xaa; usize::from(wide)];
    let total: u32 = chunks.iter().map(|chunk| chunk.1).sum();
    let mut file = vec![0x3a, 0xff, 0x26, 0xed, 1, 0, 0, 0];
    file.extend((28 + wide).to_le_bytes());
    file.extend((12 + wide).to_le_bytes());
    for word in [block, total, chunks.len() as u32, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(&pad);
    for (kind, blocks, body) in chunks {
        file.extend(kind.to_le_bytes());
        file.extend([0, 0]);
        file.extend(blocks.to_le_bytes());
        file.extend((12 + u32::from(wide) + body.len() as u32).to_le_bytes());
        file.extend(&pad);
        file.extend(body);
    }
    file
}

fn forge(block: u32, chunks: &[Chunk]) -> Vec<u8> {
    forge_wide(block, chunks, 0)
}

/// Chunks of all types, and the image that they stand for.
fn mixed(block: usize, count: usize, seed: u64) -> (Vec<Chunk>, Vec<u8>) {
    let mut rng = Rng::new(seed);
    let (mut chunks, mut image) = (Vec::new(), Vec::new());
    for number in 0..count {
        let blocks = rng.below(5) as usize;
        let len = blocks * block;
        match rng.below(5) {
            0 | 1 => {
                let body = noise(len, number as u64);
                image.extend(&body);
                chunks.push((RAW, blocks as u32, body));
            }
            2 => {
                let word = [rng.below(3) as u8, 0, 0, rng.below(2) as u8];
                image.extend(word.iter().cycle().take(len));
                chunks.push((FILL, blocks as u32, word.to_vec()));
            }
            3 => {
                image.resize(image.len() + len, 0);
                chunks.push((HOLE, blocks as u32, Vec::new()));
            }
            _ => chunks.push((CRC, 0, vec![1, 2, 3, 4])),
        }
    }
    (chunks, image)
}

/// A disk with text, zeroes, noise and runs of one byte.
fn disk() -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in 0..6 {
        for line in 0..3000 {
            bytes.extend(format!("line {line} of {part}\n").bytes());
        }
        bytes.resize(bytes.len() + 200_000, 0);
        bytes.resize(bytes.len() + 50_000, 0xff);
        bytes.extend(noise(30_000, part));
    }
    bytes.resize(2 * MIB, 0);
    bytes
}

#[test]
fn the_suite_holds_on_what_img2simg_makes() {
    let disk = disk();
    for block in [4096, 1024, 65536] {
        let file = img2simg(&disk, block);
        assert!(file.len() < disk.len() * 2 / 3, "{} bytes", file.len());
        conformance::check(|| (open(&file).unwrap(), disk.clone()));
    }
    let file = img2simg(&disk, 4096);
    conformance::check_errors("simg", &file, |below| open_on(below, &cx()));
}

#[test]
fn the_suite_holds_on_chunks_of_all_types_and_simg2img_reads_the_same() {
    for (seed, block) in [(1, 4096), (2, 512), (3, 4), (4, 12)] {
        let (chunks, image) = mixed(block, 80, seed);
        let file = forge(block as u32, &chunks);
        conformance::check(|| (open(&file).unwrap(), image.clone()));
        // simg2img verifies checksums, which these are not, and stumbles over chunks of no blocks.
        let plain = chunks.into_iter().filter(|chunk| chunk.1 > 0);
        let plain: Vec<_> = plain.collect();
        assert!(
            simg2img(&forge(block as u32, &plain)) == image,
            "block {block}"
        );
    }
}

#[test]
fn headers_of_a_later_minor_version_may_be_longer() {
    let (chunks, image) = mixed(512, 30, 5);
    for wide in [1, 20, 5000] {
        let mut file = forge_wide(512, &chunks, wide);
        file[6] = 9;
        let volume = open(&file).unwrap();
        assert!(conformance::read_all(&volume) == image, "{wide}");
    }
}

#[test]
fn what_is_left_out_is_a_hole_and_a_fill_of_zero_is_zero() {
    let chunks = vec![
        (HOLE, 2, vec![]),
        (HOLE, 1, vec![]),
        (RAW, 1, noise(512, 1)),
        (FILL, 1, vec![0; 4]),
        (FILL, 2, vec![0; 4]),
        (FILL, 1, vec![0, 0, 0, 1]),
        (CRC, 0, vec![0; 4]),
        (HOLE, 1, vec![]),
    ];
    let volume = open(&forge(512, &chunks)).unwrap();
    let runs = |from, to| -> Vec<_> {
        let extents = volume.extents(ByteRange::between(from, to)).unwrap();
        let runs = extents.runs().iter();
        runs.map(|run| (run.range.end(), run.flags)).collect()
    };
    assert_eq!(
        runs(0, 9 * 512),
        [
            (3 * 512, ExtentFlags::HOLE),
            (4 * 512, ExtentFlags::DATA),
            (7 * 512, ExtentFlags::ZERO),
            (8 * 512, ExtentFlags::DATA),
            (9 * 512, ExtentFlags::HOLE),
        ]
    );
    assert_eq!(
        runs(1000, 1700),
        [(1536, ExtentFlags::HOLE), (1700, ExtentFlags::DATA)]
    );
}

#[test]
fn the_holes_of_the_file_below_come_up() {
    // An image in an image: its raw chunk is the inner one, whose hole lies at a shifted place.
    let inner = forge(512, &[(HOLE, 8, vec![]), (RAW, 1, noise(512, 3))]);
    let below = open(&inner).unwrap();
    // The outer file is what the inner one decodes to, with a header in front by a layer of memory.
    let outer_body = conformance::read_all(&below);
    let outer = forge(512, &[(HOLE, 3, vec![]), (RAW, 9, outer_body)]);
    let sparse = img2simg(
        &[&outer[..], &vec![0; 4096 - outer.len() % 4096]].concat(),
        4096,
    );
    let padded = open(&sparse).unwrap();
    let file = &nbdserve::layer::offset::OFFSET;
    let args = Args::from([("size".to_owned(), outer.len().to_string())]);
    let cut = (file.open)(&padded, &args, &cx()).unwrap();
    let volume = open_on(&cut, &cx()).unwrap();
    let extents = volume
        .extents(ByteRange::between(0, volume.size()))
        .unwrap();
    for run in extents.runs().iter().filter(|run| run.flags.zero) {
        let bytes = volume.read_vec(run.range.start(), run.range.len() as usize);
        assert!(bytes.unwrap().iter().all(|byte| *byte == 0), "{run:?}");
    }
    assert_eq!(extents.runs()[0].range.end(), 3 * 512);
}

#[test]
fn opening_reads_headers_and_no_bodies() {
    let body = noise(8 * MIB, 1);
    let chunks: Vec<Chunk> = (0..4).map(|_| (RAW, 2048, body.clone())).collect();
    let (below, counts) = Counting::volume(Memory::volume(forge(4096, &chunks)));
    let volume = open_on(&below, &cx()).unwrap();
    assert_eq!(volume.size(), 32 << 20);
    assert_eq!(counts.reads(), 4, "the first header comes with the file's");
    assert!(counts.read_bytes() <= 4 * 4096);
    // A read in one chunk is one request for those bytes.
    volume.read_vec(10 << 20, 5000).unwrap();
    assert_eq!(counts.reads(), 5);
    assert_eq!(counts.read_ranges()[4].len(), 5000);
}

#[test]
fn many_small_chunks_come_with_few_requests_and_are_kept_for_the_next_time() {
    let (chunks, image) = mixed(4, 20_000, 9);
    let file = forge(4, &chunks);
    let dir = tempfile::tempdir().unwrap();
    let mut cx = cx();
    let store = Store::open(dir.path()).unwrap();
    cx.place = Some(Place::new(store, "this file"));
    let (below, counts) = Counting::volume(Memory::volume(file.clone()));
    let volume = open_on(&below, &cx).unwrap();
    // A window of 4 KiB, and now and then a second one for a word beyond its end.
    assert!(counts.reads() <= file.len() as u64 / 2048 + 2);
    assert!(conformance::read_all(&volume) == image);

    let (below, counts) = Counting::volume(Memory::volume(file.clone()));
    let volume = open_on(&below, &cx).unwrap();
    assert_eq!(counts.reads(), 1, "the file header only");
    assert!(conformance::read_all(&volume) == image);

    // What is kept is held against the file: one that says something else is not used.
    let mut other = file;
    other.truncate(other.len() - 1);
    let below = Memory::volume(other);
    assert_eq!(open_on(&below, &cx).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn an_empty_image_and_one_of_holes_only() {
    assert_eq!(open(&forge(4096, &[])).unwrap().size(), 0);
    let huge = open(&forge(1 << 31, &[(HOLE, u32::MAX >> 1, vec![])])).unwrap();
    assert_eq!(huge.size(), (1 << 31) * u64::from(u32::MAX >> 1));
    assert_eq!(huge.read_vec(huge.size() - 3, 3).unwrap(), [0; 3]);
}

#[test]
fn a_file_that_is_cut_anywhere_is_corrupt() {
    let chunks = [
        (RAW, 1, noise(512, 1)),
        (FILL, 1, b"word".to_vec()),
        (HOLE, 1, vec![]),
        (CRC, 0, vec![0; 4]),
    ];
    let file = forge(512, &chunks);
    open(&file).unwrap();
    for len in 0..file.len() {
        let (kind, message) = kind_of(&file[..len]);
        let expected = if len < 4 {
            Kind::NotThisFormat
        } else {
            Kind::Corrupt
        };
        assert_eq!(kind, expected, "{len}: {message}");
    }
}

#[test]
fn what_follows_the_last_chunk_is_an_error() {
    let mut file = forge(512, &[(HOLE, 1, vec![])]);
    file.push(0);
    let (kind, message) = kind_of(&file);
    assert_eq!(kind, Kind::Corrupt);
    assert!(
        message.contains("1 bytes follow the last chunk"),
        "{message}"
    );
}

/// Every number of the headers, at its extremes: what is not what it was is refused, or reads as
/// what it says.
#[test]
fn a_number_that_lies_is_refused() {
    let chunks = [
        (RAW, 2, noise(1024, 1)),
        (FILL, 3, b"word".to_vec()),
        (HOLE, 4, vec![]),
        (CRC, 0, vec![0; 4]),
    ];
    let good = forge(512, &chunks);
    let chunk_at = [28, 28 + 12 + 1024, 28 + 24 + 1028, 28 + 36 + 1028];
    let mut fields: Vec<(usize, usize, &str)> = vec![
        (0, 4, "magic"),
        (4, 2, "major_version"),
        (8, 2, "file_hdr_sz"),
        (10, 2, "chunk_hdr_sz"),
        (12, 4, "blk_sz"),
        (16, 4, "total_blks"),
        (20, 4, "total_chunks"),
    ];
    for at in chunk_at {
        fields.push((at, 2, "chunk_type"));
        fields.push((at + 4, 4, "chunk_sz"));
        fields.push((at + 8, 4, "total_sz"));
    }
    for (at, len, name) in fields {
        let now = good[at..at + len].iter().rev();
        let now = now.fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        let most = u64::MAX >> (64 - 8 * len);
        for value in [0, 1, now.wrapping_sub(1) & most, now + 1, most - 1, most] {
            if value == now {
                continue;
            }
            let mut bad = good.clone();
            bad[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            let (kind, message) = kind_of(&bad);
            let expected = match name {
                "magic" => kind == Kind::NotThisFormat,
                "major_version" => kind == Kind::Unsupported,
                _ => kind == Kind::Corrupt,
            };
            assert!(expected, "{name} {value}: {kind:?}: {message}");
        }
    }
}

#[test]
fn more_than_a_file_can_have_and_more_chunks_than_memory_are_limits() {
    let huge = forge(u32::MAX - 3, &[(HOLE, u32::MAX, vec![])]);
    assert_eq!(kind_of(&huge).0, Kind::Limit);
    let chunks = vec![(HOLE, 1, vec![]); 200_000];
    let below = Memory::volume(forge(512, &chunks));
    let error = open_on(&below, &Cx::new(1 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.report().to_string().contains("--cache-size="));
}

#[test]
fn it_is_recognised_by_its_magic() {
    let file = forge(512, &[(HOLE, 1, vec![])]);
    let sample = |head| Sample {
        head,
        tail: None,
        size: 40,
    };
    let Verdict::Yes { evidence, .. } = (SIMG.probe)(&sample(&file)) else {
        panic!("not recognised");
    };
    assert_eq!(evidence, "magic 3a ff 26 ed at 0, 1 chunks, blocks of 512");
    assert_eq!((SIMG.probe)(&sample(&file[1..])), Verdict::No);
    assert_eq!((SIMG.probe)(&sample(&[])), Verdict::No);
    let Verdict::Yes { evidence, .. } = (SIMG.probe)(&sample(&file[..10])) else {
        panic!("not recognised");
    };
    assert!(evidence.contains("but"), "{evidence}");
}
