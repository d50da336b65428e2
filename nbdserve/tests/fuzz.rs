//! The fuzz targets over real files and a bounded number of mutations of them.
//!
//! Each test runs its target in a child process whose memory is limited, so that an allocation
//! which an image asks for and nothing bounds ends the child. Work is bounded by count. Mutations
//! are the same ones in every run; `NBDSERVE_FUZZ_ROUNDS=100` makes a hundred times as many. With
//! `NBDSERVE_FUZZ_LAST=FILE` the input that is tried is in FILE.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nbdserve::layer::cow::header::{MAP_AT, SECTOR_LEN};
use nbdserve::layer::cow::{Base, open_medium};
use nbdserve::source::Memory;
use nbdserve::testing::fuzz::cow::DISK;
use nbdserve::testing::fuzz::{self, TARGETS};
use nbdserve::testing::{Platter, Rng, noise, tools};
use nbdserve::{ByteRange, Done, ZeroOpts};
use rustix::process::{Resource, Rlimit, setrlimit};

#[path = "lvm/forge.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod lvm_forge;
#[path = "raid/forge.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod raid_forge;

/// Set in the child.
const CHILD: &str = "NBDSERVE_FUZZ_TARGET";
/// Private memory of the child in bytes: the test program itself, the threads' stacks, the input,
/// a few copies of it, and `fuzz::CACHE`.
const MEMORY: u64 = 128 << 20;
/// Mutations of each seed.
const ROUNDS: u64 = 60;

/// Runs `target` over `seeds` and mutations of them, in a child: this same test once more, with
/// [`CHILD`] set.
#[track_caller]
fn fuzz(target: &str, seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    if std::env::var_os(CHILD).is_some() {
        limit_memory();
        return take_all(target);
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, seed) in seeds().iter().enumerate() {
        fs::write(dir.path().join(format!("{number:03}")), seed).unwrap();
    }
    for kept in kept_inputs(target) {
        fs::copy(&kept, dir.path().join(kept.file_name().unwrap())).unwrap();
    }
    let output = child(target, dir.path());
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    let done = output.status.success() && out.contains(&done(target));
    assert!(done, "{target}: {}\n{out}{err}", output.status);
}

/// Runs the test called `test` in a process of its own.
fn child(test: &str, dir: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        // A backtrace needs more memory than the child has.
        .env("RUST_BACKTRACE", "0")
        .current_dir(dir)
        .output()
        .unwrap()
}

fn limit_memory() {
    let limit = Rlimit {
        current: Some(MEMORY),
        maximum: Some(MEMORY),
    };
    setrlimit(Resource::Data, limit).unwrap();
}

/// The last thing that a child prints.
fn done(target: &str) -> String {
    format!("{target}: all inputs were taken")
}

/// Inputs that once showed an error.
fn kept_inputs(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz-inputs")
        .join(target);
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The child's work: every file in its folder, and mutations of each.
fn take_all(target: &str) {
    let rounds = std::env::var("NBDSERVE_FUZZ_ROUNDS").map_or(1, |n| n.parse().unwrap());
    let mut names: Vec<_> = fs::read_dir(".")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for name in names {
        let seed = fs::read(&name).unwrap();
        run(target, &seed);
        let mut rng = Rng::new(seed.len() as u64);
        for _ in 0..ROUNDS * rounds {
            run(target, &mutated(&seed, &mut rng));
        }
    }
    println!("{}", done(target));
}

fn run(target: &str, input: &[u8]) {
    // What ends the process, as an allocation that fails does, leaves no time to keep its input.
    if let Some(path) = std::env::var_os("NBDSERVE_FUZZ_LAST") {
        fs::write(path, input).unwrap();
    }
    let result = std::panic::catch_unwind(|| fuzz::run(target, input));
    if let Err(panic) = result {
        // Kept where the next run will find it, once it was looked at.
        let path = std::env::temp_dir().join(format!("nbdserve-fuzz-{target}"));
        fs::write(&path, input).unwrap();
        eprintln!("input: {} bytes in {}", input.len(), path.display());
        std::panic::resume_unwind(panic);
    }
}

/// `seed` with a few changes, most of them near its ends, where formats keep their headers.
fn mutated(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=rng.below(4) {
        let len = bytes.len() as u64;
        let near = len.min(1 << rng.below(14));
        let at = match rng.below(3) {
            0 => rng.below(near),
            1 => len - near + rng.below(near),
            _ => rng.below(len),
        } as usize;
        let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) else {
            continue;
        };
        match rng.below(7) {
            0 => rest[0] ^= 1 << rng.below(8),
            1 => rest[0] = rng.next_u64() as u8,
            2 => rest[0] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
            3 => {
                // A whole number of an extreme value.
                let width = [2, 4, 8][rng.below(3) as usize].min(rest.len());
                rest[..width].fill([0, 0xff][rng.below(2) as usize]);
            }
            4 => {
                let width = 8.min(rest.len());
                rest[..width].copy_from_slice(&rng.next_u64().to_le_bytes()[..width]);
            }
            5 => bytes.truncate(at),
            _ => {
                // A part of the file in the place of another.
                let from = rng.below(len) as usize;
                let width = (rng.below(512) as usize).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + width, at);
            }
        }
    }
    bytes
}

