//! Writes that do not reach what is below: kept apart, in memory and a temp file, or in a file for
//! the next time.
//!
//! ```text
//!  header.rs  what stands in a cow file        map.rs      which blocks are stored
//!  base.rs    the image that it goes with      scratch.rs  blocks that are gone at the end
//!  kept.rs    blocks in a file                 device.rs   reading and writing
//!  medium.rs  what that file lies on           commit.rs   writing the blocks back
//! ```

mod base;
mod commit;
mod device;
pub mod header;
mod kept;
mod map;
mod medium;
mod scratch;

use std::ffi::OsString;
use std::fmt::Debug;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub use base::Base;
pub use commit::{Committed, commit};
pub use medium::Medium;

use super::{Args, LayerType, Param, Sample, Verdict};
use crate::bytes::{from_hex, hex};
use crate::error::{escape, shell};
use crate::size::format_size;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};
use device::Cow;
use kept::Kept;
use map::{Map, State};
use scratch::Scratch;

const NAME: &str = "cow";
/// The parameters that name the file.
const FILE: &str = "file";
const FILE_BYTES: &str = "file-bytes";

/// `--cow`, `--cow=FILE`.
pub static COW: LayerType = LayerType {
    name: NAME,
    summary: "writes kept apart from the image (--cow)",
    params: &[
        Param {
            name: FILE,
            summary: "where they are kept (default: nowhere, they are gone at the end)",
        },
        Param {
            name: FILE_BYTES,
            summary: "the same in hexadecimal digits, for a path that is not UTF-8",
        },
    ],
    probe,
    open: |below, args, cx| Ok(open_on(below, args, &Base::default(), cx)?.0),
};

/// A file of ours goes with its image, it is none.
fn probe(_sample: &Sample<'_>) -> Verdict {
    Verdict::No
}

/// The parameter, and its value, for writes that are kept in `file`. Paths are bytes, parameters are text.
#[must_use]
pub fn args_for(file: &Path) -> (String, String) {
    match file.to_str() {
        Some(text) => (FILE.to_owned(), text.to_owned()),
        None => (FILE_BYTES.to_owned(), hex(file.as_os_str().as_bytes())),
    }
}

/// What [`args_for`] has made a parameter of; `None` when it is not there.
///
/// # Errors
/// `OutOfRange` when it is no path.
fn file_of(args: &Args) -> Result<Option<PathBuf>> {
    if let Some(text) = args.get(FILE) {
        return Ok(Some(PathBuf::from(text)));
    }
    let Some(digits) = args.get(FILE_BYTES) else {
        return Ok(None);
    };
    let Some(bytes) = from_hex(digits) else {
        let what = format!("{FILE_BYTES}={} is no path", escape(digits));
        return Err(Error::new(Kind::OutOfRange, what));
    };
    Ok(Some(PathBuf::from(OsString::from_vec(bytes))))
}

/// Where the written blocks are.
trait Storage: Send + Sync + Debug {
    /// Stores whole blocks, the last of the disk perhaps a short one, and sets their state.
    fn write(&self, map: &Map, offset: u64, buf: &[u8]) -> Result<()>;

    /// Changes a part of `block`, which is stored; `false` when it is not any more.
    fn patch(&self, state: State, block: u64, offset: u64, bytes: &[u8]) -> Result<bool>;

