//! Disks that are mostly zeroes, most of 100 GiB, in each compressed format: they open at once, are
//! known to be sparse, and take no room where they are decoded into. Such a file is put together from
//! one that foreign tools have made of a piece of zeroes, many times over.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nbdserve::layer::bzip2::BZIP2;
use nbdserve::layer::gzip::GZIP;
use nbdserve::layer::lz4::LZ4;
use nbdserve::layer::lzip::LZIP;
use nbdserve::layer::qcow2::QCOW2;
use nbdserve::layer::simg::SIMG;
use nbdserve::layer::tar::TAR;
use nbdserve::layer::vmdk::VMDK;
use nbdserve::layer::xz::XZ;
use nbdserve::layer::zip::ZIP;
use nbdserve::layer::zstd::ZSTD;
use nbdserve::layer::{Args, LayerType};
use nbdserve::source::Memory;
use nbdserve::testing::packed::{self, keeping, roomy};
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

#[test]
fn a_seek_table_says_where_frames_lie_and_zero_ones_are_told_by_their_bytes() {
    let pack = |bytes: &[u8]| {
        let size = format!("--stream-size={}", bytes.len());
        tools::filter("zstd", &["-q", "-1", "--no-check", "-c", &size], bytes)
    };
    let mut disk = Disk::new(&ZSTD, 4 * MIB, 100 * GIB, pack);
    let mut data = noise(DATA, 1);
    data.resize(disk.piece as usize, 0);
    let (data, zeroes) = (pack(&data).len(), pack(&vec![0; disk.piece as usize]).len());
    let mut table = Vec::new();
    for number in 0..disk.pieces {
        let has_data = number % (disk.pieces / 2) == 0;
        let len = if has_data { data } else { zeroes };
        table.extend((len as u32).to_le_bytes());
        table.extend((disk.piece as u32).to_le_bytes());
    }
    disk.file.extend(0x184d_2a5e_u32.to_le_bytes());
    disk.file.extend((table.len() as u32 + 9).to_le_bytes());
    disk.file.extend(table);
    disk.file.extend((disk.pieces as u32).to_le_bytes());
    disk.file.push(0);
    disk.file.extend(0x8f92_eab1_u32.to_le_bytes());
    let volume = disk.open(&Cx::new(256 << 20));
    disk.assert_sparse(&volume);
    disk.assert_nearly_nothing_decoded(&volume, 40);
}

#[test]
fn text_that_shrank_as_much_as_zeroes_hides_no_holes_behind_it() {
    let pack = tool("lzip", &["-6"]);
    let zeroes = pack(&vec![0; MIB as usize]);
    let text = |number: u64| {
        let word = noise(100 + (number * 37 % 64) as usize, number);
        let bytes: Vec<u8> = word.iter().copied().cycle().take(MIB as usize).collect();
        pack(&bytes)
    };
    let texts: Vec<_> = (0..80).map(text).collect();
    for member in &texts {
        assert!(
            member.len() < 1000,
            "{} bytes are no candidate",
            member.len()
        );
    }
    // Text, zeroes, text, zeroes.
    let half = [texts.concat(), zeroes.repeat(4000)].concat();
    let below = Memory::volume(half.repeat(2));
    let volume = packed::open_on(&LZIP, &below, &Cx::new(64 << 20)).unwrap();
    let size = volume.size();
    let mut data = 0;
    let mut at = 0;
    while at < size {
        let found = volume.extents_limited(ByteRange::between(at, size), 2);
        let run = found.unwrap().runs()[0];
        data += if run.flags.zero { 0 } else { run.range.len() };
        at = run.range.end();
    }
    assert_eq!(data, 160 * MIB);
    let decodes = volume.stats().blocks.unwrap().decodes;
    assert!(decodes < 60, "{decodes} members were decoded");
}

/// A disk that is a sparse file, with data at its beginning, in the middle and at the end.
struct SparseFile {
    folder: tempfile::TempDir,
}

