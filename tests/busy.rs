//! `-u` of what is in use: by whom, and what is only so for a moment.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::holder::Holder;
use common::images::{self, HELLO};
use common::run::send_signal;
use common::sandbox::{SERVED, plain_unit, with_small_disk};
use common::system::mount_at;
use common::{Sandbox, Who, must, until, until_no_loop};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use rustix::process::Signal;

#[test]
fn a_busy_mount_stays_and_who_holds_it_is_named() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        busy(&sandbox, &point);
    }
    let (sandbox, _, point) = plain_unit();
    busy(&sandbox, &point);
}

fn busy(sandbox: &Sandbox, point: &Path) {
    let holder = Holder::stand_in(sandbox, &point.join("etc"));
    let pid = holder.pid().to_string();
    sandbox
        .loopmount()
        .arg("-u")
        .arg(point)
        .fails(4)
        .says(&["in use", "sleep", &pid, "--lazy"]);
    assert!(
        mount_at(point).is_some(),
        "a refused unmount changes nothing"
    );
    assert!(!sandbox.read(point.join("etc/os-release")).is_empty());
    holder.kill();
    sandbox.unmount(point);
    sandbox.assert_clean();
}

#[test]
fn lazy_takes_a_busy_mount_out_of_sight_and_the_rest_when_it_is_free() {
    for (who, via) in SERVED {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk_xz());
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        let holder = Holder::open(&sandbox, &point.join("var/lib/random"));
        lazy(&sandbox, &image, &point, holder);
    }
    let (sandbox, image, point) = plain_unit();
    let holder = Holder::open(&sandbox, &point.join("var/lib/random"));
    lazy(&sandbox, &image, &point, holder);
}

fn lazy(sandbox: &Sandbox, image: &Path, point: &Path, holder: Holder) {
    let unmount = sandbox.loopmount().args(["--lazy", "-u"]);
    unmount.arg(point).ok();
    assert!(mount_at(point).is_none());
    // What was open can still be read.
    holder.release().expect(0);
    until_no_loop(image);
    sandbox.loopmount().arg("--list").ok();
    sandbox.assert_clean();
}

#[test]
fn a_covered_mount_is_not_confused_with_what_covers_it() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        let tmpfs = ["-t", "tmpfs", "lm-cover"];
        must(Command::new("mount").args(tmpfs).arg(&point));
        let outcome = sandbox.loopmount().arg("-u").arg(&point).run();
        outcome
            .expect(4)
            .says(&["covered by another mount", "hint: umount "]);
        assert_eq!(mount_at(&point).unwrap().kind, "tmpfs");
        must(Command::new("umount").arg(&point));
        assert!(
            !sandbox.read(point.join(HELLO)).is_empty(),
            "and nothing is broken"
        );
        sandbox.unmount(&point);
        sandbox.assert_clean();
    }
}

#[test]
fn a_supervisor_that_is_to_end_waits_for_what_covers_its_mount() {
    let (sandbox, image) = with_small_disk(Who::Root);
    let point = sandbox.mount(&["--via", "fuse"], &image, "mnt");
    must(
        Command::new("mount")
            .args(["-t", "tmpfs", "lm-cover"])
            .arg(&point),
    );
    let [unit] = &sandbox.units()[..] else {
        panic!("one unit")
    };
    let [supervisor] = &sandbox.processes_of("__supervise")[..] else {
        panic!("one supervisor")
    };
    send_signal(supervisor.pid, Signal::TERM);
    let log = || std::fs::read_to_string(unit.join("log")).unwrap();
    let covered = |log: &str| log.matches("covered").count();
    until("it has tried", || covered(&log()) > 0);
    // Long enough for a second try, or for thousands.
    std::thread::sleep(Duration::from_millis(1500));
    let log = log();
    assert_eq!(covered(&log), 1, "{log}");
    must(Command::new("umount").arg(&point));
    until("it goes by itself", || mount_at(&point).is_none());
    sandbox.assert_clean();
}

#[test]
fn a_mount_on_a_folder_of_it_is_named() {
    let (sandbox, _, point) = plain_unit();
    let upper = point.join("etc");
    let tmpfs = ["-t", "tmpfs", "lm-upper"];
    must(Command::new("mount").args(tmpfs).arg(&upper));
    let said = format!("the mount on {}", upper.display());
    let unmount = sandbox.loopmount().arg("-u").arg(&point);
    unmount.fails(4).says(&["in use", &said]);
    must(Command::new("umount").arg(&upper));
    sandbox.unmount(&point);
    sandbox.assert_clean();
}

