//! VMware disks (`.vmdk`): sparse, flat, cut into files, or compressed in one stream.
//!
//! A descriptor, a text, says which extents a disk is made of; it is a file of its own or lies within
//! the only extent (`descriptor.rs`). A flat extent is a part of a file. In a sparse one a directory
//! and tables say where each grain lies (`header.rs`, `sparse.rs`); it may be compressed, each grain
//! by itself (`grain.rs`). What a snapshot does not have lies in the disk that it names as its
//! parent.

mod descriptor;
mod disk;
mod grain;
mod header;
mod sparse;

use std::sync::Arc;

use descriptor::Descriptor;
use disk::{Content, Disk, Extent};
use grain::Grains;
use header::SECTOR;
use sparse::Sparse;

use super::cut::cut_off;
use super::mapped::{Mapped, Packed};
use super::pages::PageCache;
use super::winpath::candidates;
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::error::{quote, quote_if_needed};
use crate::source::OpenMode;
use crate::{Cx, Error, Kind, Result, Volume};

const NAME: &str = "vmdk";
/// A disk has at most this many bytes.
const LARGEST: u64 = u64::MAX >> 1;

/// The layer `vmdk`.
pub static VMDK: LayerType = LayerType {
    name: NAME,
    summary: "VMware disk (sparse, flat, cut into files, stream-optimized)",
    params: &[],
    probe,
    open,
};

fn probe(sample: &Sample<'_>) -> Verdict {
    let yes = |evidence: String| Verdict::Yes {
        confidence: Confidence::MAGIC,
        evidence,
    };
    if descriptor::is_descriptor(sample.head) {
        return yes("the text # Disk DescriptorFile at 0".to_owned());
    }
    let magic = match sample.head {
        head if head.starts_with(header::SPARSE) => "magic KDMV at 0",
        head if head.starts_with(header::COWD) => "magic COWD at 0",
        _ => return Verdict::No,
    };
    yes(match header::header(sample.head) {
        Ok(header) if header.compressed => {
            format!("{magic}, compressed grains of {}", header.grain)
        }
        Ok(header) => format!("{magic}, grains of {}", header.grain),
        Err(error) => format!("{magic}, but {error}"),
    })
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let cache = PageCache::new(cx.cache.budget() / INDEX_PART);
    open_disk(below, &cache, cx).map(|(volume, _)| volume)
}

/// The disk in `below`, and its content ID.
fn open_disk(below: &Volume, cache: &PageCache, cx: &Cx) -> Result<(Volume, Option<u32>)> {
    let len = usize::try_from(header::HEADER.min(below.size())).unwrap_or(0);
    let head = below.read_vec(0, len)?;
    let (descriptor, extents, named) = if descriptor::is_descriptor(&head) {
        let descriptor = read_descriptor(below, 0, below.size())?;
        let extents = open_extents(&descriptor, cache, cx)?;
        (descriptor, extents, true)
    } else {
        let header = header::header(&head)?;
        let (at, len) = header.descriptor;
        if at == 0 || len == 0 {
            let what = "a part of a disk: the descriptor, another file, says which one";
            return Err(Error::new(Kind::Unsupported, what)
                .hint("name that file, which is a text: disk.vmdk of disk-s001.vmdk"));
        }
        let descriptor = read_descriptor(below, at, len)?;
        let extents = if header.capacity == 0 {
            open_extents(&descriptor, cache, cx)?
        } else {
            let sparse = Sparse::open(below, cache)?;
            let end = sparse.header.capacity;
            let content = Content::Sparse(sparse);
            let start = 0;
            vec![Extent {
                start,
                end,
                content,
            }]
        };
        (descriptor, extents, header.capacity == 0)
    };
    let parent = match descriptor.parent_cid {
        Some(cid) => Some(open_parent(&descriptor, cid, cache, cx)?),
        None => None,
    };
    let disk = Arc::new(Disk {
        extents,
        parent,
        is_open_ended: named && !descriptor.has_data_base,
    });
    let packed = disk
        .extents
        .iter()
        .filter_map(|extent| match &extent.content {
            Content::Sparse(sparse) if sparse.header.compressed => Some(sparse.header.grain),
            _ => None,
        });
    let packed = packed.max().map(|longest| Packed {
        decode: Arc::new(Grains(Arc::clone(&disk))),
        longest,
    });
    let volume = Mapped::volume(NAME, disk, packed, cx)?;
    Ok((volume, descriptor.cid))
}

