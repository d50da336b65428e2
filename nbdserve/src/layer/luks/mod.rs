//! LUKS1 and LUKS2: encrypted disks, as cryptsetup and qemu make them.
//!
//! `read.rs` finds the header, `header1.rs`, `header2.rs`, `json.rs` and `metadata.rs` parse it,
//! `unlock.rs` asks for passphrases and `keyslot.rs` opens keyslots with them, `cipher/` is what
//! `dm-crypt` does, `device.rs` serves it.

mod cipher;
mod device;
#[cfg(feature = "testing")]
pub(crate) mod fuzzing;
mod hash;
mod header;
mod header1;
mod header2;
mod json;
mod kdf;
mod keyslot;
mod metadata;
mod read;
mod unlock;

use std::path::Path;
use std::sync::Arc;

use device::{Luks, NAME};
use header::{Header, MAGIC, SECOND_MAGIC};
use kdf::{Bounds, STACK};

pub(crate) use cipher::SectorCipher;

use super::{Args, Confidence, LayerType, Param, Sample, Verdict};
use crate::bytes::has;
use crate::error::quote;
use crate::secret::with_wiped_stack;
use crate::size::format_size;
use crate::source::{File, OpenMode};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// The layer `luks`.
pub static LUKS: LayerType = LayerType {
    name: NAME,
    summary: "encrypted disk (LUKS1, LUKS2), opened with a passphrase or a key file",
    params: &[
        Param {
            name: "keyslot",
            summary: "the keyslot to open (default: any that the key opens)",
        },
        Param {
            name: HEADER,
            summary: "file with the header, when that is not in the image",
        },
        Param {
            name: "discards",
            summary: "yes: what is no longer needed becomes a hole (default no: it would show)",
        },
    ],
    probe,
    open,
};

/// The parameter that names a file.
const HEADER: &str = "header";

fn probe(sample: &Sample<'_>) -> Verdict {
    let head = sample.head;
    let is_first = has(head, 0, MAGIC);
    if !is_first {
        return second_only(head);
    }
    let magic = "magic 4c 55 4b 53 ba be at 0";
    let (confidence, evidence) = match read::header_in(head) {
        // LUKS1 has no checksum.
        Ok(header) if header.version == 1 => (Confidence::MAGIC, format!("{magic}, {header}")),
        Ok(header) => {
            let evidence = format!("{magic}, checksum matches, {header}");
            (Confidence::CHECKED, evidence)
        }
        Err(error) => (Confidence::MAGIC, doubt(head, magic, &error)),
    };
    Verdict::Yes {
        confidence,
        evidence,
    }
}

/// What is said of a header that is not as it must be, or not all there to be looked at.
fn doubt(head: &[u8], magic: &str, error: &Error) -> String {
    match header2::fixed(head, 0) {
        Ok(fixed) if u64::try_from(head.len()).is_ok_and(|have| have < fixed.hdr_size) => {
            format!("{magic}, a header of {}", format_size(fixed.hdr_size))
        }
        _ => format!("{magic}, but {error}"),
    }
}

/// A second header whose first one is gone. Whoever made something else of the disk may have left it
/// there, so everything else is surer.
fn second_only(head: &[u8]) -> Verdict {
    let places = header2::PLACES.iter().filter_map(|place| {
        let place = usize::try_from(*place).ok()?;
        has(head, place, SECOND_MAGIC).then_some(place)
    });
    for place in places {
        if let Ok(header) = read::header_in(head) {
            return Verdict::Yes {
                confidence: Confidence::WEAK,
                evidence: format!("second header at {place}, checksum matches, {header}"),
            };
        }
    }
    Verdict::No
}

/// What the user asked for.
struct Wanted<'a> {
    keyslot: Option<u32>,
    header: Option<&'a Path>,
    discards: bool,
}

