//! Up and down: what is left after each kind of end is nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::holder::Holder;
use common::images::{self, HELLO};
use common::run::{Running, send_signal};
use common::sandbox::{SERVED, plain_unit, with_small_disk};
use common::system::{loops, mount_at, process_state};
use common::{Sandbox, Who, must, until, until_no_loop};
use rustix::process::Signal;

/// The background processes of a unit, by what they are called with.
const SUPERVISOR: &str = "__supervise";
const SERVER: &str = "__serve";

/// `-u WHAT` for something that may have gone by itself meanwhile.
#[track_caller]
fn unmount_or_gone(sandbox: &Sandbox, what: &Path) {
    let outcome = sandbox.loopmount().arg("-u").arg(what).run();
    assert!(
        [0, 3].contains(&outcome.code()),
        "-u: {}: {}",
        outcome.code(),
        outcome.stderr
    );
}

#[test]
fn the_death_of_either_process_takes_the_mount_down() {
    for (who, via) in SERVED {
        for role in [SUPERVISOR, SERVER] {
            for signal in [Signal::KILL, Signal::TERM] {
                let (sandbox, image) = with_small_disk(who);
                let point = sandbox.mount(&["--via", via], &image, "mnt");
                send_signal(sandbox.pid_of(role), signal);
                until(
                    &format!("{who:?} --via {via}: {signal:?} to {role} unmounts"),
                    || mount_at(&point).is_none(),
                );
                unmount_or_gone(&sandbox, &point);
                sandbox.assert_clean();
            }
        }
    }
}

#[test]
fn a_mount_that_was_written_to_goes_with_either_process_too() {
    for role in [SUPERVISOR, SERVER] {
        let (sandbox, image) = with_small_disk(Who::Root);
        let point = sandbox.mount(&["--cow", "--via", "loop"], &image, "mnt");
        // On the device, so that the kernel has heard of a change of the file below.
        let new = fs::File::create(point.join("new")).unwrap();
        new.set_len(1 << 16).unwrap();
        new.sync_all().unwrap();
        drop(new);
        // So long the kernel believes what it was told of a file that is written to.
        let written = Instant::now();
        until("what is known of the file to be out of date", || {
            written.elapsed() > Duration::from_millis(1500)
        });
        send_signal(sandbox.pid_of(role), Signal::KILL);
        until(&format!("the death of {role} unmounts"), || {
            mount_at(&point).is_none()
        });
        unmount_or_gone(&sandbox, &point);
        sandbox.assert_clean();
    }
}

#[test]
fn the_death_of_both_at_once_leaves_what_unmount_can_undo() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        let pids = [sandbox.pid_of(SUPERVISOR), sandbox.pid_of(SERVER)];
        // Stopped first: neither can act on the death of the other.
        for signal in [Signal::STOP, Signal::KILL] {
            for pid in pids {
                send_signal(pid, signal);
            }
        }
        until("both are gone", || {
            pids.iter()
                .all(|pid| matches!(process_state(*pid), None | Some('Z')))
        });
        sandbox.unmount(&point);
        assert!(mount_at(&point).is_none());
        sandbox.assert_clean();
        // The place is as good as new.
        let again = sandbox.loopmount().args(["--via", via]);
        again.arg(&image).arg(&point).ok();
        assert!(!sandbox.read(point.join(HELLO)).is_empty());
        sandbox.unmount(&point);
    }
}

#[test]
fn a_folder_that_was_swapped_for_a_link_leads_no_unmount_elsewhere() {
    for via in ["loop", "fuse"] {
        let (sandbox, image) = with_small_disk(Who::Root);
        let mount = |folder: &str| {
            let point = sandbox.new_dir(folder).join("mnt");
            let mount = sandbox.loopmount().args(["--via", via]);
            mount.arg(&image).arg(&point).ok();
            point
        };
        let mine = mount("mine");
        let units = sandbox.units();
        let id = units[0].file_name().unwrap().to_owned();
        let other = mount("other");
        // As the owner of the folder could.
        fs::rename(sandbox.join("mine"), sandbox.join("moved")).unwrap();
        symlink("other", sandbox.join("mine")).unwrap();
        sandbox.loopmount().arg("-u").arg(&id).ok();
        assert!(mount_at(&sandbox.join("moved/mnt")).is_none());
        assert!(mount_at(&other).is_some(), "the other one stays");
        sandbox.unmount(&other);
        assert!(!other.exists(), "it was made for the mount");

        // The same, and the other folder is not a mount point but an empty folder.
        fs::remove_file(sandbox.join("mine")).unwrap();
        fs::rename(sandbox.join("moved"), sandbox.join("mine")).unwrap();
        fs::remove_dir(&mine).unwrap();
        let mount = sandbox.loopmount().args(["--via", via]);
        mount.arg(&image).arg(&mine).ok();
        fs::create_dir(&other).unwrap();
        fs::rename(sandbox.join("mine"), sandbox.join("moved")).unwrap();
        symlink("other", sandbox.join("mine")).unwrap();
        sandbox.unmount(&sandbox.join("moved/mnt"));
        assert!(other.exists(), "it was not made for the mount");
        sandbox.assert_clean();
    }
}

