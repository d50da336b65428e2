//! Which layers.

use nbdserve::Kind;
use nbdserve::plan::{self, Content, Pick, Purpose};
use nbdserve::source::Memory;
use nbdserve::testing::{conformance, noise};

use crate::made::{
    MIB, ROOTS, TWO, cx, disk, ext4, file_system, isohybrid, mount, part, request, resolve, vfat,
    xz,
};

#[test]
fn no_two_layers_have_one_name() {
    let mut names: Vec<_> = nbdserve::layer::LAYERS.iter().map(|one| one.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
}

#[test]
fn a_compressed_disk_is_unwrapped_down_to_its_file_system() {
    let root = ext4("root");
    let image = xz(&disk(ROOTS, &[(1, &vfat()), (3, &root)]));
    let found = resolve(&image, &mount()).unwrap();
    assert_eq!(
        found.plan.to_string(),
        "disk.raw -> xz -> partition:3 -> ext4 \"root\""
    );
    assert_eq!(found.source_range, None);
    assert!(conformance::read_all(&found.volume) == root);
    let opened = plan::reopen(Memory::volume(image.clone()), &found.plan, &cx()).unwrap();
    assert!(conformance::read_all(&opened.volume) == root);

    // As it is, when that is asked for.
    let raw = request(&["raw"], Pick::Disk, Purpose::Bytes);
    let found = resolve(&image, &raw).unwrap();
    assert!(conformance::read_all(&found.volume) == image);
}

#[test]
fn compressed_nothing_is_named_by_where_it_was_found() {
    let error = resolve(&xz(&[]), &mount()).unwrap_err();
    assert_eq!(error.to_string(), "disk.raw: the content of xz is empty");
    let error = resolve(&xz(&noise(4096, 2)), &mount()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("disk.raw: the content of xz is nothing we know"),
        "{text}"
    );
    assert_eq!(error.kind(), Kind::NotThisFormat);
}

#[test]
fn an_error_at_opening_names_its_layer_once() {
    let image = xz(&ext4("cut"));
    let error = resolve(&image[..image.len() / 2], &mount()).unwrap_err();
    assert!(error.to_string().starts_with("xz: "), "{error}");
    assert!(!error.to_string().contains("xz: xz: "), "{error}");
    let image = disk(TWO, &[]);
    for layer in ["partition:3", "partition:x", "partition", "offset:1T"] {
        let asked = request(&[layer], Pick::Auto, Purpose::FileSystem);
        let error = resolve(&image, &asked).unwrap_err().to_string();
        let name = layer.split(':').next().unwrap();
        assert_eq!(error.matches(&format!("{name}: ")).count(), 1, "{error}");
    }
    for asked in [part("9"), part("name")] {
        let error = resolve(&image, &asked).unwrap_err().to_string();
        assert_eq!(error.matches("partition: ").count(), 1, "{error}");
    }
}

#[test]
fn layers_nested_too_deep_are_refused_without_decoding_them_all() {
    let mut image = ext4("deep");
    for _ in 0..8 {
        image = xz(&image);
    }
    assert_eq!(resolve(&image, &mount()).unwrap().plan.layers.len(), 8);
    let error = resolve(&xz(&image), &mount()).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error}");
}

#[test]
fn a_hybrid_iso_is_an_iso_unless_a_partition_is_asked_for() {
    let image = isohybrid();
    let found = resolve(&image, &mount()).unwrap();
    let info = file_system(&found.content);
    assert_eq!(
        (info.name.as_str(), info.label.as_deref()),
        ("iso9660", Some("HYBRID"))
    );
    assert!(found.plan.layers.is_empty());
    let found = resolve(&image, &part("1")).unwrap();
    assert_eq!(found.plan.partition, Some(1));
    assert_eq!(file_system(&found.content).name, "iso9660");
}

#[test]
fn a_table_is_younger_than_a_superblock_behind_it() {
    // mkfs would have wiped the table.
    let mut image = disk(
        "label: dos\n1 : start=4096, size=2048\n",
        &[(2, &ext4("new"))],
    );
    let old = ext4("old");
    image[1024..2048].copy_from_slice(&old[1024..2048]);
    let found = resolve(&image, &mount()).unwrap();
    assert_eq!(file_system(&found.content).label.as_deref(), Some("new"));
}

