//! Mount points of every kind, as root, as an ordinary user, and in a user namespace.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod common;

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mounted, PATIENCE, sh, source, unmount};
use nbdfuse::file::{FileOptions, serve_file};
use nbdfuse::mount::{self, Mode, MountOptions, Unmounted};
use nbdfuse::tree::TreeOptions;
use nbdserve::Kind;
use nbdserve::source::Memory;
use nbdserve::testing::Counting;

/// Set in the process that plays the ordinary user.
const ROLE: &str = "NBDFUSE_TEST_ROLE";
/// The folder that it may use.
const FOLDER: &str = "NBDFUSE_TEST_FOLDER";

/// Names that break careless code.
const NAMES: [&str; 6] = [
    "with space",
    "new\nline",
    "-o allow_other",
    "--",
    "back\\slash\t,comma",
    "ünïcode",
];

fn file_in(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, "").unwrap();
    path
}

fn bytes() -> Vec<u8> {
    b"through the mount".repeat(1000)
}

/// The line of the mount table with `source`, in its fields.
fn table_line(source: &str) -> Option<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(&format!(" {source} ")))?;
    Some(line.split(' ').map(str::to_owned).collect())
}

fn mounts_on_every_name(folder: &Path) {
    for name in NAMES {
        let path = file_in(folder, name);
        let mounted = Mounted::file(Memory::volume(bytes()), &path, false);
        assert!(fs::read(&path).unwrap() == bytes(), "{name:?}");
        mounted.unmount();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0, "{name:?}");
        fs::remove_file(&path).unwrap();
    }
}

fn mounts_on_relative_paths(folder: &Path) {
    std::env::set_current_dir(folder).unwrap();
    file_in(folder, "-x");
    fs::create_dir(folder.join("inner")).unwrap();
    for path in ["-x", "./-x", "inner/../-x"] {
        let mounted = Mounted::file(Memory::volume(bytes()), Path::new(path), false);
        assert!(fs::read(path).unwrap() == bytes(), "{path}");
        mounted.unmount();
    }
    std::env::set_current_dir("/").unwrap();
}

fn tells_busy_from_done_and_from_absent(folder: &Path) {
    let path = file_in(folder, "busy");
    let mounted = Mounted::file(Memory::volume(bytes()), &path, false);
    let open = fs::File::open(&path).unwrap();
    let unmount = |mode| mount::unmount(&path, mode).unwrap();
    assert_eq!(unmount(Mode::Normal), Unmounted::Busy);
    assert_eq!(unmount(Mode::Lazy), Unmounted::Done);
    assert_eq!(unmount(Mode::Normal), Unmounted::NotMounted);
    drop(open);
    mounted.session.shutdown(PATIENCE).unwrap();
}

#[test]
fn every_name_of_a_mount_point_works() {
    let dir = tempfile::tempdir().unwrap();
    mounts_on_every_name(dir.path());
    tells_busy_from_done_and_from_absent(dir.path());
}

#[test]
fn relative_mount_points_work() {
    // The working directory is the process's: this test has one of its own.
    let dir = tempfile::tempdir().unwrap();
    as_role("relative_mount_points_work", dir.path(), &[], |folder| {
        mounts_on_relative_paths(folder);
    });
}

#[test]
fn the_mount_table_shows_source_type_and_restrictions() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path(), "raw");
    let opts = MountOptions::new(source(), false);
    let fd = mount::mount(&path, &opts).unwrap();
    let line = table_line(&opts.source).unwrap();
    assert!(line.contains(&"fuse.loopmount".to_owned()), "{line:?}");
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(
            line[5].split(',').any(|have| have == flag),
            "{flag}: {line:?}"
        );
    }
    assert!(!line.concat().contains("allow_other"), "{line:?}");
    // A mount whose descriptor is closed answers with an error, and can still be unmounted.
    drop(fd);
    let dead = fs::metadata(&path).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
    unmount(&path);
}

