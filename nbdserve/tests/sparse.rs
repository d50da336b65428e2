//! Disks that are mostly zeroes, most of 100 GiB, in each compressed format: they open at once, are
//! known to be sparse, and take no room where they are decoded into. Such a file is put together from
//! one that foreign tools have made of a piece of zeroes, many times over.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nbdserve::layer::LayerType;
use nbdserve::layer::bzip2::BZIP2;
use nbdserve::layer::gzip::GZIP;
use nbdserve::layer::lz4::LZ4;
use nbdserve::layer::lzip::LZIP;
use nbdserve::layer::xz::XZ;
use nbdserve::layer::zstd::ZSTD;
use nbdserve::source::Memory;
use nbdserve::testing::packed::{self, keeping};
use nbdserve::testing::{noise, tools};
use nbdserve::{ByteRange, Cx, Volume};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Bytes of data at the start of a piece that has some.
const DATA: usize = 1 << 20;

/// A disk of pieces of the same length. The first one and that in the middle have data.
struct Disk {
    layer: &'static LayerType,
    piece: u64,
    pieces: u64,
    file: Vec<u8>,
}

impl Disk {
    fn new(
        layer: &'static LayerType,
        piece: u64,
        size: u64,
        pack: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Self {
        let pieces = size / piece;
        let zeroes = pack(&vec![0; piece as usize]);
        let mut data = noise(DATA, 1);
        data.resize(piece as usize, 0);
        let data = pack(&data);
        let mut file = Vec::new();
        for number in 0..pieces {
            let has_data = number % (pieces / 2) == 0;
            file.extend(if has_data { &data } else { &zeroes });
        }
        Self {
            layer,
            piece,
            pieces,
            file,
        }
    }

    fn size(&self) -> u64 {
        self.piece * self.pieces
    }

    fn open(&self, cx: &Cx) -> Volume {
        let below = Memory::volume(self.file.clone());
        let volume = packed::open_on(self.layer, &below, cx).unwrap();
        assert_eq!(volume.size(), self.size(), "{}", self.layer.name);
        volume
    }

    /// Asks for all extents, as cp(1) does, and checks them.
    fn assert_sparse(&self, volume: &Volume) {
        let name = self.layer.name;
        let middle = self.pieces / 2 * self.piece;
        let mut at = 0;
        let mut data = 0;
        while at < self.size() {
            let rest = ByteRange::between(at, self.size());
            let found = volume.extents_limited(rest, 2).unwrap();
            let run = found.runs()[0];
            let range = run.range;
            if !run.flags.zero {
                data += range.len();
            }
            for start in [0, middle] {
                let noise = ByteRange::between(start, start + DATA as u64);
                assert!(
                    !run.flags.zero || range.intersect(noise).is_empty(),
                    "{name}: data at {start} is called zero"
                );
            }
            at = range.end();
        }
        assert!(data <= 2 * self.piece, "{name}: {data} bytes of data");
        let stored = volume.stored(ByteRange::between(0, self.size())).unwrap();
        let expected = DATA as u64..=2 * self.piece;
        assert!(expected.contains(&stored), "{name}: {stored} bytes stored");
        let bytes = volume.read_vec(middle, DATA + 10).unwrap();
        assert!(bytes[..DATA] == noise(DATA, 1) && bytes[DATA..] == [0; 10]);
        let zeroes = volume.read_vec(self.size() - 7 * MIB, 100_000).unwrap();
        assert!(zeroes.iter().all(|byte| *byte == 0), "{name}");
    }

    /// Of all pieces hardly any may be decoded.
    fn assert_nearly_nothing_decoded(&self, volume: &Volume, most: u64) {
        let decodes = volume.stats().blocks.unwrap().decodes;
        let name = self.layer.name;
        assert!(decodes <= most, "{name}: {decodes} blocks were decoded");
    }
}

fn tool(program: &'static str, args: &'static [&'static str]) -> impl Fn(&[u8]) -> Vec<u8> {
    move |bytes| tools::filter(program, &[args, &["-c"]].concat(), bytes)
}

/// Bytes that a folder takes on disk.
fn allocated(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => allocated(&entry.path()),
            false => entry.metadata().unwrap().blocks() * 512,
        })
        .sum()
}

#[test]
fn zero_blocks_of_a_format_with_an_index_are_told_without_decoding_them() {
    for disk in [
        Disk::new(&XZ, 16 * MIB, 100 * GIB, tool("xz", &["-0"])),
        Disk::new(&LZIP, 16 * MIB, 100 * GIB, tool("lzip", &["-0", "-B16MiB"])),
        Disk::new(&ZSTD, 4 * MIB, 100 * GIB, |bytes| {
            let size = format!("--stream-size={}", bytes.len());
            tools::filter("zstd", &["-q", "-1", "-c", &size], bytes)
        }),
        Disk::new(&LZ4, 4 * MIB, 8 * GIB, tool("lz4", &["-q"])),
    ] {
        let volume = disk.open(&Cx::new(256 << 20));
        disk.assert_sparse(&volume);
        disk.assert_nearly_nothing_decoded(&volume, 40);
    }
}

#[test]
fn frames_without_a_size_are_measured_once_for_all_that_are_alike() {
    let disk = Disk::new(&ZSTD, 4 * MIB, 100 * GIB, tool("zstd", &["-q", "-1"]));
    let volume = disk.open(&Cx::new(256 << 20));
    disk.assert_sparse(&volume);
    disk.assert_nearly_nothing_decoded(&volume, 40);
}

#[test]
fn bzip2_decodes_one_block_of_zeroes_and_keeps_them_as_holes() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(&BZIP2, 32 * MIB, 100 * GIB, tool("bzip2", &["-9"]));
    let volume = disk.open(&keeping(Cx::new(64 << 20), folder.path()));
    disk.assert_sparse(&volume);
    let kept = allocated(folder.path());
    // Two pieces with data; 8 bytes for each 256 KiB of zeroes.
    assert!(kept < 16 * MIB, "{kept} bytes kept on disk");
}

#[test]
fn a_pass_over_one_long_frame_keeps_zeroes_as_holes() {
    let folder = tempfile::tempdir().unwrap();
    let size = 512 * MIB;
    let mut bytes = vec![0; size as usize];
    let middle = (size / 2) as usize;
    for start in [0, middle] {
        bytes[start..start + DATA].copy_from_slice(&noise(DATA, 1));
    }
    let whole = format!("--stream-size={size}");
    let file = tools::filter("zstd", &["-q", "-1", "-c", &whole], &bytes);
    drop(bytes);
    let disk = Disk {
        layer: &ZSTD,
        piece: size / 2,
        pieces: 2,
        file,
    };
    let volume = disk.open(&keeping(Cx::new(64 << 20), folder.path()));
    let before = volume.stored(ByteRange::between(0, size)).unwrap();
    assert!(
        (MIB..64 * MIB).contains(&before),
        "before the pass: {before}"
    );
    disk.assert_sparse(&volume);
    let after = volume.stored(ByteRange::between(0, size)).unwrap();
    assert!((2 * MIB..4 * MIB).contains(&after), "after it: {after}");
    assert!(allocated(folder.path()) < 4 * MIB);
}

#[test]
fn spans_of_zeroes_in_gzip_are_told_by_its_first_pass() {
    let disk = Disk::new(&GZIP, 64 * MIB, 512 * MIB, tool("gzip", &["-1"]));
    let volume = disk.open(&Cx::new(64 << 20));
    disk.assert_sparse(&volume);
    disk.assert_nearly_nothing_decoded(&volume, 40);
}