impl SparseFile {
    const SIZE: u64 = 100 * GIB;
    const PLACES: [u64; 3] = [0, Self::SIZE / 2, Self::SIZE - DATA as u64];

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("disk.raw")).unwrap();
        file.set_len(Self::SIZE).unwrap();
        for place in Self::PLACES {
            file.write_all_at(&noise(DATA, place + 1), place).unwrap();
        }
        Self { folder }
    }

    /// What `program ARGS` makes of it in the file `name`.
    fn make(&self, name: &str, program: &str, args: &[&str]) -> Vec<u8> {
        let mut command = tools::command(program);
        tools::run_command(command.args(args).current_dir(self.folder.path()));
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    /// A stack of layers on `file`, the lowest first, is this disk, and sparse.
    fn assert_is(what: &str, file: Vec<u8>, layers: &[(&LayerType, Option<&str>)]) {
        let cx = Cx::new(256 << 20);
        let mut volume = Memory::volume(file);
        for (layer, name) in layers {
            let args: Args = name
                .iter()
                .map(|name| ("name".to_owned(), (*name).to_owned()))
                .collect();
            volume = (layer.open)(&volume, &args, &cx)
                .unwrap_or_else(|error| panic!("{what}: {}: {error:?}", layer.name));
        }
        assert_eq!(volume.size(), Self::SIZE, "{what}");
        let whole = ByteRange::between(0, Self::SIZE);
        // Before anything is read, as `du` asks.
        let stored = volume.stored(whole).unwrap();
        let most = 12 * MIB;
        assert!(stored <= most, "{what}: {stored} bytes stored");
        let (mut at, mut data) = (0, 0);
        while at < Self::SIZE {
            let rest = ByteRange::between(at, Self::SIZE);
            let found = volume.extents_limited(rest, 2).unwrap();
            let run = found.runs()[0];
            for place in Self::PLACES {
                let noise = ByteRange::between(place, place + DATA as u64);
                let hidden = run.flags.zero && !run.range.intersect(noise).is_empty();
                assert!(!hidden, "{what}: data at {place} is called zero");
            }
            data += if run.flags.zero { 0 } else { run.range.len() };
            at = run.range.end();
        }
        assert!(data <= most, "{what}: {data} bytes of data");
        for place in Self::PLACES {
            let bytes = volume.read_vec(place, DATA).unwrap();
            assert!(bytes == noise(DATA, place + 1), "{what}: other bytes");
        }
        let zeroes = volume.read_vec(77 * GIB, 100_000).unwrap();
        assert!(zeroes.iter().all(|byte| *byte == 0), "{what}");
        let (peak, budget) = (cx.cache.peak(), cx.cache.budget());
        assert!(peak <= budget, "{what}: {peak} of {budget}");
    }

    /// The same, plain and compressed in each way.
    fn assert_is_packed(what: &str, file: &[u8], layers: &[(&LayerType, Option<&str>)]) {
        Self::assert_is(what, file.to_vec(), layers);
        let packers: [(&LayerType, &str, &[&str]); 3] = [
            (&XZ, "xz", &["-0", "-c"]),
            (&ZSTD, "zstd", &["-q", "-1", "-c"]),
            (&GZIP, "gzip", &["-1", "-c"]),
        ];
        for (layer, program, args) in packers {
            let packed = tools::filter(program, args, file);
            let all = [&[(layer, None)], layers].concat();
            Self::assert_is(&format!("{what} in {program}"), packed, &all);
        }
    }
}

#[test]
fn the_holes_of_a_file_in_a_tar_archive_are_those_of_the_disk() {
    let disk = SparseFile::new();
    let args = ["-S", "-cf", "disk.tar", "disk.raw"];
    let tar = disk.make("disk.tar", "tar", &args);
    SparseFile::assert_is_packed("tar", &tar, &[(&TAR, Some("disk.raw"))]);
    let args = ["--format=posix", "-S", "-cf", "disk.tar", "disk.raw"];
    let tar = disk.make("disk.tar", "tar", &args);
    SparseFile::assert_is_packed("pax", &tar, &[(&TAR, Some("disk.raw"))]);
}

#[test]
fn what_a_virtual_disk_does_not_store_is_a_hole() {
    let disk = SparseFile::new();
    let convert = |name: &str, options: &[&str]| {
        let args = [&["convert", "-f", "raw"], options, &["disk.raw", name]].concat();
        disk.make(name, "qemu-img", &args)
    };
    let qcow2 = convert("disk.qcow2", &["-O", "qcow2"]);
    SparseFile::assert_is_packed("qcow2", &qcow2, &[(&QCOW2, None)]);
    let qcow2 = convert("packed.qcow2", &["-c", "-O", "qcow2"]);
    SparseFile::assert_is_packed("qcow2, compressed", &qcow2, &[(&QCOW2, None)]);
    let streamed = ["-O", "vmdk", "-o", "subformat=streamOptimized"];
    let vmdk = convert("disk.vmdk", &streamed);
    SparseFile::assert_is_packed("vmdk", &vmdk, &[(&VMDK, None)]);
}

