//! Layers on layers: what is known of zeroes comes up through all of them, and costs little.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nbdserve::layer::{Args, LAYERS};
use nbdserve::plan::{self, Pick, Purpose, Request};
use nbdserve::source::Memory;
use nbdserve::source::split::Joined;
use nbdserve::testing::{Counting, noise, tools};
use nbdserve::{ByteRange, Cx, Volume};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a tool makes of `bytes` on its standard input.
fn piped(bytes: &[u8], program: &str, args: &[&str]) -> Vec<u8> {
    tools::filter(program, args, bytes)
}

fn open(layer: &str, below: &Volume, cx: &Cx) -> Volume {
    let layer = LAYERS.iter().find(|one| one.name == layer).unwrap();
    (layer.open)(below, &Args::new(), cx).unwrap_or_else(|error| panic!("{error:?}"))
}

/// 20 GiB, compressed in blocks of 16 MiB: zeroes but for a block of noise after each 5 GiB. Made of
/// streams that are written again and again, so that nobody has to compress 20 GiB.
struct Empty {
    file: Vec<u8>,
    data: Vec<ByteRange>,
}

const BLOCK: u64 = 16 * MIB;

fn mostly_zero() -> Empty {
    let args = ["-0", "-c", "-T1", "--block-size=16MiB"];
    let zeroes = piped(&vec![0; (64 * MIB) as usize], "xz", &args);
    let noise = piped(&noise(BLOCK as usize, 1), "xz", &args);
    let (mut file, mut data, mut size) = (Vec::new(), Vec::new(), 0);
    for _ in 0..4 {
        for _ in 0..80 {
            file.extend(&zeroes);
            size += 64 * MIB;
        }
        file.extend(&noise);
        data.push(ByteRange::between(size, size + BLOCK));
        size += BLOCK;
    }
    assert_eq!(size, 20 * GIB + 4 * BLOCK);
    Empty { file, data }
}

/// All runs that are zero, neighbours merged.
fn zeroes(volume: &Volume) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    let mut at = 0;
    while at < volume.size() {
        let range = ByteRange::between(at, volume.size());
        let found = volume.extents_limited(range, 8).unwrap();
        for run in found.runs().iter().filter(|run| run.flags.zero) {
            match runs.last_mut() {
                Some(last) if last.end() == run.range.start() => {
                    *last = ByteRange::between(last.start(), run.range.end());
                }
                _ => runs.push(run.range),
            }
        }
        at = found.next_offset();
    }
    runs
}

/// What lies between the data.
fn expected(image: &Empty, size: u64) -> Vec<ByteRange> {
    let starts = std::iter::once(0).chain(image.data.iter().map(|data| data.end()));
    let ends = image.data.iter().map(|data| data.start()).chain([size]);
    starts
        .zip(ends)
        .map(|(start, end)| ByteRange::between(start, end))
        .filter(|range| !range.is_empty())
        .collect()
}

#[test]
fn a_disk_that_is_mostly_zero_is_known_to_be_without_decoding_it() {
    let image = mostly_zero();
    let (below, counts) = Counting::volume(Memory::volume(image.file.clone()));
    let cx = Cx::new(256 * MIB);
    let volume = open("xz", &below, &cx);
    // An estimate needs no request at all.
    let before = counts.reads();
    let stored = volume.stored(ByteRange::between(0, volume.size())).unwrap();
    assert_eq!(counts.reads(), before);
    assert_eq!(stored, 4 * BLOCK);

    assert_eq!(zeroes(&volume), expected(&image, volume.size()));
    let decodes = volume.stats().blocks.unwrap().decodes;
    assert!(
        decodes <= 4,
        "{decodes} blocks were decoded of 1280 that are zero"
    );

    // Reading them costs nothing either.
    for at in (0..volume.size()).step_by((512 * MIB) as usize) {
        let range = ByteRange::between(at, at + 4096);
        let is_data = image.data.iter().any(|data| data.contains(range));
        let read = volume.read_vec(at, 4096).unwrap();
        assert_eq!(read.iter().all(|byte| *byte == 0), !is_data);
    }
    let now = volume.stats().blocks.unwrap().decodes;
    assert!(now <= decodes + 4 * 3, "{now} after {decodes}");
}

#[test]
fn a_sequential_reader_of_zeroes_decodes_one_block() {
    let args = ["-0", "-c", "-T1", "--block-size=4MiB"];
    let zeroes = piped(&vec![0; (16 * MIB) as usize], "xz", &args);
    let file = zeroes.repeat(50);
    let volume = open("xz", &Memory::volume(file), &Cx::new(64 * MIB));
    let mut buf = vec![1; MIB as usize];
    for at in (0..volume.size()).step_by(MIB as usize) {
        volume.read_at(&mut buf, at).unwrap();
        assert!(buf.iter().all(|byte| *byte == 0), "{at}");
    }
    let decodes = volume.stats().blocks.unwrap().decodes;
    // As many as there is memory for may be on their way before the first has turned out to be zero.
    assert!(decodes <= 64 / 4, "{decodes} of 200 blocks were decoded");
}

