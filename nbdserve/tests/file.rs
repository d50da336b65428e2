//! The file source against the kernel and against qemu.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nbdserve::source::{File, OpenMode};
use nbdserve::testing::{conformance, noise, tools};
use nbdserve::{ByteRange, Done, Kind, Result, Volume, ZeroOpts};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// O_EXCL, which a block device takes as "nobody else".
const EXCLUSIVE: i32 = rustix::fs::OFlags::EXCL.bits() as i32;

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read_only(path: &Path) -> Result<Volume> {
    File::open(path, OpenMode::ReadOnly).map(Volume::new)
}

fn writable(path: &Path) -> Result<Volume> {
    File::open(path, OpenMode::Write).map(Volume::new)
}

/// Data at 0, 1 MiB and just before the end; holes between. Long unmodified.
fn sparse(path: &Path) -> Vec<u8> {
    let mut expected = vec![0; 3 * MIB as usize + 100];
    let file = fs::File::create(path).unwrap();
    file.set_len(expected.len() as u64).unwrap();
    for at in [0, MIB, 3 * MIB - 5000] {
        let bytes = noise(5000, at + 1);
        file.write_all_at(&bytes, at).unwrap();
        expected[at as usize..at as usize + 5000].copy_from_slice(&bytes);
    }
    file.sync_all().unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    expected
}

/// A loop device, detached in the end.
struct LoopDevice(String);

impl LoopDevice {
    fn on(path: &Path) -> Self {
        let name = tools::run(
            "losetup",
            ["--find".as_ref(), "--show".as_ref(), path.as_os_str()],
        );
        Self(name.trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        tools::run("losetup", ["-d", &self.0]);
    }
}

/// A small file system in memory, unmounted in the end.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn of(size: &str) -> Self {
        let dir = temp();
        let options = format!("size={size}");
        let args = ["-t", "tmpfs", "-o", &options, "loopmount-test"];
        tools::run_command(tools::command("mount").args(args).arg(dir.path()));
        Self(dir)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        tools::umount(self.0.path());
    }
}

#[test]
fn a_sparse_file_keeps_the_contract() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    conformance::check(|| {
        let expected = sparse(&path);
        (read_only(&path).unwrap(), expected)
    });
    conformance::check_writer(|| {
        let expected = sparse(&path);
        (writable(&path).unwrap(), expected)
    });
}

#[test]
fn a_file_on_tmpfs_keeps_the_contract_without_zero_range() {
    let dir = Tmpfs::of("16m");
    let path = dir.0.path().join("disk.raw");
    conformance::check_writer(|| {
        let expected = sparse(&path);
        (writable(&path).unwrap(), expected)
    });
}

#[test]
fn a_block_device_keeps_the_contract() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    // A loop device has whole sectors only.
    let bytes = noise(3 * 65536, 9);
    fs::write(&path, &bytes).unwrap();
    let device = LoopDevice::on(&path);
    let path = PathBuf::from(&device.0);
    let open_device = |mode| {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let file = File::open(&path, mode).unwrap();
        assert!(file.is_block_device());
        (Volume::new(file), bytes.clone())
    };
    conformance::check(|| open_device(OpenMode::ReadOnly));
    conformance::check_writer(|| open_device(OpenMode::Write));
}

#[test]
fn a_mounted_block_device_is_not_opened_for_writing() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    fs::File::create(&path).unwrap().set_len(4 * MIB).unwrap();
    tools::run("mkfs.ext4", ["-q".as_ref(), path.as_os_str()]);
    let device = LoopDevice::on(&path);
    let mount_point = dir.path().join("mnt");
    fs::create_dir(&mount_point).unwrap();
    tools::run_command(
        tools::command("mount")
            .args(["-o", "ro", &device.0])
            .arg(&mount_point),
    );
    let refused = writable(Path::new(&device.0));
    let reader = read_only(Path::new(&device.0));
    tools::umount(&mount_point);
    let report = refused.unwrap_err().report();
    assert!(report.to_string().contains("busy"), "{report}");
    assert!(report.hint.unwrap().contains(&device.0));
    drop(reader.unwrap());
    assert!(writable(Path::new(&device.0)).is_ok());
}

