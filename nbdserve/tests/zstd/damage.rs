//! Files that are damaged or that lie.

use nbdserve::testing::conformance::read_all;
use nbdserve::testing::packed;
use nbdserve::{Cx, Kind};

use crate::tools::{
    MIB, block, frame, image, kind_of_open, noise, open, piped, roomy, skippable, tight,
    try_read_all, verifying, zstd,
};

/// Several frames of all sorts in a few hundred bytes.
fn small() -> (Vec<u8>, Vec<u8>) {
    let text = image(900, 35);
    let file = [
        zstd(&text, &["-19"]),
        skippable(3, b"skipped"),
        piped(b"a second frame", &[]),
        zstd(&[], &[]),
    ];
    ([&text[..], b"a second frame"].concat(), file.concat())
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, file) = small();
    let cx = roomy();
    assert!(read_all(&open(file.clone(), &cx).unwrap()) == bytes);
    packed::assert_cuts(&file, &bytes, 0..file.len(), |cut| {
        open(cut, &cx).and_then(|volume| try_read_all(&volume))
    });
}

#[test]
fn a_large_frame_that_is_cut_is_refused_when_its_end_is_read() {
    let bytes = noise(9 * MIB, 36);
    let file = zstd(&bytes, &["-1"]);
    for cx in [roomy(), tight()] {
        for missing in [1, 4, 5, 1000, 2 * MIB] {
            let volume = open(file[..file.len() - missing].to_vec(), &cx).unwrap();
            let error = try_read_all(&volume).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
            assert!(error.to_string().contains("cut short"), "{error}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_gives_an_error_or_the_right_bytes() {
    let (bytes, file) = small();
    let cx = verifying(roomy());
    let kinds = [
        Kind::Corrupt,
        Kind::Unsupported,
        Kind::NotThisFormat,
        Kind::Limit,
    ];
    let survived = packed::flips_without_effect(&file, &bytes, &kinds, |bad| {
        open(bad, &cx).and_then(|volume| try_read_all(&volume))
    });
    // What is skipped, its magic's last digit, and window sizes that are larger than needed.
    assert!(survived < 100, "{survived} flips were not noticed");
    assert_eq!(cx.cache.used(), 0, "what is gone takes no memory");
}

#[test]
fn trailing_garbage_is_refused_with_its_place() {
    for garbage in [
        &b"garbage!"[..],
        &[0; 100],
        &[0x28],
        &[0x28, 0xb5, 0x2f, 0xfd],
    ] {
        let good = zstd(b"some bytes", &[]);
        let file = [&good[..], garbage].concat();
        let error = open(file, &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        assert!(
            error.to_string().contains(&format!("at {}", good.len())),
            "{error}"
        );
    }
    // Behind a frame whose end was not looked for.
    let bytes = noise(9 * MIB, 37);
    let file = [zstd(&bytes, &["-1"]), b"garbage!".to_vec()].concat();
    let error = try_read_all(&open(file, &roomy()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
}

#[test]
fn a_wrong_checksum_costs_its_block_and_no_other() {
    let parts: Vec<_> = (0..4).map(|seed| noise(2 * MIB, seed)).collect();
    let frames: Vec<_> = parts.iter().map(|part| zstd(part, &["-1"])).collect();
    let mut file = frames.concat();
    let end = frames[0].len() + frames[1].len();
    file[end - 1] ^= 1;
    let mut cx = roomy();
    cx.verify = true;
    let volume = open(file, &cx).unwrap();
    for number in [0, 2, 3] {
        let found = volume.read_vec(number << 21, 2 * MIB).unwrap();
        assert!(found == parts[number as usize]);
    }
    for _ in 0..2 {
        let error = volume.read_vec(3 << 20, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        assert!(
            text.contains(&format!("zstd: block 1 at {} ", frames[0].len())),
            "{text}"
        );
        assert!(text.contains("checksum"), "{text}");
    }
}

#[test]
fn claims_that_cannot_be_true_are_refused_at_open() {
    let blocks = [block(1, 131_072, true, &[0])];
    let cx = roomy();
    let right = frame(Some(131_072), &blocks);
    assert_eq!(kind_of_open(right, &cx), None);
    for claim in [0, 1, 131_071, 131_073, 1 << 50, u64::MAX >> 1, u64::MAX] {
        let file = frame(Some(claim), &blocks);
        assert_eq!(kind_of_open(file, &cx), Some(Kind::Corrupt), "{claim}");
    }
    // Compressed blocks have at most 128 KiB.
    let mut file = zstd(&image(100_000, 38), &["-1", "--no-check"]);
    assert_eq!(file[4], 0xa0, "one segment, four bytes of size");
    file[5..9].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    assert_eq!(kind_of_open(file.clone(), &cx), Some(Kind::Corrupt));
    // A large frame that would have to expand more than is possible.
    let mut file = zstd(&noise(6 * MIB, 39), &["-1"]);
    assert_eq!(file[4], 0x84, "a window and four bytes of size");
    let rest = file.split_off(10);
    for claim in [u64::MAX, u64::MAX >> 1, 1 << 40] {
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0xc4, 0x58];
        let file = [&head[..], &claim.to_le_bytes(), &rest].concat();
        assert_eq!(kind_of_open(file, &cx), Some(Kind::Corrupt), "{claim}");
    }
    assert_eq!(cx.cache.peak(), 0, "no memory was taken");
}

#[test]
fn claims_that_are_a_little_wrong_are_found_by_decoding() {
    let bytes = image(100_000, 40);
    for claim in [99_999_u32, 100_001, 0, 131_072] {
        let mut file = zstd(&bytes, &["-1", "--no-check"]);
        file[5..9].copy_from_slice(&claim.to_le_bytes());
        let all = open(file, &roomy()).and_then(|volume| try_read_all(&volume));
        assert_eq!(all.unwrap_err().kind(), Kind::Corrupt, "{claim}");
    }
}

#[test]
fn a_frame_that_claims_to_be_empty_is_looked_into() {
    let large = zstd(&noise(9 * MIB, 41), &["-1"]);
    let mut empty = zstd(&image(100_000, 42), &["-1", "--no-check"]);
    empty[5..9].fill(0);
    for file in [
        [&large[..], &empty].concat(),
        [&empty[..], &large].concat(),
        [&large[..], &empty, &large].concat(),
    ] {
        let below = nbdserve::source::Memory::volume(file);
        let opened = crate::tools::open_with(&below, true, &roomy());
        let all = opened.and_then(|volume| try_read_all(&volume));
        assert_eq!(all.unwrap_err().kind(), Kind::Corrupt);
    }
    // One that is empty, though it has a compressed block.
    let nothing = frame(Some(0), &[block(2, 2, true, &[0, 0])]);
    let file = [&nothing[..], &zstd(b"some bytes", &[]), &nothing].concat();
    assert_eq!(
        try_read_all(&open(file, &roomy()).unwrap()).unwrap(),
        b"some bytes"
    );
}

#[test]
fn bombs_take_time_to_read_and_no_memory_to_open() {
    // 64 MiB of RLE blocks: two TiB, told by the headers alone.
    let zeroes = vec![block(1, 131_072, false, &[0]); 1 << 16].concat();
    let mut file = frame(None, &[]);
    for _ in 0..64 {
        file.extend(&zeroes);
    }
    file.extend(block(0, 0, true, &[]));
    let mut cx = Cx::new(32 << 20);
    // More than is encoded; nothing of it is needed for zeroes.
    cx.temp_limit = 32 << 20;
    let below = nbdserve::source::Memory::volume(file);
    let volume = crate::tools::open_with(&below, true, &cx).unwrap();
    assert_eq!(volume.size(), 64 << 33);
    assert!(volume.read_vec(100 << 20, 1000).unwrap() == [0; 1000]);
    assert!(cx.cache.peak() <= cx.cache.budget());
}

#[test]
fn what_is_valid_but_not_supported_is_said_by_name() {
    let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 77, 1, 0x0b, 0, 0, b'a'];
    let error = open(dictionary.to_vec(), &roomy()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(
        error.to_string().contains("dictionary with ID 77"),
        "{error}"
    );
    for (head, text) in [
        (&[0x28, 0xb5, 0x2f, 0xfd, 0x08, 0][..], "reserved bit"),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xff], "window"),
        (&[0x25, 0xb5, 0x2f, 0xfd, 0, 0], "older than zstd 0.8"),
    ] {
        let file = [head, &[0; 20]].concat();
        let error = open(file, &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(
        kind_of_open(b"something else".to_vec(), &roomy()),
        Some(Kind::NotThisFormat)
    );
}

#[test]
fn blocks_that_break_the_rules_are_corrupt_with_their_place() {
    for bad in [
        block(3, 1, true, &[0]),
        block(1, 131_073, true, &[0]),
        block(0, 131_073, true, &[0; 131_073]),
        block(0, 10, true, &[0; 9]),
        block(0, 10, false, &[0; 10]),
    ] {
        let file = frame(None, &[block(0, 2, false, b"ab"), bad]);
        let error = open(file, &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        assert!(error.to_string().contains("at "), "{error}");
    }
}
