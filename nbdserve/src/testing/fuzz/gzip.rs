//! The gzip layer.

use std::sync::OnceLock;

use super::{DEPTH, cx, exercise, may_refuse};
use crate::bytes::is_zero;
use crate::layer::Args;
use crate::layer::deflate::blank;
use crate::layer::gzip::{GZIP, open_with, to_keep};
use crate::source::Memory;
use crate::sys::zlib::{Inflate, Place, Stop, WINDOW};

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

/// Any bytes as blocks behind zeroes: what is taken for zeroes is what a decoder makes of it.
pub(super) fn zeroes(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let skip = if data.is_empty() { 0 } else { first % 8 };
    let found = blank(data, skip, DEPTH);
    if found.bits > 0 {
        let all = deflate_boundaries(data, skip, found.bits);
        assert!(all.contains(&(found.bits, found.len)), "{found:?} {all:?}");
    }
}

/// What zlib makes of blocks behind the first `skip` bits of `bytes` and a window of zeroes: after each
/// block that is not the last one how many bits and bytes there were, as long as all bytes are zero and
/// there are not more than `most` bits.
///
/// # Panics
/// When there is no memory for a decoder.
#[must_use]
pub fn deflate_boundaries(bytes: &[u8], skip: u8, most: u64) -> Vec<(u64, u64)> {
    let mut inflate = Inflate::new().unwrap_or_else(|failure| panic!("{failure}"));
    let (bits, byte, at) = match (skip, bytes.first()) {
        (1..=7, Some(byte)) => (8 - skip, *byte, 1),
        _ => (0, 0, 0),
    };
    let entered = inflate.enter(bits, byte, &[0; WINDOW]);
    assert_eq!(entered, Ok(()));
    let mut out = vec![1; 1 << 20];
    let (mut read, mut len) = (at, 0);
    let mut all = Vec::new();
    loop {
        let step = inflate.step(&bytes[read..], &mut out, Stop::Block);
        read += step.read;
        len += step.written as u64;
        if !is_zero(&out[..step.written]) {
            return all;
        }
        match step.place {
            Ok(Place::Boundary { unused }) => {
                let bits = read as u64 * 8 - u64::from(unused) - u64::from(skip);
                if bits > most {
                    return all;
                }
                if bits > 0 {
                    all.push((bits, len));
                }
            }
            Ok(Place::Within) if step.read + step.written > 0 => {}
            _ => return all,
        }
    }
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
