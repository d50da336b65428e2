//! Memory of layers that is neither a block nor a decoder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lru::BlockCache;

/// Memory that a layer cannot do without, counted in the budget as long as this lives: decoded blocks
/// make room for it.
#[derive(Debug)]
pub struct Charge {
    cache: Arc<BlockCache>,
    bytes: AtomicU64,
}

impl Charge {
    /// Nothing yet, in the budget of `cache`.
    #[must_use]
    pub fn new(cache: &Arc<BlockCache>) -> Self {
        Self {
            cache: Arc::clone(cache),
            bytes: AtomicU64::new(0),
        }
    }

    /// So many bytes more.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.cache.charge(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.cache.discharge(bytes);
    }
}
