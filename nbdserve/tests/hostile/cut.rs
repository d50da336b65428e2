//! An image that is cut at any byte is refused, or read as far as it is there. What is missing is an
//! error, never zeroes or other bytes.

use std::fs;

use nbdserve::testing::{conformance, disk_like};
use nbdserve::{Kind, Volume};

use crate::images::{Folder, MIB};

/// Bytes that are read at once.
const PIECE: usize = 32 << 10;

/// What may be missing without an error.
#[derive(Clone, Copy, PartialEq)]
enum Tail {
    Nothing,
    /// The rest of the last cluster, which reads as zeroes: QEMU leaves it out.
    OfCluster,
}

/// Reads all of `volume`; what can be read is that of `expected`, and something cannot be.
fn check(volume: &Volume, expected: &[u8], tail: Tail, what: &str) {
    assert_eq!(volume.size(), expected.len() as u64, "{what}");
    for at in (0..expected.len()).step_by(PIECE) {
        let expected = &expected[at..expected.len().min(at + PIECE)];
        match volume.read_vec(at as u64, expected.len()) {
            Ok(found) if found == expected => {}
            Ok(found) => {
                let differ = found
                    .iter()
                    .zip(expected)
                    .position(|(a, b)| a != b)
                    .unwrap();
                let zero = found[differ..].iter().all(|byte| *byte == 0);
                assert!(
                    tail == Tail::OfCluster && zero,
                    "{what}: byte {}",
                    at + differ
                );
            }
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{what}: {error:?}"),
        }
    }
}

/// Cuts `file`, a part of the image `image` or all of it, at any byte of its first KiB and of its
/// end, at clusters, and here and there.
fn cut(folder: &Folder, layer: &str, image: &str, file: &str, tail: Tail) {
    let volume = folder.open(layer, image).unwrap();
    let expected = conformance::read_all(&volume);
    drop(volume);
    let good = folder.read(file);
    let len = good.len();
    let mut cuts: Vec<usize> = (0..1100).collect();
    // A footer, and the last entries of a table.
    cuts.extend((1..700).map(|before| len.saturating_sub(before)));
    cuts.extend(
        (64 << 10..len)
            .step_by(64 << 10)
            .flat_map(|at| [at - 1, at]),
    );
    cuts.extend((0..len).step_by(len / 30 + 1));
    cuts.retain(|at| *at < len);
    cuts.sort_unstable();
    cuts.dedup();
    let path = folder.path(file);
    // From the longest on, since cutting is cheaper than writing.
    for at in cuts.into_iter().rev() {
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(at as u64)
            .unwrap();
        let what = format!("{layer}: {file} of {len} bytes cut at {at}");
        match folder.open(layer, image) {
            Ok(volume) => check(&volume, &expected, tail, &what),
            Err(error) => {
                let known = matches!(error.kind(), Kind::Corrupt | Kind::NotThisFormat);
                // A descriptor is a text, and the type of an extent a word in it.
                let word = layer == "vmdk" && error.kind() == Kind::Unsupported;
                assert!(known || word, "{what}: {error:?}");
            }
        }
    }
    fs::write(&path, good).unwrap();
}

/// Converts a disk to `format`, and cuts the image.
fn cut_converted(format: &str, layer: &str, args: &[&str], tail: Tail) {
    let folder = Folder::new();
    let disk = disk_like(MIB + 20 * 512, 3);
    folder.write("raw", &disk);
    let convert = ["convert", "-f", "raw", "-O", format];
    folder.img(&[&convert, args, &["raw", "image"]].concat());
    let files = fs::read_dir(folder.path("")).unwrap();
    let mut files: Vec<_> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.retain(|name| name.starts_with("image"));
    assert!(!files.is_empty());
    for file in files {
        cut(&folder, layer, "image", &file, tail);
    }
}

#[test]
fn qcow2() {
    for args in [
        &["-o", "cluster_size=4k"][..],
        &["-o", "cluster_size=64k,extended_l2=on"],
        &["-o", "compat=0.10"],
        &["-c"],
        &["-c", "-o", "compression_type=zstd,cluster_size=16k"],
    ] {
        cut_converted("qcow2", "qcow2", args, Tail::OfCluster);
    }
}

#[test]
fn a_data_file_of_qcow2() {
    for raw in ["off", "on"] {
        let folder = Folder::new();
        folder.write("raw", &disk_like(MIB, 3));
        let options = format!("data_file=data,data_file_raw={raw}");
        folder.img(&["create", "-q", "-f", "qcow2", "-o", &options, "image", "1M"]);
        folder.img(&["convert", "-n", "-f", "raw", "-O", "qcow2", "raw", "image"]);
        cut(&folder, "qcow2", "image", "data", Tail::OfCluster);
    }
}

#[test]
fn a_backing_file_of_qcow2() {
    let folder = Folder::new();
    folder.write("raw", &disk_like(MIB, 3));
    folder.img(&["convert", "-f", "raw", "-O", "qcow2", "raw", "base"]);
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "image",
    ]);
    cut(&folder, "qcow2", "image", "base", Tail::OfCluster);
}

#[test]
fn vmdk() {
    for subformat in ["monolithicSparse", "streamOptimized"] {
        let options = format!("subformat={subformat}");
        cut_converted("vmdk", "vmdk", &["-o", &options], Tail::Nothing);
    }
}

#[test]
fn extents_of_vmdk() {
    for subformat in [
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
    ] {
        let options = format!("subformat={subformat}");
        cut_converted("vmdk", "vmdk", &["-o", &options], Tail::Nothing);
    }
}

#[test]
fn vdi() {
    for options in ["static=off", "static=on"] {
        cut_converted("vdi", "vdi", &["-o", options], Tail::Nothing);
    }
}

#[test]
fn vhd() {
    for options in ["force_size=on", "subformat=fixed,force_size=on"] {
        cut_converted("vpc", "vhd", &["-o", options], Tail::Nothing);
    }
}

#[test]
fn vhdx() {
    for options in ["block_size=1M", "subformat=fixed"] {
        cut_converted("vhdx", "vhdx", &["-o", options], Tail::Nothing);
    }
}
