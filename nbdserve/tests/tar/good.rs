//! Archives as tools make them.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use nbdserve::layer::Args;
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::Counting;
use nbdserve::testing::tools as foreign;
use nbdserve::{Kind, Volume};

use crate::forge::{self, Header, end, extra, file, pax};
use crate::tools::{archive, noise, open, open_on, open_only, read_all, tar};

/// Files with names of all lengths; what is in them.
fn tree(dir: &Path, longest: usize) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let parts = [
        "a".repeat(80),
        "b".repeat(70),
        "c".repeat(90),
        "d".repeat(99),
    ];
    let mut path = String::new();
    for (seed, part) in parts.iter().enumerate() {
        for size in [0, 1, 511, 512, 513, 70_000] {
            let name = format!("{path}f{size}");
            if name.len() > longest {
                break;
            }
            let bytes = noise(size, (seed + size) as u64);
            fs::create_dir_all(dir.join("top").join(&path)).unwrap();
            fs::write(dir.join("top").join(&name), &bytes).unwrap();
            files.push((format!("top/{name}"), bytes));
        }
        path += part;
        path += "/";
    }
    symlink("f1", dir.join("top/symbolic")).unwrap();
    // v7 has no such thing.
    if longest > 90 {
        foreign::run("mkfifo", [dir.join("top/fifo")]);
    }
    assert!(files.len() > 5);
    files
}

#[test]
fn every_format_of_both_tools_reads_back() {
    for (program, args, longest) in [
        ("tar", &["--format=v7"][..], 90),
        ("tar", &["--format=oldgnu"], 400),
        ("tar", &["--format=gnu"], 400),
        ("tar", &["--format=ustar"], 150),
        ("tar", &["--format=posix"], 400),
        ("tar", &["--format=posix", "--label=volume"], 400),
        ("bsdtar", &["--format=v7"], 90),
        ("bsdtar", &["--format=ustar"], 150),
        ("bsdtar", &["--format=pax"], 400),
        ("bsdtar", &["--format=gnutar"], 400),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let files = tree(dir.path(), longest);
        let args = [&["-cf", "out.tar"], args, &["./top"]].concat();
        let bytes = archive(dir.path(), program, &args);
        for (name, content) in &files {
            let volume = open(&bytes, name).unwrap();
            assert!(read_all(&volume) == *content, "{program} {args:?} {name}");
            let dotted = open(&bytes, &format!("./{name}")).unwrap();
            assert_eq!(dotted.size(), volume.size());
        }
        for name in ["top", "top/symbolic", "top/fifo", "top/nothing"] {
            let error = open(&bytes, name).unwrap_err();
            assert_eq!(error.kind(), Kind::OutOfRange, "{name}: {error}");
        }
    }
}

#[test]
fn the_last_of_a_name_wins_as_when_it_is_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("disk"), noise(3000, 1)).unwrap();
    fs::write(dir.join("other"), noise(100, 2)).unwrap();
    tar(dir, &["disk", "other"]);
    let newer = noise(4000, 3);
    fs::write(dir.join("disk"), &newer).unwrap();
    let bytes = archive(dir, "tar", &["-rf", "out.tar", "./disk"]);
    assert!(read_all(&open(&bytes, "disk").unwrap()) == newer);
    // The older one is there by its number only.
    let below = nbdserve::source::Memory::volume(bytes);
    let first = Args::from([("number".to_owned(), "1".to_owned())]);
    assert!(read_all(&open_on(&below, &first).unwrap()) == noise(3000, 1));
    fs::create_dir(dir.join("out")).unwrap();
    foreign::run_command(
        foreign::command("tar")
            .args(["-xf", "../out.tar"])
            .current_dir(dir.join("out")),
    );
    assert!(fs::read(dir.join("out/disk")).unwrap() == newer);
}

#[test]
fn hard_links_are_what_they_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = noise(5000, 1);
    fs::write(dir.join("disk"), &content).unwrap();
    fs::hard_link(dir.join("disk"), dir.join("second")).unwrap();
    fs::hard_link(dir.join("disk"), dir.join("third")).unwrap();
    for program in ["tar", "bsdtar"] {
        let args = ["-cf", "out.tar", "./disk", "second", "third"];
        let bytes = archive(dir, program, &args);
        for name in ["disk", "second", "./third"] {
            assert!(read_all(&open(&bytes, name).unwrap()) == content, "{name}");
        }
        // Three names, one file: there is no choice.
        assert!(read_all(&open_only(&bytes).unwrap()) == content);
    }
}

