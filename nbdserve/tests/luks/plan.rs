//! LUKS among the other layers: how it is found, which partition is meant, what is kept.

use std::fs;
use std::sync::Arc;

use nbdserve::layer::luks::LUKS;
use nbdserve::layer::{Confidence, Sample, Verdict};
use nbdserve::plan::{self, FsInfo, Request};
use nbdserve::source::Memory;
use nbdserve::store::{Place, Store};
use nbdserve::testing::{conformance, tools};
use nbdserve::{Cx, Kind, Result, Volume};

use crate::images::{Dir, PASS, cx, open, open_with};

const MIB: usize = 1 << 20;

fn probe(bytes: &[u8]) -> Option<(Confidence, String)> {
    let head = &bytes[..bytes.len().min(Sample::HEAD)];
    let sample = Sample {
        head,
        tail: None,
        size: bytes.len() as u64,
    };
    match (LUKS.probe)(&sample) {
        Verdict::Yes {
            confidence,
            evidence,
        } => Some((confidence, evidence)),
        Verdict::No => None,
    }
}

#[test]
fn it_is_recognised_with_all_that_can_be_told_without_a_key() {
    let dir = Dir::new();
    let magic = "magic 4c 55 4b 53 ba be at 0";
    let one = dir.luks1(
        MIB,
        &[
            "--cipher=aes-cbc-essiv:sha256",
            "--key-size=256",
            "--hash=sha1",
        ],
    );
    let text = format!("{magic}, aes-cbc-essiv:sha256, key of 256 bits, keyslot 0 (pbkdf2-sha1)");
    assert_eq!(probe(&one), Some((Confidence::MAGIC, text)));
    let argon2 = crate::images::argon2("argon2id");
    let argon2: Vec<_> = argon2.iter().map(String::as_str).collect();
    dir.luks2(MIB, &[&argon2, &["--sector-size=4096"][..]].concat());
    dir.add_key(b"more", &["--hash=sha512"]);
    let two = dir.read("image");
    let text = format!(
        "{magic}, checksum matches, aes-xts-plain64, key of 512 bits, sectors of 4096 bytes, \
         keyslots 0 (argon2id 64 KiB), 1 (pbkdf2-sha512)"
    );
    assert_eq!(probe(&two), Some((Confidence::CHECKED, text)));

    // Only the second header is left.
    let mut second = two.clone();
    second[..4096].fill(0);
    let (confidence, evidence) = probe(&second).unwrap();
    assert_eq!(confidence, Confidence::WEAK);
    assert!(
        evidence.starts_with("second header at 16384, "),
        "{evidence}"
    );
    second[20_000] ^= 1;
    assert_eq!(probe(&second), None);

    // Longer than what is looked at.
    let large = [
        "--luks2-metadata-size=1m",
        "--luks2-keyslots-size=1048576",
        "--offset=8192",
    ];
    let large = dir.luks2(3 * MIB, &large);
    let text = format!("{magic}, a header of 1 MiB");
    assert_eq!(probe(&large), Some((Confidence::MAGIC, text)));
    assert_eq!(open(&large, PASS).unwrap().size(), MIB as u64);

    assert_eq!(probe(&one[1..]), None);
    assert_eq!(probe(b""), None);
    assert_eq!(probe(b"LUKS\xba"), None);
    for len in 6..600 {
        assert!(probe(&one[..len]).is_some());
        assert!(probe(&two[..len]).is_some());
    }
}

/// What is made over an image of LUKS2 is found, though its second header is still there.
#[test]
fn a_second_header_is_weaker_than_what_was_made_later() {
    let dir = Dir::new();
    let image = dir.luks2(14 * MIB, &[]);
    for (program, args) in [("mkfs.ext4", &["-q", "-F"][..]), ("mkfs.vfat", &[])] {
        let path = dir.write("made", &image);
        tools::run_command(tools::command(program).args(args).arg(&path));
        let mut bytes = dir.read("made");
        // As a tool does that leaves what it does not need.
        bytes[0x4000..0x8000].copy_from_slice(&image[0x4000..0x8000]);
        let found = resolve(&bytes, &|_, _| None, &cx(PASS)).unwrap();
        assert!(found.plan.layers.is_empty(), "{}", found.plan);
    }
}

fn resolve(image: &[u8], root: plan::LooksLikeRoot<'_>, cx: &Cx) -> Result<plan::Resolved> {
    let source = Memory::volume(image.to_vec());
    plan::resolve(source, "disk.raw", &Request::default(), root, cx)
}

fn made(dir: &Dir, len: usize, program: &str, args: &[&str]) -> Vec<u8> {
    let path = dir.write("made", &vec![0; len]);
    tools::run_command(tools::command(program).args(args).arg(path));
    dir.read("made")
}

/// An encrypted ext4.
fn encrypted(dir: &Dir) -> Vec<u8> {
    let inner = made(dir, MIB, "mkfs.ext4", &["-q", "-F", "-L", "inner"]);
    let below = Memory::volume(dir.luks2(MIB, &["--sector-size=512"]));
    let volume = open_with(&below, &[], &cx(PASS)).unwrap();
    volume.writer().unwrap().write_at(&inner, 0, true).unwrap();
    conformance::read_all(&below)
}

