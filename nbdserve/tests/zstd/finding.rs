//! How the frames of a file are found, and what that costs.

use std::sync::{Arc, Mutex};

use nbdserve::cx::Observer;
use nbdserve::source::Memory;
use nbdserve::testing::Counting;
use nbdserve::testing::conformance::read_all;
use nbdserve::{Cx, Kind, Volume};

use crate::tools::{
    MIB, block, frame, image, keeping, noise, open_on, open_with, piped, pzstd, roomy, skippable,
    tight, try_read_all, zstd,
};

/// Opens `file` and says how many requests and bytes that took.
fn cost(file: &[u8], cx: &Cx) -> (Volume, u64, u64) {
    let (below, counts) = Counting::volume(Memory::volume(file.to_vec()));
    let volume = open_on(&below, cx).unwrap();
    (volume, counts.reads(), counts.read_bytes())
}

#[test]
fn small_frames_are_found_with_large_requests() {
    let part = zstd(&noise(10_000, 1), &["-1"]);
    let file = part.repeat(1000);
    let (volume, reads, bytes) = cost(&file, &roomy());
    assert_eq!(volume.size(), 10_000_000);
    assert!(reads < 20, "{reads} requests");
    assert!(bytes < file.len() as u64 * 3 / 2, "{bytes} bytes");
}

#[test]
fn what_pzstd_notes_before_its_frames_is_used() {
    let bytes = noise(24 * MIB, 2);
    let folder = tempfile::tempdir().unwrap();
    let cx = keeping(roomy(), folder.path());
    let file = pzstd(&bytes, &["-1", "-p", "4"]);
    let (volume, ..) = cost(&file, &cx);
    assert!(read_all(&volume) == bytes);
    drop(volume);
    // The sizes were measured once; nothing is left to be found out.
    let (volume, reads, found) = cost(&file, &cx);
    assert!(reads <= 2 && found < 100, "{reads} requests, {found} bytes");
    assert!(read_all(&volume) == bytes);
}

/// Where each request takes a while, what is measured is fetched in order and once.
#[test]
fn frames_are_measured_as_they_are_found_in_a_source_far_away() {
    let bytes = noise(24 * MIB, 13);
    let file = pzstd(&bytes, &["-1", "-p", "4"]);
    let (below, counts) = Counting::source(Memory::volume(file.clone()));
    let volume = open_on(&below, &roomy()).unwrap();
    let hints = counts.hint_sets().concat();
    assert!(hints.len() > 5, "a word for each frame: {hints:?}");
    let told = hints.iter().fold(0, |told, hint| {
        assert!(
            hint.start() <= told.max(100),
            "a gap before {hint:?}: {hints:?}"
        );
        hint.end().max(told)
    });
    assert_eq!(told, file.len() as u64);
    let most = file.len() as u64 * 11 / 10;
    let read = counts.read_bytes();
    assert!(read < most, "{read} of {} bytes", file.len());
    assert!(read_all(&volume) == bytes);
}

#[test]
fn damage_in_frames_that_are_measured_is_told_alike_near_and_far() {
    let bytes = image(24 * MIB, 14);
    let good = pzstd(&bytes, &["-1", "-p", "4"]);
    let mut broken = good.clone();
    let middle = good.len() / 2;
    broken[middle..middle + 64].fill(0xff);
    let cut = good[..good.len() - 100].to_vec();
    for file in [broken, cut] {
        let near = Memory::volume(file.clone());
        let (far, _) = Counting::source(Memory::volume(file));
        let near = open_on(&near, &roomy()).and_then(|volume| try_read_all(&volume));
        let far = open_on(&far, &roomy()).and_then(|volume| try_read_all(&volume));
        let (near, far) = (near.unwrap_err(), far.unwrap_err());
        assert_eq!(near.kind(), Kind::Corrupt, "{near:?}");
        assert_eq!(near.to_string(), far.to_string());
    }
}

#[test]
fn a_note_that_lies_is_not_believed() {
    let first = piped(&image(MIB, 3), &["-1"]);
    let second = piped(&noise(MIB, 4), &["-1"]);
    let bytes = [image(MIB, 3), noise(MIB, 4)].concat();
    let right = first.len() as u32;
    for note in [0, 1, 7, right - 1, right + 1, u32::MAX] {
        let note = skippable(0, &note.to_le_bytes());
        let file = [&note[..], &first, &second].concat();
        let volume = open_on(&Memory::volume(file), &roomy()).unwrap();
        assert!(read_all(&volume) == bytes, "{note:?}");
    }
    // One that leads to another frame after all is noticed when it is read.
    let right = (first.len() + second.len()) as u32;
    let file = [&skippable(0, &right.to_le_bytes())[..], &first, &second].concat();
    let volume = open_on(&Memory::volume(file), &roomy()).unwrap();
    assert!(read_all(&volume) == bytes);
}

