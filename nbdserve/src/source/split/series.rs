//! The names of the parts of an image. Pure.
//!
//! The name of a first part ends in a dot, the word `part` or nothing of the two but digits or
//! letters that count:
//!
//! * two to four digits that are 0 or 1: `disk.001`, `disk.000`, `disk.01`, `disk.part1`;
//! * two to four letters `a`, as split(1) has them: `disk.aa`, `disk.partaa`.
//!
//! After `part` one digit will do, and a `-`, `_` or `.` may stand between.

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
    pub(super) fn index(&self, name: &str) -> Option<usize> {
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
