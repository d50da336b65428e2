//! The cache on disk: what was learnt about an image, kept for the next mount.
//!
//! ```text
//!  Store    a folder with a limit            (limit.rs: what goes when it is full)
//!    Image  one folder for each source, locked while it is in use        (image.rs)
//!      Place  a volume of that source: the source itself or what layers make of it
//!        blobs  whole files: indexes                                     (blob.rs)
//!        Pages  sparse files: decoded and fetched bytes                  (pages.rs)
//! ```
//!
//! Everything here may be lost, damaged or deleted at any time, by anyone: then it is not found.
//! What is found is what was kept, or nothing: all bytes carry a hash that is compared each time
//! they are read.

mod blob;
mod folder;
mod image;
mod limit;
mod pages;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::image::Image;
pub use self::limit::{Kept, Usage};
pub(crate) use self::pages::Pages;
use crate::{Result, bytes};

/// Bytes that a store takes when nobody says otherwise.
pub const DEFAULT_LIMIT: u64 = 10 << 30;

/// A folder in which things about images are kept, shared by all processes of a user.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    limit: u64,
}

impl Store {
    /// The store in `folder`, which is made (mode 0700) when it is not there.
    ///
    /// # Errors
    /// As [`Self::with_limit`].
    pub fn open(folder: &Path) -> Result<Arc<Self>> {
        Self::with_limit(folder, DEFAULT_LIMIT)
    }

    /// As [`Self::open`], with at most about `limit` bytes of disk.
    ///
    /// # Errors
    /// `Denied` when the folder belongs to somebody else, `Unsupported` when it is on a FUSE file
    /// system, which may be one that we serve; `Io` when it cannot be made.
    pub fn with_limit(folder: &Path, limit: u64) -> Result<Arc<Self>> {
        folder::make(folder)?;
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            limit,
        }))
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Most bytes that it takes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The place of a source that people call `name`. Two sources with the same `identity` must
    /// have the same bytes.
    #[must_use]
    pub fn place(self: &Arc<Self>, identity: &str, name: &str) -> Place {
        Place {
            image: Arc::new(Image::new(Arc::clone(self), identity, name)),
            key: identity.to_owned(),
        }
    }

    /// Where things about images are.
    fn images(&self) -> PathBuf {
        self.folder.join("images")
    }
}

/// Where things about one volume are kept: a volume is known by its source's identity and the
/// layers that were taken off it. Cheap to clone.
#[derive(Clone)]
pub struct Place {
    image: Arc<Image>,
    key: String,
}

impl Place {
    /// That of a source. Two sources with the same `identity` must have the same bytes.
    #[must_use]
    pub fn new(store: Arc<Store>, identity: &str) -> Self {
        Self {
            image: Arc::new(Image::new(store, identity, identity)),
            key: identity.to_owned(),
        }
    }

    /// The folder of the store.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.image.store().folder()
    }

    /// That of the volume that `layer` makes of this one.
    #[must_use]
    pub fn inside(&self, layer: &str) -> Self {
        Self {
            image: Arc::clone(&self.image),
            key: format!("{}\n{layer}", self.key),
        }
    }

    /// What was kept as `name`, if it is there, undamaged and no longer than `most` bytes. Change
    /// the name when the format of the bytes changes: `gzip-index-2`.
    #[must_use]
    pub fn load(&self, name: &str, most: u64) -> Option<Vec<u8>> {
        let folder = self.image.enter()?;
        blob::load(&folder.join(self.file(name, "blob")), &self.key, most)
    }

    /// Keeps `bytes` as `name`. A failure costs time later and is only logged.
    pub fn save(&self, name: &str, bytes: &[u8]) {
        let Some(folder) = self.image.make() else {
            return;
        };
        let len = bytes.len() as u64;
        if !self.image.may_grow(len, len) {
            tracing::debug!("{name} is not kept: the cache is full");
            return;
        }
        let file = folder.join(self.file(name, "blob"));
        if let Err(error) = blob::save(&file, &self.key, bytes) {
            tracing::warn!("cannot keep {name} in the cache: {error}");
        }
    }

    /// The pages that are kept as `name`, if there are any.
    pub(crate) fn find_pages(&self, name: &str) -> Option<Pages> {
        let folder = self.image.enter()?;
        Pages::find(
            &self.image,
            &folder.join(self.file(name, "pages")),
            &self.key,
        )
    }

    /// The pages that are kept as `name`, none at first. `None` when nothing can be kept; the log
    /// says why.
    pub(crate) fn pages(&self, name: &str) -> Option<Pages> {
        let folder = self.image.make()?;
        if !self.image.may_grow(0, 0) {
            tracing::debug!("{name} is not kept: the cache is full");
            return None;
        }
        let file = folder.join(self.file(name, "pages"));
        let pages = Pages::make(&self.image, &file, &self.key);
        pages
            .inspect_err(|error| tracing::warn!("cannot keep {name} in the cache: {error}"))
            .ok()
    }

    /// Most bytes that may be kept.
    pub(crate) fn limit(&self) -> u64 {
        self.image.store().limit
    }

    /// Whether so many bytes may be kept, and the file system has them.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.limit() && self.image.store().has_space(bytes)
    }

    /// The name of the file for `name`: names are for people, the digest keeps volumes apart.
    fn file(&self, name: &str, kind: &str) -> String {
        format!("{}.{name}.{kind}", hex(&self.key))
    }
}

/// The beginning of the SHA-256 of `text`, in hexadecimal: 128 bits.
fn hex(text: &str) -> String {
    let mut digits = bytes::hex(&Sha256::digest(text.as_bytes()));
    digits.truncate(32);
    digits
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.key).finish()
    }
}
