//! Disks made by tools, and by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nbdserve::layer::partition::{Table, read_table};
use nbdserve::source::Memory;
use nbdserve::testing::{noise, tools};
use nbdserve::{ByteRange, Result};
use tempfile::TempDir;

/// Sectors of the small images.
pub(crate) const SECTORS: u64 = 2048;

pub(crate) fn sector(number: u64) -> usize {
    number as usize * 512
}

/// An image file that sfdisk has partitioned by `script`.
pub(crate) struct Disk {
    _dir: TempDir,
    pub(crate) path: PathBuf,
}

impl Disk {
    pub(crate) fn new(sectors: u64, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        fs::write(&path, noise(sector(sectors), 11)).unwrap();
        let disk = Self { _dir: dir, path };
        disk.sfdisk(script);
        disk
    }

    pub(crate) fn sfdisk(&self, script: &str) {
        sfdisk(&self.path, script);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

pub(crate) fn sfdisk(path: &Path, script: &str) {
    let mut command = tools::command("sfdisk");
    command
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(path);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "sfdisk: {text}");
}

/// A loop device with sectors of 4096 bytes, detached in the end.
pub(crate) struct LoopDevice(pub(crate) String);

impl LoopDevice {
    pub(crate) fn on(path: &Path) -> Self {
        let mut command = tools::command("losetup");
        command.args(["--find", "--show", "--sector-size", "4096"]);
        Self(tools::run_command(command.arg(path)).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        tools::run("losetup", ["-d", &self.0]);
    }
}

pub(crate) const GPT: &str = "label: gpt\nfirst-lba: 34\n\
    start=64, size=100, type=L, name=\"röot ☃\"\n\
    start=200, size=300, type=U, attrs=\"LegacyBIOSBootable\"\n\
    start=600, size=1\n";

pub(crate) const LOGICAL: &str = "label: dos\n\
    1 : start=64, size=100, bootable\n\
    2 : start=200, size=1500, type=5\n\
    3 : start=1800, size=10, type=c\n\
    5 : start=208, size=100, type=82\n\
    6 : start=320, size=50\n\
    7 : start=1000, size=700, type=7\n";

pub(crate) fn table_of(bytes: &[u8]) -> Result<Table> {
    read_table(&Memory::volume(bytes.to_vec()), None)
}

pub(crate) fn bytes(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

pub(crate) fn sectors(start: u64, len: u64) -> ByteRange {
    bytes(start * 512, len * 512)
}
