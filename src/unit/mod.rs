//! Mount, server and state as one thing.
//!
//! ```text
//!  launcher  ── what the user typed; returns when the mount is usable
//!     └ supervisor  ── touches no image data, so it can always act
//!          └ server  ── opens the image, answers the kernel
//! ```
//!
//! The kernel is the truth and the [`record`] a hint: a unit's id is in the source of its FUSE
//! mount, in the backing name of its loop device, in the backend identifier of its NBD device.

pub mod busy;
pub mod cache;
pub mod channel;
pub mod command;
pub mod device;
pub mod dir;
pub mod events;
pub mod exit;
pub mod find;
pub mod front;
pub mod image;
pub mod launch;
pub mod list;
mod loops;
pub mod message;
pub mod notify;
pub mod out;
pub mod path_text;
pub mod plain;
pub mod processes;
pub mod record;
pub mod respawn;
pub mod secrets;
pub mod serve;
pub mod state;
pub mod stats;
pub mod stop;
pub mod supervise;
pub mod target;
pub mod undo;

use nbdserve::Volume;
use nbdserve::plan::FsInfo;

/// Whether a file system that we can read by ourselves has the top level of an operating system;
/// `None` when we cannot read it.
#[must_use]
pub fn looks_like_root(volume: &Volume, info: &FsInfo) -> Option<bool> {
    let tree = nbdfuse::tree::open(&info.name, volume.clone()).ok()?;
    Some(nbdfuse::tree::looks_like_root(&*tree))
}
