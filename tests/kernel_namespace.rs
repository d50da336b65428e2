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

/// Mounts a tmpfs, and says whether this thread and the first process see it.
fn mount_and_look() -> (bool, bool) {
    let spec = Spec {
        fstype: "tmpfs",
        source: Path::new("none"),
        read_only: false,
        options: &[],
    };
    let target = open_target(Path::new(TARGET)).expect("open the mount point");
    create(&spec)
        .and_then(|detached| detached.attach(target.as_fd()))
        .expect("mount a tmpfs");
    let table = |process: &str| {
        fs::read_to_string(format!("/proc/{process}/mountinfo")).expect("read a mount table")
    };
    (
        table("thread-self").contains(TARGET),
        table("1").contains(TARGET),
    )
}

#[test]
fn a_private_mount_of_root_is_seen_by_nobody_else() {
    let name = "a_private_mount_of_root_is_seen_by_nobody_else";
    uml::inside(name, LIMIT, || {
        fs::create_dir(TARGET).unwrap();
        // As systemd has it: without care every mount would spread.
        let none: Option<&str> = None;
        let shared = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SHARED;
        nix::mount::mount(none, "/", none, shared, none).unwrap();
        private_mounts().unwrap();
        assert_eq!(mount_and_look(), (true, false));
    });
}
