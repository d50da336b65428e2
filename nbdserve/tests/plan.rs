//! Which layers an image has, which partition is meant, and how that is told.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use nbdserve::plan::{
    self, Content, FsInfo, Info, LayerSpec, Pick, Plan, Purpose, Request, Resolved,
};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, StrictDisk, conformance, noise, tools};
use nbdserve::{Access, ByteRange, Cx, Kind, Result, Volume};
use proptest::prelude::*;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn cx() -> Cx {
    Cx::new(1 << 20)
}

fn request(layers: &[&str], pick: Pick, purpose: Purpose) -> Request {
    Request {
        layers: layers.iter().map(|layer| layer.parse().unwrap()).collect(),
        pick,
        purpose,
        ..Request::default()
    }
}

fn mount() -> Request {
    Request::default()
}

fn part(name: &str) -> Request {
    request(&[], Pick::Partition(name.to_owned()), Purpose::FileSystem)
}

fn resolve(image: &[u8], request: &Request) -> Result<Resolved> {
    let source = Memory::volume(image.to_vec());
    plan::resolve(source, "disk.raw", request, &|_, _| None, &cx())
}

/// A folder, and the path of a file of this size in it.
fn file_of(size: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::File::create(&path)
        .unwrap()
        .set_len(size as u64)
        .unwrap();
    (dir, path)
}

/// The bytes of a file of this size after a tool has made something of it.
fn made(size: usize, program: &str, args: &[&str]) -> Vec<u8> {
    let (_dir, path) = file_of(size);
    tools::run_command(tools::command(program).args(args).arg(&path));
    fs::read(&path).unwrap()
}

fn ext4(label: &str) -> Vec<u8> {
    made(MIB, "mkfs.ext4", &["-q", "-b", "1024", "-L", label])
}

fn vfat() -> Vec<u8> {
    made(MIB, "mkfs.vfat", &["-F", "12", "-n", "BOOT"])
}

fn swap() -> Vec<u8> {
    made(MIB, "mkswap", &["-q", "-L", "swapped"])
}

/// A disk that sfdisk has partitioned by `script`, with `contents` from these MiB on.
fn disk(script: &str, contents: &[(usize, &[u8])]) -> Vec<u8> {
    let (_dir, path) = file_of(8 * MIB);
    let mut command = tools::command("sfdisk");
    command
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(&path);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut &stdin, script.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let mut bytes = fs::read(&path).unwrap();
    for (at, content) in contents {
        bytes[at * MIB..][..content.len()].copy_from_slice(content);
    }
    bytes
}

fn file_system(content: &Content) -> &FsInfo {
    match content {
        Content::FileSystem(info) => info,
        other => panic!("{other:?}"),
    }
}

// Which partition.

const ROOTS: &str = "label: gpt\n\
    start=2048, size=2048, type=U, name=\"esp\", uuid=11111111-0000-0000-0000-000000000001\n\
    start=4096, size=2048, name=\"boot\"\n\
    start=6144, size=2048, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=\"system\"\n";

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

const TWO: &str = "label: gpt\nstart=2048, size=2048, name=\"a\"\nstart=4096, size=2048\n";

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

// Layers.

