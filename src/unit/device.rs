//! The device under a mount of the kernel's file system.

use std::path::{Path, PathBuf};

use super::undo;
use crate::sys::block::BlockDevice;
use crate::sys::mountinfo::Mount;
use crate::target::kernel_nbd::NbdDevice;
use crate::target::loop_device;

/// A loop or NBD device of a unit.
#[derive(Debug)]
pub struct Device {
    /// Its node.
    pub path: PathBuf,
    /// Major and minor.
    number: Option<(u64, u64)>,
    /// The number of a loop device, and the file behind it.
    loop_over: Option<(u32, Option<Vec<u8>>)>,
    /// An NBD device disconnects itself with its last close; it is to be done in order.
    pub hold: Option<NbdDevice>,
}

impl Device {
    /// The loop device with this number.
    #[must_use]
    pub fn of_loop(index: u32, path: &Path) -> Self {
        Self {
            loop_over: Some((index, loop_device::backing_file(index))),
            ..Self::new("loop", index, path)
        }
    }

    /// An NBD device.
    #[must_use]
    pub fn of_nbd(device: NbdDevice) -> Self {
        let this = Self::new("nbd", device.index, &device.path);
        Self {
            hold: Some(device),
            ..this
        }
    }

    fn new(kind: &str, index: u32, path: &Path) -> Self {
        let block = BlockDevice::named(&format!("{kind}{index}"));
        Self {
            path: path.to_owned(),
            number: block.ok().and_then(|block| block.number()),
            loop_over: None,
            hold: None,
        }
    }

    /// Whether one of `mounts` is on it, and it is still that of unit `id`. On doubt it is.
    #[must_use]
    pub fn is_mounted(&self, id: &str, mounts: &[Mount]) -> bool {
        let is_on = |mount| undo::is_on_device(mount, self.number, &self.path);
        // A loop device may be somebody else's as soon as its mount is gone.
        let is_anothers = || {
            let over = self.loop_over.as_ref();
            over.is_some_and(|(number, file)| {
                loop_device::is_anothers(*number, id, file.as_deref())
            })
        };
        mounts.iter().any(is_on) && !is_anothers()
    }
}
