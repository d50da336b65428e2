//! Files with holes, in each of the ways that there are.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nbdserve::source::Memory;
use nbdserve::testing::{Counting, conformance};
use nbdserve::{ByteRange, Kind, Volume};

use crate::forge::{Header, end, file, number, padded, pax};
use crate::tools::{archive, named, noise, open, open_on, open_only, read_all};

/// `size` bytes with noise in the blocks that `pieces` say.
fn with_holes(size: usize, pieces: &[std::ops::Range<usize>]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for piece in pieces {
        let noise = noise(piece.len(), piece.start as u64);
        bytes[piece.clone()].copy_from_slice(&noise);
    }
    bytes
}

/// Many of them, few of them, at the ends and not.
#[allow(clippy::single_range_in_vec_init, reason = "one piece is meant")]
fn files() -> Vec<(Vec<u8>, Vec<std::ops::Range<usize>>)> {
    let many: Vec<_> = (0..100_usize)
        .map(|n| n * 4096 + 512..n * 4096 + 1536)
        .collect();
    let pieces = [
        many,
        vec![0..512, 100_352..110_592],
        vec![4096..8192],
        vec![],
        vec![1_000_448..1_000_500],
    ];
    let files = pieces.into_iter().map(|pieces| {
        let size = match pieces.last() {
            Some(last) if last.end % 512 != 0 => last.end,
            _ => 1_000_000,
        };
        (with_holes(size, &pieces), pieces)
    });
    files.collect()
}

/// Where the volume says that there is data.
fn data(volume: &Volume) -> Vec<std::ops::Range<usize>> {
    let all = ByteRange::between(0, volume.size());
    let extents = volume.extents(all).unwrap();
    let runs = extents.runs().iter().filter(|run| !run.flags.hole);
    runs.map(|run| run.range.start() as usize..run.range.end() as usize)
        .collect()
}

/// Only what is not zero: tar looks for holes in files that take less space than they are long.
fn write_with_holes(path: &Path, content: &[u8]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (n, block) in content.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, n as u64 * 4096).unwrap();
        }
    }
}

const FORMS: [&[&str]; 5] = [
    &["--format=oldgnu"],
    &["--format=gnu"],
    &["--format=posix", "--sparse-version=0.0"],
    &["--format=posix", "--sparse-version=0.1"],
    &["--format=posix", "--sparse-version=1.0"],
];

/// An archive of the file `disk`, which has holes, between two others.
fn made(dir: &Path, content: &[u8], form: &[&str]) -> Vec<u8> {
    write_with_holes(&dir.join("disk"), content);
    fs::write(dir.join("before"), noise(700, 1)).unwrap();
    fs::write(dir.join("after"), noise(800, 2)).unwrap();
    // By looking for zeroes: not every file system tells of holes.
    let how = ["-cSf", "out.tar", "--hole-detection=raw"];
    let args = [&how[..], form, &["before", "disk", "after"]].concat();
    archive(dir, "tar", &args)
}

#[test]
fn all_forms_have_the_bytes_and_the_holes_of_the_file() {
    for (content, pieces) in files() {
        for form in FORMS {
            let dir = tempfile::tempdir().unwrap();
            let bytes = made(dir.path(), &content, form);
            let what = format!("{form:?} {} pieces", pieces.len());
            let volume = open(&bytes, "disk").unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(read_all(&volume) == content, "{what}");
            assert_eq!(data(&volume), pieces, "{what}");
            assert!(volume.writer().is_none());
            assert!(
                read_all(&open(&bytes, "before").unwrap()) == noise(700, 1),
                "{what}"
            );
            assert!(
                read_all(&open(&bytes, "after").unwrap()) == noise(800, 2),
                "{what}"
            );
            // Much was left out, or nothing of this was tried.
            assert!(bytes.len() < content.len() / 2);
        }
    }
}

#[test]
fn a_long_name_and_holes_go_together() {
    let (content, pieces) = files().swap_remove(0);
    let name = "long".repeat(40);
    for form in FORMS {
        let dir = tempfile::tempdir().unwrap();
        write_with_holes(&dir.path().join(&name), &content);
        let how = ["-cSf", "out.tar", "--hole-detection=raw"];
        let bytes = archive(dir.path(), "tar", &[&how[..], form, &[&name]].concat());
        let volume = open(&bytes, &name).unwrap();
        assert!(read_all(&volume) == content);
        assert_eq!(data(&volume), pieces);
    }
}

#[test]
fn bsdtar_reads_back_too() {
    for (content, _) in files() {
        let dir = tempfile::tempdir().unwrap();
        write_with_holes(&dir.path().join("disk"), &content);
        let bytes = archive(dir.path(), "bsdtar", &["-cf", "out.tar", "disk"]);
        assert!(read_all(&open_only(&bytes).unwrap()) == content);
    }
}

