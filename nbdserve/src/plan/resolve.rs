//! From a source to a plan: probing, and following a plan.

use std::path::Path;

use super::choose::Partitions;
use super::fs::{self, FsInfo};
use super::sample::{read_head, read_sample, strongest};
use super::volumes::VolumeInfo;
use super::walk::{Chosen, Found, KEPT_APART, ON_DISKS, Walk, is_member};
use super::{Content, LayerSpec, Locked, Pick, Plan, Purpose, RAW};
use crate::layer::cow::{self, COW};
use crate::layer::offset;
use crate::layer::partition::{PARTITION, Table, read_table};
use crate::{ByteRange, Cx, Kind, Result, Volume};

/// Whether the top level of a file system looks like that of a system's root; `None` when that
/// cannot be told, because nothing here reads that file system.
pub type LooksLikeRoot<'a> = &'a dyn Fn(&Volume, &FsInfo) -> Option<bool>;

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Layers that are named, outermost first; probing goes on above the last one.
    pub layers: Vec<LayerSpec>,
    /// Which part of a disk.
    pub pick: Pick,
    /// What for.
    pub purpose: Purpose,
    /// The layer that keeps writes apart from the image. It lies on the disk, below its partitions
    /// and what is encrypted, whichever of them is wanted.
    pub cow: Option<LayerSpec>,
}

/// The answer.
#[derive(Debug)]
pub struct Resolved {
    /// How to open it again without looking.
    pub plan: Plan,
    /// What is to be served.
    pub volume: Volume,
    /// Source first, each layer on the one before; the last is [`Self::volume`].
    pub chain: Vec<Volume>,
    /// What is unusual about what the source holds.
    pub source_notes: Vec<String>,
    /// One for each layer of the plan.
    pub steps: Vec<Step>,
    /// The partition table that was met last, entered or not.
    pub table: Option<Table>,
    /// What each partition of the table holds, in its order, as far as that was looked at.
    pub partitions: Vec<Option<FsInfo>>,
    /// The volumes of LVM2 and MD that were met last, on its partitions or on what is a member by
    /// itself.
    pub volumes: Vec<VolumeInfo>,
    /// What is unusual about them.
    pub volume_notes: Vec<String>,
    /// What [`Self::volume`] holds.
    pub content: Content,
    /// Where [`Self::volume`] lies in the source, byte for byte, when no layer decodes anything:
    /// then the kernel can do without us.
    pub source_range: Option<ByteRange>,
}

/// How a layer was found.
#[derive(Clone, Debug)]
pub struct Step {
    /// The layer.
    pub layer: LayerSpec,
    /// Why it was taken.
    pub evidence: String,
    /// What is unusual about how it was found; of the layer itself, see [`Volume::notes`].
    pub notes: Vec<String>,
}

/// Finds out what `source` is; `name` is what the user calls it.
///
/// # Errors
/// `Unsupported` for a known format that nothing here opens, `NotThisFormat` for what is nothing
/// we know or not what is wanted, `Limit` for more than 8 layers, and what the layers say.
pub fn resolve(
    source: Volume,
    name: &str,
    request: &Request,
    looks_like_root: LooksLikeRoot<'_>,
    cx: &Cx,
) -> Result<Resolved> {
    resolve_to(source, name, request, looks_like_root, false, cx)
}

/// `locks`: a layer whose key is missing is no error but the end of the way.
fn resolve_to(
    source: Volume,
    name: &str,
    request: &Request,
    looks_like_root: LooksLikeRoot<'_>,
    locks: bool,
    cx: &Cx,
) -> Result<Resolved> {
    let mut walk = Walk::new(source, name, cx);
    let mut cow = request.cow.clone();
    let raw = walk.enter_named(&request.layers, &mut cow)?;
    let mut pick = request.pick.clone();
    loop {
        let found = walk.look(&pick, raw)?;
        if !found.is_around_a_disk()
            && let Some(spec) = cow.take()
        {
            // What was written counts: it may be another table.
            walk.enter(spec, KEPT_APART.to_owned(), Vec::new())?;
            continue;
        }
        match found {
            Found::Layer(spec, evidence) if !is_member(&spec) => {
                let layer = spec.name().to_owned();
                match walk.enter(spec, evidence.clone(), Vec::new()) {
                    Err(error) if locks && error.kind() == Kind::Secret => {
                        let report = error.report();
                        let mut why = report.what;
                        for cause in report.because {
                            why.push_str(": ");
                            why.push_str(&cause);
                        }
                        return walk.finish(Content::Locked(Locked {
                            layer,
                            evidence,
                            why,
                        }));
                    }
                    other => other?,
                }
            }
            Found::Layer(_, _) => {
                let partitions = Partitions::new(&walk.volume, None, walk.depth(), &walk.cx);
                match walk.choose(partitions, &pick, looks_like_root)? {
                    Chosen::Whole => {
                        let bytes = read_head(&walk.volume)?;
                        let content = fs::recognise(&bytes.as_sample());
                        return walk.finish(match content {
                            Some((info, _)) => Content::Other(info),
                            None => Content::Bytes,
                        });
                    }
                    chosen => walk.enter_chosen(chosen, "", &mut pick, request.purpose)?,
                }
            }
            Found::Table(evidence) => {
                let table = match read_table(&walk.volume, None) {
                    Ok(table) => table,
                    // The bytes of the disk are the same without a table.
                    Err(error) if pick == Pick::Disk && !locks && error.kind() == Kind::Corrupt => {
                        tracing::warn!("{}", walk.named(error).report());
                        return walk.finish(Content::Disk);
                    }
                    Err(error) => return Err(walk.named(error)),
                };
                let partitions = Partitions::new(&walk.volume, Some(table), walk.depth(), &walk.cx);
                match walk.choose(partitions, &pick, looks_like_root)? {
                    Chosen::Whole => return walk.finish(Content::Disk),
                    chosen => walk.enter_chosen(chosen, &evidence, &mut pick, request.purpose)?,
                }
            }
            Found::Content(content) => {
                if let Pick::Partition(wanted) = &pick {
                    return Err(walk.no_table(wanted, &content));
                }
                walk.check_content(&content, request.purpose, raw)?;
                return walk.finish(content);
            }
        }
    }
}

