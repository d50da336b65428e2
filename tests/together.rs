//! Several commands for one mount, and several mounts in one place.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::images::HELLO;
use common::run::send_signal;
use common::sandbox::{EVERYBODY, plain_unit, with_small_disk};
use common::system::{mount_at, process_state};
use common::{Sandbox, Who, until, until_no_loop};
use rustix::process::Signal;

#[test]
fn a_second_unmount_waits_for_what_the_first_one_writes_back() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let disk = sandbox.decoded(&image);
        let qcow2 = sandbox.join("disk.qcow2");
        let convert = sandbox.tool("qemu-img").args(["convert", "-O", "qcow2"]);
        convert.arg(&disk).arg(&qcow2).ok();
        let raw = sandbox.join("raw");
        let mount = sandbox.loopmount().args(["-w", "--fuse"]);
        mount.arg(&qcow2).arg(&raw).ok();
        let id = sandbox.unit_id();
        // A cluster that was not allocated: its tables are written at the end.
        let write = "printf stored | dd conv=notrunc status=none seek=12000000 oflag=seek_bytes";
        let write = format!("{write} of={}", raw.display());
        sandbox.tool("sh").args(["-c", &write]).ok();
        let server = sandbox.pid_of("__serve");
        send_signal(server, Signal::STOP);
        let first = sandbox.loopmount().arg("-u").arg(&raw).spawn();
        until("it is unmounted", || mount_at(&raw).is_none());
        let second = sandbox.loopmount().arg("-u").arg(&id).spawn();
        // Both say what they wait for before long.
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(process_state(server), Some('T'), "the server was killed");
        send_signal(server, Signal::CONT);
        for unmount in [first, second] {
            let outcome = unmount.wait().expect(0);
            assert!(
                outcome
                    .stderr
                    .contains("waiting until all that was written"),
                "{}",
                outcome.stderr
            );
        }
        let read = sandbox.tool("qemu-io").args(["-r", "-f", "qcow2"]);
        let read = read.args(["-c", "read -v 12000000 6"]).arg(&qcow2);
        let out = read.ok().out();
        assert!(out.contains("73 74 6f 72 65 64"), "{out}");
        sandbox.tool("qemu-img").arg("check").arg(&qcow2).ok();
        sandbox.assert_clean();
    }
}

#[test]
fn one_unmount_takes_all_that_is_on_the_mount_point() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().ext4());
    let point = sandbox.new_dir("mnt");
    // Their ids are in any order.
    for _ in 0..5 {
        for _ in 0..3 {
            sandbox.loopmount().arg(&image).arg(&point).ok();
        }
        sandbox.unmount(&point);
        assert!(mount_at(&point).is_none());
    }
    sandbox.assert_clean();
}

#[test]
fn a_mount_below_another_one_goes_when_that_is_gone() {
    let (sandbox, image) = with_small_disk(Who::Root);
    let point = sandbox.mount(&[], &image, "mnt");
    let log = sandbox.units()[0].join("log");
    let tmpfs = sandbox.tool_as_root("mount").args(["-t", "tmpfs", "tmpfs"]);
    tmpfs.arg(&point).ok();
    send_signal(sandbox.pid_of("__supervise"), Signal::TERM);
    let said = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.matches("covered by another mount").count()
    };
    until("it is noted", || said() > 0);
    std::thread::sleep(Duration::from_millis(300));
    // Other tests mount, too, and each time it is tried again.
    assert!(said() < 100, "{} times", said());
    sandbox.tool_as_root("umount").arg(&point).ok();
    until("the one below goes", || mount_at(&point).is_none());
    sandbox.assert_clean();
}

#[test]
fn an_image_that_a_command_runs_in_is_busy() {
    for who in EVERYBODY {
        // The second has no process of ours when root mounts it.
        let set = common::images();
        for image in [set.disk_xz(), set.ext4()] {
            let sandbox = Sandbox::new(who);
            let image = sandbox.image(&image);
            let begun = sandbox.new_dir("shared").join("begun");
            let script = format!("touch {}; exec sleep 60", begun.display());
            let command = sandbox.loopmount().arg(&image);
            let mut command = command.args(["--", "sh", "-c", &script]).spawn();
            until("the command runs", || begun.exists());
            let busy = sandbox.loopmount().arg("-u").arg(&image);
            busy.fails(4)
                .says(&["a command runs in the image", "hint: end that"]);
            assert!(command.is_running());
            send_signal(sandbox.until_sleep().pid, Signal::TERM);
            command.wait();
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_plain_image_in_the_foreground_leaves_nothing_after_a_plain_umount() {
    let (sandbox, image, point) = plain_unit();
    sandbox.unmount(&point);
    let made = sandbox.join("made");
    let foreground = sandbox.loopmount().arg("--foreground");
    let foreground = foreground.arg(&image).arg(&made).spawn();
    until("it is mounted", || mount_at(&made).is_some());
    sandbox.tool("umount").arg(&made).ok();
    foreground.wait().expect(0);
    assert!(!made.exists(), "the folder that was made is removed again");
    assert_eq!(sandbox.units(), Vec::<&Path>::new());
    sandbox.assert_clean();
}

#[test]
fn a_unit_in_the_foreground_with_its_state_elsewhere_is_no_dead_one() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.new_dir("mnt");
    let foreground = sandbox.loopmount().arg("--foreground");
    let foreground = foreground.arg(&image).arg(&point).spawn();
    until("it is mounted", || mount_at(&point).is_some());
    sandbox.read(point.join(HELLO));
    let id = sandbox.unit_id();
    let run = sandbox.new_dir("other-run");
    let elsewhere = || sandbox.loopmount().env("XDG_RUNTIME_DIR", &run);
    let list = elsewhere().arg("--list").ok().out();
    let line = list.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.ends_with("mounted"), "{line}");
    elsewhere().args(["-u", "--lazy"]).arg(&point).ok();
    foreground.wait().expect(0);
    sandbox.assert_clean();
}

#[test]
fn what_is_gone_is_in_no_list_of_several_at_once() {
    let (sandbox, image, point) = plain_unit();
    let script = "for i in 1 2 3 4; do \"$0\" --list & done; wait";
    for _ in 0..20 {
        sandbox.tool("umount").arg(&point).ok();
        until_no_loop(&image);
        // The first that looks clears it away; to the others it is not one that is looked after.
        let lists = sandbox.tool("sh").args(["-c", script]);
        let listed = lists.arg(sandbox.program()).ok().out();
        assert!(!listed.contains(point.to_str().unwrap()), "{listed}");
        sandbox.loopmount().arg(&image).arg(&point).ok();
    }
    sandbox.unmount(&point);
}

#[test]
fn a_detached_mount_that_is_still_in_use_ends_when_it_is_asked_again() {
    let (sandbox, image) = with_small_disk(Who::Root);
    let point = sandbox.mount(&["--via", "fuse"], &image, "mnt");
    let id = sandbox.unit_id();
    let held = fs::File::open(point.join(HELLO)).unwrap();
    sandbox.loopmount().args(["-u", "--lazy"]).arg(&point).ok();
    assert_eq!(sandbox.processes_of("__serve").len(), 1);
    sandbox.loopmount().arg("-u").arg(&id).ok();
    assert!(std::io::Read::read(&mut &held, &mut [0; 16]).is_err());
    sandbox.assert_clean();
}
