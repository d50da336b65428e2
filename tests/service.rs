//! What else starts the program: mount(8) and fstab, and a service manager.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use common::helper_link::HelperLink;
use common::images::HELLO;
use common::sandbox::{EVERYBODY, with_small_disk};
use common::system::mount_at;
use common::{PATIENCE, Sandbox, Who, until_no_loop};
use rustix::process::Signal;

/// The carried disk, a mount point, and the link for mount(8).
fn with_helper() -> (HelperLink, Sandbox, PathBuf, PathBuf) {
    let (sandbox, image) = with_small_disk(Who::Root);
    let point = sandbox.new_dir("mnt");
    (HelperLink::new(), sandbox, image, point)
}

#[test]
fn mount_takes_the_type_and_a_plain_umount_leaves_nothing() {
    for options in [
        "via=fuse",
        "via=fuse,noexec",
        "via=loop,noexec,noatime",
        "partition=root,cache_size=256M,nofail",
    ] {
        let (_link, sandbox, image, point) = with_helper();
        let mount = sandbox
            .tool("mount")
            .args(["-t", "loopmount", "-o", options]);
        mount.arg(&image).arg(&point).ok();
        let mounted = mount_at(&point).unwrap().options;
        let has = |word: &str| mounted.split(',').any(|option| option == word);
        assert!(has("ro") && has("nosuid") && has("nodev"), "{mounted}");
        for word in ["noexec", "noatime"] {
            assert_eq!(has(word), options.contains(word), "{options}: {mounted}");
        }
        let hello = sandbox.read_text(point.join(HELLO));
        assert!(hello.starts_with("If you can read this"), "{hello}");
        sandbox.tool("umount").arg(&point).ok();
        sandbox.assert_clean();
    }
}

#[test]
fn a_line_of_fstab_is_mounted_and_unmounted() {
    let (_link, sandbox, image, point) = with_helper();
    let line = format!(
        "{} {} loopmount noauto,user,x-systemd.automount,_netdev,partition=2,via=fuse 0 0\n",
        image.display(),
        point.display()
    );
    let fstab = sandbox.new_file("fstab", line);
    sandbox.tool("mount").arg("-T").arg(&fstab).arg(&point).ok();
    assert_eq!(mount_at(&point).unwrap().kind, "fuse.loopmount");
    sandbox.tool("umount").arg(&point).ok();
    sandbox.assert_clean();
}

#[test]
fn rw_alone_does_not_write_and_write_does() {
    let (_link, sandbox, image, point) = with_helper();
    let disk = sandbox.decoded(&image);
    let mount = |options: &str| {
        let mount = sandbox
            .tool("mount")
            .args(["-t", "loopmount", "-o", options]);
        mount.arg(&disk).arg(&point).ok();
    };
    mount("rw");
    sandbox.tool("touch").arg(point.join("new")).fails(1);
    sandbox.tool("umount").arg(&point).ok();
    mount("write");
    sandbox.tool("touch").arg(point.join("new")).ok();
    sandbox.tool("umount").arg(&point).ok();
    mount("ro");
    assert!(point.join("new").exists());
    sandbox.tool("umount").arg(&point).ok();
    // No process of ours has seen the end of these: the next look at the list clears them away.
    until_no_loop(&disk);
    sandbox.loopmount().arg("--list").ok();
    sandbox.assert_clean();
}

#[test]
fn mount_hears_why_not_with_the_codes_it_expects() {
    let (_link, sandbox, image, point) = with_helper();
    let mount = |options: &str, image: &Path| {
        let mount = sandbox
            .tool("mount")
            .args(["-t", "loopmount", "-o", options]);
        mount.arg(image).arg(&point)
    };
    let failed = mount("partition=7", &image).fails(32);
    assert!(
        failed.stderr.contains("has no partition 7"),
        "{}",
        failed.stderr
    );
    let failed = mount("write", &image).fails(32);
    assert!(failed.stderr.contains("xz"), "{}", failed.stderr);
    let empty = sandbox.new_file("empty", "");
    mount("ro", &empty).fails(32);
    let usage = mount("via=pigeon", &image).fails(1);
    assert!(usage.stderr.contains("pigeon"), "{}", usage.stderr);
    mount("ro", &image).arg("-f").ok();
    assert!(mount_at(&point).is_none(), "-f is a dry run");
    sandbox.assert_clean();
}

/// A socket as a service manager has it.
fn manager(sandbox: &Sandbox) -> (UnixDatagram, PathBuf) {
    let path = sandbox.join(format!("notify-{}", sandbox.serial()));
    let socket = UnixDatagram::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (socket, path)
}

