//! The zstd layer against the tools `zstd` and `pzstd`.
#![allow(clippy::unwrap_used)]

mod conformance;
mod damage;
mod finding;
mod model;
mod seekable;
mod tools;

use nbdserve::layer::zstd::ZSTD;
use nbdserve::layer::{Confidence, Sample, Verdict};
use nbdserve::{ByteRange, Kind};
use tools::{
    MIB, assert_reads_back, block, frame, image, kind_of_open, noise, open, piped, pzstd, roomy,
    skippable, tight, try_read_all, zstd,
};

#[test]
fn all_levels_and_options_read_back() {
    let bytes = image(3 * MIB, 1);
    for args in [
        &["-1"][..],
        &["-1", "--no-check"],
        &["-9"],
        &["-19"],
        &["--ultra", "-22"],
        &["-3", "-T2"],
        &["-T2", "--rsyncable"],
        &["--fast=5"],
        &["-1", "--long=27"],
        &["-1", "--no-compress-literals"],
    ] {
        assert_reads_back(&bytes, &zstd(&bytes, args));
    }
    for args in [
        &["-1"][..],
        &["-3", "--no-check"],
        &["-2", "-T2", "--rsyncable"],
    ] {
        assert_reads_back(&bytes, &piped(&bytes, args));
    }
    // Without a size the window is as large as the level has it.
    for level in ["-9", "-19"] {
        let volume = open(piped(&bytes, &[level]), &roomy()).unwrap();
        assert!(try_read_all(&volume).unwrap() == bytes, "{level}");
    }
}

#[test]
fn frames_of_all_sorts_in_a_row_are_one_image() {
    let parts = [
        noise(50_000, 1),
        vec![],
        image(MIB, 2),
        vec![7; 5],
        vec![0; 3 * MIB],
    ];
    for first in [vec![], skippable(5, b"in front")] {
        let mut file = first;
        for (number, part) in parts.iter().enumerate() {
            file.extend(match number % 2 {
                0 => zstd(part, &["-1"]),
                _ => piped(part, &["-1", "--no-check"]),
            });
            file.extend(skippable(number as u8, &vec![1; number * 1000]));
        }
        assert_reads_back(&parts.concat(), &file);
    }
}

#[test]
fn thousands_of_small_frames_read_back() {
    let part = [zstd(b"a small frame, ", &[]), piped(b"and another", &[])].concat();
    let bytes = b"a small frame, and another".repeat(3000);
    assert_reads_back(&bytes, &part.repeat(3000));
}

#[test]
fn what_pzstd_makes_reads_back() {
    let bytes = [image(5 * MIB, 3), noise(4 * MIB, 4)].concat();
    assert_reads_back(&bytes, &pzstd(&bytes, &["-1", "-p", "4"]));
    assert_reads_back(&bytes, &pzstd(&bytes, &["-9", "-p", "2"]));
}