/// A file with something to compress in it: text, noise, zeroes.
fn content() -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 0..6000 {
        bytes.extend(format!("line {n}\n").bytes());
    }
    bytes.extend(noise(20_000, 1));
    bytes.resize(bytes.len() + 40_000, 0);
    bytes
}

fn xz(dir: &Path, content: &[u8], options: &[&str]) -> Vec<u8> {
    compressed("xz", dir, content, options)
}

fn compressed(program: &str, dir: &Path, content: &[u8], options: &[&str]) -> Vec<u8> {
    let file = dir.join("content");
    fs::write(&file, content).unwrap();
    let output = tools::command(program)
        .args(["-c", "-k"])
        .args(options)
        .arg(&file)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{program} {options:?}");
    output.stdout
}

/// .zst files of every sort that the tools make.
fn zstd_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let make = |content: &[u8], options: &[&str]| {
        let options = [&["-q"], options].concat();
        compressed("zstd", dir.path(), content, &options)
    };
    let mut files = vec![
        make(&content, &["-1"]),
        make(&content, &["-19", "--no-check"]),
        make(&content, &["-3", "--no-content-size"]),
        make(&content, &["-1", "--no-content-size", "--zstd=wlog=12"]),
        make(b"", &[]),
        // Nothing but zeroes: the largest expansion; too long for the cache.
        make(&vec![0; 6 << 20], &["-1"]),
        make(&vec![0; 6 << 20], &["-1", "--no-content-size"]),
    ];
    // pzstd writes to its standard output only what it reads from a file.
    files.push(compressed(
        "pzstd",
        dir.path(),
        &content,
        &["-q", "-1", "-p", "2"],
    ));
    let skipped = [0x55, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let frames = [&files[0][..], &skipped, &files[3], &files[4]].concat();
    files.push(frames.repeat(3));
    files
}

/// .lz4 files of every sort that the tool makes.
fn lz4_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let make = |content: &[u8], options: &[&str]| {
        let options = [&["-q", "-c"], options].concat();
        compressed("lz4", dir.path(), content, &options)
    };
    let mut files = vec![
        make(&content, &["-B4", "-BX"]),
        make(&content, &["-B4", "-BD"]),
        make(&content, &["-B7", "-9", "--content-size"]),
        make(&content, &["-B4", "--content-size", "--no-frame-crc"]),
        make(&content, &["-B5", "-BD", "-BX", "--no-frame-crc"]),
        make(&content, &["-l"]),
        make(b"", &[]),
        // Nothing but zeroes: the largest expansion; too long for the cache.
        make(&vec![0; 6 << 20], &["-B7"]),
        make(&vec![0; 6 << 20], &["-B4", "-BD"]),
    ];
    let skipped = [0x55, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let frames = [&files[0][..], &skipped, &files[1], &files[6], &files[5]].concat();
    files.push(frames);
    files
}

#[test]
fn lz4_open() {
    fuzz("lz4_open", lz4_files);
}

#[test]
fn zstd_open() {
    fuzz("zstd_open", zstd_files);
}

#[test]
fn zstd_seek_table() {
    // How many frames of ten bytes there are, then an entry each.
    let entry = |encoded: u32, len: u32| [encoded, len, 0].map(u32::to_le_bytes).concat();
    let right = entry(10, 1000);
    fuzz("zstd_seek_table", || {
        vec![
            [&[3][..], &right.repeat(3)].concat(),
            [&[200][..], &right.repeat(200)].concat(),
            [&[3][..], &entry(20, 2000), &right].concat(),
            [
                &[9][..],
                &entry(u32::MAX, u32::MAX),
                &entry(0, 0),
                &entry(0, 1),
            ]
            .concat(),
            [&[0][..], &entry(0, 0)].concat(),
        ]
    });
}

/// .xz files of every sort that the tool makes.
fn xz_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (dir, content) = (dir.path(), content());
    let mut files: Vec<_> = [
        &["-0"][..],
        &["-6", "--block-size=16KiB", "--check=sha256"],
        &["-1", "-T2", "--block-size=32KiB", "--check=crc32"],
        &["--check=none", "--x86", "--lzma2=preset=1"],
        &["--check=crc64", "--delta=dist=4", "--lzma2=dict=4KiB"],
    ]
    .into_iter()
    .map(|options| xz(dir, &content, options))
    .collect();
    files.push(xz(dir, b"", &[]));
    // Two streams with padding between and after them.
    let mut streams = xz(dir, b"first", &["--check=crc32"]);
    streams.extend([0; 8]);
    streams.extend(xz(dir, &content[..50_000], &["-0", "--block-size=8KiB"]));
    streams.extend([0; 4]);
    files.push(streams);
    // Nothing but zeroes: the largest expansion; too long for the cache.
    files.push(xz(dir, &vec![0; 6 << 20], &["-1", "-T1"]));
    files
}

