//! Opening a layer of a plan. For an archive that includes the choice of a file in it: the plan then
//! names that file.

use super::resolve::Step;
use super::sample::strongest;
use super::{LayerSpec, fs};
use crate::layer::partition::PARTITION;
use crate::layer::{LayerType, Sample, Verdict, archive, lvm, offset};
use crate::{ByteRange, Cx, Result, Volume};

/// A layer that was opened.
pub(super) struct Entered {
    /// How to open it again, without a choice.
    pub(super) spec: LayerSpec,
    pub(super) volume: Volume,
    /// Which bytes of the volume below it is, byte for byte; `None` for a layer that decodes.
    pub(super) range: Option<ByteRange>,
    /// Why this file, if there was a choice.
    pub(super) note: Option<String>,
}

/// What the things are kept under that a layer keeps: they are for the layer with these arguments, but
/// the index of an archive is the same for all files in it.
pub(super) fn kept_for(layer: &LayerType, spec: &LayerSpec) -> String {
    match archive::of(layer) {
        Some(_) => layer.name.to_owned(),
        None => spec.to_string(),
    }
}

/// Opens `layer` on `below`, as `spec` says; `outer` are the layers around. Whether `below` is a part
/// of the source as it is decides whether it is worth finding out whether the new volume is.
///
/// # Errors
/// What the layer says.
pub(super) fn enter(
    layer: &LayerType,
    spec: LayerSpec,
    below: &Volume,
    outer: &[Step],
    is_plain: bool,
    cx: &Cx,
) -> Result<Entered> {
    let Some(kind) = archive::of(layer) else {
        let volume = (layer.open)(below, spec.args(), cx)?;
        let range = match is_plain {
            true => plain_range(layer, &spec, below, volume.size(), cx)?,
            false => None,
        };
        return Ok(Entered {
            spec,
            volume,
            range,
            note: None,
        });
    };
    let files = (kind.read)(below, cx)?;
    let mut hint = String::new();
    for step in outer {
        hint += &format!("--layer {} ", step.layer);
    }
    hint += &format!("--layer {}:NAME", layer.name);
    let chosen = archive::choose(files.as_ref(), spec.args(), Some(&recognise), &hint, cx)?;
    let opened = files.open(chosen.number)?;
    Ok(Entered {
        spec: LayerSpec::with_args(layer.name, chosen.args)?,
        volume: opened.volume,
        range: opened.range,
        note: chosen.note,
    })
}

/// What the first bytes of a file look like: what a layer unwraps, a disk, a file system.
fn recognise(sample: &Sample<'_>) -> Option<String> {
    if let Some((info, _)) = fs::recognise(sample) {
        return Some(info.to_string());
    }
    if let Some((layer, _, _)) = strongest(sample) {
        return Some(layer.name.to_owned());
    }
    match (PARTITION.probe)(sample) {
        Verdict::Yes { .. } => Some("a disk with partitions".to_owned()),
        Verdict::No => None,
    }
}

/// Which bytes of `below` the volume that a layer made of it is, byte for byte; `None` for a layer
/// that decodes.
fn plain_range(
    layer: &LayerType,
    spec: &LayerSpec,
    below: &Volume,
    size: u64,
    cx: &Cx,
) -> Result<Option<ByteRange>> {
    if layer.name == offset::OFFSET.name {
        return offset::range(below.size(), spec.args()).map(Some);
    }
    if layer.name == lvm::LVM.name {
        return lvm::range(below, spec.args(), cx);
    }
    if layer.name != PARTITION.name {
        return Ok(None);
    }
    let range = crate::layer::partition::range(below, spec.args())?;
    debug_assert_eq!(range.len(), size);
    Ok(Some(range))
}
