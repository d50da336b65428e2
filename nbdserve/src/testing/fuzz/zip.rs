//! The zip layer.

use super::cx;
use crate::layer::archive;
use crate::layer::zip::ZIP;
use crate::source::Memory;

/// An archive as it is.
pub(super) fn open(data: &[u8]) {
    archive::exercise(&ZIP, &Memory::volume(data.to_vec()), &cx());
}
