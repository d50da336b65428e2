//! Making the kernel forget what it has cached of a device.

use std::fs::{self, File};
use std::path::Path;

use nbdserve::{Error, Result};

use crate::sys::block;

/// Drops the kernel's clean cached pages of `device` and of the file system on it, after bytes that
/// were served have turned out to be wrong.
///
/// The pages of the file system cannot be named from outside, so the clean pages of the whole
/// machine go (`/proc/sys/vm/drop_caches`): damage is rare, and wrong bytes are worse than a cold
/// cache.
///
/// # Errors
/// What the system says; both steps are tried.
pub fn drop_cached(device: &Path) -> Result<()> {
    let buffers = File::open(device)
        .map_err(|error| Error::io(format!("cannot open {}", device.display()), error))
        .and_then(|node| block::flush_buffers(&node));
    let pages = fs::write("/proc/sys/vm/drop_caches", "1")
        .map_err(|error| Error::io("cannot drop the kernel's cached pages", error));
    buffers.and(pages)
}