/// The descriptor that takes at most `len` bytes at `at`.
fn read_descriptor(below: &Volume, at: u64, len: u64) -> Result<Descriptor> {
    if at.checked_add(len).is_none_or(|end| end > below.size()) {
        let size = below.size();
        let what = format!("a descriptor of {len} bytes at {at}, the file has {size}");
        return Err(cut_off(what));
    }
    if len > descriptor::LONGEST {
        let most = descriptor::LONGEST;
        let what = format!("a descriptor of {len} bytes, more than {most}");
        return Err(Error::new(Kind::Limit, what));
    }
    let text = below.read_vec(at, usize::try_from(len).unwrap_or(0))?;
    descriptor::parse(&text).map_err(|error| match error.kind() {
        Kind::NotThisFormat => {
            let what = format!("the descriptor at {at} is damaged");
            Error::new(Kind::Corrupt, what).caused_by(error)
        }
        _ => error,
    })
}

/// Opens all extents that a descriptor names.
fn open_extents(descriptor: &Descriptor, cache: &PageCache, cx: &Cx) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut start = 0_u64;
    for extent in &descriptor.extents {
        cx.cancel.check()?;
        let len = extent.sectors.checked_mul(SECTOR);
        let end = len
            .and_then(|len| start.checked_add(len))
            .filter(|end| *end <= LARGEST)
            .ok_or_else(|| {
                let what = format!("an extent of {} sectors at {start}", extent.sectors);
                Error::new(Kind::Corrupt, what)
            })?;
        if end == start {
            continue;
        }
        let content = open_extent(&extent.content, end.saturating_sub(start), cache, cx)?;
        extents.push(Extent {
            start,
            end,
            content,
        });
        start = end;
    }
    if extents.is_empty() {
        let what = "a descriptor without an extent that has any bytes";
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(extents)
}

/// Opens an extent of `len` bytes.
fn open_extent(
    content: &descriptor::Content,
    len: u64,
    cache: &PageCache,
    cx: &Cx,
) -> Result<Content> {
    let open = |name: &[u8]| cx.references.open(name, "extent", OpenMode::ReadOnly);
    let short = |name: &[u8], has: u64, needs: u64| {
        let name = quote(&String::from_utf8_lossy(name));
        let what = format!("extent {name} has {has} bytes, the descriptor needs {needs}");
        cut_off(what)
    };
    match content {
        descriptor::Content::Zero => Ok(Content::Zero),
        descriptor::Content::Flat { file, at } => {
            let volume = open(file)?.volume;
            let at = at.checked_mul(SECTOR);
            let end = at.and_then(|at| at.checked_add(len));
            match (at, end) {
                (Some(at), Some(end)) if end <= volume.size() => Ok(Content::Flat(volume, at)),
                (_, end) => Err(short(file, volume.size(), end.unwrap_or(u64::MAX))),
            }
        }
        descriptor::Content::Sparse(file) => {
            let volume = open(file)?.volume;
            let sparse = Sparse::open(&volume, cache).map_err(|error| {
                let name = quote(&String::from_utf8_lossy(file));
                let kind = match error.kind() {
                    Kind::NotThisFormat => Kind::Corrupt,
                    kind => kind,
                };
                Error::new(kind, format!("extent {name} cannot be used")).caused_by(error)
            })?;
            if sparse.header.capacity < len {
                return Err(short(file, sparse.header.capacity, len));
            }
            Ok(Content::Sparse(sparse))
        }
    }
}

/// Opens the disk that this one is a later state of: the one with this content ID.
fn open_parent(descriptor: &Descriptor, cid: u32, cache: &PageCache, cx: &Cx) -> Result<Volume> {
    let Some(name) = &descriptor.parent_name else {
        let what = "a snapshot that does not say what its parent is called";
        return Err(Error::new(Kind::Corrupt, what));
    };
    // Names are in the code page of the machine that made them; most are ASCII.
    let names = match std::str::from_utf8(name) {
        Ok(text) => candidates(text)
            .into_iter()
            .map(String::into_bytes)
            .collect(),
        Err(_) => vec![name.clone()],
    };
    let mut first = None;
    for name in &names {
        match try_parent(name, cid, cache, cx) {
            Ok(volume) => return Ok(volume),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| {
        let what = "a snapshot whose parent has no name";
        Error::new(Kind::Corrupt, what)
    }))
}

fn try_parent(name: &[u8], cid: u32, cache: &PageCache, cx: &Cx) -> Result<Volume> {
    let referred = cx.references.open(name, "parent", OpenMode::ReadOnly)?;
    let name = String::from_utf8_lossy(name);
    let inner = cx.of_referred(referred.references);
    let (volume, found) = open_disk(&referred.volume, cache, &inner)
        .map_err(|error| error.in_layer(&format!("{NAME} {}", quote_if_needed(&name))))?;
    if found != Some(cid) {
        let shown = quote(&name);
        let found = found.map_or("none".to_owned(), |found| format!("{found:08x}"));
        let what = format!(
            "the parent {shown} was changed since this snapshot was made from it: its content ID \
             is {found}, not {cid:08x}"
        );
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(volume)
}
