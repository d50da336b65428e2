//! A block that was decoded once, in the cache on disk.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdserve::store::{Place, Store};
use nbdserve::testing::Rng;
use nbdserve::{Access, ByteRange, Cx, Keeping, Kind, Volume};

use crate::tools::{MIB, Probe, Witness, image, noise, open_on, read, try_read_all, xz};

/// A context in which blocks of more than 2 MiB are decoded once, with a cache in `folder`.
fn keeping(folder: &Path) -> Cx {
    keeping_at_most(folder, 1 << 30)
}

fn keeping_at_most(folder: &Path, limit: u64) -> Cx {
    let mut cx = Cx::new(8 << 20);
    let store = Store::with_limit(folder, limit).unwrap();
    cx.place = Some(Place::new(store, "the image"));
    cx
}

fn decodes(volume: &Volume) -> u64 {
    volume.stats().blocks.unwrap().decodes
}

/// The files of decoded bytes.
fn kept(folder: &Path) -> Vec<PathBuf> {
    let images = fs::read_dir(folder.join("images")).unwrap();
    let files = images.flat_map(|image| fs::read_dir(image.unwrap().path()).unwrap());
    files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "pages"))
        .collect()
}

/// Reads all, the end first.
fn pass_over(volume: &Volume, bytes: &[u8]) {
    let last = bytes.len() - 1;
    assert_eq!(read(volume, last, 1).unwrap(), bytes[last..]);
    assert!(try_read_all(volume).unwrap() == bytes);
}

/// The image is decoded once, to its end.
fn decode_once(file: &[u8], bytes: &[u8], folder: &Path) {
    let witness = Arc::new(Witness::default());
    let mut cx = keeping(folder);
    cx.observer = witness.clone();
    let volume = open_on(&Probe::new(file.to_vec()).volume(), &cx).unwrap();
    pass_over(&volume, bytes);
    assert_eq!(witness.wait_complete(), bytes.len() as u64);
    volume.close().unwrap();
}

#[test]
fn the_second_time_nothing_is_decoded_or_read() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(12 * MIB, 71);
    let file = xz(&bytes, &["-0"]);
    decode_once(&file, &bytes, folder.path());

    let probe = Probe::new(file);
    let mut cx = keeping(folder.path());
    // The cache does not need a temp file, and is good enough for those who want all checked.
    cx.temp_dir = "/nonexistent".into();
    cx.verify = true;
    let volume = open_on(&probe.volume(), &cx).unwrap();
    assert_eq!(volume.geometry().access, Access::Random);
    probe.take_reads();
    let mut rng = Rng::new(1);
    for _ in 0..100 {
        let at = rng.below(12 * MIB as u64) as usize;
        let len = (rng.below(600_000) as usize).min(12 * MIB - at);
        assert!(read(&volume, at, len).unwrap() == bytes[at..at + len]);
    }
    assert!(try_read_all(&volume).unwrap() == bytes);
    assert_eq!(probe.take_reads(), []);
    let stats = volume.stats().blocks.unwrap();
    assert_eq!((stats.decodes, stats.misses), (0, 0));
    // What was zero is known to be, as it was the first time.
    let without = open_on(&probe.volume(), &Cx::new(8 << 20)).unwrap();
    assert!(try_read_all(&without).unwrap() == bytes);
    assert!(zero(&volume) > 0 && zero(&volume) == zero(&without));
}

/// Bytes that are known to be zero.
fn zero(volume: &Volume) -> u64 {
    let all = ByteRange::between(0, volume.size());
    let extents = volume.extents(all).unwrap();
    let runs = extents.runs().iter().filter(|run| run.flags.zero);
    runs.map(|run| run.range.len()).sum()
}

