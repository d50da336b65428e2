//! A volume as a mounted file, on a real kernel.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Mounted, PATIENCE, pattern};
use nbdfuse::mount::{self, Mode, Unmounted};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, Faulty, Slow, StrictDisk};
use nbdserve::{
    ByteRange, Device, ExtentFlags, Extents, Geometry, Kind, Result, Volume, WriteFeatures,
};
use rustix::fs::{FallocateFlags, fallocate};

/// An empty file to mount on, in a folder of its own.
fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    fs::write(&path, "").unwrap();
    (dir, path)
}

fn serve(device: impl Device + 'static, path: &Path) -> Mounted {
    Mounted::file(Volume::new(device), path, false)
}

/// For O_DIRECT: `len` bytes within `space` whose address is a multiple of a block.
fn aligned(space: &mut Vec<u8>, len: usize) -> &mut [u8] {
    space.resize(len + 4096, 0);
    let skip = space.as_ptr().align_offset(4096);
    &mut space[skip..skip + len]
}

fn open_direct(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

#[test]
fn every_byte_reads_back_at_every_alignment() {
    let (_dir, path) = target();
    let bytes = pattern(3_000_001);
    let mounted = Mounted::file(Memory::volume(bytes.clone()), &path, false);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.is_file()), (3_000_001, true));
    assert_eq!(meta.blocks(), 3_000_001_u64.div_ceil(512));
    assert!(fs::read(&path).unwrap() == bytes);
    let file = File::open(&path).unwrap();
    for (offset, len) in [
        (0, 1),
        (4095, 2),
        (131_071, 131_074),
        (2_999_990, 11),
        (5, 2_000_000),
    ] {
        let mut buf = vec![0; len];
        file.read_exact_at(&mut buf, offset).unwrap();
        assert!(
            buf == bytes[offset as usize..offset as usize + len],
            "{len} at {offset}"
        );
    }
    let mut space = Vec::new();
    let buf = aligned(&mut space, 1 << 20);
    let direct = open_direct(&path);
    direct.read_exact_at(buf, 4096).unwrap();
    assert!(*buf == bytes[4096..4096 + (1 << 20)]);
    let tail = direct.read_at(buf, 2_998_272).unwrap();
    assert!(buf[..tail] == bytes[2_998_272..]);
    assert_eq!(file.read_at(buf, 3_000_001).unwrap(), 0);
    drop((file, direct));
    mounted.unmount();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn a_read_only_file_takes_no_write_and_shows_no_write_permission() {
    let (_dir, path) = target();
    let mounted = Mounted::file(Memory::volume(vec![1; 8192]), &path, false);
    let refused = OpenOptions::new().write(true).open(&path).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o222, 0);
    mounted.unmount();
}

/// A volume that can do more than write zeroes.
fn with_holes(bytes: Vec<u8>) -> Volume {
    let features = WriteFeatures {
        zero: true,
        trim: true,
        ..WriteFeatures::default()
    };
    StrictDisk::new(512).features(features).volume(bytes).0
}

#[test]
fn writes_reach_the_volume_and_end_at_its_end() {
    let (_dir, path) = target();
    let volume = with_holes(vec![7; 100_000]);
    let mounted = Mounted::file(volume.clone(), &path, true);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let bytes = pattern(70_000);
    file.write_all_at(&bytes, 12_345).unwrap();
    file.sync_all().unwrap();
    assert!(volume.read_vec(12_345, 70_000).unwrap() == bytes);
    assert_eq!(volume.read_vec(12_344, 1).unwrap(), [7]);
    assert_eq!(volume.read_vec(82_345, 1).unwrap(), [7]);

    assert_eq!(file.write_at(&[1; 100], 99_950).unwrap(), 50);
    let full = file.write_at(&[1; 100], 100_000).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    let resized = file.set_len(5).unwrap_err();
    assert_eq!(resized.raw_os_error(), Some(libc::EPERM));

    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 20_000, 5_000).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE, 40_000, 1_000).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
    for (offset, len) in [(20_000, 5_000), (40_000, 1_000)] {
        assert!(
            volume
                .read_vec(offset, len)
                .unwrap()
                .iter()
                .all(|b| *b == 0)
        );
        let mut buf = vec![9; len];
        file.read_exact_at(&mut buf, offset).unwrap();
        assert!(buf.iter().all(|b| *b == 0));
    }
    let beyond = fallocate(&file, FallocateFlags::empty(), 0, 100_001).unwrap_err();
    assert_eq!(beyond.raw_os_error(), libc::ENOSPC);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(b"start").unwrap();
    drop(file);
    assert_eq!(volume.read_vec(0, 5).unwrap(), b"start");
    mounted.unmount();
}

#[test]
fn a_megabyte_read_directly_is_one_request() {
    let (_dir, path) = target();
    let (volume, counts) = Counting::volume(Memory::volume(vec![0; 8 << 20]));
    let mounted = Mounted::file(volume, &path, false);
    let mut space = Vec::new();
    let buf = aligned(&mut space, 1 << 20);
    open_direct(&path).read_exact_at(buf, 3 << 20).unwrap();
    let wanted = ByteRange::between(3 << 20, 4 << 20);
    assert_eq!(counts.read_ranges(), [wanted]);
    mounted.unmount();
}

