//! What seeds are made of.

use std::fs;
use std::path::Path;

use nbdserve::testing::{noise, tools};

/// A file with something to compress in it: text, noise, zeroes.
pub(crate) fn content() -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 0..6000 {
        bytes.extend(format!("line {n}\n").bytes());
    }
    bytes.extend(noise(20_000, 1));
    bytes.resize(bytes.len() + 40_000, 0);
    bytes
}

pub(crate) fn xz(dir: &Path, content: &[u8], options: &[&str]) -> Vec<u8> {
    compressed("xz", dir, content, options)
}

pub(crate) fn compressed(program: &str, dir: &Path, content: &[u8], options: &[&str]) -> Vec<u8> {
    let file = dir.join("content");
    fs::write(&file, content).unwrap();
    let output = tools::command(program)
        .args(["-c", "-k"])
        .args(options)
        .arg(&file)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{program} {options:?}");
    output.stdout
}

/// A sparse file of `len` bytes, worked on by a tool, which is given its path last.
pub(crate) fn made_by(len: usize, program: &str, args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    fs::write(&file, vec![0; len]).unwrap();
    tools::run_command(tools::command(program).args(args).arg(&file));
    fs::read(&file).unwrap()
}