#[test]
fn links_to_links_to_themselves_and_to_nothing() {
    let link = |name, to| Header::new(b'1', name, 0).link(to).done();
    let bytes = [
        link("early", "disk"),
        file("disk", b"first"),
        link("a", "disk"),
        link("b", "a"),
        link("b", "b"),
        link("self", "self"),
        end(),
    ]
    .concat();
    for name in ["disk", "a", "b"] {
        assert_eq!(read_all(&open(&bytes, name).unwrap()), b"first", "{name}");
    }
    for name in ["early", "self"] {
        let error = open(&bytes, name).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(
            error.to_string().contains("which is not before it"),
            "{error}"
        );
    }
}

#[test]
fn bodies_are_skipped_however_long() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.tar");
    let mut out = fs::File::create(&path).unwrap();
    let big = 20_u64 << 30;
    // Base-256 by GNU, pax by the others, octal for what fits.
    out.write_all(&Header::gnu(b'0', "first", big).done())
        .unwrap();
    out.seek(SeekFrom::Current(big as i64)).unwrap();
    out.write_all(&pax(&[("size", &big.to_string())])).unwrap();
    out.write_all(&Header::new(b'0', "second", 0).done())
        .unwrap();
    out.seek(SeekFrom::Current(big as i64)).unwrap();
    out.write_all(&Header::new(b'0', "third", 5 << 30).done())
        .unwrap();
    out.seek(SeekFrom::Current(5 << 30)).unwrap();
    out.write_all(&file("last", b"last")).unwrap();
    out.write_all(&end()).unwrap();
    drop(out);
    let listed = foreign::run("tar", ["-tf", path.to_str().unwrap()]);
    assert_eq!(listed, "first\nsecond\nthird\nlast\n");

    let source = Volume::new(File::open(&path, OpenMode::ReadOnly).unwrap());
    let (below, counts) = Counting::volume(source);
    let args = crate::tools::named("last");
    let volume = open_on(&below, &args).unwrap();
    assert_eq!(read_all(&volume), b"last");
    assert!(counts.reads() <= 7, "{:?}", counts.read_ranges());
    assert!(counts.read_bytes() < 64 << 10);
    let second = open_on(&below, &crate::tools::named("second")).unwrap();
    assert_eq!(second.size(), big);
    // Its holes are known to be holes.
    let extents = second
        .extents(nbdserve::ByteRange::between(0, big))
        .unwrap();
    let holes = extents.runs().iter().filter(|run| run.flags.hole);
    let holes: u64 = holes.map(|run| run.range.len()).sum();
    assert!(holes > big - 10_000, "{holes}");
}

#[test]
fn small_bodies_are_read_in_order() {
    let mut bytes = Vec::new();
    for n in 0..3000 {
        bytes.extend(file(&format!("file-{n}"), &noise(700, n)));
    }
    bytes.extend(end());
    let size = bytes.len() as u64;
    let (below, counts) = Counting::volume(nbdserve::source::Memory::volume(bytes));
    let volume = open_on(&below, &crate::tools::named("file-2999")).unwrap();
    assert!(read_all(&volume) == noise(700, 2999));
    assert!(counts.reads() < 40, "{} requests", counts.reads());
    assert!(counts.read_bytes() < size + (1 << 20));
}

#[test]
fn extended_headers_are_obeyed() {
    let content = noise(600, 1);
    let long = "long/".repeat(60) + "name";
    let body = [
        Header::new(b'0', "short", 600).done(),
        forge::padded(&content),
    ]
    .concat();
    for (before, name) in [
        (extra(b'L', format!("{long}\0").as_bytes()), &*long),
        (pax(&[("path", &long)]), &long),
        // pax wins, whichever comes first.
        (
            [extra(b'L', b"no\0"), pax(&[("path", "yes")])].concat(),
            "yes",
        ),
        (
            [pax(&[("path", "yes")]), extra(b'L', b"no\0")].concat(),
            "yes",
        ),
        // For all that follow, unless said otherwise.
        (extra(b'g', &forge::records(&[("path", "all")])), "all"),
        (
            [
                extra(b'g', &forge::records(&[("path", "all")])),
                pax(&[("path", "one")]),
            ]
            .concat(),
            "one",
        ),
        (
            [
                extra(b'g', &forge::records(&[("path", "all")])),
                pax(&[("path", "")]),
            ]
            .concat(),
            "short",
        ),
        (
            extra(b'X', &forge::records(&[("path", "solaris")])),
            "solaris",
        ),
        (extra(b'K', b"a long link\0"), "short"),
    ] {
        let bytes = [before, body.clone(), end()].concat();
        let volume = open_only(&bytes).unwrap();
        assert!(read_all(&volume) == content, "{name}");
        assert_eq!(volume.name(), format!("tar:{name}"));
    }
    // A general size, too.
    let general = extra(b'g', &forge::records(&[("size", "600")]));
    let body = [Header::new(b'0', "x", 0).done(), forge::padded(&content)].concat();
    let bytes = [general, body.clone(), body, end()].concat();
    let volume = open(&bytes, "x").unwrap();
    assert!(read_all(&volume) == content);
}

