//! What the zip tests share.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use nbdserve::layer::Args;
use nbdserve::layer::zip::ZIP;
use nbdserve::source::Memory;
pub(crate) use nbdserve::testing::conformance::read_all;
pub(crate) use nbdserve::testing::noise;
use nbdserve::testing::tools;
use nbdserve::{Cx, Result, Volume};

/// `zip ARGS` in `dir`, which writes `out.zip`; that.
pub(crate) fn zip(dir: &Path, args: &[&str]) -> Vec<u8> {
    tools::run_command(tools::command("zip").args(args).current_dir(dir));
    fs::read(dir.join("out.zip")).unwrap()
}

/// Stored files in an archive.
pub(crate) fn stored(files: &[(&str, &[u8])]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec!["-q", "-0", "-X", "out.zip"];
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
        args.push(name);
    }
    zip(dir.path(), &args)
}

/// One for all: each has threads of its own.
pub(crate) fn cx() -> Cx {
    static CX: OnceLock<Cx> = OnceLock::new();
    CX.get_or_init(|| Cx::new(16 << 20)).clone()
}

pub(crate) fn args(key: &str, value: &str) -> Args {
    Args::from([(key.to_owned(), value.to_owned())])
}

/// The file called `name`.
pub(crate) fn open(archive: &[u8], name: &str) -> Result<Volume> {
    open_on(&Memory::volume(archive.to_vec()), &args("name", name))
}

pub(crate) fn open_on(below: &Volume, args: &Args) -> Result<Volume> {
    (ZIP.open)(below, args, &cx())
}

/// Where `what` stands last.
pub(crate) fn last(bytes: &[u8], what: &[u8]) -> usize {
    let mut windows = bytes.windows(what.len());
    windows.rposition(|window| window == what).unwrap()
}

/// Where `what` stands first.
pub(crate) fn first(bytes: &[u8], what: &[u8]) -> usize {
    let mut windows = bytes.windows(what.len());
    windows.position(|window| window == what).unwrap()
}
