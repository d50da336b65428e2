//! `loopmount --commit --cow=FILE IMAGE`: what FILE has kept goes to the image.

use std::path::Path;
use std::sync::Arc;

use nbdserve::error::shell;
use nbdserve::layer::split::look;
use nbdserve::plan;
use nbdserve::references::References;
use nbdserve::size::format_size;
use nbdserve::source::OpenMode;
use nbdserve::source::split::{self, Joined};
use nbdserve::{Error, Kind, Result};

use super::Cli;
use crate::unit::front::Terminal;
use crate::unit::out;

/// Writes it back, and says how much it was.
pub(super) fn command(cli: &Cli, image: &Path) -> Result<()> {
    let Some(Some(file)) = &cli.cow else {
        // The definition of the command line does not allow it.
        return Err(Error::new(Kind::OutOfRange, "which file is not said"));
    };
    if cli.remote(image)?.is_some() {
        let what = "an image on a web server cannot be written to";
        return Err(Error::new(Kind::ReadOnly, what).hint(format!(
            "fetch it first: loopmount --fuse --cow={} IMAGE FILE; cp FILE NEW",
            shell(&file.display().to_string())
        )));
    }
    // First of all: what it is without it tells nothing of what is missing.
    cli.kept_apart()?;
    let terminal = Arc::new(Terminal::new());
    let mut cx = cli.cx(&terminal)?;
    // The image changes under what would be kept.
    cx.store = None;
    let files = split::open(image, look(&cli.layers)?, OpenMode::Write, &cli.references)?;
    cx.references = References::of(image, &files[0], &cli.references)?;
    let handles = files.iter().map(|file| file.try_clone());
    let handles = handles.collect::<Result<Vec<_>>>()?;
    let identity = || split::identity(&handles);
    // As the server has it, since it is what the file was made for.
    let name = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let name = name.to_string_lossy();
    let source = Joined::volume(files)?;
    let done = plan::commit(source, &name, &cli.layers, file, &identity, &cx);
    cx.cancel.cancel();
    terminal.clear();
    let done = done?;
    let (written, zeroed) = (format_size(done.written), format_size(done.zeroed));
    out::print(format_args!("{written} written, {zeroed} zeroed\n"))
}
