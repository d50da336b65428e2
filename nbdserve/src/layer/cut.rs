//! Files that end before what their own tables point at: they were cut off when they were copied, or
//! the copy goes on.
//!
//! Reading there fails with [`cut_off`]. What `--info` says of it needs a look at all entries of the
//! tables: the one that points [`Farthest`].

use super::pages::Pages;
use crate::bytes::array;
use crate::{Error, Kind, Result};

/// What is left to do.
const HINT: &str = "if the file was cut off: copy or download it again, and compare its size with that \
                    of the original";
/// Bytes of tables that are looked at: those of a vdi of 8 TiB, or of a vmdk of 512 GiB.
pub(crate) const MOST: u64 = 32 << 20;
/// Bytes of a table that are asked for at once, at most.
const PIECE: usize = 64 << 10;

/// `what` says what is to lie behind the end of a file, and where that is.
pub(crate) fn cut_off(what: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, what).hint(HINT)
}

/// Where the piece `number` of a disk of `size` bytes ends in the file, which begins at `at` there; pieces have
/// `len` bytes, the last one may be cut where the disk ends.
pub(crate) fn piece_end(at: u64, number: u64, len: u64, size: u64) -> u64 {
    let left = size.saturating_sub(number.saturating_mul(len));
    at.saturating_add(len.min(left))
}

/// Of the pieces that tables point at, the one that ends last.
#[derive(Debug)]
pub(crate) struct Farthest {
    /// Its number, and one past its last byte in the file.
    found: Option<(u64, u64)>,
    /// Bytes of tables that may still be looked at.
    left: u64,
}

impl Farthest {
    /// Before anything was looked at.
    pub(crate) fn new() -> Self {
        let left = MOST;
        Self { found: None, left }
    }

    /// Looks at a table of `count` entries of `N` bytes at `at`, the first of which is for the piece
    /// `first`. `end` says of a piece and its entry where the piece ends, if it is in the file.
    /// No more than [`MOST`] bytes of all tables together are looked at.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub(crate) fn look<const N: usize>(
        &mut self,
        pages: &Pages,
        at: u64,
        (first, count): (u64, u64),
        end: impl Fn(u64, [u8; N]) -> Option<u64>,
    ) -> Result<()> {
        let width = u64::try_from(N).unwrap_or(1).max(1);
        let count = count.min(self.left.checked_div(width).unwrap_or(0));
        self.left = self.left.saturating_sub(count.saturating_mul(width));
        let mut done = 0_u64;
        while done < count {
            let at = at.saturating_add(done.saturating_mul(width));
            let rest = count.saturating_sub(done).saturating_mul(width);
            let most = usize::try_from(rest).unwrap_or(PIECE).min(PIECE);
            let found = pages.with(at, N, most, |bytes| {
                let mut seen = 0_u64;
                for entry in bytes.chunks_exact(N).filter_map(|entry| array(entry, 0)) {
                    let number = first.saturating_add(done).saturating_add(seen);
                    if let Some(end) = end(number, entry) {
                        self.add(number, end);
                    }
                    seen = seen.saturating_add(1);
                }
                seen
            })?;
            // There is one at least.
            done = done.saturating_add(found.max(1));
        }
        Ok(())
    }

    /// An entry of `bytes` bytes that says where a table lies is looked at, too: whether there may be one
    /// more.
    pub(crate) fn spend(&mut self, bytes: u64) -> bool {
        let left = self.left.checked_sub(bytes);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// The piece that ends last, and where.
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        self.found
    }

    /// The piece `number` ends at `end`.
    pub(crate) fn add(&mut self, number: u64, end: u64) {
        if self.found.is_none_or(|(_, farthest)| end > farthest) {
            self.found = Some((number, end));
        }
    }

    /// What is to be said of a file of `size` bytes; `what` such a piece is called.
    fn note(&self, what: &str, size: u64) -> Option<String> {
        let (number, end) = self.found.filter(|(_, end)| *end > size)?;
        Some(said(&format!(
            "{what} {number} ends at {end}, the file at {size}"
        )))
    }
}

/// The note about a file, because of `what`.
pub(crate) fn said(what: &str) -> String {
    format!(
        "the file was cut off, or its tables are damaged: {what}; what is missing cannot be read"
    )
}

/// What is to be said of a file of `size` bytes whose tables were looked at; `what` a piece is called.
pub(crate) fn noted(looked: Result<Farthest>, what: &str, size: u64) -> Option<String> {
    match looked {
        Ok(farthest) => farthest.note(what, size),
        Err(error) => Some(format!("its tables cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Memory;

    /// Entries of four bytes: where a piece of ten bytes begins, or zero.
    fn end(_number: u64, entry: [u8; 4]) -> Option<u64> {
        let at = u64::from(u32::from_le_bytes(entry));
        (at > 0).then(|| at.saturating_add(10))
    }

    fn table(entries: &[u32]) -> Pages {
        let bytes = entries.iter().flat_map(|entry| entry.to_le_bytes());
        Pages::new(&Memory::volume(bytes.collect()), 0)
    }

    #[test]
    fn the_piece_that_ends_last_is_found_wherever_its_entry_is() {
        for place in [0, 1, 4095, 4096, 16_384, 29_999] {
            let mut entries = vec![7; 30_000];
            entries[place] = 500;
            let pages = table(&entries);
            let mut farthest = Farthest::new();
            farthest.look(&pages, 0, (3, 30_000), end).unwrap();
            let number = u64::try_from(place).unwrap().saturating_add(3);
            assert_eq!(farthest.found, Some((number, 510)));
            assert_eq!(farthest.note("block", 510), None);
            let note = farthest.note("block", 509).unwrap();
            assert!(
                note.contains(&format!("block {number} ends at 510")),
                "{note}"
            );
        }
        let mut none = Farthest::new();
        none.look(&table(&[0, 0]), 0, (0, 2), end).unwrap();
        assert_eq!(none.note("block", 0), None);
    }

    #[test]
    fn what_is_looked_at_has_a_bound() {
        let mut farthest = Farthest::new();
        farthest.left = 8;
        farthest
            .look(&table(&[1, 2, 3, 4]), 0, (0, 4), end)
            .unwrap();
        assert_eq!(farthest.found, Some((1, 12)));
        farthest.look(&table(&[9]), 0, (0, 1), end).unwrap();
        assert_eq!(farthest.found, Some((1, 12)));
    }

    #[test]
    fn a_table_that_is_not_there_is_told_of() {
        let mut farthest = Farthest::new();
        let looked = farthest.look(&table(&[1]), 0, (0, 2), end);
        let note = noted(looked.map(|()| farthest), "block", 100).unwrap();
        assert!(note.contains("cannot be read"), "{note}");
    }
}
