//! Images, and what qemu-img says of them.

use std::path::{Path, PathBuf};

use nbdserve::layer::Args;
use nbdserve::layer::qcow2::QCOW2;
use nbdserve::references::References;
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::{disk_like, tools};
use nbdserve::{Cx, Result, Volume};

pub(crate) const MIB: usize = 1 << 20;

pub(crate) fn cx() -> Cx {
    Cx::new(64 << 20)
}

/// A folder with images.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a program of qemu-utils here; what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = tools::command(program);
        command.current_dir(self.0.path()).args(args);
        let out = command.output().unwrap();
        assert!(
            out.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) fn img(&self, args: &[&str]) -> String {
        self.run("qemu-img", args)
    }

    /// Writes a raw disk.
    pub(crate) fn raw(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// A disk with text, noise and zeroes, as `raw`.
    pub(crate) fn disk(&self, len: usize, seed: u64) -> Vec<u8> {
        let bytes = disk_like(len, seed);
        self.raw("raw", &bytes);
        bytes
    }

    /// What qemu-img reads from an image.
    pub(crate) fn oracle(&self, name: &str, options: &[&str]) -> Vec<u8> {
        let mut args = vec!["convert", "-O", "raw"];
        args.extend(options);
        args.extend([name, "oracle.raw"]);
        self.img(&args);
        std::fs::read(self.path("oracle.raw")).unwrap()
    }

    pub(crate) fn open(&self, name: &str) -> Result<Volume> {
        self.open_with(name, &[], &cx())
    }

    pub(crate) fn open_with(&self, name: &str, args: &[(&str, &str)], cx: &Cx) -> Result<Volume> {
        let path = self.path(name);
        let below = Volume::new(File::open(&path, OpenMode::ReadOnly)?);
        open_on(&below, &path, args, cx)
    }
}

/// Opens the image at `path`, whose bytes are `below`.
pub(crate) fn open_on(
    below: &Volume,
    path: &Path,
    args: &[(&str, &str)],
    cx: &Cx,
) -> Result<Volume> {
    let mut cx = cx.clone();
    cx.references = References::of(path, &[])?;
    let args: Args = args
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    (QCOW2.open)(below, &args, &cx)
}
