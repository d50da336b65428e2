//! The seek table at the end of a file in the seekable format (zstd's contrib/seekable_format,
//! version 0.1.0): how many bytes each frame has, encoded and decoded.

use super::header::{self, SKIPPABLE_HEADER};
use crate::bytes::{array, le32};
use crate::layer::scan::narrow;
use crate::layer::spans::{Builder, Spans};
use crate::{Cx, Result, Volume};

/// Seekable_Magic_Number, the last four bytes.
const MAGIC: u32 = 0x8f92_eab1;
/// Skippable_Magic_Number of the frame that holds the table.
const FRAME_MAGIC: u32 = 0x184d_2a5e;
/// Bytes of the Seek_Table_Footer.
const FOOTER: u64 = 9;
/// Most entries that are read in one request.
const ENTRIES: u64 = 1 << 16;
/// Of the budget, what is kept of the entries takes one part in this many.
const CHECKS_PART: u64 = 16;
/// Bytes of a [`Check`].
const CHECK: u64 = 8;

/// What the table says of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// Decompressed_Size.
    pub(super) len: u32,
    /// The lower half of the XXH64 of what is decoded.
    pub(super) sum: u32,
}

/// A table that agrees with the file. The note of a block is the number of its first frame.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) spans: Spans,
    /// For each frame; `None` where the table has no checksums, or too many for the memory.
    pub(super) checks: Option<Vec<Check>>,
}

/// Where a table says it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Where its frame begins; also the bytes of all frames before it.
    at: u64,
    /// Where the first entry is.
    entries: u64,
    count: u64,
    /// Bytes of an entry.
    width: u64,
}

/// The table at the end of a file of `size` bytes, from its last [`FOOTER`] bytes.
fn place(footer: &[u8], size: u64) -> Option<Place> {
    if le32(footer, 5)? != MAGIC {
        return None;
    }
    let [descriptor] = array::<1>(footer, 4)?;
    // Reserved_Bits; the two lowest are for what need not be understood.
    if descriptor & 0x7c != 0 {
        return None;
    }
    let width = if descriptor & 0x80 != 0 { 12 } else { 8 };
    let count = u64::from(le32(footer, 0)?);
    let entries = size
        .checked_sub(FOOTER)?
        .checked_sub(count.checked_mul(width)?)?;
    Some(Place {
        at: entries.checked_sub(SKIPPABLE_HEADER)?,
        entries,
        count,
        width,
    })
}

/// Reads the table at the end of `below`; `None` when there is none or it does not fit the file,
/// which can be read without it.
///
/// # Errors
/// `Limit`, or what the volume below says.
pub(super) fn read(below: &Volume, cx: &Cx) -> Result<Option<Table>> {
    let size = below.size();
    let Some(at) = size.checked_sub(FOOTER) else {
        return Ok(None);
    };
    let footer = below.read_vec(at, narrow(FOOTER))?;
    let Some(place) = place(&footer, size) else {
        return Ok(None);
    };
    let table = Reader::new(place, cx).read(below, cx)?;
    if table.is_none() {
        tracing::warn!("zstd: the seek table does not fit the file and is not used");
    }
    Ok(table)
}

/// Puts a table together.
struct Reader {
    place: Place,
    builder: Builder,
    checks: Option<Vec<Check>>,
    /// Where the next frame begins.
    at: u64,
    number: u64,
}

impl Reader {
    fn new(place: Place, cx: &Cx) -> Self {
        let fits = place.count.saturating_mul(CHECK) <= cx.cache.budget() / CHECKS_PART;
        if place.width == 12 && !fits {
            tracing::warn!("zstd: the checksums of the seek table are too many to be verified");
        }
        Self {
            place,
            builder: Builder::new(|first, _| first, cx),
            checks: (place.width == 12 && fits).then(Vec::new),
            at: 0,
            number: 0,
        }
    }

    fn read(mut self, below: &Volume, cx: &Cx) -> Result<Option<Table>> {
        let place = self.place;
        let bytes = below.read_vec(place.at, narrow(SKIPPABLE_HEADER))?;
        let content = below.size().saturating_sub(place.entries);
        let fits =
            le32(&bytes, 0) == Some(FRAME_MAGIC) && le32(&bytes, 4).map(u64::from) == Some(content);
        if !fits {
            return Ok(None);
        }
        while self.number < place.count {
            cx.cancel.check()?;
            let count = place.count.saturating_sub(self.number).min(ENTRIES);
            let skip = self.number.saturating_mul(place.width);
            let len = narrow(count.saturating_mul(place.width));
            let bytes = below.read_vec(place.entries.saturating_add(skip), len)?;
            for entry in bytes.chunks(narrow(place.width)) {
                if !self.entry(entry)? {
                    return Ok(None);
                }
            }
        }
        if self.at != place.at {
            return Ok(None);
        }
        Ok(Some(Table {
            spans: self.builder.finish(place.at),
            checks: self.checks,
        }))
    }

    /// One entry; false when it cannot be true.
    fn entry(&mut self, entry: &[u8]) -> Result<bool> {
        let (Some(encoded), Some(len)) = (le32(entry, 0), le32(entry, 4)) else {
            return Ok(false);
        };
        let encoded = u64::from(encoded);
        if u64::from(len) > header::content_most(encoded) {
            return Ok(false);
        }
        self.builder.unit(self.at, u64::from(len), self.number)?;
        if let Some(checks) = &mut self.checks {
            let sum = le32(entry, 8).unwrap_or(0);
            checks.push(Check { len, sum });
        }
        self.number = self.number.saturating_add(1);
        // At most 2^32 entries of less than 2^32.
        self.at = self.at.saturating_add(encoded);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(count: u32, descriptor: u8) -> Vec<u8> {
        let mut bytes = count.to_le_bytes().to_vec();
        bytes.push(descriptor);
        bytes.extend(MAGIC.to_le_bytes());
        bytes
    }

    #[test]
    fn the_footer_says_where_the_table_begins() {
        let found = place(&footer(10, 0x80), 1000);
        let expected = Place {
            at: 1000 - 9 - 120 - 8,
            entries: 1000 - 9 - 120,
            count: 10,
            width: 12,
        };
        assert_eq!(found, Some(expected));
        assert_eq!(
            place(&footer(10, 3), 1000).map(|place| place.width),
            Some(8)
        );
    }

    #[test]
    fn what_cannot_be_is_no_table() {
        assert_eq!(place(&footer(10, 0x04), 1000), None, "reserved bits");
        assert_eq!(place(&footer(u32::MAX, 0), 1000), None, "too many");
        assert_eq!(place(&footer(123, 0), 1000), None, "no room for the header");
        assert_eq!(place(&footer(0, 0)[1..], 1000), None, "cut");
        let mut other = footer(1, 0);
        other[8] ^= 1;
        assert_eq!(place(&other, 1000), None, "another magic");
    }
}
