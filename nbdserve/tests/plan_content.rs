//! What a volume holds, compared with blkid.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::{Path, PathBuf};

use nbdserve::layer::Sample;
use nbdserve::plan::{self, Class, Content, FsInfo, Info, Pick, Purpose, Request, Resolved};
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::{noise, tools};
use nbdserve::{Cx, Kind, Result, Volume};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn cx() -> Cx {
    Cx::new(1 << 20)
}

/// The bytes as they are, without a layer taken off.
fn as_it_is() -> Request {
    Request {
        layers: vec!["raw".parse().unwrap()],
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        ..Request::default()
    }
}

fn open(path: &Path) -> Volume {
    Volume::new(File::open(path, OpenMode::ReadOnly).unwrap())
}

fn inspect(path: &Path) -> Result<Resolved> {
    plan::inspect(open(path), "image", &[], &cx())
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

/// What blkid says of a file: a value by its key.
fn blkid(path: &Path) -> impl Fn(&str) -> Option<String> {
    let mut command = tools::command("blkid");
    let text = tools::run_command(command.args(["-p", "-o", "export"]).arg(path));
    move |key| {
        let prefix = format!("{key}=");
        let mut values = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        values.next().map(|value| value.replace('\\', ""))
    }
}

/// Name here, detail here, size, and the command that makes it.
type Maker<'a> = (&'a str, Option<&'a str>, usize, &'a str, &'a [&'a str]);

const MAKERS: &[Maker<'_>] = &[
    ("ext2", None, 4 * MIB, "mkfs.ext2", &["-q", "-L", "lab el"]),
    ("ext3", None, 8 * MIB, "mkfs.ext3", &["-q"]),
    (
        "ext4",
        None,
        8 * MIB,
        "mkfs.ext4",
        &["-q", "-L", "sixteen-letters-"],
    ),
    (
        "xfs",
        None,
        320 * MIB,
        "mkfs.xfs",
        &["-q", "-L", "twelve-lettr"],
    ),
    (
        "btrfs",
        None,
        128 * MIB,
        "mkfs.btrfs",
        &["-q", "-L", "root"],
    ),
    ("f2fs", None, 64 * MIB, "mkfs.f2fs", &["-q", "-l", "lab"]),
    (
        "vfat",
        Some("FAT12"),
        MIB,
        "mkfs.vfat",
        &["-F", "12", "-n", "BOOT"],
    ),
    ("vfat", Some("FAT16"), 16 * MIB, "mkfs.vfat", &["-F", "16"]),
    (
        "vfat",
        Some("FAT32"),
        64 * MIB,
        "mkfs.vfat",
        &["-F", "32", "-n", "EFI SYS"],
    ),
    ("vfat", Some("FAT32"), MIB, "mkfs.vfat", &["-F", "32"]),
    (
        "vfat",
        Some("FAT16"),
        64 * MIB,
        "mkfs.vfat",
        &["-S", "4096", "-F", "16"],
    ),
    ("exfat", None, 8 * MIB, "mkfs.exfat", &["-L", "lab"]),
    (
        "ntfs",
        None,
        8 * MIB,
        "mkntfs",
        &["-q", "-F", "-s", "512", "-p", "0", "-H", "1", "-S", "1"],
    ),
    ("swap", None, MIB, "mkswap", &["-q", "-L", "swapped"]),
    ("swap", None, MIB, "mkswap", &["-q", "-p", "65536"]),
    ("udf", None, 8 * MIB, "mkudffs", &[]),
    (
        "luks",
        Some("LUKS1"),
        20 * MIB,
        "cryptsetup",
        &[
            "luksFormat",
            "-q",
            "--type",
            "luks1",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            "/proc/self/cmdline",
        ],
    ),
    (
        "luks",
        Some("LUKS2"),
        20 * MIB,
        "cryptsetup",
        &[
            "luksFormat",
            "-q",
            "--type",
            "luks2",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--label",
            "secret",
            "--key-file",
            "/proc/self/cmdline",
        ],
    ),
];

