//! Images that were cut into files: `disk.001 disk.002 ...`. The user names the first.
//!
//! `series.rs` has the names, `joined.rs` the files as one device.

mod joined;
mod series;

use std::path::{Path, PathBuf};

pub use joined::Joined;
use joined::joined_identity;
pub use series::Series;

use super::{File, OpenMode};
use crate::{Device, Error, Kind, Result};

/// Most parts of an image: a process holds a descriptor for each, of 1024 that it has at first.
pub const MOST_PARTS: usize = 500;
/// Most entries of a folder that are looked at for parts behind a gap.
const MOST_ENTRIES: usize = 100_000;

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

/// The paths of the parts of an image whose first is at `first`: only that one when it is no part
/// or, as `look` has it, no others are wanted.
///
/// # Errors
/// When a part is missing that has to be there, or there are too many.
pub fn find(first: &Path, look: Look) -> Result<Vec<PathBuf>> {
    let alone = || Ok(vec![first.to_owned()]);
    if matches!(look, Look::Never | Look::Exactly(1)) {
        return alone();
    }
    let file_name = first.file_name().and_then(|name| name.to_str());
    let Some(series) = file_name.and_then(Series::of) else {
        return match look {
            Look::Auto => alone(),
            _ => Err(no_first_part(&first.display().to_string())),
        };
    };
    let folder = first.parent().unwrap_or(Path::new(""));
    let mut found = vec![first.to_owned()];
    while let Some(name) = series.name(found.len()) {
        if look == Look::Exactly(found.len()) {
            return Ok(found);
        }
        let path = folder.join(&name);
        // What is there and cannot be looked at fails when it is opened.
        if path.symlink_metadata().is_err() {
            if matches!(look, Look::Exactly(_)) {
                let what = format!("there is no part {}", path.display());
                return Err(Error::new(Kind::NotThisFormat, what));
            }
            if let Some(later) = behind(folder, &series, found.len()) {
                return Err(missing(&path.display().to_string(), &later));
            }
            break;
        }
        if found.len() >= MOST_PARTS {
            return Err(too_many());
        }
        found.push(path);
    }
    Ok(found)
}

/// The first part in `folder` after the part `index`.
fn behind(folder: &Path, series: &Series, index: usize) -> Option<String> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let names = std::fs::read_dir(folder).ok()?.take(MOST_ENTRIES);
    let later = names.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let at = series.index(name.to_str()?)?;
        // A number of eight digits is a date.
        (at > index && at < MOST_PARTS).then_some(at)
    });
    series.name(later.min()?)
}

/// Opens the parts of an image whose first is at `first`, with all their locks.
///
/// # Errors
/// As [`find`] and [`File::open`].
pub fn open(first: &Path, look: Look, mode: OpenMode) -> Result<Vec<File>> {
    let paths = find(first, look)?;
    let files: Vec<_> = paths
        .iter()
        .map(|path| File::open(path, mode))
        .collect::<Result<_>>()?;
    if look == Look::Auto {
        let lens: Vec<_> = files.iter().map(|file| file.geometry().size).collect();
        check_lens(&paths, &lens)?;
    }
    Ok(files)
}

/// Whoever cuts a file makes all parts as long as the first, but the last, which may be shorter. Where
/// it is not so a part is not complete, or they do not belong together.
fn check_lens(paths: &[PathBuf], lens: &[u64]) -> Result<()> {
    let Some((first, later)) = lens.split_first() else {
        return Ok(());
    };
    let last = later.len();
    for (index, (path, len)) in (1..).zip(paths.iter().skip(1).zip(later)) {
        if len > first || (len < first && index < last) {
            let (path, name) = (path.display(), paths[0].display());
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
