//! What the tar tests share: archives made by foreign tools, and opening them.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use nbdserve::layer::Args;
use nbdserve::layer::tar::TAR;
use nbdserve::plan::{self, Pick, Purpose, Request, Resolved};
use nbdserve::source::Memory;
pub(crate) use nbdserve::testing::conformance::read_all;
pub(crate) use nbdserve::testing::noise;
use nbdserve::testing::tools;
use nbdserve::{Cx, Result, Volume};

/// Runs `program` in `dir`, which writes the archive `out.tar` there, and returns that.
pub(crate) fn archive(dir: &Path, program: &str, args: &[&str]) -> Vec<u8> {
    let mut command = tools::command(program);
    tools::run_command(command.args(args).current_dir(dir));
    fs::read(dir.join("out.tar")).unwrap()
}

/// `tar -cf out.tar ARGS`.
pub(crate) fn tar(dir: &Path, args: &[&str]) -> Vec<u8> {
    archive(dir, "tar", &[&["-cf", "out.tar"], args].concat())
}

/// One for all: each has threads of its own.
pub(crate) fn cx() -> Cx {
    static CX: OnceLock<Cx> = OnceLock::new();
    CX.get_or_init(|| Cx::new(16 << 20)).clone()
}

pub(crate) fn named(name: &str) -> Args {
    Args::from([("name".to_owned(), name.to_owned())])
}

/// The file called `name`.
pub(crate) fn open(archive: &[u8], name: &str) -> Result<Volume> {
    open_on(&Memory::volume(archive.to_vec()), &named(name))
}

pub(crate) fn open_on(below: &Volume, args: &Args) -> Result<Volume> {
    (TAR.open)(below, args, &cx())
}

/// The only file.
pub(crate) fn open_only(archive: &[u8]) -> Result<Volume> {
    open_on(&Memory::volume(archive.to_vec()), &Args::new())
}

/// What an image turns out to be, layers and all, as bytes.
pub(crate) fn resolve(image: Volume, layers: &[&str], cx: &Cx) -> Result<Resolved> {
    let request = Request {
        layers: layers.iter().map(|layer| layer.parse().unwrap()).collect(),
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        ..Request::default()
    };
    plan::resolve(image, "image", &request, &|_, _| None, cx)
}

/// A file with a file system of `kib` KiB, at least 256; its bytes.
pub(crate) fn ext4(dir: &Path, name: &str, kib: u64) -> Vec<u8> {
    let path = dir.join(name);
    fs::File::create(&path).unwrap().set_len(kib << 10).unwrap();
    let args = ["-q", "-F", "-L", "label"].map(str::to_owned);
    let mut args = args.to_vec();
    args.push(path.to_str().unwrap().to_owned());
    tools::run("mkfs.ext4", &args);
    fs::read(&path).unwrap()
}
