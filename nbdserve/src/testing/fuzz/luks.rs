//! The layer for LUKS: its headers alone, and whole images with KDFs that cost little.

use std::sync::Arc;

use super::{cx, exercise, may_refuse};
use crate::Cx;
use crate::layer::luks::fuzzing;
use crate::secret::{OneSecret, Secret};
use crate::source::Memory;

/// The passphrase of the seeds.
pub const PASSPHRASE: &[u8] = b"fuzz";

/// A header of LUKS1.
pub(super) fn header1(data: &[u8]) {
    if let Err(error) = fuzzing::header1(data) {
        may_refuse(&error);
    }
}

/// The metadata of LUKS2: what the checksum keeps mutations from.
pub(super) fn header2(data: &[u8]) {
    if let Err(error) = fuzzing::metadata(data) {
        may_refuse(&error);
    }
}

/// Checks that a seed leads behind its keyslots.
///
/// # Panics
/// When it does not open.
pub fn assert_opens(data: &[u8]) {
    let opened = fuzzing::open(&Memory::volume(data.to_vec()), &with_key());
    assert!(opened.is_ok(), "{:?}", opened.err());
}

fn with_key() -> Cx {
    let mut cx = cx();
    cx.secrets = Arc::new(OneSecret(Secret::new(PASSPHRASE.to_vec())));
    cx
}

/// A file as it is, and with checksums that match.
pub(super) fn open(data: &[u8]) {
    let mut mended = data.to_vec();
    fuzzing::mend(&mut mended);
    let cx = with_key();
    let same = mended == data;
    let as_it_is = (!same).then(|| data.to_vec());
    for file in as_it_is.into_iter().chain([mended]) {
        match fuzzing::open(&Memory::volume(file), &cx) {
            Ok(volume) => exercise(&volume),
            Err(error) => may_refuse(&error),
        }
    }
}
