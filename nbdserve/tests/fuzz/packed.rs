//! Packed files: xz, gzip, zstd and the others.

use nbdserve::testing::fuzz;
use nbdserve::testing::tools;

use crate::made::{compressed, content, xz};

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
    fuzz!("lz4_open", lz4_files);
}

#[test]
fn zstd_open() {
    fuzz!("zstd_open", zstd_files);
}

#[test]
fn zstd_seek_table() {
    // How many frames of ten bytes there are, then an entry each.
    let entry = |encoded: u32, len: u32| [encoded, len, 0].map(u32::to_le_bytes).concat();
    let right = entry(10, 1000);
    fuzz!("zstd_seek_table", || {
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
pub(crate) fn xz_files() -> Vec<Vec<u8>> {
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
pub(crate) fn gzip_files() -> Vec<Vec<u8>> {
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

#[test]
fn xz_open() {
    fuzz!("xz_open", xz_files);
}

#[test]
fn xz_mended() {
    fuzz!("xz_mended", xz_files);
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
    fuzz!("xz_index", || bodies.map(<[u8]>::to_vec).to_vec());
}

/// Files of several streams, with and without small blocks, and of zeroes alone.
pub(crate) fn bzip2_files() -> Vec<Vec<u8>> {
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
fn bzip2_open() {
    fuzz!("bzip2_open", bzip2_files);
}

#[test]
fn lzma_open() {
    fuzz!("lzma_open", || {
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
    fuzz!("lzip_open", || {
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
    fuzz!("gzip_open", gzip_files);
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
    fuzz!("gzip_header", || headers.map(<[u8]>::to_vec).to_vec());
}

#[test]
fn gzip_index() {
    fuzz!("gzip_index", fuzz::gzip_index_seeds);
}

#[test]
fn deflate_zeroes() {
    fuzz!("deflate_zeroes", || {
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
