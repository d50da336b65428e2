//! Formats with another image inside that no layer opens yet, so that the message can name them.

use super::{Class, FIRST, Found, evidence};
use crate::bytes::has;
use crate::layer::Sample;

/// Name, position and bytes of those that a magic tells.
const MAGICS: &[(&str, usize, &[u8])] = &[
    // Disk formats.
    ("qcow", 0, b"QFI\xfb\0\0\0\x01"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format"),
    ("qed", 0, b"QED\0"),
    ("ewf", 0, b"EVF\x09\x0d\x0a\xff\0"),
    ("ewf", 0, b"EVF2\x0d\x0a\x81\0"),
    ("aff", 0, b"AFF10\x0d\x0a\0"),
    // What is kept apart from an image, see `layer/cow`.
    ("cow", 0, b"loopcow\n"),
    // Compression.
    ("compress", 0, &[0x1f, 0x9d]),
    (
        "lzop",
        0,
        &[0x89, b'L', b'Z', b'O', 0, 0x0d, 0x0a, 0x1a, 0x0a],
    ),
    // Archives.
    ("7z", 0, &[b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c]),
    ("rar", 0, b"Rar!\x1a\x07"),
    ("cpio", 0, b"070701"),
    ("cpio", 0, b"070702"),
    ("ar", 0, b"!<arch>\n"),
];

/// What makes an image that can be opened of one of these, to be typed.
pub(super) fn converter(name: &str) -> Option<&'static str> {
    Some(match name {
        "qcow" | "parallels" | "bochs" | "cloop" | "qed" | "dmg" => {
            "qemu-img convert -O qcow2 IMAGE NEW makes an image of it that opens"
        }
        "ewf" => "ewfexport IMAGE makes a raw image of it",
        "compress" => "zcat IMAGE > NEW unpacks it",
        "lzop" => "lzop -dc IMAGE > NEW unpacks it",
        "7z" | "rar" | "cpio" | "ar" => "7zz x IMAGE unpacks it",
        _ => return None,
    })
}

pub(super) fn probe(sample: &Sample<'_>) -> Option<Found> {
    let head = sample.head;
    let known = MAGICS.iter().find(|(_, at, magic)| has(head, *at, magic));
    known
        .map(|(name, at, magic)| wrapper(name, magic, *at))
        .or_else(|| dmg(sample))
}

fn wrapper(name: &str, magic: &[u8], at: usize) -> Found {
    Found::new(name, Class::Wrapper, FIRST, evidence(magic, at))
}

/// Apple's disk images end with a trailer of 512 bytes.
fn dmg(sample: &Sample<'_>) -> Option<Found> {
    let tail = sample.tail?;
    let at = tail.len().checked_sub(512)?;
    has(tail, at, b"koly\0\0\0\x04").then(|| {
        let mut found = wrapper("dmg", b"koly", 0);
        found.info.evidence = "magic koly, 512 bytes before the end".to_owned();
        found
    })
}