#[test]
fn root_sets_how_far_the_kernel_reads_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path(), "raw");
    let opts = MountOptions::new(source(), false);
    let fd = mount::mount(&path, &opts).unwrap();
    let look = FileOptions::new("test");
    let (volume, counts) = Counting::volume(Memory::volume(vec![1; 8 << 20]));
    let session = serve_file(volume, fd, &look).unwrap();
    mount::set_read_ahead(&opts.source, 1 << 20).unwrap();
    // It reads less at a time when it is short of memory: then it is asked again.
    let longest = || counts.read_ranges().iter().map(|read| read.len()).max();
    let reached = (0..100).any(|_| {
        session.invalidate_all();
        fs::read(&path).unwrap();
        longest() >= Some(1 << 20)
    });
    assert!(reached, "{:?}", longest());
    assert_eq!(longest(), Some(1 << 20));
    let absent = mount::set_read_ahead("loopmount:absent", 1 << 20).unwrap_err();
    assert_eq!(absent.kind(), Kind::Io);
    unmount(&path);
    session.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_dead_mount_is_told_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path(), "raw");
    drop(mount::mount(&path, &MountOptions::new(source(), false)).unwrap());
    let refused = mount::mount(&path, &MountOptions::new(source(), false)).unwrap_err();
    let hint = refused.report().hint.unwrap();
    assert!(hint.contains("loopmount -u"), "{hint}");
    unmount(&path);
}

#[test]
fn no_child_inherits_the_connection_and_an_idle_mount_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let test = "no_child_inherits_the_connection_and_an_idle_mount_is_small";
    as_role(test, dir.path(), &["env"], |folder| {
        let path = file_in(folder, "raw");
        let mounted = Mounted::file(Memory::volume(vec![1; 1 << 20]), &path, false);
        fs::read(&path).unwrap();
        let descriptors = sh("ls -l /proc/self/fd", &[]);
        assert!(!descriptors.contains("/dev/fuse"), "{descriptors}");
        let ours = sh(&format!("ls -l /proc/{}/fd", std::process::id()), &[]);
        assert!(ours.contains("/dev/fuse"), "{ours}");
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("RssAnon:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        // With the image's own MiB, its copies in the test, and the test's harness.
        assert!(kib < 8 << 10, "{line}");
        mounted.unmount();
    });
}

#[test]
fn a_name_for_the_mount_table_cannot_smuggle_options() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path(), "raw");
    for name in ["a,allow_other", "", "a b", "a\nb", "a\\"] {
        let refused = mount::mount(&path, &MountOptions::new(name, false)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported, "{name:?}");
    }
}

#[test]
fn a_mount_follows_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path(), "real");
    fs::create_dir(dir.path().join("folder")).unwrap();
    file_in(dir.path(), "folder/real");
    symlink(&path, dir.path().join("link")).unwrap();
    symlink("folder", dir.path().join("way")).unwrap();
    for link in ["link", "way/real"] {
        let opts = MountOptions::new(source(), false);
        let refused = mount::mount(&dir.path().join(link), &opts).unwrap_err();
        let hint = refused.report().hint.unwrap();
        assert!(hint.contains("symbolic link"), "{refused} {hint}");
        assert_eq!(table_line(&opts.source), None);
    }
}

#[test]
fn an_unmount_is_not_led_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let make = |folder: &str| {
        fs::create_dir(dir.path().join(folder)).unwrap();
        let path = file_in(&dir.path().join(folder), "raw");
        Mounted::file(Memory::volume(bytes()), &path, false)
    };
    let (mine, other) = (make("mine"), make("other"));
    // The owner of the folder has a link to another one put in its place.
    fs::rename(dir.path().join("mine"), dir.path().join("moved")).unwrap();
    symlink("other", dir.path().join("mine")).unwrap();
    let link = dir.path().join("link");
    symlink(&other.path, &link).unwrap();
    for mode in [Mode::Normal, Mode::Lazy] {
        for path in [&mine.path, &link] {
            let outcome = mount::unmount(path, mode).unwrap();
            assert_eq!(outcome, Unmounted::NotMounted, "{mode:?} {path:?}");
        }
    }
    assert!(fs::read(&other.path).unwrap() == bytes());
    other.unmount();
    unmount(&dir.path().join("moved/raw"));
    mine.session.shutdown(PATIENCE).unwrap();
}

/// Two mounts, one over the other, that nobody serves, and their numbers in the mount table.
fn pile(path: &Path) -> [(OwnedFd, u64); 2] {
    [(); 2].map(|()| {
        let opts = MountOptions::new(source(), true);
        // Not by mount::mount, which would look whether the lower one is empty.
        let fd = fs::File::options().read(true).write(true).open("/dev/fuse");
        let fd = OwnedFd::from(fd.unwrap());
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", fd.as_raw_fd());
        let data = CString::new(data).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(opts.source.as_str(), path, "fuse", flags, Some(&*data)).unwrap();
        let id = table_line(&opts.source).unwrap()[0].parse().unwrap();
        (fd, id)
    })
}

