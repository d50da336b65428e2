//! The link by which mount(8) finds the program, for as long as a test needs it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Where mount(8) looks for its helper of the type `loopmount`.
const LINK: &str = "/sbin/mount.loopmount";
/// One test at a time has the link.
const LOCK: &str = "/run/lock/loopmount-tests-helper";

/// The link is there while this lives.
#[derive(Debug)]
pub(crate) struct HelperLink {
    _lock: fs::File,
}

impl HelperLink {
    /// # Panics
    /// When the machine has a helper that is not from a test: it is not ours to replace.
    pub(crate) fn new() -> Self {
        let lock = fs::File::create(LOCK).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        if let Ok(target) = fs::read_link(LINK) {
            let name = target.file_name().unwrap_or_default();
            let built = target.components().any(|part| part.as_os_str() == "target");
            assert!(
                name == "loopmount" && built,
                "{LINK} leads to {}, which no test has made",
                target.display()
            );
            fs::remove_file(LINK).unwrap();
        }
        symlink(Path::new(env!("CARGO_BIN_EXE_loopmount")), LINK).unwrap();
        Self { _lock: lock }
    }
}

impl Drop for HelperLink {
    fn drop(&mut self) {
        let _ = fs::remove_file(LINK);
    }
}
