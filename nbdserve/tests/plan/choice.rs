//! Which partition.

use nbdserve::plan::{self, Content, FsInfo, Pick, Purpose};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, StrictDisk, conformance, noise};
use nbdserve::{Access, ByteRange, Kind, Volume};

use crate::made::{
    MIB, ROOTS, TWO, cx, disk, ext4, file_system, mount, part, request, resolve, swap, vfat,
};

/// The same type on the machine that the tests run on, and one of another.
const ROOT_TYPES: [(&str, &str); 2] = [
    ("x86_64", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
    ("aarch64", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"),
];

#[test]
fn a_file_system_on_the_whole_image_needs_no_layer() {
    let image = ext4("whole");
    let found = resolve(&image, &mount()).unwrap();
    assert!(found.plan.layers.is_empty() && found.plan.partition.is_none());
    assert_eq!(file_system(&found.content).label.as_deref(), Some("whole"));
    assert_eq!(found.source_range, Some(ByteRange::between(0, MIB as u64)));
    assert_eq!(found.plan.to_string(), "disk.raw -> ext4 \"whole\"");
    // A boot sector that carries 55 aa does not make a FAT a disk.
    assert_eq!(
        file_system(&resolve(&vfat(), &mount()).unwrap().content).name,
        "vfat"
    );
}

#[test]
fn the_root_type_of_gpt_is_taken_without_looking_into_the_others() {
    let (root, boot, esp) = (ext4("root"), ext4("boot"), vfat());
    let image = disk(ROOTS, &[(1, &esp), (2, &boot), (3, &root)]);
    let (source, _) = StrictDisk::new(1).access(Access::FirstPass).volume(image);
    let (source, counts) = Counting::volume(source);
    let found = plan::resolve(source, "disk.raw", &mount(), &|_, _| None, &cx()).unwrap();
    assert_eq!(found.plan.partition, Some(3));
    assert_eq!(file_system(&found.content).label.as_deref(), Some("root"));
    let range = |start: u64, end: u64| ByteRange::between(start << 20, end << 20);
    assert_eq!(found.source_range, Some(range(3, 4)));
    assert!(!counts.has_read(range(1, 3)), "{:?}", counts.read_ranges());
    assert!(!counts.has_read(range(4, 8)), "{:?}", counts.read_ranges());
    let names: Vec<&str> = found.chain.iter().map(Volume::name).collect();
    assert_eq!(names, ["counting", "partition:3"]);
}

#[test]
fn a_root_of_this_architecture_wins_over_others() {
    let ours = ROOT_TYPES
        .iter()
        .find(|(name, _)| *name == std::env::consts::ARCH);
    let other = ROOT_TYPES
        .iter()
        .find(|(name, _)| *name != std::env::consts::ARCH);
    let (ours, other) = (ours.expect("a known machine").1, other.unwrap().1);
    let script = format!(
        "label: gpt\nstart=2048, size=2048, type={other}\nstart=4096, size=2048, type={ours}\n"
    );
    let fs = ext4("r");
    let image = disk(&script, &[(1, &fs), (2, &fs)]);
    assert_eq!(resolve(&image, &mount()).unwrap().plan.partition, Some(2));

    let script =
        format!("label: gpt\nstart=2048, size=2048\nstart=4096, size=2048, type={other}\n");
    let image = disk(&script, &[(1, &fs), (2, &fs)]);
    assert_eq!(resolve(&image, &mount()).unwrap().plan.partition, Some(2));
}

#[test]
fn the_only_file_system_is_taken() {
    let script = "label: dos\n1 : start=2048, size=2048, type=82\n\
        2 : start=4096, size=8192, type=5\n5 : start=6144, size=2048\n";
    let image = disk(script, &[(1, &swap()), (3, &ext4("data"))]);
    let found = resolve(&image, &mount()).unwrap();
    assert_eq!(
        found.plan.to_string(),
        "disk.raw -> partition:5 -> ext4 \"data\""
    );
    assert_eq!(found.partitions[0].as_ref().unwrap().name, "swap");

    // What firmware boots from does not count beside another, but alone it does.
    let script = "label: gpt\nstart=2048, size=2048, type=U\nstart=4096, size=2048\n";
    let image = disk(script, &[(1, &vfat()), (2, &ext4("data"))]);
    assert_eq!(resolve(&image, &mount()).unwrap().plan.partition, Some(2));
    let image = disk(script, &[(1, &vfat())]);
    assert_eq!(resolve(&image, &mount()).unwrap().plan.partition, Some(1));
}

#[test]
fn of_several_the_one_that_looks_like_a_root_is_taken_or_the_choices_are_listed() {
    let image = disk(TWO, &[(1, &ext4("one")), (2, &ext4("two"))]);
    let with = |root: &dyn Fn(&Volume, &FsInfo) -> Option<bool>| {
        plan::resolve(
            Memory::volume(image.clone()),
            "disk.raw",
            &mount(),
            root,
            &cx(),
        )
    };
    let found = with(&|volume, info| {
        // The volume is the partition: ext4's magic is where it belongs.
        assert_eq!(volume.read_vec(1080, 2).unwrap(), [0x53, 0xef]);
        Some(info.label.as_deref() == Some("two"))
    });
    assert_eq!(found.unwrap().plan.partition, Some(2));
    for answer in [None, Some(false), Some(true)] {
        let error = with(&|_, _| answer).unwrap_err();
        assert_eq!(error.kind(), Kind::NotThisFormat);
        let report = error.report();
        assert_eq!(
            report.what,
            "partition: 2 partitions may be meant; there are 1 (1 MiB, Linux filesystem, \"a\", \
             ext4 \"one\"), 2 (1 MiB, Linux filesystem, ext4 \"two\")"
        );
        assert_eq!(report.hint.as_deref(), Some("choose one: -P N"));
    }
    let error = resolve(&disk(TWO, &[]), &mount()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no partition holds a file system"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_looked_into_is_the_root_when_nothing_else_can_be() {
    let image = disk(TWO, &[(1, &ext4("boot")), (2, &ext4("xfs"))]);
    let source = Memory::volume(image);
    let root = |_: &Volume, info: &FsInfo| (info.label.as_deref() == Some("boot")).then_some(false);
    let found = plan::resolve(source, "disk.raw", &mount(), &root, &cx()).unwrap();
    assert_eq!(found.plan.partition, Some(2));
    // FAT holds no root, and nobody has to look.
    let image = disk(TWO, &[(1, &vfat()), (2, &ext4("data"))]);
    assert_eq!(resolve(&image, &mount()).unwrap().plan.partition, Some(2));
}

#[test]
fn a_partition_is_found_by_every_name_it_has() {
    let script = "label: gpt\n\
        start=2048, size=2048, name=\"first\", uuid=11111111-2222-3333-4444-AAAAAAAAAAAA\n\
        start=4096, size=2048, name=\"7\"\n\
        start=6144, size=2048, name=\"sdz3\"\n";
    let (one, two, three) = (ext4("alpha"), vfat(), ext4("beta"));
    let image = disk(script, &[(1, &one), (2, &two), (3, &three)]);
    let table = resolve(&image, &request(&[], Pick::Disk, Purpose::Bytes)).unwrap();
    let uuid = |index: usize| table.partitions[index].clone().unwrap().uuid.unwrap();
    for (name, number) in [
        ("1".to_owned(), 1),
        ("first".to_owned(), 1),
        ("PARTLABEL=first".to_owned(), 1),
        ("11111111-2222-3333-4444-aaaaaaaaaaaa".to_owned(), 1),
        (
            "PARTUUID=11111111-2222-3333-4444-AAAAAAAAAAAA".to_owned(),
            1,
        ),
        ("alpha".to_owned(), 1),
        ("LABEL=alpha".to_owned(), 1),
        (format!("UUID={}", uuid(0)), 1),
        (uuid(0).to_uppercase(), 1),
        (uuid(1), 2),
        ("BOOT".to_owned(), 2),
        ("PARTLABEL=7".to_owned(), 2),
        ("/dev/sda2".to_owned(), 2),
        ("nvme0n1p3".to_owned(), 3),
        // A label comes before a device name.
        ("sdz3".to_owned(), 3),
        ("LABEL=beta".to_owned(), 3),
    ] {
        let found = resolve(&image, &part(&name));
        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found.plan.partition, Some(number), "{name}");
        assert_eq!(found.chain.len(), 2);
    }
    for name in [
        "4",
        "7",
        "0",
        "gamma",
        "FIRST",
        "/dev/sda4",
        "/dev/sda",
        "LABEL=first",
        "",
        "99999999999",
    ] {
        let error = resolve(&image, &part(name)).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfRange, "{name}: {error}");
    }
    let error = resolve(&image, &part("gamma")).unwrap_err().to_string();
    assert!(
        error.contains("no partition \"gamma\"; there are 1 (1 MiB"),
        "{error}"
    );
}

#[test]
fn a_name_that_means_two_partitions_is_refused() {
    let image = disk(TWO, &[(1, &ext4("same")), (2, &ext4("same"))]);
    let error = resolve(&image, &part("same")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("2 partitions are called \"same\""),
        "{error}"
    );
}

#[test]
fn the_whole_disk_is_reported_and_not_entered() {
    let image = disk(ROOTS, &[(1, &vfat()), (3, &ext4("root"))]);
    let found = resolve(&image, &request(&[], Pick::Disk, Purpose::Bytes)).unwrap();
    assert_eq!(found.content, Content::Disk);
    assert_eq!(found.volume.size(), image.len() as u64);
    assert_eq!(found.table.unwrap().partitions.len(), 3);
    let names: Vec<_> = found
        .partitions
        .iter()
        .map(|info| info.as_ref().map(|info| info.name.as_str()))
        .collect();
    assert_eq!(names, [Some("vfat"), None, Some("ext4")]);
}

#[test]
fn a_damaged_table_is_not_chosen_from_but_a_sound_partition_can_be_named() {
    let image = disk(TWO, &[(1, &ext4("one")), (2, &ext4("two"))]);
    // The second partition is beyond the end.
    let image = &image[..5 * MIB / 2];
    let error = resolve(image, &mount()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let report = error.report();
    assert!(
        report.what.contains("partition 2 ends at byte 3145728"),
        "{report}"
    );
    assert!(report.hint.unwrap().contains("-P N"));
    let found = resolve(image, &part("1")).unwrap();
    assert_eq!(file_system(&found.content).label.as_deref(), Some("one"));
    assert!(
        found.steps[0].notes[0].contains("it was cut off"),
        "{:?}",
        found.steps
    );
    assert_eq!(
        resolve(image, &part("2")).unwrap_err().kind(),
        Kind::Corrupt
    );
}

#[test]
fn what_is_no_file_system_is_no_mount_but_a_file() {
    // Two words of a header are enough to be called LUKS.
    let mut luks = noise(MIB, 5);
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    luks[168..208].fill(0);
    let luks = &luks;
    let image = disk(TWO, &[(1, &swap()), (2, luks)]);
    let bytes = |layers: &[&str], name: &str| {
        request(layers, Pick::Partition(name.to_owned()), Purpose::Bytes)
    };
    let error = resolve(&image, &part("1")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(
        error.to_string(),
        "disk.raw: the content of partition:1 is swap \"swapped\", which is no file system"
    );
    assert!(resolve(&image, &bytes(&[], "1")).is_ok());

    for request in [part("2"), bytes(&[], "2")] {
        let error = resolve(&image, &request).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("luks: the cipher "), "{error}");
    }
    let found = resolve(&image, &bytes(&["raw"], "2")).unwrap();
    assert!(conformance::read_all(&found.volume)[..MIB] == *luks);
}