    /// Reads from blocks that are in `state`. How many bytes; fewer when a block is not any more.
    fn read(&self, state: State, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// Sets blocks that were in `state` to [`State::Zero`] and gives their space back.
    fn clear(&self, map: &Map, state: State, blocks: (u64, u64), range: ByteRange);

    /// Makes everything durable that was written before.
    fn flush(&self, map: &Map) -> Result<()>;

    /// Whether there is anything to make durable.
    fn is_durable(&self) -> bool;
}

/// Opens the layer on `below`, which is what `base` says. With what there is to say of it.
///
/// # Errors
/// `Changed` when the file goes with something else, `Denied` when it is in use, `Corrupt` when it
/// is damaged, else what the system says.
pub fn open_on(
    below: &Volume,
    args: &Args,
    base: &Base,
    cx: &Cx,
) -> Result<(Volume, Option<String>)> {
    let Some(path) = file_of(args)? else {
        let block = header::block_for(below.size())?;
        let mut map = Map::new(below.size().div_ceil(u64::from(block).max(1)));
        map.count_in(&cx.cache);
        let storage = Box::new(Scratch::new(block, cx));
        return Ok((Cow::volume(below, block, map, storage), None));
    };
    let (kept, mut map) = Kept::open(&path, true, below, base)?;
    map.count_in(&cx.cache);
    opened(below, kept, map)
}

/// As [`open_on`] for a file that lies on `medium`.
///
/// # Errors
/// As [`open_on`].
pub fn open_medium(
    below: &Volume,
    medium: Box<dyn Medium>,
    name: &str,
    base: &Base,
) -> Result<Volume> {
    let (kept, map) = Kept::on(medium, name.to_owned(), below, base)?;
    Ok(opened(below, kept, map)?.0)
}

fn opened(below: &Volume, kept: Kept, map: Map) -> Result<(Volume, Option<String>)> {
    let header = kept.header();
    if header.state == header::State::Committing {
        let name = kept.name();
        let base = match header.name.as_str() {
            "" => "IMAGE",
            base => base,
        };
        let what = format!("the commit of {name} to {base} was begun and not finished");
        let (name, base) = (shell(name), shell(base));
        return Err(Error::new(Kind::Denied, what).hint(format!(
            "loopmount --commit --cow={name} {base} finishes it"
        )));
    }
    let note = describe(header, &map);
    let block = header.block;
    Ok((Cow::volume(below, block, map, Box::new(kept)), Some(note)))
}

/// `12.5 MiB written, 4 KiB zeroed, made 2026-01-31 for disk.raw`.
fn describe(header: &header::Header, map: &Map) -> String {
    let (stored, zero) = map.count();
    let bytes = |blocks: u64| {
        let bytes = blocks.saturating_mul(u64::from(header.block));
        format_size(bytes.min(header.size))
    };
    let what = match (stored, zero) {
        (0, 0) => "nothing written yet".to_owned(),
        (stored, 0) => format!("{} written", bytes(stored)),
        (0, zero) => format!("{} zeroed", bytes(zero)),
        (stored, zero) => format!("{} written, {} zeroed", bytes(stored), bytes(zero)),
    };
    let name = match header.name.as_str() {
        "" => String::new(),
        name => format!(" for {name}"),
    };
    format!("{what}; made {}{name}", date(header.created))
}

/// The day of a moment, in UTC.
fn date(seconds: u64) -> String {
    // Years that begin in March, so that the leap day is their last (the civil calendar's rules).
    let days = seconds / 86_400;
    let days = days.saturating_add(719_468);
    let era = days / 146_097;
    let of_era = days % 146_097;
    let leap = (of_era / 1460)
        .saturating_sub(of_era / 36_524)
        .saturating_add(of_era / 146_096);
    let year = of_era.saturating_sub(leap) / 365;
    let before = year
        .saturating_mul(365)
        .saturating_add(year / 4)
        .saturating_sub(year / 100);
    let of_year = of_era.saturating_sub(before);
    let shifted = of_year.saturating_mul(5).saturating_add(2) / 153;
    let before = shifted.saturating_mul(153).saturating_add(2) / 5;
    let day = of_year.saturating_sub(before).saturating_add(1);
    let month = match shifted {
        0..10 => shifted.saturating_add(3),
        _ => shifted.saturating_sub(9),
    };
    let year = era
        .saturating_mul(400)
        .saturating_add(year)
        .saturating_add(u64::from(month <= 2));
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_704_067_199, "2023-12-31"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(super::date(seconds), expected);
        }
    }
}