/// A disk with these partitions of 4 MiB, from 1 MiB on.
fn disk(dir: &Dir, kinds: &[&str], contents: &[&[u8]]) -> Vec<u8> {
    let mut script = "label: gpt\n".to_owned();
    for (index, kind) in kinds.iter().enumerate() {
        script += &format!("start={}, size=8192{kind}\n", 2048 + 8192 * index);
    }
    let len = (kinds.len() * 4 + 2) * MIB;
    let path = dir.write("disk", &vec![0; len]);
    let lines = dir.write("script", script.as_bytes());
    let mut command = tools::command("sfdisk");
    command
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(path);
    tools::run_command(command.stdin(fs::File::open(lines).unwrap()));
    let mut disk = dir.read("disk");
    for (index, content) in contents.iter().enumerate() {
        let at = MIB + 4 * MIB * index;
        disk[at..at + content.len()].copy_from_slice(content);
    }
    disk
}

#[test]
fn probing_goes_on_into_it() {
    let dir = Dir::new();
    let image = encrypted(&dir);
    let found = resolve(&image, &|_, _| None, &cx(PASS)).unwrap();
    assert_eq!(found.plan.to_string(), "disk.raw -> luks -> ext4 \"inner\"");
    assert_eq!(found.source_range, None);
    let source = Memory::volume(image.clone());
    let again = plan::reopen(source, &found.plan, &cx(PASS)).unwrap();
    assert_eq!(again.volume.size(), MIB as u64);

    let error = resolve(&image, &|_, _| None, &Cx::new(1 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::Secret);
    assert!(
        error.report().to_string().contains("hint: --key-file"),
        "{error}"
    );
    assert!(!plan::looks_plain(&Memory::volume(image), &[]).unwrap());
}

#[test]
fn an_encrypted_partition_is_meant_when_nothing_beside_it_is_a_root() {
    let dir = Dir::new();
    let luks = encrypted(&dir);
    let vfat = made(&dir, MIB, "mkfs.vfat", &["-F", "12"]);
    let boot = made(&dir, MIB, "mkfs.ext4", &["-q", "-F", "-L", "boot"]);
    let root = made(&dir, MIB, "mkfs.ext4", &["-q", "-F", "-L", "root"]);
    let looks = |_: &Volume, info: &FsInfo| match info.label.as_deref() {
        Some("boot") => Some(false),
        Some("root") => Some(true),
        _ => None,
    };
    let chosen = |image: &[u8]| {
        let found = resolve(image, &looks, &cx(PASS));
        found.map(|found| found.plan.layers[0].to_string())
    };
    let efi = ", type=U";
    // As installers make it: firmware, boot, and all the rest encrypted.
    let image = disk(&dir, &[efi, "", ""], &[&vfat, &boot, &luks]);
    assert_eq!(chosen(&image).unwrap(), "partition:3");
    assert_eq!(
        chosen(&disk(&dir, &[efi, ""], &[&vfat, &luks])).unwrap(),
        "partition:2"
    );
    assert_eq!(
        chosen(&disk(&dir, &["", ""], &[&luks, &boot])).unwrap(),
        "partition:1"
    );
    // A root beside it, home say, is what is meant.
    let image = disk(&dir, &[efi, "", ""], &[&vfat, &root, &luks]);
    assert_eq!(chosen(&image).unwrap(), "partition:2");
    // Its type says that it is the root.
    let typed = ", type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
    let image = disk(&dir, &["", typed], &[&root, &luks]);
    assert_eq!(chosen(&image).unwrap(), "partition:2");
    // Two of them: the user must say which.
    let error = chosen(&disk(&dir, &["", ""], &[&luks, &luks])).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    assert!(
        error
            .to_string()
            .contains("2 (4 MiB, Linux filesystem, LUKS2)"),
        "{error}"
    );
}

#[test]
fn nothing_of_what_was_encrypted_is_kept_in_the_cache_on_disk() {
    let dir = Dir::new();
    // Something that is decoded from the front, and kept.
    let inner = tools::filter("gzip", &["-1"], &nbdserve::testing::disk_like(3 * MIB, 2));
    let kept = |image: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut cx = cx(PASS);
        cx.place = Some(Place::new(Arc::clone(&store), "this file"));
        let request = Request {
            purpose: plan::Purpose::Bytes,
            ..Request::default()
        };
        let source = Memory::volume(image.to_vec());
        let found = plan::resolve(source, "x", &request, &|_, _| None, &cx).unwrap();
        let names: Vec<_> = found
            .chain
            .iter()
            .map(|volume| volume.name().to_owned())
            .collect();
        assert_eq!(names.last().unwrap(), "gzip");
        let _ = conformance::read_all(&found.volume);
        found.volume.close().unwrap();
        drop(found);
        files(folder.path())
    };
    assert!(kept(&inner) > 0);
    let mut padded = inner;
    padded.resize(padded.len().next_multiple_of(512), 0);
    let inner = padded;
    let below = Memory::volume(dir.luks2(inner.len(), &["--sector-size=512"]));
    let volume = open_with(&below, &[], &cx(PASS)).unwrap();
    volume.writer().unwrap().write_at(&inner, 0, true).unwrap();
    assert_eq!(kept(&conformance::read_all(&below)), 0);
}

/// Files with something in them, in a folder and below.
fn files(path: &std::path::Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            count += files(&entry.path());
        } else if meta.len() > 0 && entry.file_name() != "lock" {
            println!("{}", entry.path().display());
            count += 1;
        }
    }
    count
}
