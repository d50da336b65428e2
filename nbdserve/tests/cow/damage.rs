//! Files that are not as they were written, and files that lie.

use nbdserve::layer::cow::header::{
    Header, MAP_AT, SECTOR_LEN, SLOT_LEN, SLOTS_LEN, State, TEXTS_LEN,
};
use nbdserve::testing::{Platter, noise};
use nbdserve::{ByteRange, Done, Error, Kind, Volume, ZeroOpts};
use twox_hash::XxHash3_64;

use super::{SIZE, disk, on_platter};

/// A file with some blocks in it.
fn file() -> (Volume, Vec<u8>) {
    let (below, _) = disk();
    let platter = Platter::default();
    let volume = on_platter(&below, &platter).unwrap();
    let writer = volume.writer().unwrap();
    writer.write_at(&noise(20_000, 2), 8192, false).unwrap();
    let range = ByteRange::between(81_920, 90_112);
    assert_eq!(writer.zero(range, ZeroOpts::default()).unwrap(), Done::Yes);
    volume.close().unwrap();
    (below, platter.bytes())
}

fn mend(slot: &mut [u8]) {
    let sum = XxHash3_64::oneshot(&slot[..SLOT_LEN - 8]);
    slot[SLOT_LEN - 8..].copy_from_slice(&sum.to_le_bytes());
}

fn open(below: &Volume, bytes: &[u8]) -> Error {
    let opened = on_platter(below, &Platter::with(bytes));
    let error = opened.expect_err("a file that is wrong must be refused");
    assert!(error.report().what.contains("kept"), "{error:?}");
    error
}

