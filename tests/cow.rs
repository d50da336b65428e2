//! `--cow`, `--cow=FILE`, `--commit`, and file systems that were not unmounted cleanly.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::images::{self, sha256};
use common::sandbox::{EVERYBODY, with_small_disk};
use common::system::mount_at;
use common::{Sandbox, Who, must, umount};

const TEXT: &str = "written and kept apart\n";

#[track_caller]
fn write(sandbox: &Sandbox, file: &Path, text: &str) {
    let of = format!("of={}", file.display());
    let dd = sandbox.tool("dd").args(["conv=fsync", "status=none"]);
    dd.arg(of).stdin(text.as_bytes().to_vec()).ok();
}

#[test]
fn scratch_writes_are_seen_and_gone_at_the_end_and_the_image_is_as_it_was() {
    for via in ["auto", "loop"] {
        let (sandbox, image) = with_small_disk(Who::Root);
        let raw = sandbox.image(&common::images().disk());
        for image in [&image, &raw] {
            let before = sha256(image);
            let point = sandbox.mount(&["--cow", "--via", via], image, "mnt");
            let mount = mount_at(&point).unwrap();
            assert!(mount.options.starts_with("rw"), "{mount:?}");
            for option in ["nosuid", "nodev"] {
                assert!(mount.options.contains(option), "{mount:?}");
            }
            let list = sandbox.loopmount().args(["--list", "--json"]).ok().out();
            assert!(list.contains("\"writable\": true"), "{list}");
            write(&sandbox, &point.join("etc/new"), TEXT);
            assert_eq!(sandbox.read_text(point.join("etc/new")), TEXT);
            sandbox.unmount(&point);
            assert_eq!(sha256(image), before);
            let again = sandbox.loopmount().arg("--cow").arg(image).arg(&point);
            again.ok();
            assert!(!point.join("etc/new").exists());
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
            sandbox.assert_clean();
        }
    }
}

#[test]
fn what_is_kept_is_there_the_next_time_and_is_written_back() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().disk());
    let before = sha256(&image);
    for round in 0..2 {
        let text = format!("round {round}\n");
        // Relative to where the user is.
        let point = sandbox.mount(&["--cow=kept", "-P", "2"], &image, "mnt");
        write(&sandbox, &point.join("etc/new"), &text);
        // In use.
        let other = sandbox.new_dir("other");
        let second = sandbox.loopmount().args(["--cow=kept", "-P", "2"]);
        second
            .arg(&image)
            .arg(&other)
            .fails(1)
            .says(&["kept", "in use"]);
        fs::remove_dir(other).unwrap();
        sandbox.unmount(&point);
        let point = sandbox.join("mnt");
        let again = sandbox.loopmount().args(["--cow=kept", "-P", "2"]);
        again.arg(&image).arg(&point).ok();
        assert_eq!(sandbox.read_text(point.join("etc/new")), text);
        sandbox.unmount(&point);
        fs::remove_dir(&point).unwrap();
        let now = sha256(&image);
        assert_eq!(now == before, round == 0, "only a commit changes the image");

        let info = sandbox.loopmount().args(["--info", "--cow=kept"]);
        let info = info.arg(&image).ok().out();
        assert!(info.contains("cow") && info.contains("written"), "{info}");
        let commit = sandbox.loopmount().args(["--commit", "--cow=kept"]);
        let said = commit.arg(&image).ok().out();
        assert!(said.contains("written"), "{said}");
        let point = sandbox.mount(&["-P", "2"], &image, "mnt");
        assert_eq!(sandbox.read_text(point.join("etc/new")), text);
        sandbox.unmount(&point);
        fs::remove_dir(point).unwrap();
        sandbox.assert_clean();
    }
    let used = fs::metadata(sandbox.join("kept")).unwrap().blocks() * 512;
    assert!(used < 100_000, "{used}");
}

#[test]
fn the_file_that_keeps_writes_may_have_a_name_that_is_not_text() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().disk());
    let point = sandbox.new_dir("mnt");
    let kept = || {
        let option = OsStr::from_bytes(b"--cow=kept-\xff\xfe");
        sandbox.loopmount().arg(option).args(["-P", "2"])
    };
    kept().arg(&image).arg(&point).ok();
    write(&sandbox, &point.join("etc/new"), TEXT);
    sandbox.unmount(&point);
    assert!(sandbox.join(OsStr::from_bytes(b"kept-\xff\xfe")).exists());
    kept().arg(&image).arg(&point).ok();
    assert_eq!(sandbox.read_text(point.join("etc/new")), TEXT);
    sandbox.unmount(&point);
    let kept = |what: &str| {
        let option = OsStr::from_bytes(b"--cow=kept-\xff\xfe");
        sandbox.loopmount().arg(what).arg(option).arg(&image)
    };
    let info = kept("--info").ok().out();
    assert!(info.contains("written"), "{info}");
    let said = kept("--commit").ok().out();
    assert!(said.contains("written"), "{said}");
    sandbox
        .loopmount()
        .args(["-P", "2"])
        .arg(&image)
        .arg(&point)
        .ok();
    assert_eq!(sandbox.read_text(point.join("etc/new")), TEXT);
    sandbox.unmount(&point);
}

