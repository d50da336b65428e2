//! Images as qemu-img makes them.

use nbdserve::testing::conformance::{self, read_all};

use crate::images::{Folder, MIB, compare_extents};

/// Options of `qemu-img convert` for images of all sorts.
const SORTS: &[&str] = &[
    "",
    "-o compat=0.10",
    "-o cluster_size=512",
    "-o cluster_size=4k",
    "-o cluster_size=2M",
    "-o refcount_bits=1",
    "-o refcount_bits=64",
    "-o extended_l2=on",
    "-o extended_l2=on,cluster_size=16k",
    "-o extended_l2=on,cluster_size=2M",
    "-c",
    "-c -o compat=0.10",
    "-c -o cluster_size=512",
    "-c -o cluster_size=4k",
    "-c -o cluster_size=2M",
    "-c -o compression_type=zstd",
    "-c -o compression_type=zstd,cluster_size=2M",
    "-c -o compression_type=zstd,extended_l2=on",
    "-o preallocation=metadata",
    "-o preallocation=full",
    "-o preallocation=metadata,extended_l2=on",
    "-o lazy_refcounts=on",
    "-S 0",
];

/// Sorts that the whole suite runs on.
const SUITE: &[&str] = &[
    "-o cluster_size=4k",
    "-o extended_l2=on",
    "-c",
    "-c -o compression_type=zstd,cluster_size=16k",
];

/// Makes `image` of `raw`.
fn convert(folder: &Folder, sort: &str) {
    let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
    args.extend(sort.split_whitespace());
    args.extend(["raw", "image"]);
    folder.img(&args);
}

#[test]
fn images_of_all_sorts_read_as_what_they_were_made_of() {
    for sort in SORTS {
        let folder = Folder::new();
        // Not a multiple of any cluster size.
        let disk = folder.disk(3 * MIB + 512 * 7, 3);
        convert(&folder, sort);
        let volume = folder.open("image").unwrap();
        assert!(read_all(&volume) == disk, "{sort}");
        assert!(folder.oracle("image", &[]) == disk, "{sort}");
        compare_extents(&folder, "image", &volume);
    }
}

#[test]
fn the_suite_holds() {
    for sort in SUITE {
        let folder = Folder::new();
        let disk = folder.disk(2 * MIB + 512 * 7, 3);
        convert(&folder, sort);
        conformance::check(|| (folder.open("image").unwrap(), disk.clone()));
    }
}
