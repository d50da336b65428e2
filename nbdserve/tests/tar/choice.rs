//! Which file is taken, and how the plan names it.

use std::fs;

use nbdserve::plan::{self, Content, Info};
use nbdserve::source::Memory;
use nbdserve::testing::Counting;
use nbdserve::testing::tools as foreign;
use nbdserve::{Cx, Error, Kind, Volume};

use crate::forge::{Header, end, file, padded};
use crate::tools::{cx, ext4, noise, open, read_all, resolve, tar};

/// What a message says, and what it advises.
fn texts(error: &Error) -> (String, String) {
    let report = error.report();
    (report.what, report.hint.unwrap_or_default())
}

fn image(bytes: &[u8]) -> Volume {
    Memory::volume(bytes.to_vec())
}

#[test]
fn the_only_image_is_taken_and_the_plan_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = ext4(dir, "disk.img", 256);
    fs::write(dir.join("README"), "text").unwrap();
    fs::write(dir.join("blank"), vec![0; 300_000]).unwrap();
    let bytes = tar(dir, &["./README", "./blank", "./disk.img"]);
    let found = resolve(image(&bytes), &[], &cx()).unwrap();
    assert!(read_all(&found.volume) == disk);
    assert_eq!(
        found.plan.to_string(),
        "image -> tar:disk.img -> ext4 \"label\""
    );
    assert!(matches!(found.content, Content::FileSystem(_)));
    let shown = Info::new(&found).to_string();
    assert!(shown.contains("tar:disk.img"), "{shown}");
    let note = "note: the only one of 3 files that is an image: ext4 \"label\"";
    assert!(shown.contains(note), "{shown}");
    // Where it lies, so that the kernel can do without us.
    let range = found.source_range.unwrap();
    let (start, end) = (range.start() as usize, range.end() as usize);
    assert!(bytes[start..end] == disk);

    // Followed without a look at any file.
    let (source, counts) = Counting::volume(image(&bytes));
    let opened = plan::reopen(source, &found.plan, &cx()).unwrap();
    assert!(counts.read_bytes() < 40_000, "{:?}", counts.read_ranges());
    assert_eq!(opened.source_range, Some(range));
    assert!(read_all(&opened.volume) == disk);
}

#[test]
fn the_only_file_is_taken_whatever_it_is() {
    let bytes = [
        Header::new(b'5', "folder/", 0).done(),
        file("folder/blank", &[1; 5000]),
        file("folder/._blank", b"attributes of a Mac"),
        file("empty", b""),
        Header::new(b'2', "link", 0).link("folder/blank").done(),
        end(),
    ]
    .concat();
    let (source, counts) = Counting::volume(image(&bytes));
    let found = resolve(source, &[], &cx()).unwrap();
    assert_eq!(found.plan.layers[0].to_string(), "tar:folder/blank");
    assert_eq!(found.content, Content::Bytes);
    assert!(counts.reads() < 10);
}

#[test]
fn several_images_are_listed_with_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(dir, "a.img", 256);
    let b = ext4(dir, "b\u{1b}.img", 300);
    fs::write(dir.join("text"), "text").unwrap();
    let bytes = tar(dir, &["a.img", "b\u{1b}.img", "text"]);
    let error = resolve(image(&bytes), &[], &cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    let (what, hint) = texts(&error);
    let expected = "tar: 2 files in it may be meant; there are a.img (256 KiB, ext4 \"label\"), \
                    \"b\\u{1b}.img\" (300 KiB, ext4 \"label\")";
    assert_eq!(what, expected);
    assert_eq!(hint, "choose one: --layer tar:NAME");
    // As it says; and the plan names by number what cannot be typed.
    for spec in [
        "tar:b*",
        "tar:?\u{1b}.img",
        "tar:b\u{1b}.img",
        "tar:number=2",
    ] {
        let found = resolve(image(&bytes), &[spec], &cx()).unwrap();
        assert!(read_all(&found.volume) == b, "{spec}");
        assert_eq!(found.plan.layers[0].to_string(), "tar:number=2");
        let again = plan::reopen(image(&bytes), &found.plan, &cx()).unwrap();
        assert!(read_all(&again.volume) == b);
    }
    for (spec, what) in [
        (
            "tar:*.img",
            "tar: several files match \"*.img\"; there are a.img (256 KiB), \"b\\u{1b}.img\" (300 KiB)",
        ),
        (
            "tar:c",
            "tar: there is no file \"c\" in it; there are a.img (256 KiB), \"b\\u{1b}.img\" (300 KiB), text (4 B)",
        ),
        (
            "tar:A.img",
            "tar: there is no file \"A.img\" in it; there are a.img (256 KiB), \"b\\u{1b}.img\" (300 KiB), text (4 B)",
        ),
        ("tar:number=4", "tar: entry 4 is no file in it"),
        ("tar:number=0", "tar: entry 0 is no file in it"),
        ("tar:number=x", "tar: entry x is no file in it"),
        ("tar:text,number=3", "tar: both name and number are given"),
    ] {
        let error = resolve(image(&bytes), &[spec], &cx()).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfRange, "{spec}");
        assert_eq!(texts(&error).0, what, "{spec}");
    }
}

#[test]
fn the_hint_names_the_layers_around_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(dir, "a.img", 256);
    ext4(dir, "b.img", 256);
    tar(dir, &["a.img", "b.img"]);
    foreign::run("xz", ["-0", dir.join("out.tar").to_str().unwrap()]);
    let bytes = fs::read(dir.join("out.tar.xz")).unwrap();
    let error = resolve(image(&bytes), &[], &cx()).unwrap_err();
    assert_eq!(texts(&error).1, "choose one: --layer xz --layer tar:NAME");
    let found = resolve(image(&bytes), &["xz", "tar:b.img"], &cx()).unwrap();
    assert_eq!(
        found.plan.to_string(),
        "image -> xz -> tar:b.img -> ext4 \"label\""
    );
    // What is decoded is no part of the source.
    assert_eq!(found.source_range, None);
}