#[test]
fn an_open_file_gets_an_error_when_the_server_dies() {
    for (who, via) in SERVED {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk_xz());
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        let holder = Holder::open(&sandbox, &point.join("var/lib/random"));
        send_signal(sandbox.pid_of(SERVER), Signal::KILL);
        until("the mount is gone", || mount_at(&point).is_none());
        assert_ne!(holder.release().code(), 0, "{who:?} --via {via}");
        sandbox.assert_clean();
    }
}

/// A point in the life of a unit that can be seen from outside.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Supervisor,
    Server,
    Record,
    Mount,
}

impl Stage {
    fn reached(self, sandbox: &Sandbox, point: &Path) -> bool {
        match self {
            Self::Supervisor => !sandbox.processes_of(SUPERVISOR).is_empty(),
            Self::Server => !sandbox.processes_of(SERVER).is_empty(),
            Self::Record => !sandbox.units().is_empty(),
            Self::Mount => mount_at(point).is_some(),
        }
    }
}

/// Who is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Launcher,
    Process(&'static str),
}

impl Victim {
    fn hit(self, sandbox: &Sandbox, launcher: &Running, signal: Signal) {
        match self {
            Self::Launcher => launcher.signal(signal),
            Self::Process(role) => {
                for process in sandbox.processes_of(role) {
                    send_signal(process.pid, signal);
                }
            }
        }
    }
}

/// Hits each process of a unit at each stage while it comes up; then everything can be undone.
fn hit_at_each_stage(who: Who, via: &str) {
    let victims = [
        Victim::Launcher,
        Victim::Process(SUPERVISOR),
        Victim::Process(SERVER),
    ];
    let (sandbox, image) = with_small_disk(who);
    for stage in [
        Stage::Supervisor,
        Stage::Server,
        Stage::Record,
        Stage::Mount,
    ] {
        for victim in victims {
            for signal in [Signal::KILL, Signal::TERM] {
                let case = format!("{who:?} --via {via}: {signal:?} to {victim:?} at {stage:?}");
                let point = sandbox.new_dir(format!("mnt-{}", sandbox.serial()));
                let mut launcher = sandbox
                    .loopmount()
                    .args(["--via", via])
                    .arg(&image)
                    .arg(&point)
                    .spawn();
                until(&case, || {
                    stage.reached(&sandbox, &point) || !launcher.is_running()
                });
                victim.hit(&sandbox, &launcher, signal);
                let code = launcher.wait().code();
                if victim != Victim::Launcher {
                    assert!(
                        [0, 1].contains(&code),
                        "{case}: the launcher ended with {code}"
                    );
                }
                until(&format!("{case}: settles"), || {
                    mount_at(&point).is_some() || sandbox.processes().is_empty()
                });
                let outcome = sandbox.loopmount().arg("-u").arg(&point).run();
                assert!(
                    [0, 3].contains(&outcome.code()),
                    "{case}: -u: {}: {}",
                    outcome.code(),
                    outcome.stderr
                );
                sandbox.assert_clean();
            }
        }
    }
}

#[test]
fn a_hit_at_each_stage_of_roots_loop_can_be_undone() {
    hit_at_each_stage(Who::Root, "loop");
}

#[test]
fn a_hit_at_each_stage_of_roots_tree_can_be_undone() {
    hit_at_each_stage(Who::Root, "fuse");
}

#[test]
fn a_hit_at_each_stage_of_the_users_tree_can_be_undone() {
    hit_at_each_stage(Who::User, "fuse");
}

