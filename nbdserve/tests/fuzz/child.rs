//! A target in a child process: how it is started, what it does there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nbdserve::testing::Rng;
use nbdserve::testing::fuzz;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Set in the child.
pub(crate) const CHILD: &str = "NBDSERVE_FUZZ_TARGET";
/// Private memory of the child in bytes: the test program itself, the threads' stacks, the input,
/// a few copies of it, and `fuzz::CACHE`.
pub(crate) const MEMORY: u64 = 128 << 20;
/// Mutations of each seed.
const ROUNDS: u64 = 60;

/// Runs `target` over `seeds` and mutations of them, in a child: this same test once more, with
/// [`CHILD`] set. It is called as the target is, in the module `module`.
#[track_caller]
pub(crate) fn fuzz(module: &str, target: &str, seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    if std::env::var_os(CHILD).is_some() {
        limit_memory();
        return take_all(target);
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, seed) in seeds().iter().enumerate() {
        fs::write(dir.path().join(format!("{number:03}")), seed).unwrap();
    }
    for kept in kept_inputs(target) {
        fs::copy(&kept, dir.path().join(kept.file_name().unwrap())).unwrap();
    }
    let (_, module) = module.split_once("::").unwrap();
    let output = child(&format!("{module}::{target}"), dir.path());
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    let done = output.status.success() && out.contains(&done(target));
    assert!(done, "{target}: {}\n{out}{err}", output.status);
}

/// Runs the test called `test` in a process of its own.
pub(crate) fn child(test: &str, dir: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        // A backtrace needs more memory than the child has.
        .env("RUST_BACKTRACE", "0")
        .current_dir(dir)
        .output()
        .unwrap()
}

pub(crate) fn limit_memory() {
    let limit = Rlimit {
        current: Some(MEMORY),
        maximum: Some(MEMORY),
    };
    setrlimit(Resource::Data, limit).unwrap();
}

/// The last thing that a child prints.
pub(crate) fn done(target: &str) -> String {
    format!("{target}: all inputs were taken")
}

/// Inputs that once showed an error.
fn kept_inputs(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz-inputs")
        .join(target);
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The child's work: every file in its folder, and mutations of each.
fn take_all(target: &str) {
    let rounds = std::env::var("NBDSERVE_FUZZ_ROUNDS").map_or(1, |n| n.parse().unwrap());
    let mut names: Vec<_> = fs::read_dir(".")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for name in names {
        let seed = fs::read(&name).unwrap();
        run(target, &seed);
        let mut rng = Rng::new(seed.len() as u64);
        for _ in 0..ROUNDS * rounds {
            run(target, &mutated(&seed, &mut rng));
        }
    }
    println!("{}", done(target));
}

pub(crate) fn run(target: &str, input: &[u8]) {
    // What ends the process, as an allocation that fails does, leaves no time to keep its input.
    if let Some(path) = std::env::var_os("NBDSERVE_FUZZ_LAST") {
        fs::write(path, input).unwrap();
    }
    let result = std::panic::catch_unwind(|| fuzz::run(target, input));
    if let Err(panic) = result {
        // Kept where the next run will find it, once it was looked at.
        let path = std::env::temp_dir().join(format!("nbdserve-fuzz-{target}"));
        fs::write(&path, input).unwrap();
        eprintln!("input: {} bytes in {}", input.len(), path.display());
        std::panic::resume_unwind(panic);
    }
}

/// `seed` with a few changes, most of them near its ends, where formats keep their headers.
fn mutated(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=rng.below(4) {
        let len = bytes.len() as u64;
        let near = len.min(1 << rng.below(14));
        let at = match rng.below(3) {
            0 => rng.below(near),
            1 => len - near + rng.below(near),
            _ => rng.below(len),
        } as usize;
        let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) else {
            continue;
        };
        match rng.below(7) {
            0 => rest[0] ^= 1 << rng.below(8),
            1 => rest[0] = rng.next_u64() as u8,
            2 => rest[0] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5) as usize],
            3 => {
                // A whole number of an extreme value.
                let width = [2, 4, 8][rng.below(3) as usize].min(rest.len());
                rest[..width].fill([0, 0xff][rng.below(2) as usize]);
            }
            4 => {
                let width = 8.min(rest.len());
                rest[..width].copy_from_slice(&rng.next_u64().to_le_bytes()[..width]);
            }
            5 => bytes.truncate(at),
            _ => {
                // A part of the file in the place of another.
                let from = rng.below(len) as usize;
                let width = (rng.below(512) as usize).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + width, at);
            }
        }
    }
    bytes
}