#[test]
fn the_kernel_keeps_what_it_has_read_across_opens() {
    let (_dir, path) = target();
    let (volume, counts) = Counting::volume(Memory::volume(vec![0; 1 << 20]));
    let mounted = Mounted::file(volume, &path, false);
    fs::read(&path).unwrap();
    let first = counts.reads();
    assert!(
        (1..=16).contains(&first),
        "{first} requests where windows of 128 KiB need 8"
    );
    fs::read(&path).unwrap();
    assert_eq!(counts.reads(), first);
    mounted.unmount();
}

#[test]
fn what_the_kernel_has_cached_is_gone_after_an_invalidation() {
    let (_dir, path) = target();
    let volume = Memory::volume(vec![0; 1 << 20]);
    let mounted = Mounted::file(volume.clone(), &path, false);
    assert!(fs::read(&path).unwrap().iter().all(|b| *b == 0));
    let writer = volume.writer().unwrap();
    writer.write_at(&vec![9; 1 << 20], 0, false).unwrap();
    assert!(fs::read(&path).unwrap().iter().all(|b| *b == 0));
    mounted.session.invalidate_all();
    let deadline = Instant::now() + PATIENCE;
    while !fs::read(&path).unwrap().iter().all(|b| *b == 9) {
        assert!(Instant::now() < deadline, "old bytes after an invalidation");
        std::thread::sleep(Duration::from_millis(1));
    }
    mounted.unmount();
}

#[test]
fn an_invalidation_from_within_a_read_does_not_hang() {
    /// Invalidates in the middle of each read.
    #[derive(Debug)]
    struct Poisons(Arc<Mutex<Option<Arc<Mounted>>>>);
    impl Device for Poisons {
        fn name(&self) -> &'static str {
            "poisons"
        }
        fn geometry(&self) -> Geometry {
            Geometry::bytes(1 << 20)
        }
        fn read_at(&self, buf: &mut [u8], _: u64) -> Result<()> {
            if let Some(mounted) = &*self.0.lock().unwrap() {
                mounted.session.invalidate_all();
            }
            buf.fill(5);
            Ok(())
        }
    }
    let (_dir, path) = target();
    let slot = Arc::default();
    let mounted = Arc::new(serve(Poisons(Arc::clone(&slot)), &path));
    *slot.lock().unwrap() = Some(Arc::clone(&mounted));
    assert!(fs::read(&path).unwrap().iter().all(|b| *b == 5));
    slot.lock().unwrap().take();
    Arc::into_inner(mounted).unwrap().unmount();
}

#[test]
fn an_error_of_the_volume_is_an_error_of_the_read_and_not_kept() {
    let (_dir, path) = target();
    let (volume, faults) = Faulty::volume(Memory::volume(vec![0; 1 << 16]));
    let mounted = Mounted::file(volume, &path, false);
    faults.fail_all(Kind::Corrupt);
    let error = fs::read(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    faults.clear();
    assert_eq!(fs::read(&path).unwrap().len(), 1 << 16);
    mounted.unmount();
}

#[test]
fn forty_readers_wait_for_a_slow_device_at_the_same_time() {
    const READERS: usize = 40;
    let (_dir, path) = target();
    let (volume, gate) = Slow::volume(Memory::volume(vec![1; READERS << 16]));
    let mounted = Mounted::file(volume, &path, false);
    gate.shut();
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let path = &path;
            scope.spawn(move || {
                let mut space = Vec::new();
                let buf = aligned(&mut space, 4096);
                let offset = (reader as u64) << 16;
                open_direct(path).read_exact_at(buf, offset).unwrap();
                assert_eq!(buf[0], 1);
            });
        }
        let all_wait = gate.wait_in_flight(READERS, PATIENCE);
        gate.open();
        assert!(all_wait, "{} in flight", gate.most_in_flight());
    });
    mounted.unmount();
}

#[test]
fn an_idle_request_is_answered_while_forty_wait() {
    let (_dir, path) = target();
    let (volume, gate) = Slow::volume(Memory::volume(vec![1; 1 << 20]));
    let mounted = Mounted::file(volume, &path, false);
    gate.shut();
    std::thread::scope(|scope| {
        for reader in 0..40 {
            let path = &path;
            scope.spawn(move || {
                let mut space = Vec::new();
                let buf = aligned(&mut space, 4096);
                open_direct(path).read_exact_at(buf, reader << 12).unwrap();
            });
        }
        let all_wait = gate.wait_in_flight(40, PATIENCE);
        let found = rustix::fs::statfs(&path);
        gate.open();
        assert!(all_wait);
        assert_eq!(found.unwrap().f_blocks, 256);
    });
    mounted.unmount();
}

/// Data, hole, data, each of a MiB.
#[derive(Debug)]
struct Holey;

