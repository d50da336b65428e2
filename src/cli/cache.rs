//! `loopmount --cache`.

use std::path::Path;

use nbdserve::source::{File, OpenMode};
use nbdserve::{Device, Result};

use super::Cli;
use crate::unit::cache::{self, Action, Which};

/// Shows or clears the cache on disk, of all images or of one.
pub(super) fn command(cli: &Cli, action: Action) -> Result<()> {
    let which = match &cli.image {
        Some(image) => which(cli, image)?,
        None => Which::default(),
    };
    cache::command(&cli.disk_cache(), action, &which, cli.json)
}

/// An image that is gone can still be named.
fn which(cli: &Cli, image: &Path) -> Result<Which> {
    if let Some(remote) = cli.remote(image)? {
        return Ok(Which {
            name: Some(remote.shown()),
            identity: None,
        });
    }
    let path = image.canonicalize().or_else(|_| std::path::absolute(image));
    let path = path.unwrap_or_else(|_| image.to_owned());
    let file = File::open(image, OpenMode::ReadOnly).ok();
    Ok(Which {
        name: Some(path.to_string_lossy().into_owned()),
        identity: file.and_then(|file| file.source_identity()),
    })
}
