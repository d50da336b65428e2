//! Images that were cut into files: `disk.001 disk.002 ...`. The user names the first.
//!
//! `series.rs` has the names, `beside.rs` the files that have them, `joined.rs` the files as one
//! device.

mod beside;
mod joined;
mod series;

use std::path::{Path, PathBuf};

use beside::Beside;
pub use joined::Joined;
use joined::joined_identity;
use rustix::fs::FileType;
pub use series::Series;

use super::{File, OpenMode};
use crate::{Device, Error, Kind, Result};

/// Most parts of an image: a process holds a descriptor for each, of 1024 that it has at first.
pub const MOST_PARTS: usize = 500;

/// Whether the parts that follow a first one are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Where the name is that of a first part and a second one is there.
    Auto,
    /// In any case: a name that is none of a first part is an error.
    All,
    /// So many parts and no more.
    Exactly(usize),
    /// Not at all.
    Never,
}

/// Too many to be opened.
pub(super) fn too_many() -> Error {
    let what = format!("an image of more than {MOST_PARTS} parts");
    Error::new(Kind::Limit, what).hint("join them with cat(1)")
}

/// What is wrong with `name` as that of a first part.
pub(super) fn no_first_part(name: &str) -> Error {
    let what = format!("{name} does not have the name of a first part");
    Error::new(Kind::NotThisFormat, what)
        .hint("the first part is named: disk.001, disk.000, disk.01, disk.aa, disk.part1")
}

/// A part that has to be there, for there are others behind it.
pub(super) fn missing(name: &str, later: &str) -> Error {
    let what = format!("the part {name} is missing, {later} is there");
    Error::new(Kind::NotThisFormat, what).hint("--layer split:parts=N takes the first N only")
}

/// Opens the parts of an image whose first is at `first`, with all their locks: only that one when it is
/// no part or, as `look` has it, no others are wanted.
///
/// The first may be a link, and is followed wherever it leads. The others lie in its folder; a link there
/// is followed within the folder, and into those that the user has named: `allowed`. Where the first is a
/// link, its folder is that of the file, unless no other part is there: then it is that of the link.
///
/// # Errors
/// When a part is missing that has to be there, or there are too many; `Denied` for a part that is not
/// in the folder, or may have been put there by somebody else; as [`File::open`].
pub fn open(first: &Path, look: Look, mode: OpenMode, allowed: &[PathBuf]) -> Result<Vec<File>> {
    let mut files = vec![File::open(first, mode)?];
    // A disk has no parts beside it, though its link may be called `disk-part1`.
    let is_disk = look == Look::Auto && is_block_device(&files[0])?;
    if is_disk || matches!(look, Look::Never | Look::Exactly(1)) {
        return Ok(files);
    }
    let Some(beside) = Beside::find(first, &files[0], allowed)? else {
        return match look {
            Look::Auto => Ok(files),
            _ => Err(no_first_part(&first.display().to_string())),
        };
    };
    for name in beside.names(look)? {
        files.push(beside.open(&name, files.len(), mode)?);
    }
    if look == Look::Auto {
        check_lens(&files)?;
    }
    Ok(files)
}

fn is_block_device(file: &File) -> Result<bool> {
    let stat = rustix::fs::fstat(file).map_err(|errno| {
        let name = file.display_name();
        Error::io(format!("cannot look at {name}"), errno)
    })?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
}

/// Whoever cuts a file makes all parts as long as the first, but the last, which may be shorter. Where
/// it is not so a part is not complete, or they do not belong together.
fn check_lens(files: &[File]) -> Result<()> {
    let Some((whole, later)) = files.split_first() else {
        return Ok(());
    };
    let first = whole.geometry().size;
    let last = later.len();
    for (index, part) in (1..).zip(later) {
        let len = part.geometry().size;
        if len > first || (len < first && index < last) {
            let (path, name) = (part.display_name(), whole.display_name());
            let what = format!(
                "the part {path} has {len} bytes and the first, {name}, {first}: one of them is not \
                 complete, or they do not belong together"
            );
            let hint =
                "--layer split joins them as they are, --layer split:parts=1 takes the first only";
            return Err(Error::new(Kind::Corrupt, what).hint(hint));
        }
    }
    Ok(())
}

/// The first part of the image that `path` is a later part of, by their names and as far as both are
/// there.
#[must_use]
pub fn first_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let is_counter = |width: &usize| name.is_char_boundary(name.len().saturating_sub(*width));
    for width in (1..=4).filter(is_counter) {
        let (stem, _) = name.split_at(name.len().saturating_sub(width));
        for start in ["0001", "0000", "aaaa"] {
            let first = format!("{stem}{}", &start[4 - width..]);
            let index = Series::of(&first).and_then(|series| series.index(name));
            let first = path.with_file_name(&first);
            if index.is_some_and(|index| index > 0) && first.is_file() {
                return Some(first);
            }
        }
    }
    None
}

/// As [`Device::source_identity`] of the volume that these files become, as [`File::identity`] has
/// it.
#[must_use]
pub fn identity(files: &[File]) -> Option<String> {
    match files {
        [only] => only.identity(),
        all => Some(joined_identity(
            &all.iter().map(File::identity).collect::<Option<Vec<_>>>()?,
        )),
    }
}
