//! What is known of units: `--list`, and the folders where their state is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::json;
use common::run::send_signal;
use common::sandbox::{SERVED, with_small_disk};
use common::system::mount_at;
use common::{Sandbox, Who, must, until};
use rustix::process::Signal;

fn name_of_only_entry(dir: &Path) -> String {
    let names: Vec<_> = fs::read_dir(dir).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].file_name().into_string().unwrap()
}

#[test]
fn list_shows_what_is_mounted() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        let id = sandbox.unit_id();
        let text = sandbox.loopmount().arg("--list").ok().out();
        let of_ours = |line: &&str| line.contains(image.to_str().unwrap());
        let line = text.lines().find(of_ours).expect("it is listed").to_owned();
        assert!(
            line.contains(&id) && line.contains(point.to_str().unwrap()),
            "{line}"
        );
        let list = sandbox.loopmount().args(["--list", "--json"]).ok().out();
        json::has(
            &json::parse(&list),
            &[&id, image.to_str().unwrap(), point.to_str().unwrap(), via],
        );
        sandbox.unmount(&point);
        let text = sandbox.loopmount().arg("--list").ok().out();
        assert!(!text.contains(&id), "{text}");
    }
}

#[test]
fn state_folders_are_private() {
    for (who, via) in SERVED {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.mount(&["--via", via], &image, "mnt");
        let unit = sandbox.state_dir().join(sandbox.unit_id());
        for dir in [&sandbox.state_dir(), &unit] {
            let mode = fs::metadata(dir).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, 0o700, "{}", dir.display());
        }
        sandbox.unmount(&point);
    }
}

#[test]
fn without_a_runtime_folder_the_state_is_in_tmp_and_must_be_our_own() {
    let (sandbox, image) = with_small_disk(Who::User);
    let uid = fs::metadata(&image).unwrap().uid();
    let state = PathBuf::from(format!("/tmp/loopmount-{uid}"));
    let _ = fs::remove_dir_all(&state);
    let point = sandbox.new_dir("mnt");
    let loopmount = || sandbox.loopmount().env_remove("XDG_RUNTIME_DIR");

    loopmount().arg(&image).arg(&point).ok();
    let meta = fs::metadata(&state).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (uid, 0o700));
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    loopmount().arg("-u").arg(&point).ok();
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    fs::remove_dir(&state).unwrap();

    // Somebody else was there first, and left the record of a unit that made its target.
    let raw = sandbox.join("raw");
    loopmount().arg("--fuse").arg(&image).arg(&raw).ok();
    let id = name_of_only_entry(&state);
    let record = fs::read(state.join(&id).join("unit.json")).unwrap();
    loopmount().arg("-u").arg(&raw).ok();
    assert!(!raw.exists(), "a unit removes what it has made");
    fs::remove_dir(&state).unwrap();
    let raw = sandbox.new_file("raw", "");
    let unit = state.join(&id);
    fs::create_dir_all(&unit).unwrap();
    fs::write(unit.join("unit.json"), record).unwrap();
    must(Command::new("mkfifo").arg(unit.join("lock")));
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = loopmount().arg(&image).arg(&point).run();
    let listed = loopmount().arg("--list").run();
    fs::remove_dir_all(&state).unwrap();
    refused.expect(1).says(&[state.to_str().unwrap()]);
    let listed = listed.expect(0);
    assert!(!listed.out().contains(&id));
    assert!(raw.exists(), "somebody else had it removed");

    // They know the ids of all that is mounted.
    let point = sandbox.mount(&[], &image, "other");
    let id = sandbox.unit_id();
    let unit = state.join(&id);
    fs::create_dir_all(&unit).unwrap();
    must(Command::new("mkfifo").arg(unit.join("unit.json")));
    must(Command::new("mkfifo").arg(unit.join("lock")));
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    let listed = loopmount().arg("--list").run();
    let unmounted = loopmount().arg("-u").arg(&point).run();
    fs::remove_dir_all(&state).unwrap();
    let listed = listed.expect(0).out();
    let line = listed.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.ends_with("mounted"), "{line}");
    unmounted.expect(0);
    sandbox.assert_clean();
}

#[test]
fn a_unit_whose_state_is_elsewhere_is_no_dead_one() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.mount(&[], &image, "mnt");
    let id = sandbox.unit_id();
    let run = sandbox.new_dir("other-run");
    let elsewhere = || sandbox.loopmount().env("XDG_RUNTIME_DIR", &run);
    let state = || {
        let list = elsewhere().arg("--list").ok().out();
        let line = list.lines().find(|line| line.contains(&id));
        line.and_then(|line| line.split_whitespace().last().map(str::to_owned))
    };
    assert_eq!(state().as_deref(), Some("mounted"));
    let server = sandbox.processes_of("__serve")[0].pid;
    let list = elsewhere().args(["--list", "--json"]).ok().out();
    json::has(&json::parse(&list), &[&id, &server.to_string()]);
    elsewhere()
        .args(["--stats", &id])
        .fails(1)
        .says(&["state in another folder", "hint: set XDG_RUNTIME_DIR"]);

    // The image is free when the command has returned.
    elsewhere().arg("-u").arg(&point).ok();
    assert_eq!(sandbox.processes_of("__serve").len(), 0);
    assert_eq!(state(), None);
    sandbox.assert_clean();

    let point = sandbox.mount(&[], &image, "again");
    let id = sandbox.unit_id();
    for process in sandbox.processes() {
        send_signal(process.pid, Signal::STOP);
    }
    for process in sandbox.processes() {
        send_signal(process.pid, Signal::KILL);
    }
    until("both are gone", || sandbox.processes().is_empty());
    let list = elsewhere().arg("--list").ok().out();
    let line = list.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.ends_with("dead"), "{line}");
    elsewhere().arg("-u").arg(&point).ok();
    assert!(mount_at(&point).is_none());
    // The state folder goes when somebody looks who sees it.
    sandbox.loopmount().arg("--list").ok();
    sandbox.assert_clean();
}

#[test]
fn the_units_of_others_are_not_listed() {
    let (roots, image) = with_small_disk(Who::Root);
    let point = roots.mount(&["--via", "fuse"], &image, "mnt");
    let id = roots.unit_id();
    let user = Sandbox::new(Who::User);
    let listed = user.loopmount().args(["--list", "--json"]).ok().out();
    assert!(!listed.contains(&id), "{listed}");
    let unmount = user.loopmount().arg("-u").arg(&point);
    unmount
        .fails(3)
        .says(&["the loopmount of another user", "hint: they take it down"]);
    assert!(mount_at(&point).is_some());
    roots.unmount(&point);
}
