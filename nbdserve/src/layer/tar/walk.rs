//! From header to header through an archive. Bodies are skipped.

use super::header::{self, BLOCK, Header};
use super::pax::{Pax, Version};
use super::sparse::{BYTES_PER_PIECE, Piece};
use crate::layer::archive::{Reader, printed};
use crate::{ByteRange, Error, Kind, Result};

/// Longest extended header or name; maps of files with very many holes take megabytes.
const MAX_EXTRA: u64 = 64 << 20;

/// What an entry is, as far as that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// A regular file.
    File,
    /// Another name of an entry before it.
    HardLink,
    /// Folders, symbolic links, devices, labels and what is not known.
    Other,
}

/// Where the map of a file with holes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holes {
    /// In the headers: here.
    Map(Vec<Piece>),
    /// Before the data.
    InData,
    /// In a form of star's that is not known.
    Star,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Where the first of its headers begins.
    pub(super) start: u64,
    /// What it is.
    pub(super) sort: Sort,
    /// Its path.
    pub(super) name: Vec<u8>,
    /// What a link names.
    pub(super) link: Vec<u8>,
    /// Where its body begins.
    pub(super) data: u64,
    /// Bytes of the body.
    pub(super) stored: u64,
    /// Bytes of the file: other than `stored` when it has holes.
    pub(super) size: u64,
    /// For a file with holes.
    pub(super) holes: Option<Holes>,
}

/// The way through an archive.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    reader: Reader<'a>,
    at: u64,
    /// From `g` headers: for all entries that follow.
    general: Pax,
    /// Bytes that extended headers and maps of one entry may take.
    memory: u64,
}

/// What stands before the header of an entry.
#[derive(Debug, Default)]
struct Before {
    /// `L` and `K`.
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    /// `x`; a copy of what `g` headers said otherwise.
    pax: Option<Pax>,
    start: Option<u64>,
}

impl<'a> Walk<'a> {
    /// From the entry at `at` on, taking at most `memory` bytes.
    pub(super) fn new(reader: Reader<'a>, at: u64, memory: u64) -> Self {
        Self {
            reader,
            at,
            general: Pax::default(),
            memory,
        }
    }

    /// At an entry that was met before, with a body of `stored` bytes: what `g` headers said of that
    /// need not be known again.
    pub(super) fn again(reader: Reader<'a>, at: u64, stored: u64, memory: u64) -> Self {
        let mut walk = Self::new(reader, at, memory);
        walk.general.size = Some(stored);
        walk
    }

