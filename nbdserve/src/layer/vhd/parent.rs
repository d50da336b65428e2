//! The disk that a differencing one is based on: found by the paths that the image has, opened
//! through the gate, and known by its identity.

use super::header::{Dynamic, utf16};
use crate::bytes::hex;
use crate::error::{quote, quote_if_needed};
use crate::layer::pages::PageCache;
use crate::layer::winpath::candidates;
use crate::source::OpenMode;
use crate::{Cx, Error, Kind, Result, Volume};

/// Opens the parent.
///
/// # Errors
/// `Corrupt` when the image names none, or what it names is another disk; what the gate says about
/// the first name when there is no such file by any of them.
pub(super) fn open(
    below: &Volume,
    dynamic: &Dynamic,
    cache: &PageCache,
    cx: &Cx,
) -> Result<Volume> {
    let mut first = None;
    for name in names(below, dynamic)? {
        match try_one(&name, dynamic, cache, cx) {
            Ok(volume) => return Ok(volume),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| {
        let what = "a differencing disk that does not say what its parent is called";
        Error::new(Kind::Corrupt, what)
    }))
}

/// All names under which the parent may be found, best first.
fn names(below: &Volume, dynamic: &Dynamic) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        for candidate in candidates(name) {
            if !names.contains(&candidate) {
                names.push(candidate);
            }
        }
    };
    for locator in &dynamic.locators {
        let end = locator.at.checked_add(u64::from(locator.len));
        if end.is_none_or(|end| end > below.size()) {
            let (at, len, size) = (locator.at, locator.len, below.size());
            let what = format!("a path of the parent of {len} bytes at {at}, the file has {size}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let len = usize::try_from(locator.len).unwrap_or(0);
        let bytes = below.read_vec(locator.at, len)?;
        add(&utf16(&bytes, u16::from_le_bytes));
    }
    add(&dynamic.parent_name);
    Ok(names)
}

/// Opens the file called `name`, if it is the parent.
fn try_one(name: &str, dynamic: &Dynamic, cache: &PageCache, cx: &Cx) -> Result<Volume> {
    let referred = cx
        .references
        .open(name.as_bytes(), "parent", OpenMode::ReadOnly)?;
    let inner = cx.of_referred(referred.references);
    let (volume, id) = super::open_disk(&referred.volume, cache, &inner)
        .map_err(|error| error.in_layer(&format!("vhd {}", quote_if_needed(name))))?;
    if id != dynamic.parent_id {
        let what = format!(
            "the parent {} is not the disk that this one was made from: its identity is {}, not \
             {}",
            quote(name),
            hex(&id),
            hex(&dynamic.parent_id)
        );
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(volume)
}