fn next(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    // A socket with a deadline is not waited for again by the system after the process was stopped.
    let len = loop {
        match socket.recv(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => break other.unwrap(),
        }
    };
    String::from_utf8(bytes[..len].to_vec()).unwrap()
}

#[test]
fn the_service_manager_hears_ready_and_stopping() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let disk = sandbox.decoded(&image);
        // The second one is the kernel's alone when root asks.
        for image in [&image, &disk] {
            let (socket, path) = manager(&sandbox);
            let point = sandbox.new_dir(format!("mnt{}", sandbox.serial()));
            let running = sandbox
                .loopmount()
                .arg("--foreground")
                .arg(image)
                .arg(&point)
                .env("NOTIFY_SOCKET", &path)
                .spawn();
            assert_eq!(next(&socket), "READY=1");
            assert!(
                mount_at(&point).is_some(),
                "{who:?}: ready before the mount"
            );
            running.signal(Signal::TERM);
            assert_eq!(next(&socket), "STOPPING=1");
            running.wait().expect(0);
            assert!(mount_at(&point).is_none());
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_start_that_fails_is_never_ready() {
    let sandbox = Sandbox::new(Who::User);
    let (socket, path) = manager(&sandbox);
    let image = sandbox.new_file("nothing", "nothing that we know");
    let point = sandbox.new_dir("mnt");
    let failed = sandbox
        .loopmount()
        .arg("--foreground")
        .arg(&image)
        .arg(&point);
    failed.env("NOTIFY_SOCKET", &path).fails(1);
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err());
}

/// The words of a unit's `ExecStart`, with what its environment file says put in as systemd does:
/// `$NAME` becomes several words, `${NAME}` one.
fn exec_start(unit: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .unwrap();
    let value = |name: &str| {
        let found = environment.iter().find(|(have, _)| *have == name);
        found.unwrap_or_else(|| panic!("{name} is not set")).1
    };
    line.split(' ')
        .flat_map(|word| match word.strip_prefix('$') {
            None => vec![word.to_owned()],
            Some(name) => match name.strip_prefix('{') {
                Some(name) => vec![value(name.trim_end_matches('}')).to_owned()],
                None => value(name).split_whitespace().map(str::to_owned).collect(),
            },
        })
        .collect()
}

#[test]
fn the_unit_of_contrib_starts_and_stops() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let unit = fs::read_to_string(manifest.join("contrib/systemd/loopmount@.service")).unwrap();
    assert!(unit.contains("\nType=notify\n"));
    let (sandbox, image) = with_small_disk(Who::Root);
    let point = sandbox.new_dir("mount point");
    let words = exec_start(
        &unit,
        &[
            ("IMAGE", image.to_str().unwrap()),
            ("TARGET", point.to_str().unwrap()),
            ("OPTIONS", "--via fuse -P root"),
        ],
    );
    assert_eq!(words[0], "/usr/bin/loopmount");
    let (socket, path) = manager(&sandbox);
    let running = sandbox
        .loopmount()
        .args(&words[1..])
        .env("NOTIFY_SOCKET", &path)
        .spawn();
    assert_eq!(next(&socket), "READY=1");
    assert_eq!(mount_at(&point).unwrap().kind, "fuse.loopmount");
    running.signal(Signal::TERM);
    running.wait().expect(0);
}

#[test]
fn messages_of_the_command_are_printed_when_asked_for() {
    let (sandbox, image) = with_small_disk(Who::User);
    let info = || sandbox.loopmount().arg("--info").arg(&image);
    assert_eq!(info().ok().stderr, "");
    assert!(info().arg("-v").ok().stderr.contains("DEBUG"));
    for (variable, expected) in [
        ("debug", true),
        ("warn,nbdserve=debug", true),
        ("off", false),
        ("error", false),
    ] {
        // It overrules -v.
        let command = info().arg("-v").env("LOOPMOUNT_LOG", variable);
        let printed = command.ok().stderr;
        assert_eq!(printed.contains("DEBUG"), expected, "{variable}: {printed}");
    }
    let without = info().env("LOOPMOUNT_LOG", "debug").ok().stderr;
    assert!(without.contains("DEBUG"), "{without}");
}

#[test]
fn messages_of_the_processes_that_stay_are_in_the_log() {
    for (setting, expected) in [(&["-v"][..], true), (&[], false)] {
        let (sandbox, image) = with_small_disk(Who::User);
        let point = sandbox.mount(setting, &image, "mnt");
        let log = sandbox.state_dir().join(sandbox.unit_id()).join("log");
        let text = sandbox.read_text(log);
        assert_eq!(text.contains("DEBUG"), expected, "{setting:?}: {text}");
        sandbox.unmount(&point);
    }
}