/// .gz files of every sort that the tools make.
fn gzip_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let packed = |program: &str, options: &[&str], content: &[u8]| {
        compressed(program, dir.path(), content, options)
    };
    let content = content();
    let mut files = vec![
        packed("gzip", &["-1"], &content),
        packed("gzip", &["-9", "-n"], &content),
        packed("pigz", &["-6", "--independent", "-b", "32"], &content),
        packed("pigz", &["-0"], &content),
        packed("bgzip", &["-l", "1"], &content),
        packed("gzip", &["-6"], b""),
        packed("bgzip", &[], b""),
        // The largest expansion; too long for the cache.
        packed("gzip", &["-9"], &vec![0; 6 << 20]),
    ];
    let mut members = [&files[0], &files[5], &files[4][..]].concat();
    members.extend([0; 100]);
    files.push(members);
    files
}

/// A sparse file of `len` bytes, worked on by a tool, which is given its path last.
fn made_by(len: usize, program: &str, args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    fs::write(&file, vec![0; len]).unwrap();
    tools::run_command(tools::command(program).args(args).arg(&file));
    fs::read(&file).unwrap()
}

fn sfdisk(len: usize, script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (file, lines) = (dir.path().join("disk"), dir.path().join("script"));
    fs::write(&file, vec![0; len]).unwrap();
    fs::write(&lines, script).unwrap();
    let mut command = tools::command("sfdisk");
    command
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&file);
    tools::run_command(command.stdin(fs::File::open(&lines).unwrap()));
    fs::read(&file).unwrap()
}

fn gpt_disks() -> Vec<Vec<u8>> {
    let two = [
        "--new=1:64:127",
        "--typecode=1:ef00",
        "--new=2:128:191",
        "--change-name=2:root",
    ];
    vec![
        made_by(
            256 << 10,
            "sgdisk",
            &[&["--set-alignment=1"], &two[..]].concat(),
        ),
        sfdisk(
            2 << 20,
            "label: gpt\nsector-size: 4096\nfirst-lba: 8\nsize=64, name=a\n",
        ),
    ]
}

fn mbr_disks() -> Vec<Vec<u8>> {
    vec![
        sfdisk(
            1 << 20,
            "label: dos\nstart=1, size=100, type=83\nsize=200, type=c, bootable\n",
        ),
        sfdisk(
            4 << 20,
            "label: dos\nstart=64, size=64, type=83\nstart=128, size=7000, type=5\n\
             start=192, size=500, type=83\nstart=800, size=500, type=82\nstart=1500, size=9\n",
        ),
    ]
}

fn file_systems() -> Vec<Vec<u8>> {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), content()).unwrap();
    let tree = tree.path().to_str().unwrap();
    let into = |program: &str, args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        let file_arg = file.to_str().unwrap();
        let args = args
            .iter()
            .map(|arg| if *arg == "FILE" { file_arg } else { arg });
        tools::run(program, args);
        fs::read(&file).unwrap()
    };
    vec![
        made_by(256 << 10, "mkfs.ext4", &["-q", "-F", "-L", "l"]),
        made_by(256 << 10, "mkfs.vfat", &["-n", "LABEL"]),
        into("mksquashfs", &[tree, "FILE", "-quiet", "-no-progress"]),
        into("mkfs.erofs", &["--quiet", "FILE", tree]),
        into("genisoimage", &["-quiet", "-J", "-R", "-o", "FILE", tree]),
        made_by(64 << 10, "mkswap", &[]),
    ]
}

#[test]
fn probe() {
    fuzz("probe", || {
        let disks = [gpt_disks(), mbr_disks(), file_systems()].concat();
        let packed = [
            xz_files(),
            gzip_files(),
            bzip2_files(),
            simg_files(),
            qcow2_files(),
        ]
        .concat();
        let made = [
            disk_files("vmdk", &["zeroed_grain=on"]),
            disk_files("vpc", &["force_size=on"]),
        ];
        [packed, disks, made.concat(), luks_files()].concat()
    });
}

#[test]
fn resolve() {
    fuzz("resolve", || {
        let dir = tempfile::tempdir().unwrap();
        let mut seeds = [gpt_disks(), mbr_disks(), file_systems()].concat();
        // Wrappings in wrappings.
        let inner: Vec<_> = seeds
            .iter()
            .map(|seed| xz(dir.path(), seed, &["-0"]))
            .collect();
        seeds.push(xz(dir.path(), &inner[0], &["-0"]));
        seeds.push(compressed("gzip", dir.path(), &inner[1], &["-1"]));
        seeds.extend(inner);
        seeds.extend(lvm_images());
        seeds.extend(md_disks());
        seeds
    });
}

