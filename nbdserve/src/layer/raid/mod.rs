//! Arrays of Linux MD (mdadm): RAID 0, RAID 1 and linear, when all members are in one image.
//!
//! `header.rs` has the superblocks, `array.rs` puts them together; both are pure. `read.rs` finds them
//! on a volume. Reads and writes go to where the bytes lie (`../striped.rs`). `mirror.rs` marks the
//! superblocks of a mirror that is written; what becomes of them is in `mark.rs`, which is pure.

pub(crate) mod array;
pub(crate) mod header;
mod mark;
mod mirror;
pub(crate) mod read;

use array::{Found, Layout, State};
use header::{Version, grouped, level_name};
use mirror::Mirror;
use read::{Arrays, Depth};

use super::striped::{Striped, Writes};
use super::{Args, Confidence, LayerType, Param, Sample, Verdict};
use crate::error::quote;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "raid";
/// Arrays that are listed in a message.
const MAX_LISTED: usize = 16;

/// `--layer raid:UUID` or `--layer raid:NAME`.
pub static RAID: LayerType = LayerType {
    name: NAME,
    summary: "an array of Linux MD (RAID 0, RAID 1, linear)",
    params: &[
        Param {
            name: "array",
            summary: "its UUID or name (default: the only one)",
        },
        Param {
            name: "degraded",
            summary: "yes: open a mirror of which members are missing, read-only",
        },
        Param {
            name: "layout",
            summary: "of a RAID 0 of unequal members that does not say: original, alternate",
        },
    ],
    probe,
    open,
};

/// The superblocks at the start. Those at the end are found when the layer is named, and in partitions.
fn probe(sample: &Sample<'_>) -> Verdict {
    for version in [Version::V11, Version::V12] {
        let at = version
            .place(sample.size)
            .and_then(|at| usize::try_from(at).ok());
        let Some(bytes) = at.and_then(|at| sample.head.get(at..)) else {
            continue;
        };
        if !header::is_superblock(bytes, version) {
            continue;
        }
        let at = at.unwrap_or(0);
        let found = header::superblock(bytes, version, at.try_into().unwrap_or(0), sample.size);
        return Verdict::Yes {
            confidence: match version {
                Version::V11 => Confidence::MAGIC,
                _ => Confidence(50),
            },
            evidence: match found {
                Ok(found) => {
                    let level = level_name(found.array.level);
                    let (version, id) = (version.name(), grouped(&found.array.id));
                    format!("superblock {version} of MD at {at}, {level} {id}")
                }
                Err(error) => format!("superblock of MD at {at}, but {error}"),
            },
        };
    }
    Verdict::No
}

fn open(below: &Volume, args: &Args, _cx: &Cx) -> Result<Volume> {
    let (arrays, damage) = Arrays::look(below, Depth::Full)?;
    if arrays.arrays.is_empty() {
        return Err(damage.unwrap_or_else(|| {
            let what = "there is no member of an array of MD here";
            Error::new(Kind::NotThisFormat, what)
        }));
    }
    let found = arrays.choose(args.get("array").map(String::as_str))?;
    let layout = match args.get("layout").map(String::as_str) {
        None => None,
        Some("original") => Some(Layout::Original),
        Some("alternate") => Some(Layout::Alternate),
        Some(other) => {
            let what = format!("the layout {}; there are original, alternate", quote(other));
            return Err(Error::new(Kind::OutOfRange, what));
        }
    };
    let degraded = match args.get("degraded").map(String::as_str) {
        None | Some("no") => false,
        Some("yes") => true,
        Some(other) => {
            let what = format!("degraded={}; yes and no are possible", quote(other));
            return Err(Error::new(Kind::OutOfRange, what));
        }
    };
    found.open(below, layout, degraded)
}

/// The parts of `below` that are members of arrays: what else they look like is the array's.
pub(super) fn taken(below: &Volume, cx: &Cx) -> Result<Vec<ByteRange>> {
    cx.cancel.check()?;
    let arrays = Arrays::read(below, Depth::Cheap)?;
    let members = arrays.arrays.iter().flat_map(|found| &found.members);
    Ok(members
        .filter(|member| member.part.number.is_some())
        .map(|member| member.part.range)
        .collect())
}

impl Arrays {
    /// The arrays that `name` may mean: a UUID, a name with or without its host, a device.
    pub(crate) fn named(&self, name: &str) -> Vec<&Found> {
        let plain = name.strip_prefix("/dev/").unwrap_or(name);
        let plain = plain.strip_prefix("md/").unwrap_or(plain);
        let digits: String = name.chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let exact: Vec<&Found> = self
            .arrays
            .iter()
            .filter(|found| {
                let array = &found.array;
                let short = array.name.split_once(':').map_or("", |(_, short)| short);
                array.id.eq_ignore_ascii_case(&digits)
                    || !array.name.is_empty() && (array.name == name || array.name == plain)
                    || !short.is_empty() && (short == name || short == plain)
                    || device(plain).is_some_and(|number| {
                        array.minor.is_some_and(|minor| minor.to_string() == number)
                            || array.name == number
                            || short == number
                    })
            })
            .collect();
        // The kernel counts down from 127 for what has no number.
        match (exact.is_empty(), device(plain), self.arrays.as_slice()) {
            (true, Some(_), [only]) => vec![only],
            _ => exact,
        }
    }

    /// The array called `name`; without a name the only one.
    ///
    /// # Errors
    /// `OutOfRange` when there is none or more than one, with a list.
    fn choose(&self, name: Option<&str>) -> Result<&Found> {
        let found = match name {
            Some(name) => self.named(name),
            None => self.arrays.iter().collect(),
        };
        if let [one] = found.as_slice() {
            return Ok(one);
        }
        let what = match (name, found.len()) {
            (Some(name), 0) => format!("there is no array {}", quote(name)),
            (Some(name), count) => format!("{} is the name of {count} arrays", quote(name)),
            (None, _) => "which array is meant is not said".to_owned(),
        };
        let all = self.arrays.iter().take(MAX_LISTED);
        let list: Vec<String> = all.map(|found| found.array.title()).collect();
        let list = list.join(", ");
        Err(
            Error::new(Kind::OutOfRange, format!("{what}; there are {list}"))
                .hint("--layer raid:UUID"),
        )
    }
}

/// The number of `md127`.
fn device(name: &str) -> Option<&str> {
    let number = name.strip_prefix("md")?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(number)
}

impl Found {
    /// Opens the array; it is called `raid:UUID`.
    ///
    /// # Errors
    /// As [`Found::maps`].
    pub(crate) fn open(
        &self,
        below: &Volume,
        layout: Option<Layout>,
        degraded: bool,
    ) -> Result<Volume> {
        let maps = self.maps(layout, degraded)?;
        let name = format!("{NAME}:{}", grouped(&self.array.id));
        let writes = match self.array.level {
            // What cannot be written below needs no marks.
            1 if below.writer().is_none() => Writes::Refused(None),
            1 => match Mirror::new(below, self)? {
                Ok(mirror) => Writes::Kept(Box::new(mirror)),
                Err(why) => Writes::Refused(Some(why)),
            },
            _ => Writes::Pass,
        };
        Striped::volume(name, below, maps, writes)
    }

    /// `partition 1: place 0, partition 2: spare`
    pub(crate) fn members_text(&self) -> String {
        let members = self.members.iter().map(|member| {
            let state: State = self.state(&member.superblock);
            format!("{}: {state}", member.part)
        });
        members.collect::<Vec<_>>().join(", ")
    }
}
