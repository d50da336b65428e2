//! Extended headers: POSIX.1-2017 pax "pax Extended Header", and the keywords of GNU tar for files
//! with holes (its manual, "Storing Sparse Files"). Pure.

use super::sparse::Piece;
use crate::{Error, Kind, Result};

/// What extended headers say of the entry that follows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    /// `path`.
    pub(super) path: Option<Vec<u8>>,
    /// `linkpath`.
    pub(super) link: Option<Vec<u8>>,
    /// `size`: bytes that follow, whatever the entry's own header says.
    pub(super) size: Option<u64>,
    /// `GNU.sparse.*`.
    pub(super) sparse: PaxSparse,
    /// `SCHILY.realsize`: star has left out holes in a way of its own.
    pub(super) star_real_size: Option<u64>,
}

/// The `GNU.sparse.*` of versions 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    /// `major` and `minor`; 0.0 and 0.1 have neither.
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// `name`: that of the file, where `path` is one for programs that do not know of holes.
    pub(super) name: Option<Vec<u8>>,
    /// `size` or `realsize`: bytes of the file, holes included.
    pub(super) real_size: Option<u64>,
    /// `numblocks`.
    pub(super) count: Option<u64>,
    /// `map`, or `offset` and `numbytes` in turn; `None` when there is neither.
    pub(super) pieces: Option<Vec<Piece>>,
    /// An `offset` whose `numbytes` has not come yet.
    offset: Option<u64>,
}

/// Which version of holes an entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 0.0 and 0.1: the map is in the header.
    InHeader,
    /// 1.0: the map is before the data.
    InData,
}

impl Pax {
    /// Takes in the records of an extended header whose first byte lies at `at`. A later record of
    /// the same keyword wins; an empty value takes back what was said before. At most `most` pieces
    /// are taken.
    ///
    /// # Errors
    /// `Corrupt` for what breaks the rules, `Limit` for more pieces than allowed.
    pub(super) fn take(&mut self, body: &[u8], at: u64, most: u64) -> Result<()> {
        let mut rest = body;
        while !rest.is_empty() {
            // Some writers fill up what is left.
            if rest.iter().all(|byte| *byte == 0) {
                break;
            }
            let done = body.len().saturating_sub(rest.len());
            let place = at.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let Some((keyword, value, after)) = record(rest) else {
                let what = format!("the record of an extended header at {place} is none");
                return Err(Error::new(Kind::Corrupt, what));
            };
            self.set(keyword, value, place, most)?;
            rest = after;
        }
        Ok(())
    }

    fn set(&mut self, keyword: &[u8], value: &[u8], at: u64, most: u64) -> Result<()> {
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        let number = || match value {
            [] => Ok(None),
            _ => decimal(value).map(Some).ok_or_else(|| {
                let keyword = String::from_utf8_lossy(keyword);
                let what = format!("{keyword} in the extended header at {at} is no number");
                Error::new(Kind::Corrupt, what)
            }),
        };
        let sparse = &mut self.sparse;
        match keyword {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = number()?,
            b"SCHILY.realsize" => self.star_real_size = number()?,
            b"GNU.sparse.major" => sparse.major = number()?,
            b"GNU.sparse.minor" => sparse.minor = number()?,
            b"GNU.sparse.name" => sparse.name = bytes(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.real_size = number()?,
            b"GNU.sparse.numblocks" => sparse.count = number()?,
            b"GNU.sparse.offset" => sparse.offset = number()?,
            b"GNU.sparse.numbytes" => {
                let (Some(offset), Some(len)) = (sparse.offset.take(), number()?) else {
                    let what = format!("the piece at {at} has no offset or no length");
                    return Err(Error::new(Kind::Corrupt, what));
                };
                let pieces = sparse.pieces.get_or_insert_default();
                pieces.push(Piece { offset, len });
                check_count(pieces, at, most)?;
            }
            b"GNU.sparse.map" => {
                let mut pieces = Vec::new();
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    let len = numbers.next().and_then(decimal);
                    let (Some(offset), Some(len)) = (decimal(offset), len) else {
                        let what = format!("the map in the extended header at {at} is none");
                        return Err(Error::new(Kind::Corrupt, what));
                    };
                    pieces.push(Piece { offset, len });
                    check_count(&pieces, at, most)?;
                }
                sparse.pieces = Some(pieces);
            }
            _ => {}
        }
        Ok(())
    }