/// Cow files for the disk that the target has.
fn cow_files() -> Vec<Vec<u8>> {
    let below = Memory::volume(vec![0; DISK]);
    let file = || {
        let platter = Platter::default();
        let medium = Box::new(platter.clone());
        let volume = open_medium(&below, medium, "kept", &Base::default()).unwrap();
        (platter, volume)
    };
    let (empty, _) = file();
    let (written, volume) = file();
    let writer = volume.writer().unwrap();
    for (at, len) in [(0, 5000), (300_000, 40), (1 << 20, 700)] {
        writer.write_at(&content()[..len], at, false).unwrap();
    }
    let middle = ByteRange::between(1 << 20, 8 << 20);
    assert_eq!(writer.zero(middle, ZeroOpts::default()).unwrap(), Done::Yes);
    volume.close().unwrap();
    vec![empty.bytes(), written.bytes()]
}

#[test]
fn cow_open() {
    fuzz("cow_open", cow_files);
}

#[test]
fn cow_map() {
    let sectors = || {
        let written = cow_files().swap_remove(1);
        let at = MAP_AT as usize;
        vec![written[at..at + 3 * SECTOR_LEN].to_vec(), vec![0; 700]]
    };
    fuzz("cow_map", sectors);
}

#[test]
fn layer_spec() {
    let seeds = [
        "xz",
        "raw",
        "partition:2",
        "offset:offset=1M,size=4G",
        "offset:1,,2,size=3",
        "64M",
    ];
    fuzz("layer_spec", || {
        seeds.map(|seed| seed.as_bytes().to_vec()).to_vec()
    });
}

#[test]
fn xz_open() {
    fuzz("xz_open", xz_files);
}

#[test]
fn xz_mended() {
    fuzz("xz_mended", xz_files);
}

#[test]
fn xz_index() {
    let bodies: [&[u8]; 4] = [
        &[0, 0, 0, 0],
        &[6, 0, 0, 1, 24, 100],
        &[0, 1, 0, 2, 0x80, 4, 100, 0x80, 4, 0x80, 2],
        &[
            0xff, 0xff, 0, 1, 0xff, 0xff, 0xf, 0xff, 0xff, 0xff, 0xff, 0x7f,
        ],
    ];
    fuzz("xz_index", || bodies.map(<[u8]>::to_vec).to_vec());
}

/// Archives of all formats, with long names, links and holes.
fn tar_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let long = "long".repeat(30);
    fs::write(dir.join("file"), &content()[..3000]).unwrap();
    fs::write(dir.join(&long), "text").unwrap();
    fs::hard_link(dir.join("file"), dir.join("link")).unwrap();
    let holes = fs::File::create(dir.join("holes")).unwrap();
    holes.set_len(200_000).unwrap();
    for n in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"data", n * 4096).unwrap();
    }
    let made = |options: &[&str]| {
        let mut command = tools::command("tar");
        command.args(["-cf", "out.tar"]).args(options);
        command.args(["file", "link", "holes"]).current_dir(dir);
        tools::run_command(&mut command);
        fs::read(dir.join("out.tar")).unwrap()
    };
    let long = long.as_str();
    vec![
        made(&["--format=v7"]),
        made(&["--format=ustar"]),
        made(&["-S", "--format=gnu", long]),
        made(&["-S", "--format=posix", "--sparse-version=0.0", long]),
        made(&["-S", "--format=posix", "--sparse-version=0.1", long]),
        made(&["-S", "--format=posix", "--sparse-version=1.0", long]),
    ]
}

/// Files of several streams, with and without small blocks, and of zeroes alone.
fn bzip2_files() -> Vec<Vec<u8>> {
    let (content, large) = (content(), content().repeat(3));
    let bzip2 = |bytes: &[u8]| tools::filter("bzip2", &["-1"], bytes);
    vec![
        bzip2(&content),
        bzip2(&large),
        bzip2(b""),
        bzip2(b"a few bytes"),
        [bzip2(b"first"), bzip2(b""), bzip2(&content[..30_000])].concat(),
        tools::filter("lbzip2", &["-9"], &large),
        tools::filter("pbzip2", &["-c", "-b1", "-1"], &large),
        bzip2(&vec![0; 6 << 20]),
        bzip2(&vec![0xff; 3 << 20]),
    ]
}

#[test]
fn tar_open() {
    fuzz("tar_open", tar_files);
}

#[test]
fn tar_headers() {
    fuzz("tar_headers", tar_files);
}

#[test]
fn ova() {
    let text = "<?xml version='1.0'?><Envelope xmlns:ovf='x'><References>\
                <File ovf:id='f' ovf:href='disk%2eimg'/><!-- c --></References>\
                <DiskSection><Info>&amp;<![CDATA[<]]></Info><Disk ovf:fileRef=\"&#102;\"/>\
                </DiskSection></Envelope>";
    fuzz("ova", || vec![text.as_bytes().to_vec()]);
}

