//! A folder for images, and the tools that work on them there.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nbdserve::testing::tools;

/// A folder for images.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Runs a program of qemu-utils here; what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = tools::command(program);
        command.current_dir(self.0.path()).args(args);
        let mut out = command.output().unwrap();
        // A child that another test has started holds copies of our descriptors, with their locks,
        // until it runs its program.
        for _ in 0..200 {
            if out.status.success() || !String::from_utf8_lossy(&out.stderr).contains(" lock\n") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            out = command.output().unwrap();
        }
        assert!(
            out.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    /// `qemu-img ARGS`.
    pub(crate) fn img(&self, args: &[&str]) -> String {
        self.run("qemu-img", args)
    }
}
