//! The fuzz targets over real files and a bounded number of mutations of them.
//!
//! Each test runs its target in a child process whose memory is limited, so that an allocation
//! which an image asks for and nothing bounds ends the child. Work is bounded by count. Mutations
//! are drawn from the same numbers in every run; the files are not the same ones where a tool writes
//! the time or a random UUID into them, so an input that fails is kept, and its place printed.
//! `NBDSERVE_FUZZ_ROUNDS=100` makes a hundred times as many. With `NBDSERVE_FUZZ_LAST=FILE` the input
//! that is tried is in FILE.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Fuzzes a target; in the test that is called as the target is.
macro_rules! fuzz {
    ($target:literal, $seeds:expr) => {
        crate::child::fuzz(module_path!(), $target, $seeds)
    };
}

mod archives;
mod child;
mod disks;
mod file_systems;
mod luks;
#[path = "../lvm/forge.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod lvm_forge;
mod made;
mod network;
mod packed;
mod probing;
#[path = "../raid/forge.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod raid_forge;
mod volumes;

use std::fs;
use std::path::Path;

use nbdserve::testing::fuzz::TARGETS;

use crate::child::{CHILD, MEMORY, child, done, limit_memory};

#[test]
fn a_child_that_takes_more_memory_than_allowed_is_a_failure() {
    if std::env::var_os(CHILD).is_some() {
        limit_memory();
        let hog = vec![1_u8; MEMORY as usize];
        println!("{} {}", hog[hog.len() / 2], done("hog"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "a_child_that_takes_more_memory_than_allowed_is_a_failure";
    let output = child(test, dir.path());
    assert!(!output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains(&done("hog")));
}

#[test]
fn every_target_has_a_program_and_a_test() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut programs: Vec<_> = fs::read_dir(manifest.join("fuzz/fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_owned())
        .collect();
    programs.sort();
    let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    targets.sort_unstable();
    assert_eq!(programs, targets);
    let cargo = fs::read_to_string(manifest.join("fuzz/Cargo.toml")).unwrap();
    let tests: String = fs::read_dir(manifest.join("tests/fuzz"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for name in targets {
        assert!(cargo.contains(&format!("name = \"{name}\"")), "{name}");
        let test = format!("fuzz!(\"{name}\", ");
        assert!(tests.contains(&test), "{name}");
    }
}