#[test]
fn a_large_frame_is_taken_to_be_all_and_that_is_verified() {
    let bytes = noise(12 * MIB, 5);
    let file = zstd(&bytes, &["-1"]);
    let folder = tempfile::tempdir().unwrap();
    for cx in [roomy(), tight()] {
        let folder = folder.path().join(cx.cache.budget().to_string());
        let cx = keeping(cx, &folder);
        let (volume, _, found) = cost(&file, &cx);
        assert_eq!(volume.size(), 12 << 20);
        assert!(found < 6 << 20, "{found} bytes");
        assert!(read_all(&volume) == bytes);
        volume.close().unwrap();
        // It is known now.
        let (volume, _, found) = cost(&file, &cx);
        assert!(found < 100, "{found} bytes");
        assert!(read_all(&volume) == bytes);
    }
    // What may follow without content makes no difference.
    let file = [file, skippable(1, b"the end")].concat();
    assert!(read_all(&cost(&file, &roomy()).0) == bytes);
}

#[test]
fn a_second_frame_behind_a_large_one_is_never_lost_silently() {
    let parts = [
        image(30 * MIB, 6),
        noise(6 * MIB, 7),
        b"and the end".to_vec(),
    ];
    let first = [&parts[0][..], &parts[1]].concat();
    let file = [zstd(&first, &["-1"]), zstd(&parts[2], &[])].concat();
    let all = [&first[..], &parts[2]].concat();
    for cx in [roomy(), tight()] {
        let folder = tempfile::tempdir().unwrap();
        let cx = keeping(cx, folder.path());
        let below = Memory::volume(file.clone());
        let volume = open_on(&below, &cx).unwrap();
        assert_eq!(volume.size(), first.len() as u64);
        let error = try_read_all(&volume).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
        assert!(
            error.to_string().contains("another frame follows at"),
            "{error}"
        );
        assert!(error.report().hint.unwrap().contains("walk=yes"));
        // As the hint says; and by itself the next time.
        let bare = Cx {
            place: None,
            ..cx.clone()
        };
        assert!(read_all(&open_with(&below, true, &bare).unwrap()) == all);
        assert!(read_all(&open_on(&below, &cx).unwrap()) == all);
    }
}

#[test]
fn a_large_frame_that_cannot_be_all_is_walked() {
    let parts = [noise(5 * MIB, 8), noise(3 * MIB, 9)];
    let file = [zstd(&parts[0], &["-1"]), zstd(&parts[1], &["-1"])].concat();
    let volume = open_on(&Memory::volume(file), &roomy()).unwrap();
    assert!(read_all(&volume) == parts.concat());
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<(u64, u64)>>);

impl Observer for Told {
    fn progress(&self, _what: &str, done: u64, total: u64) {
        self.0.lock().unwrap().push((done, total));
    }
}

#[test]
fn a_large_frame_without_a_size_is_decoded_once_and_its_size_is_kept() {
    let bytes = [noise(9 * MIB, 10), vec![0; 40 * MIB], image(3 * MIB, 11)].concat();
    let last = piped(b"the last frame", &[]);
    let file = [piped(&bytes, &["-1"]), last].concat();
    let all = [&bytes[..], b"the last frame"].concat();
    let folder = tempfile::tempdir().unwrap();
    let told = Arc::new(Told::default());
    let mut cx = keeping(tight(), folder.path());
    cx.observer = told.clone();
    let (volume, _, read) = cost(&file, &cx);
    assert!(read > 9 << 20);
    let (below, counts) = Counting::volume(Memory::volume(file.clone()));
    assert!(read_all(&volume) == all);
    drop(volume);
    let volume = open_on(&below, &cx).unwrap();
    assert_eq!(volume.size(), all.len() as u64);
    assert!(counts.read_bytes() < 100);
    assert!(read_all(&volume) == all);
    // A pass that ends at the end of the file says so.
    cx.place = None;
    told.0.lock().unwrap().clear();
    let file = piped(&bytes, &["-1"]);
    drop(open_on(&Memory::volume(file.clone()), &cx).unwrap());
    let size = file.len() as u64;
    assert_eq!(told.0.lock().unwrap().last(), Some(&(size, size)));
}

#[test]
fn the_size_of_frames_without_compressed_blocks_needs_no_decoding() {
    let blocks = [block(1, 131_072, false, &[0]), block(0, 3, true, b"abc")];
    let file = frame(None, &blocks).repeat(200);
    let told = Arc::new(Told::default());
    let mut cx = roomy();
    cx.observer = told.clone();
    let volume = open_on(&Memory::volume(file), &cx).unwrap();
    assert_eq!(volume.size(), 200 * 131_075);
    assert_eq!(told.0.lock().unwrap().len(), 0);
    assert_eq!(cx.cache.peak(), 0, "nothing was decoded");
}

#[test]
fn a_cancelled_opening_ends() {
    let file = piped(&noise(9 * MIB, 12), &["-1"]);
    let cx = roomy();
    cx.cancel.cancel();
    let error = open_on(&Memory::volume(file), &cx).unwrap_err();
    assert!(error.to_string().contains("taken down"), "{error}");
}

#[test]
fn more_frames_than_the_index_may_hold_are_refused() {
    // Each above a MiB, so that none share a block.
    let file = frame(None, &vec![block(1, 131_072, false, &[1]); 8]);
    let mut one = file;
    one.extend(block(0, 0, true, &[]));
    let file = one.repeat(20_000);
    let error = open_on(&Memory::volume(file), &Cx::new(2 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error:?}");
    assert!(error.report().hint.unwrap().contains("--cache-size"));
}
