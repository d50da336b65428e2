//! Internal snapshots.

use nbdserve::Kind;
use nbdserve::testing::conformance::read_all;

use crate::images::{Folder, cx};

fn image(folder: &Folder) {
    folder.img(&["create", "-q", "-f", "qcow2", "image", "2M"]);
    folder.io("image", &["write -P 1 0 300k"]);
    folder.img(&["snapshot", "-c", "first", "image"]);
    folder.io("image", &["write -P 2 100k 500k"]);
    folder.img(&["snapshot", "-c", "2", "image"]);
    folder.io("image", &["write -P 3 64k 64k", "discard 0 64k"]);
    folder.img(&["resize", "-q", "image", "3M"]);
    folder.img(&["snapshot", "-c", "third", "image"]);
    folder.io("image", &["write -P 4 1M 64k"]);
}

#[test]
fn each_snapshot_reads_as_qemu_reads_it() {
    let folder = Folder::new();
    image(&folder);
    assert!(read_all(&folder.open("image").unwrap()) == folder.oracle("image", &[]));
    for (name, sizes) in [("first", 2 << 20), ("2", 2 << 20), ("third", 3 << 20)] {
        let oracle = folder.oracle("image", &["-l", &format!("snapshot.name={name}")]);
        let volume = folder
            .open_with("image", &[("snapshot", name)], &cx())
            .unwrap();
        assert_eq!(volume.size(), sizes, "{name}");
        // qemu-img shows a smaller one as long as the disk is now.
        assert!(read_all(&volume) == oracle[..sizes as usize], "{name}");
    }
    // By its number, where no name is like it.
    for (id, name) in [("1", "first"), ("3", "third")] {
        let open = |text| folder.open_with("image", &[("snapshot", text)], &cx());
        assert!(read_all(&open(id).unwrap()) == read_all(&open(name).unwrap()));
    }
}

#[test]
fn a_snapshot_that_is_not_there_is_told_with_those_that_are() {
    let folder = Folder::new();
    image(&folder);
    let error = folder
        .open_with("image", &[("snapshot", "fourth")], &cx())
        .unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
    let report = error.report().to_string();
    assert!(
        report.contains("\"fourth\"") && report.contains("1 \"first\", 2 \"2\", 3 \"third\""),
        "{report}"
    );
    let notes = folder.open("image").unwrap().notes();
    assert_eq!(notes, ["snapshots: 1 \"first\", 2 \"2\", 3 \"third\""]);
    folder.img(&["create", "-q", "-f", "qcow2", "none", "2M"]);
    let error = folder
        .open_with("none", &[("snapshot", "x")], &cx())
        .unwrap_err();
    assert!(error.report().to_string().contains("no snapshots"));
}

#[test]
fn many_snapshots_with_long_names() {
    let folder = Folder::new();
    folder.img(&["create", "-q", "-f", "qcow2", "image", "1M"]);
    for number in 0..40 {
        let name = format!("{number}-{}", "n".repeat(200));
        folder.img(&["snapshot", "-c", &name, "image"]);
    }
    let notes = folder.open("image").unwrap().notes();
    assert!(notes[0].contains("and 20 more"), "{notes:?}");
    let name = format!("39-{}", "n".repeat(200));
    folder
        .open_with("image", &[("snapshot", &name)], &cx())
        .unwrap();
}
