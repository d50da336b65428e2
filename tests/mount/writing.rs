//! Writes, and who may write.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common;
use crate::common::images::{self, ROOT_SIZE, ROOT_START, read_range, sha256};
use crate::common::sandbox::{EVERYBODY, with_small_disk};
use crate::common::{Sandbox, Who, must, require_tool, umount};

#[test]
fn writes_of_root_land_in_the_image() {
    for via in ["auto", "loop"] {
        let sandbox = Sandbox::new(Who::Root);
        let image = sandbox.image(&common::images().disk());
        let before = sha256(&image);
        let point = sandbox.mount(&["-w", "--via", via, "-P", "2"], &image, "mnt");
        let write = |name: &str, bytes: Vec<u8>| {
            let of = format!("of={}", point.join(name).display());
            sandbox.tool("dd").arg(of).stdin(bytes).ok();
        };
        write("etc/new", b"written through the mount\n".to_vec());
        write("var/lib/random", vec![0x5a; 5_000_000]);
        fs::remove_file(point.join("usr/bin/tool")).unwrap();
        sandbox.unmount(&point);
        assert_ne!(sha256(&image), before);
        check_written(&sandbox, &image);
    }
}

/// The kernel takes what is written and writes it later, where it may have no room any more.
#[test]
fn an_unmount_says_what_did_not_reach_the_image() {
    require_tool("qemu-img", "qemu-utils");
    let sandbox = Sandbox::new(Who::Root);
    let small = sandbox.new_dir("small");
    must(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8M", "tmpfs"])
            .arg(&small),
    );
    let image = small.join("disk.qcow2");
    let raw = sandbox.join("raw");
    images::make_sparse(&raw, 64 << 20);
    must(
        Command::new("mkfs.ext4")
            .args(["-q", "-b", "4096"])
            .arg(&raw),
    );
    let convert = ["convert", "-O", "qcow2"];
    must(Command::new("qemu-img").args(convert).arg(&raw).arg(&image));
    let write = |mib: usize| {
        let point = sandbox.mount(&["-w", "--via", "loop"], &image, &format!("mnt{mib}"));
        let of = format!("of={}", point.join("new").display());
        sandbox.tool("dd").arg(of).stdin(vec![0x5a; mib << 20]).ok();
        sandbox.loopmount().arg("-u").arg(&point).run()
    };
    write(1).expect(0);
    write(20).expect(1).says(&[
        "not all that was written",
        "writes of the file system failed",
    ]);
    umount(&small);
    sandbox.assert_clean();
}

/// What [`writes_of_root_land_in_the_image`] wrote is there, and the file system is sound.
#[track_caller]
fn check_written(sandbox: &Sandbox, disk: &Path) {
    let root = sandbox.join("root.raw");
    images::make_sparse(&root, ROOT_SIZE);
    let bytes = read_range(disk, ROOT_START, usize::try_from(ROOT_SIZE).unwrap()).unwrap();
    fs::write(&root, bytes).unwrap();
    must(Command::new("e2fsck").arg("-fn").arg(&root));
    images::with_mounted(&root, &["-r"], |dir| {
        let text = fs::read_to_string(dir.join("etc/new")).unwrap();
        assert_eq!(text, "written through the mount\n");
        let random = fs::read(dir.join("var/lib/random")).unwrap();
        assert_eq!(random, vec![0x5a; 5_000_000]);
        assert!(!dir.join("usr/bin/tool").exists());
    });
}

#[test]
fn what_cannot_be_written_is_refused_with_its_name() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.new_dir("mnt");
        sandbox
            .loopmount()
            .arg("-w")
            .arg(&image)
            .arg(&point)
            .fails(1)
            .says(&["xz", "writ", "--cow"]);
    }
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&common::images().ext4());
    must(Command::new("chown").arg("root:root").arg(&image));
    let raw = sandbox.join("raw");
    let write = || {
        let cmd = sandbox.loopmount().args(["-w", "--fuse"]);
        cmd.arg(&image).arg(&raw).fails(1)
    };
    write().says(&["permission denied", "--cow takes writes"]);
    // What cannot be read either is not offered.
    must(Command::new("chmod").arg("600").arg(&image));
    let refused = write().says(&["permission denied"]);
    assert!(!refused.stderr.contains("--cow"), "{}", refused.stderr);
}

#[test]
fn two_writers_of_one_image_are_refused() {
    require_tool("qemu-io", "qemu-utils");
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().ext4());
        let first = sandbox.join("first");
        let second = sandbox.join("second");
        let open = |args: &[&str], target: &Path| {
            let cmd = sandbox.loopmount().arg("--fuse").args(args);
            cmd.arg(&image).arg(target)
        };
        open(&["-w"], &first).ok();
        open(&["-w"], &second).fails(1).says(&["in use"]);
        open(&[], &second).fails(1).says(&["in use"]);
        let qemu = |args: &[&str]| sandbox.tool("qemu-io").args(["-f", "raw"]).args(args);
        let refused = qemu(&["-c", "write 0 512"]).arg(&image).run();
        assert!(refused.stderr.contains("lock"), "{}", refused.stderr);
        sandbox.unmount(&first);

        open(&[], &first).ok();
        open(&[], &second).ok();
        let third = sandbox.join("third");
        open(&["-w"], &third).fails(1).says(&["in use"]);
        sandbox.unmount(&first);
        sandbox.unmount(&second);
        open(&["-w"], &third).ok();
        sandbox.unmount(&third);
    }
    // The kernel's own loop device keeps the lock although no process of ours stays.
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().ext4());
    let point = sandbox.mount(&["-w"], &image, "mnt");
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
    let other = sandbox.new_dir("other");
    sandbox
        .loopmount()
        .arg("-w")
        .arg(&image)
        .arg(&other)
        .fails(1)
        .says(&["in use"]);
    sandbox.unmount(&point);
}
