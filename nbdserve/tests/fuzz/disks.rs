//! Formats of disks.

use std::fs;

use nbdserve::layer::cow::header::{MAP_AT, SECTOR_LEN};
use nbdserve::layer::cow::{Base, open_medium};
use nbdserve::source::Memory;
use nbdserve::testing::fuzz;
use nbdserve::testing::fuzz::cow::DISK;
use nbdserve::testing::{Platter, tools};
use nbdserve::{ByteRange, Done, ZeroOpts};

use crate::made::content;

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
    fuzz!("cow_open", cow_files);
}

#[test]
fn cow_map() {
    let sectors = || {
        let written = cow_files().swap_remove(1);
        let at = MAP_AT as usize;
        vec![written[at..at + 3 * SECTOR_LEN].to_vec(), vec![0; 700]]
    };
    fuzz!("cow_map", sectors);
}

/// Sparse images with chunks of all types, and small ones with many.
pub(crate) fn simg_files() -> Vec<Vec<u8>> {
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
pub(crate) fn qcow2_files() -> Vec<Vec<u8>> {
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
    fuzz!("qcow2_open", qcow2_files);
}

#[test]
fn qcow2_write() {
    fuzz!("qcow2_write", qcow2_files);
}

#[test]
fn simg_open() {
    fuzz!("simg_open", simg_files);
}

/// A disk of 320 KiB as `qemu-img convert` makes it of each of these options.
pub(crate) fn disk_files(format: &str, options: &[&str]) -> Vec<Vec<u8>> {
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
    fuzz!("vmdk_open", || {
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
    fuzz!("vdi_open", || {
        disk_files("vdi", &["static=off", "static=on"])
    });
}

#[test]
fn vhd_open() {
    fuzz!("vhd_open", || {
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
    fuzz!("vhdx_open", || {
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