#[test]
fn a_launcher_killed_on_a_plain_image_can_be_undone() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().ext4());
    for stage in [Stage::Record, Stage::Mount] {
        let point = sandbox.new_dir(format!("mnt-{}", sandbox.serial()));
        let mut launcher = sandbox.loopmount().arg(&image).arg(&point).spawn();
        until("the stage", || {
            stage.reached(&sandbox, &point) || !launcher.is_running()
        });
        launcher.signal(Signal::KILL);
        launcher.wait();
        unmount_or_gone(&sandbox, &image);
        sandbox.loopmount().arg("--list").ok();
        sandbox.assert_clean();
    }
}

#[test]
fn background_processes_hold_neither_the_terminal_nor_a_folder() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        let own = session(std::process::id());
        for role in [SUPERVISOR, SERVER] {
            let pid = sandbox.pid_of(role);
            assert_ne!(session(pid), own, "{role} is in the session of its starter");
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
            assert_eq!(
                cwd,
                Path::new("/"),
                "{role} stands in the way of an unmount"
            );
        }
        let image_name = image.file_name().unwrap();
        let supervisor = sandbox.pid_of(SUPERVISOR);
        for fd in fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap() {
            let target = fs::read_link(fd.unwrap().path()).unwrap_or_default();
            assert_ne!(
                target.file_name(),
                Some(image_name),
                "it touches no image data"
            );
            assert_ne!(
                target,
                Path::new("/dev/fuse"),
                "only the server may hold it"
            );
        }
        sandbox.unmount(&point);
    }
}

/// The session id of a process.
fn session(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    after_name.split(' ').nth(3).unwrap().to_owned()
}

/// The helper is set-uid: it is not killed with who has started it.
#[test]
fn a_mount_that_comes_after_the_death_of_the_server_is_taken_away() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.new_dir("mnt");
    let (begun, done) = (sandbox.join("begun"), sandbox.join("done"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -u ] && exec fusermount3 \"$@\"\n\
         : > {}\nsleep 0.1\nfusermount3 \"$@\"\n: > {}\n",
        begun.display(),
        done.display()
    );
    let slow = sandbox.new_dir("slow").join("fusermount3");
    // By another process: what a child of ours holds open for writing cannot be executed.
    let install = sandbox
        .tool("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]);
    install.arg(&slow).stdin(script.into_bytes()).ok();
    let path = format!("{}:/usr/bin:/bin", slow.parent().unwrap().display());
    let mount = sandbox
        .loopmount()
        .args(["--via", "fuse"])
        .env("PATH", path);
    let launcher = mount.arg(&image).arg(&point).spawn();
    until("the helper is started", || begun.exists());
    send_signal(sandbox.pid_of(SERVER), Signal::KILL);
    launcher.wait().expect(1);
    until("the helper has done its work", || done.exists());
    assert!(mount_at(&point).is_none());
    sandbox.assert_clean();
}

#[test]
fn a_plain_umount_takes_the_server_down() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        match who {
            Who::Root => sandbox.tool("umount").arg(&point).ok(),
            Who::User => sandbox.tool("fusermount3").arg("-u").arg(&point).ok(),
        };
        sandbox.assert_clean();
        sandbox.loopmount().arg("-u").arg(&point).fails(3);
    }
    for (who, tool) in [(Who::Root, "umount"), (Who::User, "fusermount3")] {
        let (sandbox, image) = with_small_disk(who);
        let raw = sandbox.join("raw");
        sandbox.loopmount().arg("--fuse").arg(&image).arg(&raw).ok();
        let unmount = sandbox.tool(tool);
        let unmount = match who {
            Who::Root => unmount,
            Who::User => unmount.arg("-u"),
        };
        unmount.arg(&raw).ok();
        sandbox.assert_clean();
        assert!(!raw.exists(), "the file that was made is removed again");
    }
    let (sandbox, image, point) = plain_unit();
    sandbox.tool("umount").arg(&point).ok();
    // No process of ours has seen the end of it: the next look at the list clears it away.
    until_no_loop(&image);
    let listed = sandbox.loopmount().args(["--list", "--json"]).ok().out();
    assert!(!listed.contains(point.to_str().unwrap()), "{listed}");
    sandbox.assert_clean();
}

#[test]
fn unmounting_twice_says_that_nothing_is_mounted() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        sandbox.unmount(&point);
        for what in [&point, &image] {
            sandbox
                .loopmount()
                .arg("-u")
                .arg(what)
                .fails(3)
                .says(&["not mounted"]);
        }
    }
}

