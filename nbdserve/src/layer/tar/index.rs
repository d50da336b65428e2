//! What an archive holds: read once, and kept for the next time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::header::{self, BLOCK};
use super::walk::{Holes, Member, Sort, Walk};
use crate::layer::archive::{Allowance, Reader, Role, key};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// The name under which an index is kept; another one for another format.
const KEPT_AS: &str = "tar-index-1";
/// Reading the headers again costs less than keeping the index where it took no more requests.
const WORTH_KEEPING: u64 = 4;
/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(250);
/// Bytes of memory that an entry takes beside its texts, on the way to the index included.
const BYTES_PER_ENTRY: usize = 192;

/// An entry, as far as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As in [`Member`].
    pub(super) start: u64,
    pub(super) data: u64,
    pub(super) stored: u64,
    pub(super) size: u64,
    pub(super) sort: Sort,
    pub(super) name: Box<[u8]>,
    pub(super) link: Box<[u8]>,
    /// Whether it has holes; the map is read when it is opened.
    pub(super) has_holes: bool,
}

impl Entry {
    fn new(member: Member) -> Self {
        let is_link = member.sort == Sort::HardLink;
        let link = if is_link { member.link } else { Vec::new() };
        Self {
            start: member.start,
            data: member.data,
            stored: member.stored,
            size: member.size,
            sort: member.sort,
            name: member.name.into(),
            link: link.into(),
            has_holes: member.holes.is_some(),
        }
    }

    fn memory(&self) -> usize {
        let texts = self.name.len().saturating_add(self.link.len());
        texts.saturating_add(BYTES_PER_ENTRY)
    }
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// The index of the entry whose body it has; `None` for what is no file, and for a link to
    /// nothing.
    pub(super) body: Option<usize>,
    pub(super) role: Role,
}

/// All entries, in order.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) entries: Vec<Entry>,
    pub(super) fates: Vec<Fate>,
}

impl Index {
    /// That of the archive `below`: the one that was kept, or all headers are read.
    ///
    /// # Errors
    /// `NotThisFormat` when it does not begin with a header, `Corrupt`, `Unsupported`, `Limit`, and
    /// what `below` says.
    pub(super) fn of(below: &Volume, cx: &Cx) -> Result<Self> {
        let mut allowance = Allowance::of_index(cx);
        let kept = cx
            .place
            .as_ref()
            .and_then(|place| place.load(KEPT_AS, allowance.left()));
        let kept = kept.and_then(|bytes| {
            let entries = parse(&bytes, below.size(), &mut allowance);
            if entries.is_none() {
                tracing::debug!("tar: the index that was kept is not used");
                allowance = Allowance::of_index(cx);
            }
            entries
        });
        let entries = match kept {
            Some(entries) => entries,
            None => read(below, &mut allowance, cx)?,
        };
        let fates = fates(&entries);
        Ok(Self { entries, fates })
    }
}

/// Reads all headers.
fn read(below: &Volume, allowance: &mut Allowance, cx: &Cx) -> Result<Vec<Entry>> {
    let mut reader = Reader::new(below);
    check_start(&mut reader)?;
    let mut walk = Walk::new(reader, 0, allowance.left());
    let mut entries = Vec::new();
    let mut reported = Instant::now();
    while let Some(member) = walk.next()? {
        cx.cancel.check()?;
        let entry = Entry::new(member);
        allowance.spend(entry.memory(), "the entries of the archive")?;
        entries.push(entry);
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let what = "tar: reading the headers of the archive";
            cx.indexing(what, walk.at(), below.size());
        }
    }
    if let Some(place) = &cx.place
        && walk.into_reader().requests() > WORTH_KEEPING
    {
        place.save(KEPT_AS, &encode(&entries, below.size()));
    }
    Ok(entries)
}