#[test]
fn zip_open() {
    fuzz("zip_open", || {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::write(dir.join("file"), &content()[..3000]).unwrap();
        fs::write(dir.join("more"), content()).unwrap();
        let made = |options: &[&str]| {
            let _ = fs::remove_file(dir.join("out.zip"));
            let mut command = tools::command("zip");
            command
                .arg("-q")
                .args(options)
                .args(["out.zip", "file", "more"]);
            tools::run_command(command.current_dir(dir));
            fs::read(dir.join("out.zip")).unwrap()
        };
        vec![
            made(&["-0"]),
            made(&["-0", "-X", "-fz"]),
            made(&["-9"]),
            made(&["-Z", "bzip2"]),
            [noise(999, 1), made(&["-0"])].concat(),
        ]
    });
}

#[test]
fn bzip2_open() {
    fuzz("bzip2_open", bzip2_files);
}

#[test]
fn lzma_open() {
    fuzz("lzma_open", || {
        let lzma =
            |bytes: &[u8], preset: &str| tools::filter("xz", &["--format=lzma", preset], bytes);
        let unknown = [
            lzma(&content(), "-0"),
            lzma(b"a few bytes", "--lzma1=preset=0,dict=4KiB,lc=1,lp=2,pb=0"),
            lzma(b"", "-0"),
            lzma(&vec![0; 6 << 20], "--lzma1=preset=0,dict=64KiB"),
        ];
        let lens = [content().len(), 11, 0, 6 << 20];
        let stated = unknown.iter().zip(lens).map(|(file, len)| {
            let mut file = file.clone();
            file[5..13].copy_from_slice(&(len as u64).to_le_bytes());
            file
        });
        stated
            .collect::<Vec<_>>()
            .into_iter()
            .chain(unknown)
            .collect()
    });
}

#[test]
fn lzip_open() {
    fuzz("lzip_open", || {
        let lzip = |bytes: &[u8]| tools::filter("lzip", &["-0"], bytes);
        vec![
            lzip(&content()),
            lzip(b""),
            [lzip(b"first"), lzip(b""), lzip(&content()[..30_000])].concat(),
            lzip(b"one of many").repeat(50),
            tools::filter("plzip", &["-0", "-s64KiB", "-B64KiB"], &content()),
            lzip(&vec![0; 6 << 20]),
        ]
    });
}

#[test]
fn gzip_open() {
    fuzz("gzip_open", gzip_files);
}

#[test]
fn gzip_header() {
    let headers: [&[u8]; 4] = [
        &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
        b"\x1f\x8b\x08\x1c\0\0\0\0\0\x03\x06\0BC\x02\0\x20\0name\0comment\0",
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x0b\0XY\x01\0zBC\x02\0\x20\0",
        // With a CRC of the header.
        &[0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 3, 0xa7, 0x77],
    ];
    fuzz("gzip_header", || headers.map(<[u8]>::to_vec).to_vec());
}

#[test]
fn gzip_index() {
    fuzz("gzip_index", fuzz::gzip_index_seeds);
}

#[test]
fn deflate_zeroes() {
    fuzz("deflate_zeroes", || {
        let zeroes = |program: &str, options: &[&str], len: usize| {
            let gzip = tools::filter(program, options, &vec![0; len]);
            // A byte that says how many bits to skip, and deflate data behind a header of ten bytes.
            let mut seed = vec![0];
            seed.extend(&gzip[10..]);
            seed
        };
        // Fixed codes, dynamic ones, empty stored blocks between short ones.
        vec![
            zeroes("gzip", &["-1", "-n"], 100),
            zeroes("gzip", &["-9", "-n"], 10 << 20),
            zeroes("pigz", &["-n", "-b", "32"], 200_000),
        ]
    });
}

#[test]
fn http_multipart() {
    // As nginx, Apache and a plain script write it; one without its end; the field itself.
    let seeds: [&[u8]; 5] = [
        b"\r\n--xyz\r\nContent-Type: application/octet-stream\r\n\
          Content-Range: bytes 0-4/100\r\n\r\nabcde\r\n--xyz\r\n\
          Content-Type: application/octet-stream\r\nContent-Range: bytes 90-99/100\r\n\r\n\
          \r\n--xyz--\r\r\n--xyz--\r\n",
        b"\r\n--xyz\r\nContent-range: bytes 7-7/18446744073709551615\r\n\r\n\n\r\n\
          --xyz\r\nContent-range: bytes 0-0/*\r\n\r\n-\r\n--xyz--\r\n",
        b"preamble\n--xyz\nContent-Range: bytes 1-2/3\nX: y\n\nab\n--xyz-- \nepilogue",
        b"--xyz\r\nContent-Range: bytes 5-18446744073709551614/18446744073709551615\r\n\r\nabc",
        b" charset=\"a;b\" ; boundary=\"a b\\\"c\"",
    ];
    fuzz("http_multipart", || seeds.map(<[u8]>::to_vec).to_vec());
}

