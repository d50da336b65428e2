//! Loop devices, kernel mounts and the mount table on the kernel of this machine. Needs root,
//! e2fsprogs and xfsprogs.

use std::fs::{self, File, OpenOptions};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use loopmount::sys::mountinfo::{Mount, MountWatch, at_target, mounts};
use loopmount::target::kernel_mount::{MountOptions, mount_fs};
use loopmount::target::loop_device::{self, LoopDevice, LoopOptions};
use loopmount::unit::undo::{self, Stayed};
use nbdfuse::mount::{Mode, Unmounted, unmount};
use nbdserve::Kind;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An image with `before` bytes of something else, then an ext4 that holds the file `hello`.
fn ext4_image(dir: &Path, before: u64) -> PathBuf {
    let content = dir.join("content");
    fs::create_dir(&content).expect("make a folder");
    fs::write(content.join("hello"), "hello from ext4").expect("write a file");
    let fs_image = dir.join("ext4");
    let path = |path: &Path| path.to_str().expect("temp paths are text").to_owned();
    run(
        "mkfs.ext4",
        &["-q", "-d", &path(&content), &path(&fs_image), "16M"],
    );
    let image = dir.join("image");
    let out = File::create(&image).expect("create the image");
    out.write_all_at(&vec![0xee; before as usize], 0)
        .expect("write the image");
    let bytes = fs::read(&fs_image).expect("read the file system");
    out.write_all_at(&bytes, before).expect("write the image");
    image
}

fn options(id: &str) -> LoopOptions<'_> {
    LoopOptions {
        id,
        label: "test",
        offset: 0,
        size: 0,
        read_only: true,
        direct_io: false,
        block_size: 0,
    }
}

/// An id that no other test run uses at the same time.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn attach(image: &Path, options: &LoopOptions<'_>) -> LoopDevice {
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(image)
        .expect("open the image");
    loop_device::attach(file.as_fd(), options).expect("attach a loop device")
}

fn mount_options(fstype: &str, read_only: bool) -> MountOptions<'_> {
    MountOptions {
        fstype,
        read_only,
        first_pass: false,
        options: "",
    }
}

/// A folder to mount on, which a test that fails does not leave mounted.
struct MountPoint(PathBuf);

impl MountPoint {
    fn new(dir: &TempDir, name: &str) -> Self {
        let target = dir.path().join(name);
        fs::create_dir(&target).expect("make a mount point");
        Self(target)
    }
}

impl Deref for MountPoint {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        // Usually the test has done it.
        let _ = unmount(&self.0, Mode::Lazy);
    }
}

fn mount_point(dir: &TempDir) -> MountPoint {
    MountPoint::new(dir, "mount point\nwith\\odd name")
}

fn is_attached(id: &str) -> bool {
    loop_device::find(|_, _| true)
        .expect("list loop devices")
        .iter()
        .any(|found| found.id == id)
}

/// Another test that starts a program has our files open for a moment, between fork and exec.
#[track_caller]
fn unmount_when_free(target: &Path) {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        match unmount(target, Mode::Normal).expect("unmount") {
            Unmounted::Busy if Instant::now() < limit => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return assert_eq!(other, Unmounted::Done),
        }
    }
}

/// The kernel detaches a moment after the last close, when a scan of ours or of udev holds the
/// node meanwhile.
fn wait_until_detached(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while is_attached(id) {
        assert!(Instant::now() < deadline, "the loop device of {id} stays");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn twenty_cycles_leave_no_device_behind() {
    let dir = tempfile::tempdir().unwrap();
    let image = ext4_image(dir.path(), MIB);
    let target = mount_point(&dir);
    let id = unique("cycles");
    for _ in 0..20 {
        let device = attach(
            &image,
            &LoopOptions {
                offset: MIB,
                size: 16 * MIB,
                ..options(&id)
            },
        );
        assert!(is_attached(&id));
        let mount_id = mount_fs(&device.path, &target, &mount_options("ext4", true)).unwrap();
        drop(device);
        let text = fs::read_to_string(target.join("hello")).unwrap();
        assert_eq!(text, "hello from ext4");

        let table = mounts().unwrap();
        let mount = at_target(&table, &target).unwrap();
        assert_eq!(mount.id, mount_id);
        assert_eq!(mount.fstype, "ext4");
        let has = |option: &str| mount.options.split(',').any(|o| o == option);
        assert!(has("ro") && has("nosuid") && has("nodev"), "{mount:?}");

        unmount_when_free(&target);
        assert_eq!(
            unmount(&target, Mode::Normal).unwrap(),
            Unmounted::NotMounted
        );
        wait_until_detached(&id);
    }
}

#[test]
fn a_window_of_the_file_is_shown_and_read_only_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let bytes: Vec<u8> = (0..65536_u32).map(|i| (i / 256) as u8).collect();
    fs::write(&image, &bytes).unwrap();
    let id = unique("window");
    let device = attach(
        &image,
        &LoopOptions {
            offset: 4096,
            size: 8192,
            ..options(&id)
        },
    );
    let shown = fs::read(&device.path).unwrap();
    assert_eq!(shown, bytes[4096..4096 + 8192]);
    let write = OpenOptions::new()
        .write(true)
        .open(&device.path)
        .and_then(|node| {
            node.write_all_at(&[1; 512], 0)
                .and_then(|()| node.sync_all())
        });
    assert!(write.is_err());
    let found = loop_device::find(|_, _| true).unwrap();
    let found = found.iter().find(|found| found.id == id).unwrap();
    assert!(found.status.read_only && found.status.autoclear);
    assert_eq!((found.status.offset, found.status.size), (4096, 8192));

    assert!(!loop_device::detach(device.number, "another").unwrap());
    assert!(is_attached(&id));
    assert!(loop_device::detach(device.number, &id).unwrap());
    drop(device);
    wait_until_detached(&id);
    assert_eq!(fs::read(&image).unwrap(), bytes);
}

#[test]
fn writes_reach_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let image = ext4_image(dir.path(), 0);
    let target = mount_point(&dir);
    let id = unique("write");
    for (round, read_only) in [(0, false), (1, true)] {
        let device = attach(
            &image,
            &LoopOptions {
                read_only,
                ..options(&id)
            },
        );
        mount_fs(&device.path, &target, &mount_options("ext4", read_only)).unwrap();
        drop(device);
        if round == 0 {
            fs::write(target.join("new"), "kept").unwrap();
        } else {
            assert_eq!(fs::read_to_string(target.join("new")).unwrap(), "kept");
        }
        unmount_when_free(&target);
        wait_until_detached(&id);
    }
}