/// Tells what was never an archive from one that is damaged.
fn check_start(reader: &mut Reader<'_>) -> Result<()> {
    let size = reader.below().size();
    let what = match reader.get(ByteRange::between(0, BLOCK))? {
        None => format!("{size} bytes are too few for a header"),
        Some(block) if header::is_zero(block) => {
            "it begins with zeroes: an archive with nothing in it".to_owned()
        }
        Some(block) if !header::is_checked(block) && header::magic(block).is_none() => {
            "it does not begin with a header".to_owned()
        }
        Some(_) => return Ok(()),
    };
    Err(Error::new(Kind::NotThisFormat, what))
}

/// What each entry is when all of them are taken out, one after the other: the last one of a name
/// is what stays, and a hard link is the file that had the name when it was made.
fn fates(entries: &[Entry]) -> Vec<Fate> {
    let mut fates: Vec<Fate> = Vec::with_capacity(entries.len());
    let mut names: HashMap<&[u8], usize> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let body = match entry.sort {
            Sort::File => Some(index),
            // Of entries before this one only: there is no way around in a circle.
            Sort::HardLink => names
                .get(key(&entry.link))
                .and_then(|target| fates.get(*target))
                .and_then(|fate| fate.body),
            Sort::Other => None,
        };
        let role = match entry.sort {
            Sort::File => Role::Candidate,
            Sort::HardLink | Sort::Other => Role::Aside,
        };
        // A link to itself changes nothing.
        let is_itself = entry.sort == Sort::HardLink && key(&entry.link) == key(&entry.name);
        let replaced = names.insert(key(&entry.name), index);
        if let Some(old) = replaced
            && let Some(old) = fates.get_mut(old)
            && !is_itself
        {
            old.role = Role::Replaced;
        }
        fates.push(Fate { body, role });
    }
    adopt(&mut fates);
    fates
}

/// A file that lost its name and has another one, by a link, may still be meant: by that link.
fn adopt(fates: &mut [Fate]) {
    let is_lost = |fate: &Fate| fate.role == Role::Replaced;
    let mut lost: Vec<bool> = fates.iter().map(is_lost).collect();
    for fate in fates.iter_mut().filter(|fate| fate.role == Role::Aside) {
        if let Some(lost) = fate.body.and_then(|body| lost.get_mut(body))
            && *lost
        {
            fate.role = Role::Candidate;
            *lost = false;
        }
    }
}

/// The entries in few bytes: how many, the size of the archive, then the fields of each; numbers
/// with seven bits in a byte, the lowest first.
fn encode(entries: &[Entry], size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, size);
    put(&mut out, wide(entries.len()));
    for entry in entries {
        let sort = match entry.sort {
            Sort::File => 0,
            Sort::HardLink => 1,
            Sort::Other => 2,
        };
        put(&mut out, sort | u64::from(entry.has_holes) << 2);
        put(&mut out, entry.start);
        put(&mut out, entry.data);
        put(&mut out, entry.stored);
        put(&mut out, entry.size);
        for text in [&entry.name, &entry.link] {
            put(&mut out, wide(text.len()));
            out.extend_from_slice(text);
        }
    }
    out
}

