//! What opens the images.

use std::path::Path;

use nbdserve::layer::{Args, LAYERS};
use nbdserve::references::References;
use nbdserve::source::{File, OpenMode};
use nbdserve::{Cx, Result, Volume};

pub(crate) use crate::folder::Folder;

pub(crate) const MIB: usize = 1 << 20;

impl Folder {
    /// Opens an image with the layer of this name.
    pub(crate) fn open(&self, layer: &str, name: &str) -> Result<Volume> {
        open(layer, &self.path(name))
    }
}

/// Opens the image at `path`, which may refer to files in its folder.
pub(crate) fn open(layer: &str, path: &Path) -> Result<Volume> {
    let file = File::open(path, OpenMode::ReadOnly)?;
    let mut cx = Cx::new(16 << 20);
    cx.references = References::of(path, &file, &[])?;
    let below = Volume::new(file);
    let layer = LAYERS.iter().find(|known| known.name == layer).unwrap();
    (layer.open)(&below, &Args::new(), &cx)
}