#[test]
fn no_two_layers_have_one_name() {
    let mut names: Vec<_> = nbdserve::layer::LAYERS.iter().map(|one| one.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
}

/// An ISO image with an MBR in its first sector, as isohybrid(1) makes.
fn isohybrid() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), noise(MIB, 1)).unwrap();
    let image = dir.path().join("image");
    let args = ["-quiet", "-V", "HYBRID", "-o"];
    tools::run_command(
        tools::command("genisoimage")
            .args(args)
            .arg(&image)
            .arg(&tree),
    );
    let mut bytes = fs::read(&image).unwrap();
    let sectors = (bytes.len() / 512) as u32;
    bytes[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes[454..458].copy_from_slice(&0_u32.to_le_bytes());
    bytes[458..462].copy_from_slice(&sectors.to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

/// The bytes as xz(1) compresses them.
fn xz(bytes: &[u8]) -> Vec<u8> {
    let (_dir, path) = file_of(0);
    fs::write(&path, bytes).unwrap();
    let mut command = tools::command("xz");
    let output = command.args(["-c", "-0"]).arg(&path).output().unwrap();
    assert!(output.status.success());
    output.stdout
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

// Plans.

#[test]
fn a_plan_survives_its_record_and_is_reopened_without_probing() {
    let image = disk(ROOTS, &[(3, &ext4("root"))]);
    let found = resolve(&image, &mount()).unwrap();
    let json = serde_json::to_string(&found.plan).unwrap();
    assert!(json.contains("\"layers\":[\"partition:3\"]"), "{json}");
    let plan: Plan = serde_json::from_str(&json).unwrap();
    assert_eq!(plan, found.plan);

    let (source, counts) = Counting::volume(Memory::volume(image));
    let opened = plan::reopen(source, &plan, &cx()).unwrap();
    assert_eq!(opened.source_range, found.source_range);
    assert_eq!(opened.chain.len(), 2);
    // Table and backup, nothing of what is in the partitions.
    let inside = ByteRange::between(MIB as u64, 7 << 20);
    assert!(!counts.has_read(inside), "{:?}", counts.read_ranges());
    let bytes = conformance::read_all(&found.volume);
    assert!(conformance::read_all(&opened.volume) == bytes);
}

#[test]
fn a_plan_with_an_unknown_layer_is_refused() {
    let json = r#"{"source":"x","layers":["rot13"],"partition":null,"content":"bytes"}"#;
    let error = serde_json::from_str::<Plan>(json).unwrap_err();
    assert!(
        error.to_string().contains("there is no layer \"rot13\""),
        "{error}"
    );
}

#[test]
fn layers_are_read_and_written() {
    for (text, canonical) in [
        ("raw", "raw"),
        ("partition:2", "partition:2"),
        ("partition:number=2", "partition:2"),
        ("partition:2,sector=4096", "partition:2,sector=4096"),
        ("partition:sector=4096,number=2", "partition:2,sector=4096"),
        ("partition:sector=4096", "partition:sector=4096"),
        ("offset:1M,size=2M", "offset:1M,size=2M"),
        ("offset", "offset"),
        ("offset:a,,b", "offset:a,,b"),
    ] {
        let spec: LayerSpec = text.parse().unwrap();
        assert_eq!(spec.to_string(), canonical);
        assert_eq!(canonical.parse::<LayerSpec>().unwrap(), spec);
    }
    for (text, message) in [
        ("", "no layer \"\""),
        ("gzip9", "no layer \"gzip9\""),
        ("raw:1", "takes no parameters"),
        ("raw:a=1", "no parameter \"a\""),
        ("partition:", "not of the form key=value"),
        ("partition:2,3", "\"3\" is not of the form"),
        ("partition:2,", "\"\" is not of the form"),
        ("partition:2,number=3", "given twice"),
        ("partition:name=2", "no parameter \"name\""),
        ("offset:\u{1b}=1", "\\u{1b}"),
    ] {
        let error = text.parse::<LayerSpec>().unwrap_err();
        assert!(error.to_string().contains(message), "{text}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_of_a_parameter_survives_writing_and_reading(value in any::<String>()) {
        let spec = LayerSpec::with_value("partition", &value).unwrap();
        let again: LayerSpec = spec.to_string().parse().unwrap();
        prop_assert_eq!(again, spec);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>(), name in "offset|partition|raw") {
        let _ = text.parse::<LayerSpec>();
        let _ = format!("{name}:{text}").parse::<LayerSpec>();
        let _ = nbdserve::size::parse_size(&text);
    }
}

// Information.

#[test]
fn information_is_aligned_text_and_json() {
    let script = "label: dos\nlabel-id: 0x1234abcd\n\
        1 : start=2048, size=2048, type=82\n2 : start=4096, size=2048, bootable\n";
    let mut image = disk(script, &[(1, &swap()), (2, &ext4("data"))]);
    // Not to depend on the moment: the UUIDs.
    image[MIB + 1036..][..16].fill(0x11);
    image[2 * MIB + 1024 + 104..][..16].fill(0x22);
    let found = resolve(&image, &part("2")).unwrap();
    let info = Info::new(&found);
    let expected = "\
disk.raw
  memory       8 MiB  random access
  partition:2  1 MiB  random access  MBR signature 55 aa at 510 and 2 entries that make sense
MBR, disk 1234abcd, sectors of 512 bytes
      start    size   type                  name  content      uuid
  1   1048576  1 MiB  Linux swap / Solaris                     1234abcd-01
  2*  2097152  1 MiB  Linux                       ext4 \"data\"  1234abcd-02
content: ext4 \"data\", UUID 22222222-2222-2222-2222-222222222222 (magic 53 ef at 1080)
";
    assert_eq!(info.to_string(), expected);

    let found = resolve(&image, &request(&[], Pick::Disk, Purpose::Bytes)).unwrap();
    let info = Info::new(&found);
    let text = info.to_string();
    assert!(text.contains("swap \"swapped\"  1234abcd-01\n"), "{text}");
    assert!(text.ends_with("content: whole disk\n"), "{text}");
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["table"]["scheme"], "mbr");
    assert_eq!(json["layers"][0]["access"], "random");
    assert_eq!(json["partitions"][1]["number"], 2);
    assert_eq!(json["partitions"][1]["start"], 2 * MIB);
    assert_eq!(json["partitions"][1]["content"]["name"], "ext4");
    assert_eq!(json["partitions"][1]["attributes"], 1);
    assert_eq!(json["content"], "disk");
}

#[test]
fn labels_can_be_read_in_one_way_only() {
    // The name of a partition may be anything, that of an ext4 has 16 bytes.
    let script = "label: gpt\nstart=2048, size=2048, name=\"two  blanks\"\nstart=4096, size=2048\n";
    let mut fs = ext4("x");
    fs[1024 + 120..][..13].copy_from_slice(b"my \"label\"\\\nx");
    let image = disk(script, &[(1, &fs), (2, &fs)]);
    let found = resolve(&image, &part("1")).unwrap();
    let label = r#"ext4 "my \"label\"\\\nx""#;
    assert!(found.plan.to_string().ends_with(label), "{}", found.plan);
    let text = Info::new(&found).to_string();
    assert!(text.contains(&format!("  {label}  ")), "{text}");
    assert!(text.contains(r#"  "two  blanks"  "#), "{text}");
    assert!(text.contains(&format!("content: {label}, UUID")), "{text}");
    // And in the list of a message.
    let error = resolve(&image, &part("nothing \"such\"")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(r#""nothing \"such\"""#), "{text}");
    assert!(
        text.contains(&format!(r#""two  blanks", {label}"#)),
        "{text}"
    );
}

#[test]
fn names_from_the_image_cannot_paint_the_terminal() {
    let mut fs = ext4("x");
    fs[1024 + 120..][..8].copy_from_slice(b"\x1b[31mred");
    let image = disk(TWO, &[(1, &fs), (2, &fs)]);
    let found = resolve(&image, &request(&[], Pick::Disk, Purpose::Bytes)).unwrap();
    let text = Info::new(&found).to_string();
    assert!(
        text.contains("\\u{1b}[31mred") && !text.contains('\u{1b}'),
        "{text}"
    );
    let error = resolve(&image, &mount()).unwrap_err().report().to_string();
    assert!(
        error.contains("\\u{1b}[31mred") && !error.contains('\u{1b}'),
        "{error}"
    );
    let found = resolve(&image, &part("1")).unwrap();
    assert!(!found.plan.to_string().contains('\u{1b}'));
}
