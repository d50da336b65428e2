//! Each command of the user on real images, as root and as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "mount/command.rs"]
mod command;
mod common;
#[path = "mount/file.rs"]
mod file;
#[path = "mount/trouble.rs"]
mod trouble;
#[path = "mount/writing.rs"]
mod writing;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::images::{self, HELLO, ROOT_UUID, sha256};
use common::sandbox::{EVERYBODY, means, with_small_disk};
use common::system::mount_at;
use common::{Sandbox, Who, must, until};
use rustix::process::Signal;

/// SHA-256 of what `file` holds as the one who types sees it.
#[track_caller]
fn sha256_seen(sandbox: &Sandbox, file: &Path) -> String {
    let line = sandbox.tool("sha256sum").arg("-b").arg(file).ok().out();
    line.trim_start_matches('\\')
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn the_carried_disk_is_mounted_read_and_taken_down() {
    for who in EVERYBODY {
        for via in means(who) {
            let (sandbox, image) = with_small_disk(who);
            let point = sandbox.mount(&["--via", via], &image, "mnt");
            let mount = mount_at(&point).unwrap();
            for option in ["ro", "nosuid", "nodev"] {
                assert!(
                    mount.options.split(',').any(|have| have == option),
                    "{option}: {mount:?}"
                );
            }
            if *via == "fuse" || who == Who::User {
                assert_eq!(mount.kind, "fuse.loopmount");
                let id = sandbox.unit_id();
                assert_eq!(mount.source.to_str(), Some(&*format!("loopmount:{id}")));
            } else {
                assert_eq!(mount.kind, "ext4");
            }
            let names = sandbox.tool("ls").arg(&point).ok().out();
            assert_eq!(names, "etc\nlost+found\nusr\nvar\n", "{who:?} --via {via}");
            let hello = sandbox.read_text(point.join(HELLO));
            assert!(hello.starts_with("If you can read this"), "{hello}");
            assert_eq!(sandbox.read_text(point.join("etc/motd")), hello);
            let refused = sandbox.tool("touch").arg(point.join("etc/new")).fails(1);
            assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
            sandbox.unmount(&point);
            assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
        }
    }
}

#[test]
fn every_shape_of_xz_gives_the_same_files() {
    let set = common::images();
    let kernel = images::with_mounted(&set.ext4(), &["-r"], |dir| {
        ["var/lib/random", "var/lib/sparse", "var/lib/text"].map(|name| sha256(&dir.join(name)))
    });
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        for image in [set.disk_xz(), set.disk_single_block(), set.disk_streams()] {
            let image = sandbox.image(&image);
            let point = sandbox.mount(&[], &image, "mnt");
            for (name, hash) in ["var/lib/random", "var/lib/sparse", "var/lib/text"]
                .iter()
                .zip(&kernel)
            {
                assert_eq!(&sha256_seen(&sandbox, &point.join(name)), hash, "{image:?}");
            }
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_partition_is_named_by_number_label_or_uuid() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk());
        let sfdisk = must(
            Command::new("sfdisk")
                .args(["--part-uuid"])
                .arg(&image)
                .arg("2"),
        );
        let part_uuid = String::from_utf8(sfdisk).unwrap().trim().to_owned();
        for name in [
            "2",
            "system",
            "rich",
            ROOT_UUID,
            &part_uuid.to_lowercase(),
            &part_uuid,
        ] {
            let point = sandbox.mount(&["-P", name], &image, "mnt");
            let text = sandbox.read_text(point.join("etc/os-release"));
            assert!(text.contains("ID=rich"), "-P {name}");
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
        }
        let image = sandbox.image(&common::images().mbr());
        for name in ["5", "logic"] {
            let point = sandbox.mount(&["-P", name], &image, "mnt");
            let text = sandbox.read_text(point.join("which"));
            assert_eq!(text, "the logical partition\n", "-P {name}");
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
        }
    }
}

#[test]
fn without_a_name_the_one_that_looks_like_a_root_is_taken() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().mbr());
        let point = sandbox.mount(&[], &image, "mnt");
        let text = sandbox.read_text(point.join("etc/os-release"));
        assert!(text.contains("ID=rich"));
        sandbox.unmount(&point);
    }
}