#[test]
fn many_at_a_time_get_a_device_each() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, vec![0; 65536]).unwrap();
    let id = unique("race");
    let devices: Vec<LoopDevice> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| attach(&image, &options(&id))))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut numbers: Vec<u32> = devices.iter().map(|device| device.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 8);
    drop(devices);
    wait_until_detached(&id);
}

#[test]
fn a_dirty_journal_is_explained_and_noload_shows_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let image = ext4_image(dir.path(), 0);
    let target = mount_point(&dir);
    let id = unique("dirty");
    // A copy made while the file system is in use has a journal to be replayed.
    let device = attach(
        &image,
        &LoopOptions {
            read_only: false,
            ..options(&id)
        },
    );
    mount_fs(&device.path, &target, &mount_options("ext4", false)).unwrap();
    fs::write(target.join("new"), "x").unwrap();
    device.device().sync_all().unwrap();
    let dirty = dir.path().join("dirty");
    fs::copy(&image, &dirty).unwrap();
    unmount_when_free(&target);
    drop(device);

    let device = attach(&dirty, &options(&id));
    let error = mount_fs(&device.path, &target, &mount_options("ext4", true)).unwrap_err();
    assert_eq!(error.kind(), Kind::ReadOnly, "{error:?}");
    let hint = error.report().hint.unwrap();
    assert!(hint.contains("-o noload"), "{hint}");
    // An expensive device does not make us skip a journal that has something to say.
    let first_pass = MountOptions {
        first_pass: true,
        ..mount_options("ext4", true)
    };
    assert!(mount_fs(&device.path, &target, &first_pass).is_err());

    let noload = MountOptions {
        options: "noload",
        ..mount_options("ext4", true)
    };
    mount_fs(&device.path, &target, &noload).unwrap();
    let text = fs::read_to_string(target.join("hello")).unwrap();
    assert_eq!(text, "hello from ext4");
    unmount_when_free(&target);
    drop(device);
    wait_until_detached(&id);
}

#[test]
fn a_clean_journal_is_left_alone_on_an_expensive_device() {
    let dir = tempfile::tempdir().unwrap();
    let image = ext4_image(dir.path(), 0);
    let target = mount_point(&dir);
    let id = unique("firstpass");
    for (first_pass, expected) in [(false, false), (true, true)] {
        let device = attach(&image, &options(&id));
        let options = MountOptions {
            first_pass,
            ..mount_options("ext4", true)
        };
        mount_fs(&device.path, &target, &options).unwrap();
        let table = mounts().unwrap();
        let super_options = &at_target(&table, &target).unwrap().super_options;
        let noload = super_options.to_str().unwrap().contains("norecovery");
        assert_eq!(noload, expected, "{super_options:?}");
        unmount_when_free(&target);
        drop(device);
        wait_until_detached(&id);
    }
}

#[test]
fn an_xfs_and_its_copy_are_mounted_together() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("xfs");
    File::create(&image).unwrap().set_len(320 * MIB).unwrap();
    run("mkfs.xfs", &["-q", image.to_str().unwrap()]);
    let id = unique("xfs");
    let mounted: Vec<MountPoint> = (0..2)
        .map(|number| {
            let target = MountPoint::new(&dir, &format!("m{number}"));
            let device = attach(&image, &options(&id));
            mount_fs(&device.path, &target, &mount_options("xfs", true)).unwrap();
            target
        })
        .collect();
    for target in mounted {
        unmount_when_free(&target);
    }
    wait_until_detached(&id);
}

