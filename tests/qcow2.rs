//! qcow2 images by the built program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::images::{self, sha256};
use common::sandbox::{EVERYBODY, means};
use common::{Sandbox, Who, json};

/// `qemu-img convert` of the disk with partitions.
fn convert(sandbox: &Sandbox, name: &str, options: &[&str]) -> PathBuf {
    let disk = sandbox.image(&common::images().disk());
    let image = sandbox.new_file(name, b"");
    sandbox
        .tool("qemu-img")
        .args(["convert", "-q", "-f", "raw", "-O", "qcow2"])
        .args(options)
        .args([&disk, &image])
        .ok();
    image
}

/// An overlay on `base`, as that is called from the overlay's folder.
fn overlay(sandbox: &Sandbox, name: &str, base: &str) -> PathBuf {
    let image = sandbox.join(name);
    sandbox
        .tool("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base])
        .arg(&image)
        .ok();
    image
}

fn hash_of(sandbox: &Sandbox, file: &Path) -> String {
    let line = sandbox.tool("sha256sum").arg("-b").arg(file).ok().out();
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_disk_is_mounted_and_shown_as_a_file() {
    let set = common::images();
    let whole = sha256(&set.disk());
    let file = "var/lib/text";
    let text = images::with_mounted(&set.ext4(), &["-r"], |dir| sha256(&dir.join(file)));
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        for options in [&[][..], &["-c"], &["-c", "-o", "compression_type=zstd"]] {
            let image = convert(&sandbox, "disk.qcow2", options);
            let raw = sandbox.join("raw");
            sandbox.loopmount().arg("--fuse").args([&image, &raw]).ok();
            assert_eq!(hash_of(&sandbox, &raw), whole, "{options:?}");
            sandbox.unmount(&raw);
        }
        let image = sandbox.join("disk.qcow2");
        for via in means(who) {
            let point = sandbox.mount(&["--via", via], &image, "mnt");
            assert_eq!(hash_of(&sandbox, &point.join(file)), text);
            sandbox.unmount(&point);
            fs::remove_dir(&point).unwrap();
        }
        sandbox.assert_clean();
    }
}

#[test]
fn an_overlay_is_read_with_its_backing_file_from_the_same_folder_only() {
    let whole = sha256(&common::images().disk());
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        convert(&sandbox, "base.qcow2", &["-c"]);
        let image = overlay(&sandbox, "top.qcow2", "base.qcow2");
        let raw = sandbox.join("raw");
        sandbox.loopmount().arg("--fuse").args([&image, &raw]).ok();
        assert_eq!(hash_of(&sandbox, &raw), whole);
        sandbox.unmount(&raw);
        let info = sandbox.loopmount().arg("--info").arg(&image).ok().out();
        assert!(
            info.contains("backing file \"base.qcow2\", qcow2"),
            "{info}"
        );

        // By a link elsewhere it is the same image, for every form of the command.
        let inner = sandbox.new_dir("inner");
        let link = inner.join("link.qcow2");
        std::os::unix::fs::symlink("../top.qcow2", &link).unwrap();
        let through = sandbox.loopmount().arg("--info").arg(&link).ok().out();
        assert!(through.contains("backing file \"base.qcow2\", qcow2"));
        sandbox.loopmount().arg("--fuse").args([&link, &raw]).ok();
        sandbox.unmount(&raw);

        let image = overlay(&sandbox, "inner/top.qcow2", "../base.qcow2");
        sandbox
            .loopmount()
            .arg("--fuse")
            .args([&image, &raw])
            .fails(1)
            .says(&[
                "../base.qcow2",
                "outside of the image's folder",
                "--references",
            ]);
        assert!(!raw.exists());
        sandbox
            .loopmount()
            .arg("--fuse")
            .arg("--references")
            .arg(inner.parent().unwrap())
            .args([&image, &raw])
            .ok();
        assert_eq!(hash_of(&sandbox, &raw), whole);
        sandbox.unmount(&raw);
        sandbox.assert_clean();
    }
}

#[test]
fn a_snapshot_is_named_with_the_layer_and_listed_by_info() {
    let sandbox = Sandbox::new(Who::User);
    let image = convert(&sandbox, "disk.qcow2", &[]);
    let qemu = |program: &str, args: &[&str]| {
        sandbox.tool(program).args(args).arg(&image).ok();
    };
    qemu("qemu-img", &["snapshot", "-c", "before the flood"]);
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 4M"]);
    let raw = sandbox.join("raw");
    sandbox
        .loopmount()
        .args([
            "--fuse",
            "--layer",
            "qcow2:snapshot=before the flood",
            "--layer",
            "raw",
        ])
        .args([&image, &raw])
        .ok();
    assert_eq!(hash_of(&sandbox, &raw), sha256(&common::images().disk()));
    sandbox.unmount(&raw);
    sandbox
        .loopmount()
        .args(["--fuse", "--layer", "qcow2:snapshot=after"])
        .args([&image, &raw])
        .fails(1)
        .says(&["no snapshot \"after\"", "1 \"before the flood\""]);
    let info = sandbox
        .loopmount()
        .args(["--info", "--json"])
        .arg(&image)
        .ok();
    let info = json::parse(&info.out());
    let notes = info["layers"][1]["notes"].to_string();
    assert!(notes.contains("before the flood"), "{notes}");
    sandbox.assert_clean();
}
