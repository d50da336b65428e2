//! How the blocks of a file are found, and what that costs.

use nbdserve::source::Memory;
use nbdserve::testing::Counting;
use nbdserve::testing::conformance::read_all;
use nbdserve::{ByteRange, Cx, Kind, Volume};

use crate::tools::{
    MIB, block, header, image, keeping, lz4, lz4_sized, noise, open, open_on, roomy, verifying,
};

/// Opens `file` and says how many requests and bytes that took.
fn cost(file: &[u8], cx: &Cx) -> (Volume, u64, u64) {
    let (below, counts) = Counting::volume(Memory::volume(file.to_vec()));
    let volume = open_on(&below, cx).unwrap();
    (volume, counts.reads(), counts.read_bytes())
}

#[test]
fn blocks_are_found_with_large_requests_and_once() {
    let bytes = noise(24 * MIB, 1);
    let folder = tempfile::tempdir().unwrap();
    for args in [&["-B4"][..], &["-B7"], &["-B4", "-BD"]] {
        let file = lz4(&bytes, args);
        let folder = folder.path().join(args.concat());
        let cx = keeping(roomy(), &folder);
        let (volume, reads, found) = cost(&file, &cx);
        assert!(reads < 45, "{reads} requests");
        assert!(found < file.len() as u64 + (1 << 20), "{found} bytes");
        assert!(read_all(&volume) == bytes);
        drop(volume);
        let (volume, reads, found) = cost(&file, &cx);
        assert!(reads <= 1 && found < 100, "{reads} requests, {found} bytes");
        assert!(read_all(&volume) == bytes);
    }
}

#[test]
fn a_frame_of_large_blocks_that_says_its_size_is_not_read_to_be_opened() {
    let bytes = noise(30 * MIB, 2);
    let file = lz4_sized(&bytes, &["-B7"]);
    let (volume, reads, found) = cost(&file, &roomy());
    assert!(reads < 16, "{reads} requests");
    assert!(found < 3 << 20, "{found} bytes");
    assert!(read_all(&volume) == bytes);
}

#[test]
fn a_read_costs_its_blocks() {
    let bytes = noise(24 * MIB, 3);
    for args in [&["-B4"][..], &["-B7"], &["-B4", "-BD"]] {
        let (below, counts) = Counting::volume(Memory::volume(lz4(&bytes, args)));
        let volume = open_on(&below, &roomy()).unwrap();
        counts.reset();
        let found = volume.read_vec(13 << 20, 1000).unwrap();
        assert!(found == bytes[13 * MIB..13 * MIB + 1000]);
        assert!(
            counts.read_bytes() < 5 << 20,
            "{} bytes",
            counts.read_bytes()
        );
        assert!(!counts.has_read(ByteRange::between(0, 8 << 20)));
    }
}

#[test]
fn checkpoints_become_fewer_where_memory_is_short() {
    let bytes = noise(40 * MIB, 4);
    let file = lz4(&bytes, &["-B4", "-BD"]);
    // 64 KiB each: an index of this budget has room for three, not for nine.
    let cx = Cx::new(4 << 20);
    let (below, counts) = Counting::volume(Memory::volume(file));
    let volume = open_on(&below, &cx).unwrap();
    counts.reset();
    let found = volume.read_vec(39 << 20, 1000).unwrap();
    assert!(found == bytes[39 * MIB..39 * MIB + 1000]);
    assert!(!counts.has_read(ByteRange::between(0, 16 << 20)));
    assert!(read_all(&volume) == bytes);
    // With no room for any there is one way in.
    let cx = Cx::new(1400 << 10);
    let volume = open(lz4(&bytes, &["-B4", "-BD"]), &cx).unwrap();
    assert!(read_all(&volume) == bytes);
}

#[test]
fn what_was_found_without_verifying_does_not_do_for_verifying() {
    let bytes = image(9 * MIB, 5);
    let mut file = lz4(&bytes, &["-B4"]);
    let last = file.len() - 1;
    file[last] ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let cx = keeping(roomy(), folder.path());
    let volume = open(file.clone(), &cx).unwrap();
    assert!(volume.read_vec(0, MIB).unwrap() == bytes[..MIB]);
    let error = open(file, &verifying(cx)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    assert!(
        error.to_string().contains("checksum of the content"),
        "{error}"
    );
}

#[test]
fn a_kept_index_of_another_file_or_with_damage_is_not_used() {
    let bytes = image(3 * MIB, 6);
    let file = lz4(&bytes, &["-B4"]);
    let folder = tempfile::tempdir().unwrap();
    let cx = keeping(roomy(), folder.path());
    drop(open(file.clone(), &cx).unwrap());
    // The same identity, and another length.
    let longer = [&file[..], &file].concat();
    let volume = open(longer, &cx).unwrap();
    assert!(read_all(&volume) == bytes.repeat(2));
    let volume = open(file, &cx).unwrap();
    assert!(read_all(&volume) == bytes);
}

#[test]
fn a_cancelled_opening_ends() {
    for args in [&["-B4"][..], &["-BD"]] {
        let file = lz4(&noise(3 * MIB, 7), args);
        let cx = roomy();
        cx.cancel.cancel();
        let error = open(file, &cx).unwrap_err();
        assert!(error.to_string().contains("taken down"), "{error}");
    }
}

#[test]
fn blocks_of_nothing_take_no_memory() {
    // Ten megabytes of blocks of one byte, in a frame that is decoded to be opened.
    for flags in [0x60, 0x40] {
        let mut file = header(flags, 0x40, &[]);
        for _ in 0..2_000_000 {
            file.extend([1, 0, 0, 0x80, b'a']);
        }
        file.extend([0; 4]);
        let volume = open(file, &Cx::new(16 << 20)).unwrap();
        assert_eq!(volume.size(), 2_000_000);
        assert!(read_all(&volume).iter().all(|byte| *byte == b'a'));
    }
}

#[test]
fn more_blocks_than_the_index_may_hold_are_refused() {
    let part = block(&vec![0; 4 * MIB], false);
    let file = [header(0x60, 0x70, &[]), part.repeat(500), vec![0; 4]].concat();
    let error = open(file, &Cx::new(200 << 10)).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error:?}");
    assert!(error.report().hint.unwrap().contains("--cache-size"));
}
