//! What the tests of real mounts share. They run as root on a kernel with FUSE and loop devices.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbdfuse::Session;
use nbdfuse::file::{FileOptions, serve_file};
use nbdfuse::mount::{self, MountOptions, Unmounted};
use nbdfuse::tree::{self, TreeOptions, serve_tree};
use nbdserve::Volume;

/// No wait of a test is longer, however much else the machine does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// A mount that goes away with the test, whatever happens in it.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    pub(crate) session: Session,
}

impl Mounted {
    /// `volume` as a file on `target`, which must exist.
    pub(crate) fn file(volume: Volume, target: &Path, writable: bool) -> Self {
        let mut opts = MountOptions::new(source(), false);
        opts.read_only = !writable;
        let fd = mount::mount(target, &opts).unwrap();
        let mut look = FileOptions::new("test");
        look.writable = writable;
        let session = serve_file(volume, fd, &look).unwrap();
        Self::new(target, session)
    }

    /// The ext file system on `volume` as a tree on `target`.
    pub(crate) fn tree(volume: Volume, target: &Path) -> Self {
        let fs = tree::open("ext4", volume).unwrap();
        let fd = mount::mount(target, &MountOptions::new(source(), true)).unwrap();
        let name = "test".to_owned();
        let session = serve_tree(fs, fd, &TreeOptions { name }).unwrap();
        Self::new(target, session)
    }

    fn new(target: &Path, session: Session) -> Self {
        let path = target.to_owned();
        Self { path, session }
    }

    /// Unmounts and waits for the session's end.
    pub(crate) fn unmount(self) {
        unmount(&self.path);
        self.session.shutdown(PATIENCE).unwrap();
        // Not again by drop.
    }
}

/// Unmounts. A child that another thread has just forked holds what is open here until it has started
/// its program.
#[track_caller]
pub(crate) fn unmount(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    let mut outcome = mount::unmount(path, mount::Mode::Normal).unwrap();
    while outcome == Unmounted::Busy && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
        outcome = mount::unmount(path, mount::Mode::Normal).unwrap();
    }
    assert_eq!(outcome, Unmounted::Done);
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.session.is_finished() {
            let _ = mount::unmount(&self.path, mount::Mode::Lazy);
        }
    }
}

/// A name for the mount table that no other test uses.
pub(crate) fn source() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("loopmount:test-{}-{next}", std::process::id())
}

/// Runs `script` by sh, with `args` as `$1` and so on; it must succeed. Gives its output.
pub(crate) fn sh(script: &str, args: &[&Path]) -> String {
    succeeded(script, &try_sh(script, args))
}

/// As [`sh`], in a mount namespace of its own: what it mounts is nowhere else, so that its umount
/// writes everything back, whoever makes copies of the mount table meanwhile.
pub(crate) fn sh_apart(script: &str, args: &[&Path]) -> String {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", script, "sh"]);
    succeeded(script, &command.args(args).output().unwrap())
}

/// As [`sh`], and it may fail.
pub(crate) fn try_sh(script: &str, args: &[&Path]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-euc", script, "sh"]);
    command.args(args).output().unwrap()
}

fn succeeded(script: &str, output: &Output) -> String {
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `len` bytes that repeat nowhere.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    out.truncate(len);
    out
}
