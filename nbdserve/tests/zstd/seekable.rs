//! The seekable format.

use nbdserve::source::Memory;
use nbdserve::testing::Counting;
use nbdserve::testing::conformance::read_all;
use nbdserve::{ByteRange, Kind, Volume};

use crate::tools::{
    MIB, assert_reads_back, image, noise, open, open_on, open_with, roomy, seek_table, seekable,
    skippable, try_read_all, xxh64, zstd,
};

#[test]
fn files_with_a_seek_table_read_back() {
    let bytes = image(3 * MIB, 1);
    for checks in [false, true] {
        for step in [70_000, 3 * MIB] {
            assert_reads_back(&bytes, &seekable(&bytes, step, checks));
        }
    }
    assert_reads_back(&[], &seek_table(&[]));
}

#[test]
fn the_table_saves_looking_for_frames() {
    let bytes = noise(24 * MIB, 2);
    let file = seekable(&bytes, 2 * MIB, true);
    let (below, counts) = Counting::volume(Memory::volume(file));
    let volume = open_on(&below, &roomy()).unwrap();
    assert!(counts.reads() <= 6, "{} requests", counts.reads());
    assert!(counts.read_bytes() < 1000);
    counts.reset();
    let found = volume.read_vec(15 << 20, 1000).unwrap();
    assert!(found == bytes[15 * MIB..15 * MIB + 1000]);
    assert!(counts.read_bytes() < 3 << 20, "one frame");
    assert!(!counts.has_read(ByteRange::between(0, 12 << 20)));
    assert!(read_all(&volume) == bytes);
}

type Entry = (u32, u32, Option<u32>);
/// Changes the entries of a table.
type Lie<'a> = &'a dyn Fn(&mut Vec<Entry>);

/// Three frames, and their table as entries.
fn three() -> (Vec<u8>, Vec<u8>, Vec<Entry>) {
    let bytes = image(6 * MIB, 3);
    let mut frames = Vec::new();
    let mut entries = Vec::new();
    for part in bytes.chunks(2 * MIB) {
        let frame = zstd(part, &["-1", "--no-check"]);
        entries.push((frame.len() as u32, part.len() as u32, Some(xxh64(part))));
        frames.extend(frame);
    }
    (bytes, frames, entries)
}

fn opened(frames: &[u8], table: &[u8]) -> Volume {
    open([frames, table].concat(), &roomy()).unwrap()
}

#[test]
fn a_table_that_does_not_fit_the_file_is_not_used() {
    let (bytes, frames, entries) = three();
    let with = |change: Lie<'_>| {
        let mut entries = entries.clone();
        change(&mut entries);
        seek_table(&entries)
    };
    let good = seek_table(&entries);
    let mut reserved = good.clone();
    let at = reserved.len() - 5;
    reserved[at] |= 0x10;
    let mut count = good.clone();
    let at = count.len() - 9;
    count[at] = 2;
    let mut endless = good.clone();
    endless[at..at + 4].fill(0xff);
    for (number, table) in [
        with(&|entries| entries[0].0 += 1),
        with(&|entries| entries[0].0 = 0),
        with(&|entries| entries[2].0 = u32::MAX),
        with(&|entries| entries.truncate(2)),
        with(&|entries| entries.push((0, 0, Some(0)))),
        with(&|entries| entries[1] = (1, u32::MAX, Some(0))),
        reserved,
        count,
        endless,
        [skippable(1, b"between"), good.clone()].concat(),
    ]
    .into_iter()
    .enumerate()
    {
        let volume = opened(&frames, &table);
        // An entry of nothing fits; the others are found in the frames.
        assert!(read_all(&volume) == bytes, "table {number}");
    }
}

#[test]
fn a_table_that_lies_about_a_frame_costs_that_frame() {
    let (bytes, frames, entries) = three();
    let lies: [Lie<'_>; 5] = [
        &|entries| entries[1].1 -= 1,
        &|entries| entries[1].1 += 1,
        &|entries| entries[1].1 = 0,
        &|entries| entries[1].2 = Some(0),
        &|entries| entries[1].1 = 100 << 20,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let mut entries = entries.clone();
        lie(&mut entries);
        let file = [&frames[..], &seek_table(&entries)].concat();
        let volume = open(file.clone(), &roomy()).unwrap();
        let first = volume.read_vec(0, 2 * MIB);
        if let Ok(first) = first {
            assert!(first == bytes[..2 * MIB], "lie {number}");
        }
        let error = try_read_all(&volume).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "lie {number}: {error:?}");
        // The frames themselves are fine.
        let below = Memory::volume(file);
        let walked = open_with(&below, true, &roomy()).unwrap();
        assert!(read_all(&walked) == bytes, "lie {number}");
    }
}

#[test]
fn a_wrong_byte_is_found_by_the_checksum_of_the_table() {
    let bytes = noise(3 * MIB, 4);
    let mut file = seekable(&bytes, MIB, true);
    // Noise is stored as it is, and these frames have no checksum of their own.
    file[3 * MIB / 2] ^= 1;
    let volume = open(file, &roomy()).unwrap();
    assert!(volume.read_vec(0, MIB).unwrap() == bytes[..MIB]);
    let mut cx = roomy();
    cx.verify = true;
    let error = volume.read_vec(2 * MIB as u64 - 1, 1).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    assert!(error.to_string().contains("seek table"), "{error}");
    assert!(volume.read_vec(2 << 20, MIB).unwrap() == bytes[2 * MIB..]);
}

#[test]
fn a_frame_that_needs_more_memory_than_its_neighbours_is_refused_by_name() {
    // The first one of a block says its size, the second needs its window.
    let first = zstd(&image(100_000, 5), &["-1", "--no-check"]);
    let second = crate::tools::piped(&image(100_000, 6), &["-1", "--no-check", "--long=25"]);
    let table = seek_table(&[
        (first.len() as u32, 100_000, None),
        (second.len() as u32, 100_000, None),
    ]);
    let file = [first, second, table].concat();
    let error = try_read_all(&open(file.clone(), &roomy()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error:?}");
    assert!(error.report().hint.unwrap().contains("walk=yes"));
    let below = Memory::volume(file);
    let all = [image(100_000, 5), image(100_000, 6)].concat();
    assert!(read_all(&open_with(&below, true, &roomy()).unwrap()) == all);
}
