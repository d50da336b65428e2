//! Images that were cut into files, and Android sparse images: by the built program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::images::{self, sha256};
use common::sandbox::{EVERYBODY, with_small_disk};
use common::{Sandbox, Who, json, must, require_tool};

/// The carried disk, decoded, in a sandbox.
fn raw_disk(who: Who) -> (Sandbox, PathBuf) {
    let (sandbox, packed) = with_small_disk(who);
    let raw = sandbox.new_file("disk.raw", b"");
    must(
        Command::new("sh")
            .args(["-c", "xz -dc \"$0\" > \"$1\""])
            .args([&packed, &raw]),
    );
    (sandbox, raw)
}

/// Cuts `image` into parts of about `size` bytes, called `disk.img.001` and so on.
fn cut(sandbox: &Sandbox, image: &Path, size: usize) -> Vec<PathBuf> {
    let bytes = fs::read(image).unwrap();
    let parts = bytes.chunks(size).enumerate();
    parts
        .map(|(at, part)| sandbox.new_file(format!("disk.img.{:03}", at + 1), part))
        .collect()
}

#[test]
fn the_first_part_mounts_them_all_and_is_the_name_of_the_unit() {
    for who in EVERYBODY {
        let (sandbox, raw) = raw_disk(who);
        let size = fs::metadata(&raw).unwrap().len() as usize;
        let parts = cut(&sandbox, &raw, size / 3 + 12_345);
        assert_eq!(parts.len(), 3);
        let point = sandbox.mount(&[], &parts[0], "mnt");
        let hello = sandbox.read_text(point.join(images::HELLO));
        assert!(hello.starts_with("If you can read this"), "{hello}");

        let list = sandbox.loopmount().args(["--list", "--json"]).ok().out();
        json::has(&json::parse(&list), &[parts[0].to_str().unwrap()]);
        let record = fs::read_to_string(sandbox.units()[0].join("unit.json")).unwrap();
        assert!(record.contains("\"split:3\""), "{record}");
        // Only the first part names the unit.
        sandbox.loopmount().arg("-u").arg(&parts[1]).fails(3);
        sandbox.unmount(&parts[0]);
        sandbox.assert_clean();
    }
}

#[test]
fn info_tells_of_the_parts() {
    let (sandbox, raw) = raw_disk(Who::User);
    let parts = cut(&sandbox, &raw, 5 << 20);
    let out = sandbox.loopmount().arg("--info").arg(&parts[0]).ok().out();
    let count = parts.len();
    let told = format!("{count} parts, disk.img.001 to disk.img.{count:03}");
    assert!(out.contains(&told), "{out}");
    let alone = sandbox
        .loopmount()
        .args(["--info", "--layer=split:parts=1"])
        .arg(&parts[0])
        .ok();
    assert!(alone.out().contains("1 part, disk.img.001"));
}

#[test]
fn parts_may_be_forced_and_prevented() {
    let (sandbox, raw) = raw_disk(Who::User);
    let parts = cut(&sandbox, &raw, 5 << 20);
    let show = |args: &[&str]| {
        let target = sandbox.join("whole");
        sandbox
            .loopmount()
            .args(["--fuse"])
            .args(args)
            .arg(&parts[0])
            .arg(&target)
            .ok();
        let bytes = sandbox.read(&target);
        sandbox.unmount(&target);
        bytes
    };
    let whole = fs::read(&raw).unwrap();
    assert!(show(&[]) == whole);
    assert!(show(&["--layer=split", "--layer=raw"]) == whole);
    assert!(show(&["--layer=raw"]) == whole[..5 << 20]);
    assert!(show(&["--layer=split:2", "--layer=raw"]) == whole[..10 << 20]);
    sandbox
        .loopmount()
        .args(["--info", "--layer=split"])
        .arg(&raw)
        .fails(1)
        .says(&["name of a first part"]);
}

#[test]
fn a_compressed_image_in_parts_is_decoded() {
    for who in EVERYBODY {
        let (sandbox, packed) = with_small_disk(who);
        let size = fs::metadata(&packed).unwrap().len() as usize;
        let parts = cut(&sandbox, &packed, size / 4 + 1);
        let point = sandbox.mount(&[], &parts[0], "mnt");
        let hello = sandbox.read_text(point.join(images::HELLO));
        assert!(hello.starts_with("If you can read this"), "{hello}");
        sandbox.unmount(&point);
    }
}

