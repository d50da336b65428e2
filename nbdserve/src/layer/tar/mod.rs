//! tar: one file of an archive, the disk image. And OVA, which is a tar whose first file says which
//! of the others is the disk.
//!
//! Only headers are read (`walk.rs`, parsers in `header.rs`, `pax.rs`, `sparse.rs`), bodies are
//! skipped; what was found is kept for the next time (`index.rs`). A file that is stored in one
//! piece is a window of the archive, one with holes a device of its own (`device.rs`).

mod device;
mod header;
mod index;
mod ovf;
mod pax;
mod sparse;
mod walk;

use device::WithHoles;
use index::{Entry, Index};
use sparse::{BYTES_PER_PIECE, MapReader, Piece, Stored};
use walk::{Holes, Sort};

use super::archive::{
    Allowance, Archive, ArchiveType, Described, File, Opened, PARAMS, Reader, Role, key, open,
    printed, volume_name,
};
use super::window::Window;
use super::{Confidence, LayerType, Sample, Verdict};
use crate::error::quote;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "tar";

/// `--layer tar`, `--layer tar:disk.img`, `--layer tar:*.vmdk`.
pub static TAR: LayerType = LayerType {
    name: NAME,
    summary: "a file in a tar archive or an OVA",
    params: PARAMS,
    probe,
    open: |below, args, cx| open(&ARCHIVE, below, args, cx),
};

/// How it lists what is in it.
pub(super) static ARCHIVE: ArchiveType = ArchiveType {
    name: NAME,
    read: |below, cx| Ok(Box::new(Tar::read(below, cx)?)),
};

fn probe(sample: &Sample<'_>) -> Verdict {
    let Some(block) = sample.head.get(..header::BLOCK_LEN) else {
        return Verdict::No;
    };
    let is_checked = header::is_checked(block);
    let (confidence, evidence) = match header::magic(block) {
        Some(magic) => {
            let at = header::MAGIC_AT;
            let magic = format!("magic \"{}\" at {at}", magic.escape_ascii());
            if is_checked {
                let evidence = format!("{magic}, header checksum right");
                (Confidence::CHECKED, evidence)
            } else {
                let evidence = format!("{magic}, but the header checksum is wrong");
                (Confidence::MAGIC, evidence)
            }
        }
        // The sum of 512 bytes, written in front of 356 of them: no accident, but no magic either.
        None if is_checked && header::Header::parse(block, 0).is_ok() => {
            let evidence = "no magic, but the checksum of a header is right".to_owned();
            (Confidence::SHORT_MAGIC, evidence)
        }
        None => return Verdict::No,
    };
    Verdict::Yes {
        confidence,
        evidence,
    }
}

/// An archive whose headers were read.
#[derive(Debug)]
struct Tar {
    below: Volume,
    index: Index,
    /// Bytes that the map of a file may take.
    memory: u64,
}

impl Tar {
    fn read(below: &Volume, cx: &Cx) -> Result<Self> {
        Ok(Self {
            below: below.clone(),
            index: Index::of(below, cx)?,
            memory: Allowance::of_index(cx).left(),
        })
    }

    /// The map of a file with holes.
    fn map(&self, entry: &Entry) -> Result<Vec<Stored>> {
        let (holes, mut reader) = index::read_holes(entry, &self.below, self.memory)?;
        match holes {
            Holes::Map(pieces) => sparse::place(&pieces, entry.size, entry.data, entry.stored),
            Holes::InData => {
                let (pieces, len) = self.map_in_data(entry, &mut reader)?;
                // The map was read out of the stored bytes: there are as many.
                let at = entry.data.saturating_add(len);
                let stored = entry.stored.saturating_sub(len);
                sparse::place(&pieces, entry.size, at, stored)
            }
            Holes::Star => {
                let what = "its holes are stored as star(1) does, which is not known here";
                Err(Error::new(Kind::Unsupported, what))
            }
        }
    }

