//! `loopmount --info IMAGE`.

use std::path::Path;

use nbdserve::plan::{self, Info, Pick, Purpose};
use nbdserve::source::{File, OpenMode};
use nbdserve::{Error, Kind, Result, Volume};

use super::Cli;
use crate::unit::looks_like_root;

/// Prints what the image is, as text or as JSON; with -P what that partition holds.
pub(super) fn command(cli: &Cli, image: &Path) -> Result<()> {
    let cx = cli.cx();
    let (source, name) = match cli.remote(image)? {
        Some(remote) => (remote.open(cli.cache_bytes(), &cx)?, remote.shown()),
        None => {
            let file = File::open(image, OpenMode::ReadOnly)?;
            (Volume::new(file), image.to_string_lossy().into_owned())
        }
    };
    let resolved = match &cli.partition {
        None => plan::inspect(source, &name, &cli.layers, &cx),
        Some(partition) => {
            let request = plan::Request {
                layers: cli.layers.clone(),
                pick: Pick::Partition(partition.clone()),
                purpose: Purpose::Bytes,
            };
            plan::resolve(source, &name, &request, &looks_like_root, &cx)
        }
    };
    // Nothing is decoded for a volume that is not read any more.
    cx.cancel.cancel();
    print(&Info::new(&resolved?), cli.json)
}

fn print(info: &Info, json: bool) -> Result<()> {
    if json {
        let text = serde_json::to_string_pretty(info)
            .map_err(|cause| Error::new(Kind::Io, "cannot encode it").caused_by(cause))?;
        println!("{text}");
    } else {
        print!("{info}");
    }
    Ok(())
}