#[test]
fn a_block_device_that_is_in_use_for_a_moment_is_waited_for() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    fs::write(&path, noise(65536, 9)).unwrap();
    let device = LoopDevice::on(&path);
    let name = Path::new(&device.0);
    // As a child does that another thread has forked, until it runs its program.
    let mut exclusive = fs::File::options();
    exclusive.write(true).custom_flags(EXCLUSIVE);
    let waited = (0..20).any(|_| {
        let other = exclusive.open(name).unwrap();
        let soon = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(other);
        });
        let opened = writable(name);
        soon.join().unwrap();
        opened.is_ok()
    });
    assert!(waited);
    let _other = exclusive.open(name).unwrap();
    let refused = writable(name).unwrap_err();
    assert_eq!(refused.kind(), Kind::Io);
}

#[test]
fn an_empty_file_is_a_volume_of_no_bytes() {
    let dir = temp();
    let path = dir.path().join("empty");
    conformance::check(|| {
        fs::write(&path, b"").unwrap();
        (read_only(&path).unwrap(), Vec::new())
    });
}

#[test]
fn what_cannot_hold_an_image_is_refused_by_name_without_waiting() {
    let dir = temp();
    let fifo = dir.path().join("fifo");
    tools::run("mkfifo", [&fifo]);
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let cases = [
        (dir.path().to_owned(), "a directory"),
        (fifo, "a FIFO"),
        (socket, "a socket"),
        (PathBuf::from("/dev/null"), "a character device"),
    ];
    for (path, what) in cases {
        for mode in [OpenMode::ReadOnly, OpenMode::Write] {
            let (send, receive) = std::sync::mpsc::channel();
            let opened = path.clone();
            std::thread::spawn(move || send.send(File::open(&opened, mode)));
            let error = receive
                .recv_timeout(Duration::from_secs(30))
                .expect("opening must not wait")
                .unwrap_err();
            assert_eq!(error.kind(), Kind::NotThisFormat);
            let text = error.to_string();
            assert!(text.contains(what), "{text}");
            assert!(text.contains(path.to_str().unwrap()), "{text}");
        }
    }
    let missing = read_only(&dir.path().join("missing")).unwrap_err();
    assert_eq!(missing.kind(), Kind::Io);
    assert!(missing.report().to_string().contains("No such file"));
}

#[test]
fn the_descriptor_is_not_inherited_and_a_read_only_one_is_not_written() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    sparse(&path);
    let file = File::open(&path, OpenMode::ReadOnly).unwrap();
    let flags = rustix::io::fcntl_getfd(file.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let fd = file.as_fd().try_clone_to_owned().unwrap();
    let error = File::from_fd(fd, "disk.raw", OpenMode::Write).unwrap_err();
    assert_eq!(error.kind(), Kind::ReadOnly);
    assert!(Volume::new(file).writer().is_none());
}

