//! Maps of files with holes: which bytes of a file are stored, one after the other. Pure.

use super::header::BLOCK;
use super::pax::decimal;
use crate::{Error, Kind, Result};

/// A part of a file that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it lies in the file.
    pub(super) offset: u64,
    /// Its bytes.
    pub(super) len: u64,
}

/// A stored part of a file, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// First byte in the file.
    pub(super) start: u64,
    /// One past the last.
    pub(super) end: u64,
    /// Where the first byte lies in the archive.
    pub(super) at: u64,
}

/// Bytes of memory for one piece, while a map is read and after.
pub(super) const BYTES_PER_PIECE: u64 = 48;

/// Where the bytes of a file of `size` lie whose `pieces` are stored from `at` on, in `stored`
/// bytes.
///
/// # Errors
/// `Corrupt` when pieces overlap, leave the file or are more or less than what is stored;
/// `Unsupported` when it is not known where one begins.
pub(super) fn place(pieces: &[Piece], size: u64, at: u64, stored: u64) -> Result<Vec<Stored>> {
    let mut placed = Vec::with_capacity(pieces.len());
    let mut sum = 0_u64;
    let mut before = 0_u64;
    let mut ragged: Option<u64> = None;
    for piece in pieces.iter() {
        let (offset, len) = (piece.offset, piece.len);
        let end = offset.checked_add(len).filter(|end| *end <= size);
        let (Some(end), true) = (end, offset >= before) else {
            let what = format!(
                "a piece of {len} bytes at {offset} of the file overlaps the one before it or \
                 leaves its {size} bytes"
            );
            return Err(Error::new(Kind::Corrupt, what));
        };
        before = end;
        if len == 0 {
            continue;
        }
        // GNU tar begins each piece in a block of its own, others do not; the file says nothing.
        if let Some(ragged) = ragged {
            let what = format!(
                "a piece of {ragged} bytes, no multiple of {BLOCK}, before another one: programs \
                 do not agree where that begins"
            );
            return Err(Error::new(Kind::Unsupported, what));
        }
        if !len.is_multiple_of(BLOCK) {
            ragged = Some(len);
        }
        placed.push(Stored {
            start: offset,
            end,
            // The sum is at most `size`, which is far from the end of u64.
            at: at.saturating_add(sum),
        });
        sum = sum.saturating_add(len);
    }
    if sum != stored {
        let what = format!("the map has {sum} bytes of data, {stored} are stored");
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(placed)
}

/// Reads a map of version 1.0, which stands before the data: the number of pieces, then offset and
/// length of each, one number a line, filled up to a whole block. It is given block by block.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    line: Vec<u8>,
    /// Pieces that are still to come; `None` before their number.
    left: Option<u64>,
    offset: Option<u64>,
    pieces: Vec<Piece>,
}

impl MapReader {
    /// Takes the next block; returns the map when it is complete. At most `most` pieces are taken.
    ///
    /// # Errors
    /// `Corrupt` for what is no number, `Limit` for too many pieces.
    pub(super) fn take(&mut self, block: &[u8], most: u64) -> Result<Option<Vec<Piece>>> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                // No number of 64 bits is longer.
                if self.line.len() > 20 {
                    return Err(Self::wrong());
                }
                continue;
            }
            let number = decimal(&self.line).ok_or_else(Self::wrong)?;
            self.line.clear();
            if self.number(number, most)? {
                return Ok(Some(std::mem::take(&mut self.pieces)));
            }
        }
        Ok(None)
    }

    /// Whether it was the last one.
    fn number(&mut self, number: u64, most: u64) -> Result<bool> {
        let Some(left) = self.left else {
            if number > most {
                let what = format!("the map has {number} pieces, more than {most}");
                return Err(Error::new(Kind::Limit, what).hint("a larger --cache-size allows more"));
            }
            self.left = Some(number);
            return Ok(number == 0);
        };
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => {
                self.pieces.push(Piece {
                    offset,
                    len: number,
                });
                self.left = left.checked_sub(1);
            }
        }
        Ok(self.left == Some(0))
    }

    fn wrong() -> Error {
        Error::new(Kind::Corrupt, "the map before its data is none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, len: u64) -> Piece {
        Piece { offset, len }
    }

    #[test]
    fn pieces_are_stored_one_after_the_other() {
        let pieces = [piece(0, 512), piece(2048, 1024), piece(8000, 100)];
        let placed = place(&pieces, 9000, 10_000, 1636).unwrap();
        let at: Vec<_> = placed.iter().map(|stored| stored.at).collect();
        assert_eq!(at, [10_000, 10_512, 11_536]);
        // GNU tar ends each map so, and a file of nothing but a hole has nothing else.
        assert!(place(&[piece(9000, 0)], 9000, 0, 0).unwrap().is_empty());
        assert!(place(&[], 0, 0, 0).unwrap().is_empty());
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for (pieces, size, stored) in [
            (&[piece(0, 512), piece(511, 512)][..], 9000, 1024),
            (&[piece(1024, 512), piece(0, 512)], 9000, 1024),
            (&[piece(0, 512), piece(9000, 1)], 9000, 513),
            (&[piece(u64::MAX, 1)], 9000, 1),
            (&[piece(1, u64::MAX)], u64::MAX, u64::MAX),
            (&[piece(0, 512)], 9000, 511),
            (&[piece(0, 512)], 9000, 513),
            (&[], 9000, 1),
        ] {
            let error = place(pieces, size, 0, stored).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        }
        let error = place(&[piece(0, 100), piece(512, 512)], 9000, 0, 612).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    }

    #[test]
    fn a_map_may_end_in_any_block() {
        let read = |text: &str, most| {
            let mut map = MapReader::default();
            for block in text.as_bytes().chunks(3) {
                if let Some(pieces) = map.take(block, most)? {
                    return Ok(pieces);
                }
            }
            Err(Error::new(Kind::Io, "it does not end"))
        };
        assert_eq!(read("0\n", 0).unwrap(), []);
        let two = read("2\n0\n512\n4096\n10\n\0\0", 2).unwrap();
        assert_eq!(two, [piece(0, 512), piece(4096, 10)]);
        for (text, most, kind) in [
            ("2\n0\n512\n4096\n10\n", 1, Kind::Limit),
            ("2\n0\n512\n4096\n", 9, Kind::Io),
            ("18446744073709551616\n", 9, Kind::Corrupt),
            ("000000000000000000001\n", 9, Kind::Corrupt),
            ("\n", 9, Kind::Corrupt),
            ("1\n-1\n5\n", 9, Kind::Corrupt),
            ("1\n \n5\n", 9, Kind::Corrupt),
            (
                "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                9,
                Kind::Corrupt,
            ),
        ] {
            assert_eq!(read(text, most).unwrap_err().kind(), kind, "{text:?}");
        }
    }
}
