//! What is probed of a volume, and who is surest of it.

use crate::layer::partition::PARTITION;
use crate::layer::{Confidence, LAYERS, LayerType, Sample, Verdict};
use crate::{Access, Result, Volume};

/// A longer block is not decoded to look at its end.
const TAIL_BLOCK: u64 = 32 << 20;

/// The bytes that are probed.
pub(super) struct Bytes {
    head: Vec<u8>,
    tail: Option<Vec<u8>>,
    size: u64,
}

impl Bytes {
    pub(super) fn as_sample(&self) -> Sample<'_> {
        Sample {
            head: &self.head,
            tail: self.tail.as_deref(),
            size: self.size,
        }
    }
}

/// Reads what is probed: the beginning, and the end where that costs no decoding; or that of one block,
/// of a size that a disk has when something stands behind it.
pub(super) fn read_sample(volume: &Volume) -> Result<Bytes> {
    let mut bytes = read_head(volume)?;
    let len = bytes.head.len().min(Sample::TAIL);
    // len is at most the size.
    let at = bytes.size.saturating_sub(len as u64);
    match volume.geometry().access {
        Access::Random => bytes.tail = Some(volume.read_vec(at, len)?),
        // A block that is damaged is no reason not to show the others.
        Access::Block(block) if block <= TAIL_BLOCK && may_have_footer(bytes.size) => {
            bytes.tail = volume.read_vec(at, len).ok();
        }
        Access::Block(_) | Access::FirstPass => {}
    }
    Ok(bytes)
}

/// Whether a disk of so many bytes may have a sector behind its last one, as a fixed vhd has. Nearly all
/// others are whole numbers of MiB.
fn may_have_footer(size: u64) -> bool {
    size.is_multiple_of(512) && !size.is_multiple_of(1 << 20)
}

/// Reads the beginning only.
pub(super) fn read_head(volume: &Volume) -> Result<Bytes> {
    let size = volume.size();
    let len = usize::try_from(size)
        .unwrap_or(usize::MAX)
        .min(Sample::HEAD);
    Ok(Bytes {
        head: volume.read_vec(0, len)?,
        tail: None,
        size,
    })
}

/// The layer that is surest of the sample, the first of equals; partitions apart.
pub(super) fn strongest(sample: &Sample<'_>) -> Option<(&'static LayerType, Confidence, String)> {
    let mut best: Option<(&LayerType, Confidence, String)> = None;
    for layer in LAYERS {
        if layer.name == PARTITION.name {
            continue;
        }
        if let Verdict::Yes {
            confidence,
            evidence,
        } = (layer.probe)(sample)
            && best.as_ref().is_none_or(|(_, most, _)| confidence > *most)
        {
            best = Some((layer, confidence, evidence));
        }
    }
    best
}
