//! The cache on disk: what a second mount finds, and how it is shown and cleared.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::run::send_signal;
use common::sandbox::EVERYBODY;
use common::{Sandbox, Who, images, must};
use rustix::process::Signal;
use serde_json::Value;

/// So little memory that an image of one block is decoded once, into the cache on disk.
const TIGHT: &str = "--cache-size=8M";

/// The carried disk: its bytes, and compressed as one block.
fn one_block(sandbox: &Sandbox, name: &str) -> (Vec<u8>, PathBuf) {
    let bytes = must(Command::new("xz").arg("-dc").arg(images::carried()));
    let image = compress(sandbox, &bytes, name);
    (bytes, image)
}

fn compress(sandbox: &Sandbox, bytes: &[u8], name: &str) -> PathBuf {
    let raw = sandbox.new_file("to-compress", bytes);
    let packed = must(Command::new("xz").args(["-T1", "-0", "-c"]).arg(&raw));
    fs::remove_file(raw).unwrap();
    sandbox.new_file(name, packed)
}

/// Shows the decoded disk as a file.
#[track_caller]
fn show(sandbox: &Sandbox, args: &[&str], image: &Path) -> PathBuf {
    let file = sandbox.join(format!("shown-{}", sandbox.serial()));
    let command = sandbox.loopmount().args(["--fuse", TIGHT]).args(args);
    command.arg(image).arg(&file).ok();
    file
}

/// Reads all of the image, compares it, and takes it down.
#[track_caller]
fn read_all(sandbox: &Sandbox, args: &[&str], image: &Path, bytes: &[u8]) {
    let file = show(sandbox, args, image);
    assert!(sandbox.read(&file) == bytes, "other bytes");
    sandbox.unmount(&file);
    sandbox.assert_clean();
}

/// How often the server has begun to decode a block of the unit at `what`.
#[track_caller]
fn decodes(sandbox: &Sandbox, what: &Path) -> u64 {
    let stats = sandbox.loopmount().args(["--stats", "--json"]).arg(what);
    let units: Value = serde_json::from_str(&stats.ok().out()).unwrap();
    let layers = units[0]["layers"].as_array().unwrap();
    let xz = layers.iter().find(|layer| layer["name"] == "xz").unwrap();
    xz["blocks"]["decodes"].as_u64().unwrap()
}

#[track_caller]
fn usage(sandbox: &Sandbox, args: &[&str]) -> Value {
    let shown = sandbox.loopmount().args(["--cache", "--json"]).args(args);
    serde_json::from_str(&shown.ok().out()).unwrap()
}

fn names(usage: &Value) -> Vec<&str> {
    let images = usage["images"].as_array().unwrap();
    images
        .iter()
        .map(|image| image["name"].as_str().unwrap())
        .collect()
}

/// A limit on the size of files is no reason to end: what does not fit is not kept.
#[test]
fn files_that_may_not_grow_are_no_place_to_keep_things() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk_xz());
        let expected = common::images::sha256(&common::images().disk());
        let raw = sandbox.join("raw");
        // 64 KiB, far less than a block.
        let cmd = sandbox.limited("-f 128").arg("--fuse");
        cmd.arg(&image).arg(&raw).ok();
        let sum = sandbox.tool("sha256sum").arg("-b").arg(&raw).ok().out();
        assert!(sum.starts_with(&expected), "{sum}");
        sandbox.unmount(&raw);
        // What is to be kept by the user's wish is an error of the write.
        let kept = format!("--cow={}", sandbox.join("kept").display());
        let cmd = sandbox.limited("-f 128").args([&kept, "--fuse"]);
        cmd.arg(&image).arg(&raw).ok();
        let write = format!("dd if=/dev/urandom of={} bs=1M count=8", raw.display());
        let script = format!("{write} conv=notrunc,fsync");
        let refused = sandbox.tool("sh").args(["-c", &script]).fails(1);
        let said = "No space left on device";
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
        sandbox.unmount(&raw);
        sandbox.assert_clean();
    }
}

#[test]
fn a_second_mount_decodes_nothing() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let (bytes, image) = one_block(&sandbox, "disk.xz");
        read_all(&sandbox, &[], &image, &bytes);
        assert_eq!(fs::metadata(sandbox.cache()).unwrap().mode() & 0o777, 0o700);
        let file = show(&sandbox, &[], &image);
        assert!(sandbox.read(&file) == bytes);
        assert_eq!(decodes(&sandbox, &file), 0);
        sandbox.unmount(&file);
        // The file system in it too, whoever reads it.
        let point = sandbox.mount(&[TIGHT], &image, "mnt");
        sandbox.tool("cat").arg(point.join("etc/os-release")).ok();
        assert_eq!(decodes(&sandbox, &point), 0);
        sandbox.unmount(&point);
    }
}

