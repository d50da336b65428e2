//! Pure recognition of file systems, and of what else may be in a volume, by its first bytes.
#![deny(clippy::arithmetic_side_effects, clippy::as_conversions)]

mod foreign;
mod linux;
mod member;
mod wrapper;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bytes;
use crate::layer::{Confidence, Sample};

/// An ISO or UDF, which wins over the tables of a hybrid image.
const DISC: Confidence = Confidence(120);
/// A mark in the first sector.
const FIRST: Confidence = Confidence::MAGIC;
/// A superblock behind the first sector.
const BEHIND: Confidence = Confidence(50);

/// The command that makes something that can be opened of a wrapper, for hints.
pub(super) fn converter(wrapper: &str) -> Option<&'static str> {
    wrapper::converter(wrapper)
}

/// What can be done with what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It can be mounted, by somebody.
    FileSystem,
    /// A part of something larger, or nothing to be mounted: swap, LVM, RAID.
    Member,
    /// Another image is inside, in a format that no layer opens yet.
    Wrapper,
}

/// What a volume holds. Texts come from the image: escape them before they are printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsInfo {
    /// The type as in mount(8) where there is one: `ext4`, `vfat`, `luks`, `qcow2`.
    pub name: String,
    /// What it is good for.
    pub class: Class,
    /// A finer distinction: `FAT32`, `LUKS2`.
    pub detail: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// Its UUID or serial number, written as blkid(8) does.
    pub uuid: Option<String>,
    /// How it was recognised, for the user to read.
    pub evidence: String,
    /// What is wrong with it, as far as that can be seen: it is larger than what it lies in.
    pub problem: Option<String>,
}

impl fmt::Display for FsInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail.as_deref().unwrap_or(&self.name))?;
        if let Some(label) = &self.label {
            write!(f, " {}", crate::error::quote(label))?;
        }
        Ok(())
    }
}

/// A candidate with its weight.
#[derive(Clone, Debug)]
struct Found {
    confidence: Confidence,
    info: FsInfo,
    /// Bytes that it says it takes.
    states: Option<u64>,
}

impl Found {
    fn new(name: &str, class: Class, confidence: Confidence, evidence: String) -> Self {
        Self {
            confidence,
            info: FsInfo {
                name: name.to_owned(),
                class,
                detail: None,
                label: None,
                uuid: None,
                evidence,
                problem: None,
            },
            states: None,
        }
    }

    /// A file system with this magic at `at`.
    fn file_system(name: &str, confidence: Confidence, magic: &[u8], at: usize) -> Self {
        Self::new(name, Class::FileSystem, confidence, evidence(magic, at))
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.info.detail = Some(detail.into());
        self
    }

    fn label(mut self, label: Option<String>) -> Self {
        self.info.label = label;
        self
    }

    fn uuid(mut self, uuid: Option<String>) -> Self {
        self.info.uuid = uuid;
        self
    }

    fn states(mut self, bytes: Option<u64>) -> Self {
        self.states = bytes;
        self
    }
}

/// What the sample holds, with the weight that it has against the verdicts of layers; see the
/// order in [`crate::plan`]. No I/O, no panic.
#[must_use]
pub fn recognise(sample: &Sample<'_>) -> Option<(FsInfo, Confidence)> {
    // The first of equals. A member of an array leaves bytes at its start alone, where an older
    // file system may still be seen; making a file system wipes the mark of a member, but not that
    // of a pool.
    let probes = [
        member::probe,
        foreign::probe,
        linux::probe,
        member::probe_pool,
        wrapper::probe,
    ];
    let found = probes.iter().filter_map(|probe| probe(sample));
    let best = found.reduce(|best, next| {
        if next.confidence > best.confidence {
            next
        } else {
            best
        }
    })?;
    let mut info = best.info;
    let size = sample.size;
    let missing = best.states.filter(|states| *states > size);
    info.problem =
        missing.map(|states| format!("states a size of {states} bytes, and {size} are there"));
    Some((info, best.confidence))
}

/// `magic fd 37 7a 58 5a 00 at 0`.
fn evidence(magic: &[u8], at: usize) -> String {
    let hex: Vec<String> = magic.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("magic {} at {at}", hex.join(" "))
}

/// The text in the `len` bytes at `at`: up to the first zero, without blanks at the end.
fn text(head: &[u8], at: usize, len: usize) -> Option<String> {
    let field = bytes::slice(head, at, len)?;
    let field = field.split(|&byte| byte == 0).next()?;
    let text = String::from_utf8_lossy(field).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The 16 bytes at `at` as a UUID in the order of the bytes (RFC 9562); `None` for all zero.
fn uuid(head: &[u8], at: usize) -> Option<String> {
    let bytes: [u8; 16] = bytes::array(head, at)?;
    (bytes != [0; 16]).then(|| {
        let mut text = String::with_capacity(36);
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        text
    })
}

/// The serial number of FAT and exFAT: `12AB-34CD`.
fn serial(head: &[u8], at: usize) -> Option<String> {
    let serial = bytes::le32(head, at)?;
    (serial != 0).then(|| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff))
}
