//! Archives that are damaged, that lie, or that use what is not known here.

use std::fs;

use nbdserve::layer::{Args, LAYERS, Sample, Verdict};
use nbdserve::source::Memory;
use nbdserve::{Error, Kind};

use crate::tools::{first, last, noise, open, open_on, read_all, stored, zip};

fn kind(bytes: &[u8]) -> Option<Kind> {
    open(bytes, "disk").err().map(|error| error.kind())
}

fn is_of_the_image(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Corrupt | Kind::Unsupported | Kind::Limit | Kind::NotThisFormat | Kind::OutOfRange
    )
}

fn two() -> Vec<u8> {
    stored(&[("disk", &noise(3000, 1)), ("next", &noise(700, 2))])
}

/// The same with records of 64 bits.
fn long() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), noise(3000, 1)).unwrap();
    zip(dir.path(), &["-q", "-0", "-X", "-fz", "out.zip", "disk"])
}

#[test]
fn every_truncation_is_an_error() {
    for whole in [two(), long()] {
        for len in 0..whole.len() {
            let error = open(&whole[..len], "disk").unwrap_err();
            let expected = if len < 4 {
                Kind::NotThisFormat
            } else {
                Kind::Corrupt
            };
            assert_eq!(error.kind(), expected, "{len}: {error}");
        }
        assert_eq!(kind(&whole), None);
    }
}

