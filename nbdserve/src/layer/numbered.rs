//! Blocks by number, as messages speak of them.

use crate::{ByteRange, Error, Kind};

/// `block 7 at 4711 (bytes 0..10 of the image)`: where it begins below, and which bytes are decoded from
/// it; the number alone of one that is not there.
pub(super) fn called(number: u64, place: Option<(u64, ByteRange)>) -> String {
    let Some((at, decoded)) = place else {
        return format!("block {number}");
    };
    let (start, end) = (decoded.start(), decoded.end());
    format!("block {number} at {at} (bytes {start}..{end} of the image)")
}

/// Somebody asks for a block that is not there.
pub(super) fn missing(number: u64) -> Error {
    Error::new(Kind::OutOfRange, format!("there is no block {number}"))
}
