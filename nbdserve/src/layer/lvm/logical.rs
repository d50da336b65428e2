//! What the text of the metadata says of the logical volumes of a group, and where their extents lie.
//! Pure.

use std::collections::HashMap;

use super::group::{
    LARGEST, Member, checked_name, corrupt, identifier, sections, unknown, unsupported,
};
use super::header::{SECTOR, dashed};
use super::text::{Section, Value, cut, shown};
use crate::error::quote;
use crate::{Error, Result};

/// A logical volume.
#[derive(Clone, Debug)]
pub(crate) struct Logical {
    pub(crate) name: String,
    pub(crate) id: String,
    /// Bytes.
    pub(crate) size: u64,
    /// `linear`, `striped`, `thin`, as LVM2 calls it.
    pub(crate) layout: String,
    /// Why writes are refused, if they are.
    pub(crate) read_only: Option<String>,
    /// Where it lies, without gaps; or why it cannot be opened.
    pub(crate) segments: Result<Vec<Segment>>,
}

/// A run of a logical volume, on one or more physical ones in turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First byte of the volume, and the one behind the last.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Bytes of a turn.
    pub(crate) chunk: u64,
    pub(crate) columns: Vec<Column>,
    /// Bytes of each column.
    pub(crate) len: u64,
}

/// A run of a physical volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    /// Its place in [`super::group::Group::members`].
    pub(crate) member: usize,
    /// First byte.
    pub(crate) start: u64,
}

impl Logical {
    /// Its identifier as LVM2 prints it.
    pub(crate) fn uuid(&self) -> String {
        dashed(&self.id)
    }
}

/// What is known of the group while its volumes are read.
pub(super) struct Reader<'g> {
    extent: u64,
    members: &'g [Member],
    /// The place of each physical volume, by its name.
    numbers: HashMap<&'g [u8], usize>,
    /// The place of each logical volume, hidden ones too, by its name.
    logical: HashMap<&'g [u8], usize>,
    /// Extents in use: member, first, the one behind the last, and by which volume.
    used: Vec<(usize, u64, u64, usize)>,
}

impl<'g> Reader<'g> {
    /// For a group with extents of `extent` bytes.
    pub(super) fn new(
        extent: u64,
        members: &'g [Member],
        numbers: HashMap<&'g [u8], usize>,
    ) -> Self {
        Self {
            extent,
            members,
            numbers,
            logical: HashMap::new(),
            used: Vec::new(),
        }
    }

    /// The logical volumes that are visible.
    pub(super) fn volumes(
        &mut self,
        group: &Section<'g>,
        read_only: Option<&str>,
    ) -> Result<Vec<Logical>> {
        let sections = sections(group, "logical_volumes")?;
        for (number, (name, _)) in sections.iter().enumerate() {
            if self.logical.insert(name, number).is_some() {
                let name = shown(name);
                return Err(corrupt(format!("two logical volumes are called {name}")));
            }
        }
        let mut all = Vec::new();
        for (number, (name, section)) in sections.iter().enumerate() {
            let mut volume = self.volume(number, name, section)?;
            volume.0.read_only = volume.0.read_only.or_else(|| read_only.map(str::to_owned));
            all.push(volume);
        }
        for (number, (_, section)) in sections.iter().enumerate() {
            self.snapshots(number, section, &mut all)?;
        }
        self.overlaps(&mut all);
        Ok(all
            .into_iter()
            .filter(|(_, visible)| *visible)
            .map(|(volume, _)| volume)
            .collect())
    }

    /// A volume, and whether it is visible.
    fn volume(
        &mut self,
        number: usize,
        name: &[u8],
        section: &Section<'g>,
    ) -> Result<(Logical, bool)> {
        let name = checked_name(name)?;
        let of = |error: Error| error.in_layer(&format!("logical volume {name}"));
        let status = section.texts("status").map_err(of)?;
        let has = |flag: &str| status.iter().any(|found| found == flag);
        let parts = self.parts(section).map_err(of)?;
        let mut size = 0_u64;
        let mut layout = "linear".to_owned();
        let mut segments = Ok(Vec::new());
        for part in parts {
            let count = part.number("extent_count").map_err(of)?;
            let start = size;
            size = count
                .checked_mul(self.extent)
                .and_then(|len| len.checked_add(size))
                .filter(|&size| count > 0 && size <= LARGEST)
                .ok_or_else(|| of(corrupt(format!("a segment of {count} extents"))))?;
            let kind = part.text("type").map_err(of)?;
            if !matches!(kind.as_str(), "striped" | "linear") {
                let kind = cut(kind.as_bytes());
                if segments.is_ok() {
                    segments = Err(refused(&name, &kind));
                }
                layout = kind;
                continue;
            }
            match self.striped(number, part, start, size) {
                Ok(segment) => {
                    if segment.columns.len() > 1 && layout == "linear" {
                        layout = "striped".to_owned();
                    }
                    if let Ok(all) = &mut segments {
                        all.push(segment);
                    }
                }
                Err(error) if segments.is_ok() => segments = Err(of(error)),
                Err(_) => {}
            }
        }
        if let Some(problem) = status_problem(&name, &status) {
            segments = Err(problem);
        }
        let read_only = (!has("WRITE")).then(|| format!("the volume \"{name}\" is read-only"));
        let logical = Logical {
            id: identifier(section).map_err(of)?,
            size,
            layout,
            read_only,
            segments,
            name: name.clone(),
        };
        Ok((logical, has("VISIBLE")))
    }

