//! A private mount table, inside user-mode Linux: there a test may change the mounts of all.

#[path = "common/uml.rs"]
mod uml;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use loopmount::sys::mount::{Spec, create, open_target};
use loopmount::sys::namespace::private_mounts;

const LIMIT: Duration = Duration::from_secs(600);
const TARGET: &str = "/tmp/private";

/// A mount of everybody, which is unmounted while there is a private table.
const OTHER: &str = "/tmp/other";
/// And one that is mounted then.
const LATER: &str = "/tmp/later";

fn mount_tmpfs(at: &str) {
    let spec = Spec {
        fstype: "tmpfs",
        source: Path::new("none"),
        read_only: false,
        options: &[],
    };
    let target = open_target(Path::new(at)).expect("open the mount point");
    create(&spec)
        .and_then(|detached| detached.attach(target.as_fd()))
        .expect("mount a tmpfs");
}

/// Whether `process` sees a mount at each of the places.
fn sees(process: &str) -> [bool; 3] {
    let table = fs::read_to_string(format!("/proc/{process}/mountinfo"));
    let table = table.expect("read a mount table");
    [TARGET, OTHER, LATER].map(|place| table.contains(place))
}

#[test]
fn a_private_mount_of_root_is_seen_by_nobody_else() {
    let name = "a_private_mount_of_root_is_seen_by_nobody_else";
    uml::inside(name, LIMIT, || {
        for place in [TARGET, OTHER, LATER] {
            fs::create_dir(place).unwrap();
        }
        // As systemd has it: without care every mount would spread.
        let none: Option<&str> = None;
        let shared = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SHARED;
        nix::mount::mount(none, "/", none, shared, none).unwrap();
        mount_tmpfs(OTHER);
        let (step, next) = std::sync::mpsc::sync_channel::<()>(0);
        std::thread::scope(|scope| {
            let private = scope.spawn(move || {
                private_mounts().unwrap();
                mount_tmpfs(TARGET);
                assert_eq!(sees("thread-self"), [true, true, false]);
                next.recv().unwrap();
                next.recv().unwrap();
                // Nothing that others have unmounted is kept in use.
                assert_eq!(sees("thread-self"), [true, false, true]);
            });
            step.send(()).unwrap();
            assert_eq!(sees("1"), [false, true, false]);
            nix::mount::umount(OTHER).unwrap();
            mount_tmpfs(LATER);
            step.send(()).unwrap();
            private.join().unwrap();
        });
    });
}