#[test]
fn empty_images() {
    assert_reads_back(&[], &zstd(&[], &[]));
    assert_reads_back(&[], &piped(&[], &[]));
    let error = open(Vec::new(), &roomy()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    let only = skippable(3, b"nothing else");
    assert_eq!(open(only, &roomy()).unwrap().size(), 0);
}

#[test]
fn all_block_types_and_widths_of_fields_read_back() {
    let text = b"raw bytes".to_vec();
    let blocks = [
        block(0, 9, false, &text),
        block(1, 100_000, false, &[7]),
        block(0, 0, false, &[]),
        block(1, 131_072, true, &[0]),
    ];
    let bytes = [text, vec![7; 100_000], vec![0; 131_072]].concat();
    let file = [
        frame(None, &blocks),
        frame(Some(bytes.len() as u64), &blocks),
    ];
    assert_reads_back(&bytes.repeat(2), &file.concat());
}

#[test]
fn long_windows_need_memory_and_say_so() {
    let bytes = image(2 * MIB, 5);
    let file = piped(&bytes, &["-1", "--long=27"]);
    let error = open(file.clone(), &nbdserve::Cx::new(64 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error:?}");
    let hint = error.report().hint.unwrap();
    assert!(hint.contains("--cache-size"), "{hint}");
    assert!(try_read_all(&open(file, &roomy()).unwrap()).unwrap() == bytes);
    let file = piped(&bytes, &["-1", "--long=31"]);
    assert_eq!(kind_of_open(file.clone(), &roomy()), Some(Kind::Limit));
    let cx = nbdserve::Cx::new(3 << 30);
    assert!(try_read_all(&open(file, &cx).unwrap()).unwrap() == bytes);
    // One that says its size needs no more than that.
    let file = zstd(&bytes, &["-1", "--long=31"]);
    assert!(try_read_all(&open(file, &tight()).unwrap()).unwrap() == bytes);
}

#[test]
fn a_frame_that_nobody_has_read_is_known_to_be_sparse() {
    let mut bytes = vec![0; 64 * MIB];
    bytes[40 * MIB..40 * MIB + 4].copy_from_slice(b"data");
    let mut cx = tight();
    // Zeroes take no space.
    cx.temp_limit = 256 << 10;
    for file in [zstd(&bytes, &["-1"]), piped(&bytes, &["-1"])] {
        let volume = open(file, &cx).unwrap();
        // As a search for the next data or hole does it: each question from where the last one led.
        let mut at = 0;
        let mut runs = Vec::new();
        while at < volume.size() {
            let rest = ByteRange::between(at, volume.size());
            let first = volume.extents(rest).unwrap().runs()[0];
            runs.push((first.range.start(), first.flags.zero));
            at = first.range.end();
        }
        let data = 40 << 20;
        assert_eq!(runs, [(0, true), (data, false), (data + (256 << 10), true)]);
    }
}

#[test]
fn many_frames_of_zeroes_are_known_to_be_zero() {
    let zero = zstd(&vec![0; 2 * MIB], &["-1"]);
    let file = [
        zero.repeat(10),
        zstd(&noise(2 * MIB, 6), &["-1"]),
        zero.repeat(10),
    ]
    .concat();
    let volume = open(file, &roomy()).unwrap();
    let extents = volume.extents(ByteRange::between(0, 20 << 20)).unwrap();
    assert!(extents.runs()[0].flags.zero);
    assert_eq!(extents.runs()[0].range.len(), 20 << 20);
    let extents = volume
        .extents(ByteRange::between(20 << 20, 42 << 20))
        .unwrap();
    let runs: Vec<_> = extents
        .runs()
        .iter()
        .map(|run| (run.range.len(), run.flags.zero))
        .collect();
    assert_eq!(runs, [(2 << 20, false), (20 << 20, true)]);
}

fn probe(head: &[u8]) -> Verdict {
    (ZSTD.probe)(&Sample {
        head,
        tail: None,
        size: head.len() as u64,
    })
}

#[test]
fn a_probe_tells_what_it_has_seen() {
    let found = probe(&zstd(&[7; 1000], &[]));
    let Verdict::Yes {
        confidence,
        evidence,
    } = found
    else {
        panic!("not found")
    };
    assert_eq!(confidence, Confidence::MAGIC);
    assert!(evidence.contains("1000 bytes of content"), "{evidence}");
    let found = probe(&pzstd(&noise(1000, 7), &[]));
    let Verdict::Yes { evidence, .. } = found else {
        panic!("not found")
    };
    assert!(
        evidence.contains("at 12, ") && evidence.contains("not given"),
        "{evidence}"
    );
    let found = probe(&[0x28, 0xb5, 0x2f, 0xfd, 0x08]);
    let Verdict::Yes { evidence, .. } = found else {
        panic!("not found")
    };
    assert!(evidence.contains("reserved bit"), "{evidence}");
    assert_eq!(probe(&[]), Verdict::No);
    assert_eq!(probe(b"something else"), Verdict::No);
    let other = [skippable(1, &[]), b"\x04\x22\x4d\x18".to_vec()].concat();
    assert_eq!(probe(&other), Verdict::No, "of lz4");
}
