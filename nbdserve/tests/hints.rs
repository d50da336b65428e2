//! Hints that belong together, on their way down.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nbdserve::layer::{self, Args, LayerType};
use nbdserve::source::Memory;
use nbdserve::testing::conformance::check_hint_set;
use nbdserve::testing::{Counting, noise, tools};
use nbdserve::{ByteRange, Cx, Volume};

const MIB: usize = 1 << 20;

/// What `program ARGS raw image` makes of `bytes`.
fn made(program: &str, args: &[&str], bytes: &[u8]) -> Volume {
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("raw"), dir.path().join("image"));
    std::fs::write(&raw, bytes).unwrap();
    let mut command = tools::command(program);
    tools::run_command(command.args(args).arg(&raw).arg(&image));
    Memory::volume(std::fs::read(image).unwrap())
}

fn open(layer: &LayerType, args: &Args, below: &Volume) -> Volume {
    (layer.open)(below, args, &Cx::new(16 << 20)).unwrap()
}

#[test]
fn layers_that_move_bytes_pass_a_set_on_as_a_set() {
    let bytes = noise(6 * MIB, 1);
    let convert = |form: &str, options: &str| {
        let mut args = vec!["convert", "-f", "raw", "-O", form];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        made("qemu-img", &args, &bytes)
    };
    let none = Args::new();
    for (layer, below) in [
        (&layer::qcow2::QCOW2, convert("qcow2", "")),
        // Each range needs another L2 table.
        (&layer::qcow2::QCOW2, convert("qcow2", "cluster_size=4k")),
        (&layer::vmdk::VMDK, convert("vmdk", "")),
        (&layer::vdi::VDI, convert("vdi", "")),
        (&layer::vhd::VHD, convert("vpc", "force_size=on")),
        (&layer::vhdx::VHDX, convert("vhdx", "")),
        (&layer::simg::SIMG, made("img2simg", &[], &bytes)),
    ] {
        check_hint_set(&below, |below| open(layer, &none, below));
    }
    let raw = Memory::volume(bytes);
    let args = Args::from([("offset".to_owned(), "12288".to_owned())]);
    check_hint_set(&raw, |below| open(&layer::offset::OFFSET, &args, below));
    check_hint_set(&raw, |below| open(&layer::cow::COW, &none, below));
}

#[test]
fn tables_that_a_set_needs_are_hinted_at_as_a_set_too() {
    let bytes = noise(12 * MIB, 2);
    let args = [
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=4k",
    ];
    let (below, counts) = Counting::volume(made("qemu-img", &args, &bytes));
    let volume = open(&layer::qcow2::QCOW2, &Args::new(), &below);
    counts.reset();
    // An L2 table of 4 KiB is for 2 MiB.
    let ranges = [3, 5, 7, 9].map(|mib| {
        let at = (mib * MIB) as u64;
        ByteRange::between(at, at + 100)
    });
    volume.will_need_parts(&ranges);
    let sets: Vec<_> = counts.hint_sets().iter().map(Vec::len).collect();
    assert_eq!(sets, [4, 4], "{:?}", counts.hint_sets());
    assert_eq!(counts.reads(), 4, "{:?}", counts.read_ranges());
}

#[test]
fn runs_that_are_not_stored_are_not_hinted_at() {
    let mut bytes = noise(6 * MIB, 3);
    bytes[2 * MIB..4 * MIB].fill(0);
    let args = ["convert", "-f", "raw", "-O", "qcow2"];
    let (below, counts) = Counting::volume(made("qemu-img", &args, &bytes));
    let volume = open(&layer::qcow2::QCOW2, &Args::new(), &below);
    let at = |mib: usize| ByteRange::between((mib * MIB) as u64, (mib * MIB) as u64 + 4096);
    volume.will_need_parts(&[at(3)]);
    counts.reset();
    volume.will_need_parts(&[at(2), at(3)]);
    assert_eq!(counts.hint_sets(), Vec::<Vec<ByteRange>>::new());
    volume.will_need_parts(&[at(2), at(5), at(3), at(1)]);
    assert_eq!(counts.hint_sets().len(), 1);
    assert_eq!(counts.hints(), 2);
}

#[test]
fn a_set_is_cut_to_the_device_and_nothing_is_no_hint() {
    let (volume, counts) = Counting::volume(Memory::volume(vec![0; 1000]));
    volume.will_need_parts(&[]);
    volume.will_need_parts(&[ByteRange::between(1000, 2000), ByteRange::between(5, 5)]);
    assert_eq!(counts.hint_sets().len(), 0);
    volume.will_need_parts(&[
        ByteRange::between(900, u64::MAX),
        ByteRange::between(2000, 3000),
        ByteRange::between(0, 10),
    ]);
    let expected = [ByteRange::between(900, 1000), ByteRange::between(0, 10)];
    assert_eq!(counts.hint_sets(), [expected]);
    volume.will_need(ByteRange::between(7, 9));
    assert_eq!(counts.hint_sets()[1], [ByteRange::between(7, 9)]);
}