#[test]
fn what_is_kept_of_a_qcow2_disk_is_written_back_to_it() {
    let sandbox = Sandbox::new(Who::Root);
    let disk = sandbox.image(&common::images().disk());
    let base = sandbox.new_file("base.qcow2", b"");
    let convert = sandbox
        .tool("qemu-img")
        .args(["convert", "-q", "-f", "raw", "-c", "-O", "qcow2"]);
    convert.args([&disk, &base]).ok();
    let image = sandbox.join("top.qcow2");
    let create = sandbox.tool("qemu-img");
    let create = create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2"]);
    create.args(["-b", "base.qcow2"]).arg(&image).ok();
    let (base_before, before) = (sha256(&base), sha256(&image));

    let point = sandbox.mount(&["--cow=kept", "-P", "2"], &image, "mnt");
    write(&sandbox, &point.join("etc/new"), TEXT);
    sandbox.unmount(&point);
    assert_eq!(sha256(&image), before);
    let commit = sandbox.loopmount().args(["--commit", "--cow=kept"]);
    commit.arg(&image).ok();
    assert_ne!(sha256(&image), before);
    assert_eq!(sha256(&base), base_before, "only the top is written");
    // Clean, and not merely leaking.
    sandbox.tool("qemu-img").arg("check").arg(&image).ok();
    let point = sandbox.join("mnt");
    let again = sandbox.loopmount().args(["-P", "2"]);
    again.arg(&image).arg(&point).ok();
    assert_eq!(sandbox.read_text(point.join("etc/new")), TEXT);
    sandbox.unmount(&point);
}

#[test]
fn what_is_encrypted_is_kept_encrypted() {
    let sandbox = Sandbox::new(Who::Root);
    let plain = sandbox.image(&common::images().ext4());
    let key = sandbox.new_file("key", b"a key of this test");
    let image = sandbox.new_file("locked", b"");
    let secret = format!("secret,id=key,file={}", key.display());
    let convert = sandbox
        .tool("qemu-img")
        .args(["convert", "-q", "-f", "raw"]);
    let convert = convert.args(["--object", &secret, "-O", "luks"]);
    let convert = convert.args(["-o", "key-secret=key,iter-time=10"]);
    convert.args([&plain, &image]).ok();
    let before = sha256(&image);
    let key = format!("--key-file={}", key.display());

    let point = sandbox.mount(&["--cow=kept", &key], &image, "mnt");
    write(&sandbox, &point.join("new"), TEXT);
    sandbox.unmount(&point);
    assert_eq!(sha256(&image), before);
    let kept = fs::read(sandbox.join("kept")).unwrap();
    let text = TEXT.as_bytes();
    assert!(!kept.windows(text.len()).any(|bytes| bytes == text));
    let commit = sandbox.loopmount().args(["--commit", "--cow=kept", &key]);
    commit.arg(&image).ok();
    let point = sandbox.join("mnt");
    sandbox.loopmount().arg(&key).arg(&image).arg(&point).ok();
    assert_eq!(sandbox.read_text(point.join("new")), TEXT);
    sandbox.unmount(&point);
}

#[test]
fn a_user_writes_to_the_decoded_file_and_keeps_it() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let before = sha256(&image);
        let raw = sandbox.join("raw");
        let write = |at: &str, bytes: &[u8]| {
            let dd = sandbox
                .tool("dd")
                .args(["oflag=seek_bytes", "conv=notrunc,fsync"]);
            let of = format!("of={}", raw.display());
            dd.args([format!("seek={at}"), of])
                .stdin(bytes.to_vec())
                .ok();
        };
        let up = || {
            let cmd = sandbox.loopmount().args(["--fuse", "--cow=kept"]);
            cmd.arg(&image).arg(&raw).ok();
        };
        up();
        let original = sandbox.read(&raw);
        let data: Vec<u8> = (0..50_003_u32).flat_map(u32::to_le_bytes).collect();
        write("1000001", &data);
        sandbox
            .tool("fallocate")
            .args(["-p", "-o", "5000000", "-l", "300000"])
            .arg(&raw)
            .ok();
        sandbox.unmount(&raw);
        up();
        let mut expected = original;
        expected[1_000_001..1_000_001 + data.len()].copy_from_slice(&data);
        expected[5_000_000..5_300_000].fill(0);
        assert!(sandbox.read(&raw) == expected);
        sandbox.unmount(&raw);
        assert_eq!(sha256(&image), before);
        // An image that cannot be written.
        let commit = sandbox.loopmount().args(["--commit", "--cow=kept"]);
        commit
            .arg(&image)
            .fails(1)
            .says(&["xz", "written", "--fuse"]);
        sandbox.assert_clean();
    }
}

