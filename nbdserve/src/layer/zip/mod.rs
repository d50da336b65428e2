//! zip: one file of an archive, the disk image.
//!
//! The central directory at the end is read (`directory.rs`, parsers in `header.rs`); the local
//! header of the file that is opened is held against it. A stored file is a part of the archive,
//! for which nothing checks the CRC, since that would cost reading all of it; a compressed one is
//! handed to the layer of its codec.

mod directory;
mod header;

use std::collections::HashMap;

use directory::{Directory, Entry};

use super::archive::{
    Archive, ArchiveType, File, Opened, PARAMS, Role, key, open, printed, volume_name,
};
use super::deflate::{self, Expected};
use super::lzma;
use super::window::Window;
use super::{Args, Confidence, LAYERS, LayerType, Sample, Verdict};
use crate::sys::zlib::{Inflate, Place, Stop};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// Deflate data read at once for the first bytes of a file.
const HEAD_STEP: u64 = 16 << 10;

const NAME: &str = "zip";

/// `--layer zip`, `--layer zip:disk.img`, `--layer zip:*.vmdk`.
pub static ZIP: LayerType = LayerType {
    name: NAME,
    summary: "a file in a zip archive",
    params: PARAMS,
    probe,
    open: |below, args, cx| open(&ARCHIVE, below, args, cx),
};

/// How it lists what is in it.
pub(super) static ARCHIVE: ArchiveType = ArchiveType {
    name: NAME,
    read: |below, cx| Ok(Box::new(Zip::read(below, cx)?)),
};

/// A record that stands first in what is an archive and nothing else; or the end record, for one
/// with a program in front of it that unpacks it.
fn probe(sample: &Sample<'_>) -> Verdict {
    let first = [header::LOCAL, header::END];
    for magic in first.into_iter().chain(header::SPLIT) {
        if sample.head.starts_with(magic) {
            return Verdict::Yes {
                confidence: Confidence::MAGIC,
                evidence: format!("magic \"{}\" at 0", magic.escape_ascii()),
            };
        }
    }
    let Some(tail) = sample.tail else {
        return Verdict::No;
    };
    let found = header::find_end(tail).and_then(Result::ok);
    let record = found.and_then(|at| header::end(tail.get(at..)?));
    match record {
        Some(end) if end.disk == 0 && end.here == end.count && end.size <= sample.size => {
            Verdict::Yes {
                confidence: Confidence::WEAK,
                evidence: "an end record of a zip archive at the end".to_owned(),
            }
        }
        // Opening it says what to do.
        Some(end) if end.disk != 0 && end.directory_disk <= end.disk && end.size <= sample.size => {
            Verdict::Yes {
                confidence: Confidence::WEAK,
                evidence: "the end record of an archive that was cut into several files".to_owned(),
            }
        }
        _ => Verdict::No,
    }
}

/// An archive whose directory was read.
#[derive(Debug)]
struct Zip {
    below: Volume,
    directory: Directory,
    /// Of each entry.
    roles: Vec<Role>,
    cx: Cx,
}

impl Zip {
    fn read(below: &Volume, cx: &Cx) -> Result<Self> {
        let directory = Directory::read(below, cx)?;
        Ok(Self {
            below: below.clone(),
            roles: roles(&directory.entries),
            directory,
            cx: cx.clone(),
        })
    }

    fn entry(&self, number: u64) -> Result<&Entry> {
        let index = number
            .checked_sub(1)
            .and_then(|at| usize::try_from(at).ok());
        let entry = index.and_then(|index| self.directory.entries.get(index));
        entry.filter(|entry| entry.is_regular).ok_or_else(|| {
            let what = format!("there is no file with the number {number} in it");
            Error::new(Kind::OutOfRange, what)
        })
    }

