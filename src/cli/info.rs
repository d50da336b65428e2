//! `loopmount --info IMAGE`.

use std::path::Path;
use std::sync::Arc;

use nbdserve::layer::split::look;
use nbdserve::plan::{self, Content, Info, LayerSpec, Locked, Pick, Purpose, Resolved};
use nbdserve::references::References;
use nbdserve::source::OpenMode;
use nbdserve::source::split::{self, Joined};
use nbdserve::{Cx, Error, Kind, Result};

use super::Cli;
use crate::unit::front::Terminal;
use crate::unit::{looks_like_root, out};

/// Prints what the image is, as text or as JSON; with -P what that partition holds.
pub(super) fn command(cli: &Cli, image: &Path) -> Result<()> {
    let terminal = Arc::new(Terminal::new());
    let cx = cli.cx(&terminal)?;
    let resolved = open(cli, image, cx.clone());
    // Some notes are made by reading.
    let info = resolved.as_ref().map(Info::new);
    // Nothing is decoded for a volume that is not read any more.
    cx.cancel.cancel();
    terminal.clear();
    let info = info.map_err(Clone::clone)?;
    print(&info, cli.json)?;
    match info.content {
        // It was given a key.
        Content::Locked(Locked { why, .. }) if cli.keys.is_given() => {
            Err(Error::new(Kind::Secret, why))
        }
        _ => Ok(()),
    }
}

/// Opens the image in this process: all of it, with -P the partition.
pub(super) fn open(cli: &Cli, image: &Path, mut cx: Cx) -> Result<Resolved> {
    let look = look(&cli.layers)?;
    let (source, name) = match cli.remote(image)? {
        Some(remote) => {
            let source = remote.open(look, cli.cache_bytes(), &cx)?;
            (source, remote.shown())
        }
        None => {
            let files = split::open(image, look, OpenMode::ReadOnly, &cli.references)?;
            cx.references = References::of(image, &files[0], &cli.references)?;
            (Joined::volume(files)?, image.to_string_lossy().into_owned())
        }
    };
    let cow = cli.kept_apart()?;
    match &cli.partition {
        None => plan::inspect_with(source, &name, &cli.layers, cow, &cx),
        Some(partition) => {
            let request = plan::Request {
                layers: cli.layers.clone(),
                pick: Pick::Partition(partition.clone()),
                purpose: Purpose::Bytes,
                cow,
            };
            plan::resolve(source, &name, &request, &looks_like_root, &cx)
        }
    }
}

impl Cli {
    /// The file with writes to the image, which has to be there, as a layer.
    pub(super) fn kept_apart(&self) -> Result<Option<LayerSpec>> {
        let Some(Some(file)) = &self.cow else {
            return Ok(None);
        };
        let path = std::path::absolute(file).unwrap_or(file.clone());
        std::fs::metadata(&path).map_err(|error| {
            Error::io(format!("cannot look at {}", file.display()), error)
                .hint("loopmount --cow=FILE IMAGE TARGET makes it")
        })?;
        Ok(Some(LayerSpec::cow(Some(&path))))
    }
}

fn print(info: &Info, json: bool) -> Result<()> {
    if json {
        let text = serde_json::to_string_pretty(info)
            .map_err(|cause| Error::new(Kind::Io, "cannot encode it").caused_by(cause))?;
        out::print(text + "\n")
    } else {
        out::print(info)
    }
}
