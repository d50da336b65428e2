//! What an archive holds: its central directory is the truth.

use super::header::{
    self, CENTRAL, CENTRAL_LEN, Central, DESCRIPTOR, END_LEN, END64_LEN, End, Fields,
    LOCATOR64_LEN, MAX_COMMENT,
};
use crate::layer::archive::{Allowance, Reader, printed};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// Bytes of memory that a file takes beside its name, on the way included.
const BYTES_PER_FILE: usize = 160;

/// A file as the directory has it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its name, in UTF-8 where that is known.
    pub(super) name: Box<[u8]>,
    /// The name as it is written, where that is different.
    raw_name: Option<Box<[u8]>>,
    pub(super) fields: Fields,
    /// Whether it is no folder and no symbolic link.
    pub(super) is_regular: bool,
    /// Where the local header is.
    local: u64,
}

/// All files.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) entries: Vec<Entry>,
    /// Where the directory begins: data ends before.
    start: u64,
}

/// Where the directory is.
struct Place {
    range: ByteRange,
    /// Bytes before the archive, which its offsets do not count: a program that unpacks it.
    before: u64,
    count: u64,
    /// Whether the count is one of 16 bits.
    is_short: bool,
}

impl Directory {
    /// That of the archive `below`.
    ///
    /// # Errors
    /// `NotThisFormat` when there is no end record, `Corrupt`, `Unsupported` for an archive of
    /// several files, `Limit` for more entries than there is memory for, what `below` says.
    pub(super) fn read(below: &Volume, cx: &Cx) -> Result<Self> {
        let mut allowance = Allowance::of_index(cx);
        let place = place(below)?;
        let mut reader = Reader::new(below);
        let mut entries = Vec::new();
        let mut at = place.range.start();
        // At most 2^58 rounds, each of which takes from the allowance.
        while at < place.range.end() {
            cx.cancel.check()?;
            let Some(central) = next(&mut reader, at, place.range.end())? else {
                break;
            };
            at = at.saturating_add(central.1);
            let entry = entry(central.0, place.before, at)?;
            let memory = entry.name.len().saturating_mul(2);
            allowance.spend(
                memory.saturating_add(BYTES_PER_FILE),
                "the files of the archive",
            )?;
            entries.push(entry);
        }
        let found = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        // Programs before zip64 let the count wrap around.
        let is_right = match place.is_short {
            true => found & 0xffff == place.count,
            false => found == place.count,
        };
        if !is_right {
            let what = format!(
                "the directory at {} has {found} files, the end record says {}",
                place.range.start(),
                place.count
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(Self {
            entries,
            start: place.range.start(),
        })
    }

    /// Where the bytes of a file lie, by its local header, which is checked.
    ///
    /// # Errors
    /// `Corrupt` when the local header says something else than the directory, or the bytes are not
    /// within the archive; what `below` says.
    pub(super) fn data(&self, entry: &Entry, below: &Volume) -> Result<ByteRange> {
        let at = entry.local;
        let name = printed(&entry.name);
        let wrong = |what: String| Error::new(Kind::Corrupt, format!("{name}: {what}"));
        let outside = || {
            let what = format!(
                "{} bytes behind the header at {at} are not before the directory at {}",
                entry.fields.compressed, self.start
            );
            wrong(what)
        };
        let mut reader = Reader::new(below);
        let fixed = ByteRange::new(at, header::LOCAL_LEN).ok_or_else(outside)?;
        let bytes = reader.get(fixed)?.ok_or_else(outside)?;
        let Some((mut fields, len)) = header::local(bytes) else {
            return Err(wrong(format!("there is no local header at {at}")));
        };
        let all = ByteRange::new(at, len).ok_or_else(outside)?;
        let bytes = reader.get(all)?.ok_or_else(outside)?;
        let local_name = header::local_rest(bytes, &mut fields, at)?;
        if let Some(what) = entry.differs(&local_name, &fields) {
            return Err(wrong(format!(
                "{what} in the local header at {at} is not that of the directory"
            )));
        }
        let data = ByteRange::new(all.end(), entry.fields.compressed)
            .filter(|data| data.end() <= self.start)
            .ok_or_else(outside)?;
        // Nothing checks the CRC of a stored file: what else can be known is checked.
        let next = self.entries.iter().map(|other| other.local);
        match next.filter(|next| *next > at).min() {
            Some(next) if next < data.end() => {
                let what = format!("{data} overlap the local header of another file at {next}");
                Err(wrong(what))
            }
            _ => Ok(data),
        }
    }
}

impl Entry {
    /// What the local header says otherwise.
    fn differs(&self, name: &[u8], local: &Fields) -> Option<&'static str> {
        let central = &self.fields;
        let raw = self.raw_name.as_ref().unwrap_or(&self.name);
        // With a descriptor behind the data these may be zero, or what the writer knew before.
        let is_later = local.flags & DESCRIPTOR != 0;
        let same = |local: u64, central: u64| local == central || is_later && local == 0;
        if name != &**raw {
            Some("the name")
        } else if local.method != central.method {
            Some("the method")
        } else if (local.flags ^ central.flags) & (header::ENCRYPTED | header::PATCH) != 0 {
            Some("a flag")
        } else if !same(u64::from(local.crc32), u64::from(central.crc32)) {
            Some("the CRC")
        } else if !same(local.compressed, central.compressed) || !same(local.size, central.size) {
            Some("a size")
        } else {
            None
        }
    }
}

/// The header at `at` of a directory that ends at `end`, and its length; `None` for what may stand
/// behind the last one.
fn next(reader: &mut Reader<'_>, at: u64, end: u64) -> Result<Option<(Central, u64)>> {
    let cut = |what: &str| {
        let what = format!("{what} at {at}, in the directory that ends at {end}");
        Error::new(Kind::Corrupt, what)
    };
    let fixed = u64::try_from(CENTRAL_LEN).unwrap_or(u64::MAX);
    let rest = end.saturating_sub(at);
    let signature = ByteRange::between(at, at.saturating_add(rest.min(6)));
    let bytes = reader.get(signature)?.unwrap_or_default();
    // 4.3.13, whose length the two bytes behind the signature tell.
    if bytes.starts_with(b"PK\x05\x05") {
        let len = crate::bytes::le16(bytes, 4).map(|len| u64::from(len).saturating_add(6));
        return match len == Some(rest) {
            true => Ok(None),
            false => Err(cut("a damaged signature")),
        };
    }
    if !bytes.starts_with(CENTRAL) {
        return Err(cut("no header of a file"));
    }
    if rest < fixed {
        return Err(cut("a header that is cut short"));
    }
    let range = ByteRange::between(at, at.saturating_add(fixed));
    let bytes = reader.get(range)?.unwrap_or_default();
    let len = header::central_len(bytes).filter(|len| *len <= rest);
    let len = len.ok_or_else(|| cut("a header that is cut short"))?;
    let range = ByteRange::between(at, at.saturating_add(len));
    let bytes = reader.get(range)?.unwrap_or_default();
    header::central(bytes, at).map(|central| Some((central, len)))
}

/// What is kept of a header that ends at `at`.
fn entry(central: Central, before: u64, at: u64) -> Result<Entry> {
    let name = header::decoded_name(central.name.clone(), central.fields.flags);
    if central.disk != 0 {
        return Err(several_disks());
    }
    let local = central.local.checked_add(before).ok_or_else(|| {
        let name = printed(&name);
        let what = format!("{name}: a local header at {} (before {at})", central.local);
        Error::new(Kind::Corrupt, what)
    })?;
    let raw_name = (name != central.name).then(|| central.name.into());
    Ok(Entry {
        name: name.into(),
        raw_name,
        fields: central.fields,
        is_regular: central.is_regular,
        local,
    })
}

fn several_disks() -> Error {
    let what = "the archive is cut into several files, of which this is one";
    Error::new(Kind::Unsupported, what)
        .hint("put the pieces together first: zip -s 0 LAST.zip --out WHOLE.zip")
}

/// Finds the directory by the records at the end.
fn place(below: &Volume) -> Result<Place> {
    let size = below.size();
    let most = MAX_COMMENT
        .saturating_add(END_LEN)
        .saturating_add(LOCATOR64_LEN)
        .saturating_add(END64_LEN);
    let start = size.saturating_sub(most);
    let len = usize::try_from(size.saturating_sub(start)).unwrap_or(usize::MAX);
    let tail = below.read_vec(start, len)?;
    let end_at = match header::find_end(&tail) {
        Some(Ok(at)) => at,
        Some(Err(more)) => {
            let what = format!("{more} bytes follow the end record: garbage, or a damaged comment");
            return Err(Error::new(Kind::Corrupt, what));
        }
        None => return Err(no_end(below)?),
    };
    let end = tail.get(end_at..).and_then(header::end);
    let end = end.ok_or_else(|| Error::new(Kind::Corrupt, "the end record is cut short"))?;
    let end_at = start.saturating_add(u64::try_from(end_at).unwrap_or(u64::MAX));
    let locator_at = end_at.checked_sub(LOCATOR64_LEN);
    let locator = match locator_at {
        Some(at) => read(below, at, LOCATOR64_LEN)?.and_then(|bytes| header::locator64(&bytes)),
        None => None,
    };
    match locator {
        None => locate(below, end, end_at, true),
        Some(locator) => {
            // Where it was read just now.
            let before = locator_at.unwrap_or_default();
            let (long, at) = find_end64(below, locator, before)?;
            if !header::agrees(end, long) {
                let what = format!(
                    "the end record at {end_at} and the zip64 end record at {at} do not agree"
                );
                return Err(Error::new(Kind::Corrupt, what));
            }
            locate(below, long, at, false)
        }
    }
}

/// Why there is no end record.
fn no_end(below: &Volume) -> Result<Error> {
    let head = read(below, 0, 8.min(below.size()))?.unwrap_or_default();
    let is_zip =
        head.starts_with(header::LOCAL) || header::SPLIT.iter().any(|magic| head == *magic);
    Ok(match is_zip {
        true => {
            let what = "there is no end record: the archive is truncated, or one of several files";
            Error::new(Kind::Corrupt, what)
        }
        false => Error::new(
            Kind::NotThisFormat,
            "there is no end record of a zip archive",
        ),
    })
}

/// The zip64 record that a locator at `before` speaks of, and where it is: where the locator says,
/// or right before it when something was put in front of the archive.
fn find_end64(
    below: &Volume,
    (disk, stated, disks): (u32, u64, u32),
    before: u64,
) -> Result<(End, u64)> {
    if disk != 0 || disks > 1 {
        return Err(several_disks());
    }
    for at in [Some(stated), before.checked_sub(END64_LEN)] {
        let Some(at) = at else {
            continue;
        };
        let bytes = read(below, at, END64_LEN)?.unwrap_or_default();
        if let Some((end, len)) = header::end64(&bytes)
            && at.checked_add(len) == Some(before)
        {
            return Ok((end, at));
        }
    }
    let what = format!(
        "the locator at {before} speaks of a zip64 end record at {stated}, where there is none that \
         ends before it"
    );
    Err(Error::new(Kind::Corrupt, what))
}

/// Where the directory is that `end` speaks of, a record at `end_at`: right before it, else where
/// it says.
fn locate(below: &Volume, end: End, end_at: u64, is_short: bool) -> Result<Place> {
    if end.disk != 0 || end.directory_disk != 0 || end.here != end.count {
        return Err(several_disks());
    }
    let mut candidates = Vec::new();
    if let Some(start) = end_at.checked_sub(end.size)
        && let Some(before) = start.checked_sub(end.offset)
    {
        candidates.push((start, before));
    }
    // Something may stand between the directory and its end record.
    candidates.push((end.offset, 0));
    for (start, before) in candidates {
        let range = ByteRange::new(start, end.size).filter(|range| range.end() <= end_at);
        let Some(range) = range else {
            continue;
        };
        let is_there = match read(below, start, 4)? {
            _ if end.count == 0 && end.size == 0 => true,
            Some(bytes) => bytes == CENTRAL,
            None => false,
        };
        if is_there {
            return Ok(Place {
                range,
                before,
                count: end.count,
                is_short,
            });
        }
    }
    let what = format!(
        "the end record at {end_at} speaks of a directory of {} bytes at {}, where there is none",
        end.size, end.offset
    );
    Err(Error::new(Kind::Corrupt, what))
}

/// A small read that may be outside.
fn read(below: &Volume, at: u64, len: u64) -> Result<Option<Vec<u8>>> {
    let range = ByteRange::new(at, len).filter(|range| range.end() <= below.size());
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    range
        .map(|range| below.read_vec(range.start(), len))
        .transpose()
}