#[test]
fn none_that_is_known_is_an_error_with_a_list() {
    let bytes = [file("a", &[1; 5000]), file("b", &[2; 600]), end()].concat();
    let error = resolve(image(&bytes), &[], &cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    let what =
        "tar: none of its 2 files is an image that we know; there are a (4.8 KiB), b (600 B)";
    assert_eq!(texts(&error).0, what);
    let nothing = [Header::new(b'5', "folder", 0).done(), end()].concat();
    let error = resolve(image(&nothing), &[], &cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    assert_eq!(
        texts(&error).0,
        "tar: there is no file in it that could be an image"
    );
}

#[test]
fn names_are_looked_up_and_nothing_else() {
    let names = [
        "../../etc/passwd",
        "/etc/shadow",
        "a//b",
        "*",
        "[x]",
        "x=y,z",
        "-",
        " ",
    ];
    let mut bytes: Vec<u8> = names
        .iter()
        .flat_map(|name| file(name, name.as_bytes()))
        .collect();
    bytes.extend(end());
    for name in names {
        assert_eq!(read_all(&open(&bytes, name).unwrap()), name.as_bytes());
        let spec = plan::LayerSpec::with_value("tar", name).unwrap();
        let found = resolve(image(&bytes), &[&spec.to_string()], &cx()).unwrap();
        assert_eq!(found.plan.layers, [spec]);
    }
}

#[test]
fn names_that_are_no_text_have_numbers() {
    let mut raw = Header::new(b'0', "", 5);
    raw.put(0, b"disk\xff\xfe");
    let mut bytes = [raw.done(), padded(b"first")].concat();
    raw.put(0, b"disk\xfe\xff");
    bytes.extend([raw.done(), padded(b"other"), file("", b"empty"), end()].concat());
    let found = resolve(image(&bytes), &["tar:number=2"], &cx()).unwrap();
    assert_eq!(read_all(&found.volume), b"other");
    assert_eq!(found.plan.layers[0].to_string(), "tar:number=2");
    let error = resolve(image(&bytes), &["tar:disk??"], &cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
    let found = resolve(image(&bytes), &["tar:name="], &cx()).unwrap();
    assert_eq!(found.plan.layers[0].to_string(), "tar:number=3");
}

#[test]
fn of_many_files_the_largest_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "disk.img", 256);
    let mut bytes = Vec::new();
    for n in 0..300 {
        bytes.extend(file(&format!("f{n}"), &noise(400 + n, n as u64)));
    }
    bytes.extend(file("disk.img", &disk));
    bytes.extend(end());
    let found = resolve(image(&bytes), &[], &cx()).unwrap();
    assert_eq!(found.plan.layers[0].to_string(), "tar:disk.img");
    let error = resolve(image(&bytes), &["tar:f*"], &cx()).unwrap_err();
    let what = texts(&error).0;
    assert!(what.ends_with("f15 (415 B), ..."), "{what}");
}

#[test]
fn a_damaged_candidate_does_not_hide_a_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "disk.img", 256);
    let lie = crate::forge::pax(&[("GNU.sparse.size", "9000"), ("GNU.sparse.numblocks", "0")]);
    let bytes = [lie, file("bad", b"content"), file("disk.img", &disk), end()].concat();
    let found = resolve(image(&bytes), &[], &cx()).unwrap();
    assert!(read_all(&found.volume) == disk);
    // But what cannot be read for other reasons is told.
    let (source, faults) = nbdserve::testing::Faulty::volume(image(&bytes));
    let before = {
        resolve(source.clone(), &[], &cx()).unwrap();
        faults.requests()
    };
    for nth in 0..before {
        faults.clear();
        faults.fail_nth(nth, Kind::Changed);
        let error = resolve(source.clone(), &[], &cx()).unwrap_err();
        assert_eq!(error.kind(), Kind::Changed, "{nth}");
    }
}

#[test]
fn a_tar_in_a_tar_and_a_cancelled_look() {
    let dir = tempfile::tempdir().unwrap();
    let disk = ext4(dir.path(), "disk.img", 256);
    let inner = [file("disk.img", &disk), end()].concat();
    let outer = [file("text", b"x"), file("inner.tar", &inner), end()].concat();
    let found = resolve(image(&outer), &[], &cx()).unwrap();
    assert_eq!(
        found.plan.to_string(),
        "image -> tar:inner.tar -> tar:disk.img -> ext4 \"label\""
    );
    assert_eq!(found.source_range.unwrap().len(), disk.len() as u64);
    let stopped = Cx::new(16 << 20);
    stopped.cancel.cancel();
    assert_eq!(
        resolve(image(&outer), &[], &stopped).unwrap_err().kind(),
        Kind::Io
    );
}

#[test]
fn why_a_file_was_taken_is_shown_beside_a_partition_table() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = dir.join("disk.raw");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    fs::write(
        dir.join("script"),
        "label: dos\nstart=1, size=100, type=83\n",
    )
    .unwrap();
    let mut command = foreign::command("sfdisk");
    command
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&disk);
    foreign::run_command(command.stdin(fs::File::open(dir.join("script")).unwrap()));
    let bytes = tar(dir, &["script", "disk.raw"]);
    let found = resolve(image(&bytes), &[], &cx()).unwrap();
    assert_eq!(found.content, Content::Disk);
    let shown = Info::new(&found).to_string();
    let note = "note: the only one of 2 files that is an image: a disk with partitions";
    assert!(shown.contains(note), "{shown}");
}
