//! The gzip layer.

use std::sync::OnceLock;

use super::{cx, exercise, may_refuse};
use crate::layer::Args;
use crate::layer::gzip::{GZIP, open_with, to_keep};
use crate::source::Memory;

/// Decoded bytes of a stored block.
const STORED: usize = 0xffff;

/// A file as it is.
pub(super) fn open(data: &[u8]) {
    let below = Memory::volume(data.to_vec());
    match (GZIP.open)(&below, &Args::new(), &cx()) {
        Ok(volume) => {
            exercise(&volume);
            // Closing promises nothing about the image.
            let _ = volume.close();
        }
        Err(error) => may_refuse(&error),
    }
}

/// Any bytes as the header of a good member, once and behind another one.
pub(super) fn header(data: &[u8]) {
    let mut rest = Vec::new();
    put_data(&mut rest, b"some bytes");
    open(&[data, &rest].concat());
    open(&[&member(b"first"), data, &rest].concat());
}

/// Any bytes as the index that was kept of a good file.
pub(super) fn index(data: &[u8]) {
    let below = Memory::volume(file().to_vec());
    let mut cx = cx();
    // A checksum that is found to be wrong later would change what was read before.
    cx.verify = true;
    match open_with(&below, data, &cx) {
        Some(Ok(volume)) => {
            exercise(&volume);
            let _ = volume.close();
        }
        Some(Err(error)) => may_refuse(&error),
        None => {}
    }
}

/// What is kept of that file, with checkpoints that are more or less far apart.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let below = Memory::volume(file().to_vec());
    let keep = |distance| to_keep(&below, distance, &cx());
    [50_000, 200_000, 10_000_000]
        .into_iter()
        .map(|distance| keep(distance).unwrap_or_else(|error| panic!("{error:?}")))
        .collect()
}

/// Several members with several blocks each; one of them is all zero.
fn file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        [
            member(&super::super::noise(200_000, 1)),
            member(&[]),
            member(&vec![0; 300_000]),
            member(&super::super::noise(100_000, 2)),
        ]
        .concat()
    })
}

fn member(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    put_data(&mut out, bytes);
    out
}

/// What stands behind a header: stored blocks and a trailer.
fn put_data(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut put = |last: u8, part: &[u8]| {
        let len = part.len() as u16;
        out.push(last);
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(part);
    };
    for part in bytes.chunks(STORED) {
        put(0, part);
    }
    put(1, &[]);
    out.extend(crc32fast::hash(bytes).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
}