    /// Where the next header is.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Gives back what was read with.
    pub(super) fn into_reader(self) -> Reader<'a> {
        self.reader
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// `Corrupt` for what is no archive any more, `Limit` for headers that are too long,
    /// `Unsupported` for holes of a kind that is not known, what the volume below says.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        let mut before = Before::default();
        loop {
            let at = self.at;
            let Some(block) = self.block()? else {
                return match before.start {
                    None => Ok(None),
                    Some(start) => {
                        let what = format!("the extended header at {start} has no entry behind it");
                        Err(Error::new(Kind::Corrupt, what))
                    }
                };
            };
            let header = Header::parse(&block, at)?;
            let body = at.saturating_add(BLOCK);
            if !matches!(header.kind, b'x' | b'X' | b'g' | b'L' | b'K') {
                return self.member(&block, header, before, at).map(Some);
            }
            let kind = header.kind;
            let text = self.extra(&header, body)?;
            let most = self.memory / BYTES_PER_PIECE;
            match kind {
                b'L' => before.name = Some(up_to_zero(&text)),
                b'K' => before.link = Some(up_to_zero(&text)),
                b'g' => {
                    self.general.take(&text, body, most)?;
                    self.general.keep_general();
                }
                _ => {
                    let general = &self.general;
                    let pax = before.pax.get_or_insert_with(|| general.clone());
                    pax.take(&text, body, most)?;
                }
            }
            if kind != b'g' {
                before.start.get_or_insert(at);
            }
            self.at = self.after(body, header.size);
        }
    }

    /// The block at `self.at`; `None` at the end of the archive: two blocks of zeroes, or where the
    /// file ends.
    fn block(&mut self) -> Result<Option<Vec<u8>>> {
        let at = self.at;
        let Some(block) = self.rest_of_block(at)? else {
            return Ok(None);
        };
        if !header::is_zero(&block) {
            if block.len() < header::BLOCK_LEN {
                let what = format!("{} bytes at {at} are too few for a header", block.len());
                return Err(Error::new(Kind::Corrupt, format!("{what} (truncated)")));
            }
            return Ok(Some(block));
        }
        let next = at.saturating_add(BLOCK);
        match self.rest_of_block(next)? {
            Some(second) if !header::is_zero(&second) => {
                let what = format!("a block of zeroes at {at}, and the archive does not end there");
                Err(Error::new(Kind::Corrupt, what))
            }
            _ => Ok(None),
        }
    }

    /// A block, or the part of it that is before the end of the file; `None` when that is nothing.
    fn rest_of_block(&mut self, at: u64) -> Result<Option<Vec<u8>>> {
        let size = self.reader.below().size();
        let range = ByteRange::between(at, at.saturating_add(BLOCK).min(size));
        if range.is_empty() {
            return Ok(None);
        }
        Ok(self.reader.get(range)?.map(<[u8]>::to_vec))
    }

    /// The body of an extended header.
    fn extra(&mut self, header: &Header, body: u64) -> Result<Vec<u8>> {
        let size = header.size;
        let most = self.memory.min(MAX_EXTRA);
        if size > most {
            // What cannot be there is a lie, whatever the limit is.
            self.check_body("an extended header", body, size)?;
            let what = format!("an extended header of {size} bytes at {body}, more than {most}");
            return Err(Error::new(Kind::Limit, what).hint("a larger --cache-size allows more"));
        }
        let range = self.check_body("an extended header", body, size)?;
        let bytes = self.reader.get(range)?;
        Ok(bytes.unwrap_or_default().to_vec())
    }

    /// The body's range, if it is within the volume.
    fn check_body(&self, what: &str, body: u64, size: u64) -> Result<ByteRange> {
        let all = self.reader.below().size();
        ByteRange::new(body, size)
            .filter(|range| range.end() <= all)
            .ok_or_else(|| {
                let what = format!(
                    "{what}: {size} bytes at {body} are not within the {all} of the archive \
                     (truncated or damaged)"
                );
                Error::new(Kind::Corrupt, what)
            })
    }

    /// Where the next header is behind a body that was checked. The last one need not be filled up.
    fn after(&self, body: u64, size: u64) -> u64 {
        let padded = size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        let end = body.saturating_add(padded);
        end.min(self.reader.below().size().max(body))
    }

    /// The entry whose own header stands in `block`.
    fn member(&mut self, block: &[u8], header: Header, before: Before, at: u64) -> Result<Member> {
        let start = before.start.unwrap_or(at);
        let pax = before.pax.unwrap_or_else(|| self.general.clone());
        let name = pax.path.or(before.name).unwrap_or(header.name);
        let link = pax.link.or(before.link).unwrap_or(header.link);
        let name = pax.sparse.name.clone().unwrap_or(name);

        let mut data = at.saturating_add(BLOCK);
        let (sort, stored) = match header.kind {
            // The size of a link is that of the file it names, unless pax says that a body follows.
            b'1' => (Sort::HardLink, pax.size.unwrap_or(0)),
            // Whatever their size means, nothing follows.
            b'2'..=b'6' => (Sort::Other, 0),
            // v7 has folders so.
            b'0' | 0 if name.ends_with(b"/") => (Sort::Other, pax.size.unwrap_or(header.size)),
            // Parts of multi-volume and incremental archives, labels, what others have invented.
            b'A'..=b'R' | b'T'..=b'Z' => (Sort::Other, pax.size.unwrap_or(header.size)),
            _ => (Sort::File, pax.size.unwrap_or(header.size)),
        };
        let mut member = Member {
            start,
            sort,
            name,
            link,
            data,
            stored,
            size: stored,
            holes: None,
        };
        if sort == Sort::File {
            let version = pax.sparse.version(at)?;
            if let (Some(version), Some(real)) = (version, pax.sparse.real_size) {
                member.size = real;
                member.holes = Some(match version {
                    Version::InHeader => Holes::Map(pax.sparse.pieces.unwrap_or_default()),
                    Version::InData => Holes::InData,
                });
            } else if header.kind == b'S' && header.dialect == header::Dialect::Gnu {
                let (pieces, real) = self.old_map(block, at, &mut data)?;
                member.data = data;
                member.size = real;
                member.holes = Some(Holes::Map(pieces));
            } else if header.kind == b'S' || pax.star_real_size.is_some_and(|size| size != stored) {
                member.size = pax.star_real_size.unwrap_or(stored);
                member.holes = Some(Holes::Star);
            }
        }
        let what = printed(&member.name);
        self.check_body(&what, data, stored)?;
        if member.size > u64::MAX >> 1 {
            let what = format!("{what}: {} bytes, more than 2^63", member.size);
            return Err(Error::new(Kind::Corrupt, what));
        }
        self.at = self.after(data, stored);
        Ok(member)
    }

    /// The map in a header of type `S` and in the blocks behind it; moves `data` behind those.
    fn old_map(&mut self, block: &[u8], at: u64, data: &mut u64) -> Result<(Vec<Piece>, u64)> {
        let first = header::old_sparse(block, at)?;
        let mut pieces = first.pieces;
        let mut more = first.more;
        let most = self.memory / BYTES_PER_PIECE;
        while more {
            let range = self.check_body("a map of holes", *data, BLOCK)?;
            let bytes = self.reader.get(range)?.unwrap_or_default();
            let (next, again) = header::more_pieces(bytes, *data)?;
            pieces.extend(next);
            more = again;
            *data = data.saturating_add(BLOCK);
            if u64::try_from(pieces.len()).is_ok_and(|count| count > most) {
                let what = format!("the map at {at} has more than {most} pieces");
                return Err(Error::new(Kind::Limit, what).hint("a larger --cache-size allows more"));
            }
        }
        Ok((pieces, first.real_size))
    }
}

fn up_to_zero(bytes: &[u8]) -> Vec<u8> {
    let mut parts = bytes.split(|byte| *byte == 0);
    parts.next().unwrap_or_default().to_vec()
}