#[test]
fn several_blocks_are_kept_each_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(16 * MIB, 72);
    let file = xz(&bytes, &["-0", "--block-size=5000001"]);
    // The check comes after the bytes, and only then the block counts as complete.
    let mut one = keeping(folder.path());
    one.verify = true;
    let volume = open_on(&Probe::new(file.clone()).volume(), &one).unwrap();
    assert!(read(&volume, 5_000_002, 4_000_000).unwrap() == bytes[5_000_002..9_000_002]);
    volume.close().unwrap();
    let volume = open_on(&Probe::new(file).volume(), &keeping(folder.path())).unwrap();
    assert!(read(&volume, 6_000_000, 1000).unwrap() == bytes[6_000_000..6_001_000]);
    assert_eq!(decodes(&volume), 0);
    assert!(try_read_all(&volume).unwrap() == bytes);
    assert_eq!(decodes(&volume), 3);
}

#[test]
fn a_pass_that_was_interrupted_leaves_what_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(8 * MIB, 73);
    let file = xz(&bytes, &["-0"]);
    let probe = Probe::new(file.clone());
    let volume = open_on(&probe.volume(), &keeping(folder.path())).unwrap();
    probe.fail_from(Some(5 << 20));
    assert!(read(&volume, 7 * MIB, 10).is_err());
    volume.close().unwrap();

    let probe = Probe::new(file);
    let volume = open_on(&probe.volume(), &keeping(folder.path())).unwrap();
    // Nothing more comes out of the source, and what was decoded is read all the same.
    probe.hold_from(1 << 20);
    assert!(read(&volume, 2 * MIB + 5, MIB).unwrap() == bytes[2 * MIB + 5..3 * MIB + 5]);
    assert!(read(&volume, 0, 100).unwrap() == bytes[..100]);
    probe.release();
    pass_over(&volume, &bytes);
    volume.close().unwrap();
}

#[test]
fn what_is_not_checked_is_not_served_to_who_wants_it_checked() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(6 * MIB, 74);
    let mut file = xz(&bytes, &["-0"]);
    let probe = Probe::new(file.clone());
    let volume = open_on(&probe.volume(), &keeping(folder.path())).unwrap();
    probe.fail_from(Some(5 << 20));
    assert!(read(&volume, 5 * MIB + 700_000, 10).is_err());
    volume.close().unwrap();
    // The check was never reached; now it fails.
    let end = file.len() - 100;
    file[end - MIB / 2] ^= 1;
    let mut cx = keeping(folder.path());
    cx.verify = true;
    let volume = open_on(&Probe::new(file).volume(), &cx).unwrap();
    assert_eq!(read(&volume, 0, 100).unwrap_err().kind(), Kind::Corrupt);
    volume.close().unwrap();
}

#[test]
fn a_block_whose_check_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(6 * MIB, 75);
    let mut file = xz(&bytes, &["-0", "--check=crc32"]);
    // In the stored bytes of an incompressible chunk: found by the check alone.
    file[2 * MIB] ^= 1;
    for _ in 0..2 {
        let witness = Arc::new(Witness::default());
        let mut cx = keeping(folder.path());
        cx.observer = witness.clone();
        let volume = open_on(&Probe::new(file.clone()).volume(), &cx).unwrap();
        // The first bytes may be served before the check is reached.
        while let Ok(found) = read(&volume, 0, 100) {
            assert!(found == bytes[..100]);
        }
        assert_eq!(read(&volume, 0, 1).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(witness.wait_poisoned().len(), 1);
        volume.close().unwrap();
    }
}