/// What [`encode`] made of an archive of `size` bytes; `None` for anything else, and for more than
/// is allowed.
fn parse(mut bytes: &[u8], size: u64, allowance: &mut Allowance) -> Option<Vec<Entry>> {
    let bytes = &mut bytes;
    if get(bytes)? != size {
        return None;
    }
    let count = get(bytes)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let flags = get(bytes)?;
        let sort = match flags & 3 {
            0 => Sort::File,
            1 => Sort::HardLink,
            2 => Sort::Other,
            _ => return None,
        };
        let entry = Entry {
            sort,
            has_holes: flags & 4 != 0,
            start: get(bytes)?,
            data: get(bytes)?,
            stored: get(bytes)?,
            size: get(bytes)?,
            name: text(bytes)?,
            link: text(bytes)?,
        };
        let body = ByteRange::new(entry.data, entry.stored)?;
        let is_sound = body.end() <= size
            && entry.start < entry.data
            && flags < 8
            && (entry.has_holes || entry.size == entry.stored)
            && entry.size <= u64::MAX >> 1;
        if !is_sound || allowance.spend(entry.memory(), "").is_err() {
            return None;
        }
        entries.push(entry);
    }
    bytes.is_empty().then_some(entries)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0_u32..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        value |= low.checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn text(bytes: &mut &[u8]) -> Option<Box<[u8]>> {
    let len = usize::try_from(get(bytes)?).ok()?;
    let (text, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(text.into())
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// The map of an entry with holes, and what it was read with.
///
/// # Errors
/// As [`Walk::next`]; `Changed` when another entry stands there now.
pub(super) fn read_holes<'a>(
    entry: &Entry,
    below: &'a Volume,
    memory: u64,
) -> Result<(Holes, Reader<'a>)> {
    let mut walk = Walk::again(Reader::new(below), entry.start, entry.stored, memory);
    match walk.next()? {
        Some(Member {
            data,
            stored,
            holes: Some(holes),
            ..
        }) if (data, stored) == (entry.data, entry.stored) => Ok((holes, walk.into_reader())),
        _ => {
            let what = format!("another entry stands at {} than before", entry.start);
            Err(Error::new(Kind::Changed, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sort: Sort, name: &str, link: &str) -> Entry {
        Entry {
            start: 0,
            data: 512,
            stored: 5,
            size: 5,
            sort,
            name: name.as_bytes().into(),
            link: link.as_bytes().into(),
            has_holes: false,
        }
    }

    fn roles(entries: &[Entry]) -> Vec<(Option<usize>, Role)> {
        let fates = fates(entries);
        fates.iter().map(|fate| (fate.body, fate.role)).collect()
    }

    #[test]
    fn the_last_of_a_name_stays_and_links_keep_what_they_named() {
        let file = |name| entry(Sort::File, name, "");
        let link = |name, to| entry(Sort::HardLink, name, to);
        let found = roles(&[
            file("./a"),
            link("b", "a"),
            link("c", "./b"),
            file("a"),
            link("d", "a"),
            link("e", "later"),
            file("later"),
            link("later", "later"),
            entry(Sort::Other, "later2", ""),
        ]);
        let expected = [
            (Some(0), Role::Replaced),
            // The first file has no other name left.
            (Some(0), Role::Candidate),
            (Some(0), Role::Aside),
            (Some(3), Role::Candidate),
            (Some(3), Role::Aside),
            (None, Role::Aside),
            (Some(6), Role::Candidate),
            (Some(6), Role::Aside),
            (None, Role::Aside),
        ];
        assert_eq!(found, expected);
        let gone = roles(&[file("a"), entry(Sort::Other, "a", "")]);
        assert_eq!(gone[0].1, Role::Replaced);
    }

    #[test]
    fn an_index_that_was_kept_is_the_same_or_not_used() {
        let mut entries = vec![
            entry(Sort::File, "disk", ""),
            entry(Sort::HardLink, "x", "disk"),
        ];
        entries.push(Entry {
            has_holes: true,
            size: u64::MAX >> 1,
            ..entry(Sort::File, "\u{1b}", "")
        });
        let cx = Cx::new(1 << 20);
        let parsed = |bytes: &[u8], size| {
            let mut allowance = Allowance::of_index(&cx);
            parse(bytes, size, &mut allowance)
        };
        let kept = encode(&entries, 5000);
        assert_eq!(parsed(&kept, 5000).unwrap(), entries);
        assert_eq!(parsed(&kept, 5001), None);
        for len in 0..kept.len() {
            assert_eq!(parsed(&kept[..len], 5000), None, "{len}");
        }
        assert_eq!(parsed(&[&kept[..], &[0]].concat(), 5000), None);
        // A body that leaves the archive, and more than may be held.
        assert_eq!(parsed(&encode(&entries, 516), 516), None);
        let many = vec![entry(Sort::File, "disk", ""); 1000];
        assert_eq!(parsed(&encode(&many, 5000), 5000), None);
    }
}