impl Device for Holey {
    fn name(&self) -> &'static str {
        "holey"
    }
    fn geometry(&self) -> Geometry {
        Geometry::bytes(3 << 20)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = u8::from(at >> 20 != 1);
        }
        Ok(())
    }
    fn extents(&self, _: ByteRange, out: &mut Extents) -> Result<()> {
        out.push_until(1 << 20, ExtentFlags::DATA);
        out.push_until(2 << 20, ExtentFlags::HOLE);
        out.push_until(3 << 20, ExtentFlags::DATA);
        Ok(())
    }
}

#[test]
fn holes_are_found_by_lseek_and_not_counted_in_blocks() {
    let (dir, path) = target();
    let mounted = serve(Holey, &path);
    let file = File::open(&path).unwrap();
    let seek = |pos| rustix::fs::seek(&file, pos);
    use rustix::fs::SeekFrom as To;
    assert_eq!(seek(To::Hole(5)).unwrap(), 1 << 20);
    assert_eq!(seek(To::Data(1 << 20)).unwrap(), 2 << 20);
    assert_eq!(seek(To::Hole(2 << 20)).unwrap(), 3 << 20);
    assert_eq!(
        seek(To::Data(3 << 20)).unwrap_err().raw_os_error(),
        libc::ENXIO
    );
    assert_eq!(fs::metadata(&path).unwrap().blocks(), (2 << 20) / 512);
    let copy = dir.path().join("copy");
    common::sh(
        r#"cp --sparse=auto "$1" "$2"; cmp "$1" "$2""#,
        &[&path, &copy],
    );
    assert_eq!(fs::metadata(&copy).unwrap().blocks(), (2 << 20) / 512);
    drop(file);
    mounted.unmount();
}

#[test]
fn a_loop_device_on_the_file_has_the_same_bytes() {
    let (_dir, path) = target();
    let bytes = pattern(4 << 20);
    let mounted = Mounted::file(Memory::volume(bytes.clone()), &path, false);
    let script = r#"dev=$(losetup -f --show -r "$1"); trap 'losetup -d $dev' EXIT
        sha256sum < $dev"#;
    let through_loop = common::sh(script, &[&path]);
    let direct = common::sh(r#"sha256sum < "$1""#, &[&path]);
    assert_eq!(through_loop, direct);
    // The loop device vanishes a moment after its last user.
    let deadline = Instant::now() + PATIENCE;
    while mount::unmount(&path, Mode::Normal).unwrap() == Unmounted::Busy {
        assert!(Instant::now() < deadline);
    }
    mounted.session.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_file_system_is_written_through_a_loop_device_on_the_file() {
    let (dir, path) = target();
    let volume = with_holes(vec![0; 64 << 20]);
    let mounted = Mounted::file(volume.clone(), &path, true);
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    // Discard and zeroing come back as fallocate(2) on the file.
    common::sh_apart(
        r#"dev=$(losetup -f --show --direct-io=on "$1" || losetup -f --show "$1")
        trap 'umount "$2" 2>/dev/null || :; losetup -d $dev' EXIT
        mkfs.ext4 -q $dev; mount -o discard $dev "$2"
        head -c 20000000 /dev/urandom > "$2/file"; sha256sum < "$2/file" > "$3"
        cp "$2/file" "$2/gone"; sync; rm "$2/gone"; fstrim "$2"; umount "$2"
        blockdev --flushbufs $dev; e2fsck -fn $dev
        mount $dev "$2"; sha256sum < "$2/file" | cmp - "$3"; umount "$2""#,
        &[&path, &mnt, &dir.path().join("sum")],
    );
    let raw = dir.path().join("copy");
    fs::write(&raw, volume.read_vec(0, 64 << 20).unwrap()).unwrap();
    common::sh(r#"e2fsck -fn "$1""#, &[&raw]);
    let deadline = Instant::now() + PATIENCE;
    while mount::unmount(&path, Mode::Normal).unwrap() == Unmounted::Busy {
        assert!(Instant::now() < deadline);
    }
    mounted.session.shutdown(PATIENCE).unwrap();
}

#[test]
fn the_end_of_a_session_is_told_to_whoever_waits() {
    let (_dir, path) = target();
    let mounted = Mounted::file(Memory::volume(vec![0; 4096]), &path, false);
    let open = File::open(&path).unwrap();
    assert_eq!(
        mount::unmount(&path, Mode::Normal).unwrap(),
        Unmounted::Busy
    );
    assert!(!mounted.session.is_finished());
    assert!(mounted.session.wait(Duration::ZERO).is_none());
    assert_eq!(mount::unmount(&path, Mode::Lazy).unwrap(), Unmounted::Done);
    let late = mounted.session.shutdown(Duration::from_millis(1));
    assert_eq!(late.unwrap_err().kind(), Kind::TimedOut);
    let mut byte = [1];
    (&open).read_exact(&mut byte).unwrap();
    drop(open);
    mounted.session.wait(PATIENCE).unwrap().unwrap();
    let mut end = File::from(mounted.session.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(end.read(&mut byte).unwrap(), 0);
    assert_eq!(
        mount::unmount(&path, Mode::Normal).unwrap(),
        Unmounted::NotMounted
    );
}
