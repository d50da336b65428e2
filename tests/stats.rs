//! `--stats`: the figures of a running mount.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::images::HELLO;
use common::sandbox::{EVERYBODY, with_small_disk};
use common::{Sandbox, Who, images, must};
use serde_json::Value;

/// The figures of the layer `name` of the only unit that `what` names.
#[track_caller]
fn layer(sandbox: &Sandbox, what: &Path, name: &str) -> Value {
    let out = sandbox
        .loopmount()
        .args(["--stats", "--json"])
        .arg(what)
        .ok()
        .out();
    let units: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(units.as_array().unwrap().len(), 1, "{out}");
    let layers = units[0]["layers"].as_array().unwrap();
    let found = layers.iter().find(|layer| layer["name"] == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {out}"))
        .clone()
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn what_is_read_is_counted_in_each_layer() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", "fuse"], &image, "mnt");
        let before = layer(&sandbox, &point, "partition:2");
        sandbox.read(point.join("var/log/numbers"));
        sandbox.read(point.join(HELLO));
        let after = layer(&sandbox, &point, "partition:2");
        for key in ["requests", "bytes"] {
            let (before, after) = (number(&before["reads"][key]), number(&after["reads"][key]));
            assert!(
                before > 0 && after > before,
                "{key}: {before}, then {after}"
            );
        }
        assert_eq!(number(&after["reads"]["errors"]), 0);
        assert_eq!(number(&after["writes"]["requests"]), 0);
        let took = ["p50", "p90", "p99"].map(|key| number(&after["reads"][key]));
        assert!(took[0] > 0 && took.is_sorted(), "{took:?}");

        let xz = layer(&sandbox, &image, "xz");
        let blocks = &xz["blocks"];
        // 16 blocks of 1 MiB, each decoded at most once in so large a cache.
        assert!((1..=16).contains(&number(&blocks["decodes"])), "{blocks}");
        assert!(number(&blocks["hits"]) > 0, "{blocks}");
        let text = sandbox.loopmount().arg("--stats").arg(&point).ok().out();
        for word in ["LAYER", "P99", "xz", "partition:2", "DECODES"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        sandbox.unmount(&point);
    }
}

#[test]
fn reads_that_fail_are_counted_as_errors() {
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&images::carried());
    // Somewhere in the compressed blocks; the index at the end stays right.
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 3;
    for byte in &mut bytes[middle..middle + 64] {
        *byte ^= 0x55;
    }
    let image = sandbox.new_file("damaged.raw.xz", bytes);
    let file = sandbox.join("raw");
    sandbox
        .loopmount()
        .arg("--fuse")
        .arg(&image)
        .arg(&file)
        .ok();
    let read = sandbox.tool("cat").arg(&file).run();
    assert_ne!(read.code(), 0, "the damage was not met");
    let xz = layer(&sandbox, &file, "xz");
    assert!(number(&xz["reads"]["errors"]) > 0, "{xz}");
    sandbox.unmount(&file);
}

#[test]
fn writes_are_counted() {
    let (sandbox, image) = with_small_disk(Who::User);
    let bytes = must(std::process::Command::new("xz").arg("-dc").arg(&image));
    let disk = sandbox.new_file("disk.raw", bytes);
    let file = sandbox.join("raw");
    sandbox
        .loopmount()
        .args(["--fuse", "-w"])
        .arg(&disk)
        .arg(&file)
        .ok();
    let of = format!("of={}", file.display());
    sandbox
        .tool("dd")
        .args([
            "if=/dev/zero",
            &of,
            "bs=4096",
            "count=3",
            "conv=notrunc,fsync",
        ])
        .ok();
    let figures = layer(&sandbox, &file, "file");
    assert_eq!(number(&figures["writes"]["bytes"]), 3 * 4096, "{figures}");
    sandbox.unmount(&file);
}

/// Since Linux 6.9; before, the bytes go through us.
fn kernel_has_passthrough() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_str().unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    version >= (6, 9)
}

#[test]
fn for_root_the_kernel_reads_a_plain_file_by_itself() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let bytes = must(std::process::Command::new("xz").arg("-dc").arg(&image));
        let disk = sandbox.new_file("disk.raw", &bytes);
        let file = sandbox.join("raw");
        let show = sandbox.loopmount().arg("--fuse");
        show.arg(&disk).arg(&file).ok();
        let before = number(&layer(&sandbox, &file, "file")["reads"]["bytes"]);
        assert_eq!(sandbox.read(file.clone()), bytes);
        let after = number(&layer(&sandbox, &file, "file")["reads"]["bytes"]);
        let through_us = after - before;
        if who == Who::Root && kernel_has_passthrough() {
            assert_eq!(through_us, 0);
        } else {
            assert_eq!(through_us, bytes.len() as u64);
        }
        sandbox.unmount(&file);

        // Where a part is shown, all of it must go through us.
        let show = sandbox.loopmount().args(["--fuse", "-P", "2"]);
        show.arg(&disk).arg(&file).ok();
        assert!(!sandbox.read(file.clone()).is_empty());
        assert!(number(&layer(&sandbox, &file, "file")["reads"]["bytes"]) > 0);
        sandbox.unmount(&file);
    }
}

#[test]
fn what_has_no_figures_is_said() {
    let (sandbox, image) = with_small_disk(Who::Root);
    let nothing = sandbox.new_dir("nothing");
    let asked = sandbox.loopmount().arg("--stats").arg(&nothing);
    asked.fails(3).says(&["not mounted"]);
    let bytes = must(std::process::Command::new("xz").arg("-dc").arg(&image));
    let disk = sandbox.new_file("disk.raw", bytes);
    let point = sandbox.mount(&[], &disk, "mnt");
    let asked = sandbox.loopmount().arg("--stats").arg(&point);
    asked.fails(1).says(&["no server", "kernel"]);
    sandbox.unmount(&point);
}

#[test]
fn several_may_ask_at_the_same_time() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.mount(&[], &image, "mnt");
    // A new file may have the inode of the one before the last.
    for _ in 0..20 {
        let ask = || sandbox.loopmount().arg("--stats").arg(&point).spawn();
        let asking: Vec<_> = (0..6).map(|_| ask()).collect();
        for one in asking {
            assert!(one.wait().expect(0).out().contains("partition:2"));
        }
    }
    sandbox.unmount(&point);
}
