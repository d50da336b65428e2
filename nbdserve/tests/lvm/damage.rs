//! Metadata that lies.

use nbdserve::plan::{self, Info};
use nbdserve::source::Memory;
use nbdserve::testing::conformance;
use nbdserve::{Kind, Volume};

use super::forge::{AREA, EXTENT, dashed, disk, group, logical, mend, physical, segment};
use super::{cx, open, probe, refused};

/// A physical volume with the volumes `lv` and `st`.
fn text() -> String {
    let volumes = [
        logical(
            "lv",
            50,
            &[
                segment(1, 0, 2, &[(0, 1)], 0),
                segment(2, 2, 1, &[(0, 5)], 0),
            ],
        ),
        logical("st", 51, &[segment(1, 0, 2, &[(0, 6), (0, 7)], 8)]),
    ];
    group("vg", 1, &[(0, 8)], &volumes.concat())
}

fn image_of(text: &str) -> Vec<u8> {
    physical(0, 8, text)
}

/// The volume and what it holds, or an error of a kind that an image may cause.
fn opens(image: &[u8]) -> Option<Volume> {
    match open(image, "vg/lv") {
        Ok(volume) => Some(volume),
        Err(error) => {
            let fits = matches!(
                error.kind(),
                Kind::Corrupt
                    | Kind::Unsupported
                    | Kind::NotThisFormat
                    | Kind::Limit
                    | Kind::OutOfRange
            );
            assert!(fits, "{error:?}");
            None
        }
    }
}