#[test]
fn damage_in_the_cache_costs_a_pass_and_no_wrong_byte() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(8 * MIB, 76);
    let file = xz(&bytes, &["-0"]);
    let mut rng = Rng::new(5);
    for round in 0..12 {
        decode_once(&file, &bytes, folder.path());
        let [path] = &kept(folder.path())[..] else {
            panic!("one file of pages is expected");
        };
        let pages = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let len = pages.metadata().unwrap().len();
        let mut places = Rng::new(round);
        let mut damage = || match round % 4 {
            0 => pages.set_len(len / 2).unwrap(),
            1 => pages.set_len(0).unwrap(),
            _ => {
                for _ in 0..2000 {
                    let mut byte = [0];
                    let at = places.below(len);
                    let _ = pages.read_at(&mut byte, at).unwrap();
                    pages.write_all_at(&[!byte[0]], at).unwrap();
                }
                pages
                    .write_all_at(&[0x55; 100_000], len - 1_000_000)
                    .unwrap();
            }
        };
        let cx = keeping(folder.path());
        let before = rng.below(2) == 0;
        if before {
            damage();
        }
        let volume = open_on(&Probe::new(file.clone()).volume(), &cx).unwrap();
        if !before {
            // While it is open, and known to be complete.
            assert!(read(&volume, 3 * MIB, 10).unwrap() == bytes[3 * MIB..3 * MIB + 10]);
            damage();
        }
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| assert!(try_read_all(&volume).unwrap() == bytes));
            }
        });
        assert!(decodes(&volume) >= 1, "round {round}");
        volume.close().unwrap();
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn an_image_that_is_too_large_is_decoded_into_a_temp_file() {
    let bytes = noise(48 * MIB, 77);
    let file = xz(&bytes, &["-0"]);
    for limit in [1 << 20, 49 << 20, 50 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let cx = keeping_at_most(folder.path(), limit);
        let volume = open_on(&Probe::new(file.clone()).volume(), &cx).unwrap();
        pass_over(&volume, &bytes);
        volume.close().unwrap();
        if limit < 48 << 20 {
            assert_eq!(kept(folder.path()).len(), 0, "{limit}");
        }
    }
    // One that turns out to be too large.
    let mut bytes = vec![7; 80 * MIB];
    for (number, piece) in bytes.chunks_mut(4096).enumerate() {
        piece[..8].copy_from_slice(&number.to_le_bytes());
    }
    let file = xz(&bytes, &["-0"]);
    let folder = tempfile::tempdir().unwrap();
    let cx = keeping_at_most(folder.path(), 20 << 20);
    let volume = open_on(&Probe::new(file).volume(), &cx).unwrap();
    pass_over(&volume, &bytes);
    assert_eq!(kept(folder.path()).len(), 0);
    volume.close().unwrap();
}

#[test]
fn what_is_deleted_while_it_is_read_is_read_on() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(8 * MIB, 78);
    let file = xz(&bytes, &["-0"]);
    decode_once(&file, &bytes, folder.path());
    let volume = open_on(&Probe::new(file).volume(), &keeping(folder.path())).unwrap();
    Store::open(folder.path()).unwrap().clear(|_| true).unwrap();
    assert!(try_read_all(&volume).unwrap() == bytes);
    assert_eq!(decodes(&volume), 0);
    // And one whose pass is under way.
    let bytes = noise(8 * MIB, 78);
    let probe = Probe::new(xz(&bytes, &["-0"]));
    let volume = open_on(&probe.volume(), &keeping(folder.path())).unwrap();
    probe.hold_from(probe.size() / 2);
    assert!(read(&volume, 0, 100).unwrap() == bytes[..100]);
    Store::open(folder.path()).unwrap().clear(|_| true).unwrap();
    probe.release();
    pass_over(&volume, &bytes);
}

#[test]
fn two_units_that_decode_at_the_same_time_help_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(8 * MIB, 79);
    let file = xz(&bytes, &["-0"]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| decode_once(&file, &bytes, folder.path()));
        }
    });
    let volume = open_on(&Probe::new(file).volume(), &keeping(folder.path())).unwrap();
    assert!(try_read_all(&volume).unwrap() == bytes);
    assert_eq!(decodes(&volume), 0);
}

/// The image in blocks that are decoded into memory.
fn in_small_blocks(len: usize, seed: u64) -> (Vec<u8>, Vec<u8>) {
    let bytes = image(len, seed);
    let file = xz(&bytes, &["-0", "--block-size=1MiB"]);
    (bytes, file)
}

/// Reads all of the image and says how many blocks were decoded for it.
fn decodes_of(file: &[u8], bytes: &[u8], cx: &Cx) -> u64 {
    let volume = open_on(&Probe::new(file.to_vec()).volume(), cx).unwrap();
    assert!(try_read_all(&volume).unwrap() == bytes);
    let decodes = decodes(&volume);
    // What was decoded is still on its way to the disk, where closing waits for it for a moment only.
    cx.pool.wait_idle();
    volume.close().unwrap();
    decodes
}