#[test]
fn a_part_that_is_cut_short_or_named_alone_is_told_what_to_type() {
    let (sandbox, raw) = raw_disk(Who::User);
    let parts = cut(&sandbox, &raw, 5 << 20);
    let point = sandbox.new_dir("mnt");
    let first = parts[0].to_str().unwrap();
    let last = parts.last().unwrap();
    sandbox
        .loopmount()
        .args([last, &point])
        .fails(1)
        .says(&["nothing we know", "hint", first]);

    let bytes = fs::read(&parts[1]).unwrap();
    fs::write(&parts[1], &bytes[..bytes.len() - 1]).unwrap();
    sandbox
        .loopmount()
        .args([&parts[0], &point])
        .fails(1)
        .says(&["disk.img.002", "is not complete", "--layer split"]);
    sandbox
        .loopmount()
        .args(["--info", "--layer=split"])
        .arg(&parts[0])
        .ok();
}

#[test]
fn a_missing_or_a_locked_part_is_named() {
    let (sandbox, raw) = raw_disk(Who::User);
    let parts = cut(&sandbox, &raw, 5 << 20);
    let target = sandbox.new_dir("mnt");
    let second = sandbox.join("hidden");
    fs::rename(&parts[1], &second).unwrap();
    sandbox
        .loopmount()
        .args([&parts[0], &target])
        .fails(1)
        .says(&["disk.img.002 is missing", "disk.img.003 is there"]);
    fs::rename(&second, &parts[1]).unwrap();

    let whole = sandbox.join("whole");
    sandbox
        .loopmount()
        .args(["-w", "--fuse"])
        .args([&parts[0], &whole])
        .ok();
    sandbox
        .loopmount()
        .args(["-w", "--fuse"])
        .arg(&parts[2])
        .arg(sandbox.join("other"))
        .fails(1)
        .says(&["disk.img.003", "in use"]);
    sandbox.unmount(&whole);
}

#[test]
fn writes_reach_every_part() {
    for who in EVERYBODY {
        let (sandbox, raw) = raw_disk(who);
        let parts = cut(&sandbox, &raw, 5_000_001);
        let whole = sandbox.join("whole");
        sandbox
            .loopmount()
            .args(["-w", "--fuse"])
            .args([&parts[0], &whole])
            .ok();
        // Across the first border, and at the very end.
        let size = fs::metadata(&raw).unwrap().len();
        for at in [4_999_999, size - 4] {
            sandbox
                .tool("dd")
                .args(["conv=notrunc", "oflag=seek_bytes", "status=none", "bs=4"])
                .arg(format!("seek={at}"))
                .arg(format!("of={}", whole.display()))
                .stdin(*b"abcd")
                .ok();
        }
        sandbox.unmount(&whole);
        let mut expected = fs::read(&raw).unwrap();
        expected[4_999_999..5_000_003].copy_from_slice(b"abcd");
        let end = expected.len();
        expected[end - 4..].copy_from_slice(b"abcd");
        let found: Vec<u8> = parts
            .iter()
            .flat_map(|part| fs::read(part).unwrap())
            .collect();
        assert!(found == expected, "{who:?}");
    }
}

/// Who makes an image may own its folder too, and put a link where a part would be.
#[test]
fn a_part_that_is_a_link_to_a_file_of_root_is_refused_by_name() {
    let (sandbox, raw) = raw_disk(Who::Root);
    let bytes = fs::read(&raw).unwrap();
    let (outer, secret) = (sandbox.new_dir("private"), "private/shadow");
    let secret = sandbox.new_file(secret, vec![b'x'; bytes.len() - (5 << 20)]);
    let own = sandbox.new_dir("own");
    let first = sandbox.new_file("own/disk.img.001", &bytes[..5 << 20]);
    let second = own.join("disk.img.002");
    symlink(&secret, &second).unwrap();
    let target = sandbox.join("shown");
    let reference = format!("--references {}", outer.display());
    for args in [
        &["--fuse"][..],
        &["--fuse", "-w"],
        &["--fuse", "--layer=split"],
    ] {
        sandbox
            .loopmount()
            .args(args)
            .args([&first, &target])
            .fails(1)
            .says(&[
                second.to_str().unwrap(),
                secret.to_str().unwrap(),
                &reference,
            ]);
        assert!(!target.exists());
    }
    sandbox
        .loopmount()
        .arg("--info")
        .arg(&first)
        .fails(1)
        .says(&[&reference]);

    // Both of what the hint says.
    let named = format!("--references={}", outer.display());
    for (args, expected) in [
        (&[&named, "--layer=split", "--layer=raw"][..], bytes.len()),
        (&["--layer=split:parts=1", "--layer=raw"], 5 << 20),
    ] {
        let show = sandbox.loopmount().arg("--fuse").args(args);
        show.args([&first, &target]).ok();
        assert_eq!(sandbox.read(&target).len(), expected);
        sandbox.unmount(&target);
    }
}

