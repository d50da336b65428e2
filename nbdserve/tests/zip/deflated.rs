//! Files that are compressed as nearly all in zip archives are.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use nbdserve::layer::Args;
use nbdserve::layer::zip::ZIP;
use nbdserve::plan::{self, Pick, Purpose, Request};
use nbdserve::source::Memory;
use nbdserve::store::{Place, Store};
use nbdserve::testing::tools as foreign;
use nbdserve::testing::{Counting, conformance};
use nbdserve::{Cx, Index, Kind, Volume};

use crate::tools::{args, cx, first, last, noise, open, open_on, read_all, zip};

/// Something to compress: noise, text, zeroes.
fn content() -> Vec<u8> {
    let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    [noise(100_000, 1), text.into_bytes(), vec![0; 300_000]].concat()
}

/// An archive of these files, each of which is compressed.
fn deflated(files: &[(&str, &[u8])], how: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let names = files.iter().map(|(name, _)| *name);
    let how: Vec<_> = how
        .iter()
        .copied()
        .chain(["-q", "out.zip"])
        .chain(names)
        .collect();
    zip(dir.path(), &how)
}

#[test]
fn every_level_reads_back() {
    let content = content();
    for how in [&["-1"][..], &["-9", "-X"], &["-6", "-fz"]] {
        let bytes = deflated(&[("text", b"text"), ("disk", &content)], how);
        assert!(bytes.len() < content.len());
        let volume = open(&bytes, "disk").unwrap();
        assert!(read_all(&volume) == content, "{how:?}");
        assert_eq!(volume.name(), "zip:disk");
    }
}

#[test]
fn from_a_pipe_to_a_pipe() {
    let content = content();
    let mut child = foreign::command("zip")
        .args(["-q", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        let content = &content;
        scope.spawn(move || stdin.write_all(content).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    assert_eq!(output.stdout[6] & 8, 8, "no data descriptor");
    assert!(read_all(&open(&output.stdout, "-").unwrap()) == content);
}

#[test]
fn compressed_files_conform() {
    let content = &content()[50_000..350_000];
    let bytes = deflated(&[("other", b"x"), ("disk", content)], &["-6"]);
    conformance::check(|| (open(&bytes, "disk").unwrap(), content.to_vec()));
    let open = |below: &Volume| (ZIP.open)(below, &args("name", "disk"), &Cx::new(16 << 20));
    conformance::check_errors("zip:disk", &bytes, open);
}

#[test]
fn what_a_jump_costs_is_told_of_compressed_files() {
    let content = content();
    let bytes = deflated(&[("disk", &content)], &["-6"]);
    let cost = open(&bytes, "disk").unwrap().cost().unwrap();
    assert!(cost.index != Index::InImage, "{cost:?}");
    let stored = deflated(&[("disk", &content)], &["-0"]);
    assert_eq!(open(&stored, "disk").unwrap().cost(), None);
}

/// Opens and reads; how that ends.
fn kind(bytes: &[u8]) -> Option<Kind> {
    let read = || {
        let volume = open(bytes, "disk")?;
        volume.read_vec(0, volume.size() as usize)
    };
    read().err().map(|error: nbdserve::Error| error.kind())
}

#[test]
fn damage_and_lies_are_corrupt() {
    let content = content();
    let whole = deflated(&[("disk", &content)], &["-X"]);
    let central = last(&whole, b"PK\x01\x02");
    assert_eq!(kind(&whole), None);
    // Both headers say the same, and it is not true.
    for (local, directory) in [(14, 16), (22, 24)] {
        let mut bytes = whole.clone();
        bytes[local] ^= 1;
        bytes[central + directory] ^= 1;
        assert_eq!(kind(&bytes), Some(Kind::Corrupt), "{local}");
    }
    for size in [0, 1, 0xffff_fffe_u32] {
        let mut bytes = whole.clone();
        for at in [22, central + 24] {
            bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
        }
        assert_eq!(kind(&bytes), Some(Kind::Corrupt), "{size}");
    }
    let compressed = u32::from_le_bytes(whole[18..22].try_into().unwrap());
    for less in [1, 1000, compressed] {
        let mut bytes = whole.clone();
        for at in [18, central + 20] {
            bytes[at..at + 4].copy_from_slice(&(compressed - less).to_le_bytes());
        }
        assert_eq!(kind(&bytes), Some(Kind::Corrupt), "{less}");
    }
    for at in [40, 5000, 100_000] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        assert_eq!(kind(&bytes), Some(Kind::Corrupt), "{at}");
    }
}

#[test]
fn a_look_decodes_no_more_than_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    fs::File::create(&disk).unwrap().set_len(256 << 10).unwrap();
    foreign::run("mkfs.ext4", ["-q", "-F", disk.to_str().unwrap()]);
    let (big, disk) = (noise(3 << 20, 1), fs::read(&disk).unwrap());
    let bytes = deflated(
        &[("big", &big), ("disk.img", &disk), ("text", b"text")],
        &["-1"],
    );
    let request = Request {
        layers: Vec::new(),
        pick: Pick::Auto,
        purpose: Purpose::FileSystem,
        ..Request::default()
    };
    let (source, counts) = Counting::volume(Memory::volume(bytes));
    let found = plan::resolve(source, "image", &request, &|_, _| None, &cx()).unwrap();
    assert_eq!(found.plan.layers[0].to_string(), "zip:disk.img");
    assert!(read_all(&found.volume) == disk);
    assert!(counts.read_bytes() < 1 << 20, "{}", counts.read_bytes());
}

#[test]
fn what_is_kept_is_kept_for_the_data_not_for_the_name() {
    // More than one checkpoint's distance, so that there is an index to keep.
    let one = [noise(100_000, 1), vec![0; 6 << 20]].concat();
    let two = [noise(100_000, 2), vec![0; 6 << 20]].concat();
    let mut bytes = deflated(&[("aaaa", &one), ("bbbb", &two)], &["-1", "-X"]);
    while let Some(at) = bytes.windows(4).position(|name| name == b"aaaa") {
        bytes[at..at + 4].copy_from_slice(b"bbbb");
    }
    assert!(first(&bytes, b"bbbb") == 30);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let cx = Cx {
        place: Some(Place::new(store, "it")),
        ..cx()
    };
    let below = Memory::volume(bytes);
    for _ in 0..2 {
        for (number, content) in [("2", &two), ("1", &one)] {
            let volume = (ZIP.open)(&below, &args("number", number), &cx).unwrap();
            assert!(read_all(&volume) == *content, "{number}");
            volume.close().unwrap();
        }
    }
    let volume = open_on(&below, &Args::new()).unwrap();
    assert!(read_all(&volume) == two);
}