/// The kernel alone uses the file: there is no process to be found.
#[test]
fn an_image_in_an_image_is_named_by_its_device() {
    let sandbox = Sandbox::new(Who::Root);
    let outer = sandbox.join("outer.img");
    images::make_sparse(&outer, 64 << 20);
    must(Command::new("mkfs.ext4").arg("-q").arg(&outer));
    let point = sandbox.mount(&["-w"], &outer, "mnt");
    let inner = point.join("inner.img");
    must(Command::new("cp").arg(images::images().ext4()).arg(&inner));
    let below = sandbox.mount(&[], &inner, "below");
    let unmount = sandbox.loopmount().arg("-u").arg(&point);
    let said = format!("file {}", inner.display());
    unmount.fails(4).says(&["in use by /dev/loop", &said]);
    sandbox.unmount(&below);
    sandbox.unmount(&point);
    sandbox.assert_clean();
}

#[test]
fn a_loop_device_over_what_does_not_answer_holds_up_no_command() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().ext4());
    let raw = sandbox.join("raw");
    sandbox
        .loopmount()
        .args(["--fuse", "-w"])
        .args([&image, &raw])
        .ok();
    let [server] = &sandbox.processes_of("__serve")[..] else {
        panic!("one server")
    };
    // Of somebody else, and detached by its last user as ours are.
    let other = sandbox.new_dir("other");
    must(
        Command::new("mount")
            .args(["-o", "loop,ro"])
            .args([&raw, &other]),
    );
    // So long the kernel believes what it was told of a file that is written to.
    std::thread::sleep(Duration::from_millis(1500));
    send_signal(server.pid, Signal::STOP);
    let mut list = sandbox.loopmount().arg("--list").spawn();
    until("the list is there", || !list.is_running());
    send_signal(server.pid, Signal::CONT);
    list.wait().expect(0);
    must(Command::new("umount").arg(&other));
    sandbox.unmount(&raw);
    sandbox.assert_clean();
}

#[test]
fn an_image_in_an_image_is_taken_down_first() {
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&common::images().ext4());
    let raw = sandbox.join("raw");
    let point = sandbox.new_dir("mnt");
    // In the order of their ids, which are random, the inner one is to come last.
    loop {
        sandbox.loopmount().arg("--fuse").arg(&image).arg(&raw).ok();
        let outer = sandbox.unit_id();
        sandbox.loopmount().arg(&raw).arg(&point).ok();
        let list = sandbox.loopmount().arg("--list").ok().out();
        let at = point.display().to_string();
        let line = list.lines().find(|line| line.contains(&at)).unwrap();
        let inner = line[..outer.len()].to_owned();
        if outer < inner {
            let named = format!("the mount {inner} of loopmount");
            let unmount = sandbox.loopmount().arg("-u").arg(&image);
            unmount.fails(4).says(&["in use by", &named]);
            break;
        }
        sandbox.unmount(&point);
        sandbox.unmount(&raw);
    }
    sandbox.unmount(&raw);
    assert!(mount_at(&point).is_none());
    sandbox.assert_clean();
}

/// A file that is open in no process: it is under way in a socket.
struct UnderWay {
    _sockets: (OwnedFd, OwnedFd),
}

impl UnderWay {
    fn new(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let sockets = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = [IoSlice::new(b"x")];
        sendmsg(&sockets.0, &bytes, &mut control, SendFlags::empty()).unwrap();
        Self { _sockets: sockets }
    }
}

#[test]
fn what_is_in_use_for_a_moment_is_waited_for() {
    let served = with_small_disk(Who::Root);
    let point = served.0.mount(&["--via", "loop"], &served.1, "mnt");
    let (plain, _, plain_point) = plain_unit();
    for (sandbox, point) in [(served.0, point), (plain, plain_point)] {
        let held = UnderWay::new(&point.join("etc/os-release"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                drop(held);
            });
            sandbox.unmount(&point);
        });
        sandbox.assert_clean();
    }
}

#[test]
fn a_user_that_cannot_be_found_is_said_to_be_so() {
    let (sandbox, _, point) = plain_unit();
    let held = UnderWay::new(&point.join("etc/os-release"));
    let unmount = sandbox.loopmount().arg("-u").arg(&point);
    let said = "by nothing that can be seen from here";
    unmount.fails(4).says(&["in use", said, "--lazy"]);
    assert!(mount_at(&point).is_some());
    drop(held);
    sandbox.unmount(&point);
    sandbox.assert_clean();
}