#[test]
fn a_tree_in_user_space_is_not_written() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.new_dir("mnt");
        let cmd = sandbox.loopmount().args(["--cow", "--via", "fuse"]);
        cmd.arg(&image)
            .arg(&point)
            .fails(1)
            .says(&["ext4", "user space", "--fuse"]);
        sandbox.assert_clean();
    }
}

#[test]
fn a_changed_image_and_wrong_usage_are_refused() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().disk());
    let point = sandbox.mount(&["--cow=kept", "-P", "2"], &image, "mnt");
    sandbox.unmount(&point);
    let other = sandbox.loopmount().args(["-w", "-P", "2"]);
    other.arg(&image).arg(&point).ok();
    write(&sandbox, &point.join("etc/other"), TEXT);
    sandbox.unmount(&point);
    for args in [&["--cow=kept", "-P", "2"][..], &["--cow=kept", "--fuse"]] {
        let target = if args.contains(&"--fuse") {
            sandbox.join("raw")
        } else {
            point.clone()
        };
        let cmd = sandbox.loopmount().args(args).arg(&image).arg(target);
        cmd.fails(1).says(&["cow", "is not what it was", "kept"]);
    }
    let commit = sandbox.loopmount().args(["--commit", "--cow=kept"]);
    commit.arg(&image).fails(1).says(&["is not what it was"]);
    let info = sandbox.loopmount().args(["--info", "--cow=missing"]);
    info.arg(&image).fails(1).says(&["missing"]);
    assert!(!sandbox.join("missing").exists());
    let both = sandbox.loopmount().args(["--cow", "-w"]);
    let said = both.arg(&image).arg(&point).fails(2).stderr;
    assert!(said.contains("--cow") && said.contains("--write"), "{said}");
    let itself = sandbox.loopmount().arg("--info").arg("kept");
    itself
        .fails(1)
        .says(&["kept apart from an image", "--cow=FILE IMAGE"]);
    let named = sandbox.loopmount().args(["--layer", "cow"]);
    named.arg(&image).arg(&point).fails(2).says(&["--cow"]);
}

#[test]
fn a_layer_that_cannot_be_written_is_named_and_cow_is_offered() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let cmd = sandbox.loopmount().args(["-w", "--fuse"]);
        cmd.arg(&image)
            .arg(sandbox.join("raw"))
            .fails(1)
            .says(&["xz", "--cow=FILE"]);
    }
}

/// Answers requests for one file, whole or in ranges, until the test ends.
fn serve(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.raw.xz", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, bytes) = (stream.unwrap(), bytes.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                loop {
                    head.clear();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read(&mut byte) {
                            Ok(1) => head.push(byte[0]),
                            _ => return,
                        }
                    }
                    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
                    let range = text
                        .lines()
                        .find_map(|line| line.strip_prefix("range: bytes="));
                    let (start, end) = range
                        .and_then(|range| range.split_once('-'))
                        .unwrap_or(("0", ""));
                    let start: usize = start.parse().unwrap_or(0);
                    let end = end.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
                    let answer = format!(
                        "HTTP/1.1 206 Partial Content\r\nETag: \"strong\"\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{end}/{}\r\n\r\n",
                        end + 1 - start,
                        bytes.len()
                    );
                    let sent = stream
                        .write_all(answer.as_bytes())
                        .and_then(|()| stream.write_all(&bytes[start..=end]));
                    if sent.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

#[test]
fn an_image_on_a_web_server_takes_writes_and_keeps_them() {
    let sandbox = Sandbox::new(Who::Root);
    let url = PathBuf::from(serve(fs::read(images::carried()).unwrap()));
    let refused = sandbox
        .loopmount()
        .arg("-w")
        .arg(&url)
        .arg(sandbox.new_dir("mnt"));
    refused.fails(1).says(&["web server", "--cow=FILE"]);
    let point = sandbox.join("mnt");
    for round in 0..2 {
        let cmd = sandbox.loopmount().arg("--cow=kept").arg(&url).arg(&point);
        cmd.ok();
        assert_eq!(point.join("etc/new").exists(), round == 1);
        write(&sandbox, &point.join("etc/new"), TEXT);
        sandbox.unmount(&point);
    }
    let commit = sandbox.loopmount().args(["--commit", "--cow=kept"]);
    commit.arg(&url).fails(1).says(&["web server"]);
}