    /// The map before the data, and the bytes that it takes there.
    fn map_in_data(&self, entry: &Entry, reader: &mut Reader<'_>) -> Result<(Vec<Piece>, u64)> {
        let mut map = MapReader::default();
        let mut done = 0_u64;
        loop {
            let end = done.saturating_add(header::BLOCK);
            let range = ByteRange::between(
                entry.data.saturating_add(done),
                entry.data.saturating_add(end),
            );
            let block = match end <= entry.stored {
                true => reader.get(range)?,
                false => None,
            };
            let Some(block) = block else {
                let what = "the map before its data has no end";
                return Err(Error::new(Kind::Corrupt, what));
            };
            done = end;
            if let Some(pieces) = map.take(block, self.memory / BYTES_PER_PIECE)? {
                return Ok((pieces, done));
            }
        }
    }

    /// The first file, when its name is that of a descriptor.
    fn descriptor(&self) -> Option<&Entry> {
        let first = self.index.entries.first()?;
        let name = first.name.to_ascii_lowercase();
        let is_one = first.sort == Sort::File && !first.has_holes && name.ends_with(b".ovf");
        is_one.then_some(first)
    }

    /// The file that a descriptor means by `href`: the last one of that name, as it is written or
    /// unescaped.
    fn referred(&self, href: &str) -> Option<File<'_>> {
        let find = |name: &[u8]| {
            let same = self.files().filter(|file| key(file.name) == key(name));
            same.filter(|file| file.role != Role::Replaced).last()
        };
        find(href.as_bytes()).or_else(|| find(&ovf::unescaped(href)))
    }
}

impl Archive for Tar {
    fn files(&self) -> Box<dyn Iterator<Item = File<'_>> + '_> {
        let entries = &self.index.entries;
        let all = (1..).zip(entries.iter().zip(&self.index.fates));
        Box::new(all.filter_map(|(number, (entry, fate))| {
            let is_file = matches!(entry.sort, Sort::File | Sort::HardLink);
            let body = fate.body.and_then(|body| entries.get(body));
            is_file.then(|| File {
                number,
                name: &entry.name,
                size: body.map_or(0, |body| body.size),
                role: fate.role,
            })
        }))
    }

    fn described(&self) -> Result<Option<Described>> {
        let Some(entry) = self.descriptor() else {
            return Ok(None);
        };
        let by = format!("the OVF descriptor {}", printed(&entry.name));
        if entry.size > ovf::MAX_LEN {
            let what = format!("{by} has {} bytes, more than {}", entry.size, ovf::MAX_LEN);
            return Err(Error::new(Kind::Limit, what));
        }
        let len = usize::try_from(entry.size).unwrap_or(usize::MAX);
        let text = self.below.read_vec(entry.data, len)?;
        let Some(names) = ovf::disks(&text)? else {
            return Ok(None);
        };
        if names.is_empty() {
            let what = format!("{by} names no disk");
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let mut disks = Vec::new();
        for name in names {
            let Some(file) = self.referred(&name) else {
                let name = quote(&name);
                let what = format!("{by} names {name}, which is not in the archive");
                return Err(Error::new(Kind::Corrupt, what));
            };
            disks.push(file.number);
        }
        Ok(Some(Described { disks, by }))
    }

    fn open(&self, number: u64) -> Result<Opened> {
        let index = number
            .checked_sub(1)
            .and_then(|at| usize::try_from(at).ok());
        let found = index.and_then(|index| {
            let entry = self.index.entries.get(index)?;
            Some((entry, self.index.fates.get(index)?))
        });
        let Some((named, fate)) = found else {
            let what = format!("there is no entry {number} in it");
            return Err(Error::new(Kind::OutOfRange, what));
        };
        let Some(entry) = fate.body.and_then(|body| self.index.entries.get(body)) else {
            let (name, link) = (printed(&named.name), printed(&named.link));
            let what = match named.sort {
                Sort::HardLink => format!("{name} is a link to {link}, which is not before it"),
                Sort::File | Sort::Other => format!("{name} is no file"),
            };
            return Err(Error::new(Kind::Corrupt, what));
        };
        let name = volume_name(NAME, &named.name);
        if entry.has_holes {
            let map = self.map(entry).map_err(|error| error.in_layer(&name))?;
            return Ok(Opened {
                volume: WithHoles::volume(name, &self.below, entry.size, map),
                range: None,
            });
        }
        let range = ByteRange::new(entry.data, entry.stored).ok_or_else(|| {
            let what = format!("{} bytes at {}", entry.stored, entry.data);
            Error::new(Kind::Corrupt, what)
        })?;
        Ok(Opened {
            volume: Window::volume(name, &self.below, range)?,
            range: Some(range),
        })
    }
}