/// Compares what we say of a file with what blkid says.
fn compare_with_blkid(path: &Path, name: &str, detail: Option<&str>) {
    let theirs = blkid(path);
    let found = plan::resolve(open(path), "image", &as_it_is(), &|_, _| None, &cx()).unwrap();
    let (Content::FileSystem(info) | Content::Other(info)) = &found.content else {
        panic!("{name}: {:?}", found.content);
    };
    let kind = match name {
        "luks" => "crypto_LUKS",
        "lvm2" => "LVM2_member",
        other => other,
    };
    assert_eq!(theirs("TYPE").as_deref(), Some(kind));
    assert_eq!((info.name.as_str(), info.detail.as_deref()), (name, detail));
    if name == "vfat" {
        assert_eq!(theirs("VERSION").as_deref(), detail);
    }
    // These keep them where it takes more than a look.
    if !matches!(name, "udf") {
        assert_eq!(info.uuid, theirs("UUID"), "{name}");
    }
    if !matches!(name, "udf" | "ntfs" | "exfat") {
        assert_eq!(info.label, theirs("LABEL"), "{name}");
    }
}

#[test]
fn file_systems_are_what_blkid_says() {
    for (name, detail, size, program, args) in MAKERS {
        let (_dir, path) = file_of(*size);
        tools::run_command(tools::command(program).args(*args).arg(&path));
        compare_with_blkid(&path, name, *detail);
    }
}

/// Name, and the command that makes it over whatever is there.
const FORCED: [(&str, &str, &[&str]); 10] = [
    ("ext4", "mkfs.ext4", &["-q", "-F"]),
    ("xfs", "mkfs.xfs", &["-q", "-f"]),
    ("btrfs", "mkfs.btrfs", &["-q", "-f"]),
    ("f2fs", "mkfs.f2fs", &["-q", "-f"]),
    ("vfat", "mkfs.vfat", &["-F", "32"]),
    ("exfat", "mkfs.exfat", &["-L", "lab"]),
    (
        "ntfs",
        "mkntfs",
        &[
            "-q", "-F", "-Q", "-s", "512", "-p", "0", "-H", "1", "-S", "1",
        ],
    ),
    ("swap", "mkswap", &["-q", "-f"]),
    ("udf", "mkudffs", &[]),
    (
        "luks",
        "cryptsetup",
        &[
            "luksFormat",
            "-q",
            "--type",
            "luks1",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            "/proc/self/cmdline",
        ],
    ),
];

/// Checks that a file is taken for this, with all probes.
fn assert_is(path: &Path, name: &str, before: &str) {
    let source = open(path);
    let request = Request {
        purpose: Purpose::Bytes,
        ..as_it_is()
    };
    // LUKS is only named with `raw`; everything else must win over what else is probed.
    let layers = if name == "luks" {
        request.layers.clone()
    } else {
        Vec::new()
    };
    let request = Request { layers, ..request };
    let found = plan::resolve(source, "image", &request, &|_, _| None, &cx());
    match found.unwrap().content {
        Content::FileSystem(info) | Content::Other(info) => {
            assert_eq!(info.name, name, "made over {before}");
        }
        other => panic!("{name} made over {before}: {other:?}"),
    }
}

#[test]
fn what_was_made_last_is_found_whatever_was_there_before() {
    for (before, old, old_args) in FORCED {
        let (_dir, path) = file_of(320 * MIB);
        for (after, new, new_args) in FORCED {
            tools::run_command(tools::command(old).args(old_args).arg(&path));
            tools::run_command(tools::command(new).args(new_args).arg(&path));
            assert_is(&path, after, before);
        }
    }
}

#[test]
fn a_file_system_made_over_a_partition_table_wins() {
    for table in ["label: dos\n,\n", "label: gpt\n,\n"] {
        let (dir, path) = file_of(320 * MIB);
        let script = dir.path().join("script");
        fs::write(&script, table).unwrap();
        for (name, program, args) in FORCED {
            let mut sfdisk = tools::command("sfdisk");
            sfdisk
                .args(["-q", "--no-reread", "--no-tell-kernel"])
                .arg(&path);
            tools::run_command(sfdisk.stdin(fs::File::open(&script).unwrap()));
            tools::run_command(tools::command(program).args(args).arg(&path));
            assert_is(&path, name, table);
        }
    }
}

#[test]
fn file_systems_made_of_a_folder_are_what_blkid_says() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), noise(10_000, 1)).unwrap();
    let image = dir.path().join("image");
    let (tree, image_arg) = (tree.to_str().unwrap(), image.to_str().unwrap());
    let cases: [(&str, &str, &[&str]); 4] = [
        (
            "squashfs",
            "mksquashfs",
            &[tree, image_arg, "-quiet", "-no-progress"],
        ),
        ("erofs", "mkfs.erofs", &["--quiet", "-x-1", image_arg, tree]),
        (
            "iso9660",
            "genisoimage",
            &["-quiet", "-V", "MY DISC", "-o", image_arg, tree],
        ),
        (
            "udf",
            "genisoimage",
            &["-quiet", "-udf", "-o", image_arg, tree],
        ),
    ];
    for (name, program, args) in cases {
        let _ = fs::remove_file(&image);
        tools::run(program, args);
        compare_with_blkid(&image, name, None);
    }
}