    /// Forgets all but what may hold for more than one entry.
    pub(super) fn keep_general(&mut self) {
        self.sparse = PaxSparse::default();
        self.star_real_size = None;
    }
}

impl PaxSparse {
    /// Where the map of the entry is; `None` for one that has no holes.
    ///
    /// # Errors
    /// `Unsupported` for a version that is not known, `Corrupt` when something is missing.
    pub(super) fn version(&self, at: u64) -> Result<Option<Version>> {
        let version = match (self.major, self.minor) {
            (Some(1), Some(0)) => Version::InData,
            (None | Some(0), None | Some(0 | 1)) => {
                if self.pieces.is_none() && self.real_size.is_none() && self.count.is_none() {
                    return Ok(None);
                }
                Version::InHeader
            }
            (major, minor) => {
                let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
                let (major, minor) = (number(major), number(minor));
                let what = format!(
                    "the entry at {at} has holes as in version {major}.{minor}; 0.0, 0.1 and 1.0 \
                     are known"
                );
                return Err(Error::new(Kind::Unsupported, what));
            }
        };
        let pieces = self.pieces.as_ref().map_or(0, Vec::len);
        let is_count = |count: u64| usize::try_from(count) == Ok(pieces);
        let complaint = if self.real_size.is_none() {
            "no size"
        } else if self.offset.is_some() {
            "an offset without a length"
        } else if version == Version::InHeader && !self.count.is_none_or(is_count) {
            "another number of pieces than it says"
        } else {
            return Ok(Some(version));
        };
        let what = format!("the entry at {at} has holes and {complaint}");
        Err(Error::new(Kind::Corrupt, what))
    }
}

fn check_count(pieces: &[Piece], at: u64, most: u64) -> Result<()> {
    if u64::try_from(pieces.len()).is_ok_and(|count| count <= most) {
        return Ok(());
    }
    let what = format!("the map at {at} has more than {most} pieces");
    Err(Error::new(Kind::Limit, what).hint("a larger --cache-size allows more"))
}

/// `LEN KEYWORD=VALUE\n`, where LEN counts all of it; and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(21).position(|byte| *byte == b' ')?;
    let (len, _) = bytes.split_at_checked(blank)?;
    let len = usize::try_from(decimal(len)?).ok()?;
    let (record, after) = bytes.split_at_checked(len)?;
    let record = record.get(blank.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (keyword, value) = record.split_at_checked(equals)?;
    Some((keyword, value.get(1..)?, after))
}

/// Digits and nothing else; `None` when they are none or too large.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(body: &[u8]) -> Result<Pax> {
        let mut pax = Pax::default();
        pax.take(body, 512, 3)?;
        Ok(pax)
    }

    #[test]
    fn later_records_win_and_empty_ones_take_back() {
        let pax = taken(b"9 path=a\n9 path=b\n10 size=7\n8 size=\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.size, None);
        let pax = taken(b"16 path=a=b\nc  \n13 comment=x\n\0\0\0").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a=b\nc  "[..]));
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        for body in [
            &b"x"[..],
            b"9 path=a",
            b"8 path=a\n",
            b"11 path=a\n",
            b"0 path=a\n",
            b"4 a\n",
            b" 9 path=a\n",
            b"-9 path=a\n",
            b"99999999999999999999 path=a\n",
            b"18446744073709551615 path=a\n",
            b"11 size=-1\n",
            b"10 size=x\n",
            b"29 size=18446744073709551616\n",
            b"25 GNU.sparse.numbytes=1\n",
            b"20 GNU.sparse.map=1\n",
            b"23 GNU.sparse.map=1,,3\n",
        ] {
            let error = taken(body).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        }
        let error = taken(b"34 GNU.sparse.map=1,1,2,1,3,1,4,1\n").unwrap_err();
        assert_eq!(error.kind(), Kind::Limit, "{error}");
    }
}