#[test]
fn only_the_mount_that_is_meant_is_taken_away_and_its_server_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mnt");
    fs::create_dir(&path).unwrap();
    let [(_lower, lower), (_upper, upper)] = pile(&path);
    // Nobody answers: a request to either of them would wait for ever.
    for mode in [Mode::Normal, Mode::Lazy] {
        let outcome = mount::unmount_only(&path, lower, mode).unwrap();
        assert_eq!(outcome, Unmounted::NotMounted, "below");
    }
    let outcome = mount::unmount_only(&path, upper, Mode::Normal).unwrap();
    assert_eq!(outcome, Unmounted::Done);
    // As one would who has looked before.
    for mode in [Mode::Normal, Mode::Lazy] {
        let outcome = mount::unmount_only(&path, upper, mode).unwrap();
        assert_eq!(outcome, Unmounted::NotMounted, "gone");
    }
    let outcome = mount::unmount_only(&path, lower, Mode::Lazy).unwrap();
    assert_eq!(outcome, Unmounted::Done);
}

#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    let dir = tempfile::tempdir().unwrap();
    let test = "an_ordinary_user_mounts_through_the_helper";
    as_role(test, dir.path(), &NOBODY, |folder| {
        assert_eq!(rustix::process::geteuid().as_raw(), 65534);
        mounts_on_every_name(folder);
        mounts_on_relative_paths(folder);
        tells_busy_from_done_and_from_absent(folder);

        let refused = mount::mount(Path::new("/var"), &over(true)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Denied);
        let report = refused.report();
        assert!(report.what.contains("fusermount3"), "{report}");
        assert_eq!(
            report.hint.as_deref(),
            Some("name a mount point that is yours")
        );
        let open_to_all = MountOptions {
            allow_other: true,
            ..over(true)
        };
        let refused = mount::mount(folder, &open_to_all).unwrap_err();
        let hint = refused.report().hint.unwrap();
        assert!(hint.contains("/etc/fuse.conf"), "{hint}");
        let missing = mount::mount(&folder.join("missing"), &over(true)).unwrap_err();
        assert!(missing.to_string().contains("missing"), "{missing}");
    });
}

fn over(is_dir: bool) -> MountOptions {
    MountOptions {
        over_non_empty: true,
        ..MountOptions::new(source(), is_dir)
    }
}

#[test]
fn an_ordinary_user_reads_all_of_their_own_tree() {
    let dir = tempfile::tempdir().unwrap();
    let test = "an_ordinary_user_reads_all_of_their_own_tree";
    if !plays(test) {
        make_tree_image(dir.path());
    }
    as_role(test, dir.path(), &NOBODY, |folder| {
        let target = folder.join("tree");
        fs::create_dir(&target).unwrap();
        let volume = Memory::volume(fs::read(folder.join("image")).unwrap());
        let mounted = Mounted::tree(volume, &target);
        let secret = target.join("secret");
        assert_eq!(fs::read(secret.join("file")).unwrap(), b"hidden\n");
        let meta = fs::metadata(&secret).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (4242, 0));
        let mut names = vec![0; 1000];
        let len = rustix::fs::listxattr(target.join("etc"), &mut names).unwrap();
        assert_eq!(&names[..len], b"user.u\0");
        let refused = fs::write(target.join("new"), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        mounted.unmount();
    });
}

/// An ext4 image with a folder that only its strange owner could enter, and attributes.
fn make_tree_image(folder: &Path) {
    sh(
        r#"mkdir "$2"; cd "$2"; mkdir -p etc usr secret; echo hidden > secret/file
        setfattr -n trusted.t -v 1 etc; setfattr -n user.u -v 1 etc
        chmod 000 secret/file secret; chown -R 4242:4242 secret
        truncate -s 8M "$1"; mke2fs -q -F -t ext4 -d "$2" "$1"; chmod 644 "$1""#,
        &[&folder.join("image"), &folder.join("source")],
    );
}

