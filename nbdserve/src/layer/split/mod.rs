//! An image that was cut into files: what a plan calls it. The source finds the parts and puts them
//! together ([`crate::source::split`]), since no layer opens files; this one says so.

use super::{Args, LayerType, Param, Sample, Verdict, window::Window};
use crate::source::split::{Look, MOST_PARTS};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "split";

/// `--layer split` or `--layer split:parts=3`.
pub static SPLIT: LayerType = LayerType {
    name: NAME,
    summary: "an image that was cut into files (disk.001 disk.002 ...)",
    params: &[Param {
        name: "parts",
        summary: "how many (default: all that are there)",
    }],
    probe,
    open,
};

/// It is known by its name, not by its bytes.
fn probe(_sample: &Sample<'_>) -> Verdict {
    Verdict::No
}

fn open(below: &Volume, args: &Args, _cx: &Cx) -> Result<Volume> {
    let Some(have) = below.parts() else {
        let name = below.name();
        let what = format!("{name} is no file, so it is not cut into files");
        return Err(Error::new(Kind::NotThisFormat, what)
            .hint("--layer split is the first layer, of an image that is a file"));
    };
    if let Some(wanted) = parts(args)?
        && wanted != have
    {
        let what = format!("{wanted} parts are wanted, {have} were opened");
        return Err(Error::new(Kind::OutOfRange, what));
    }
    let all = ByteRange::between(0, below.size());
    Window::volume(NAME.to_owned(), below, all)
}

fn parts(args: &Args) -> Result<Option<usize>> {
    let Some(text) = args.get("parts") else {
        return Ok(None);
    };
    let count = text
        .parse()
        .ok()
        .filter(|count| (1..=MOST_PARTS).contains(count));
    count.map(Some).ok_or_else(|| {
        let what = format!("a number of parts from 1 to {MOST_PARTS} is expected");
        Error::new(Kind::OutOfRange, what)
    })
}

/// What the layers that the user named mean for the search for parts: a list that begins with
/// another one is taken as written.
///
/// # Errors
/// `OutOfRange` for a number of parts that makes no sense.
pub fn look(layers: &[crate::plan::LayerSpec]) -> Result<Look> {
    match layers.first() {
        None => Ok(Look::Auto),
        Some(layer) if layer.name() == NAME => {
            Ok(parts(layer.args())?.map_or(Look::All, Look::Exactly))
        }
        Some(_) => Ok(Look::Never),
    }
}