/// Sparse images with chunks of all types, and small ones with many.
fn simg_files() -> Vec<Vec<u8>> {
    let mut bytes = content();
    bytes.resize(256 << 10, 0);
    bytes[120_000..130_000].fill(7);
    let dir = tempfile::tempdir().unwrap();
    let (raw, simg) = (dir.path().join("raw"), dir.path().join("simg"));
    fs::write(&raw, bytes).unwrap();
    tools::run("img2simg", [&raw, &simg]);
    let made = fs::read(&simg).unwrap();
    // By hand: what img2simg does not write. A hole, a checksum, four bytes, a word twice.
    let mut small = vec![0x3a, 0xff, 0x26, 0xed, 1, 0, 0, 0, 28, 0, 12, 0, 4, 0, 0, 0];
    for word in [6_u32, 4, 0] {
        small.extend(word.to_le_bytes());
    }
    for (kind, blocks, body) in [
        (0xcac3_u32, 3_u32, &b""[..]),
        (0xcac4, 0, b"sums"),
        (0xcac1, 1, b"data"),
        (0xcac2, 2, b"word"),
    ] {
        small.extend(kind.to_le_bytes());
        small.extend(blocks.to_le_bytes());
        small.extend((12 + body.len() as u32).to_le_bytes());
        small.extend(body);
    }
    vec![made, small]
}

/// Small images of all sorts.
fn qcow2_files() -> Vec<Vec<u8>> {
    let mut bytes = content();
    bytes.resize(128 << 10, 0);
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("raw"), dir.path().join("image"));
    fs::write(&raw, bytes).unwrap();
    let make = |options: &[&str]| {
        let mut command = tools::command("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "qcow2"]);
        tools::run_command(command.args(options).arg(&raw).arg(&image));
        fs::read(&image).unwrap()
    };
    let mut files = vec![
        make(&["-o", "cluster_size=512"]),
        make(&["-o", "cluster_size=4k,compat=0.10"]),
        make(&["-o", "cluster_size=16k,extended_l2=on"]),
        make(&["-c", "-o", "cluster_size=4k"]),
        make(&[
            "-c",
            "-o",
            "cluster_size=16k,extended_l2=on,compression_type=zstd",
        ]),
        make(&["-c", "-o", "cluster_size=512"]),
    ];
    let image = image.to_str().unwrap();
    tools::run("qemu-img", ["snapshot", "-c", "one", image]);
    tools::run("qemu-io", ["-c", "write -P 3 1k 5k", image]);
    files.push(fs::read(image).unwrap());
    files
}

#[test]
fn qcow2_open() {
    fuzz("qcow2_open", qcow2_files);
}

#[test]
fn qcow2_write() {
    fuzz("qcow2_write", qcow2_files);
}

#[test]
fn simg_open() {
    fuzz("simg_open", simg_files);
}

/// File systems with an extent tree and with a block map, whose folder has nodes.
fn ext_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir_all(root.join("sub/folder")).unwrap();
    for n in 0..100 {
        let name = format!("{n:03}{}", "x".repeat(200));
        fs::write(root.join("sub").join(name), noise(1500, n)).unwrap();
    }
    fs::write(root.join("long"), noise(100_000, 1)).unwrap();
    let forms = [
        &["ext4", "-O", "^has_journal,meta_bg,^resize_inode"][..],
        &["ext2"],
    ];
    let make = |form: &&[&str]| {
        let mut command = tools::command("mke2fs");
        command.args(["-q", "-F", "-b", "1024", "-N", "256", "-t"]);
        command.args(*form).arg("-d").arg(&root);
        tools::run_command(command.arg(&image).arg("600K"));
        let made = fs::read(&image).unwrap();
        fs::remove_file(&image).unwrap();
        made
    };
    forms.iter().map(make).collect()
}

#[test]
fn foresight() {
    fuzz("foresight", ext_files);
}

/// The text of a group with volumes of several sorts.
fn lvm_texts() -> Vec<Vec<u8>> {
    use lvm_forge::{group, logical, segment};
    let volumes = [
        logical(
            "lv",
            50,
            &[
                segment(1, 0, 2, &[(0, 1)], 0),
                segment(2, 2, 2, &[(0, 5), (1, 0)], 8),
            ],
        ),
        logical("st", 51, &[segment(1, 0, 2, &[(0, 6), (0, 7)], 1)]),
        logical(
            "thin",
            52,
            &[segment(1, 0, 1, &[(1, 3)], 0).replace("striped", "thin")],
        ),
    ];
    let text = group("vg", 1, &[(0, 8), (1, 4)], &volumes.concat());
    let other = text.replace(
        "stripes = [",
        "origin = \"lv\"\ncow_store = \"st\"\nstripes = [",
    );
    vec![
        other
            .replacen("type = \"striped\"", "type = \"snapshot\"", 1)
            .into_bytes(),
        text.into_bytes(),
    ]
}

