//! Logical volumes and arrays by the built program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::process::Command;

use common::sandbox::EVERYBODY;
use common::{Sandbox, Who, json, must};

#[test]
fn the_root_on_a_logical_volume_is_mounted_without_being_named() {
    let (disk, packed) = (common::images().lvm(), common::images().lvm_xz());
    for who in EVERYBODY {
        for source in [&disk, &packed] {
            let sandbox = Sandbox::new(who);
            let image = sandbox.image(source);
            for args in [&[][..], &["-P", "vg/root"], &["-P", "LABEL=rich"]] {
                let point = sandbox.mount(args, &image, "mnt");
                let names = sandbox.tool("ls").arg(point.join("etc")).ok().out();
                assert!(!names.is_empty(), "{args:?}");
                sandbox.unmount(&point);
                fs::remove_dir(point).unwrap();
            }
            sandbox.assert_clean();
        }
    }
}

#[test]
fn volumes_are_listed_and_shown_as_files() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().lvm());
        let text = sandbox.loopmount().arg("--info").arg(&image).ok().out();
        for word in [
            "vg/root",
            "vg/data",
            "striped",
            "ext4 \"rich\"",
            "LVM2 physical volume",
        ] {
            assert!(text.contains(word), "{text}");
        }
        let info = sandbox
            .loopmount()
            .args(["--info", "--json", "-P", "vg/root"])
            .arg(&image);
        let info = json::parse(&info.ok().out());
        let volumes = info["volumes"].as_array().unwrap();
        let root = volumes
            .iter()
            .find(|volume| volume["name"] == "vg/root")
            .unwrap();
        assert_eq!(root["chosen"], true);
        assert_eq!(root["content"]["name"], "ext4");

        let shown = sandbox.join("data");
        sandbox
            .loopmount()
            .args(["--fuse", "-P", "/dev/vg/data"])
            .args([&image, &shown])
            .ok();
        assert!(sandbox.read(&shown) == fs::read(common::images().data()).unwrap());
        sandbox.unmount(&shown);

        let refused = sandbox
            .loopmount()
            .args(["-P", "vg/swap"])
            .arg(&image)
            .arg(sandbox.new_dir("mnt"));
        let refused = refused.fails(1);
        assert!(refused.stderr.contains("swap"), "{}", refused.stderr);
        let refused = sandbox
            .loopmount()
            .args(["-P", "vg/none"])
            .arg(&image)
            .arg(sandbox.join("mnt"));
        let refused = refused.fails(1);
        assert!(refused.stderr.contains("vg/data"), "{}", refused.stderr);
        sandbox.assert_clean();
    }
}

#[test]
fn what_is_written_to_a_volume_is_in_it_and_nowhere_else() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().lvm());
    let before = fs::read(&image).unwrap();
    for volume in ["vg/root", "vg/data"] {
        let point = sandbox.mount(&["-w", "-P", volume], &image, "mnt");
        fs::write(point.join("new"), vec![7; 1 << 20]).unwrap();
        sandbox.unmount(&point);
        fs::remove_dir(&point).unwrap();
        let shown = sandbox.join("shown");
        sandbox
            .loopmount()
            .args(["--fuse", "-P", volume])
            .args([&image, &shown])
            .ok();
        must(Command::new("e2fsck").arg("-fn").arg(&shown));
        sandbox.unmount(&shown);
        let point = sandbox.mount(&["-P", volume], &image, "mnt");
        assert_eq!(sandbox.read(point.join("new")), vec![7; 1 << 20]);
        sandbox.unmount(&point);
        fs::remove_dir(&point).unwrap();
    }
    // Neither the metadata nor the first partition has changed.
    let after = fs::read(&image).unwrap();
    let head = 6 << 20;
    assert!(before[..head] == after[..head]);
    sandbox.assert_clean();
}

#[test]
fn a_mirror_is_mounted_and_written_to() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().mirror());
        for args in [&[][..], &["-P", "forged"], &["-P", "/dev/md127"]] {
            let point = sandbox.mount(args, &image, "mnt");
            let names = sandbox.tool("ls").arg(point.join("etc")).ok().out();
            assert!(!names.is_empty(), "{args:?}");
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
        }
        let text = sandbox.loopmount().arg("--info").arg(&image).ok().out();
        assert!(
            text.contains("RAID 1") && text.contains("Linux RAID member"),
            "{text}"
        );
        if who == Who::Root {
            // Both members get it, through `--cow` too.
            let point = sandbox.mount(&["-w"], &image, "mnt");
            fs::write(point.join("new"), vec![7; 1 << 20]).unwrap();
            sandbox.unmount(&point);
            fs::remove_dir(&point).unwrap();
            let bytes = fs::read(&image).unwrap();
            let member = (bytes.len() - 32768) / 2;
            let (first, second) = bytes[32768..].split_at(member);
            // The superblock is in the last 8 KiB.
            assert!(first[..member - 8192] == second[..member - 8192]);
            let part = sandbox.join("part");
            fs::write(&part, &first[..member - 8192]).unwrap();
            must(Command::new("e2fsck").arg("-fn").arg(&part));
            let point = sandbox.mount(&["--cow"], &image, "mnt");
            assert_eq!(sandbox.read(point.join("new")), vec![7; 1 << 20]);
            fs::write(point.join("scratch"), "x").unwrap();
            sandbox.unmount(&point);
            assert!(fs::read(&image).unwrap() == bytes);
            // One that was left in the middle: `resync_offset` says so, with its checksum.
            let mut left = bytes;
            for start in [32768, 32768 + member] {
                let superblock = start + member - 8192;
                let superblock = &mut left[superblock..superblock + 4096];
                superblock[208..216].fill(0);
                common::images::mend_superblock(superblock);
            }
            fs::write(&image, left).unwrap();
            let refused = sandbox.loopmount().arg("-w").arg(&image).arg(&point);
            refused
                .fails(1)
                .says(&["raid", "was not stopped", "mdadm --assemble"]);
            sandbox.loopmount().arg(&image).arg(&point).ok();
            sandbox.unmount(&point);
        }
        sandbox.assert_clean();
    }
}