#[test]
fn blocks_that_fit_memory_are_kept_too() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, file) = in_small_blocks(12 * MIB + 5, 80);
    // Twice as much as fits.
    assert!(decodes_of(&file, &bytes, &keeping(folder.path())) >= 13);
    let probe = Probe::new(file);
    let mut cx = keeping(folder.path());
    cx.temp_dir = "/nonexistent".into();
    cx.verify = true;
    let volume = open_on(&probe.volume(), &cx).unwrap();
    assert_eq!(volume.geometry().access, Access::Random);
    assert_eq!(volume.cost().unwrap().kept, Keeping::Disk);
    probe.take_reads();
    assert!(read(&volume, 5 * MIB - 7, 1000).unwrap() == bytes[5 * MIB - 7..5 * MIB + 993]);
    assert!(try_read_all(&volume).unwrap() == bytes);
    assert_eq!(probe.take_reads(), []);
    let stats = volume.stats().blocks.unwrap();
    assert_eq!((stats.decodes, stats.misses), (0, 0));
    let without = open_on(&probe.volume(), &Cx::new(64 << 20)).unwrap();
    assert!(try_read_all(&without).unwrap() == bytes);
    assert!(zero(&volume) > 0 && zero(&volume) == zero(&without));
}

#[test]
fn only_the_blocks_that_were_decoded_are_kept_and_whatever_the_memory_they_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, file) = in_small_blocks(12 * MIB, 81);
    let part = bytes.len() / 2;
    // The check comes after the bytes.
    let mut cx = keeping(folder.path());
    cx.verify = true;
    let volume = open_on(&Probe::new(file.clone()).volume(), &cx).unwrap();
    assert!(read(&volume, part, 10).unwrap() == bytes[part..part + 10]);
    let first = decodes(&volume);
    cx.pool.wait_idle();
    volume.close().unwrap();
    assert!((1..12).contains(&first), "{first}");
    // With so little memory that each block is decoded in a pass of its own.
    let mut cx = Cx::new(2 << 20);
    cx.place = keeping(folder.path()).place;
    let volume = open_on(&Probe::new(file.clone()).volume(), &cx).unwrap();
    assert!(read(&volume, part, 10).unwrap() == bytes[part..part + 10]);
    assert_eq!(decodes(&volume), 0);
    assert!(try_read_all(&volume).unwrap() == bytes);
    volume.close().unwrap();
    // What such a pass has kept is found with more memory.
    assert_eq!(decodes_of(&file, &bytes, &keeping(folder.path())), 0);
}

#[test]
fn kept_blocks_that_are_damaged_are_decoded_and_kept_again() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, file) = in_small_blocks(4 * MIB, 82);
    decodes_of(&file, &bytes, &keeping(folder.path()));
    let [path] = &kept(folder.path())[..] else {
        panic!("one file of pages is expected");
    };
    let pages = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let len = pages.metadata().unwrap().len();
    let mut rng = Rng::new(3);
    for round in 0..16 {
        if round == 8 {
            pages.set_len(len / 2).unwrap();
        }
        for _ in 0..rng.below(300) {
            let (mut byte, at) = ([0], rng.below(len));
            let _ = pages.read_at(&mut byte, at).unwrap();
            pages.write_all_at(&[!byte[0]], at).unwrap();
        }
        decodes_of(&file, &bytes, &keeping(folder.path()));
    }
    // Damage is noticed when it is read; the next mount looks for nothing there, and keeps it again.
    decodes_of(&file, &bytes, &keeping(folder.path()));
    decodes_of(&file, &bytes, &keeping(folder.path()));
    assert_eq!(decodes_of(&file, &bytes, &keeping(folder.path())), 0);
}