#[test]
fn devices_with_holes_conform() {
    let pieces: Vec<_> = (0..30).map(|n| n * 5120..n * 5120 + 1536).collect();
    let content = with_holes(160_000, &pieces);
    // All maps come to the same: one before the data, and one in a header.
    for form in [FORMS[0], FORMS[4]] {
        let dir = tempfile::tempdir().unwrap();
        let bytes = made(dir.path(), &content, form);
        conformance::check(|| (open(&bytes, "disk").unwrap(), content.clone()));
        let open = |below: &Volume| open_on(below, &named("disk"));
        conformance::check_errors("tar:disk", &bytes, open);
    }
}

#[test]
fn a_hole_costs_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let content = with_holes(4 << 20, &[0..4096, 4_190_208..4_194_304]);
    let bytes = made(dir.path(), &content, FORMS[4]);
    let (below, counts) = Counting::volume(Memory::volume(bytes));
    let volume = open_on(&below, &named("disk")).unwrap();
    counts.reset();
    assert!(read_all(&volume) == content);
    assert_eq!(counts.read_bytes(), 8192, "{:?}", counts.read_ranges());
    volume.will_need(ByteRange::between(0, volume.size()));
    assert_eq!(counts.hints(), 2);
    assert_eq!(counts.hint_sets().len(), 1);
}

#[test]
fn a_small_file_may_claim_petabytes_of_hole() {
    let size = 1_u64 << 60;
    let text = size.to_string();
    let headers = [
        ("GNU.sparse.size", &*text),
        ("GNU.sparse.numblocks", "1"),
        ("GNU.sparse.map", "1152921504606846464,512"),
    ];
    let bytes = [pax(&headers), file("disk", &noise(512, 1)), end()].concat();
    let volume = open_only(&bytes).unwrap();
    assert_eq!(volume.size(), size);
    assert!(volume.read_vec(size - 512, 512).unwrap() == noise(512, 1));
    assert_eq!(volume.read_vec(1 << 50, 5000).unwrap(), vec![0; 5000]);
    let extents = volume.extents(ByteRange::between(0, size)).unwrap();
    assert_eq!(extents.runs().len(), 2);
}

/// How opening the file `disk` ends.
fn kind(parts: &[Vec<u8>]) -> Option<Kind> {
    let bytes = [parts.concat(), end()].concat();
    open(&bytes, "disk").err().map(|error| error.kind())
}

#[test]
fn maps_in_headers_that_lie() {
    let body = || file("disk", &noise(1024, 1));
    let map = |size: &str, count: &str, map: &str| {
        pax(&[
            ("GNU.sparse.size", size),
            ("GNU.sparse.numblocks", count),
            ("GNU.sparse.map", map),
        ])
    };
    assert_eq!(kind(&[map("9000", "2", "0,512,4096,512"), body()]), None);
    let max = u64::MAX.to_string();
    let corrupt = [
        map("9000", "1", "0,512,4096,512"),
        map("9000", "3", "0,512,4096,512"),
        map("9000", &max, "0,512,4096,512"),
        map("9000", "2", "4096,512,0,512"),
        map("9000", "2", "0,512,0,512"),
        map("9000", "1", "0,512"),
        map("9000", "1", "0,1025"),
        map("4607", "2", "0,512,4096,512"),
        map("0", "1", "0,1024"),
        map(&max, "1", "0,1024"),
        map("9223372036854775808", "1", "0,1024"),
        map("9000", "1", "18446744073709551615,1024"),
        map("9000", "1", "1,18446744073709551615"),
        map("-1", "1", "0,1024"),
        map("", "1", "0,1024"),
        map("9000", "0", ""),
        pax(&[("GNU.sparse.size", "9000"), ("GNU.sparse.numbytes", "1024")]),
        pax(&[
            ("GNU.sparse.size", "9000"),
            ("GNU.sparse.numblocks", "1"),
            ("GNU.sparse.offset", "0"),
        ]),
        pax(&[("GNU.sparse.numblocks", "0")]),
    ];
    for (number, header) in corrupt.into_iter().enumerate() {
        assert_eq!(kind(&[header, body()]), Some(Kind::Corrupt), "{number}");
    }
    // Programs do not agree on what this means.
    let ragged = map("9000", "2", "0,100,4096,924");
    assert_eq!(kind(&[ragged, body()]), Some(Kind::Unsupported));
    let newer = pax(&[
        ("GNU.sparse.major", "2"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "9000"),
    ]);
    assert_eq!(kind(&[newer, body()]), Some(Kind::Unsupported));
    // star's own form: by type, or by what it says of the size.
    let star = pax(&[("SCHILY.realsize", "9000")]);
    assert_eq!(kind(&[star, body()]), Some(Kind::Unsupported));
    let mut header = Header::new(b'S', "disk", 1024);
    header.put(508, b"tar\0");
    assert_eq!(
        kind(&[header.done(), noise(1024, 1)]),
        Some(Kind::Unsupported)
    );
}