#[test]
fn a_second_mount_decodes_nothing_that_fits_memory_either() {
    let sandbox = Sandbox::new(Who::User);
    let bytes = must(Command::new("xz").arg("-dc").arg(images::carried()));
    let raw = sandbox.new_file("raw", &bytes);
    for (name, args) in [
        ("blocks.xz", &["xz", "-0", "--block-size=1MiB"][..]),
        ("whole.xz", &["xz", "-0", "-T1"]),
        ("members.lz", &["lzip", "-0", "-b1MiB"]),
    ] {
        let packed = must(Command::new(args[0]).args(&args[1..]).arg("-c").arg(&raw));
        let image = sandbox.new_file(name, packed);
        let prefetch = sandbox.loopmount().arg("--prefetch").arg(&image).ok();
        prefetch.says_at_last(&["kept in", sandbox.cache().to_str().unwrap()]);
        let info = sandbox.loopmount().arg("--info").arg(&image).ok();
        let info = info.out();
        assert!(info.contains("kept in the cache"), "{info}");
        let file = sandbox.join("shown");
        let show = sandbox.loopmount().arg("--fuse").arg(&image);
        show.arg(&file).ok();
        assert!(sandbox.read(&file) == bytes, "{name}");
        let stats = sandbox.loopmount().args(["--stats", "--json"]).arg(&file);
        let stats: Value = serde_json::from_str(&stats.ok().out()).unwrap();
        assert_eq!(stats[0]["layers"][1]["blocks"]["decodes"], 0, "{name}");
        sandbox.unmount(&file);
    }
    // It is known by its place, however it was called, and after it is gone.
    let names_of = |usage: &Value| -> Vec<String> {
        names(usage).iter().map(|name| (*name).to_owned()).collect()
    };
    let prefetch = sandbox.loopmount().args(["--prefetch", "whole.xz"]).ok();
    prefetch.says_at_last(&["read 16 MiB"]);
    let full = sandbox.join("whole.xz").to_str().unwrap().to_owned();
    assert!(names_of(&usage(&sandbox, &[])).contains(&full));
    fs::remove_file(&full).unwrap();
    let clear = sandbox.loopmount().args(["--cache=clear", "whole.xz"]);
    assert!(clear.ok().out().contains("removed"));
    assert!(!names_of(&usage(&sandbox, &[])).contains(&full));
    // Where it is not kept, that is said.
    let packed = must(Command::new("gzip").arg("-c1").arg(&raw));
    let image = sandbox.new_file("disk.gz", packed);
    let prefetch = sandbox.loopmount().arg("--prefetch").arg(&image).ok();
    prefetch.says_at_last(&["read 16 MiB, its index is kept in"]);
}

#[test]
fn what_is_kept_is_shown_and_cleared() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let empty = usage(&sandbox, &[]);
        assert_eq!((&empty["used"], names(&empty)), (&Value::from(0), vec![]));
        assert!(!sandbox.cache().exists(), "looking has made it");

        let (bytes, first) = one_block(&sandbox, "first.xz");
        let (_, second) = one_block(&sandbox, "second.xz");
        read_all(&sandbox, &[], &first, &bytes);
        let file = show(&sandbox, &[], &second);
        assert!(sandbox.read(&file) == bytes);
        let shown = usage(&sandbox, &[]);
        let both = [second.to_str().unwrap(), first.to_str().unwrap()];
        assert_eq!(names(&shown), both, "used last comes first");
        assert_eq!(shown["limit"], 10_u64 << 30);
        assert_eq!(shown["folder"], sandbox.cache().to_str().unwrap());
        let (latest, earlier) = (&shown["images"][0], &shown["images"][1]);
        assert_eq!(
            (&latest["in_use"], &earlier["in_use"]),
            (&true.into(), &false.into())
        );
        for image in [latest, earlier] {
            let size = image["bytes"].as_u64().unwrap();
            let decoded = image["decoded"].as_u64().unwrap();
            assert!(decoded > 100_000 && decoded <= size, "{image}");
            assert!(size <= shown["used"].as_u64().unwrap());
        }
        let text = sandbox.loopmount().arg("--cache").ok().out();
        for word in [
            "of 10 GiB",
            "first.xz",
            "second.xz",
            "DECODED",
            "in use",
            "just now",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let one = usage(&sandbox, &[first.to_str().unwrap()]);
        assert_eq!(names(&one), both[1..]);

        // By its name, though it is gone; the other one goes on.
        fs::remove_file(&first).unwrap();
        let clear = sandbox.loopmount().args(["--cache=clear", "first.xz"]);
        assert!(clear.ok().out().contains("removed"));
        assert_eq!(names(&usage(&sandbox, &[])), both[..1]);
        sandbox.loopmount().arg("--cache=clear").ok();
        assert_eq!(names(&usage(&sandbox, &[])), Vec::<&str>::new());
        assert!(sandbox.read(&file) == bytes);
        sandbox.unmount(&file);
    }
}

