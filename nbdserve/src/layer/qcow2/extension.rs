//! Pure parser of the header extensions of a qcow2 image: what follows the header in its first
//! cluster.

use super::header::corrupt;
use crate::bytes::{array, slice};
use crate::error::quote;
use crate::{ByteRange, Result};

/// Bytes of an entry of the feature name table.
const FEATURE: usize = 48;

/// All extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    /// The format of the backing file.
    pub(super) backing_format: Option<Vec<u8>>,
    /// What features are called.
    pub(super) feature_names: Vec<FeatureName>,
    /// Where the bitmaps are.
    pub(super) bitmaps: Option<Bitmaps>,
    /// Where the LUKS header lies.
    pub(super) luks: Option<ByteRange>,
    /// The name of the external data file.
    pub(super) data_file: Option<Vec<u8>>,
}

/// An entry of the feature name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FeatureName {
    /// 0: incompatible, 1: compatible, 2: autoclear.
    pub(super) kind: u8,
    /// Its bit.
    pub(super) bit: u8,
    /// Not escaped.
    pub(super) name: String,
}

/// The bitmaps extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bitmaps {
    /// How many there are.
    pub(super) count: u32,
    /// Where their directory lies.
    pub(super) directory: ByteRange,
}

impl Extensions {
    /// The extensions in `bytes`, which follow the header. They end with one of type zero, or where
    /// the bytes end.
    ///
    /// # Errors
    /// `Corrupt` for one that goes beyond, or is not as long as it must be.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        let mut rest = bytes;
        loop {
            let kind = array(rest, 0).map(u32::from_be_bytes);
            let len = array(rest, 4).map(u32::from_be_bytes);
            let (Some(kind), Some(len)) = (kind, len) else {
                break;
            };
            if kind == 0 {
                break;
            }
            let body = usize::try_from(len)
                .ok()
                .and_then(|len| slice(rest, 8, len))
                .ok_or_else(|| {
                    let left = rest.len().saturating_sub(8);
                    let what = format!(
                        "the header extension {kind:#010x} has {len} bytes, {left} are left"
                    );
                    corrupt(what)
                })?;
            found.take(kind, body)?;
            let next = body.len().next_multiple_of(8).saturating_add(8);
            rest = rest.get(next..).unwrap_or(&[]);
        }
        Ok(found)
    }

    fn take(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        let short = |name: &str, least: usize| {
            let len = body.len();
            corrupt(format!(
                "the header extension for {name} has {len} bytes, not {least}"
            ))
        };
        match kind {
            0xe279_2aca => self.backing_format = Some(body.to_vec()),
            0x4441_5441 => self.data_file = Some(body.to_vec()),
            0x6803_f857 => {
                let (entries, _) = body.as_chunks::<FEATURE>();
                self.feature_names.extend(entries.iter().map(feature));
            }
            0x0537_be77 => {
                let place = array(body, 0)
                    .map(u64::from_be_bytes)
                    .zip(array(body, 8).map(u64::from_be_bytes));
                let (at, len) = place
                    .filter(|_| body.len() == 16)
                    .ok_or_else(|| short("encryption", 16))?;
                let range = ByteRange::new(at, len);
                let range = range.ok_or_else(|| {
                    corrupt(format!("a LUKS header of {len} bytes at {at} in the file"))
                })?;
                self.luks = Some(range);
            }
            0x2385_2875 => {
                let fields = (|| {
                    let count = array(body, 0).map(u32::from_be_bytes)?;
                    let len = array(body, 8).map(u64::from_be_bytes)?;
                    let at = array(body, 16).map(u64::from_be_bytes)?;
                    Some((count, len, at))
                })();
                let (count, len, at) = fields.ok_or_else(|| short("bitmaps", 24))?;
                let directory = ByteRange::new(at, len)
                    .ok_or_else(|| corrupt(format!("a bitmap directory of {len} bytes at {at}")))?;
                self.bitmaps = Some(Bitmaps { count, directory });
            }
            // What else there is may be ignored by who does not know it.
            _ => {}
        }
        Ok(())
    }

    /// The incompatible feature of this bit, for a message.
    pub(super) fn feature_name(&self, bit: u8) -> String {
        let name = self
            .feature_names
            .iter()
            .find(|feature| feature.kind == 0 && feature.bit == bit && !feature.name.is_empty());
        match name {
            Some(feature) => format!("{} (bit {bit})", quote(&feature.name)),
            None => format!("bit {bit}"),
        }
    }
}

fn feature(entry: &[u8; FEATURE]) -> FeatureName {
    let [kind, bit, name @ ..] = entry;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    FeatureName {
        kind: *kind,
        bit: *bit,
        name: String::from_utf8_lossy(name).into_owned(),
    }
}
