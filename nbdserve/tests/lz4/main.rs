//! The lz4 layer against the `lz4` tool.
#![allow(clippy::unwrap_used)]

mod conformance;
mod damage;
mod finding;
mod model;
mod tools;

use nbdserve::layer::lz4::LZ4;
use nbdserve::layer::{Confidence, Sample, Verdict};
use nbdserve::{ByteRange, Kind};
use tools::{
    MIB, assert_reads_back, block, header, image, lz4, lz4_sized, noise, open, reads_back, roomy,
    skippable,
};

#[test]
fn all_levels_and_options_read_back() {
    let bytes = image(5 * MIB, 1);
    for args in [
        &[][..],
        &["-1", "-B4"],
        &["-1", "-B5", "-BX"],
        &["-1", "-B6", "--no-frame-crc"],
        &["-1", "-B7", "-BD"],
        &["-1", "-B4", "-BD", "-BX"],
        &["-9", "-B5", "-BD", "--no-frame-crc"],
        &["-12", "-B6"],
        &["--fast=9"],
        &["-l"],
        &["-B32", "-1"],
    ] {
        assert_reads_back(&bytes, &lz4(&bytes, args));
        if !args.contains(&"-l") {
            assert_reads_back(&bytes, &lz4_sized(&bytes, args));
        }
    }
}

#[test]
fn frames_of_all_sorts_in_a_row_are_one_image() {
    let parts = [
        noise(50_000, 1),
        vec![],
        image(9 * MIB, 2),
        vec![7; 5],
        vec![0; 3 * MIB],
    ];
    let args = [
        &["-B4"][..],
        &["-BD"],
        &["-l"],
        &["-B5", "-BX", "-BD"],
        &["-B7"],
    ];
    for first in [vec![], skippable(5, b"in front")] {
        let mut file = first;
        for (number, (part, args)) in parts.iter().zip(args).enumerate() {
            file.extend(lz4(part, args));
            file.extend(skippable(number as u8, &vec![1; number * 1000]));
        }
        assert_reads_back(&parts.concat(), &file);
    }
    // Legacy frames in a row have nothing between them.
    let file = [
        lz4(&parts[2], &["-l"]),
        lz4(&parts[0], &["-l"]),
        lz4(b"end", &[]),
    ];
    let bytes = [&parts[2][..], &parts[0], b"end"].concat();
    assert_reads_back(&bytes, &file.concat());
}

#[test]
fn thousands_of_small_frames_read_back() {
    let part = [lz4(b"a small frame, ", &["-BD"]), lz4(b"and another", &[])].concat();
    let bytes = b"a small frame, and another".repeat(3000);
    assert_reads_back(&bytes, &part.repeat(3000));
}

#[test]
fn empty_images() {
    assert_reads_back(&[], &lz4(&[], &[]));
    assert_reads_back(&[], &lz4(&[], &["-BD"]));
    reads_back(&[], &[0x02, 0x21, 0x4c, 0x18]);
    let error = open(Vec::new(), &roomy()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    reads_back(&[], &skippable(3, b"nothing else"));
}

#[test]
fn blocks_that_are_not_full_read_back() {
    // As a writer makes them that flushes now and then.
    let parts: Vec<_> = (0..40)
        .map(|seed| image(1 + seed * 1500, seed as u64))
        .collect();
    let bytes = parts.concat();
    for fields in [None, Some(bytes.len() as u64)] {
        let flags = if fields.is_some() { 0x68 } else { 0x60 };
        let fields = fields.map_or(vec![], |size| size.to_le_bytes().to_vec());
        let mut file = header(flags, 0x40, &fields);
        for (number, part) in parts.iter().enumerate() {
            file.extend(block(part, number % 7 == 3));
        }
        file.extend([0; 4]);
        assert_reads_back(&bytes, &file);
        assert_reads_back(&bytes.repeat(3), &file.repeat(3));
    }
}

#[test]
fn a_kernel_image_has_its_length_at_the_end() {
    let bytes = image(9 * MIB, 3);
    let good = lz4(&bytes, &["-l"]);
    let trailer = (bytes.len() as u32).to_le_bytes();
    reads_back(&bytes, &[&good[..], &trailer].concat());
    let wrong = (bytes.len() as u32 + 1).to_le_bytes();
    for end in [&wrong[..], &trailer[..3], &[trailer, trailer].concat()] {
        let error = open([&good[..], end].concat(), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    }
}

#[test]
fn blocks_of_zeroes_are_known_to_be_zero() {
    let zero = lz4(&vec![0; 8 * MIB], &["-B7", "--no-frame-crc"]);
    let file = [zero.repeat(3), lz4(&noise(4 * MIB, 6), &["-B7"])].concat();
    let volume = open(file, &roomy()).unwrap();
    assert_eq!(volume.size(), 28 << 20);
    // lz4 shrinks zeroes 255 times at most, so nothing is known before it was read.
    let _ = volume.read_vec(0, 24 * MIB).unwrap();
    let extents = volume.extents(ByteRange::between(0, 28 << 20)).unwrap();
    let runs: Vec<_> = extents
        .runs()
        .iter()
        .map(|run| (run.range.len(), run.flags.zero))
        .collect();
    assert_eq!(runs, [(24 << 20, true), (4 << 20, false)]);
}

fn probe(head: &[u8]) -> Verdict {
    (LZ4.probe)(&Sample {
        head,
        tail: None,
        size: head.len() as u64,
    })
}

#[test]
fn a_probe_tells_what_it_has_seen() {
    for (file, sure, text) in [
        (
            lz4(b"content", &[]),
            Confidence::CHECKED,
            "independent blocks of 65536",
        ),
        (
            lz4(&[7; 200_000], &["-BD", "-B4"]),
            Confidence::CHECKED,
            "linked blocks of 65536",
        ),
        (lz4(b"content", &["-l"]), Confidence::MAGIC, "legacy"),
        (
            [skippable(1, b"abc"), lz4(b"content", &[])].concat(),
            Confidence::CHECKED,
            "at 11,",
        ),
        (
            header(0x20, 0x40, &[]),
            Confidence::MAGIC,
            "but the frame at 0 has version 0",
        ),
        (
            lz4(b"content", &[])[..5].to_vec(),
            Confidence::MAGIC,
            "cut short",
        ),
    ] {
        let Verdict::Yes {
            confidence,
            evidence,
        } = probe(&file)
        else {
            panic!("{text}: not found")
        };
        assert_eq!(confidence, sure, "{evidence}");
        assert!(evidence.contains(text), "{evidence}");
    }
    for other in [&b""[..], b"something else", &[0x28, 0xb5, 0x2f, 0xfd]] {
        assert_eq!(probe(other), Verdict::No);
        assert_eq!(
            probe(&[&skippable(1, &[])[..], other].concat()),
            Verdict::No
        );
    }
}
