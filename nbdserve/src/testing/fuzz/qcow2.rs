//! The layer for qcow2 images.

use super::{cx, exercise, may_refuse};
use crate::layer::Args;
use crate::layer::qcow2::QCOW2;
use crate::source::Memory;
use crate::{Kind, Volume};

/// An image as it is, and its first snapshot.
pub(super) fn open(data: &[u8]) {
    let below = Memory::volume(data.to_vec());
    open_with(&below, &Args::new());
    open_with(
        &below,
        &Args::from([("snapshot".to_owned(), "1".to_owned())]),
    );
}

fn open_with(below: &Volume, args: &Args) {
    match (QCOW2.open)(below, args, &cx()) {
        Ok(volume) => exercise(&volume),
        // No snapshot; no passphrase.
        Err(error) if matches!(error.kind(), Kind::OutOfRange | Kind::Secret) => {}
        Err(error) => may_refuse(&error),
    }
}