#[test]
fn a_limit_of_nothing_keeps_nothing_and_a_small_one_little() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let (bytes, image) = one_block(&sandbox, "disk.xz");
        read_all(&sandbox, &["--cache-limit=0"], &image, &bytes);
        assert!(!sandbox.cache().exists());
        let mut other = bytes.clone();
        other.extend_from_slice(&bytes);
        let twice = compress(&sandbox, &other, "twice.xz");
        let limit = "--cache-limit=9M";
        for (image, bytes) in [(&image, &bytes), (&twice, &other), (&image, &bytes)] {
            read_all(&sandbox, &[limit], image, bytes);
            let used = usage(&sandbox, &[])["used"].as_u64().unwrap();
            assert!(used <= 9 << 20, "{used}");
        }
    }
}

#[test]
fn nothing_is_kept_of_what_may_change() {
    let sandbox = Sandbox::new(Who::User);
    let (bytes, _) = one_block(&sandbox, "disk.xz");
    let raw = sandbox.new_file("disk.raw", bytes);
    let file = sandbox.join("shown");
    let show = sandbox.loopmount().args(["--fuse", "-w"]);
    show.arg(&raw).arg(&file).ok();
    sandbox.read(&file);
    sandbox.unmount(&file);
    assert_eq!(names(&usage(&sandbox, &[])), Vec::<&str>::new());
}

#[test]
fn an_image_that_was_replaced_is_another_one() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let (bytes, image) = one_block(&sandbox, "disk.xz");
        let mut changed = bytes.clone();
        changed[5_000_000..5_000_100].fill(0x55);
        read_all(&sandbox, &[], &image, &bytes);
        // In its place, of the same size and date.
        let packed = compress(&sandbox, &changed, "other.xz");
        let date = fs::metadata(&image).unwrap().modified().unwrap();
        fs::copy(&packed, &image).unwrap();
        let open = fs::File::options().write(true).open(&image).unwrap();
        open.set_modified(date).unwrap();
        read_all(&sandbox, &[], &image, &changed);
        fs::rename(&packed, &image).unwrap();
        read_all(&sandbox, &[], &image, &changed);
    }
}

#[test]
fn a_server_that_was_killed_in_its_pass_leaves_nothing_wrong() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let (bytes, _) = one_block(&sandbox, "small.xz");
        let bytes = bytes.repeat(4);
        let image = compress(&sandbox, &bytes, "disk.xz");
        for part in [1, 3, 7] {
            let file = show(&sandbox, &[], &image);
            // Somewhere in the pass, which goes on behind what is read.
            let count = format!("count={}", part * 1_000_000);
            let dd = sandbox
                .tool("dd")
                .args(["iflag=count_bytes", "bs=64K", &count]);
            let read = dd.arg(format!("if={}", file.display())).ok().stdout;
            assert!(read == bytes[..read.len()]);
            for server in sandbox.processes_of("__serve") {
                send_signal(server.pid, Signal::KILL);
            }
            sandbox.assert_clean();
        }
        read_all(&sandbox, &[], &image, &bytes);
        let file = show(&sandbox, &[], &image);
        assert!(sandbox.read(&file) == bytes);
        assert_eq!(decodes(&sandbox, &file), 0);
        sandbox.unmount(&file);
    }
}

#[test]
fn a_damaged_cache_costs_time_and_no_wrong_byte() {
    let sandbox = Sandbox::new(Who::User);
    let (bytes, image) = one_block(&sandbox, "disk.xz");
    read_all(&sandbox, &[], &image, &bytes);
    for folder in fs::read_dir(sandbox.cache().join("images")).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut text = fs::read(&path).unwrap();
            for at in (0..text.len()).step_by(9973) {
                text[at] ^= 0x10;
            }
            fs::write(&path, text).unwrap();
        }
    }
    read_all(&sandbox, &[], &image, &bytes);
    read_all(&sandbox, &[], &image, &bytes);
}

#[test]
fn a_full_disk_is_no_failure() {
    let sandbox = Sandbox::new(Who::Root);
    let (bytes, image) = one_block(&sandbox, "disk.xz");
    let cache = sandbox.join("cache");
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1500k,mode=700", "tmpfs"])
        .arg(&cache)
        .status();
    assert!(tmpfs.unwrap().success());
    for _ in 0..2 {
        let file = show(&sandbox, &[], &image);
        assert!(sandbox.read(&file) == bytes);
        sandbox.unmount(&file);
    }
    sandbox.tool("umount").arg(&cache).ok();
}

#[test]
fn a_folder_of_somebody_else_is_not_used() {
    let sandbox = Sandbox::new(Who::User);
    let (bytes, image) = one_block(&sandbox, "disk.xz");
    let cache = sandbox.new_dir("cache/loopmount");
    chown(&cache, Some(0), Some(0)).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    read_all(&sandbox, &[], &image, &bytes);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
    let shown = sandbox.loopmount().arg("--cache");
    shown.fails(1).says(&["not a folder of user"]);
    // Nor a user's, when root comes with the user's environment.
    let show = sandbox.tool_as_root(env!("CARGO_BIN_EXE_loopmount"));
    let shown: Value = serde_json::from_str(&show.args(["--cache", "--json"]).ok().out()).unwrap();
    assert_eq!(shown["folder"], "/var/cache/loopmount");
}