#[test]
fn a_physical_volume_of_lvm_is_what_blkid_says() {
    let (_dir, path) = file_of(8 * MIB);
    let device = tools::run(
        "losetup",
        ["--find".as_ref(), "--show".as_ref(), path.as_os_str()],
    );
    let device = device.trim();
    let mut command = tools::command("pvcreate");
    let output = command.args(["-q", "-y", "-ff", device]).output();
    tools::run("losetup", ["-d", device]);
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    compare_with_blkid(&path, "lvm2", Some("LVM2 physical volume"));
}

/// Bytes, and where they are.
type Parts<'a> = &'a [(usize, &'a [u8])];

/// What is recognised in bytes that are zero but for these.
fn recognise(parts: Parts<'_>) -> Option<FsInfo> {
    let mut head = vec![0; Sample::HEAD];
    for (at, bytes) in parts {
        head[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    let sample = Sample {
        head: &head,
        tail: None,
        size: 1 << 30,
    };
    plan::fs::recognise(&sample).map(|(info, _)| info)
}

#[test]
fn formats_without_a_tool_here_are_known_by_their_specification() {
    let bcache = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
    let bcachefs = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
    let cases: [(&str, Class, Parts<'_>); 17] = [
        ("apfs", Class::FileSystem, &[(32, b"NXSB")]),
        ("hfsplus", Class::FileSystem, &[(1024, b"H+\0\x04")]),
        ("hfsplus", Class::FileSystem, &[(1024, b"HX\0\x05")]),
        (
            "hfs",
            Class::FileSystem,
            &[(1024, b"BD"), (1044, b"\0\0\x02\0")],
        ),
        ("refs", Class::FileSystem, &[(3, b"ReFS\0\0\0\0")]),
        ("bcachefs", Class::FileSystem, &[(4120, bcachefs)]),
        (
            "bcachefs",
            Class::FileSystem,
            &[(4112, &[13]), (4120, bcache)],
        ),
        ("bcache", Class::Member, &[(4120, bcache)]),
        (
            "md",
            Class::Member,
            &[(4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0")],
        ),
        ("md", Class::Member, &[(0, b"\xfc\x4e\x2b\xa9\x01\0\0\0")]),
        (
            "zfs",
            Class::Member,
            &[(16384, &[1, 1]), (16404, b"\0\0\0\x07version\0")],
        ),
        ("bitlocker", Class::Wrapper, &[(3, b"-FVE-FS-")]),
        ("jfs", Class::FileSystem, &[(32768, b"JFS1")]),
        ("reiserfs", Class::FileSystem, &[(65588, b"ReIsEr2Fs")]),
        ("nilfs2", Class::FileSystem, &[(1030, &[0x34, 0x34])]),
        (
            "cramfs",
            Class::FileSystem,
            &[(0, &[0x45, 0x3d, 0xcd, 0x28])],
        ),
        ("rar", Class::Wrapper, &[(0, b"Rar!\x1a\x07\x01\0")]),
    ];
    for (name, class, parts) in cases {
        let found = recognise(parts).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((found.name.as_str(), found.class), (name, class));
    }
    // The array is younger than the file system whose superblock it has left.
    let array: &[u8] = b"\xfc\x4e\x2b\xa9\x01\0\0\0";
    let old: &[u8] = b"\x53\xef";
    let parts = [(4096, array), (1080, old), (1028, &[1])];
    assert_eq!(recognise(&parts).unwrap().name, "md");
    assert_eq!(recognise(&parts[1..]).unwrap().name, "ext2");
    // A magic alone is too little for those that are short.
    for parts in [
        &[(1080, b"\x53\xef".as_slice())][..],
        &[(1024, b"H+")],
        &[(1024, b"BD")],
        &[(510, b"\x55\xaa")],
        &[(0, b"XFSB")],
        &[(32769, b"CD001")],
    ] {
        assert_eq!(recognise(parts), None);
    }
}

#[test]
fn a_file_system_that_was_cut_off_is_told_of() {
    let packed = tempfile::tempdir().unwrap();
    fs::write(packed.path().join("file"), vec![7; 100_000]).unwrap();
    let folder = packed.path().to_str().unwrap();
    for (name, size, program, args) in [
        ("ext2", 9 * MIB, "mkfs.ext2", &["-q"][..]),
        ("ext4", 9 * MIB, "mkfs.ext4", &["-q", "-O", "64bit"]),
        ("ext4", 9 * MIB, "mkfs.ext4", &["-q", "-b", "1024"]),
        ("xfs", 300 * MIB, "mkfs.xfs", &["-q"]),
        ("btrfs", 128 * MIB, "mkfs.btrfs", &["-q"]),
        ("squashfs", 0, "mksquashfs", &[folder]),
    ] {
        let (_dir, path) = file_of(size);
        let mut command = tools::command(program);
        match name {
            "squashfs" => command.args(args).arg(&path).args([
                "-noappend",
                "-quiet",
                "-nopad",
                "-noI",
                "-noD",
                "-noF",
            ]),
            _ => command.args(args).arg(&path),
        };
        tools::run_command(&mut command);
        let problem = || {
            let resolved = inspect(&path).unwrap();
            let info = Info::new(&resolved).to_string();
            let found = resolved.content.file_system().unwrap().problem.clone();
            assert_eq!(info.contains("cut off"), found.is_some(), "{info}");
            found
        };
        assert_eq!(problem(), None, "{name}");
        let file = fs::File::options().write(true).open(&path).unwrap();
        let stated = file.metadata().unwrap().len();
        for len in [stated - 1, stated / 2] {
            file.set_len(len).unwrap();
            let expected = format!("states a size of {stated} bytes, and {len} are there");
            assert_eq!(problem(), Some(expected), "{name}");
        }
    }
}

#[test]
fn nothing_that_is_changed_or_cut_off_makes_recognition_panic() {
    let mut samples: Vec<Vec<u8>> = Vec::new();
    for (_, _, size, program, args) in MAKERS {
        let (_dir, path) = file_of(*size);
        tools::run_command(tools::command(program).args(*args).arg(&path));
        samples.push(open(&path).read_vec(0, Sample::HEAD).unwrap());
    }
    let look = |head: &[u8]| {
        let sample = Sample {
            head,
            tail: Some(&head[head.len() - head.len().min(512)..]),
            size: head.len() as u64,
        };
        if let Some((info, _)) = plan::fs::recognise(&sample) {
            assert!(!info.to_string().contains('\u{1b}'));
        }
        for layer in nbdserve::layer::LAYERS {
            let _ = (layer.probe)(&sample);
        }
    };
    let places = [0..600, 1024..1400, 4080..4200, 32768..32900, 65536..65700];
    for sample in &mut samples {
        for at in places.iter().cloned().flatten() {
            let old = sample[at];
            for new in [0, 1, 0x1b, 0x7f, 0x80, 0xff] {
                sample[at] = new;
                look(sample);
            }
            sample[at] = old;
        }
        for len in places.iter().cloned().flatten() {
            look(&sample[..len]);
        }
    }
}

#[test]
fn formats_that_cannot_be_opened_yet_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let out = image.to_str().unwrap();
    let check = |name: &str| {
        let error = inspect(&image).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        let report = error.report();
        let text = format!("image is {name}, which this version cannot open yet");
        assert_eq!(report.what, text);
        let hint = report.hint.unwrap();
        let both = ["qemu-img convert", "--layer raw --fuse"];
        assert!(both.iter().all(|part| hint.contains(part)), "{hint}");
        // And as they are, as that says.
        let found = plan::resolve(open(&image), "image", &as_it_is(), &|_, _| None, &cx()).unwrap();
        assert_eq!(found.volume.size(), fs::metadata(&image).unwrap().len());
    };
    for (format, name) in [("qcow", "qcow"), ("qed", "qed"), ("parallels", "parallels")] {
        let _ = fs::remove_file(&image);
        tools::run("qemu-img", ["create", "-q", "-f", format, out, "4M"]);
        check(name);
    }
    // No tool here makes these.
    for (start, name) in [
        ("Bochs Virtual HD Image\0", "bochs"),
        ("#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    ] {
        let mut bytes = start.as_bytes().to_vec();
        bytes.resize(4096, 7);
        fs::write(&image, bytes).unwrap();
        check(name);
    }
}