#[test]
fn each_field_at_its_extremes_is_refused_or_harmless() {
    let good = image_of(&text());
    let expected = conformance::read_all(&open(&good, "vg/lv").unwrap());
    let label = (512..512 + 152).step_by(4);
    let area = (AREA..AREA + 80).step_by(4);
    for at in label.chain(area) {
        for value in [0_u64, 1, 0x7fff_ffff, u64::MAX - 1, u64::MAX] {
            for width in [4, 8] {
                for sums in [false, true] {
                    let mut image = good.clone();
                    image[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                    if sums {
                        mend(&mut image);
                    }
                    // What can be opened is what it was.
                    if let Some(volume) = opens(&image) {
                        assert!(
                            conformance::read_all(&volume) == expected,
                            "{at}: {value:x}"
                        );
                    }
                    let _ = probe(&image);
                }
            }
        }
    }
}

#[test]
fn an_image_that_is_cut_anywhere_is_refused() {
    let good = image_of(&text());
    let ends = (0..4096).step_by(37).chain((4096..good.len()).step_by(511));
    for end in ends {
        let cut = &good[..end];
        if let Some(volume) = opens(cut) {
            // All of the volume is there.
            assert!(end >= super::forge::DATA + 6 * EXTENT);
            assert_eq!(volume.size(), 3 * EXTENT as u64);
        }
        let _ = probe(cut);
    }
    let (kind, words) = refused(&good[..super::forge::DATA + 5 * EXTENT + 100], "lv");
    assert_eq!(kind, Kind::Corrupt);
    assert!(words.contains("beyond its"), "{words}");
}

#[test]
fn each_lie_of_the_text_has_its_sentence() {
    let cases: &[(&str, &str, &str, Kind, &str)] = &[
        (
            "extent_size = 16",
            "extent_size = 0",
            "lv",
            Kind::Corrupt,
            "extents of 0 sectors",
        ),
        (
            "extent_size = 16",
            "extent_size = 9223372036854775807",
            "lv",
            Kind::Corrupt,
            "extents of",
        ),
        (
            "extent_size = 16",
            "extent_size = -1",
            "lv",
            Kind::Corrupt,
            "below zero",
        ),
        (
            "extent_size = 16",
            "extent_size = \"x\"",
            "lv",
            Kind::Corrupt,
            "no number",
        ),
        (
            "extent_size = 16",
            "",
            "lv",
            Kind::Corrupt,
            "\"extent_size\" is missing",
        ),
        (
            "seqno = 1",
            "seqno = 1\nseqno = 2",
            "lv",
            Kind::Corrupt,
            "given twice",
        ),
        (
            "version = 1",
            "version = 2",
            "lv",
            Kind::Unsupported,
            "version 2",
        ),
        (
            "format = \"lvm2\"",
            "format = \"lvm9\"",
            "lv",
            Kind::Unsupported,
            "lvm9",
        ),
        (
            "\"RESIZEABLE\"",
            "\"EXPORTED\"",
            "lv",
            Kind::Unsupported,
            "exported",
        ),
        (
            "\"RESIZEABLE\"",
            "\"STRANGE\"",
            "lv",
            Kind::Unsupported,
            "STRANGE",
        ),
        (
            "pe_count = 8",
            "pe_count = 5",
            "lv",
            Kind::Corrupt,
            "leave the 5 extents",
        ),
        (
            "pe_count = 8",
            "pe_count = 9223372036854775807",
            "lv",
            Kind::Corrupt,
            "any disk",
        ),
        (
            "pe_start = 64",
            "pe_start = 9223372036854775807",
            "lv",
            Kind::Corrupt,
            "any disk",
        ),
        (
            "pe_start = 64",
            "pe_start = 128",
            "lv",
            Kind::Corrupt,
            "beyond its",
        ),
        (
            "\"pv0\", 1",
            "\"pv0\", 7",
            "lv",
            Kind::Corrupt,
            "leave the 8 extents",
        ),
        (
            "\"pv0\", 1",
            "\"pv0\", 9223372036854775807",
            "lv",
            Kind::Corrupt,
            "leave the 8 extents",
        ),
        (
            "\"pv0\", 1",
            "\"pv0\", -1",
            "lv",
            Kind::Corrupt,
            "leave the 8 extents",
        ),
        (
            "\"pv0\", 1",
            "\"pv0\", 6",
            "lv",
            Kind::Corrupt,
            "belongs to",
        ),
        (
            "\"pv0\", 1",
            "\"pv0\", 6",
            "st",
            Kind::Corrupt,
            "belongs to",
        ),
        (
            "\"pv0\", 1",
            "\"pv0\", 4",
            "lv",
            Kind::Corrupt,
            "belongs to",
        ),
        (
            "\"pv0\", 1",
            "\"pv3\", 1",
            "lv",
            Kind::Corrupt,
            "no physical volume \"pv3\"",
        ),
        ("\"pv0\", 1", "\"lv\", 1", "lv", Kind::Corrupt, "itself"),
        (
            "\"pv0\", 1",
            "\"st\", 1",
            "lv",
            Kind::Unsupported,
            "on the volume \"st\"",
        ),
        (
            "\"pv0\", 1",
            "\"pv0\"",
            "lv",
            Kind::Corrupt,
            "stripes are announced",
        ),
        (
            "\"pv0\", 1",
            "1, \"pv0\"",
            "lv",
            Kind::Corrupt,
            "not a name and a number",
        ),
        (
            "\"pv0\", 6",
            "\"pv0\", 7",
            "st",
            Kind::Corrupt,
            "belongs to",
        ),
        (
            "stripe_count = 1",
            "stripe_count = 0",
            "lv",
            Kind::Corrupt,
            "0 stripes",
        ),
        (
            "stripe_count = 2",
            "stripe_count = 3",
            "st",
            Kind::Corrupt,
            "3 stripes",
        ),
        (
            "stripe_count = 2",
            "stripe_count = 9223372036854775807",
            "st",
            Kind::Corrupt,
            "stripes",
        ),
        (
            "stripe_size = 8",
            "stripe_size = 0",
            "st",
            Kind::Corrupt,
            "stripes of 0 sectors",
        ),
        (
            "stripe_size = 8",
            "stripe_size = 3",
            "st",
            Kind::Corrupt,
            "stripes of 3 sectors",
        ),
        (
            "stripe_size = 8",
            "stripe_size = 9223372036854775807",
            "st",
            Kind::Corrupt,
            "stripes of",
        ),
        (
            "segment_count = 2",
            "segment_count = 0",
            "lv",
            Kind::Corrupt,
            "0 segments",
        ),
        (
            "segment_count = 2",
            "segment_count = 3",
            "lv",
            Kind::Corrupt,
            "3 segments",
        ),
        (
            "segment_count = 2",
            "segment_count = 9223372036854775807",
            "lv",
            Kind::Corrupt,
            "segments",
        ),
        (
            "segment2",
            "segment3",
            "lv",
            Kind::Corrupt,
            "segment2 is missing",
        ),
        ("segment2", "segment1", "lv", Kind::Corrupt, "given twice"),
        (
            "start_extent = 2",
            "start_extent = 1",
            "lv",
            Kind::Corrupt,
            "begins at extent 1",
        ),
        (
            "start_extent = 2",
            "start_extent = 3",
            "lv",
            Kind::Corrupt,
            "begins at extent 3",
        ),
        (
            "extent_count = 2",
            "extent_count = 0",
            "lv",
            Kind::Corrupt,
            "extent",
        ),
        (
            "extent_count = 1",
            "extent_count = 9223372036854775807",
            "lv",
            Kind::Corrupt,
            "segment of",
        ),
        (
            "\"VISIBLE\"",
            "\"VISIBLE\", \"LOCKED\"",
            "lv",
            Kind::Unsupported,
            "pvmove",
        ),
        (
            "\"VISIBLE\"",
            "\"VISIBLE\", \"ODD\"",
            "lv",
            Kind::Unsupported,
            "ODD",
        ),
        (
            "type = \"striped\"",
            "type = \"thin\"",
            "lv",
            Kind::Unsupported,
            "\"thin\"",
        ),
        (
            "type = \"striped\"",
            "type = \"raid5_ls\"",
            "lv",
            Kind::Unsupported,
            "raid5_ls",
        ),
        (
            "type = \"striped\"",
            "type = \"error\"",
            "lv",
            Kind::Unsupported,
            "error",
        ),
        (
            "type = \"striped\"",
            "type = \"a\\u{1b}b\"",
            "lv",
            Kind::Unsupported,
            "type",
        ),
        ("lv {", "\"l/v\" {", "lv", Kind::Corrupt, "no name of LVM2"),
        (
            "lv {",
            "\"l\u{1b}v\" {",
            "lv",
            Kind::Corrupt,
            "no name of LVM2",
        ),
        ("st {", "lv {", "lv", Kind::Corrupt, "two logical volumes"),
        ("vg {", "\"..\" {", "lv", Kind::Corrupt, "no name of LVM2"),
        (
            "contents =",
            "other { }\ncontents =",
            "lv",
            Kind::Corrupt,
            "one group",
        ),
    ];
    let good = text();
    for (from, to, name, kind, words) in cases {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let (found, report) = refused(&image_of(&text), name);
        assert_eq!(found, *kind, "{from} -> {to}: {report}");
        assert!(report.contains(words), "{from} -> {to}: {report}");
        assert!(!report.contains('\u{1b}'), "{report:?}");
    }
}

#[test]
fn every_number_of_the_text_at_its_extremes_is_refused_or_within_bounds() {
    let good = text();
    let bytes = good.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if digits > 0 {
            for value in [
                "0",
                "1",
                "-1",
                "4294967295",
                "9223372036854775806",
                "9223372036854775807",
            ] {
                let text = [&good[..at], value, &good[at + digits..]].concat();
                if let Some(volume) = opens(&image_of(&text)) {
                    assert_eq!(conformance::read_all(&volume).len() as u64, volume.size());
                }
            }
        }
        at += digits.max(1);
    }
}