/// Writes what is kept in the cow file `file` back to the image `source`, of which `identity` tells
/// what it is now.
///
/// # Errors
/// As [`resolve()`] and [`cow::commit`].
pub fn commit(
    source: Volume,
    name: &str,
    layers: &[LayerSpec],
    file: &Path,
    identity: &dyn Fn() -> Option<String>,
    cx: &Cx,
) -> Result<cow::Committed> {
    // A layer may write as soon as it is opened.
    let before = identity();
    let mut walk = Walk::new(source, name, cx);
    // Up to where the layer would lie.
    let disk = layers
        .iter()
        .position(|spec| ON_DISKS.contains(&spec.name()));
    let outer = layers.get(..disk.unwrap_or(layers.len()));
    let raw = walk.enter_named(outer.unwrap_or_default(), &mut None)?;
    while disk.is_none()
        && let found = walk.look(&Pick::Disk, raw)?
        && found.is_around_a_disk()
        && let Found::Layer(spec, evidence) = found
    {
        walk.enter(spec, evidence, Vec::new())?;
    }
    let base = cow::Base {
        identity: before,
        ..walk.base()
    };
    cow::commit(&walk.volume, file, &base, identity, &walk.cx)
        .map_err(|error| error.in_layer(COW.name))
}

/// As [`resolve()`] for the bytes of the whole disk, with the contents of all partitions. Where a
/// jump costs the decoding of the whole image only what is known anyway is told. A layer that was
/// found and whose key is missing is told of as [`Content::Locked`].
///
/// # Errors
/// As [`resolve()`].
pub fn inspect(source: Volume, name: &str, layers: &[LayerSpec], cx: &Cx) -> Result<Resolved> {
    inspect_with(source, name, layers, None, cx)
}

/// As [`inspect`], with the writes that `cow` has kept.
///
/// # Errors
/// As [`resolve()`].
pub fn inspect_with(
    source: Volume,
    name: &str,
    layers: &[LayerSpec],
    cow: Option<LayerSpec>,
    cx: &Cx,
) -> Result<Resolved> {
    let request = Request {
        layers: layers.to_vec(),
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        cow,
    };
    resolve_to(source, name, &request, &|_, _| None, true, cx)
}

/// Whether nothing of an image has to be decoded, as far as its first and last bytes and the layers
/// that the user named tell: worth a try without a process of our own.
///
/// # Errors
/// When the source cannot be read.
pub fn looks_plain(source: &Volume, layers: &[LayerSpec]) -> Result<bool> {
    let plain = [RAW, offset::OFFSET.name, PARTITION.name];
    if layers.iter().any(|layer| !plain.contains(&layer.name())) {
        return Ok(false);
    }
    if !layers.is_empty() {
        return Ok(true);
    }
    Ok(strongest(&read_sample(source)?.as_sample()).is_none())
}

/// A volume that a plan was followed to.
#[derive(Debug)]
pub struct Opened {
    /// What is to be served.
    pub volume: Volume,
    /// Source first; the last is [`Self::volume`].
    pub chain: Vec<Volume>,
    /// As in [`Resolved`].
    pub source_range: Option<ByteRange>,
}

/// Follows a plan without probing.
///
/// # Errors
/// What the layers say.
pub fn reopen(source: Volume, plan: &Plan, cx: &Cx) -> Result<Opened> {
    let mut walk = Walk::new(source, &plan.source, cx);
    for spec in &plan.layers {
        walk.enter(spec.clone(), String::new(), Vec::new())?;
    }
    Ok(Opened {
        volume: walk.volume,
        chain: walk.chain,
        source_range: walk.source_range,
    })
}