#[test]
fn root_mounts_the_file_systems_of_the_kernel_packed_or_not() {
    let set = common::images();
    for image in [set.xfs(), set.btrfs(), set.squashfs(), set.erofs()] {
        let sandbox = Sandbox::new(Who::Root);
        let raw = sandbox.image(&image);
        let packed = sandbox.join("packed.xz");
        images::xz(&raw, &packed, &["-0", "--block-size=4MiB"]);
        for image in [&raw, &packed] {
            let point = sandbox.mount(&[], image, "mnt");
            let text = sandbox.read_text(point.join("link"));
            assert_eq!(text, "ID=small\n");
            let numbers = sandbox.read_text(point.join("numbers"));
            assert_eq!(numbers.lines().count(), 50_000);
            assert_eq!(numbers.lines().last(), Some("49999"));
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
            sandbox.assert_clean();
        }
    }
}

#[test]
fn options_that_shape_the_decoding_keep_the_bytes() {
    let set = common::images();
    let whole = sha256(&set.disk());
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&set.disk_xz());
    let packed = sha256(&image);
    for (args, expected) in [
        (&["--cache-size", "4M"][..], &whole),
        (&["--cache-size", "1G", "--verify"], &whole),
        (&["--layer", "xz"], &whole),
        (&["--layer", "xz", "--layer", "raw"], &whole),
        (&["--layer", "raw"], &packed),
        (&["-v"], &whole),
    ] {
        let raw = sandbox.join("raw");
        sandbox
            .loopmount()
            .arg("--fuse")
            .args(args)
            .arg(&image)
            .arg(&raw)
            .ok();
        assert_eq!(&sha256_seen(&sandbox, &raw), expected, "{args:?}");
        sandbox.unmount(&raw);
    }
    let point = sandbox.new_dir("mnt");
    sandbox
        .loopmount()
        .args(["--layer", "partition"])
        .arg(&image)
        .arg(&point)
        .fails(1)
        .says(&["partition"]);
    let unknown = sandbox
        .loopmount()
        .args(["--layer", "no-such-layer"])
        .arg(&image)
        .arg(&point)
        .fails(2)
        .stderr;
    assert!(
        unknown.contains("no-such-layer") && unknown.contains("xz"),
        "{unknown}"
    );
}

#[test]
fn the_foreground_ends_with_the_signal_and_takes_all_down() {
    for who in EVERYBODY {
        for signal in [Signal::TERM, Signal::INT] {
            let (sandbox, image) = with_small_disk(who);
            let point = sandbox.new_dir("mnt");
            let mut running = sandbox
                .loopmount()
                .arg("--foreground")
                .arg(&image)
                .arg(&point)
                .spawn();
            until("the mount appears", || mount_at(&point).is_some());
            let hello = sandbox.read_text(point.join(HELLO));
            assert!(hello.starts_with("If you can read this"));
            assert!(running.is_running());
            running.signal(signal);
            running.wait().expect(0);
            assert!(mount_at(&point).is_none());
        }
    }
}

#[test]
fn one_image_can_be_mounted_twice_for_reading() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let first = sandbox.mount(&[], &image, "first");
        let second = sandbox.mount(&[], &image, "second");
        assert_eq!(sandbox.units().len(), 2);
        sandbox.unmount(&first);
        assert!(mount_at(&second).is_some());
        let hello = sandbox.read_text(second.join(HELLO));
        assert!(hello.starts_with("If you can read this"));
        sandbox.unmount(&second);
    }
}

#[test]
fn root_on_a_plain_file_leaves_no_process() {
    let sandbox = Sandbox::new(Who::Root);
    for image in [common::images().ext4(), common::images().disk()] {
        let image = sandbox.image(&image);
        let point = sandbox.mount(&[], &image, "mnt");
        assert_eq!(mount_at(&point).unwrap().kind, "ext4");
        assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
        let listed = sandbox.loopmount().args(["--list", "--json"]).ok().out();
        common::json::has(&common::json::parse(&listed), &[point.to_str().unwrap()]);
        sandbox.unmount(&point);
        fs::remove_dir(point).unwrap();
    }
}
