//! Images that were cut into files: `disk.001 disk.002 ...`. The user names the first.
//!
//! The name of a first part ends in a dot, the word `part` or nothing of the two but digits or
//! letters that count:
//!
//! * two to four digits that are 0 or 1: `disk.001`, `disk.000`, `disk.01`, `disk.part1`;
//! * two to four letters `a`, as split(1) has them: `disk.aa`, `disk.partaa`.
//!
//! After `part` one digit will do, and a `-`, `_` or `.` may stand between.

use std::path::{Path, PathBuf};

use super::{File, OpenMode};
use crate::hints::Hints;
use crate::{
    ByteRange, Device, Done, Error, Extents, Geometry, Kind, Result, Volume, WriteFeatures, Writer,
    ZeroOpts,
};

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

/// The names of the parts of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// All before what counts.
    stem: String,
    /// What the first part's name ends in.
    first: Counter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counter {
    /// At least `width` digits.
    Digits { start: usize, width: usize },
    /// `width` letters.
    Letters { width: usize },
}

impl Series {
    /// The series whose first part has this file name; `None` for a name that is none of a first
    /// part.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let counts = |c: char| c.is_ascii_digit() || c == 'a';
        let stem = name.trim_end_matches(counts);
        // A stem may itself end in the letter, as in `.data`.
        let (stem, word) = match stem.char_indices().next_back() {
            Some((_, '.')) => (stem, stem.trim_end_matches('.').ends_with("part")),
            _ if is_part(stem) => (stem, true),
            _ => return None,
        };
        let counter = &name[stem.len()..];
        let width = counter.len();
        let least = if word || is_part(stem) { 1 } else { 2 };
        if width > 4 {
            return None;
        }
        let first = if counter.bytes().all(|byte| byte == b'a') && width >= 2 {
            Counter::Letters { width }
        } else {
            let start = counter.parse().ok().filter(|start| *start <= 1)?;
            (width >= least).then_some(Counter::Digits { start, width })?
        };
        // Something must be there that is cut into parts.
        if stem.trim_matches('.').is_empty() {
            return None;
        }
        Some(Self {
            stem: stem.to_owned(),
            first,
        })
    }

    /// The name of the part `index`, 0 for the first; `None` where the letters have come to an end.
    #[must_use]
    pub fn name(&self, index: usize) -> Option<String> {
        let stem = &self.stem;
        match self.first {
            Counter::Digits { start, width } => {
                let number = start.checked_add(index)?;
                Some(format!("{stem}{number:0width$}"))
            }
            Counter::Letters { width } => {
                let mut rest = index;
                let mut letters = vec![b'a'; width];
                for letter in letters.iter_mut().rev() {
                    // Below 26.
                    *letter += (rest % 26) as u8;
                    rest /= 26;
                }
                let letters = String::from_utf8(letters).ok()?;
                (rest == 0).then(|| format!("{stem}{letters}"))
            }
        }
    }

    /// The index of the part with this name.
    fn index(&self, name: &str) -> Option<usize> {
        let counter = name.strip_prefix(&self.stem)?;
        let index = match self.first {
            Counter::Digits { start, .. } => counter.parse::<usize>().ok()?.checked_sub(start)?,
            Counter::Letters { width } if counter.len() == width => {
                counter.bytes().try_fold(0_usize, |index, byte| {
                    let letter = byte
                        .is_ascii_lowercase()
                        .then(|| usize::from(byte - b'a'))?;
                    Some(index * 26 + letter)
                })?
            }
            Counter::Letters { .. } => return None,
        };
        // `disk.1` is no part beside `disk.001`.
        (self.name(index)?.as_str() == name).then_some(index)
    }

    /// How `count` parts are described: `3 parts, disk.001 to disk.003`.
    #[must_use]
    pub fn describe(&self, count: usize) -> String {
        let name = |index| self.name(index).unwrap_or_default();
        match count {
            0 | 1 => format!("1 part, {}", name(0)),
            _ => format!("{count} parts, {} to {}", name(0), name(count - 1)),
        }
    }
}