#[test]
fn every_number_of_every_record_at_its_limits() {
    let expected = noise(3000, 1);
    let mut refused = 0;
    for whole in [two(), long()] {
        let start = last(&whole, b"disk") - 46;
        let places = (0..34).chain(start..whole.len());
        for at in places {
            for width in [1, 2, 4, 8] {
                if at + width > whole.len() {
                    continue;
                }
                let mut values = vec![vec![0; width], vec![0xff; width]];
                let mut one = vec![0; width];
                one[0] = 1;
                values.push(one);
                let mut max = vec![0xff; width];
                max[0] = 0xfe;
                values.push(max);
                for value in values {
                    let mut bytes = whole.clone();
                    bytes[at..at + width].copy_from_slice(&value);
                    match open(&bytes, "disk") {
                        // Never other bytes.
                        Ok(volume) => assert!(read_all(&volume) == expected, "{at} {value:?}"),
                        Err(error) => {
                            assert!(is_of_the_image(&error), "{error:?}");
                            refused += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn what_follows_the_end_is_an_error_by_name() {
    let mut bytes = two();
    bytes.extend(b"garbage");
    let error = open(&bytes, "disk").unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(
        error
            .to_string()
            .starts_with("7 bytes follow the end record"),
        "{error}"
    );
    bytes.extend(vec![0; 70_000]);
    let error = open(&bytes, "disk").unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("no end record"), "{error}");
}

#[test]
fn a_local_header_that_says_something_else_is_corrupt() {
    let whole = two();
    let text = |at: usize, new: u8| {
        let mut bytes = whole.clone();
        bytes[at] = new;
        let error = open(&bytes, "disk").unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        error.to_string()
    };
    assert!(text(0, 0).contains("there is no local header at 0"));
    for (at, what) in [
        (6, "a flag"),
        (8, "the method"),
        (14, "the CRC"),
        (18, "a size"),
        (22, "a size"),
        (30, "the name"),
    ] {
        let found = text(at, whole[at] ^ 1);
        let expected =
            format!("disk: {what} in the local header at 0 is not that of the directory");
        assert_eq!(found, expected);
    }
    // Its data would reach into the directory.
    let found = text(29, 0xff);
    assert!(found.contains("are not before the directory"), "{found}");
}

#[test]
fn a_directory_that_leads_into_itself_is_harmless() {
    let whole = two();
    let directory = first(&whole, b"PK\x01\x02");
    let end = last(&whole, b"PK\x05\x06");
    for local in [directory, end, directory - 4, whole.len(), 0xffff_fffe] {
        let mut bytes = whole.clone();
        let local = u32::try_from(local).unwrap().to_le_bytes();
        bytes[directory + 42..directory + 46].copy_from_slice(&local);
        assert_eq!(kind(&bytes), Some(Kind::Corrupt));
    }
    // All files are one: each is that one.
    let mut bytes = whole.clone();
    let second = last(&whole, b"PK\x01\x02");
    let entry = bytes[directory..directory + 46 + 4].to_vec();
    bytes[second..second + entry.len()].copy_from_slice(&entry);
    assert!(read_all(&open(&bytes, "disk").unwrap()) == noise(3000, 1));
    // The directory is the whole file, or the end record.
    for (offset, size) in [(0, end), (end, 22), (0, 0), (directory, 46), (end, 0)] {
        let mut bytes = whole.clone();
        let numbers = [size as u32, offset as u32].map(u32::to_le_bytes).concat();
        bytes[end + 12..end + 20].copy_from_slice(&numbers);
        assert_eq!(kind(&bytes), Some(Kind::Corrupt), "{offset} {size}");
    }
}

#[test]
fn counts_are_compared_with_what_is_there() {
    let whole = two();
    let end = last(&whole, b"PK\x05\x06");
    for count in [0, 1, 3, 0xfffe, 0xffff_u16] {
        let mut bytes = whole.clone();
        bytes[end + 8..end + 10].copy_from_slice(&count.to_le_bytes());
        bytes[end + 10..end + 12].copy_from_slice(&count.to_le_bytes());
        let error = open(&bytes, "disk").unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("has 2 files"), "{error}");
    }
    // In 64 bits.
    let whole = long();
    let end = last(&whole, b"PK\x06\x06");
    for count in [0, 2, u64::MAX - 1, u64::MAX] {
        let mut bytes = whole.clone();
        bytes[end + 24..end + 32].copy_from_slice(&count.to_le_bytes());
        bytes[end + 32..end + 40].copy_from_slice(&count.to_le_bytes());
        let found = kind(&bytes);
        assert_eq!(found, Some(Kind::Corrupt), "{count}");
    }
}

#[test]
fn what_is_not_known_is_unsupported_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(
        dir.join("disk"),
        [vec![0; 100_000], noise(100_000, 1)].concat(),
    )
    .unwrap();
    let text = |bytes: &[u8]| {
        let error = open(bytes, "disk").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        error.to_string()
    };
    let fresh = || {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("disk") {
                fs::remove_file(path).unwrap();
            }
        }
    };
    let encrypted = zip(dir, &["-q", "-P", "secret", "out.zip", "disk"]);
    assert_eq!(text(&encrypted), "disk is encrypted");
    fresh();
    let split = zip(dir, &["-q", "-0", "-s", "64k", "out.zip", "disk"]);
    assert!(text(&split).contains("cut into several files"));
    let whole = two();
    let central = first(&whole, b"PK\x01\x02");
    for (method, name) in [
        (1, "shrunk (method 1)"),
        (6, "imploded (method 6)"),
        (9, "deflate64 (method 9)"),
        (99, "AES encryption (method 99)"),
        (255, "unknown (method 255)"),
    ] {
        let mut bytes = whole.clone();
        bytes[8] = method;
        bytes[central + 10] = method;
        let expected =
            format!("disk is compressed in a way that this version does not know: {name}");
        assert_eq!(text(&bytes), expected);
    }
    let mut patch = whole.clone();
    patch[6] |= 1 << 5;
    patch[central + 8] |= 1 << 5;
    assert_eq!(text(&patch), "disk is a patch");
    // The files that are sound can be opened all the same.
    assert!(read_all(&open(&patch, "next").unwrap()) == noise(700, 2));
}

#[test]
fn what_is_no_archive_is_told() {
    for bytes in [&b""[..], b"x", &[0; 10_240], &noise(100_000, 1)] {
        let found = open_on(&Memory::volume(bytes.to_vec()), &Args::new());
        assert_eq!(found.unwrap_err().kind(), Kind::NotThisFormat);
    }
}

#[test]
fn an_archive_is_recognised() {
    let found = |bytes: &[u8], tail: bool| {
        let head = &bytes[..bytes.len().min(Sample::HEAD)];
        let sample = Sample {
            head,
            tail: tail.then(|| &bytes[bytes.len().saturating_sub(Sample::TAIL)..]),
            size: bytes.len() as u64,
        };
        let named = LAYERS
            .iter()
            .filter_map(|layer| match (layer.probe)(&sample) {
                Verdict::Yes { confidence, .. } => Some((layer.name, confidence.0)),
                Verdict::No => None,
            });
        named.collect::<Vec<_>>()
    };
    let whole = two();
    assert_eq!(found(&whole, false), [("zip", 80)]);
    let with_program = [noise(500, 1), whole.clone()].concat();
    assert_eq!(found(&with_program, true), [("zip", 10)]);
    assert_eq!(found(&with_program, false), []);
    // The last of several files, which begins somewhere in a body.
    let mut last = with_program.clone();
    let end = last.len() - 22;
    last[end + 4..end + 8].copy_from_slice(&[2, 0, 2, 0]);
    assert_eq!(found(&last, true), [("zip", 10)]);
    assert_eq!(found(&with_program[..with_program.len() - 1], true), []);
    assert_eq!(found(&whole[whole.len() - 22..], false), [("zip", 80)]);
}