#[test]
fn what_is_not_here_is_named() {
    let lv = logical("lv", 50, &[segment(1, 0, 4, &[(0, 0), (1, 0)], 8)]);
    let more = logical("here", 51, &[segment(1, 0, 1, &[(0, 4)], 0)]);
    let text = group("vg", 1, &[(0, 8), (1, 8)], &(lv + &more));
    let alone = physical(0, 8, &text);
    let (kind, words) = refused(&alone, "lv");
    assert_eq!(kind, Kind::Unsupported);
    assert!(
        words.contains("\"vg\" is incomplete") && words.contains(&dashed(1)),
        "{words}"
    );
    // What does not need it can be opened.
    assert!(open(&alone, "here").is_ok());
    // The group has gone on without one that has come back.
    let text = text.replacen("flags = []\ndev_size", "flags = [\"MISSING\"]\ndev_size", 1);
    let both = disk(&[physical(0, 8, &text), physical(1, 8, &text)]);
    let (kind, words) = refused(&both, "lv");
    assert_eq!(kind, Kind::Unsupported);
    assert!(words.contains(&dashed(0)), "{words}");
}

#[test]
fn two_of_a_kind_are_told_apart_or_refused() {
    let lv = logical("lv", 50, &[segment(1, 0, 2, &[(0, 0)], 0)]);
    let text = group("vg", 1, &[(0, 8)], &lv);
    // One physical volume, twice.
    let twice = disk(&[physical(0, 8, &text), physical(0, 8, &text)]);
    let (kind, words) = refused(&twice, "lv");
    assert_eq!(kind, Kind::Unsupported);
    assert!(words.contains("two physical volumes"), "{words}");
    // Two groups of one name: their identifiers tell them apart.
    let lv = logical("lv", 60, &[segment(1, 0, 3, &[(1, 0)], 0)]);
    let other = group("vg", 1, &[(1, 8)], &lv).replacen(&dashed(902), &dashed(903), 1);
    let image = disk(&[physical(0, 8, &text), physical(1, 8, &other)]);
    let (kind, words) = refused(&image, "vg/lv");
    assert_eq!(kind, Kind::OutOfRange);
    assert!(
        words.contains("2 volumes") && words.contains(&dashed(902)),
        "{words}"
    );
    let volume = open(&image, &format!("{}/lv", dashed(903))).unwrap();
    assert_eq!(volume.size(), 3 * EXTENT as u64);
}

