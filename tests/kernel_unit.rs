//! The built program with kernel nbd, inside user-mode Linux.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "kernel_unit/crash.rs"]
mod crash;
#[path = "common/uml.rs"]
mod uml;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::holder::Holder;
use common::images::{self, HELLO};
use common::run::send_signal;
use common::sandbox::with_small_disk;
use common::system::{mount_at, process_state, tasks_in_d_state, threads_in_d_state};
use common::{Sandbox, Who, must, until};
use loopmount::sys::block::BlockDevice;
use loopmount::target::kernel_nbd;
use rustix::process::Signal;

/// For one test in its kernel.
const LIMIT: Duration = Duration::from_secs(600);
/// The background processes of a unit, by what they are called with.
const SUPERVISOR: &str = "__supervise";
const SERVER: &str = "__serve";
/// A file of the big image that has not been read before.
const BIG_FILE: &str = "var/lib/random";

/// The small disk, mounted through kernel nbd.
fn mounted() -> (Sandbox, PathBuf, PathBuf) {
    let (sandbox, image) = with_small_disk(Who::Root);
    let point = sandbox.mount(&["--via", "nbd"], &image, "mnt");
    assert_is_nbd(&point);
    (sandbox, image, point)
}

#[track_caller]
fn mount_nbd(sandbox: &Sandbox, image: &Path, point: &Path) {
    let command = sandbox.loopmount().args(["--via", "nbd"]);
    command.arg(image).arg(point).ok();
    assert_is_nbd(point);
}

#[track_caller]
fn assert_is_nbd(point: &Path) {
    let mount = mount_at(point).unwrap();
    assert!(
        mount.source.to_str().unwrap().starts_with("/dev/nbd"),
        "{mount:?}"
    );
    assert!(
        mount.options.contains("nosuid") && mount.options.contains("nodev"),
        "{mount:?}"
    );
}

#[track_caller]
fn pid_of(sandbox: &Sandbox, role: &str) -> u32 {
    let found = sandbox.processes_of(role);
    assert_eq!(found.len(), 1, "one {role}: {:?}", sandbox.processes());
    found[0].pid
}

/// No mount, process or state of the test, and no nbd device of anybody.
#[track_caller]
fn assert_nothing_is_left(sandbox: &Sandbox) {
    sandbox.assert_clean();
    assert_eq!(kernel_nbd::find().unwrap(), []);
    for (_, device) in BlockDevice::all("nbd").unwrap() {
        assert_eq!(device.attribute("pid"), None, "{}", device.name());
    }
    // The kernel's own workers sleep so for a moment now and then; what hangs stays.
    until("nothing is in D state", || tasks_in_d_state().is_empty());
}

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
fn an_image_is_mounted_read_listed_and_unmounted() {
    uml::inside(
        "an_image_is_mounted_read_listed_and_unmounted",
        LIMIT,
        || {
            let (sandbox, image) = with_small_disk(Who::Root);
            // Root and a module: kernel nbd is what `auto` takes.
            let point = sandbox.mount(&[], &image, "mnt");
            assert_is_nbd(&point);
            assert!(
                sandbox
                    .read_text(point.join(HELLO))
                    .contains("three wrappings")
            );
            let refused = fs::write(point.join("new"), "x").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
            let list = sandbox.loopmount().arg("--list").ok().out();
            assert!(
                list.contains("nbd") && list.contains(point.to_str().unwrap()),
                "{list}"
            );
            // By mount point, image and device.
            let names: [fn(&Path, &Path) -> PathBuf; 3] = [
                |point, _| point.to_owned(),
                |_, image| image.to_owned(),
                |point, _| mount_at(point).unwrap().source.into(),
            ];
            for name in names {
                sandbox.unmount(&name(&point, &image));
                assert!(mount_at(&point).is_none());
                assert_nothing_is_left(&sandbox);
                mount_nbd(&sandbox, &image, &point);
            }
            sandbox.unmount(&point);
            assert_nothing_is_left(&sandbox);
            sandbox.loopmount().arg("-u").arg(&point).fails(3);
        },
    );
}

#[test]
fn a_loop_device_over_a_fuse_file_has_the_size_of_the_image() {
    let name = "a_loop_device_over_a_fuse_file_has_the_size_of_the_image";
    uml::inside(name, LIMIT, || {
        for args in [&["--via", "loop"][..], &["--via", "loop", "--cow"]] {
            let (sandbox, image) = with_small_disk(Who::Root);
            let point = sandbox.mount(args, &image, "mnt");
            let loops = BlockDevice::all("loop").unwrap();
            let sizes = loops.iter().filter_map(|(_, device)| {
                device.attribute("loop/backing_file")?;
                device.attribute("size")
            });
            let info = sandbox.loopmount().args(["--info", "--json"]).arg(&image);
            let info: serde_json::Value = serde_json::from_str(&info.ok().out()).unwrap();
            // The second is the root.
            let sectors = info["partitions"][1]["size"].as_u64().unwrap() / 512;
            assert_eq!(sizes.collect::<Vec<_>>(), [sectors.to_string()], "{args:?}");
            sandbox.unmount(&point);
            assert_nothing_is_left(&sandbox);
        }
    });
}