#[test]
fn what_the_kernel_refuses_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("zeroes");
    fs::write(&image, vec![0; MIB as usize]).unwrap();
    let target = mount_point(&dir);
    let id = unique("refused");
    let device = attach(&image, &options(&id));
    let refused = |fstype, text| {
        let options = MountOptions {
            options: text,
            ..mount_options(fstype, true)
        };
        mount_fs(&device.path, &target, &options).unwrap_err()
    };
    assert_eq!(refused("ext4", "").kind(), Kind::Corrupt);
    assert_eq!(refused("nosuchfs", "").kind(), Kind::Unsupported);
    let error = refused("ext4", "nosuchoption=3");
    assert!(error.to_string().contains("ext4"), "{error}");
    let missing = dir.path().join("missing");
    let error = mount_fs(&device.path, &missing, &mount_options("ext4", true)).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(
        mounts()
            .unwrap()
            .iter()
            .filter(|m| *m.target == *target)
            .count(),
        0
    );
    drop(device);
    wait_until_detached(&id);
}

#[test]
fn a_mount_and_an_unmount_wake_the_watch_and_busy_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let image = ext4_image(dir.path(), 0);
    let target = mount_point(&dir);
    let id = unique("watch");
    let device = attach(&image, &options(&id));
    let watch = MountWatch::new().unwrap();
    mount_fs(&device.path, &target, &mount_options("ext4", true)).unwrap();
    assert!(watch.wait(Duration::from_secs(30)).unwrap());

    let held = File::open(target.join("hello")).unwrap();
    assert_eq!(unmount(&target, Mode::Normal).unwrap(), Unmounted::Busy);
    assert_eq!(unmount(&target, Mode::Lazy).unwrap(), Unmounted::Done);
    assert!(watch.wait(Duration::from_secs(30)).unwrap());
    drop(device);
    assert!(is_attached(&id), "the open file keeps it");
    drop(held);
    wait_until_detached(&id);
}

#[test]
fn a_kernel_mount_follows_no_link() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("elsewhere/mnt")).unwrap();
    symlink("elsewhere", dir.path().join("folder")).unwrap();
    symlink("elsewhere", dir.path().join("mnt")).unwrap();
    for target in ["mnt", "folder/mnt"] {
        let target = dir.path().join(target);
        let options = mount_options("tmpfs", false);
        let error = mount_fs(Path::new("none"), &target, &options).unwrap_err();
        let hint = error.report().hint.unwrap();
        assert!(hint.contains("symbolic link"), "{error} {hint}");
    }
    let elsewhere = dir.path().join("elsewhere");
    let led = |mount: &&Mount| mount.target.starts_with(&elsewhere);
    assert_eq!(mounts().unwrap().iter().filter(led).count(), 0);
}

/// Mounts an empty file system there and gives its entry in the mount table.
fn mount_tmpfs(target: &Path) -> Mount {
    let options = mount_options("tmpfs", false);
    mount_fs(Path::new("none"), target, &options).expect("mount a tmpfs");
    let table = mounts().expect("read the mount table");
    at_target(&table, target).expect("it is there").clone()
}

#[test]
fn who_is_late_does_not_take_away_what_was_below() {
    let dir = tempfile::tempdir().unwrap();
    let target = mount_point(&dir);
    let lower = mount_tmpfs(&target);
    let upper = mount_tmpfs(&target);
    let covered = undo::unmount(&lower, Mode::Normal).unwrap_err();
    assert!(matches!(covered, Stayed::Covered(_)), "{covered:?}");
    // Two have seen the upper one; this is the faster.
    unmount_when_free(&target);
    for mode in [Mode::Normal, Mode::Lazy] {
        undo::unmount(&upper, mode).unwrap();
        assert_eq!(at_target(&mounts().unwrap(), &target), Some(&lower));
    }
    undo::unmount(&lower, Mode::Lazy).unwrap();
    assert_eq!(at_target(&mounts().unwrap(), &target), None);
}

#[test]
fn a_mount_below_a_covered_folder_is_not_confused_with_what_is_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let folder = MountPoint::new(&dir, "folder");
    let outer = mount_tmpfs(&folder);
    fs::create_dir(folder.join("mnt")).unwrap();
    let inner = mount_tmpfs(&folder.join("mnt"));
    let cover = mount_tmpfs(&folder);
    fs::create_dir(folder.join("mnt")).unwrap();
    let other = mount_tmpfs(&folder.join("mnt"));
    for mode in [Mode::Normal, Mode::Lazy] {
        let hidden = undo::unmount(&inner, mode).unwrap_err();
        assert!(matches!(hidden, Stayed::Covered(_)), "{hidden:?}");
    }
    let table = mounts().unwrap();
    for mount in [&outer, &inner, &cover, &other] {
        assert!(table.contains(mount), "{mount:?}");
    }
    undo::unmount(&other, Mode::Lazy).unwrap();
    undo::unmount(&cover, Mode::Lazy).unwrap();
    undo::unmount(&inner, Mode::Lazy).unwrap();
    undo::unmount(&outer, Mode::Lazy).unwrap();
    assert_eq!(at_target(&mounts().unwrap(), &folder), None);
}
