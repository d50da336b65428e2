//! What both versions of the header come to.

use std::fmt;

use super::cipher::CipherSpec;
use super::hash::Hash;
use super::kdf::Kdf;
use crate::error::{escape, quote, quote_if_needed};
use crate::{Error, Kind, Result};

/// The magic of a first header, and of the second one of LUKS2.
pub(super) const MAGIC: &[u8] = b"LUKS\xba\xbe";
pub(super) const SECOND_MAGIC: &[u8] = b"SKUL\xba\xbe";
/// Bytes of the fixed part of a header of LUKS2; that of LUKS1 is shorter.
pub(super) const FIXED: usize = 4096;

/// A header, checked.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// 1 or 2.
    pub(super) version: u16,
    pub(super) uuid: Option<String>,
    pub(super) label: Option<String>,
    pub(super) segment: Segment,
    pub(super) digest: Digest,
    /// In the order in which they are tried.
    pub(super) slots: Vec<Slot>,
    /// The first byte behind the header and all keyslots.
    pub(super) end: u64,
    /// What is unusual.
    pub(super) notes: Vec<String>,
}

/// Where the data are and how they are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    /// `None`: all that follow.
    pub(super) size: Option<u64>,
    pub(super) cipher: CipherSpec,
    /// Bytes of a sector.
    pub(super) sector: u32,
    /// Number of the first sector.
    pub(super) iv_tweak: u64,
}

/// How a volume key is known to be the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) hash: Hash,
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
    pub(super) digest: Vec<u8>,
}

/// A keyslot in use.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) number: u32,
    /// Only tried when the user names it.
    pub(super) on_demand: bool,
    /// Why it cannot be tried.
    pub(super) content: Result<Keyslot>,
}

/// How a passphrase opens a keyslot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keyslot {
    pub(super) kdf: Kdf,
    /// Parts that the volume key is split into.
    pub(super) stripes: u32,
    pub(super) af_hash: Hash,
    /// Where they are, and how they are encrypted.
    pub(super) offset: u64,
    pub(super) cipher: CipherSpec,
    /// Bytes of the volume key.
    pub(super) key_len: usize,
}

/// Most stripes of a keyslot. All tools make 4000.
const MOST_STRIPES: u32 = 8192;

impl Keyslot {
    /// Bytes of all stripes. At most a megabyte.
    pub(super) fn split_len(&self) -> usize {
        usize::try_from(self.stripes)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.key_len)
    }

    /// The first byte behind the stripes, whole sectors.
    pub(super) fn end(&self) -> Option<u64> {
        let len = u64::try_from(self.split_len()).ok()?;
        self.offset.checked_add(len.checked_next_multiple_of(512)?)
    }
}

/// # Errors
/// `Corrupt` for none, `Limit` for too many.
pub(super) fn check_stripes(stripes: u32) -> Result<()> {
    match stripes {
        0 => Err(Error::new(Kind::Corrupt, "its key has 0 stripes")),
        1..=MOST_STRIPES => Ok(()),
        _ => {
            let what = format!("its key has {stripes} stripes, more than {MOST_STRIPES}");
            Err(Error::new(Kind::Limit, what))
        }
    }
}

/// The text in a field of fixed length: up to the first zero.
pub(super) fn text(field: &[u8]) -> Option<String> {
    let field = field.split(|byte| *byte == 0).next()?;
    let text = String::from_utf8_lossy(field).into_owned();
    (!text.is_empty()).then_some(text)
}

impl Header {
    /// For a person who is to know which passphrase is asked for: `LUKS2 "backup" (a9f5…)`. Escaped.
    pub(super) fn title(&self) -> String {
        let uuid = self
            .uuid
            .as_deref()
            .map(|uuid| format!("({})", quote_if_needed(uuid)));
        let label = self.label.as_deref().map(quote);
        let format = format!("LUKS{}", self.version);
        let parts: Vec<_> = [format].into_iter().chain(label).chain(uuid).collect();
        parts.join(" ")
    }
}

impl fmt::Display for Header {
    /// `aes-xts-plain64, key of 512 bits, keyslots 0 (argon2id), 1 (pbkdf2-sha256)`. Escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segment = &self.segment;
        let bits = segment.cipher.key_len().saturating_mul(8);
        write!(f, "{}, key of {bits} bits, ", segment.cipher)?;
        if segment.sector != 512 {
            write!(f, "sectors of {} bytes, ", segment.sector)?;
        }
        let mut slots: Vec<_> = self.slots.iter().collect();
        slots.sort_by_key(|slot| slot.number);
        let slots = slots.iter().map(|slot| match &slot.content {
            Ok(content) => format!("{} ({})", slot.number, content.kdf),
            Err(error) => format!("{} ({})", slot.number, escape(&error.to_string())),
        });
        let slots: Vec<_> = slots.collect();
        match slots.len() {
            0 => f.write_str("no keyslot in use"),
            1 => write!(f, "keyslot {}", slots.join("")),
            _ => write!(f, "keyslots {}", slots.join(", ")),
        }
    }
}