    /// The bytes of a file that is compressed, by the layer that does that.
    fn decoded(&self, entry: &Entry, data: ByteRange, codec: &str) -> Result<Volume> {
        let layer = LAYERS.iter().find(|layer| layer.name == codec);
        let Some(layer) = layer else {
            return Err(unsupported(entry, "is compressed in a way that"));
        };
        let part = Window::read_only(volume_name(NAME, &entry.name), &self.below, data)?;
        let volume = (layer.open)(&part, &Args::new(), &self.inside(data))
            .map_err(|error| error.in_layer(codec))?;
        if volume.size() != entry.fields.size {
            let what = format!(
                "{}: {} bytes when decoded, the directory says {}",
                printed(&entry.name),
                volume.size(),
                entry.fields.size
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(volume)
    }

    /// The context for what is in a file. Names need not be those of one file only.
    fn inside(&self, data: ByteRange) -> Cx {
        let mut cx = self.cx.clone();
        let key = format!("data at {}", data.start());
        cx.place = cx.place.map(|place| place.inside(&key));
        cx
    }

    /// A file whose method is LZMA.
    fn unpacked(&self, entry: &Entry, data: ByteRange) -> Result<Volume> {
        let part = Window::read_only(volume_name(NAME, &entry.name), &self.below, data)?;
        let expected = lzma::Expected {
            size: entry.fields.size,
            crc32: entry.fields.crc32,
            marker: entry.fields.flags & header::MARKER != 0,
        };
        let volume = lzma::member(&part, expected, &self.inside(data))?;
        if volume.size() != expected.size {
            // Only an empty one is decoded now.
            let what = format!("{} is not empty", printed(&entry.name));
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(volume)
    }

    /// A file whose method is deflate.
    fn inflated(&self, entry: &Entry, data: ByteRange) -> Result<Volume> {
        let expected = Expected {
            size: Some(entry.fields.size),
            crc32: Some(entry.fields.crc32),
        };
        deflate::raw(NAME, &self.below, data, expected, &self.inside(data))
    }

    /// The file and where its bytes are, if it is one that may be looked into.
    fn data(&self, number: u64) -> Result<(&Entry, ByteRange)> {
        let entry = self.entry(number)?;
        let name = printed(&entry.name);
        let fields = entry.fields;
        if fields.flags & (header::ENCRYPTED | header::MASKED) != 0 {
            let what = format!("{name} is encrypted");
            return Err(Error::new(Kind::Unsupported, what).hint(BY_7ZZ));
        }
        if fields.flags & header::PATCH != 0 {
            let what = format!("{name} is a patch");
            return Err(Error::new(Kind::Unsupported, what));
        }
        Ok((entry, self.directory.data(entry, &self.below)?))
    }
}

/// For what no decoder is here.
const BY_7ZZ: &str = "7zz x ARCHIVE takes it out";

/// The last of a name is what stays when all are taken out.
fn roles(entries: &[Entry]) -> Vec<Role> {
    let mut roles = vec![Role::Candidate; entries.len()];
    let mut names = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        if let Some(old) = names.insert(key(&entry.name), index)
            && let Some(role) = roles.get_mut(old)
        {
            *role = Role::Replaced;
        }
    }
    roles
}

fn unsupported(entry: &Entry, what: &str) -> Error {
    let name = printed(&entry.name);
    let method = header::method_name(entry.fields.method);
    let what = format!("{name} {what} this version does not know: {method}");
    Error::new(Kind::Unsupported, what).hint(BY_7ZZ)
}

/// The first `len` bytes of deflate data, which is at least so long when it is sound.
fn inflated_head(below: &Volume, data: ByteRange, len: usize, cx: &Cx) -> Result<Vec<u8>> {
    let damaged = || {
        let what = format!("the deflate data at {} is damaged", data.start());
        Error::new(Kind::Corrupt, what)
    };
    let mut inflate = Inflate::new()
        .map_err(|failure| Error::new(Kind::Limit, "no memory for a decoder").caused_by(failure))?;
    let mut head = vec![0; len];
    let mut done = 0_usize;
    let mut at = data.start();
    while done < len {
        cx.cancel.check()?;
        let end = at.saturating_add(HEAD_STEP).min(data.end());
        let input = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        if input == 0 {
            return Err(damaged());
        }
        let input = below.read_vec(at, input)?;
        let mut rest = input.as_slice();
        at = end;
        while !rest.is_empty() && done < len {
            let out = head.get_mut(done..).unwrap_or_default();
            let step = inflate.step(rest, out, Stop::Never);
            done = done.saturating_add(step.written);
            rest = rest.get(step.read..).unwrap_or_default();
            let is_stuck = step.read == 0 && step.written == 0;
            let is_over = !matches!(step.place, Ok(place) if place != Place::End);
            if done < len && (is_over || is_stuck) {
                return Err(damaged());
            }
        }
    }
    Ok(head)
}

impl Archive for Zip {
    fn files(&self) -> Box<dyn Iterator<Item = File<'_>> + '_> {
        let all = (1..).zip(self.directory.entries.iter().zip(&self.roles));
        let files = all.filter(|(_, (entry, _))| entry.is_regular);
        Box::new(files.map(|(number, (entry, role))| File {
            number,
            name: &entry.name,
            size: entry.fields.size,
            role: *role,
        }))
    }

    fn open(&self, number: u64) -> Result<Opened> {
        let (entry, data) = self.data(number)?;
        let fields = entry.fields;
        let volume_name = volume_name(NAME, &entry.name);
        let volume = match fields.method {
            0 if fields.compressed != fields.size => {
                let (stored, size) = (fields.compressed, fields.size);
                let name = printed(&entry.name);
                let what = format!("{name} is stored, {size} bytes as {stored}");
                return Err(Error::new(Kind::Corrupt, what));
            }
            0 => Window::read_only(volume_name, &self.below, data)?,
            8 => Window::renamed(volume_name, &self.inflated(entry, data)?),
            12 => Window::renamed(volume_name, &self.decoded(entry, data, "bzip2")?),
            14 => Window::renamed(volume_name, &self.unpacked(entry, data)?),
            20 | 93 => Window::renamed(volume_name, &self.decoded(entry, data, "zstd")?),
            95 => Window::renamed(volume_name, &self.decoded(entry, data, "xz")?),
            _ => return Err(unsupported(entry, "is compressed in a way that")),
        };
        // The kernel must not write into what has a CRC.
        Ok(Opened {
            volume,
            range: None,
        })
    }

    /// Without the pass over all of a file that entering it in the middle may take.
    fn head(&self, number: u64, len: usize) -> Result<Vec<u8>> {
        let (entry, data) = self.data(number)?;
        if entry.fields.method == 8 {
            let size = usize::try_from(entry.fields.size).unwrap_or(usize::MAX);
            return inflated_head(&self.below, data, len.min(size), &self.cx);
        }
        let volume = self.open(number)?.volume;
        let size = usize::try_from(volume.size()).unwrap_or(usize::MAX);
        volume.read_vec(0, len.min(size))
    }
}