#[test]
fn chunks_that_an_android_image_leaves_out_are_holes() {
    const BLOCK: u64 = 4096;
    let data = DATA as u64 / BLOCK;
    let hole = SparseFile::SIZE / BLOCK / 2 - data;
    let mut chunks = Vec::new();
    let mut chunk = |kind: u16, blocks: u64, body: &[u8]| {
        chunks.extend(kind.to_le_bytes());
        chunks.extend([0; 2]);
        chunks.extend((blocks as u32).to_le_bytes());
        chunks.extend((body.len() as u32 + 12).to_le_bytes());
        chunks.extend(body);
    };
    let noise = |number: usize| noise(DATA, SparseFile::PLACES[number] + 1);
    chunk(0xcac1, data, &noise(0));
    chunk(0xcac3, hole, &[]);
    chunk(0xcac1, data, &noise(1));
    chunk(0xcac2, hole - data, &[0; 4]);
    chunk(0xcac1, data, &noise(2));
    let mut file = 0xed26_ff3a_u32.to_le_bytes().to_vec();
    for half in [1_u16, 0, 28, 12] {
        file.extend(half.to_le_bytes());
    }
    for word in [BLOCK, SparseFile::SIZE / BLOCK, 5, 0] {
        file.extend((word as u32).to_le_bytes());
    }
    file.extend(chunks);
    SparseFile::assert_is_packed("simg", &file, &[(&SIMG, None)]);
}

#[test]
fn holes_go_up_through_two_layers() {
    let folder = tempfile::tempdir().unwrap();
    for (layer, piece, program, options, name) in [
        (&ZSTD, 4 * MIB, "zstd", "-q1", "disk.raw.zst"),
        (&XZ, 16 * MIB, "xz", "-0", "disk.raw.xz"),
    ] {
        let disk = Disk::new(layer, piece, 100 * GIB, |bytes| {
            tools::filter(program, &[options, "-c"], bytes)
        });
        std::fs::write(folder.path().join(name), &disk.file).unwrap();
        for (archive, program, args) in [
            (&ZIP, "zip", &["-q", "out.zip"][..]),
            (&TAR, "tar", &["-cf", "out.tar"]),
        ] {
            let mut command = tools::command(program);
            let args = [args, &[name]].concat();
            tools::run_command(command.args(&args).current_dir(folder.path()));
            let file = std::fs::read(folder.path().join(args[1])).unwrap();
            let args = Args::from([("name".to_owned(), name.to_owned())]);
            let below = (archive.open)(&Memory::volume(file), &args, &Cx::new(256 << 20));
            let volume = packed::open_on(layer, &below.unwrap(), &Cx::new(256 << 20)).unwrap();
            assert_eq!(volume.size(), disk.size());
            disk.assert_sparse(&volume);
            disk.assert_nearly_nothing_decoded(&volume, 40);
        }
    }
}

#[test]
fn zeroes_of_many_lengths_do_not_crowd_out_those_that_are_common() {
    let bzip2 = tool("bzip2", &["-1"]);
    // Blocks of zeroes that are all different come first.
    let odd: Vec<_> = (1..=12).map(|n| bzip2(&vec![0; 1 << 20 | n])).collect();
    let zeroes = bzip2(&vec![0; 4 << 20]);
    let file = [odd.concat(), zeroes.repeat(2000)].concat();
    let size = 12 * MIB + 78 + 2000 * 4 * MIB;
    let folder = tempfile::tempdir().unwrap();
    let cx = keeping(Cx::new(64 << 20), folder.path());
    let volume = packed::open_on(&BZIP2, &Memory::volume(file), &cx).unwrap();
    assert_eq!(volume.size(), size);
    let found = volume.extents(ByteRange::between(0, size)).unwrap();
    assert!(found.runs().iter().all(|run| run.flags.zero));
    // And data behind zeroes that fill no whole piece.
    let data = noise(DATA, 1);
    let file = [odd.concat(), bzip2(&data), zeroes].concat();
    let volume = packed::open_on(&BZIP2, &Memory::volume(file), &roomy()).unwrap();
    let start = 12 * MIB + 78;
    assert!(volume.read_vec(start, DATA).unwrap() == data);
    let around = volume.read_vec(start - 100, 100).unwrap();
    assert_eq!(around, [0; 100]);
    let behind = volume.read_vec(start + DATA as u64, 1 << 20).unwrap();
    assert!(behind.iter().all(|byte| *byte == 0));
}