/// A zero block with a wrong check, beside zero blocks with a right one: its bytes differ, so it is
/// not taken for one of them.
#[test]
fn a_damaged_block_is_not_taken_for_its_twin() {
    let args = ["-0", "-c", "-T1", "--block-size=1MiB", "--check=crc32"];
    let good = piped(&vec![0; 4 * MIB as usize], "xz", &args);
    let alone = piped(&vec![0; MIB as usize], "xz", &args);
    // The check is the last word of the only block, before the index (12 bytes) and the footer.
    let mut bad = alone.clone();
    let at = bad.len() - 12 - 12 - 1;
    bad[at] ^= 1;
    let file = [&good[..], &bad, &good].concat();
    let volume = open("xz", &Memory::volume(file), &Cx::new(64 * MIB));
    let damaged = ByteRange::between(4 * MIB, 5 * MIB);
    let zero = zeroes(&volume);
    assert!(zero.iter().all(|run| run.intersect(damaged).is_empty()));
    assert_eq!(zero.iter().map(|run| run.len()).sum::<u64>(), 8 * MIB);
    assert!(volume.read_vec(damaged.end() - 1, 1).is_err());
}

#[test]
fn zeroes_come_up_through_split_files_and_windows() {
    let image = mostly_zero();
    let cut = image.file.len() / 3;
    let parts = image
        .file
        .chunks(cut)
        .map(|part| Memory::volume(part.to_vec()));
    let joined = Joined::of(parts.collect()).unwrap();
    let cx = Cx::new(256 * MIB);
    let xz = open("xz", &joined, &cx);
    let offset = LAYERS.iter().find(|layer| layer.name == "offset").unwrap();
    let args = Args::from([("offset".to_owned(), "1G".to_owned())]);
    let window = (offset.open)(&xz, &args, &cx).unwrap();
    let whole = ByteRange::between(0, window.size());
    assert_eq!(window.stored(whole), Some(4 * BLOCK));
    let moved: Vec<_> = expected(&image, xz.size())
        .into_iter()
        .map(|run| ByteRange::between(run.start().saturating_sub(GIB), run.end() - GIB))
        .collect();
    assert_eq!(zeroes(&window), moved);
}

/// A swap area and zeroes: something to be recognised, and 48 MiB that are nothing.
fn disk() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![0; 48 * MIB as usize]).unwrap();
    tools::run_command(tools::command("mkswap").arg("-q").arg(&path));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = 20 * MIB as usize;
    bytes[at..at + MIB as usize].copy_from_slice(&noise(MIB as usize, 7));
    bytes
}

/// The bytes as the only file of an archive.
fn archived(bytes: &[u8], name: &str, program: &str, args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    // With holes, which tar -S looks for.
    let file = std::fs::File::create(dir.path().join(name)).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (at, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            std::os::unix::fs::FileExt::write_all_at(&file, block, at as u64 * 4096).unwrap();
        }
    }
    let mut command = tools::command(program);
    tools::run_command(
        command
            .args(args)
            .args(["out", name])
            .current_dir(dir.path()),
    );
    let made = ["out", "out.zip"].map(|made| dir.path().join(made));
    let made = made.iter().find(|made| made.exists()).unwrap();
    std::fs::read(made).unwrap()
}

#[test]
fn formats_may_be_stacked_in_any_order() {
    let disk = disk();
    let xz = piped(&disk, "xz", &["-0", "-c", "-T1", "--block-size=4MiB"]);
    let gz = piped(&disk, "gzip", &["-1", "-c"]);
    let zst = piped(&disk, "zstd", &["-q", "-c"]);
    let bz2 = piped(&disk, "bzip2", &["-1", "-c"]);
    let lz4 = piped(&disk, "lz4", &["-q", "-c"]);
    let tar = archived(&disk, "disk.raw", "tar", &["-Scf"]);
    let stacks = [
        (
            archived(&xz, "disk.raw.xz", "tar", &["-cf"]),
            vec!["tar", "xz"],
        ),
        (piped(&tar, "xz", &["-0", "-c"]), vec!["xz", "tar"]),
        (piped(&tar, "gzip", &["-1", "-c"]), vec!["gzip", "tar"]),
        (piped(&tar, "zstd", &["-q", "-c"]), vec!["zstd", "tar"]),
        (
            archived(&zst, "disk.raw.zst", "zip", &["-q", "-0"]),
            vec!["zip", "zstd"],
        ),
        (
            archived(&gz, "disk.raw.gz", "zip", &["-q", "-9"]),
            vec!["zip", "gzip"],
        ),
        (piped(&bz2, "gzip", &["-1", "-c"]), vec!["gzip", "bzip2"]),
        (piped(&lz4, "xz", &["-0", "-c"]), vec!["xz", "lz4"]),
        (
            archived(&tar, "disk.tar", "zip", &["-q", "-0"]),
            vec!["zip", "tar"],
        ),
    ];
    let request = Request {
        layers: Vec::new(),
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        ..Request::default()
    };
    for (file, expected) in stacks {
        let cx = Cx::new(128 * MIB);
        let source = Memory::volume(file);
        let found = plan::resolve(source, "image", &request, &|_, _| None, &cx)
            .unwrap_or_else(|error| panic!("{expected:?}: {}", error.report()));
        let names: Vec<_> = found.plan.layers.iter().map(|layer| layer.name()).collect();
        assert_eq!(names, expected);
        let volume = &found.volume;
        let mut read = vec![1; disk.len()];
        for (piece, at) in read
            .chunks_mut(MIB as usize)
            .zip((0..).step_by(MIB as usize))
        {
            volume.read_at(piece, at).unwrap();
        }
        assert!(read == disk, "{expected:?}");
        // All of it was decoded by now, so that nearly all zeroes are known.
        let zero: u64 = zeroes(volume).iter().map(|run| run.len()).sum();
        assert!(
            zero >= 38 * MIB,
            "{expected:?}: only {zero} bytes are known to be zero"
        );
    }
}
