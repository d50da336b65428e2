//! Writes the decoded bytes of an .xz file to stdout: `cat FILE.xz [CACHE_MIB] > raw`.
//!
//! Shows the whole of the library's use: a source, a layer on it, reads through a volume.

use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use nbdserve::layer::Args;
use nbdserve::layer::xz::XZ;
use nbdserve::source::{File, OpenMode};
use nbdserve::{Cx, Error, Result, Volume};

/// Bytes per read.
const PIECE: usize = 1 << 20;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        eprintln!("usage: cat FILE.xz [CACHE_MIB]");
        return ExitCode::from(2);
    };
    let cache_mib = args.next().and_then(|text| text.parse().ok());
    match cat(Path::new(&path), cache_mib.unwrap_or(1024)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}

fn cat(path: &Path, cache_mib: u64) -> Result<()> {
    let source = Volume::new(File::open(path, OpenMode::ReadOnly)?);
    let cx = Cx::new(cache_mib << 20);
    let image = (XZ.open)(&source, &Args::new(), &cx).map_err(|error| error.in_layer(XZ.name))?;
    let mut out = stdout().lock();
    let mut buf = vec![0; PIECE];
    let mut offset = 0;
    while offset < image.size() {
        let len = PIECE.min(usize::try_from(image.size() - offset).unwrap_or(PIECE));
        image.read_at(&mut buf[..len], offset)?;
        out.write_all(&buf[..len])
            .map_err(|error| Error::io("cannot write to stdout", error))?;
        offset += len as u64;
    }
    image.close()
}