#[test]
fn what_is_written_is_in_the_image_after_unmount() {
    let source = common::images().ext4();
    uml::inside(
        "what_is_written_is_in_the_image_after_unmount",
        LIMIT,
        || {
            let sandbox = Sandbox::new(Who::Root);
            let image = sandbox.image(&source);
            let point = sandbox.mount(&["-w", "--via", "nbd"], &image, "mnt");
            assert_is_nbd(&point);
            fs::write(point.join("new"), vec![7; 3 << 20]).unwrap();
            sandbox.unmount(&point);
            assert_nothing_is_left(&sandbox);
            must(Command::new("e2fsck").arg("-fn").arg(&image));
            must(
                Command::new("mount")
                    .args(["-o", "loop,ro"])
                    .arg(&image)
                    .arg(&point),
            );
            let found = fs::read(point.join("new"));
            must(Command::new("umount").arg(&point));
            assert_eq!(found.unwrap(), vec![7; 3 << 20]);
        },
    );
}

#[test]
fn a_hundred_units_leave_nothing() {
    uml::inside("a_hundred_units_leave_nothing", LIMIT, || {
        let (sandbox, image) = with_small_disk(Who::Root);
        let point = sandbox.new_dir("mnt");
        for _ in 0..100 {
            mount_nbd(&sandbox, &image, &point);
            assert!(!fs::read(point.join(HELLO)).unwrap().is_empty());
            sandbox.unmount(&point);
            assert_nothing_is_left(&sandbox);
        }
    });
}

#[test]
fn a_plain_umount_ends_the_unit() {
    uml::inside("a_plain_umount_ends_the_unit", LIMIT, || {
        let (sandbox, _, point) = mounted();
        must(Command::new("umount").arg(&point));
        assert_nothing_is_left(&sandbox);
    });
}

#[test]
fn a_busy_mount_stays_until_it_is_free() {
    uml::inside("a_busy_mount_stays_until_it_is_free", LIMIT, || {
        let (sandbox, _, point) = mounted();
        let holder = Holder::stand_in(&sandbox, &point);
        let busy = sandbox.loopmount().arg("-u").arg(&point).fails(4);
        assert!(
            busy.stderr.contains(&holder.pid().to_string()),
            "{}",
            busy.stderr
        );
        assert!(!fs::read(point.join(HELLO)).unwrap().is_empty());
        holder.kill();
        sandbox.unmount(&point);
        assert_nothing_is_left(&sandbox);
    });
}

#[test]
fn a_lazy_unmount_ends_with_the_last_user() {
    uml::inside("a_lazy_unmount_ends_with_the_last_user", LIMIT, || {
        let (sandbox, _, point) = mounted();
        let holder = Holder::open(&sandbox, &point.join("var/log/numbers"));
        sandbox.loopmount().args(["-u", "--lazy"]).arg(&point).ok();
        assert!(mount_at(&point).is_none());
        assert_eq!(
            holder.release().code(),
            0,
            "the open file can be read to its end"
        );
        assert_nothing_is_left(&sandbox);
    });
}

#[test]
fn the_death_of_either_process_takes_the_mount_down() {
    uml::inside(
        "the_death_of_either_process_takes_the_mount_down",
        LIMIT,
        || {
            for role in [SUPERVISOR, SERVER] {
                for signal in [Signal::KILL, Signal::TERM] {
                    let (sandbox, _, point) = mounted();
                    send_signal(pid_of(&sandbox, role), signal);
                    until(&format!("{signal:?} to {role} unmounts"), || {
                        mount_at(&point).is_none()
                    });
                    unmount_or_gone(&sandbox, &point);
                    assert_nothing_is_left(&sandbox);
                }
            }
        },
    );
}

#[test]
fn the_death_of_both_at_once_leaves_what_unmount_can_undo() {
    let name = "the_death_of_both_at_once_leaves_what_unmount_can_undo";
    uml::inside(name, LIMIT, || {
        let (sandbox, image, point) = mounted();
        let pids = [pid_of(&sandbox, SUPERVISOR), pid_of(&sandbox, SERVER)];
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
        assert_nothing_is_left(&sandbox);
        mount_nbd(&sandbox, &image, &point);
        assert!(!fs::read(point.join(HELLO)).unwrap().is_empty());
        sandbox.unmount(&point);
        assert_nothing_is_left(&sandbox);
    });
}