/// Whether a stem ends in the word that announces a number.
fn is_part(stem: &str) -> bool {
    stem.trim_end_matches(['-', '_', '.']).ends_with("part")
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
        all => Some(joined(
            &all.iter().map(File::identity).collect::<Option<Vec<_>>>()?,
        )),
    }
}

fn joined(parts: &[String]) -> String {
    format!("split\n{}", parts.join("\nthen\n"))
}

/// Several files, one after the other, as one device. It can be written to when all of them can.
#[derive(Debug)]
pub struct Joined {
    parts: Vec<Part>,
    geometry: Geometry,
}

#[derive(Debug)]
struct Part {
    start: u64,
    volume: Volume,
}

impl Joined {
    /// The files as one volume; a single one as it is.
    ///
    /// # Errors
    /// When there is none, or they are longer together than a file can be.
    pub fn volume(files: Vec<File>) -> Result<Volume> {
        let mut volumes: Vec<_> = files.into_iter().map(Volume::new).collect();
        if volumes.len() == 1
            && let Some(only) = volumes.pop()
        {
            return Ok(only);
        }
        Self::of(volumes)
    }

    /// Any volumes as one.
    ///
    /// # Errors
    /// As [`Self::volume`].
    pub fn of(volumes: Vec<Volume>) -> Result<Volume> {
        let Some(first) = volumes.first() else {
            return Err(Error::new(Kind::OutOfRange, "an image without parts"));
        };
        let mut geometry = Geometry {
            size: 0,
            // Parts begin anywhere.
            min_block: 1,
            ..first.geometry()
        };
        let mut parts = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let own = volume.geometry();
            geometry.preferred_block = geometry.preferred_block.max(own.preferred_block);
            geometry.access = geometry.access.max(own.access);
            let start = geometry.size;
            geometry.size = start
                .checked_add(own.size)
                .filter(|size| *size <= u64::MAX >> 1)
                .ok_or_else(|| Error::new(Kind::Limit, "the parts have more than 2^63 bytes"))?;
            parts.push(Part { start, volume });
        }
        Ok(Volume::new(Self { parts, geometry }))
    }

    /// The parts that hold `range`: each with the range in it, and where that is in the whole.
    fn covering(&self, range: ByteRange) -> impl Iterator<Item = (&Volume, ByteRange, u64)> {
        let after = self
            .parts
            .partition_point(|part| part.start <= range.start());
        let parts = &self.parts[after.saturating_sub(1)..];
        parts
            .iter()
            .take_while(move |part| part.start < range.end())
            .filter_map(move |part| {
                let end = part.start.saturating_add(part.volume.size());
                let both = ByteRange::between(part.start, end).intersect(range);
                let inner = ByteRange::between(
                    both.start().saturating_sub(part.start),
                    both.end().saturating_sub(part.start),
                );
                (!both.is_empty()).then_some((&part.volume, inner, both.start()))
            })
    }

    fn writers(&self) -> impl Iterator<Item = Result<crate::VolumeWriter<'_>>> {
        self.parts.iter().map(|part| part.volume.need_writer())
    }
}

