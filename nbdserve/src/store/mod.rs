//! What was learnt about an image, kept on disk for the next mount: indexes that took a pass to
//! make.
//!
//! Everything here may be lost, damaged or deleted at any time: then it is not found. What is
//! found is what was kept, or nothing.

mod blob;

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result};

/// A folder in which things about images are kept.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store in `folder`, which is made (mode 0700) when it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Arc<Self>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| Error::io(format!("cannot make {}", folder.display()), error))?;
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
        }))
    }
}

/// Where things about one volume are kept: a volume is known by its source's identity and the
/// layers that were taken off it. Cheap to clone.
#[derive(Clone)]
pub struct Place {
    store: Arc<Store>,
    key: String,
}

impl Place {
    /// That of a source. Two sources with the same `identity` must have the same bytes.
    #[must_use]
    pub fn new(store: Arc<Store>, identity: &str) -> Self {
        Self {
            store,
            key: identity.to_owned(),
        }
    }

    /// That of the volume that `layer` makes of this one.
    #[must_use]
    pub fn inside(&self, layer: &str) -> Self {
        Self {
            store: Arc::clone(&self.store),
            key: format!("{}\n{layer}", self.key),
        }
    }

    /// What was kept as `name`, if it is there, undamaged and no longer than `most` bytes. Change
    /// the name when the format of the bytes changes: `gzip-index-2`.
    #[must_use]
    pub fn load(&self, name: &str, most: u64) -> Option<Vec<u8>> {
        blob::load(&self.store.folder, &self.key, name, most)
    }

    /// Keeps `bytes` as `name`. A failure costs time later and is only logged.
    pub fn save(&self, name: &str, bytes: &[u8]) {
        if let Err(error) = blob::save(&self.store.folder, &self.key, name, bytes) {
            tracing::warn!("cannot keep {name} in the cache: {error}");
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.key).finish()
    }
}