#[test]
fn a_part_of_another_user_in_a_folder_of_everybody_is_refused_by_name() {
    let (sandbox, raw) = raw_disk(Who::Root);
    let shared = sandbox.new_dir("shared");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    let bytes = fs::read(&raw).unwrap();
    let (one, two) = bytes.split_at(bytes.len() / 2);
    let first = sandbox.new_file("shared/disk.001", one);
    let second = sandbox.new_file("shared/disk.002", two);
    let info = |first: &Path| sandbox.loopmount().arg("--info").arg(first);
    info(&first).ok();
    chown(&second, Some(1234), None).unwrap();
    let option = format!("--references {}", shared.display());
    info(&first)
        .fails(1)
        .says(&["disk.002", "belongs to the user 1234", &option]);
    sandbox
        .loopmount()
        .args(["--info", &option.replace(' ', "=")])
        .arg(&first)
        .ok();
    // All of one user, and those of a user with one of root.
    chown(&first, Some(1234), None).unwrap();
    info(&first).ok();
    chown(&second, Some(0), None).unwrap();
    info(&first).ok();
    // What root keeps there is not for a link of that user.
    let kept = sandbox.join("shared/kept");
    fs::rename(&second, &kept).unwrap();
    symlink("kept", &second).unwrap();
    lchown(&second, Some(1234), None).unwrap();
    info(&first).fails(1).says(&["disk.002"]);
}

#[test]
fn the_first_part_may_be_in_the_current_folder() {
    let (sandbox, raw) = raw_disk(Who::User);
    let parts = cut(&sandbox, &raw, 5 << 20);
    let told = format!("{} parts, disk.img.001", parts.len());
    let info = |name: &str| {
        sandbox
            .loopmount()
            .args(["--info", name])
            .cwd(sandbox.path())
    };
    let out = info("disk.img.001").ok().out();
    assert!(out.contains(&told), "{out}");
    fs::remove_file(&parts[1]).unwrap();
    info("disk.img.001")
        .fails(1)
        .says(&["disk.img.002 is missing"]);
}

#[test]
fn more_parts_than_one_message_has_descriptors() {
    let (sandbox, raw) = raw_disk(Who::User);
    let size = fs::metadata(&raw).unwrap().len() as usize;
    let parts = cut(&sandbox, &raw, size.div_ceil(400));
    assert!(parts.len() >= 390, "{}", parts.len());
    let whole = sandbox.join("whole");
    sandbox
        .loopmount()
        .arg("--fuse")
        .args([&parts[0], &whole])
        .ok();
    assert!(sandbox.read(&whole) == fs::read(&raw).unwrap());
    sandbox.unmount(&whole);
}

#[test]
fn an_android_sparse_image_is_mounted_and_has_its_holes() {
    require_tool("img2simg", "android-sdk-libsparse-utils");
    for who in EVERYBODY {
        let (sandbox, raw) = raw_disk(who);
        let simg = sandbox.new_file("disk.simg", b"");
        must(Command::new("img2simg").args([&raw, &simg]));
        let point = sandbox.mount(&[], &simg, "mnt");
        let hello = sandbox.read_text(point.join(images::HELLO));
        assert!(hello.starts_with("If you can read this"), "{hello}");
        sandbox.unmount(&point);

        let shown = sandbox.join("shown");
        sandbox.loopmount().arg("--fuse").args([&simg, &shown]).ok();
        let copy = sandbox.join("copy");
        sandbox
            .tool("cp")
            .args(["--sparse=auto", "--"])
            .args([&shown, &copy])
            .ok();
        sandbox.unmount(&shown);
        assert_eq!(sha256(&copy), sha256(&raw));
        use std::os::unix::fs::MetadataExt;
        let stored = fs::metadata(&copy).unwrap().blocks() * 512;
        let packed = fs::metadata(&simg).unwrap().len();
        assert!(stored < packed + (4 << 20), "{stored} bytes of {packed}");
    }
}

#[test]
fn a_disk_has_no_parts_beside_its_link() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().ext4());
    let attach = sandbox.tool("losetup").args(["-f", "--show"]);
    let device = attach.arg(&image).ok().out();
    // As in /dev/disk/by-id.
    let link = sandbox.join("disk-part1");
    std::os::unix::fs::symlink(device.trim(), &link).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", sandbox.join("disk-part2")).unwrap();
    let info = sandbox.loopmount().arg("--info").arg(&link).run();
    sandbox.tool("losetup").arg("-d").arg(device.trim()).ok();
    assert!(info.expect(0).out().contains("ext4"));
}