impl Device for Joined {
    fn name(&self) -> &str {
        self.parts.first().map_or("", |part| part.volume.name())
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn parts(&self) -> Option<usize> {
        Some(self.parts.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut rest = buf;
        for (volume, inner, _) in self.covering(range) {
            // At most the length of buf.
            let (now, later) = rest.split_at_mut(inner.len() as usize);
            volume.read_at(now, inner.start())?;
            rest = later;
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        for (volume, inner, at) in self.covering(range) {
            volume.extents_placed(inner, at, out)?;
            if out.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        let all = self.parts.iter().all(|part| part.volume.writer().is_some());
        let writer: &dyn Writer = self;
        all.then_some(writer)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let mut hints = Hints::new();
        for (volume, inner, _) in ranges.iter().flat_map(|range| self.covering(*range)) {
            hints.add(volume, inner);
        }
        hints.send();
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        self.covering(range)
            .map(|(volume, inner, _)| volume.stored(inner))
            .sum()
    }

    fn source_identity(&self) -> Option<String> {
        let parts = self.parts.iter().map(|part| part.volume.source_identity());
        Some(joined(&parts.collect::<Option<Vec<_>>>()?))
    }

    /// All parts are closed; the first failure is told.
    fn close(&self) -> Result<()> {
        let results: Vec<_> = self.parts.iter().map(|part| part.volume.close()).collect();
        results.into_iter().collect()
    }
}

impl Writer for Joined {
    fn features(&self) -> WriteFeatures {
        let mut all = WriteFeatures {
            fua: true,
            zero: true,
            trim: true,
        };
        for writer in self.writers().flatten() {
            let own = writer.features();
            all.fua &= own.fua;
            all.zero &= own.zero;
            all.trim &= own.trim;
        }
        all
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut rest = buf;
        for (volume, inner, _) in self.covering(range) {
            let (now, later) = rest.split_at(inner.len() as usize);
            volume.need_writer()?.write_at(now, inner.start(), fua)?;
            rest = later;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        for writer in self.writers() {
            writer?.flush()?;
        }
        Ok(())
    }

    /// What is declined must be left as it was, so a quick one is within one part.
    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        if opts.fast_only && self.covering(range).count() > 1 {
            return Ok(Done::Declined);
        }
        for (volume, inner, _) in self.covering(range) {
            if volume.need_writer()?.zero(inner, opts)? == Done::Declined {
                return Ok(Done::Declined);
            }
        }
        Ok(Done::Yes)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        for (volume, inner, _) in self.covering(range) {
            volume.need_writer()?.trim(inner, fua)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(first: &str, indexes: &[usize]) -> Vec<String> {
        let series = Series::of(first).unwrap_or_else(|| panic!("{first} is a first part"));
        indexes
            .iter()
            .map(|index| {
                let name = series.name(*index).unwrap();
                assert_eq!(series.index(&name), Some(*index));
                name
            })
            .collect()
    }

    #[test]
    fn parts_are_counted_as_the_first_one_begins() {
        assert_eq!(
            names("disk.001", &[0, 1, 998, 999]),
            ["disk.001", "disk.002", "disk.999", "disk.1000"]
        );
        assert_eq!(names("d.img.000", &[0, 11]), ["d.img.000", "d.img.011"]);
        assert_eq!(names("disk.01", &[8, 9]), ["disk.09", "disk.10"]);
        assert_eq!(names("disk.00", &[0, 99]), ["disk.00", "disk.99"]);
        assert_eq!(
            names("disk.xz.aa", &[0, 25, 26, 675]),
            ["disk.xz.aa", "disk.xz.az", "disk.xz.ba", "disk.xz.zz"]
        );
        assert_eq!(names("disk.aaa", &[26]), ["disk.aba"]);
        assert_eq!(names("disk.img.part1", &[9]), ["disk.img.part10"]);
        assert_eq!(names("disk.part-01", &[1]), ["disk.part-02"]);
        assert_eq!(names("disk.part_aa", &[1]), ["disk.part_ab"]);
        assert_eq!(names("disk.part.0", &[1]), ["disk.part.1"]);
        assert_eq!(names("data.aa", &[1]), ["data.ab"]);
        assert_eq!(Series::of("disk.aa").unwrap().name(676), None);
    }

    #[test]
    fn other_names_are_not_those_of_first_parts() {
        for name in [
            "disk",
            "disk.img",
            "disk.002",
            "disk.1",
            "disk.0",
            "disk.a",
            "disk.ab",
            "disk.00001",
            "disk001",
            "schema",
            "disk.",
            ".001",
            "..aa",
            "",
            "001",
            "disk.part2",
            "disk.part",
            "disk.0a",
            "disk.a1",
            "disk.parta",
        ] {
            assert_eq!(Series::of(name), None, "{name}");
        }
    }

    #[test]
    fn a_name_beside_the_series_is_none_of_its_parts() {
        let series = Series::of("disk.001").unwrap();
        for name in [
            "disk.1",
            "disk.0002",
            "disk.x",
            "other.002",
            "disk.+02",
            "disk.000",
        ] {
            assert_eq!(series.index(name), None, "{name}");
        }
        let series = Series::of("disk.aa").unwrap();
        for name in ["disk.a", "disk.aaa", "disk.A0", "disk.0a"] {
            assert_eq!(series.index(name), None, "{name}");
        }
    }
}
