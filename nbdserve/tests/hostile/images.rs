//! Images by qemu-img, and what opens them.

use std::fs;
use std::path::{Path, PathBuf};

use nbdserve::layer::{Args, LAYERS};
use nbdserve::references::References;
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::tools;
use nbdserve::{Cx, Result, Volume};

pub(crate) const MIB: usize = 1 << 20;

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

    /// `qemu-img ARGS`, in this folder.
    pub(crate) fn img(&self, args: &[&str]) -> String {
        let mut command = tools::command("qemu-img");
        tools::run_command(command.current_dir(self.0.path()).args(args))
    }

    /// Opens an image with the layer of this name.
    pub(crate) fn open(&self, layer: &str, name: &str) -> Result<Volume> {
        open(layer, &self.path(name))
    }
}

/// Opens the image at `path`, which may refer to files in its folder.
pub(crate) fn open(layer: &str, path: &Path) -> Result<Volume> {
    let below = Volume::new(File::open(path, OpenMode::ReadOnly)?);
    let mut cx = Cx::new(16 << 20);
    cx.references = References::of(path, &[])?;
    let layer = LAYERS.iter().find(|known| known.name == layer).unwrap();
    (layer.open)(&below, &Args::new(), &cx)
}