#[test]
fn a_mount_open_to_all_keeps_owners_and_modes_in_force() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    make_tree_image(dir.path());
    let target = dir.path().join("tree");
    fs::create_dir(&target).unwrap();
    let volume = Memory::volume(fs::read(dir.path().join("image")).unwrap());
    let opts = MountOptions {
        allow_other: true,
        ..MountOptions::new(source(), true)
    };
    let fd = mount::mount(&target, &opts).unwrap();
    let name = "test".to_owned();
    let tree = nbdfuse::tree::open("ext4", volume).unwrap();
    let session = nbdfuse::tree::serve_tree(tree, fd, &TreeOptions { name }).unwrap();
    let as_nobody = r#"setpriv --reuid=65534 --regid=65534 --clear-groups "$@""#;
    let list = |what: &Path| common::try_sh(as_nobody, &[Path::new("ls"), what]);
    assert!(list(&target).status.success());
    let refused = list(&target.join("secret"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("Permission denied"), "{said}");
    // Root may, as on any file system.
    assert_eq!(fs::read(target.join("secret/file")).unwrap(), b"hidden\n");
    unmount(&target);
    session.shutdown(PATIENCE).unwrap();
}

#[test]
fn the_owner_of_a_user_namespace_mounts_without_the_helper() {
    let dir = tempfile::tempdir().unwrap();
    let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
    let wrapper = [&NOBODY[..], &unshare].concat();
    let test = "the_owner_of_a_user_namespace_mounts_without_the_helper";
    as_role(test, dir.path(), &wrapper, |folder| {
        assert_eq!(rustix::process::geteuid().as_raw(), 0);
        // The helper would fail here: nothing but the way that needs none is left.
        let path = file_in(folder, "raw");
        let mounted = Mounted::file(Memory::volume(bytes()), &path, false);
        assert!(fs::read(&path).unwrap() == bytes());
        mounted.unmount();
    });
}

#[test]
fn without_the_helper_the_error_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    // A mount namespace in which the helper is hidden.
    let hide =
        "for f in /usr/bin/fusermount3 /usr/bin/fusermount /bin/fusermount3 /bin/fusermount; do
            if [ -e $f ]; then mount --bind /dev/null $f; fi; done
        exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-euc", hide, "sh"];
    let test = "without_the_helper_the_error_says_what_to_install";
    as_role(test, dir.path(), &wrapper, |folder| {
        let path = file_in(folder, "raw");
        let refused = mount::mount(&path, &MountOptions::new(source(), false)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        let hint = refused.report().hint.unwrap();
        assert!(hint.contains("apt install fuse3"), "{hint}");
    });
}

#[test]
fn without_the_right_to_the_device_the_error_says_what_to_allow() {
    let dir = tempfile::tempdir().unwrap();
    let hide =
        "mount -t tmpfs none /dev; mknod -m 600 /dev/fuse c 10 229; mknod -m 666 /dev/null c 1 3
        exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-euc", hide, "sh"];
    let test = "without_the_right_to_the_device_the_error_says_what_to_allow";
    as_role(test, dir.path(), &wrapper, |folder| {
        let path = file_in(folder, "raw");
        let refused = mount::mount(&path, &MountOptions::new(source(), false)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Denied);
        let hint = refused.report().hint.unwrap();
        assert!(hint.contains("chmod 666 /dev/fuse"), "{hint}");
    });
}

#[test]
fn without_the_device_the_error_says_what_to_load() {
    let dir = tempfile::tempdir().unwrap();
    let hide = "mount -t tmpfs none /dev; exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-euc", hide, "sh"];
    let test = "without_the_device_the_error_says_what_to_load";
    as_role(test, dir.path(), &wrapper, |folder| {
        let path = file_in(folder, "raw");
        let refused = mount::mount(&path, &MountOptions::new(source(), false)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        let hint = refused.report().hint.unwrap();
        assert!(hint.contains("modprobe fuse"), "{hint}");
    });
}

const NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

/// Whether this process is the second half of `test`.
fn plays(test: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|role| role == test)
}

/// Runs `play`, the second half of `test`, in a process of its own that `wrapper` starts. That
/// process is this program again, told by its environment.
fn as_role(test: &str, folder: &Path, wrapper: &[&str], play: impl FnOnce(&Path)) {
    if plays(test) {
        play(Path::new(&std::env::var(FOLDER).unwrap()));
        return;
    }
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("program");
    // By another process: what a child that another thread forks now holds open for writing cannot be
    // executed.
    let copied = Command::new("cp")
        .arg(std::env::current_exe().unwrap())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    std::os::unix::fs::chown(folder, Some(65534), Some(65534)).unwrap();
    let mut words = wrapper.to_vec();
    let program = program.to_str().unwrap();
    words.extend([program, "--exact", test, "--nocapture", "--test-threads=1"]);
    let output = Command::new(words[0])
        .args(&words[1..])
        .env(ROLE, test)
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