#[test]
fn odd_but_valid_headers() {
    let content = noise(600, 1);
    let padded = forge::padded(&content);
    let open_with = |header: &Header, name: &str| {
        let bytes = [header.done(), padded.clone(), end()].concat();
        let volume = open_only(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read_all(&volume) == content, "{name}");
        assert_eq!(volume.name(), format!("tar:{name}"));
    };
    open_with(&Header::new(0, "nul", 600), "nul");
    open_with(&Header::new(b'7', "contiguous", 600), "contiguous");
    // POSIX: what is not known is a file.
    open_with(&Header::new(b'8', "unknown", 600), "unknown");
    let mut header = Header::new(b'0', "name", 600);
    open_with(header.put(345, b"prefix/of"), "prefix/of/name");
    // star's prefix is shorter; access times follow.
    let mut star = header.clone();
    star.put(345, &[b'p'; 131])
        .put(476, b"00000000000 ")
        .put(508, b"tar\0");
    open_with(&star, &format!("{}/name", "p".repeat(131)));
    // In GNU's there are times in the prefix's place.
    open_with(header.put(257, b"ustar  \0"), "name");
    let mut v7 = Header::new(b'0', "old", 600);
    open_with(v7.put(257, &[0; 8]).put(345, b"garbage"), "old");
    let mut blanks = Header::new(b'0', "blanks", 600);
    open_with(blanks.put(124, b"       1130 "), "blanks");
    let mut all = Header::new(b'0', "full", 600);
    all.put(0, &[b'n'; 100]);
    open_with(&all, &"n".repeat(100));
    // A sum of signed bytes.
    let mut signed = Header::new(b'0', "\u{e4}", 600).done();
    signed[148..156].fill(b' ');
    let sum: i64 = signed.iter().map(|byte| i64::from(*byte as i8)).sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let bytes = [signed, padded.clone(), end()].concat();
    assert!(read_all(&open_only(&bytes).unwrap()) == content);
}

#[test]
fn what_is_no_file_has_no_body_whatever_its_size_says() {
    for kind in *b"23456" {
        let bytes = [
            Header::new(kind, "special", 512).done(),
            file("disk", b"content"),
            end(),
        ]
        .concat();
        assert_eq!(read_all(&open_only(&bytes).unwrap()), b"content");
    }
    // The size of a hard link is that of its file.
    let bytes = [
        file("disk", b"content"),
        Header::new(b'1', "link", 7).link("disk").done(),
        file("after", b"more"),
        end(),
    ]
    .concat();
    assert_eq!(read_all(&open(&bytes, "link").unwrap()), b"content");
    assert_eq!(read_all(&open(&bytes, "after").unwrap()), b"more");
    // What others have invented is skipped.
    for kind in *b"ADEIMNVZ" {
        let other = [Header::new(kind, "other", 600).done(), noise(1024, 1)].concat();
        let bytes = [other, file("disk", b"content"), end()].concat();
        assert_eq!(read_all(&open_only(&bytes).unwrap()), b"content");
    }
}

#[test]
fn archives_end_as_tar_tolerates() {
    let body = file("disk", b"content");
    let good = [
        vec![],
        vec![0; 512],
        vec![0; 700],
        vec![0; 1024],
        vec![0; 10_240],
        // Behind the end there may be anything.
        [end(), noise(512, 1)].concat(),
    ];
    for end in good {
        let bytes = [body.clone(), end].concat();
        assert_eq!(read_all(&open_only(&bytes).unwrap()), b"content");
    }
    // The last body need not be filled up.
    let volume = open_only(&body[..519]).unwrap();
    assert_eq!(read_all(&volume), b"content");
}

#[test]
fn writes_go_through_to_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("disk"), noise(3000, 1)).unwrap();
    fs::write(dir.join("next"), noise(3000, 2)).unwrap();
    tar(dir, &["disk", "next"]);
    let path = dir.join("out.tar");
    let source = Volume::new(File::open(&path, OpenMode::Write).unwrap());
    let volume = open_on(&source, &crate::tools::named("disk")).unwrap();
    volume
        .writer()
        .unwrap()
        .write_at(b"written", 2993, true)
        .unwrap();
    drop((volume, source));
    let read = |name: &str| {
        let mut command = foreign::command("tar");
        let output = command
            .args(["-xOf", "out.tar", name])
            .current_dir(dir)
            .output();
        output.unwrap().stdout
    };
    let mut expected = noise(3000, 1);
    expected[2993..].copy_from_slice(b"written");
    assert!(read("disk") == expected);
    assert!(read("next") == noise(3000, 2));
}
