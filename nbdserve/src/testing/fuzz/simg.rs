//! The layer for Android sparse images.

use super::{cx, exercise, may_refuse};
use crate::layer::Args;
use crate::layer::simg::SIMG;
use crate::source::Memory;

/// A file as it is.
pub(super) fn open(data: &[u8]) {
    let below = Memory::volume(data.to_vec());
    match (SIMG.open)(&below, &Args::new(), &cx()) {
        Ok(volume) => exercise(&volume),
        Err(error) => may_refuse(&error),
    }
}