/// The holes within a range, as qemu-img sees them.
fn qemu_holes(path: &Path) -> Vec<(u64, u64)> {
    let mut map = tools::command("qemu-img");
    map.args(["map", "-f", "raw", "--output=json"]).arg(path);
    let map: serde_json::Value = serde_json::from_str(&tools::run_command(&mut map)).unwrap();
    let runs = map.as_array().unwrap().iter();
    runs.filter(|run| run["zero"] == true)
        .map(|run| {
            let start = run["start"].as_u64().unwrap();
            (start, start + run["length"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn holes_are_where_qemu_sees_them() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    sparse(&path);
    let volume = read_only(&path).unwrap();
    let extents = volume
        .extents(ByteRange::between(0, volume.size()))
        .unwrap();
    let ours: Vec<(u64, u64)> = extents
        .runs()
        .iter()
        .filter(|run| run.flags.zero)
        .map(|run| (run.range.start(), run.range.end()))
        .collect();
    assert!(ours.len() >= 2, "no holes in {ours:?}");
    // qemu-img works in sectors and pads the last one.
    let sectors = volume.size().next_multiple_of(512);
    let ours = ours.into_iter().map(|(start, end)| {
        let end = if end == volume.size() { sectors } else { end };
        (start, end)
    });
    assert_eq!(ours.collect::<Vec<_>>(), qemu_holes(&path));
}

#[test]
fn a_file_that_changes_under_a_reader_fails_from_then_on() {
    type Change = fn(&fs::File);
    let changes: [(&str, Change); 4] = [
        ("was written to", |file| {
            file.write_all_at(b"x", 10).unwrap();
        }),
        ("went from 3145828 to 4194304", |file| {
            file.set_len(4 * MIB).unwrap();
        }),
        ("went from 3145828 to 100", |file| {
            file.set_len(100).unwrap();
        }),
        ("was written to", |file| {
            file.set_modified(SystemTime::now()).unwrap();
        }),
    ];
    let dir = temp();
    for (text, change) in changes {
        let path = dir.path().join("disk.raw");
        let expected = sparse(&path);
        let volume = read_only(&path).unwrap();
        assert!(conformance::read_all(&volume) == expected);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        change(&file);
        let error = volume.read_vec(0, 50).unwrap_err();
        assert_eq!(error.kind(), Kind::Changed);
        assert!(error.to_string().contains(text), "{error}");
        // Making it look as before does not help: what was between is not known.
        file.set_len(expected.len() as u64).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let range = ByteRange::between(0, volume.size());
        assert_eq!(volume.read_vec(0, 1).unwrap_err().kind(), Kind::Changed);
        assert_eq!(volume.extents(range).unwrap_err().kind(), Kind::Changed);
    }
}

#[test]
fn a_file_that_shrinks_fails_even_where_bytes_are_missing() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    sparse(&path);
    for mode in [OpenMode::ReadOnly, OpenMode::Write] {
        let volume = Volume::new(File::open(&path, mode).unwrap());
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MIB).unwrap();
        let error = volume.read_vec(2 * MIB, 512).unwrap_err();
        assert_eq!(error.kind(), Kind::Changed, "{error}");
        file.set_len(3 * MIB + 100).unwrap();
    }
}

#[test]
fn reading_and_changing_the_mode_are_no_change() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    let expected = sparse(&path);
    let volume = read_only(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), expected);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&path, dir.path().join("other")).unwrap();
    assert!(conformance::read_all(&volume) == expected);
}

#[test]
fn zero_and_trim_give_space_back() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    fs::write(&path, noise(4 * MIB as usize, 1)).unwrap();
    let blocks = || {
        fs::File::open(&path).unwrap().sync_all().unwrap();
        fs::metadata(&path).unwrap().blocks()
    };
    let full = blocks();
    let volume = writable(&path).unwrap();
    let writer = volume.writer().unwrap();
    let opts = ZeroOpts {
        may_trim: true,
        fast_only: true,
        fua: true,
    };
    let done = writer.zero(ByteRange::between(0, MIB), opts).unwrap();
    assert_eq!(done, Done::Yes);
    let punched = blocks();
    assert!(punched < full, "{punched} of {full}");
    assert!(volume.read_vec(0, MIB as usize).unwrap() == vec![0; MIB as usize]);

    writer.trim(ByteRange::between(MIB, 2 * MIB), true).unwrap();
    assert!(blocks() < punched);

    // Without may_trim the range stays allocated.
    let opts = ZeroOpts::default();
    let before = blocks();
    let range = ByteRange::between(3 * MIB, 4 * MIB);
    assert_eq!(writer.zero(range, opts).unwrap(), Done::Yes);
    assert!(volume.read_vec(3 * MIB, MIB as usize).unwrap() == vec![0; MIB as usize]);
    assert!(blocks() >= before);
    volume.close().unwrap();
}