#[test]
fn maps_before_the_data_that_lie() {
    let with_map = |map: &str, size: &str| {
        let header = pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "disk"),
            ("GNU.sparse.realsize", size),
        ]);
        let data = [padded(map.as_bytes()), noise(1024, 1)].concat();
        vec![header, file("GNUSparseFile.0/disk", &data)]
    };
    assert_eq!(kind(&with_map("2\n0\n512\n4096\n512\n", "9000")), None);
    let max = u64::MAX;
    for (map, size) in [
        ("", "9000"),
        ("2", "9000"),
        ("1\n0\n512\n", "9000"),
        ("3\n0\n512\n4096\n512\n", "9000"),
        ("2\n0\n512\n4096\n512\n", "4607"),
        ("2\n0\n512\n4096\n512\n", "0"),
        ("2\n4096\n512\n0\n512\n", "9000"),
        ("-1\n", "9000"),
        ("x", "9000"),
        (&format!("1\n{max}\n1024\n"), "9000"),
        (&format!("1\n0\n{max}\n"), "9000"),
        (&format!("1\n0\n{max}0\n"), "9000"),
    ] {
        assert_eq!(kind(&with_map(map, size)), Some(Kind::Corrupt), "{map}");
    }
    for count in [1_u64 << 40, max - 1, max] {
        let lie = with_map(&format!("{count}\n0\n512\n"), "9000");
        assert_eq!(kind(&lie), Some(Kind::Limit), "{count}");
    }
    let cut = vec![
        pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", "9000"),
        ]),
        file("disk", b"1\n0\n"),
    ];
    assert_eq!(kind(&cut), Some(Kind::Corrupt));
}

#[test]
fn old_maps_that_lie() {
    let old = |pieces: &[(Vec<u8>, Vec<u8>)], real: Vec<u8>, stored: u64| {
        let mut header = Header::gnu(b'S', "disk", stored);
        for (n, (offset, len)) in pieces.iter().enumerate() {
            header.put(386 + 24 * n, offset).put(398 + 24 * n, len);
        }
        header.put(483, &real);
        header
    };
    let body = || noise(1024, 1);
    let good = [(number(0), number(512)), (number(4096), number(512))];
    let header = old(&good, number(9000), 1024).done();
    assert_eq!(kind(&[header, body()]), None);
    let negative = vec![0xff; 12];
    let max = number(u64::MAX);
    let half = number(1 << 63);
    let first = (number(0), number(512));
    let second = |offset: &[u8], len: &[u8]| {
        let second = (offset.to_vec(), len.to_vec());
        old(&[first.clone(), second], number(9000), 1024)
    };
    for (n, header) in [
        old(&good, number(0), 1024),
        old(&good, number(4607), 1024),
        old(&good, negative.clone(), 1024),
        old(&good, max.clone(), 1024),
        old(&good, half, 1024),
        old(&good, b"9000\0\0\0\0\0\0\0\0".to_vec(), 1024),
        old(&good, number(9000), 1023),
        old(&good[..1], number(9000), 1024),
        old(&[], number(9000), 1024),
        second(&negative, &number(512)),
        second(&number(4096), &negative),
        second(&max, &number(512)),
        second(&number(4096), &max),
        second(&number(511), &number(512)),
        second(&number(8489), &number(512)),
        second(b"x\0\0\0\0\0\0\0\0\0\0\0", &number(512)),
    ]
    .into_iter()
    .enumerate()
    {
        let found = kind(&[header.done(), body()]);
        assert_eq!(found, Some(Kind::Corrupt), "{n}");
    }
    // More blocks of the map than there are.
    let mut endless = old(&good, number(9000), 1024);
    endless.put(482, &[1]);
    let mut block = vec![0; 512];
    block[504] = 1;
    let many = [endless.done(), block.repeat(5)].concat();
    let error = open_only(&many).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    // And more of them than memory.
    for at in (0..504).step_by(24) {
        block[at..at + 12].copy_from_slice(&number(4096));
        block[at + 12..at + 24].copy_from_slice(&number(0));
    }
    let many = [endless.done(), block.repeat(3000)].concat();
    let error = open_only(&many).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error}");
}