/// Physical volumes, alone and as partitions.
fn lvm_images() -> Vec<Vec<u8>> {
    use lvm_forge::{disk, physical};
    let mut images = Vec::new();
    for text in lvm_texts() {
        let text = String::from_utf8(text).unwrap();
        let both = [physical(0, 8, &text), physical(1, 4, &text)];
        images.push(disk(&both));
        images.extend(both);
    }
    images
}

/// Members of arrays of all sorts.
fn md_members(level: i32, version: &'static str) -> [Vec<u8>; 2] {
    use raid_forge::Member;
    [0, 1].map(|number| {
        let len = 16384 + 8192 * number as usize;
        let mut member = Member::new(version, level, number, 2, noise(len, u64::from(number)));
        member.layout = 2;
        member.size = 32;
        member.image()
    })
}

const MD_VERSIONS: [&str; 4] = ["0.90", "1.0", "1.1", "1.2"];

fn md_superblocks() -> Vec<Vec<u8>> {
    let members = MD_VERSIONS.map(|version| {
        let member = raid_forge::Member::new(version, 1, 0, 2, noise(16384, 1));
        let mut image = member.image();
        image.resize(image.len() + 4096, 0);
        image[member.superblock_at()..][..4096].to_vec()
    });
    members.to_vec()
}

fn md_disks() -> Vec<Vec<u8>> {
    let mut disks = Vec::new();
    for version in MD_VERSIONS {
        for level in [-1, 0, 1] {
            disks.push(raid_forge::disk(&md_members(level, version), 0xfd));
        }
    }
    disks.push(md_members(1, "1.2")[0].clone());
    disks
}

#[test]
fn lvm_text() {
    fuzz("lvm_text", lvm_texts);
}

#[test]
fn lvm_open() {
    fuzz("lvm_open", lvm_images);
}

#[test]
fn md_superblock() {
    fuzz("md_superblock", md_superblocks);
}

#[test]
fn raid_open() {
    fuzz("raid_open", md_disks);
}

/// A disk of 320 KiB as `qemu-img convert` makes it of each of these options.
fn disk_files(format: &str, options: &[&str]) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("raw"), dir.path().join("image"));
    let mut bytes = content();
    bytes.resize(320 << 10, 0);
    fs::write(&raw, bytes).unwrap();
    let make = |options: &&str| {
        let mut command = tools::command("qemu-img");
        command.args(["convert", "-f", "raw", "-O", format, "-o", options]);
        tools::run_command(command.arg(&raw).arg(&image));
        fs::read(&image).unwrap()
    };
    options.iter().map(make).collect()
}

#[test]
fn vmdk_open() {
    fuzz("vmdk_open", || {
        let options = [
            "subformat=monolithicSparse",
            "subformat=monolithicSparse,zeroed_grain=on",
            "subformat=streamOptimized",
            "subformat=monolithicFlat",
        ];
        let mut files = disk_files("vmdk", &options);
        let head = "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\n";
        let snapshot = head.replace("ffffffff", "2\nparentFileNameHint=\"..\\a\"");
        files.push(format!("{head}RW 9 ZERO\nRW 8 ZERO\n").into());
        files.push(format!("{head}RW 9 ZERO\nRW 8 SPARSE \"a\"\n").into());
        files.push(format!("{snapshot}RW 9 ZERO\nRW 8 VMFSSPARSE \"a\"\n").into());
        files
    });
}

#[test]
fn vdi_open() {
    fuzz("vdi_open", || {
        disk_files("vdi", &["static=off", "static=on"])
    });
}

#[test]
fn vhd_open() {
    fuzz("vhd_open", || {
        let fixed = "subformat=fixed,force_size=on";
        let mut files = disk_files("vpc", &["force_size=on", "force_size=off", fixed]);
        // Of type 4, with a path of the parent.
        let mut differencing = files[0].clone();
        let end = differencing.len() - 512;
        differencing[0x3f] = 4;
        differencing[end + 0x3f] = 4;
        differencing[512 + 0x240..512 + 0x244].copy_from_slice(b"W2ru");
        differencing[512 + 0x24b] = 8;
        differencing[512 + 0x256] = 6;
        files.push(differencing);
        files
    });
}

#[test]
fn vhdx_open() {
    fuzz("vhdx_open", || {
        let parts = |file: Vec<u8>| -> Vec<u8> {
            let all = fuzz::VHDX_PARTS.iter();
            all.flat_map(|(at, len)| file[*at..*at + *len].to_vec())
                .collect()
        };
        let files = disk_files("vhdx", &["block_size=1M", "block_size=2M,subformat=fixed"]);
        let mut seeds: Vec<_> = files.into_iter().map(parts).collect();
        // A log with an entry of one descriptor for data and one for zeroes.
        let mut dirty = seeds[0].clone();
        for header in [64, 192] {
            dirty[header + 48] = 9;
        }
        let mut entry = vec![0; 8192];
        entry[..4].copy_from_slice(b"loge");
        entry[9] = 0x20;
        entry[16] = 5;
        entry[24] = 2;
        entry[32] = 9;
        entry[64..68].copy_from_slice(b"desc");
        entry[64 + 18] = 0x40;
        entry[64 + 24] = 5;
        entry[96..100].copy_from_slice(b"zero");
        entry[96 + 9] = 0x10;
        entry[96 + 18] = 0x41;
        entry[96 + 24] = 5;
        entry[4096..4100].copy_from_slice(b"data");
        entry[8188] = 5;
        let log = dirty.len() - (64 << 10);
        dirty[log..log + 8192].copy_from_slice(&entry);
        seeds.push(dirty);
        seeds
    });
}

