//! How much is read below.

use nbdserve::source::{File, OpenMode};
use nbdserve::testing::conformance::read_all;
use nbdserve::testing::{Counting, Counts, noise};
use nbdserve::{ByteRange, Cx, Volume};

use crate::images::{Folder, MIB, cx, open_on};

fn counted(folder: &Folder, name: &str, cx: &Cx) -> (Volume, Counts) {
    let path = folder.path(name);
    let file = Volume::new(File::open(&path, OpenMode::ReadOnly).unwrap());
    let (below, counts) = Counting::volume(file);
    (open_on(&below, &path, &[], cx).unwrap(), counts)
}

fn convert(folder: &Folder, options: &[&str]) {
    let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
    args.extend(options);
    args.extend(["raw", "image"]);
    folder.img(&args);
}

#[test]
fn neighbours_are_read_with_one_request() {
    for options in [
        &["-o", "cluster_size=4k"][..],
        &[],
        &["-o", "extended_l2=on"],
    ] {
        let folder = Folder::new();
        let disk = noise(8 * MIB, 2);
        folder.write("raw", &disk);
        convert(&folder, options);
        let (volume, counts) = counted(&folder, "image", &cx());
        assert!(
            counts.reads() <= 3,
            "{options:?}: {} to open",
            counts.reads()
        );
        volume.read_vec(0, 8 * MIB).unwrap();
        counts.reset();
        // The tables are in memory. qemu-img leaves gaps for tables in between.
        assert!(volume.read_vec(0, 8 * MIB).unwrap() == disk);
        assert!(counts.reads() <= 8, "{options:?}: {}", counts.reads());
        assert_eq!(counts.read_bytes(), disk.len() as u64);
        counts.reset();
        volume.read_vec(5 * MIB as u64 + 777, 4096).unwrap();
        assert_eq!((counts.reads(), counts.read_bytes()), (1, 4096));
    }
}

#[test]
fn holes_are_not_read() {
    let folder = Folder::new();
    folder.img(&["create", "-q", "-f", "qcow2", "image", "1T"]);
    folder.io("image", &["write -P 1 500G 64k", "write -z 600G 1M"]);
    let (volume, counts) = counted(&folder, "image", &cx());
    counts.reset();
    let gib = 1 << 30;
    assert!(
        volume
            .read_vec(100 * gib, MIB)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(counts.reads(), 0);
    let runs = volume.extents(ByteRange::between(0, 1 << 40)).unwrap();
    let ends: Vec<_> = runs.runs().iter().map(|run| run.range.end()).collect();
    assert_eq!(ends, [500 * gib, 500 * gib + 65536, 1 << 40]);
    assert!(counts.reads() <= 2, "{}", counts.reads());
    assert_eq!(volume.stored(ByteRange::between(0, 1 << 40)), Some(65536));
}

#[test]
fn an_l2_table_is_read_once_however_many_ask() {
    let folder = Folder::new();
    let disk = noise(4 * MIB, 2);
    folder.write("raw", &disk);
    convert(&folder, &[]);
    let (volume, counts) = counted(&folder, "image", &cx());
    counts.reset();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let volume = &volume;
            scope.spawn(move || {
                for step in 0..16 {
                    volume
                        .read_vec((thread * 16 + step) * 30_000, 4096)
                        .unwrap();
                }
            });
        }
    });
    assert!(counts.reads() <= 8 * 16 + 1, "{}", counts.reads());
}

#[test]
fn tables_are_kept_within_a_part_of_the_memory() {
    let folder = Folder::new();
    let disk = noise(16 * MIB, 2);
    folder.write("raw", &disk);
    convert(&folder, &["-o", "cluster_size=512"]);
    // 512 tables of 512 bytes; there is memory for some eighty of them.
    let small = Cx::new(512 << 10);
    let (volume, counts) = counted(&folder, "image", &small);
    counts.reset();
    assert!(read_all(&volume) == disk);
    assert!(read_all(&volume) == disk);
    assert!(counts.read_bytes() >= 2 * (16 * MIB as u64 + (200 << 10)));
    let (volume, counts) = counted(&folder, "image", &cx());
    assert!(read_all(&volume) == disk);
    counts.reset();
    assert!(read_all(&volume) == disk);
    assert_eq!(counts.read_bytes(), 16 * MIB as u64);
}

#[test]
fn a_large_cluster_does_not_make_its_tables_large() {
    let folder = Folder::new();
    folder.create("image", "1T", "cluster_size=2M");
    folder.io("image", &["write -P 1 3M 1M"]);
    let (volume, counts) = counted(&folder, "image", &cx());
    volume.read_vec(3 * MIB as u64, 4096).unwrap();
    // The header, the L1 table, a part of the L2 table, and the bytes.
    assert!(
        counts.read_bytes() <= (64 << 10) * 2 + 8192,
        "{}",
        counts.read_bytes()
    );
}

#[test]
fn a_compressed_cluster_is_read_and_decoded_once() {
    let folder = Folder::new();
    let disk = folder.disk(4 * MIB, 6);
    convert(&folder, &["-c"]);
    let (volume, counts) = counted(&folder, "image", &cx());
    assert!(read_all(&volume) == disk);
    let stats = volume.stats().blocks.unwrap();
    assert!(stats.decodes <= 64, "{stats:?}");
    let len = std::fs::metadata(folder.path("image")).unwrap().len();
    // Clusters share sectors.
    assert!(
        counts.read_bytes() < len + 64 * 512 + 65536,
        "{} of {len}",
        counts.read_bytes()
    );
    counts.reset();
    assert!(read_all(&volume) == disk);
    assert_eq!(counts.reads(), 0, "all of it is in memory");
}
