//! What stands in a cow file: two slots for its header, the map of its blocks, the blocks.
//!
//! ```text
//!      0  a header of 4096 bytes; the valid one with the higher sequence number counts
//!   4096  the other one
//!   8192  the map: sectors of 512 bytes, each with its own checksum, two bits for each block
//!      …  the blocks, each at a place of its own, whether it is stored or not
//! ```
//!
//! All numbers are little-endian. A sector of the map is written whole or not at all, as every
//! journal of a file system assumes of a disk. Sectors of an older epoch than the header's mean
//! nothing any more: so one write of a header empties the file.

use twox_hash::XxHash3_64;

use crate::bytes::{has, is_zero, le16, le32, le64, slice};
use crate::error::escape;
use crate::{Error, Kind, Result};

/// What the file begins with.
pub const MAGIC: &[u8; 8] = b"loopcow\n";
/// The only version that there is.
pub const VERSION: u32 = 1;
/// Bytes of one slot.
pub const SLOT_LEN: usize = 4096;
/// Bytes of both.
pub const SLOTS_LEN: usize = 2 * SLOT_LEN;
/// Where the map begins.
pub const MAP_AT: u64 = 8192;
/// Bytes of a sector of the map.
pub const SECTOR_LEN: usize = 512;
/// Words of 32 blocks in a sector.
pub const WORDS: usize = 62;
/// Blocks in a word.
pub const PER_WORD: u64 = 32;
/// Blocks in a sector.
pub const PER_SECTOR: u64 = 1984;
/// Blocks are at least this long.
pub const LEAST_BLOCK: u32 = 4096;
/// And at most this.
pub const MOST_BLOCK: u32 = 1 << 20;
/// So many blocks at most, so that the map stays small; larger disks have longer blocks.
pub const MOST_BLOCKS: u64 = 1 << 30;

/// Bytes before the words of a sector.
const SECTOR_HEAD: usize = 16;
/// Bytes before the texts of a header.
const FIXED_LEN: usize = 80;
/// Where a slot's checksum stands.
const SUM_AT: usize = SLOT_LEN - 8;
/// Room for all texts together.
pub const TEXTS_LEN: usize = SUM_AT - FIXED_LEN;

/// How far the file is with being written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Goes with its base as it was.
    Open,
    /// Is being written back: of the base some blocks are old, some new.
    Committing,
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a block.
    pub block: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Random; the checksums of the map are seeded with it.
    pub id: u64,
    /// Counts the headers that were written.
    pub sequence: u64,
    /// Sectors of the map with a lower one are empty.
    pub epoch: u32,
    /// Whether a commit was begun.
    pub state: State,
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// Of some bytes of the base.
    pub fingerprint: u64,
    /// What the base was called.
    pub name: String,
    /// What tells its content from others; empty when nothing does.
    pub identity: String,
    /// Where it lies; empty when it is not known.
    pub place: String,
    /// The layers below.
    pub layers: String,
}

/// Bytes of a block for a disk of `size` bytes.
///
/// # Errors
/// `Limit` above 1 PiB.
pub fn block_for(size: u64) -> Result<u32> {
    let mut block = LEAST_BLOCK;
    while size.div_ceil(u64::from(block)) > MOST_BLOCKS {
        if block >= MOST_BLOCK {
            let what = format!("a disk of {size} bytes; a cow layer has at most 1 PiB");
            return Err(Error::new(Kind::Limit, what));
        }
        block = block.saturating_mul(2);
    }
    Ok(block)
}

