//! Memory, temp files and holes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nbdserve::layer::Args;
use nbdserve::layer::cow::COW;
use nbdserve::testing::{Rng, StrictDisk, noise};
use nbdserve::{ByteRange, Cx, Device, Done, Geometry, Kind, Result, Volume, ZeroOpts};

use super::{cx, disk, kept, scratch_on};

/// A disk of any size, of zeroes.
#[derive(Debug)]
struct Huge(u64);

impl Device for Huge {
    fn name(&self) -> &'static str {
        "huge"
    }

    fn geometry(&self) -> Geometry {
        Geometry::bytes(self.0)
    }

    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }
}

#[test]
fn scratch_writes_stop_at_the_limit_and_what_is_there_stays() {
    let mut cx = Cx::new(0);
    cx.temp_limit = 100_000;
    let (below, mut bytes) = disk();
    let volume = (COW.open)(&below, &Args::new(), &cx).unwrap();
    let writer = volume.writer().unwrap();
    let mut at = 0;
    let error = loop {
        match writer.write_at(&[7; 4096], at, false) {
            Ok(()) => bytes[at as usize..at as usize + 4096].fill(7),
            Err(error) => break error,
        }
        at += 4096;
    };
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
    assert!(error.report().hint.unwrap().contains("--temp-dir"));
    assert!((90_000..=100_000).contains(&at), "{at}");
    // What is there already can be written again.
    writer.write_at(&[8; 4096], 0, false).unwrap();
    bytes[..4096].fill(8);
    assert!(volume.read_vec(0, bytes.len()).unwrap() == bytes);
    // What is given back can be used again.
    writer.trim(ByteRange::between(0, 40_960), false).unwrap();
    writer.write_at(&[9; 4096], 200_704, false).unwrap();
}

#[test]
fn a_folder_for_temp_files_that_is_missing_is_named() {
    let mut cx = Cx::new(0);
    cx.temp_dir = Path::new("/nonexistent/folder").to_owned();
    let volume = (COW.open)(&disk().0, &Args::new(), &cx).unwrap();
    let error = volume.writer().unwrap().write_at(&[1], 0, false);
    let report = error.unwrap_err().report();
    assert!(
        report.to_string().contains("/nonexistent/folder"),
        "{report}"
    );
}

#[test]
fn a_kept_file_is_sparse_and_zeroes_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept");
    let below = Volume::new(Huge(1 << 40));
    let volume = (COW.open)(&below, &kept(&file), &cx()).unwrap();
    let writer = volume.writer().unwrap();
    let used = || std::fs::metadata(&file).unwrap().blocks() * 512;
    writer.write_at(&[1; 4096], 1 << 39, true).unwrap();
    writer.write_at(&noise(1 << 20, 1), 1 << 30, true).unwrap();
    assert!(used() < 2 << 20, "{}", used());
    let range = ByteRange::between(1 << 30, (1 << 30) + (512 << 20));
    assert_eq!(writer.zero(range, ZeroOpts::default()).unwrap(), Done::Yes);
    writer.flush().unwrap();
    assert!(used() < 200_000, "{}", used());
    assert!(
        volume
            .read_vec(1 << 30, 4096)
            .unwrap()
            .iter()
            .all(|b| *b == 0)
    );
}

#[test]
fn a_huge_disk_has_longer_blocks_and_one_beyond_all_bounds_is_refused() {
    let below = Volume::new(Huge(1 << 50));
    let volume = scratch_on(&below);
    let at = (1 << 50) - 10;
    volume
        .writer()
        .unwrap()
        .write_at(&[5; 10], at, false)
        .unwrap();
    let found = volume.read_vec(at - 10, 20).unwrap();
    assert_eq!(found, [[0; 10], [5; 10]].concat());
    let below = Volume::new(Huge((1 << 50) + 1));
    let error = (COW.open)(&below, &Args::new(), &cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
}

/// Whole blocks are replaced, made zero and given back beside parts of the same blocks: each thread
/// has its own bytes, whatever happens to those of the others.
#[test]
fn parts_of_a_block_survive_whatever_happens_to_their_neighbours() {
    const PART: u64 = 1024;
    const BLOCKS: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise((BLOCKS * 4096) as usize, 4);
    let (below, _) = StrictDisk::new(512).volume(bytes.clone());
    let file = (COW.open)(&below, &kept(&dir.path().join("kept")), &cx()).unwrap();
    let stored = (COW.open)(&below, &Args::new(), &Cx::new(0)).unwrap();
    for volume in [scratch_on(&below), stored, file] {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4_u64)
                .map(|part| {
                    let (volume, bytes) = (&volume, &bytes);
                    scope.spawn(move || {
                        let writer = volume.writer().unwrap();
                        let mut rng = Rng::new(part);
                        let mut own = vec![None; BLOCKS as usize];
                        for round in 0..400 {
                            let block = rng.below(BLOCKS);
                            let at = block * 4096 + part * PART;
                            let new = noise(PART as usize, round);
                            if round % 7 == 0 {
                                let range = ByteRange::between(at, at + PART);
                                let _ = writer.zero(range, ZeroOpts::default()).unwrap();
                                own[block as usize] = Some(vec![0; PART as usize]);
                            } else {
                                writer.write_at(&new, at, false).unwrap();
                                own[block as usize] = Some(new);
                            }
                            let block = rng.below(BLOCKS);
                            let at = block * 4096 + part * PART;
                            let expected = own[block as usize]
                                .clone()
                                .unwrap_or_else(|| bytes[at as usize..][..PART as usize].to_vec());
                            assert!(volume.read_vec(at, PART as usize).unwrap() == expected);
                        }
                    })
                })
                .collect();
            // Somebody who flushes all the time.
            let flusher = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    volume.writer().unwrap().flush().unwrap();
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            flusher.join().unwrap();
        });
    }
}

/// Blocks come and go while they are read: a reader sees old or new bytes, no others.
#[test]
fn readers_never_see_the_bytes_of_another_block() {
    let below = Volume::new(Huge(1 << 20));
    let dir = tempfile::tempdir().unwrap();
    let file = (COW.open)(&below, &kept(&dir.path().join("kept")), &cx()).unwrap();
    for volume in [scratch_on(&below), file] {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let (volume, done) = (&volume, &done);
                scope.spawn(move || {
                    let mut rng = Rng::new(100 + seed);
                    while !done.load(Ordering::Relaxed) {
                        let block = rng.below(255);
                        let found = volume.read_vec(block * 4096, 8192).unwrap();
                        for (half, byte) in [(0, block + 1), (4096, block + 2)] {
                            let part = &found[half..half + 4096];
                            let byte = byte.min(255) as u8;
                            assert!(part.iter().all(|b| *b == 0 || *b == byte));
                        }
                    }
                });
            }
            let writer = volume.writer().unwrap();
            let mut rng = Rng::new(9);
            for _ in 0..4000 {
                let block = rng.below(256);
                let byte = (block + 1).min(255) as u8;
                writer.write_at(&[byte; 4096], block * 4096, false).unwrap();
                let block = rng.below(256) * 4096;
                writer
                    .trim(ByteRange::between(block, block + 4096), false)
                    .unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
