//! Files that are damaged or that lie.

use nbdserve::testing::conformance::read_all;
use nbdserve::testing::packed;
use nbdserve::{Cx, Kind, Result};

use crate::tools::{
    MIB, assert_reads_back, block, header, image, kind_of_open, linked, lz4, lz4_sized, noise,
    open, roomy, skippable, try_read_all, verifying, xxh32,
};

/// Several frames of all sorts in about a thousand bytes.
fn small() -> (Vec<u8>, Vec<u8>) {
    let text = image(900, 35);
    let file = [
        lz4(&text, &["-B4", "-BX"]),
        skippable(3, b"skipped"),
        // The tool does not link blocks of so little.
        linked(&text, &text[50..]),
        lz4_sized(b"a second frame", &["-BX", "--no-frame-crc"]),
        lz4(&[], &[]),
    ];
    let bytes = [&text[..], &text, &text[50..], b"a second frame"].concat();
    (bytes, file.concat())
}

fn content(file: Vec<u8>) -> Result<Vec<u8>> {
    open(file, &roomy()).and_then(|volume| try_read_all(&volume))
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, file) = small();
    assert_reads_back(&bytes, &file);
    packed::assert_cuts(&file, &bytes, 0..file.len(), content);
}

#[test]
fn a_legacy_frame_cut_anywhere_but_between_blocks_is_refused() {
    let bytes = [image(600, 36), vec![0; 9 * MIB]].concat();
    let file = lz4(&bytes, &["-l"]);
    let size = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let second = 8 + size(4);
    let places = (0..1000)
        .chain(second - 100..second + 200)
        .chain(file.len() - 100..file.len());
    packed::assert_cuts(&file, &bytes, places, content);
}

#[test]
fn a_flipped_bit_anywhere_gives_an_error_or_the_right_bytes() {
    let (bytes, file) = small();
    let cx = verifying(roomy());
    let kinds = [Kind::Corrupt, Kind::Unsupported, Kind::NotThisFormat];
    let survived = packed::flips_without_effect(&file, &bytes, &kinds, |bad| {
        open(bad, &cx).and_then(|volume| try_read_all(&volume))
    });
    // What is skipped, and its magic's last digit.
    assert!(survived < 70, "{survived} flips were not noticed");
    assert_eq!(cx.cache.used(), 0, "what is gone takes no memory");
}

#[test]
fn trailing_garbage_is_refused_with_its_place() {
    for garbage in [
        &b"garbage!"[..],
        &[0; 100],
        &[0x04],
        &[0x04, 0x22, 0x4d, 0x18],
    ] {
        for args in [&["-B4"][..], &["-BD"]] {
            let good = lz4(b"some bytes", args);
            let error = open([&good[..], garbage].concat(), &roomy()).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
            assert!(
                error.to_string().contains(&format!("at {}", good.len())),
                "{error}"
            );
        }
    }
}

