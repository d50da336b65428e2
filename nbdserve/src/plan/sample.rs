//! What is probed of a volume, and who is surest of it.

use crate::layer::partition::PARTITION;
use crate::layer::{Confidence, LAYERS, LayerType, Sample, Verdict};
use crate::{Access, Result, Volume};

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

/// Reads what is probed: the beginning, and the end where that costs no decoding.
pub(super) fn read_sample(volume: &Volume) -> Result<Bytes> {
    let mut bytes = read_head(volume)?;
    if volume.geometry().access == Access::Random {
        let len = bytes.head.len().min(Sample::TAIL);
        // len is at most the size.
        let at = bytes.size.saturating_sub(len as u64);
        bytes.tail = Some(volume.read_vec(at, len)?);
    }
    Ok(bytes)
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