    /// The segments of a volume, in their order: without gaps, and as many as it says.
    fn parts<'s>(&self, section: &'s Section<'g>) -> Result<Vec<&'s Section<'g>>> {
        let count = section.number("segment_count")?;
        let mut found = HashMap::new();
        for (key, value) in section.entries() {
            if let (true, Value::Section(part)) = (key.starts_with(b"segment"), value)
                && found.insert(key, part).is_some()
            {
                let key = shown(key);
                return Err(corrupt(format!("{key} is given twice")));
            }
        }
        let there = u64::try_from(found.len()).unwrap_or(u64::MAX);
        if count != there || count == 0 {
            let what = format!("{count} segments are announced, there are {there}");
            return Err(corrupt(what));
        }
        let mut parts = Vec::new();
        let mut next = 0_u64;
        for number in 1..=count {
            let name = format!("segment{number}");
            let Some(part) = found.get(name.as_bytes()) else {
                return Err(corrupt(format!("{name} is missing")));
            };
            let start = part.number("start_extent")?;
            if start != next {
                return Err(corrupt(format!(
                    "{name} begins at extent {start}, the one before ends at {next}"
                )));
            }
            next = next.saturating_add(part.number("extent_count")?);
            parts.push(*part);
        }
        Ok(parts)
    }

    /// A segment of the types `striped` and `linear`, for the bytes `start..end` of the volume.
    fn striped(
        &mut self,
        number: usize,
        part: &Section<'g>,
        start: u64,
        end: u64,
    ) -> Result<Segment> {
        let stripes = part.number("stripe_count")?;
        let Some(Value::List(list)) = part.get("stripes")? else {
            return Err(corrupt("\"stripes\" is no list".to_owned()));
        };
        let pairs = list.as_chunks::<2>();
        let found = u64::try_from(pairs.0.len()).unwrap_or(u64::MAX);
        if stripes == 0 || found != stripes || !pairs.1.is_empty() {
            let what = format!("{stripes} stripes are announced, there are {found}");
            return Err(corrupt(what));
        }
        let count = part.number("extent_count")?;
        let each = count.checked_div(stripes).unwrap_or(0);
        let whole = end.saturating_sub(start);
        let len = each.saturating_mul(self.extent);
        if !count.is_multiple_of(stripes) {
            let what =
                format!("{count} extents on {stripes} stripes, which does not come out even");
            return Err(corrupt(what));
        }
        let chunk = match stripes {
            1 => whole,
            _ => {
                let sectors = part.number("stripe_size")?;
                let chunk = sectors.saturating_mul(SECTOR);
                if chunk == 0 || !len.is_multiple_of(chunk) {
                    return Err(corrupt(format!(
                        "stripes of {sectors} sectors in a column of {len} bytes"
                    )));
                }
                chunk
            }
        };
        let mut columns = Vec::new();
        for [name, first] in pairs.0 {
            let (Value::Text(name), Value::Number(first)) = (name, first) else {
                let what = "a stripe is not a name and a number";
                return Err(corrupt(what.to_owned()));
            };
            columns.push(self.column(number, name, *first, each)?);
        }
        Ok(Segment {
            start,
            end,
            chunk,
            columns,
            len,
        })
    }

    /// `each` extents of the physical volume `name`, from `first` on.
    fn column(&mut self, number: usize, name: &[u8], first: i64, each: u64) -> Result<Column> {
        let Some(&member) = self.numbers.get(name) else {
            let shown = shown(name);
            return Err(match self.logical.get(name) {
                Some(&other) if other == number => {
                    corrupt(format!("a segment lies on the volume {shown} itself"))
                }
                Some(_) => unsupported(format!(
                    "a segment lies on the volume {shown}; only segments on physical volumes are \
                     opened"
                )),
                None => corrupt(format!("there is no physical volume {shown}")),
            });
        };
        // The index comes from the list itself.
        let have = self
            .members
            .get(member)
            .map_or((0, 0), |found| (found.start, found.extents));
        let (begin, extents) = have;
        let beyond = || {
            let name = shown(name);
            corrupt(format!(
                "{each} extents from {first} on leave the {extents} extents of {name}"
            ))
        };
        let extent = u64::try_from(first).map_err(|_| beyond())?;
        let end = extent
            .checked_add(each)
            .filter(|&end| end <= extents)
            .ok_or_else(beyond)?;
        self.used.push((member, extent, end, number));
        // Below LARGEST: Member::parse has checked the last extent.
        let start = begin.saturating_add(extent.saturating_mul(self.extent));
        Ok(Column { member, start })
    }

    /// What segments of the type `snapshot` say of other volumes: the volume `number` that has them is
    /// seen under the name of its store.
    fn snapshots(
        &self,
        number: usize,
        section: &Section<'g>,
        all: &mut [(Logical, bool)],
    ) -> Result<()> {
        for (_, value) in section.entries() {
            let Value::Section(part) = value else {
                continue;
            };
            if !matches!(part.get("type")?, Some(Value::Text(b"snapshot"))) {
                continue;
            }
            let visible = all
                .get_mut(number)
                .is_some_and(|(_, visible)| std::mem::take(visible));
            let of = |key: &str| match part.get(key) {
                Ok(Some(Value::Text(name))) => self.logical.get(name).copied(),
                _ => None,
            };
            let stores = [of("cow_store"), of("merging_store")];
            for store in stores.into_iter().flatten() {
                if let Some((volume, shown)) = all.get_mut(store) {
                    *shown |= visible;
                    volume.segments = Err(refused(&volume.name, "snapshot"));
                    volume.layout = "snapshot".to_owned();
                }
            }
            if let Some((origin, _)) = of("origin").and_then(|index| all.get_mut(index)) {
                let name = &origin.name;
                if stores[1].is_some() {
                    origin.segments = Err(unsupported(format!(
                        "a snapshot is being merged into the volume \"{name}\""
                    )));
                } else {
                    let why = format!(
                        "the volume \"{name}\" has a snapshot, which would have to be kept up to date"
                    );
                    origin.read_only.get_or_insert(why);
                }
            }
        }
        Ok(())
    }

    /// Refuses volumes that share extents.
    fn overlaps(&mut self, all: &mut [(Logical, bool)]) {
        self.used.sort_unstable();
        let mut before: Option<(usize, u64, usize)> = None;
        for &(member, start, end, volume) in &self.used {
            if let Some((same, farthest, other)) = before
                && same == member
                && start < farthest
            {
                let name = |index: usize| all.get(index).map(|(found, _)| found.name.clone());
                let (one, two) = (name(volume), name(other));
                let pv = self
                    .members
                    .get(member)
                    .map_or("", |found| found.name.as_str());
                let what = format!(
                    "extent {start} of {pv} belongs to \"{}\" and to \"{}\"",
                    one.unwrap_or_default(),
                    two.unwrap_or_default()
                );
                for index in [volume, other] {
                    if let Some((found, _)) = all.get_mut(index)
                        && found.segments.is_ok()
                    {
                        found.segments = Err(corrupt(what.clone()));
                    }
                }
            }
            if before.is_none_or(|(same, farthest, _)| same != member || end > farthest) {
                before = Some((member, end, volume));
            }
        }
    }
}

/// A volume of a type that is not opened.
fn refused(name: &str, kind: &str) -> Error {
    let kind = quote(kind);
    unsupported(format!(
        "the volume \"{name}\" is of the type {kind}; linear and striped ones are opened"
    ))
}

/// Why a volume cannot be opened, by its flags.
fn status_problem(name: &str, status: &[String]) -> Option<Error> {
    let known = ["READ", "WRITE", "VISIBLE", "FIXED_MINOR", "ACTIVATION_SKIP"];
    let flag = unknown(status, &known)?;
    Some(match flag.as_str() {
        "LOCKED" | "PVMOVE" => unsupported(format!(
            "extents of the volume \"{name}\" are being moved (pvmove)"
        ))
        .hint("pvmove --abort, on a machine that has it, ends that"),
        _ => {
            let flag = shown(flag.as_bytes());
            unsupported(format!(
                "the volume \"{name}\" has the unknown status {flag}"
            ))
        }
    })
}