#[test]
fn a_full_file_system_is_no_space() {
    let dir = Tmpfs::of("64k");
    let path = dir.0.path().join("disk.raw");
    fs::File::create(&path).unwrap().set_len(MIB).unwrap();
    let volume = writable(&path).unwrap();
    let error = volume
        .writer()
        .unwrap()
        .write_at(&noise(512 * 1024, 1), 0, false)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    sparse(&path);
    let first = read_only(&path).unwrap();
    let second = read_only(&path).unwrap();
    let error = writable(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(
        error.to_string().contains("another process reads it"),
        "{error}"
    );
    drop((first, second));

    let writer = writable(&path).unwrap();
    for mode in [OpenMode::ReadOnly, OpenMode::Write] {
        let error = File::open(&path, mode).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(
            error.to_string().contains("another process writes it"),
            "{error}"
        );
        assert!(error.report().hint.unwrap().contains("fuser"));
    }
    drop(writer);
    assert!(writable(&path).is_ok());
}

/// As a child does that was forked meanwhile and has not started its program yet.
#[test]
fn who_holds_a_lock_for_a_moment_only_is_waited_for() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    fs::write(&path, [0; 4096]).unwrap();
    let reader = read_only(&path).unwrap();
    std::thread::scope(|scope| {
        let (sender, told) = std::sync::mpsc::channel();
        scope.spawn(move || {
            told.recv().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(reader);
        });
        sender.send(()).unwrap();
        writable(&path).unwrap();
    });
    // One that failed holds nothing.
    let reader = read_only(&path).unwrap();
    assert_eq!(writable(&path).unwrap_err().kind(), Kind::Denied);
    let second = read_only(&path).unwrap();
    drop((reader, second));
    writable(&path).unwrap();
}

#[test]
fn the_lock_goes_with_a_copy_of_the_descriptor() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    sparse(&path);
    let first = File::open(&path, OpenMode::Write).unwrap();
    let copy = first.as_fd().try_clone_to_owned().unwrap();
    drop(first);
    assert!(writable(&path).is_err());
    // Taking it over again is no conflict with itself.
    let second = File::from_fd(copy, "disk.raw", OpenMode::Write).unwrap();
    assert!(writable(&path).is_err());
    drop(second);
    assert!(writable(&path).is_ok());
}

/// A running qemu-nbd, killed in the end.
struct QemuNbd(Child);

impl QemuNbd {
    fn serve(path: &Path, options: &[&str]) -> Self {
        let socket = path.with_extension("sock");
        let mut command = tools::command("qemu-nbd");
        command.arg("--persistent").args(options);
        command.arg("-k").arg(&socket).arg(path);
        let child = command.stderr(Stdio::inherit()).spawn().unwrap();
        let served = Self(child);
        let until = Instant::now() + Duration::from_secs(30);
        // It listens before it has opened the image, and answers after that.
        let mut client = loop {
            if let Ok(client) = UnixStream::connect(&socket) {
                break client;
            }
            assert!(Instant::now() < until, "qemu-nbd does not start");
            std::thread::sleep(Duration::from_millis(10));
        };
        client
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut greeting = [0; 8];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGIC");
        served
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_qemu_writes_is_refused() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    sparse(&path);
    let qemu = QemuNbd::serve(&path, &["-f", "raw"]);
    for mode in [OpenMode::ReadOnly, OpenMode::Write] {
        let error = File::open(&path, mode).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(
            error.to_string().contains("another process writes it"),
            "{error}"
        );
    }
    drop(qemu);
    assert!(writable(&path).is_ok());
}

#[test]
fn an_image_that_qemu_reads_can_be_read() {
    let dir = temp();
    let path = dir.path().join("disk.qcow2");
    let mut create = tools::command("qemu-img");
    create.args(["create", "-q", "-f", "qcow2"]).arg(&path);
    tools::run_command(create.arg("4M"));
    // The qcow2 driver needs its metadata unchanged, so this reader tolerates no writer.
    let _qemu = QemuNbd::serve(&path, &["-r", "-f", "qcow2"]);
    assert!(read_only(&path).is_ok());
    let error = writable(&path).unwrap_err();
    assert!(
        error.to_string().contains("another process reads it"),
        "{error}"
    );
}

/// What qemu-io says to a command on an image.
fn qemu_io(path: &Path, options: &[&str]) -> (bool, String) {
    let mut command = tools::command("qemu-io");
    let output = command.args(options).arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.success(), text)
}

