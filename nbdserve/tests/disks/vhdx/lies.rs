//! Images that lie, and images that were cut.

use nbdserve::Kind;
use nbdserve::layer::vhdx::VHDX;

use super::{
    HEADERS, LOGICAL, PARAMETERS, SECTOR, SIZE, TABLES, bat, header, item, made, mend_all, metadata,
};
use crate::tools::{
    MIB, a_cut_is_told_of, disk, error_of, is_right_or_refused, lie_in_each_field, with,
};

#[test]
fn every_field_may_lie() {
    let image = made(&disk(3), "block_size=1M");
    let table = metadata(&image);
    let mut fields = Vec::new();
    let newer = header(&image);
    for (at, width) in [(0, 4), (8, 8), (64, 2), (66, 2), (68, 4), (72, 8), (48, 16)] {
        fields.push((newer + at, width));
    }
    for (at, width) in [
        (8, 4),
        (16, 16),
        (32, 8),
        (40, 4),
        (44, 4),
        (48, 16),
        (64, 8),
        (72, 4),
    ] {
        fields.push((TABLES[0] + at, width));
    }
    for (at, width) in [(0, 8), (10, 2), (32, 16), (48, 4), (52, 4), (56, 4)] {
        fields.push((table + at, width));
    }
    for (guid, width) in [(PARAMETERS, 4), (SIZE, 8), (LOGICAL, 4)] {
        fields.push((item(&image, guid), width));
    }
    fields.push((item(&image, PARAMETERS) + 4, 4));
    fields.push((bat(&image), 8));
    fields.push((bat(&image) + 8, 8));
    let check = |bytes: &[u8], what: &str| is_right_or_refused(&VHDX, bytes, what);
    lie_in_each_field(&image, &fields, |_| {}, check);
    let mended: Vec<_> = fields.into_iter().filter(|(at, _)| *at < MIB).collect();
    lie_in_each_field(&image, &mended, |bytes| mend_all(bytes), check);
}

#[test]
fn each_lie_is_named() {
    let image = made(&disk(3), "block_size=1M");
    let mended = |at: usize, new: &[u8]| {
        let mut bytes = with(&image, at, new);
        mend_all(&mut bytes);
        bytes
    };
    let head = header(&image);
    let table = metadata(&image);
    let both = |at: usize, new: &[u8]| {
        let mut bytes = with(&with(&image, TABLES[0] + at, new), TABLES[1] + at, new);
        mend_all(&mut bytes);
        bytes
    };
    let mut unknown = with(&both(16, &[9]), TABLES[0] + 16 + 28, &[1]);
    mend_all(&mut unknown);
    let mut older = mended(head + 66, &[2]);
    let other = HEADERS[0] + HEADERS[1] - head;
    older[other..other + 4].fill(0);
    for (bytes, kind, word) in [
        (with(&image, 0, b"x"), Kind::NotThisFormat, "magic"),
        (older, Kind::Unsupported, "version 2"),
        (
            mended(other + 8, &image[head + 8..head + 16]),
            Kind::Corrupt,
            "same sequence",
        ),
        (both(8, &[0, 8]), Kind::Corrupt, "too many"),
        (unknown, Kind::Unsupported, "required"),
        (both(33, &[9]), Kind::Corrupt, "region"),
        (both(38, &[9]), Kind::Corrupt, "region"),
        (both(43, &[0xff]), Kind::Corrupt, "region"),
        (
            both(16, &image[TABLES[0] + 48..TABLES[0] + 64]),
            Kind::Corrupt,
            "twice",
        ),
        (both(8, &[1]), Kind::Corrupt, "no region"),
        (with(&image, table, b"M"), Kind::Corrupt, "metadata"),
        (
            with(&image, table + 10, &[0xff, 0xff]),
            Kind::Corrupt,
            "65535 entries",
        ),
        (
            with(&image, table + 32, &[9]),
            Kind::Unsupported,
            "required",
        ),
        (
            with(&image, table + 48, &[1, 0, 0]),
            Kind::Corrupt,
            "metadata",
        ),
        (
            with(&image, table + 52, &[0xff, 0xff, 0xff]),
            Kind::Corrupt,
            "metadata",
        ),
        (with(&image, table + 10, &[1]), Kind::Corrupt, "no item"),
        (
            with(&image, item(&image, PARAMETERS), &[1]),
            Kind::Corrupt,
            "power of two",
        ),
        (
            with(&image, item(&image, PARAMETERS), &[0, 0, 8]),
            Kind::Corrupt,
            "power of two",
        ),
        (
            with(&image, item(&image, PARAMETERS) + 4, &[4]),
            Kind::Unsupported,
            "parameters",
        ),
        (
            with(&image, item(&image, PARAMETERS) + 4, &[2]),
            Kind::Corrupt,
            "ParentLocator",
        ),
        (
            with(&image, item(&image, SIZE), &[1]),
            Kind::Corrupt,
            "whole sectors",
        ),
        (
            with(&image, item(&image, SIZE) + 6, &[1]),
            Kind::Corrupt,
            "64 TiB",
        ),
        (
            with(&image, item(&image, SIZE) + 4, &[0xff]),
            Kind::Corrupt,
            "allocation table",
        ),
        (
            with(&image, item(&image, LOGICAL), &[0, 4]),
            Kind::Unsupported,
            "1024",
        ),
        (
            with(&image, bat(&image) + 2, &[0, 0]),
            Kind::Corrupt,
            "in the header",
        ),
        (
            with(&image, bat(&image) + 7, &[0xff]),
            Kind::Corrupt,
            "block 0",
        ),
    ] {
        let error = error_of(&VHDX, &bytes);
        assert_eq!(error.kind(), kind, "{word}: {error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn what_was_cut_off_is_told_of() {
    let disk = disk(3);
    for options in ["block_size=1M", "subformat=fixed,block_size=1M"] {
        let image = made(&disk, options);
        for missing in [1, 4096, MIB, MIB + 1] {
            a_cut_is_told_of(&VHDX, &image, image.len() - missing, &disk);
        }
    }
}

#[test]
fn a_file_that_is_cut_is_corrupt() {
    let image = made(&disk(3), "block_size=1M");
    for len in [
        8,
        64 << 10,
        (64 << 10) + 70,
        150 << 10,
        200 << 10,
        MIB,
        2 * MIB + 40,
        image.len() - SECTOR,
    ] {
        let error = error_of(&VHDX, &image[..len]);
        assert_eq!(error.kind(), Kind::Corrupt, "{len}: {error}");
    }
    for len in [0, 7] {
        assert_eq!(error_of(&VHDX, &image[..len]).kind(), Kind::NotThisFormat);
    }
}