#[test]
fn nothing_is_kept_of_a_block_in_memory_whose_check_fails() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(3 * MIB, 83);
    let mut file = xz(&bytes, &["-0", "--check=crc32", "--block-size=1MiB"]);
    file[MIB + MIB / 2] ^= 1;
    for _ in 0..2 {
        let volume = open_on(&Probe::new(file.clone()).volume(), &keeping(folder.path())).unwrap();
        while let Ok(found) = read(&volume, MIB, 100) {
            assert!(found == bytes[MIB..MIB + 100]);
        }
        let damaged = read(&volume, MIB, 1).unwrap_err();
        assert_eq!(damaged.kind(), Kind::Corrupt);
        assert!(read(&volume, 0, MIB).unwrap() == bytes[..MIB]);
        assert!(read(&volume, 2 * MIB, MIB).unwrap() == bytes[2 * MIB..]);
        volume.close().unwrap();
    }
}

#[test]
fn no_more_small_blocks_are_kept_than_there_is_room_for() {
    let bytes = noise(12 * MIB, 84);
    let file = xz(&bytes, &["-0", "--block-size=256KiB"]);
    for limit in [100_000, 1 << 20, 3 << 20] {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let cx = keeping_at_most(folder.path(), limit);
            decodes_of(&file, &bytes, &cx);
            let used = Store::with_limit(folder.path(), limit)
                .unwrap()
                .usage()
                .used;
            // Whoever writes at the same time looks at the limit for itself.
            assert!(used <= limit + limit / 2, "{used} bytes of {limit}");
        }
    }
}

#[test]
fn a_long_block_goes_to_the_cache_though_it_fits_memory() {
    let bytes = noise(36 * MIB, 85);
    let file = xz(&bytes, &["-0"]);
    let much = |limit| {
        let folder = tempfile::tempdir().unwrap();
        let mut cx = Cx::new(1 << 30);
        cx.place = keeping_at_most(folder.path(), limit).place;
        cx.temp_dir = "/nonexistent".into();
        (folder, cx)
    };
    let (_folder, cx) = much(1 << 30);
    let probe = Probe::new(file.clone());
    let volume = open_on(&probe.volume(), &cx).unwrap();
    probe.fail_from(Some(file.len() as u64 * 3 / 4));
    assert!(read(&volume, 35 * MIB, 10).is_err());
    volume.close().unwrap();
    // What was decoded until it was interrupted is there.
    let probe = Probe::new(file.clone());
    let volume = open_on(&probe.volume(), &cx).unwrap();
    probe.hold_from(file.len() as u64 / 4);
    assert!(read(&volume, 16 * MIB, MIB).unwrap() == bytes[16 * MIB..17 * MIB]);
    probe.release();
    pass_over(&volume, &bytes);
    volume.close().unwrap();
    // Not where it has no room for all of it: then memory does.
    let (_folder, cx) = much(30 << 20);
    let volume = open_on(&Probe::new(file).volume(), &cx).unwrap();
    assert!(try_read_all(&volume).unwrap() == bytes);
    assert!(volume.close().is_ok() && cx.cache.peak() > 36 << 20);
}

#[test]
fn what_had_to_go_from_memory_or_another_mount_has_decoded_is_not_decoded_again() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(16 * MIB, 86);
    let file = xz(&bytes, &["-0", "--block-size=1MiB"]);
    let open_in = |cx: &Cx| open_on(&Probe::new(file.clone()).volume(), cx).unwrap();
    let open = || open_in(&keeping(folder.path()));
    let cx = keeping(folder.path());
    let (first, second) = (open_in(&cx), open());
    // Twice as much as fits memory, twice.
    for _ in 0..2 {
        assert!(try_read_all(&first).unwrap() == bytes);
        cx.pool.wait_idle();
    }
    assert!((16..20).contains(&decodes(&first)), "{}", decodes(&first));
    first.close().unwrap();
    assert!(try_read_all(&second).unwrap() == bytes);
    assert_eq!(decodes(&second), 0);
    // What is lost is decoded, and found by others again.
    let third = open();
    for path in kept(folder.path()) {
        let pages = OpenOptions::new().write(true).open(path).unwrap();
        let len = pages.metadata().unwrap().len();
        for at in (0..len).step_by(5003) {
            pages.write_all_at(&[0x5a], at).unwrap();
        }
    }
    for _ in 0..2 {
        assert!(try_read_all(&second).unwrap() == bytes);
        assert!(try_read_all(&third).unwrap() == bytes);
    }
    second.close().unwrap();
    third.close().unwrap();
}