impl Header {
    /// Blocks of the disk, the last one perhaps a short one.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(u64::from(self.block).max(1))
    }

    /// Sectors of the map.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.blocks().div_ceil(PER_SECTOR)
    }

    /// Where the first block lies in the file.
    #[must_use]
    pub fn data_at(&self) -> u64 {
        let map = self.sectors().saturating_mul(512);
        let end = MAP_AT.saturating_add(map);
        end.next_multiple_of(u64::from(MOST_BLOCK))
    }

    /// The bytes of a slot. Texts that are too long have been cut before.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SLOT_LEN);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.block.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        out.extend(self.id.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.epoch.to_le_bytes());
        let state: u32 = match self.state {
            State::Open => 0,
            State::Committing => 1,
        };
        out.extend(state.to_le_bytes());
        out.extend(self.created.to_le_bytes());
        out.extend(self.fingerprint.to_le_bytes());
        let texts = [&self.name, &self.identity, &self.place, &self.layers];
        for text in texts {
            out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        }
        out.resize(FIXED_LEN, 0);
        for text in texts {
            out.extend(text.as_bytes());
        }
        out.resize(SUM_AT, 0);
        let sum = XxHash3_64::oneshot(&out);
        out.extend(sum.to_le_bytes());
        out
    }

    /// One slot.
    ///
    /// # Errors
    /// `NotThisFormat` without the magic, `Corrupt` when the checksum or a value is wrong,
    /// `Unsupported` for another version.
    pub fn parse(slot: &[u8]) -> Result<Self> {
        let corrupt = |what: String| Error::new(Kind::Corrupt, what);
        if !has(slot, 0, MAGIC) {
            let what = "it does not begin as a cow file does";
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let short = || corrupt(format!("its header ends after {} bytes", slot.len()));
        let summed = slice(slot, 0, SUM_AT).ok_or_else(short)?;
        let stored = le64(slot, SUM_AT).ok_or_else(short)?;
        let found = XxHash3_64::oneshot(summed);
        if stored != found {
            let what = format!("its header has the checksum {found:#018x}, not {stored:#018x}");
            return Err(corrupt(what));
        }
        let n32 = |at| le32(slot, at).ok_or_else(short);
        let n64 = |at| le64(slot, at).ok_or_else(short);
        let version = n32(8)?;
        if version != VERSION {
            let what = format!("a cow file of version {version}; version {VERSION} is known here");
            return Err(Error::new(Kind::Unsupported, what));
        }
        let block = n32(12)?;
        if !block.is_power_of_two() || !(LEAST_BLOCK..=MOST_BLOCK).contains(&block) {
            return Err(corrupt(format!("its blocks have {block} bytes")));
        }
        let size = n64(16)?;
        if size == 0 || size.div_ceil(u64::from(block)) > MOST_BLOCKS {
            return Err(corrupt(format!(
                "its disk has {size} bytes in blocks of {block}"
            )));
        }
        let state = match n32(44)? {
            0 => State::Open,
            1 => State::Committing,
            other => return Err(corrupt(format!("its state is {other}"))),
        };
        let mut at = FIXED_LEN;
        let mut texts = [const { String::new() }; 4];
        for (index, text) in texts.iter_mut().enumerate() {
            let field = index.saturating_mul(2).saturating_add(64);
            let len = usize::from(le16(slot, field).ok_or_else(short)?);
            let end = at.saturating_add(len);
            let bytes = slice(slot, at, len).filter(|_| end <= SUM_AT);
            let bytes = bytes.ok_or_else(|| {
                corrupt(format!(
                    "a text of {len} bytes at {at} of its header, where {SUM_AT} is the end"
                ))
            })?;
            let found = std::str::from_utf8(bytes);
            let found = found.map_err(|_| corrupt(format!("its text at {at} is not UTF-8")))?;
            text.push_str(found);
            at = end;
        }
        let [name, identity, place, layers] = texts;
        Ok(Self {
            block,
            size,
            id: n64(24)?,
            sequence: n64(32)?,
            epoch: n32(40)?,
            state,
            created: n64(48)?,
            fingerprint: n64(56)?,
            name,
            identity,
            place,
            layers,
        })
    }

    /// The header that counts of the two slots that a file begins with.
    ///
    /// # Errors
    /// As [`Self::parse`], when neither is valid.
    pub fn of_file(start: &[u8]) -> Result<Self> {
        let first = Self::parse(slice(start, 0, SLOT_LEN).unwrap_or(start));
        let second = start.get(SLOT_LEN..).unwrap_or_default();
        let second = Self::parse(slice(second, 0, SLOT_LEN).unwrap_or(second));
        match (first, second) {
            (Ok(first), Ok(second)) => {
                if first.sequence == second.sequence {
                    let what = format!("both its headers have the number {}", first.sequence);
                    return Err(Error::new(Kind::Corrupt, what));
                }
                Ok(match first.sequence > second.sequence {
                    true => first,
                    false => second,
                })
            }
            // A newer program has written the other one.
            (_, Err(error)) | (Err(error), _) if error.kind() == Kind::Unsupported => Err(error),
            (Ok(header), Err(_)) | (Err(_), Ok(header)) => Ok(header),
            (Err(first), Err(second)) => Err(match first.kind() {
                Kind::NotThisFormat if second.kind() == Kind::Corrupt => second,
                _ => first,
            }),
        }
    }

    /// In which of the two slots it belongs.
    #[must_use]
    pub fn slot_at(&self) -> u64 {
        match self.sequence.is_multiple_of(2) {
            true => 0,
            false => 4096,
        }
    }

    /// The sum of a sector of the map, without its first eight bytes.
    fn sum(&self, index: u64, rest: &[u8]) -> u64 {
        // A right sector in a wrong place is a wrong one.
        XxHash3_64::oneshot_with_seed(self.id ^ index.rotate_left(32), rest)
    }

    /// The bytes of sector `index` of the map.
    #[must_use]
    pub fn encode_sector(&self, index: u64, words: &[u64; WORDS]) -> Vec<u8> {
        let mut rest = Vec::with_capacity(SECTOR_LEN);
        rest.extend(self.epoch.to_le_bytes());
        rest.extend([0; 4]);
        for word in words {
            rest.extend(word.to_le_bytes());
        }
        let mut out = self.sum(index, &rest).to_le_bytes().to_vec();
        out.extend(rest);
        out
    }

    /// Sector `index` of the map: two bits for each block, as in `map.rs`; `None` when
    /// nothing is stored for its blocks.
    ///
    /// # Errors
    /// `Corrupt` when it is not as it was written.
    pub fn parse_sector(&self, index: u64, sector: &[u8]) -> Result<Option<[u64; WORDS]>> {
        let corrupt = |what: String| {
            let what = format!("sector {index} of its map {what}");
            Error::new(Kind::Corrupt, what)
        };
        if is_zero(sector) {
            return Ok(None);
        }
        let short = || corrupt(format!("has {} bytes", sector.len()));
        let stored = le64(sector, 0).ok_or_else(short)?;
        let rest = slice(sector, 8, SECTOR_LEN.saturating_sub(8)).ok_or_else(short)?;
        let found = self.sum(index, rest);
        if stored != found {
            return Err(corrupt(format!(
                "has the checksum {found:#018x}, not {stored:#018x}"
            )));
        }
        let epoch = le32(sector, 8).ok_or_else(short)?;
        if epoch > self.epoch {
            let own = self.epoch;
            return Err(corrupt(format!("is of epoch {epoch}, its header of {own}")));
        }
        if epoch < self.epoch {
            return Ok(None);
        }
        let first = index.saturating_mul(PER_SECTOR);
        let mut words = [0; WORDS];
        for (number, word) in words.iter_mut().enumerate() {
            let at = number.saturating_mul(8).saturating_add(SECTOR_HEAD);
            *word = le64(sector, at).ok_or_else(short)?;
            let before = u64::try_from(number)
                .unwrap_or(u64::MAX)
                .saturating_mul(PER_WORD);
            let left = self
                .blocks()
                .saturating_sub(first)
                .saturating_sub(before)
                .min(PER_WORD);
            let used = u32::try_from(left.saturating_mul(2)).unwrap_or(u32::MAX);
            // A whole word is shifted out.
            if word.checked_shr(used).unwrap_or(0) != 0 {
                return Err(corrupt("has blocks beyond the end of the disk".to_owned()));
            }
            // Both bits of a block: a state that is not written.
            if *word & word.wrapping_shr(1) & 0x5555_5555_5555_5555 != 0 {
                return Err(corrupt("has a block in no known state".to_owned()));
            }
        }
        Ok(Some(words))
    }
}

/// The base's name as it fits a header, its end being what tells most.
#[must_use]
pub fn cut_name(name: &str) -> String {
    const MOST: usize = 1000;
    let shown = escape(name);
    let mut start = shown.len().saturating_sub(MOST);
    while !shown.is_char_boundary(start) {
        start = start.saturating_add(1);
    }
    shown.get(start..).unwrap_or_default().to_owned()
}

/// A text that has to stay what it is, or what stands for it where it is too long.
#[must_use]
pub fn fitted(text: &str) -> String {
    const MOST: usize = 640;
    if text.len() <= MOST {
        return text.to_owned();
    }
    let hash = |seed| XxHash3_64::oneshot_with_seed(seed, text.as_bytes());
    format!("{} bytes, {:016x}{:016x}", text.len(), hash(1), hash(2))
}
