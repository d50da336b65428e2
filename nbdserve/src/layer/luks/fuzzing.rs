//! What fuzz targets need of this layer.

use super::header::{FIXED, Header};
use super::kdf::Bounds;
use super::{header1, header2, metadata, open_bounded};
use crate::layer::Args;
use crate::{Cx, Result, Volume};

/// Parses a header of LUKS1, and writes it down for people.
pub(crate) fn header1(bytes: &[u8]) -> Result<String> {
    header1::parse(bytes).map(|header| told(&header))
}

/// Parses metadata of LUKS2, in a header of 16 KiB.
pub(crate) fn metadata(json: &[u8]) -> Result<String> {
    let mut fixed = vec![0; FIXED];
    let put = |fixed: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        for (byte, new) in fixed.iter_mut().skip(at).zip(bytes) {
            *byte = *new;
        }
    };
    put(&mut fixed, 0, b"LUKS\xba\xbe\0\x02\0\0\0\0\0\0\x40\0");
    put(&mut fixed, 72, b"sha256");
    let fixed = header2::fixed(&fixed, 0)?;
    metadata::header(fixed, json).map(|header| told(&header))
}

fn told(header: &Header) -> String {
    format!("{}: {header}", header.title())
}

/// Makes the checksums of both headers match.
pub(crate) fn mend(image: &mut [u8]) {
    header2::mend(image, 0);
    for place in header2::PLACES {
        header2::mend(image, place);
    }
}

/// Opens an image with KDFs that cost little.
pub(crate) fn open(below: &Volume, cx: &Cx) -> Result<Volume> {
    open_bounded(below, &Args::new(), &Bounds::TINY, cx)
}