#[test]
fn snapshots_are_refused_and_what_they_are_of_is_read_only() {
    let volumes = [
        logical("origin", 50, &[segment(1, 0, 2, &[(0, 0)], 0)]),
        logical("cow", 51, &[segment(1, 0, 2, &[(0, 2)], 0)]).replace(", \"VISIBLE\"", ""),
        "snapshot0 {\nid = \"000000-0000-0000-0000-0000-0000-000052\"\nstatus = [\"READ\", \"WRITE\", \
         \"VISIBLE\"]\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 2\n\
         type = \"snapshot\"\nchunk_size = 8\norigin = \"origin\"\ncow_store = \"cow\"\n}\n}\n"
            .to_owned(),
    ];
    let text = group("vg", 1, &[(0, 8)], &volumes.concat());
    let image = image_of(&text);
    let (kind, words) = refused(&image, "cow");
    assert_eq!(kind, Kind::Unsupported);
    assert!(words.contains("snapshot"), "{words}");
    assert!(open(&image, "origin").unwrap().writer().is_none());
    assert_eq!(refused(&image, "snapshot0").0, Kind::OutOfRange);
    let merging = image_of(&text.replace("cow_store", "merging_store"));
    let (kind, words) = refused(&merging, "origin");
    assert_eq!(kind, Kind::Unsupported);
    assert!(words.contains("merged"), "{words}");
    // A group and a volume without the right to be written.
    let text = self::text();
    let group_only = text.replacen("\"READ\", \"WRITE\"]", "\"READ\"]", 1);
    assert!(
        open(&image_of(&group_only), "lv")
            .unwrap()
            .writer()
            .is_none()
    );
    let one = text.replacen("\"WRITE\", \"VISIBLE\"", "\"VISIBLE\"", 1);
    assert!(open(&image_of(&one), "lv").unwrap().writer().is_none());
    assert!(open(&image_of(&one), "st").unwrap().writer().is_some());
}

#[test]
fn texts_that_are_made_to_be_slow_or_large_are_refused() {
    for text in [
        "vg {".repeat(6000),
        format!("vg {{ a = {}", "[".repeat(20_000)),
        "a{}".repeat(8000),
        format!("a = \"{}", "\\\"".repeat(10_000)),
        "#".repeat(20_000),
    ] {
        let (kind, _) = refused(&image_of(&text), "lv");
        assert!(matches!(kind, Kind::Corrupt | Kind::Limit), "{kind:?}");
    }
    // More than memory allows: the area and its text are as long as they say.
    let mut image = image_of(&text());
    image.resize(40 << 20, b'x');
    let long = 30_u64 << 20;
    image[576 + 48..][..8].copy_from_slice(&(long + 512).to_le_bytes());
    image[AREA + 32..][..8].copy_from_slice(&(long + 512).to_le_bytes());
    image[AREA + 48..][..8].copy_from_slice(&long.to_le_bytes());
    mend(&mut image);
    let (kind, words) = refused(&image, "lv");
    assert_eq!(kind, Kind::Limit, "{words}");
}

#[test]
fn a_damaged_group_is_a_note_of_the_disk_and_nothing_more() {
    let mut damaged = image_of(&text());
    damaged[AREA + 600] ^= 1;
    let resolved = plan::inspect(Memory::volume(disk(&[damaged])), "disk", &[], &cx()).unwrap();
    let text = Info::new(&resolved).to_string();
    assert!(
        text.contains("note: LVM2:") && text.contains("checksum"),
        "{text}"
    );
}