#[test]
fn a_mount_point_that_was_made_is_removed_again() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.join("made");
        let up = sandbox.loopmount().args(["--via", via]);
        up.arg(&image).arg(&point).ok();
        assert!(!sandbox.read(point.join(HELLO)).is_empty());
        sandbox.unmount(&point);
        assert!(!point.exists());
    }
}

#[test]
fn a_mount_that_is_not_ours_is_left_alone() {
    let sandbox = Sandbox::new(Who::Root);
    let point = sandbox.new_dir("foreign");
    let tmpfs = ["-t", "tmpfs", "lm-foreign"];
    must(Command::new("mount").args(tmpfs).arg(&point));
    sandbox.loopmount().arg("-u").arg(&point).fails(3);
    assert_eq!(mount_at(&point).unwrap().kind, "tmpfs");
    must(Command::new("umount").arg(&point));
    for what in ["/nowhere", "/", "/proc", "no-such-id", "/dev/null"] {
        sandbox.loopmount().args(["-u", what]).fails(3);
    }
}

#[test]
fn a_unit_is_found_by_mount_point_image_device_and_id() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.new_dir("mnt");
        let up = || {
            let cmd = sandbox.loopmount().args(["--via", via]);
            cmd.arg(&image).arg(&point).ok();
        };
        up();
        sandbox.unmount(&point);
        up();
        sandbox.unmount(&image);
        up();
        sandbox.unmount(Path::new(&sandbox.unit_id()));
        up();
        let relative = sandbox.loopmount().args(["-u", "home/../mnt"]);
        relative.ok();
        if via == "loop" {
            up();
            let device = mount_at(&point).unwrap().source;
            sandbox.unmount(Path::new(&device));
        }
        sandbox.assert_clean();
    }
    let (sandbox, image, point) = plain_unit();
    let up = || sandbox.loopmount().arg(&image).arg(&point).ok();
    sandbox.unmount(&image);
    up();
    sandbox.unmount(Path::new(&sandbox.unit_id()));
    up();
    let device = mount_at(&point).unwrap().source;
    sandbox.unmount(Path::new(&device));
    sandbox.assert_clean();
}

#[test]
fn odd_names_of_mount_points_and_images_work() {
    let names: [&[u8]; 9] = [
        b"with space",
        b"with\nnewline",
        b"trailing ",
        b"back\\slash",
        b"\\040",
        b"not-utf8-\xff",
        b"tab\tand'quote\"",
        b"percent%s,comma:colon=x",
        "grün-日本".as_bytes(),
    ];
    for (who, via) in SERVED {
        let sandbox = Sandbox::new(who);
        for name in names {
            let name = OsStr::from_bytes(name);
            let mut image_name = name.to_owned();
            image_name.push(".xz");
            let image = sandbox.image_as(&images::carried(), image_name);
            let point = sandbox.new_dir(name);
            let up = sandbox.loopmount().args(["--via", via]);
            up.arg(&image).arg(&point).ok();
            let hello = sandbox.read_text(point.join(HELLO));
            assert!(hello.starts_with("If you can read this"), "{name:?}");
            let id = sandbox.unit_id();
            let listed = sandbox.loopmount().arg("--list").ok().out();
            let lines = listed.lines().filter(|line| line.contains(&id)).count();
            assert_eq!(lines, 1, "{name:?} in\n{listed}");
            sandbox.unmount(&point);
            fs::remove_dir(&point).unwrap();
            fs::remove_file(&image).unwrap();
            sandbox.assert_clean();
        }
    }
    let sandbox = Sandbox::new(Who::Root);
    for name in names {
        let name = OsStr::from_bytes(name);
        let mut image_name = name.to_owned();
        image_name.push(".raw");
        let image = sandbox.image_as(&common::images().ext4(), image_name);
        let point = sandbox.new_dir(name);
        sandbox.loopmount().arg(&image).arg(&point).ok();
        assert!(point.join("etc/os-release").exists());
        sandbox.unmount(&image);
        fs::remove_dir(&point).unwrap();
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn relative_paths_and_leading_dashes_work() {
    for (who, via) in SERVED {
        let sandbox = Sandbox::new(who);
        let dir = sandbox.new_dir("-dir");
        sandbox.image_as(&images::carried(), "-dir/-image.xz");
        sandbox.new_dir("-dir/-rf");
        sandbox.new_dir("-dir/mnt");
        for point in ["mnt", "./-rf", "../-dir/mnt", "mnt/", "./mnt/."] {
            let up = sandbox.loopmount().cwd(&dir).args(["--via", via]);
            up.args(["./-image.xz", point]).ok();
            let file = dir.join(point).join(HELLO);
            assert!(!sandbox.read(file).is_empty(), "{point}");
            let down = sandbox.loopmount().cwd(&dir);
            down.args(["-u", point]).ok();
            sandbox.assert_clean();
        }
        // Found from another folder, and by a link.
        std::os::unix::fs::symlink(dir.join("mnt"), sandbox.join("link")).unwrap();
        let up = sandbox.loopmount().args(["--via", via]);
        up.arg("./-dir/-image.xz").arg("link").ok();
        assert!(mount_at(&dir.join("mnt")).is_some());
        sandbox
            .loopmount()
            .args(["-u", "link"])
            .cwd(sandbox.path())
            .ok();
        sandbox.assert_clean();
    }
}

#[test]
fn a_mount_point_whose_folder_is_renamed_is_still_ours() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        sandbox.new_dir("before");
        let point = sandbox.mount(&["--via", via], &image, "before/mnt");
        let after = sandbox.join("after");
        fs::rename(point.parent().unwrap(), &after).unwrap();
        let point = after.join("mnt");
        assert!(mount_at(&point).is_some());
        sandbox.unmount(&point);
        sandbox.assert_clean();
    }
}

