//! A command that runs in the mount.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::common;
use crate::common::sandbox::{EVERYBODY, with_small_disk};
use crate::common::system::mount_at;
use crate::common::{must, umount};

#[test]
fn a_command_runs_in_the_root_of_the_image() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let run = |args: &[&str]| sandbox.loopmount().arg(&image).arg("--").args(args);
        let outcome = run(&["cat", "etc/hostname"]).ok();
        assert_eq!(outcome.out(), "two-partitions\n");
        assert_eq!(outcome.stderr, "");
        let text = run(&["ls", "-l"]).ok().out();
        assert!(text.contains("etc") && text.contains("usr"), "{text}");
        // Standard input and output are the command's own.
        let outcome = run(&["cat"]).stdin("in and out").ok();
        assert_eq!(outcome.out(), "in and out");
        sandbox.assert_clean();
    }
}

#[test]
fn a_command_gives_its_exit_code_and_ours_are_those_of_env() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let run = |args: &[&str]| sandbox.loopmount().arg(&image).arg("--").args(args);
        run(&["true"]).ok();
        run(&["sh", "-c", "exit 7"]).fails(7);
        run(&["sh", "-c", "kill -TERM $$"]).fails(143);
        run(&["no-such-command"])
            .fails(127)
            .says(&["no-such-command"]);
        run(&["./etc/hostname"]).fails(126).says(&["etc/hostname"]);
        sandbox
            .loopmount()
            .arg(sandbox.new_file("empty", ""))
            .args(["--", "true"])
            .fails(125)
            .says(&["empty"]);
        sandbox.assert_clean();
    }
}

#[test]
fn a_command_is_ended_with_the_launcher_and_nothing_stays() {
    for who in EVERYBODY {
        for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
            let (sandbox, image) = with_small_disk(who);
            let running = sandbox
                .loopmount()
                .arg(&image)
                .args(["--", "sleep", "1000"])
                .spawn();
            let sleep = sandbox.until_sleep();
            running.signal(signal);
            if signal == Signal::KILL {
                // Nobody is left to pass the signal on; the command lives as long as it likes.
                common::run::send_signal(sleep.pid, Signal::KILL);
            }
            assert_ne!(running.wait().code(), 0);
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_command_has_what_the_shell_has_open() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let script = "exec 9>out && \"$@\"";
        let run = sandbox.tool("sh").args(["-c", script, "sh"]);
        let run = run.arg(sandbox.program()).arg(&image).arg("--");
        run.args(["sh", "-c", "cat etc/hostname >&9"]).ok();
        assert_eq!(sandbox.read_text(sandbox.join("out")), "two-partitions\n");
    }
}

/// A folder whose mounts are passed on to other mount tables, as systemd has all of them.
struct Shared<'a>(&'a Path);

impl<'a> Shared<'a> {
    fn new(folder: &'a Path) -> Self {
        let tmpfs = ["-t", "tmpfs", "--make-shared", "lm-shared"];
        must(Command::new("mount").args(tmpfs).arg(folder));
        let all = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder, all).unwrap();
        Self(folder)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            umount(self.0);
        }
    }
}

#[test]
fn a_command_keeps_no_mount_that_is_unmounted_elsewhere() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let folder = sandbox.new_dir("shared");
        let _shared = Shared::new(&folder);
        let other = sandbox.image_as(&image, "other.raw.xz");
        let point = folder.join("mnt");
        sandbox.tool("mkdir").arg(&point).ok();
        let up = sandbox.loopmount().args(["--via", "fuse"]);
        up.arg(&other).arg(&point).ok();
        let running = sandbox
            .loopmount()
            .arg(&image)
            .args(["--", "sleep", "1000"])
            .spawn();
        let sleep = sandbox.until_sleep();
        let table = || std::fs::read_to_string(format!("/proc/{}/mountinfo", sleep.pid)).unwrap();
        let name = point.to_str().unwrap();
        assert!(table().contains(name), "the command sees it as before");
        // It returns when the server is gone, which lives as long as any copy of its mount.
        sandbox.unmount(&point);
        assert!(mount_at(&point).is_none());
        assert!(!table().contains(name));
        running.signal(Signal::TERM);
        running.wait().expect(143);
    }
}
