//! What the tests of the built binary share: images made by foreign tools, a place to work in that
//! is checked to be clean at the end, and a way to run commands that cannot hang.
//!
//! The tests need root and the packages that `contrib/test` installs; a missing one is a failure.
#![allow(
    dead_code,
    reason = "each test binary compiles this module and uses its own part of it"
)]

pub(crate) mod damage;
pub(crate) mod diff_walk;
pub(crate) mod helper_link;
pub(crate) mod holder;
pub(crate) mod images;
pub(crate) mod json;
pub(crate) mod pty;
pub(crate) mod run;
pub(crate) mod sandbox;
pub(crate) mod system;

use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant};

pub(crate) use images::images;
pub(crate) use sandbox::{Sandbox, Who};

/// How long anything may take that is not a test of its own. Generous: machines are shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks every few milliseconds until `condition` gives a value.
///
/// # Panics
/// After [`PATIENCE`], naming `what`.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds; see [`eventually`].
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Fails the test, with the Debian package to install, when `tool` is not in the path.
pub(crate) fn require_tool(tool: &str, package: &str) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    assert!(
        path.split(':')
            .any(|dir| Path::new(dir).join(tool).exists()),
        "{tool} is missing: apt-get install {package} (contrib/test does)"
    );
}

/// What must be true of the machine before any test: we are root, and /dev/fuse is open to all, as
/// udev has it on a desktop.
pub(crate) fn prepare_machine() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount with the kernel and become another user: run them as root"
        );
        for (tool, package) in [
            ("fusermount3", "fuse3"),
            ("setpriv", "util-linux"),
            ("losetup", "mount"),
        ] {
            require_tool(tool, package);
        }
        must(Command::new("chmod").args(["666", "/dev/fuse"]));
    });
}

/// Runs a command of the set-up.
///
/// # Panics
/// When it does not end with 0.
pub(crate) fn must(command: &mut Command) -> Vec<u8> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Waits until no loop device has `file` behind it. After a plain umount the kernel keeps the device
/// until the last has closed it: udev, or a child that another thread has just forked.
#[track_caller]
pub(crate) fn until_no_loop(file: &Path) {
    let file = file.canonicalize().unwrap();
    until("the kernel lets go of a loop device", || {
        system::loops().iter().all(|(_, backing)| *backing != *file)
    });
}

/// Unmounts what the test itself may have had files open of: a child that another thread has just
/// forked holds them until it has started its program.
#[track_caller]
pub(crate) fn umount(point: &Path) {
    until("the kernel lets go of a mount", || {
        let output = Command::new("umount").arg(point).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let free = output.status.success();
        assert!(
            free || said.contains("busy"),
            "umount {}: {said}",
            point.display()
        );
        free
    });
}