#[test]
fn a_wrong_block_checksum_costs_its_blocks_and_no_other() {
    let bytes = noise(12 * MIB, 37);
    let mut file = lz4(&bytes, &["-B7", "-BX"]);
    // Noise is stored as it is; the second of three blocks.
    file[7 + 4 * MIB + 8 + MIB] ^= 1;
    let volume = open(file.clone(), &roomy()).unwrap();
    for number in [0, 2] {
        let found = volume.read_vec(number << 22, 4 * MIB).unwrap();
        assert!(found == bytes[number as usize * 4 * MIB..][..4 * MIB]);
    }
    for _ in 0..2 {
        let error = volume.read_vec(5 << 20, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        assert!(
            text.contains("lz4: block 1 at ") && text.contains("checksum"),
            "{text}"
        );
    }
    assert_eq!(kind_of_open(file, &verifying(roomy())), Some(Kind::Corrupt));
}

#[test]
fn a_wrong_content_checksum_is_found_where_all_of_the_frame_is_read() {
    let bytes = image(300_000, 38);
    for args in [&["-B4"][..], &["-BD", "-B4"]] {
        let mut file = lz4(&bytes, args);
        let last = file.len() - 1;
        file[last] ^= 1;
        let result = open(file, &roomy()).and_then(|volume| {
            let all = volume.read_vec(0, 300_000);
            // Bytes may be served before the end of their block was seen.
            volume.close().unwrap();
            all
        });
        match result {
            Ok(found) => assert!(found == bytes),
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{error:?}"),
        }
        let mut file = lz4(&bytes, args);
        let last = file.len() - 1;
        file[last] ^= 1;
        let result = open(file, &verifying(roomy())).and_then(|volume| volume.read_vec(0, 1));
        assert_eq!(result.unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn sizes_that_cannot_be_true_are_refused_at_open() {
    let cx = roomy();
    let part = vec![7; 65_536];
    let with = |claim: u64| {
        let header = header(0x68, 0x40, &claim.to_le_bytes());
        [
            header,
            block(&part, false),
            block(&part[..9], true),
            vec![0; 4],
        ]
        .concat()
    };
    assert_eq!(kind_of_open(with(65_545), &cx), None);
    for claim in [0, 1, 65_544, 65_546, u64::MAX >> 1, u64::MAX] {
        assert_eq!(
            kind_of_open(with(claim), &cx),
            Some(Kind::Corrupt),
            "{claim}"
        );
    }
    // Sizes of blocks.
    for size in [65_537_u32, 0x7fff_ffff, 0x8001_0001, u32::MAX] {
        let file = [
            header(0x60, 0x40, &[]),
            size.to_le_bytes().to_vec(),
            vec![0; 100_000],
        ];
        assert_eq!(
            kind_of_open(file.concat(), &cx),
            Some(Kind::Corrupt),
            "{size:x}"
        );
    }
    assert_eq!(cx.cache.peak(), 0, "no memory was taken");
    // A block that decodes to more than it may: 100 000 bytes.
    for flags in [0x60, 0x40] {
        let long = block(&vec![0; 100_000], false);
        let file = [header(flags, 0x40, &[]), long, vec![0; 4]].concat();
        let error = open(file, &cx).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        assert!(error.to_string().contains("block at 7"), "{error}");
    }
}

#[test]
fn what_was_taken_to_be_full_is_verified() {
    // The sizes fit, but the first block has one byte less and the last, stored as it is, one more.
    let part = vec![7; 65_536];
    let size = 65_536_u64 * 2 + 10;
    let head = header(0x68, 0x40, &size.to_le_bytes());
    let blocks = [
        block(&part[1..], false),
        block(&part, false),
        block(&part[..11], true),
        vec![0; 4],
    ];
    let file = [head, blocks.concat()].concat();
    let volume = open(file, &roomy()).unwrap();
    assert_eq!(volume.size(), size);
    assert!(read_all(&volume).iter().all(|byte| *byte == 7));
}

#[test]
fn sequences_that_lead_outside_are_corrupt() {
    let bad: [&[u8]; 6] = [
        &[0x10],
        &[0xff, 255, 255],
        &[0x14, b'a', 9, 0, 0x00],
        &[0x14, b'a', 0, 0, 0x00],
        &[0x1f, b'a', 1, 0, 255, 255],
        &[0x00, 1, 0, 0x00],
    ];
    for (number, data) in bad.into_iter().enumerate() {
        for flags in [0x60, 0x40] {
            let size = (data.len() as u32).to_le_bytes();
            let file = [&header(flags, 0x40, &[])[..], &size, data, &[0; 4]].concat();
            let result = open(file, &roomy()).and_then(|volume| try_read_all(&volume));
            let error = result.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "block {number}: {error:?}");
        }
    }
}

#[test]
fn bombs_take_time_to_read_and_no_memory_to_open() {
    // 255 to 1: a block of 16 KiB that decodes to 4 MiB, many times.
    let part = block(&vec![0; 4 * MIB], false);
    for flags in [0x60, 0x40] {
        let file = [header(flags, 0x70, &[]), part.repeat(60), vec![0; 4]].concat();
        let cx = Cx::new(32 << 20);
        let volume = open(file, &cx).unwrap();
        assert_eq!(volume.size(), 240 << 20);
        assert!(volume.read_vec(100 << 20, 1000).unwrap() == [0; 1000]);
        assert!(cx.cache.peak() <= cx.cache.budget());
    }
}

#[test]
fn what_is_valid_but_not_supported_is_said_by_name() {
    for (file, text) in [
        (
            header(0x61, 0x40, &77_u32.to_le_bytes()),
            "dictionary with ID 77",
        ),
        (header(0xa0, 0x40, &[]), "version 2"),
        (header(0x62, 0x40, &[]), "reserved bit"),
        (header(0x60, 0x30, &[]), "block size 3"),
    ] {
        let error = open([file, vec![0; 8]].concat(), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(
        kind_of_open(b"something else".to_vec(), &roomy()),
        Some(Kind::NotThisFormat)
    );
    let mut wrong = header(0x60, 0x40, &[]);
    wrong[6] ^= 1;
    assert_eq!(kind_of_open(wrong, &roomy()), Some(Kind::Corrupt));
    // A header that is right and a checksum that is not.
    let mut file = [header(0x70, 0x40, &[]), block(b"text", true)].concat();
    file.extend((xxh32(b"text") ^ 1).to_le_bytes());
    file.extend([0; 4]);
    let error = open(file, &roomy())
        .and_then(|volume| try_read_all(&volume))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}
