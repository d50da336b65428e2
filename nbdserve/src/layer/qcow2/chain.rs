//! The other files that an image is made of: its data file, and its backing file with all that is
//! below that.

use super::file::HostFile;
use super::header::{Header, corrupt};
use crate::bytes::slice;
use crate::error::quote;
use crate::layer::scan::narrow;
use crate::layer::{Args, LAYERS, LayerType, Sample, Verdict};
use crate::source::OpenMode;
use crate::{Cx, Error, Kind, Result, Volume};

/// Formats of a backing file, as QEMU calls them, and the layers that open them. It has no others.
const FORMATS: &[(&str, &str)] = &[
    ("qcow2", "qcow2"),
    ("vmdk", "vmdk"),
    ("vpc", "vhd"),
    ("vhdx", "vhdx"),
    ("vdi", "vdi"),
    ("luks", "luks"),
];
/// Formats that are the bytes as they are.
const RAW: &[&str] = &["raw", "file", "host_device"];

/// Memory for the tables of this image: its part of the budget, which gets smaller the deeper in a
/// chain of files it is.
pub(super) fn memory(cx: &Cx, part: u64) -> u64 {
    let depth = u64::try_from(cx.references.depth()).unwrap_or(u64::MAX);
    let part = part.saturating_mul(depth.max(1));
    cx.cache.budget().checked_div(part).unwrap_or(0)
}

/// The file that clusters are in.
///
/// # Errors
/// `Corrupt` when it has no name; what [`crate::references::References::open`] says.
pub(super) fn data_file(
    header: &Header,
    file: &HostFile,
    write: bool,
    cx: &Cx,
) -> Result<HostFile> {
    if !header.shape().external {
        return Ok(file.clone());
    }
    let Some(name) = &header.extensions.data_file else {
        let what = "its clusters are in a data file, whose name is not there";
        return Err(corrupt(what.to_owned()));
    };
    let mode = match write {
        true => OpenMode::Write,
        false => OpenMode::ReadOnly,
    };
    let referred = cx.references.open(name, "data file", mode)?;
    Ok(HostFile::new(&referred.volume))
}

/// The disk that shows where nothing is allocated. `head` has the first cluster, or its beginning.
///
/// # Errors
/// What [`crate::references::References::open`] and the layer of its format say; `Unsupported` for a
/// format without one.
pub(super) fn backing(
    header: &Header,
    head: &[u8],
    cx: &Cx,
    notes: &mut Vec<String>,
) -> Result<Option<Volume>> {
    let Some(place) = header.backing_file else {
        return Ok(None);
    };
    let name = slice(head, narrow(place.start()), narrow(place.len()));
    let name = name.ok_or_else(|| {
        let at = place.start();
        corrupt(format!(
            "the name of the backing file at {at} is too far from the header"
        ))
    })?;
    let referred = cx
        .references
        .open(name, "backing file", OpenMode::ReadOnly)?;
    let shown = quote(&String::from_utf8_lossy(name));
    let inner = cx.of_referred(referred.references);
    let stated = header.extensions.backing_format.as_deref();
    let stated = stated.filter(|format| !format.is_empty());
    let (layer, format) = match stated {
        Some(format) => by_format(format)?,
        None => {
            let layer = probed(&referred.volume)?;
            let format = layer.map_or("raw", |layer| layer.name);
            let note = format!(
                "the format of the backing file {shown} is not stated, it looks like {format}"
            );
            notes.push(note);
            (layer, format.to_owned())
        }
    };
    notes.push(format!("backing file {shown}, {format}"));
    let Some(layer) = layer else {
        return Ok(Some(referred.volume));
    };
    let opened = (layer.open)(&referred.volume, &Args::new(), &inner);
    let volume = opened.map_err(|error| {
        let error = error.in_layer(layer.name);
        let what = format!("cannot open the backing file {shown}");
        Error::new(error.kind(), what).caused_by(error)
    })?;
    Ok(Some(volume))
}

/// The layer for a format that is stated; `None` for the bytes as they are.
fn by_format(format: &[u8]) -> Result<(Option<&'static LayerType>, String)> {
    let format = String::from_utf8_lossy(format).into_owned();
    if RAW.contains(&format.as_str()) {
        return Ok((None, "raw".to_owned()));
    }
    let known = FORMATS.iter().find(|(name, _)| *name == format);
    let layer = known.and_then(|(_, layer)| layer_called(layer));
    let Some(layer) = layer else {
        let what = format!("the backing file has the format {}", quote(&format));
        return Err(
            Error::new(Kind::Unsupported, format!("{what}, which cannot be opened"))
                .hint("qemu-img convert -O qcow2 IMAGE NEW makes one image of all"),
        );
    };
    Ok((Some(layer), layer.name.to_owned()))
}

fn layer_called(name: &str) -> Option<&'static LayerType> {
    LAYERS.iter().copied().find(|layer| layer.name == name)
}

/// The layer for a file whose format is not stated: that of a disk image, or none.
fn probed(volume: &Volume) -> Result<Option<&'static LayerType>> {
    let size = volume.size();
    let len = narrow(size).min(Sample::HEAD);
    let head = volume.read_vec(0, len)?;
    let tail_len = narrow(size).min(Sample::TAIL);
    let tail_at = size.saturating_sub(u64::try_from(tail_len).unwrap_or(0));
    let tail = volume.read_vec(tail_at, tail_len)?;
    let sample = Sample {
        head: &head,
        tail: Some(&tail),
        size,
    };
    let known = FORMATS.iter().filter_map(|(_, layer)| layer_called(layer));
    let mut best = None;
    for layer in known {
        if let Verdict::Yes { confidence, .. } = (layer.probe)(&sample)
            && best.is_none_or(|(_, most)| confidence > most)
        {
            best = Some((layer, confidence));
        }
    }
    Ok(best.map(|(layer, _)| layer))
}