#[test]
fn named_layers_are_taken_as_written_and_probing_goes_on_above() {
    let fs = ext4("inside");
    let image = disk(TWO, &[(1, &fs)]);
    for (layers, plan) in [
        (
            &["offset:1M,size=1M"][..],
            "disk.raw -> offset:1M,size=1M -> ext4 \"inside\"",
        ),
        (
            &["partition:1"],
            "disk.raw -> partition:1 -> ext4 \"inside\"",
        ),
        (
            &["offset:0", "partition:1", "offset:0"],
            "disk.raw -> offset:0 -> partition:1 -> offset:0 -> ext4 \"inside\"",
        ),
        (
            &["offset:1M", "raw"],
            "disk.raw -> offset:1M -> ext4 \"inside\"",
        ),
    ] {
        let asked = request(layers, Pick::Auto, Purpose::FileSystem);
        let found = resolve(&image, &asked).unwrap();
        assert_eq!(found.plan.to_string(), plan);
        assert_eq!(found.source_range.unwrap().start(), MIB as u64);
        let size = found.volume.size();
        assert_eq!(found.source_range.unwrap().len(), size);
    }
    // raw keeps the table closed.
    let raw = request(&["raw"], Pick::Auto, Purpose::FileSystem);
    let error = resolve(&image, &raw).unwrap_err();
    assert!(error.to_string().contains("is nothing we know"), "{error}");
    let raw = request(&["raw"], Pick::Disk, Purpose::Bytes);
    assert_eq!(resolve(&image, &raw).unwrap().content, Content::Bytes);
}

#[test]
fn more_than_eight_layers_are_refused() {
    let image = ext4("deep");
    let eight = request(&["offset:0"; 8], Pick::Auto, Purpose::FileSystem);
    assert_eq!(resolve(&image, &eight).unwrap().chain.len(), 9);
    let nine = request(&["offset:0"; 9], Pick::Auto, Purpose::FileSystem);
    let error = resolve(&image, &nine).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.to_string().contains("more than 8 layers"), "{error}");
}

#[test]
fn a_partition_that_holds_itself_is_not_followed_for_ever() {
    // One that starts at sector 0 and has the same table at its start.
    let mut image = vec![0; MIB];
    image[450] = 0x83;
    image[458..462].copy_from_slice(&2048_u32.to_le_bytes());
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    for request in [mount(), part("1")] {
        let error = resolve(&image, &request).unwrap_err();
        assert!(
            matches!(error.kind(), Kind::Limit | Kind::NotThisFormat),
            "{error}"
        );
    }
}

#[test]
fn what_is_nothing_we_know_is_shown_and_empty_things_are_called_so() {
    let mut image = noise(4096, 8);
    image[..4].copy_from_slice(&[1, 2, 3, 0xff]);
    let report = resolve(&image, &mount()).unwrap_err().report();
    assert_eq!(report.kind, Kind::NotThisFormat);
    assert!(
        report
            .what
            .starts_with("disk.raw is nothing we know: it begins with 01 02 03 ff ")
    );
    assert_eq!(
        report
            .what
            .rsplit_once("with ")
            .unwrap()
            .1
            .split(' ')
            .count(),
        16
    );
    assert!(report.hint.unwrap().contains("--layer raw --fuse"));

    let error = resolve(&[], &mount()).unwrap_err();
    assert_eq!(error.to_string(), "disk.raw is empty");
    let error = resolve(&[7; 100], &mount()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "disk.raw has 100 bytes, less than one sector"
    );
    let empty = request(&["offset:1M,size=0"], Pick::Auto, Purpose::Bytes);
    let error = resolve(&ext4("x"), &empty).unwrap_err();
    assert_eq!(
        error.to_string(),
        "disk.raw: the content of offset is empty"
    );
    let error = resolve(&ext4("x"), &part("1")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no partition table to find \"1\" in: it is ext4"),
        "{error}"
    );
    let error = resolve(&image, &part("1")).unwrap_err();
    assert!(
        error.to_string().contains("it is nothing we know"),
        "{error}"
    );
}
