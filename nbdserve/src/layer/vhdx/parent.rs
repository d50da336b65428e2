//! The disk that a differencing one is based on: found by the paths that the image has, opened
//! through the gate, and known by the state that it was in.

use super::header::{corrupt, guid_text};
use super::metadata::Locator;
use crate::error::{escape, quote, quote_if_needed};
use crate::layer::pages::PageCache;
use crate::layer::winpath::candidates;
use crate::source::OpenMode;
use crate::{Cx, Result, Volume};

/// Opens the parent.
///
/// # Errors
/// `Corrupt` when the image names none, or what it names has changed since; what the gate says about
/// the first name when there is no such file by any of them.
pub(super) fn open(locator: &Locator, cache: &PageCache, cx: &Cx) -> Result<Volume> {
    let mut names: Vec<String> = Vec::new();
    for name in locator.paths.iter().flat_map(|path| candidates(path)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut first = None;
    for name in names {
        match try_one(&name, locator, cache, cx) {
            Ok(volume) => return Ok(volume),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| {
        corrupt("a differencing disk that does not say what its parent is called")
    }))
}

/// Opens the file called `name`, if it is the parent.
fn try_one(name: &str, locator: &Locator, cache: &PageCache, cx: &Cx) -> Result<Volume> {
    let referred = cx
        .references
        .open(name.as_bytes(), "parent", OpenMode::ReadOnly)?;
    let inner = cx.of_referred(referred.references);
    let (volume, id) = super::open_disk(&referred.volume, cache, &inner)
        .map_err(|error| error.in_layer(&format!("vhdx {}", quote_if_needed(name))))?;
    let id = guid_text(id);
    if !locator.linkage.contains(&id) {
        let wanted = locator.linkage.join(" or ");
        let what = format!(
            "the parent {} is not what this disk was made from, or was written to since: it is \
             {id}, not {}",
            quote(name),
            escape(&wanted)
        );
        return Err(corrupt(what));
    }
    Ok(volume)
}