/// A copy of `image` made while it is mounted and in use: its journal is to be written back.
fn copied_in_use(sandbox: &Sandbox, image: &Path, name: &str) -> PathBuf {
    let (work, copy) = (sandbox.image(image), sandbox.join(name));
    let point = sandbox.new_dir("in-use");
    must(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&work)
            .arg(&point),
    );
    fs::write(point.join("late"), TEXT).unwrap();
    must(Command::new("sync").arg("-f").arg(&point));
    fs::write(point.join("later"), vec![1; 100_000]).unwrap();
    fs::File::open(point.join("later"))
        .unwrap()
        .sync_all()
        .unwrap();
    must(Command::new("cp").arg(&work).arg(&copy));
    umount(&point);
    fs::remove_dir(point).unwrap();
    fs::remove_file(work).unwrap();
    copy
}

#[test]
fn a_dirty_journal_is_written_back_to_a_scratch_layer() {
    let set = common::images();
    for (image, name) in [(set.ext4(), "dirty.ext4"), (set.xfs(), "dirty.xfs")] {
        let sandbox = Sandbox::new(Who::Root);
        let raw = copied_in_use(&sandbox, &image, name);
        let packed = sandbox.join("dirty.xz");
        images::xz(&raw, &packed, &["-0", "--block-size=4MiB"]);
        for image in [&raw, &packed] {
            let before = sha256(image);
            let vias: &[&str] = if image == &raw { &["auto"] } else { &["loop"] };
            for via in vias {
                let point = sandbox.mount(&["--via", via], image, "mnt");
                let mount = mount_at(&point).unwrap();
                assert!(mount.options.starts_with("ro"), "{mount:?}");
                assert_eq!(sandbox.read_text(point.join("late")), TEXT);
                assert_eq!(sandbox.read(point.join("later")), vec![1; 100_000]);
                let list = sandbox.loopmount().args(["--list", "--json"]).ok().out();
                assert!(list.contains("\"writable\": false"), "{list}");
                let touch = sandbox.tool("touch").arg(point.join("new"));
                assert!(touch.fails(1).stderr.contains("Read-only"));
                sandbox.unmount(&point);
                assert_eq!(sha256(image), before, "{name} --via {via}");
                fs::remove_dir(point).unwrap();
                sandbox.assert_clean();
            }
            let cat = sandbox.loopmount().arg(image).args(["--", "cat", "late"]);
            assert_eq!(cat.ok().out(), TEXT);
            let point = sandbox.new_dir("mnt");
            let foreground = sandbox
                .loopmount()
                .arg("--foreground")
                .arg(image)
                .arg(&point);
            let running = foreground.spawn();
            common::until("it is mounted", || mount_at(&point).is_some());
            assert_eq!(sandbox.read_text(point.join("late")), TEXT);
            sandbox.unmount(&point);
            running.wait().expect(0);
            fs::remove_dir(point).unwrap();
            assert_eq!(sha256(image), before);
        }
        // Asked for as it is.
        let skip = if name.ends_with("xfs") {
            "norecovery"
        } else {
            "noload"
        };
        let point = sandbox.mount(&["-o", skip], &raw, "mnt");
        sandbox.unmount(&point);
    }
}

#[test]
fn a_passphrase_is_asked_for_once_where_a_journal_has_to_be_written_back() {
    let set = common::images();
    for (inside, name) in [(set.xfs(), "dirty.xfs"), (set.ext4(), "dirty.ext4")] {
        let sandbox = Sandbox::new(Who::Root);
        let raw = copied_in_use(&sandbox, &inside, name);
        let image = sandbox.new_file("locked", b"");
        let secret = "secret,id=key,data=typed-only-once";
        let convert = sandbox
            .tool("qemu-img")
            .args(["convert", "-q", "-f", "raw"]);
        let convert = convert.args(["--object", secret, "-O", "luks"]);
        let convert = convert.args(["-o", "key-secret=key,iter-time=10"]);
        convert.args([&raw, &image]).ok();
        let before = sha256(&image);
        for args in [&[][..], &["--foreground"]] {
            let point = sandbox.new_dir("mnt");
            let cmd = sandbox.session(true).args(args).arg(&image).arg(&point);
            let mut dialog = cmd.on_terminal();
            dialog.expect("Passphrase for ");
            common::until("the echo is off", || !dialog.echoes());
            dialog.types("typed-only-once\n");
            common::until("it is mounted", || mount_at(&point).is_some());
            assert_eq!(sandbox.read_text(point.join("late")), TEXT);
            sandbox.unmount(&point);
            assert_eq!(dialog.code(), 0, "{}", dialog.shown());
            let asked = dialog.shown().matches("Passphrase for ").count();
            assert_eq!(asked, 1, "{name} {args:?}: {}", dialog.shown());
            fs::remove_dir(point).unwrap();
        }
        assert_eq!(sha256(&image), before);
        sandbox.assert_clean();
    }
}