impl<'a> Wanted<'a> {
    fn of(args: &'a Args) -> Result<Self> {
        let wrong = |key: &str, value: &str, what: &str| {
            let what = format!("{key}={} is not {what}", quote(value));
            Error::new(Kind::OutOfRange, what)
        };
        let keyslot = args.get("keyslot").map(|text| {
            let number = text.parse();
            number.map_err(|_| wrong("keyslot", text, "the number of a keyslot"))
        });
        let discards = match args.get("discards").map(String::as_str) {
            None | Some("no") => false,
            Some("yes") => true,
            Some(other) => return Err(wrong("discards", other, "yes or no")),
        };
        Ok(Self {
            keyslot: keyslot.transpose()?,
            header: args.get(HEADER).map(Path::new),
            discards,
        })
    }
}

fn open(below: &Volume, args: &Args, cx: &Cx) -> Result<Volume> {
    open_bounded(below, args, &Bounds::USUAL, cx).map_err(|error| {
        let unhinted = error.kind() == Kind::Unsupported && error.report().hint.is_none();
        match unhinted {
            true => error.hint("cryptsetup open IMAGE NAME, as root, opens what the kernel has"),
            false => error,
        }
    })
}

fn open_bounded(below: &Volume, args: &Args, bounds: &Bounds, cx: &Cx) -> Result<Volume> {
    let wanted = Wanted::of(args)?;
    // The user has named it, so it is no reference of the image.
    let detached = match wanted.header {
        Some(path) => Some(Volume::new(File::open(path, OpenMode::ReadOnly)?)),
        None => None,
    };
    let place = detached.as_ref().unwrap_or(below);
    let header = read::header(place)?;
    for note in &header.notes {
        tracing::warn!("{}: {note}", header.title());
    }
    let data = data_range(&header, below.size(), detached.is_some())?;
    let title = header.title();
    let key = unlock::unlock(place, &header, wanted.keyslot, &title, bounds, cx)?;
    Ok(Volume::new(Luks {
        below: below.clone(),
        cipher: sector_cipher(&header, &key, cx)?,
        data,
        iv_tweak: header.segment.iv_tweak,
        discards: wanted.discards,
    }))
}

fn sector_cipher(header: &Header, key: &[u8], cx: &Cx) -> Result<SectorCipher> {
    let segment = &header.segment;
    // At most 4096.
    let sector = usize::try_from(segment.sector).unwrap_or(0);
    with_wiped_stack::<STACK, _>(|| {
        SectorCipher::new(&segment.cipher, key, sector, cx.pool.threads())
    })
}

/// Where the data are in an image of `have` bytes.
fn data_range(header: &Header, have: u64, detached: bool) -> Result<ByteRange> {
    let corrupt = |what: String| Err(Error::new(Kind::Corrupt, what));
    let (start, end) = (header.segment.offset, header.end);
    if !detached && start < end {
        let what = format!(
            "the data begin at {start}, within the header and its keyslots of {end} bytes: it is \
             the detached header of another image"
        );
        return Err(Error::new(Kind::Corrupt, what).hint(
            "--layer luks:header=FILE IMAGE opens an image with a header that is elsewhere",
        ));
    }
    if start > have {
        return corrupt(format!(
            "the data begin at {start}, beyond its {have} bytes"
        ));
    }
    let sector = u64::from(header.segment.sector);
    let rest = have.saturating_sub(start);
    let size = match header.segment.size {
        None => rest.saturating_sub(rest.checked_rem(sector).unwrap_or(0)),
        Some(size) if size <= rest => size,
        Some(size) => {
            return corrupt(format!(
                "the {size} bytes of data at {start} are not within its {have} bytes"
            ));
        }
    };
    Ok(ByteRange::between(start, start.saturating_add(size)))
}

/// The cipher of an image in another format that has a LUKS header inside: `header` are its bytes,
/// keyslots included; `question` says to a person what is locked, escaped. Where the data are is the
/// other format's to say.
///
/// # Errors
/// As opening the layer: `Secret`, `Corrupt`, `Unsupported`, `Limit`.
pub(crate) fn embedded(header: &Volume, question: &str, cx: &Cx) -> Result<Arc<SectorCipher>> {
    let parsed = read::header(header)?;
    let key = unlock::unlock(header, &parsed, None, question, &Bounds::USUAL, cx)?;
    sector_cipher(&parsed, &key, cx).map(Arc::new)
}
