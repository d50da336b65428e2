//! A disk made of extents, with the disk below it of which it is a later state.

use super::grain::number;
use super::sparse::{Grain, Sparse};
use crate::layer::mapped::{Map, Place, Run};
use crate::{ByteRange, Result, Volume};

/// Written by hand, a descriptor may end with the last extent, too.
const OPEN_ENDED: &str = "the descriptor ends with its extents, without the disk data base (ddb.): if \
                          it was cut off, extents may be missing at the end of the disk";

/// What an extent is.
#[derive(Debug)]
pub(super) enum Content {
    /// A part of a file, from here on.
    Flat(Volume, u64),
    Sparse(Sparse),
    Zero,
}

/// A part of the disk.
#[derive(Debug)]
pub(super) struct Extent {
    /// Its first byte in the disk.
    pub(super) start: u64,
    /// One past its last.
    pub(super) end: u64,
    pub(super) content: Content,
}

/// All extents in order, without gaps, none of them empty.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) extents: Vec<Extent>,
    pub(super) parent: Option<Volume>,
    /// The text that names the extents ends before the disk data base.
    pub(super) is_open_ended: bool,
}

impl Disk {
    /// The sparse extent of this number, and where it begins.
    pub(super) fn sparse(&self, number: usize) -> Option<(u64, &Sparse)> {
        let extent = self.extents.get(number)?;
        match &extent.content {
            Content::Sparse(sparse) => Some((extent.start, sparse)),
            _ => None,
        }
    }

    /// What is not stored here.
    fn absent(&self, offset: u64, end: u64) -> Run<'_> {
        match &self.parent {
            Some(parent) => Run::of_parent(offset, end, parent),
            None => Run::hole(end),
        }
    }

    fn run_of<'a>(
        &'a self,
        index: usize,
        extent: &'a Extent,
        sparse: &'a Sparse,
        offset: u64,
        until: u64,
    ) -> Result<Run<'a>> {
        let grain = sparse.header.grain;
        let inner = offset.saturating_sub(extent.start);
        let until = until.min(extent.end).saturating_sub(extent.start);
        let (found, count) = sparse.grains(inner, until)?;
        // A power of two, so never zero.
        let first = inner.checked_div(grain).unwrap_or(0);
        let skip = inner.saturating_sub(first.saturating_mul(grain));
        let end = first.saturating_add(count).saturating_mul(grain);
        let end = extent.start.saturating_add(end).min(extent.end);
        Ok(match found {
            Grain::Absent => self.absent(offset, end),
            Grain::Zero => Run::zero(end),
            Grain::At(_) if sparse.header.compressed => Run {
                end,
                place: Place::Packed(number(index, first)),
            },
            Grain::At(at) => {
                let what = format!("grain {first}");
                let at = at.saturating_add(skip);
                Run::within(offset, end, sparse.file(), at, &what)?
            }
        })
    }
}

impl Map for Disk {
    fn size(&self) -> u64 {
        self.extents.last().map_or(0, |last| last.end)
    }

    fn below(&self) -> Vec<&Volume> {
        let own = self
            .extents
            .iter()
            .filter_map(|extent| match &extent.content {
                Content::Flat(volume, _) => Some(volume),
                Content::Sparse(sparse) => Some(sparse.file()),
                Content::Zero => None,
            });
        own.chain(&self.parent).collect()
    }

    fn run(&self, offset: u64, until: u64) -> Result<Run<'_>> {
        let index = self.extents.partition_point(|extent| extent.end <= offset);
        let Some(extent) = self.extents.get(index) else {
            return Ok(Run::hole(until));
        };
        match &extent.content {
            Content::Zero => Ok(Run::hole(extent.end)),
            Content::Flat(volume, at) => {
                let at = at.saturating_add(offset.saturating_sub(extent.start));
                Run::within(offset, extent.end, volume, at, "a flat extent")
            }
            Content::Sparse(sparse) => self.run_of(index, extent, sparse, offset, until),
        }
    }

    fn allocated(&self) -> Option<u64> {
        let parts = self.extents.iter().map(|extent| match &extent.content {
            Content::Zero => Some(0),
            Content::Flat(volume, at) => {
                let len = extent.end.saturating_sub(extent.start);
                let range = ByteRange::between(*at, at.saturating_add(len));
                volume.stored(range).or(Some(len))
            }
            Content::Sparse(sparse) => {
                let stored = sparse.file().size().saturating_sub(sparse.header.overhead);
                // Deflate makes data shrink to about a half.
                let shrunk = u32::from(sparse.header.compressed);
                stored.checked_shl(shrunk)
            }
        });
        let own = parts.sum::<Option<u64>>()?;
        let Some(parent) = &self.parent else {
            return Some(own);
        };
        let whole = ByteRange::between(0, parent.size());
        Some(own.saturating_add(parent.stored(whole)?))
    }

    fn notes(&self) -> Vec<String> {
        let several = self.extents.len() > 1;
        let own = (1_u64..).zip(&self.extents).filter_map(|(number, extent)| {
            let Content::Sparse(sparse) = &extent.content else {
                return None;
            };
            let note = sparse.note()?;
            Some(match several {
                true => format!("extent {number}: {note}"),
                false => note,
            })
        });
        let parent = self.parent.iter().flat_map(Volume::notes);
        let ended = self.is_open_ended.then(|| OPEN_ENDED.to_owned());
        ended
            .into_iter()
            .chain(own)
            .chain(parent.map(|note| format!("parent: {note}")))
            .collect()
    }
}