#[test]
fn qemu_refuses_to_write_what_we_use_and_to_copy_what_we_write() {
    let dir = temp();
    let path = dir.path().join("disk.raw");
    let copy = dir.path().join("copy.raw");
    sparse(&path);
    let convert = || {
        let mut command = tools::command("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "raw"]);
        let output = command.arg(&path).arg(&copy).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let write = || qemu_io(&path, &["-f", "raw", "-c", "write 0 512"]);

    let reader = read_only(&path).unwrap();
    let (done, text) = write();
    assert!(
        !done && text.contains("Failed to get \"write\" lock"),
        "{text}"
    );
    let (done, text) = convert();
    assert!(done, "two readers: {text}");
    drop(reader);

    let writer = writable(&path).unwrap();
    let (done, text) = write();
    assert!(
        !done && text.contains("Failed to get \"write\" lock"),
        "{text}"
    );
    let (done, text) = convert();
    assert!(
        !done && text.contains("Failed to get shared \"write\" lock"),
        "{text}"
    );
    drop(writer);
    // A child that another test has started holds copies of our descriptors, with their locks, until it
    // runs its program.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (done, text) = write();
        if done {
            break;
        }
        let again = text.contains(" lock\n") && Instant::now() < deadline;
        assert!(again, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_file_has_an_identity_until_it_is_changed_whatever_its_date_says() {
    let dir = temp();
    let path = dir.path().join("disk");
    fs::write(&path, noise(5000, 1)).unwrap();
    let identity = || read_only(&path).unwrap().source_identity();
    // It was written just now, so this has waited.
    let first = identity().unwrap();
    assert_eq!(identity().as_ref(), Some(&first));
    let date = fs::metadata(&path).unwrap().modified().unwrap();
    // Other bytes, the same length, the date set back.
    let open = fs::File::options().write(true).open(&path).unwrap();
    open.write_all_at(b"other", 100).unwrap();
    open.set_modified(date).unwrap();
    let second = identity().unwrap();
    assert_ne!(first, second);
    // Another file under the same name.
    fs::write(dir.path().join("new"), noise(5000, 1)).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert!(![first, second].contains(&identity().unwrap()));
}

#[test]
fn what_may_change_without_a_trace_has_no_identity() {
    let dir = temp();
    let path = dir.path().join("disk");
    fs::write(&path, noise(5000, 1)).unwrap();
    assert_eq!(writable(&path).unwrap().source_identity(), None);
    let open = read_only(&path).unwrap();
    fs::write(&path, noise(5000, 2)).unwrap();
    assert_eq!(
        open.source_identity(),
        None,
        "it has changed since it was opened"
    );
    // A file system that keeps whole seconds.
    let coarse = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(coarse)
        .unwrap();
    assert!(
        read_only(&path).unwrap().source_identity().is_some(),
        "its change of status is exact"
    );
    if rustix::process::geteuid().is_root() {
        let device = LoopDevice::on(&path);
        assert_eq!(
            read_only(Path::new(&device.0)).unwrap().source_identity(),
            None
        );
    }
}