#[test]
fn a_field_of_the_header_that_lies_is_refused_by_name() {
    let (below, good) = file();
    on_platter(&below, &Platter::with(&good)).unwrap();
    let cases: &[(usize, &[u8], Kind, &str)] = &[
        (0, b"x", Kind::NotThisFormat, "does not begin"),
        (8, &[0, 0, 0, 0], Kind::Unsupported, "version 0"),
        (8, &[2, 0, 0, 0], Kind::Unsupported, "version 2"),
        (8, &[255; 4], Kind::Unsupported, "version 4294967295"),
        (12, &[0; 4], Kind::Corrupt, "blocks have 0 bytes"),
        (12, &[1, 0, 0, 0], Kind::Corrupt, "blocks have 1 bytes"),
        (12, &[0, 8, 0, 0], Kind::Corrupt, "blocks have 2048 bytes"),
        (
            12,
            &[0, 0x30, 0, 0],
            Kind::Corrupt,
            "blocks have 12288 bytes",
        ),
        (
            12,
            &[0, 0, 0x20, 0],
            Kind::Corrupt,
            "blocks have 2097152 bytes",
        ),
        (12, &[255; 4], Kind::Corrupt, "blocks have 4294967295 bytes"),
        (16, &[0; 8], Kind::Corrupt, "disk has 0 bytes"),
        (
            16,
            &[1, 0, 0, 0, 0, 0, 0, 0],
            Kind::Changed,
            "disk of 1 bytes",
        ),
        (16, &[255; 8], Kind::Corrupt, "18446744073709551615"),
        (
            16,
            &[254, 255, 255, 255, 255, 255, 255, 255],
            Kind::Corrupt,
            "18446744073709551614",
        ),
        // All its map has another seed then.
        (
            24,
            &[1; 8],
            Kind::Corrupt,
            "sector 0 of its map has the checksum",
        ),
        (40, &[0; 4], Kind::Corrupt, "is of epoch 1, its header of 0"),
        (44, &[2, 0, 0, 0], Kind::Corrupt, "state is 2"),
        (44, &[255; 4], Kind::Corrupt, "state is 4294967295"),
        (44, &[1, 0, 0, 0], Kind::Denied, "begun and not finished"),
        (56, &[0; 8], Kind::Changed, "other bytes"),
        (64, &[255, 255], Kind::Corrupt, "a text of 65535 bytes"),
        (66, &[255, 255], Kind::Corrupt, "a text of 65535 bytes"),
        (68, &[255, 255], Kind::Corrupt, "a text of 65535 bytes"),
        (70, &[255, 255], Kind::Corrupt, "a text of 65535 bytes"),
        (66, &[1, 0], Kind::Changed, "changed just now"),
        (70, &[1, 0], Kind::Changed, "goes on top of"),
    ];
    for (at, new, kind, words) in cases {
        let mut bytes = good.clone();
        bytes[*at..at + new.len()].copy_from_slice(new);
        mend(&mut bytes[..SLOT_LEN]);
        let error = open(&below, &bytes);
        assert_eq!(error.kind(), *kind, "{at}: {error:?}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    // The longest text that there is room for, and one byte more.
    for (len, fits) in [(TEXTS_LEN, true), (TEXTS_LEN + 1, false)] {
        let mut bytes = good.clone();
        bytes[64..66].copy_from_slice(&(len as u16).to_le_bytes());
        mend(&mut bytes[..SLOT_LEN]);
        let parsed = Header::parse(&bytes[..SLOT_LEN]);
        assert_eq!(parsed.is_ok(), fits, "{len}: {parsed:?}");
    }
    // Not UTF-8.
    let mut bytes = good.clone();
    bytes[64] = 1;
    bytes[80] = 0xff;
    mend(&mut bytes[..SLOT_LEN]);
    assert!(open(&below, &bytes).to_string().contains("not UTF-8"));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (below, good) = file();
    let sector = MAP_AT as usize;
    let places = (0..SLOT_LEN)
        .step_by(37)
        .chain([sector, sector + 8, sector + 16]);
    for at in places.chain((sector..sector + SECTOR_LEN).step_by(11)) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        let error = open(&below, &bytes);
        let expected = if at < 8 {
            Kind::NotThisFormat
        } else {
            Kind::Corrupt
        };
        assert_eq!(error.kind(), expected, "{at}: {error:?}");
        assert!(error.report().hint.is_some());
    }
}

#[test]
fn a_file_that_was_cut_is_refused_or_fails_where_bytes_are_missing() {
    let (below, good) = file();
    for len in (1..SLOT_LEN).step_by(61).chain([SLOT_LEN - 1]) {
        let error = open(&below, &good[..len]);
        let expected = if len < 8 {
            Kind::NotThisFormat
        } else {
            Kind::Corrupt
        };
        assert_eq!(error.kind(), expected, "{len}: {error:?}");
    }
    for len in [SLOT_LEN, SLOT_LEN + 1, SLOTS_LEN, MAP_AT as usize] {
        // Nothing of its map is there: as a file in which nothing was flushed.
        let volume = on_platter(&below, &Platter::with(&good[..len])).unwrap();
        assert!(volume.read_vec(8192, 100).unwrap() == noise(SIZE, 1)[8192..8292]);
    }
    for cut in [1, 9, 20] {
        let error = open(&below, &good[..MAP_AT as usize + cut]);
        assert_eq!(error.kind(), Kind::Corrupt, "{cut}: {error:?}");
    }
    let data = 1 << 20;
    for len in [MAP_AT as usize + SECTOR_LEN, data, data + 8192 + 4000] {
        let volume = on_platter(&below, &Platter::with(&good[..len])).unwrap();
        let error = volume.read_vec(8192, 20_000).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        assert!(error.to_string().contains("kept ends within"), "{error}");
        assert!(volume.read_vec(0, 8192).unwrap() == noise(SIZE, 1)[..8192]);
    }
}

/// A file whose map is these states of its first blocks.
fn with_map(good: &[u8], words: &[(usize, u64)], epoch: u32) -> Vec<u8> {
    let mut header = Header::parse(&good[..SLOT_LEN]).unwrap();
    let mut all = [0; 62];
    for (at, word) in words {
        all[*at] = *word;
    }
    header.epoch = epoch;
    let mut bytes = good.to_vec();
    let at = MAP_AT as usize;
    bytes[at..at + SECTOR_LEN].copy_from_slice(&header.encode_sector(0, &all));
    bytes
}

#[test]
fn a_map_that_lies_is_refused() {
    let (below, good) = file();
    let sector = |words: &[(usize, u64)], epoch| with_map(&good, words, epoch);
    on_platter(&below, &Platter::with(&sector(&[(0, 0x5555)], 1))).unwrap();
    for (words, epoch, text) in [
        (&[(0, 3_u64)][..], 1, "no known state"),
        (&[(1, 3 << 62)][..], 1, "no known state"),
        // 300 000 bytes are 74 blocks.
        (&[(2, 1 << 20)][..], 1, "beyond the end of the disk"),
        (&[(61, 1)][..], 1, "beyond the end of the disk"),
        (&[(0, 1)][..], 2, "is of epoch 2"),
        (&[(0, 1)][..], u32::MAX, "is of epoch 4294967295"),
    ] {
        let error = open(&below, &sector(words, epoch));
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert!(error.to_string().contains("sector 0 of its map"), "{error}");
    }
    // The last block is one of the disk.
    let volume = on_platter(&below, &Platter::with(&sector(&[(2, 2 << 18)], 1))).unwrap();
    let last = volume.read_vec(299_008, SIZE - 299_008).unwrap();
    assert!(last.iter().all(|byte| *byte == 0));
    // An older one means nothing.
    let old = on_platter(&below, &Platter::with(&sector(&[(0, 0x5555)], 0))).unwrap();
    assert!(old.read_vec(0, SIZE).unwrap() == noise(SIZE, 1));
}

#[test]
fn the_newer_of_two_headers_counts_and_an_older_one_is_used_when_it_is_damaged() {
    let (below, good) = file();
    let header = Header::parse(&good[..SLOT_LEN]).unwrap();
    let mut second = header.clone();
    second.sequence = 1;
    second.state = State::Committing;
    let mut bytes = good.clone();
    bytes[SLOT_LEN..SLOTS_LEN].copy_from_slice(&second.encode());
    assert_eq!(open(&below, &bytes).kind(), Kind::Denied);
    // What a crash in the midst of writing it leaves.
    bytes[SLOT_LEN + 4000] ^= 1;
    on_platter(&below, &Platter::with(&bytes)).unwrap();
    let mut twice = good.clone();
    twice[SLOT_LEN..SLOTS_LEN].copy_from_slice(&header.encode());
    assert_eq!(open(&below, &twice).kind(), Kind::Corrupt);
    // A newer program's.
    let mut newer = second.encode();
    newer[8] = 9;
    mend(&mut newer);
    bytes[SLOT_LEN..SLOTS_LEN].copy_from_slice(&newer);
    assert_eq!(open(&below, &bytes).kind(), Kind::Unsupported);
}

#[test]
fn a_header_comes_back_as_it_was_written() {
    let (_, good) = file();
    let header = Header::parse(&good[..SLOT_LEN]).unwrap();
    assert_eq!(header.encode(), good[..SLOT_LEN]);
    assert_eq!(
        (header.block, header.size, header.epoch),
        (4096, SIZE as u64, 1)
    );
    let changed = Header {
        name: "x".repeat(1000),
        identity: "y".repeat(640),
        place: "z".repeat(640),
        layers: "é".repeat(320),
        created: u64::MAX,
        ..header
    };
    assert_eq!(Header::parse(&changed.encode()).unwrap(), changed);
}
