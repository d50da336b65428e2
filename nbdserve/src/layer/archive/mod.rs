//! What archives have in common: their files, and which of them is meant.
//!
//! An archive has one layer on it, the one file that was chosen. A name is looked up here. Without
//! one, the files have to be looked at, and what a disk image looks like is known to all layers
//! and to `plan` only: whoever chooses passes that in as a function, so that nothing here knows
//! of the others. Names come from the image: they are compared, and escaped when they are printed.

mod choose;
#[cfg(feature = "testing")]
mod exercise;
mod glob;
mod reader;

use std::fmt::Debug;

pub(crate) use choose::choose;
#[cfg(feature = "testing")]
pub(crate) use exercise::exercise;
pub(super) use reader::{Allowance, Reader};

use super::{Args, LayerType, Param, tar, zip};
use crate::error::{escape, quote_if_needed};
use crate::{ByteRange, Cx, Result, Volume};

/// The layers that are archives.
static ARCHIVES: &[&ArchiveType] = &[&tar::ARCHIVE, &zip::ARCHIVE];

/// What an archive's layer takes.
pub(super) const PARAMS: &[Param] = &[
    Param {
        name: NAME,
        summary: "the file in it, with *, ? and [...] (default: the only image there is)",
    },
    Param {
        name: NUMBER,
        summary: "the file in it, by its place in the archive, from 1 on",
    },
];
const NAME: &str = "name";
const NUMBER: &str = "number";

/// A layer whose volume is one of several files.
#[derive(Debug)]
pub(crate) struct ArchiveType {
    /// Its name.
    pub(super) name: &'static str,
    /// Finds out what is in it.
    pub(crate) read: fn(below: &Volume, cx: &Cx) -> Result<Box<dyn Archive>>,
}

/// How the layer lists what is in it; `None` for a layer that is no archive.
pub(crate) fn of(layer: &LayerType) -> Option<&'static ArchiveType> {
    let mut all = ARCHIVES.iter().copied();
    all.find(|archive| archive.name == layer.name)
}

/// An archive whose files are known.
pub(crate) trait Archive: Debug {
    /// Its regular files, in order.
    fn files(&self) -> Box<dyn Iterator<Item = File<'_>> + '_>;

    /// What the archive itself says of which file is the disk.
    ///
    /// # Errors
    /// When what it says makes no sense.
    fn described(&self) -> Result<Option<Described>> {
        Ok(None)
    }

    /// Opens the file with this [`File::number`].
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Limit`, or what the volume below says.
    fn open(&self, number: u64) -> Result<Opened>;

    /// The first `len` bytes of a file, or all when it is shorter.
    ///
    /// # Errors
    /// As [`Self::open`].
    fn head(&self, number: u64, len: usize) -> Result<Vec<u8>> {
        let volume = self.open(number)?.volume;
        let size = usize::try_from(volume.size()).unwrap_or(usize::MAX);
        volume.read_vec(0, len.min(size))
    }
}

/// A regular file in an archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File<'a> {
    /// Its place among all entries, from 1 on.
    pub(super) number: u64,
    /// As the archive has it.
    pub(super) name: &'a [u8],
    /// Bytes, when it is taken out.
    pub(super) size: u64,
    /// What it is good for.
    pub(super) role: Role,
}

/// What a file is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It may be the image.
    Candidate,
    /// Another name of a file that is listed before, or nothing that anybody wants by itself.
    Aside,
    /// A later entry has the same name: taking out the archive leaves the later one.
    Replaced,
}

/// The files that an archive's own description says are disks.
#[derive(Debug)]
pub(crate) struct Described {
    /// [`File::number`] of each.
    pub(super) disks: Vec<u64>,
    /// Where that is written: `the descriptor box.ovf`.
    pub(super) by: String,
}

/// A file of an archive as a volume.
#[derive(Debug)]
pub(crate) struct Opened {
    /// It.
    pub(crate) volume: Volume,
    /// Where its bytes lie below, when they do as they are and may be written there.
    pub(crate) range: Option<ByteRange>,
}

/// A layer's `open`: without somebody who can look at files, only those are found that need no look.
pub(super) fn open(archive: &ArchiveType, below: &Volume, args: &Args, cx: &Cx) -> Result<Volume> {
    let files = (archive.read)(below, cx)?;
    let hint = format!("--layer {}:NAME", archive.name);
    let chosen = choose(files.as_ref(), args, None, &hint, cx)?;
    files.open(chosen.number).map(|opened| opened.volume)
}

/// The name of a file's volume: `tar:disk.img`.
pub(super) fn volume_name(layer: &str, name: &[u8]) -> String {
    let name = String::from_utf8_lossy(glob::trimmed(name));
    format!("{layer}:{}", escape(&name))
}

/// A name for a message.
pub(super) fn printed(name: &[u8]) -> String {
    quote_if_needed(&String::from_utf8_lossy(glob::trimmed(name)))
}

/// A name as a key: two entries with the same one are the same file.
pub(super) fn key(name: &[u8]) -> &[u8] {
    glob::trimmed(name)
}

/// Whether a file is only there because a Mac keeps attributes in files beside the others.
pub(super) fn is_side_file(name: &[u8]) -> bool {
    let name = key(name);
    let last = name.rsplit(|byte| *byte == b'/').next();
    name.starts_with(b"__MACOSX/") || last.is_some_and(|last| last.starts_with(b"._"))
}
