//! Disk images as a pipeline: a *source* of bytes, *layers* that unwrap them, and a [`Volume`]
//! that any target can serve.
//!
//! ```text
//!  source            layers, each a Device on a Volume        target
//!  file, memory  ->  xz  offset  partition  ...           ->  kernel nbd, FUSE file, FUSE tree
//! ```
//!
//! The way of a byte: [`source`] reads it, each [`layer`] decodes or moves it, [`Volume`] checks
//! every step. [`plan`] finds out which layers an image needs. [`proto`] and [`server`] speak NBD.
//! This crate knows no command line, no mount and no FUSE.

mod bytes;
pub mod cache;
pub mod cx;
mod device;
pub mod error;
mod extents;
mod folder;
pub mod foresight;
mod hints;
pub mod layer;
pub mod plan;
pub mod prefetch;
pub mod proto;
mod range;
pub mod references;
pub mod secret;
pub mod server;
pub mod size;
pub mod source;
pub mod stats;
pub mod store;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod volume;

pub use cx::Cx;
pub use device::{
    Access, Cost, Device, Done, Geometry, Index, Keeping, Lent, WriteFeatures, Writer, ZeroOpts,
};
pub use error::{Error, Kind, Result};
pub use extents::{Extent, ExtentFlags, Extents};
pub use range::ByteRange;
pub use volume::{Volume, VolumeWriter};