#[test]
fn io_in_flight_gets_an_error_when_a_process_is_killed() {
    let source = common::images().disk_xz();
    uml::inside(
        "io_in_flight_gets_an_error_when_a_process_is_killed",
        LIMIT,
        || {
            for victims in [&[SERVER][..], &[SUPERVISOR], &[SERVER, SUPERVISOR]] {
                let sandbox = Sandbox::new(Who::Root);
                let image = sandbox.image(&source);
                let point = sandbox.mount(&["--via", "nbd"], &image, "mnt");
                let server = pid_of(&sandbox, SERVER);
                let holder = Holder::open(&sandbox, &point.join(BIG_FILE));
                // A server that does not run answers nothing: the read is in flight for certain.
                send_signal(server, Signal::STOP);
                let reader = {
                    let file = point.join(BIG_FILE);
                    std::thread::spawn(move || fs::read(file))
                };
                until("the read waits", || {
                    !threads_in_d_state(Path::new("/proc/self")).is_empty()
                });
                for role in victims {
                    send_signal(pid_of(&sandbox, role), Signal::KILL);
                }
                if !victims.contains(&SERVER) {
                    // It has to see that its supervisor is gone.
                    send_signal(server, Signal::CONT);
                }
                if victims.len() == 2 {
                    // Nobody is left to do it. The open file keeps the device, which was cut off.
                    let lazy = sandbox.loopmount().args(["-u", "--lazy"]);
                    lazy.arg(&point).ok().says(&["detached"]);
                }
                until("the mount is gone", || mount_at(&point).is_none());
                let outcome = reader.join().unwrap();
                assert!(
                    outcome.is_err() || !victims.contains(&SERVER),
                    "{victims:?}"
                );
                holder.kill();
                unmount_or_gone(&sandbox, &point);
                assert_nothing_is_left(&sandbox);
            }
        },
    );
}

#[test]
fn dirty_pages_do_not_hold_up_the_end_when_the_server_is_killed() {
    let source = common::images().ext4();
    let name = "dirty_pages_do_not_hold_up_the_end_when_the_server_is_killed";
    uml::inside(name, LIMIT, || {
        for victims in [&[SERVER][..], &[SUPERVISOR, SERVER]] {
            let sandbox = Sandbox::new(Who::Root);
            let image = sandbox.image(&source);
            let point = sandbox.mount(&["-w", "--via", "nbd"], &image, "mnt");
            // Not written back yet: the kernel waits some seconds for more.
            fs::write(point.join("new"), vec![7; 3 << 20]).unwrap();
            let pids: Vec<u32> = victims.iter().map(|role| pid_of(&sandbox, role)).collect();
            // Stopped first: neither can act on the death of the other.
            for signal in [Signal::STOP, Signal::KILL] {
                for pid in &pids {
                    send_signal(*pid, signal);
                }
            }
            if victims.len() == 1 {
                until("the mount is gone", || mount_at(&point).is_none());
            }
            unmount_or_gone(&sandbox, &point);
            assert_nothing_is_left(&sandbox);
        }
    });
}

#[test]
fn a_device_that_somebody_else_disconnects_ends_the_unit() {
    let name = "a_device_that_somebody_else_disconnects_ends_the_unit";
    uml::inside(name, LIMIT, || {
        let (sandbox, _, point) = mounted();
        let device = mount_at(&point).unwrap().source;
        must(Command::new("nbd-client").arg("-d").arg(device));
        until("the mount is gone", || mount_at(&point).is_none());
        assert_nothing_is_left(&sandbox);
    });
}

#[test]
fn a_command_runs_in_the_image_and_all_is_gone_after() {
    uml::inside(
        "a_command_runs_in_the_image_and_all_is_gone_after",
        LIMIT,
        || {
            for who in [Who::Root, Who::User] {
                let (sandbox, image) = with_small_disk(who);
                let command = ["--", "sh", "-c", "cat etc/hostname; exit 7"];
                let outcome = sandbox.loopmount().arg(&image).args(command).fails(7);
                assert_eq!(outcome.out(), "two-partitions\n", "{who:?}");
                assert_nothing_is_left(&sandbox);
            }
        },
    );
}

#[test]
fn a_bad_image_is_refused_and_leaves_nothing() {
    uml::inside("a_bad_image_is_refused_and_leaves_nothing", LIMIT, || {
        let sandbox = Sandbox::new(Who::Root);
        let mut bytes = fs::read(images::carried()).unwrap();
        bytes.truncate(bytes.len() / 2);
        let image = sandbox.new_file("half.raw.xz", &bytes);
        let point = sandbox.new_dir("mnt");
        let refused = sandbox
            .loopmount()
            .args(["--via", "nbd"])
            .arg(&image)
            .arg(&point);
        refused.fails(1).says(&["xz"]);
        assert_nothing_is_left(&sandbox);
    });
}
