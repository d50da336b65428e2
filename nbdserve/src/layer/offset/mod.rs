//! A part of an image, by position: a partition that no table tells of, an image with a header.

use super::{Args, LayerType, Param, Sample, Verdict, window::Window};
use crate::size::parse_size;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "offset";

/// `--layer offset:1M` or `--layer offset:offset=1M,size=4G`.
pub static OFFSET: LayerType = LayerType {
    name: NAME,
    summary: "a part of the image, by position",
    params: &[
        Param {
            name: "offset",
            summary: "first byte of the part (default 0)",
        },
        Param {
            name: "size",
            summary: "bytes of the part (default: all that follow)",
        },
    ],
    probe,
    open,
};

/// A part of an image has no mark of its own.
fn probe(_sample: &Sample<'_>) -> Verdict {
    Verdict::No
}

fn open(below: &Volume, args: &Args, _cx: &Cx) -> Result<Volume> {
    let range = range(below.size(), args)?;
    Window::volume(NAME.to_owned(), below, range)
}

/// The part that `args` mean of a volume of `have` bytes.
pub(crate) fn range(have: u64, args: &Args) -> Result<ByteRange> {
    let number = |key: &str| args.get(key).map(|text| parse_size(text)).transpose();
    let start = number("offset")?.unwrap_or(0);
    let size = number("size")?;
    let range = match size {
        Some(size) => ByteRange::new(start, size),
        None if start <= have => Some(ByteRange::between(start, have)),
        None => None,
    };
    range.filter(|range| range.end() <= have).ok_or_else(|| {
        let what = match size {
            Some(size) => format!("{size} bytes at {start} are not within its {have} bytes"),
            None => format!("an offset of {start} is beyond its {have} bytes"),
        };
        Error::new(Kind::OutOfRange, what)
    })
}
