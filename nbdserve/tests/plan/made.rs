//! Images, and what is asked for them.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use nbdserve::plan::{self, Content, FsInfo, Pick, Purpose, Request, Resolved};
use nbdserve::source::Memory;
use nbdserve::testing::{noise, tools};
use nbdserve::{Cx, Result};
use tempfile::TempDir;

pub(crate) const MIB: usize = 1 << 20;

pub(crate) fn cx() -> Cx {
    Cx::new(1 << 20)
}

pub(crate) fn request(layers: &[&str], pick: Pick, purpose: Purpose) -> Request {
    Request {
        layers: layers.iter().map(|layer| layer.parse().unwrap()).collect(),
        pick,
        purpose,
        ..Request::default()
    }
}

pub(crate) fn mount() -> Request {
    Request::default()
}

pub(crate) fn part(name: &str) -> Request {
    request(&[], Pick::Partition(name.to_owned()), Purpose::FileSystem)
}

pub(crate) fn resolve(image: &[u8], request: &Request) -> Result<Resolved> {
    let source = Memory::volume(image.to_vec());
    plan::resolve(source, "disk.raw", request, &|_, _| None, &cx())
}

/// A folder, and the path of a file of this size in it.
fn file_of(size: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::File::create(&path)
        .unwrap()
        .set_len(size as u64)
        .unwrap();
    (dir, path)
}

/// The bytes of a file of this size after a tool has made something of it.
fn made(size: usize, program: &str, args: &[&str]) -> Vec<u8> {
    let (_dir, path) = file_of(size);
    tools::run_command(tools::command(program).args(args).arg(&path));
    fs::read(&path).unwrap()
}

pub(crate) fn ext4(label: &str) -> Vec<u8> {
    made(MIB, "mkfs.ext4", &["-q", "-b", "1024", "-L", label])
}

pub(crate) fn vfat() -> Vec<u8> {
    made(MIB, "mkfs.vfat", &["-F", "12", "-n", "BOOT"])
}

pub(crate) fn swap() -> Vec<u8> {
    made(MIB, "mkswap", &["-q", "-L", "swapped"])
}

/// A disk that sfdisk has partitioned by `script`, with `contents` from these MiB on.
pub(crate) fn disk(script: &str, contents: &[(usize, &[u8])]) -> Vec<u8> {
    let (_dir, path) = file_of(8 * MIB);
    let mut command = tools::command("sfdisk");
    command
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(&path);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut &stdin, script.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let mut bytes = fs::read(&path).unwrap();
    for (at, content) in contents {
        bytes[at * MIB..][..content.len()].copy_from_slice(content);
    }
    bytes
}

pub(crate) fn file_system(content: &Content) -> &FsInfo {
    match content {
        Content::FileSystem(info) => info,
        other => panic!("{other:?}"),
    }
}

pub(crate) const ROOTS: &str = "label: gpt\n\
    start=2048, size=2048, type=U, name=\"esp\", uuid=11111111-0000-0000-0000-000000000001\n\
    start=4096, size=2048, name=\"boot\"\n\
    start=6144, size=2048, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=\"system\"\n";
pub(crate) const TWO: &str =
    "label: gpt\nstart=2048, size=2048, name=\"a\"\nstart=4096, size=2048\n";

/// An ISO image with an MBR in its first sector, as isohybrid(1) makes.
pub(crate) fn isohybrid() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), noise(MIB, 1)).unwrap();
    let image = dir.path().join("image");
    let args = ["-quiet", "-V", "HYBRID", "-o"];
    tools::run_command(
        tools::command("genisoimage")
            .args(args)
            .arg(&image)
            .arg(&tree),
    );
    let mut bytes = fs::read(&image).unwrap();
    let sectors = (bytes.len() / 512) as u32;
    bytes[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes[454..458].copy_from_slice(&0_u32.to_le_bytes());
    bytes[458..462].copy_from_slice(&sectors.to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

/// The bytes as xz(1) compresses them.
pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let (_dir, path) = file_of(0);
    fs::write(&path, bytes).unwrap();
    let mut command = tools::command("xz");
    let output = command.args(["-c", "-0"]).arg(&path).output().unwrap();
    assert!(output.status.success());
    output.stdout
}