/// LUKS1 and LUKS2, their headers and keyslots and a little data, with cheap KDFs.
fn luks_files() -> Vec<Vec<u8>> {
    let format = |size: usize, args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let (key, file) = (dir.path().join("key"), dir.path().join("image"));
        fs::write(&key, fuzz::LUKS_PASSPHRASE).unwrap();
        fs::write(&file, vec![0; size]).unwrap();
        let mut command = tools::command("cryptsetup");
        command.args(["luksFormat", "--batch-mode"]).args(args);
        tools::run_command(command.arg("--key-file").arg(&key).arg(&file));
        let image = fs::read(&file).unwrap();
        fuzz::assert_luks_opens(&image);
        image
    };
    let one = ["--type=luks1", "--pbkdf-force-iterations=1000"];
    let two = [
        "--type=luks2",
        "--pbkdf-force-iterations=4",
        "--pbkdf-memory=32",
        "--pbkdf-parallel=1",
        "--luks2-keyslots-size=262144",
        "--key-size=256",
        "--offset=1024",
        "--sector-size=4096",
    ];
    let cbc = [
        "--cipher=aes-cbc-essiv:sha256",
        "--key-size=128",
        "--align-payload=1",
    ];
    vec![
        format(1200 << 10, &[&one[..], &cbc].concat()),
        format(600 << 10, &two),
    ]
}

#[test]
fn luks1_header() {
    fuzz("luks1_header", || {
        let mut files = luks_files();
        files.truncate(1);
        files[0].truncate(592);
        files
    });
}

#[test]
fn luks2_header() {
    fuzz("luks2_header", || {
        let json = &luks_files()[1][4096..16384];
        vec![json.split(|byte| *byte == 0).next().unwrap().to_vec()]
    });
}

#[test]
fn luks_open() {
    fuzz("luks_open", luks_files);
}

#[test]
fn gpt() {
    fuzz("gpt", gpt_disks);
}

#[test]
fn mbr() {
    fuzz("mbr", mbr_disks);
}

/// Requests as a client sends them: READ, WRITE with its payload, FLUSH, WRITE_ZEROES, DISC.
fn conversation() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (command, offset, length) in [
        (0, 512, 4096),
        (1, 8, 16),
        (3, 0, 0),
        (6, 0, 512),
        (2, 0, 0),
    ] {
        let header = nbdserve::proto::Header {
            flags: nbdserve::proto::CommandFlags::NONE,
            command,
            cookie: 7,
            offset,
            length,
        };
        bytes.extend(header.encode());
        bytes.resize(bytes.len() + header.payload_len() as usize, 1);
    }
    bytes
}

#[test]
fn nbd_request() {
    let flags = [[0xff, 0xff, 9, 25], [3, 0, 0, 9], [0x65, 0, 12, 16]];
    fuzz("nbd_request", || {
        flags
            .map(|flags| [&flags[..], &conversation()].concat())
            .to_vec()
    });
}

#[test]
fn nbd_connection() {
    fuzz("nbd_connection", || {
        let twice = [conversation(), conversation()].concat();
        vec![conversation(), twice, vec![0; 100]]
    });
}

#[test]
fn a_child_that_takes_more_memory_than_allowed_is_a_failure() {
    if std::env::var_os(CHILD).is_some() {
        limit_memory();
        let hog = vec![1_u8; MEMORY as usize];
        println!("{} {}", hog[hog.len() / 2], done("hog"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "a_child_that_takes_more_memory_than_allowed_is_a_failure";
    let output = child(test, dir.path());
    assert!(!output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains(&done("hog")));
}

#[test]
fn every_target_has_a_program_and_a_test() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut programs: Vec<_> = fs::read_dir(manifest.join("fuzz/fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_owned())
        .collect();
    programs.sort();
    let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    targets.sort_unstable();
    assert_eq!(programs, targets);
    let cargo = fs::read_to_string(manifest.join("fuzz/Cargo.toml")).unwrap();
    let tests = include_str!("fuzz.rs");
    for name in targets {
        assert!(cargo.contains(&format!("name = \"{name}\"")), "{name}");
        let test = format!("fuzz(\"{name}\", ");
        assert!(tests.contains(&test), "{name}");
    }
}