#[test]
fn a_mount_that_was_moved_is_still_ours() {
    for (who, via) in SERVED {
        for by_image in [false, true] {
            let (sandbox, image) = with_small_disk(who);
            // The kernel refuses to move a mount within a shared one.
            let base = sandbox.new_dir("base");
            must(Command::new("mount").arg("--bind").args([&base, &base]));
            must(Command::new("mount").arg("--make-private").arg(&base));
            let point = sandbox.mount(&["--via", via], &image, "base/mnt");
            let moved = sandbox.new_dir("base/moved");
            must(Command::new("mount").arg("--move").args([&point, &moved]));
            assert!(mount_at(&point).is_none() && mount_at(&moved).is_some());
            assert!(!sandbox.read(moved.join(HELLO)).is_empty());
            sandbox.unmount(if by_image { &image } else { &moved });
            assert!(mount_at(&moved).is_none());
            until("the unit is gone", || sandbox.units().is_empty());
            must(Command::new("umount").arg(&base));
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_mount_point_removed_from_another_namespace_ends_the_unit() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        remove_behind(&point);
        until("the kernel has dropped the mount", || {
            mount_at(&point).is_none()
        });
        sandbox.assert_clean();
    }
    let (sandbox, image, point) = plain_unit();
    remove_behind(&point);
    unmount_or_gone(&sandbox, &image);
    until_no_loop(&image);
    sandbox.loopmount().arg("--list").ok();
    sandbox.assert_clean();
}

/// Removes the folder under a mount from a mount namespace where nothing is mounted on it.
fn remove_behind(point: &Path) {
    let script = "umount \"$1\" && rmdir \"$1\"";
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    must(unshare.arg(point));
}

#[test]
fn many_cycles_leak_nothing() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let before = loops().len();
        let point = sandbox.new_dir("mnt");
        for _ in 0..15 {
            let up = sandbox.loopmount().args(["--via", via]);
            up.arg(&image).arg(&point).ok();
            sandbox.unmount(&point);
            // `-u` has returned: the image is free, and nothing waits to be cleaned up.
            assert!(mount_at(&point).is_none());
            let holders: Vec<_> = sandbox
                .processes()
                .into_iter()
                .filter(|process| holds(process.pid, &image))
                .collect();
            assert!(holders.is_empty(), "{holders:?}");
        }
        sandbox.assert_clean();
        // Other tests use loop devices too; a leak of ours would add up.
        assert!(loops().len() < before + 15);
    }
}

fn holds(pid: u32, file: &Path) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    fds.flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file))
}

/// `exec 9>lock; flock 9` in a script, which is to end with the script.
#[test]
fn what_the_shell_has_open_is_not_kept_open_by_the_mount() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.new_dir("mnt");
        let script = "exec 9>lock && flock 9 && \"$@\"";
        let up = sandbox.tool("sh").args(["-c", script, "sh"]);
        let up = up.arg(sandbox.program()).args(["--via", via]);
        up.arg(&image).arg(&point).ok();
        sandbox.tool("flock").args(["-n", "lock", "true"]).ok();
        sandbox.unmount(&point);
    }
}
