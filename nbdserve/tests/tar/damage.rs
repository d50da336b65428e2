//! Archives that are damaged or that lie.

use std::fs;

use nbdserve::layer::{LAYERS, Sample, Verdict};
use nbdserve::source::Memory;
use nbdserve::{Cx, Kind, Volume};

use crate::forge::{self, Header, end, extra, file, number, pax, records};
use crate::tools::{named, noise, open, open_on, open_only, read_all, tar};

fn kind(bytes: &[u8]) -> Option<Kind> {
    open_only(bytes).err().map(|error| error.kind())
}

/// Three files, the last of which is opened.
fn three() -> Vec<u8> {
    let long = "n".repeat(150);
    [
        file("first", &noise(1500, 1)),
        pax(&[("path", &long), ("size", "700")]),
        file("second", &noise(700, 2)),
        extra(b'L', b"third\0"),
        file("x", &noise(2000, 3)),
        end(),
    ]
    .concat()
}

#[test]
fn a_truncated_archive_is_corrupt_unless_it_ends_between_entries() {
    let whole = three();
    let third = whole.len() - 1024 - 2048 - 512;
    for len in 0..=whole.len() {
        let found = open(&whole[..len], "third");
        if len >= third + 512 + 2000 {
            // What fills up the last block may be missing, and the end too.
            assert!(found.is_ok(), "{len}");
            continue;
        }
        let error = found.unwrap_err();
        let is_boundary = [2048, 2048 + 1024 + 1536].contains(&len);
        let expected = match len {
            0..512 => Kind::NotThisFormat,
            _ if is_boundary => Kind::OutOfRange,
            _ => Kind::Corrupt,
        };
        // The bodies' last blocks may be short at the very end.
        let is_body_end = (512 + 1500..2048).contains(&len)
            || (2048 + 1024 + 512 + 700..2048 + 1024 + 1536).contains(&len);
        if is_body_end {
            assert_eq!(error.kind(), Kind::OutOfRange, "{len}: {error}");
        } else {
            assert_eq!(error.kind(), expected, "{len}: {error}");
        }
    }
}

#[test]
fn sizes_at_their_limits() {
    let with = |field: &[u8]| {
        let mut header = Header::new(b'0', "disk", 0);
        header.put(124, field);
        [header.done(), noise(1024, 1)].concat()
    };
    assert_eq!(open_only(&with(&number(1024))).unwrap().size(), 1024);
    assert_eq!(open_only(&with(&number(1023))).unwrap().size(), 1023);
    // A block of the body is taken for a header, and is none.
    for size in [0, 1, 512] {
        assert_eq!(kind(&with(&number(size))), Some(Kind::Corrupt), "{size}");
    }
    for size in [
        1025,
        1 << 33,
        (1 << 63) - 1,
        1 << 63,
        u64::MAX - 511,
        u64::MAX - 1,
        u64::MAX,
    ] {
        assert_eq!(kind(&with(&number(size))), Some(Kind::Corrupt), "{size}");
    }
    for field in [
        &[0xff; 12][..],
        &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[
            0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        b"777777777777",
        b"9999999999\0\0",
        b"-0000001\0\0\0\0",
        b"+1\0\0\0\0\0\0\0\0\0\0",
        b"1e3\0\0\0\0\0\0\0\0\0",
    ] {
        assert_eq!(kind(&with(field)), Some(Kind::Corrupt), "{field:?}");
    }
    // pax says the same in another place.
    let max = u64::MAX;
    for size in [
        "1025",
        "-1",
        "x",
        "9223372036854775808",
        &max.to_string(),
        "18446744073709551616",
    ] {
        let bytes = [pax(&[("size", size)]), file("disk", &noise(1024, 1))].concat();
        assert_eq!(kind(&bytes), Some(Kind::Corrupt), "{size}");
    }
    // And headers that belong to others have sizes too.
    for typeflag in *b"xgLK" {
        for size in [1 << 40, 1 << 63, max - 512, max] {
            let header = Header::new(typeflag, "extra", size).done();
            let bytes = [header, file("disk", b"content")].concat();
            assert_eq!(kind(&bytes), Some(Kind::Corrupt), "{typeflag} {size}");
        }
    }
}

/// What another parser would take for a header hides in a body: CVE-2025-62518 and its like.
#[test]
fn headers_within_a_body_are_never_seen() {
    let inner = [file("hidden", b"hidden"), file("disk", b"wrong"), end()].concat();
    let size = inner.len().to_string();
    let body = |stated: u64| {
        let header = Header::new(b'0', "nested.tar", stated).done();
        [header, inner.clone()].concat()
    };
    let good = file("disk", b"right");
    for before in [
        vec![pax(&[("size", &size)]), body(0)],
        vec![pax(&[("size", &size)]), body(512)],
        // The size is for the file, not for what stands between.
        vec![
            pax(&[("size", &size)]),
            extra(b'L', b"nested.tar\0"),
            body(0),
        ],
        vec![
            pax(&[("size", &size)]),
            extra(b'g', &records(&[("comment", "x")])),
            body(0),
        ],
        vec![pax(&[("size", &size)]), pax(&[("mtime", "1")]), body(0)],
        vec![
            extra(b'g', &records(&[("size", &size)])),
            body(0),
            pax(&[("size", "5")]),
        ],
        vec![pax(&[("size", "0"), ("size", &size)]), body(0)],
    ] {
        let bytes = [before.concat(), good.clone(), end()].concat();
        let volume = open(&bytes, "disk").unwrap();
        assert_eq!(read_all(&volume), b"right");
        assert!(open(&bytes, "hidden").is_err());
        let nested = open(&bytes, "nested.tar").unwrap();
        assert!(read_all(&nested) == inner);
    }
    // The other way round: pax says that there is less.
    let bytes = [
        pax(&[("size", "0")]),
        Header::new(b'0', "empty", 1 << 20).done(),
        good.clone(),
        end(),
    ]
    .concat();
    assert_eq!(read_all(&open(&bytes, "disk").unwrap()), b"right");
}

#[test]
fn garbage_is_corrupt_and_told_where() {
    let text = |bytes: &[u8]| {
        let error = open_only(bytes).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        error.to_string()
    };
    let good = file("disk", b"content");
    let what = text(&[good.clone(), noise(512, 1), end()].concat());
    assert_eq!(what, "no header at 1024: its checksum is wrong");
    let what = text(&[good.clone(), vec![7; 100]].concat());
    assert_eq!(
        what,
        "100 bytes at 1024 are too few for a header (truncated)"
    );
    let lone = [good.clone(), vec![0; 512], good.clone(), end()].concat();
    assert_eq!(
        text(&lone),
        "a block of zeroes at 1024, and the archive does not end there"
    );
    for last in [
        pax(&[("path", "x")]),
        extra(b'L', b"x\0"),
        extra(b'K', b"x\0"),
    ] {
        let what = text(&[good.clone(), last, end()].concat());
        assert_eq!(what, "the extended header at 1024 has no entry behind it");
    }
    let what = text(&[extra(b'x', b"12 path=abc\nx"), good.clone(), end()].concat());
    assert_eq!(what, "the record of an extended header at 524 is none");
    let mut wrong = good.clone();
    wrong[0] ^= 1;
    assert_eq!(text(&wrong), "no header at 0: its checksum is wrong");
}

#[test]
fn what_is_no_archive_is_told() {
    for bytes in [
        &b""[..],
        b"x",
        &[0; 10_240],
        &noise(10_240, 1),
        &[b'0'; 512],
    ] {
        assert_eq!(kind(bytes), Some(Kind::NotThisFormat));
    }
}

/// Each number of each header at its limits, with the checksum mended: an error, or the same file.
#[test]
fn every_byte_of_every_header() {
    let whole = three();
    let expected = noise(2000, 3);
    let headers = [0, 2048, 3072, 4608, 5632];
    for header in headers {
        for at in (0..512).filter(|at| !(148..156).contains(at)) {
            for new in [0, 1, b'0', b'7', b' ', 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[header + at] = new;
                forge::mend(&mut bytes[header..]);
                match open(&bytes, "third") {
                    Ok(volume) => {
                        let is_same = read_all(&volume) == expected;
                        // It may be another size that it has.
                        let is_size = header == 5632 && (124..136).contains(&at);
                        assert!(is_same || is_size, "{header} {at} {new}");
                    }
                    Err(error) => assert!(
                        matches!(
                            error.kind(),
                            Kind::Corrupt
                                | Kind::OutOfRange
                                | Kind::Unsupported
                                | Kind::Limit
                                | Kind::NotThisFormat
                        ),
                        "{error:?}"
                    ),
                }
            }
        }
    }
}

#[test]
fn memory_is_bounded_whatever_the_archive_has() {
    let open = |bytes: Vec<u8>, budget| {
        let below = Memory::volume(bytes);
        let layer = &nbdserve::layer::tar::TAR;
        (layer.open)(&below, &named("disk"), &Cx::new(budget))
    };
    let mut many = Vec::new();
    for n in 0..3000 {
        many.extend(file(&format!("f{n}"), b""));
    }
    many.extend([file("disk", b"content"), end()].concat());
    let error = open(many.clone(), 1 << 20).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    assert!(error.report().hint.unwrap().contains("--cache-size"));
    open(many, 16 << 20).unwrap();

    let name = [vec![b'n'; 1 << 20], vec![0]].concat();
    let long = [extra(b'L', &name), file("x", b""), file("disk", b""), end()].concat();
    let error = open(long.clone(), 1 << 20).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    open(long, 16 << 20).unwrap();

    let pieces = "1,0,".repeat(10_000) + "1,0";
    let map = pax(&[("GNU.sparse.size", "1"), ("GNU.sparse.map", &pieces)]);
    let holes = [map, file("disk", b""), end()].concat();
    assert_eq!(
        open(holes.clone(), 1 << 20).unwrap_err().kind(),
        Kind::Limit
    );
    open(holes, 16 << 20).unwrap();
}

#[test]
fn a_chain_of_extended_headers_ends_with_the_file() {
    let many = extra(b'x', &records(&[("comment", "x")])).repeat(5000);
    assert_eq!(kind(&many), Some(Kind::Corrupt));
    let bytes = [many, file("disk", b"content"), end()].concat();
    assert_eq!(read_all(&open_only(&bytes).unwrap()), b"content");
}

#[test]
fn an_archive_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), noise(3000, 1)).unwrap();
    let found = |bytes: &[u8]| {
        let head = &bytes[..bytes.len().min(Sample::HEAD)];
        let sample = Sample {
            head,
            tail: None,
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
    for (format, confidence) in [("v7", 40), ("ustar", 100), ("posix", 100), ("gnu", 100)] {
        let bytes = tar(dir.path(), &[&format!("--format={format}"), "disk"]);
        assert_eq!(found(&bytes), [("tar", confidence)], "{format}");
        let mut wrong = bytes.clone();
        wrong[150] ^= 1;
        let expected: &[_] = if format == "v7" { &[] } else { &[("tar", 80)] };
        assert_eq!(found(&wrong), expected, "{format}");
        assert_eq!(found(&bytes[..511]), []);
    }
    assert_eq!(found(&[0; 5000]), []);
    assert_eq!(found(&[b' '; 5000]), []);
}

#[test]
fn a_source_that_is_cut_off_later_is_an_io_error() {
    let bytes = three();
    let below: Volume = Memory::volume(bytes.clone());
    let (source, faults) = nbdserve::testing::Faulty::volume(below);
    let volume = open_on(&source, &named("third")).unwrap();
    faults.short_medium(5000);
    let error = volume.read_vec(0, 2000).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
}
