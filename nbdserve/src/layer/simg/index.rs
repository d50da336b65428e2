//! Which chunk lies where: found at open by going from chunk header to chunk header.

use super::header::{self, CHUNK_HEADER, ChunkHeader, ChunkKind, FILE_HEADER, FileHeader};
use crate::bytes::{array, slice};
use crate::{Cx, Error, Kind, Result, Volume};

/// One request for chunk headers. Bodies that are longer are passed over.
const WINDOW: u64 = 4 << 10;
/// Progress is told, and the unit's end looked for, once in so many chunks.
const LOOK_EVERY: u64 = 256;
/// With fewer chunks than this the headers are found again as fast as they would be loaded.
const WORTH_KEEPING: u64 = 64;
/// [`CHUNK_HEADER`], as the length of an array.
const HEAD: usize = 12;
/// What is kept of a chunk: its header and the word of a fill chunk.
const KEPT: u64 = CHUNK_HEADER + 4;
/// What it is kept as.
const NAME: &str = "simg-chunks-1";
/// Memory of a chunk while the index is made: an entry, and what is kept of it.
const BYTES_PER_CHUNK: u64 = 24 + KEPT;

/// What some blocks of the image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The bytes that lie there in the file.
    Raw(u64),
    /// This word, over and over.
    Fill([u8; 4]),
    /// Nothing: zeroes.
    Hole,
}

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The first byte, in the image.
    start: u64,
    body: Body,
}

/// All runs, in order.
#[derive(Debug)]
pub(super) struct Index {
    runs: Vec<Run>,
    size: u64,
}

impl Index {
    /// Finds the chunks of `below`: from what is kept of an earlier look, else in the file.
    ///
    /// # Errors
    /// `NotThisFormat` without the magic; `Corrupt`, also for a file that is cut short or goes on
    /// after its last chunk; `Unsupported`; `Limit` for more chunks than `memory` holds; what
    /// `below` says.
    pub(super) fn read(below: &Volume, memory: u64, cx: &Cx) -> Result<Self> {
        let mut headers = Headers::new(below);
        let file = header::file_header(headers.at(0, FILE_HEADER)?)?;
        check_count(&file, below.size(), memory)?;
        if let Some(index) = load(&file, below.size(), cx) {
            return Ok(index);
        }
        let mut builder = Builder::new(file, below.size());
        let mut kept = Vec::new();
        let keep = cx.place.is_some() && file.total_chunks >= WORTH_KEEPING;
        for number in 0..file.total_chunks {
            if number.is_multiple_of(LOOK_EVERY) {
                cx.cancel.check()?;
                let what = "simg: finding the chunks";
                cx.indexing(what, builder.at, below.size());
            }
            let (head, word) = read_chunk(&mut headers, builder.at, &file)?;
            let chunk = header::chunk_header(&head, builder.at, &file)?;
            if keep {
                kept.extend_from_slice(&head);
                kept.extend_from_slice(&word);
            }
            builder.push(chunk, word)?;
        }
        let index = builder.finish()?;
        if let (true, Some(place)) = (keep, &cx.place) {
            place.save(NAME, &kept);
        }
        Ok(index)
    }

    /// Bytes of the image.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The runs from the one that holds the byte `offset` on: where each begins and ends in the
    /// image, and what it is.
    pub(super) fn runs_from(&self, offset: u64) -> impl Iterator<Item = (u64, u64, Body)> {
        let after = self.runs.partition_point(|run| run.start <= offset);
        let first = after.saturating_sub(1);
        let runs = self.runs.get(first..).unwrap_or(&[]);
        let ends = runs.iter().skip(1).map(|run| run.start);
        runs.iter()
            .zip(ends.chain([self.size]))
            .map(|(run, end)| (run.start, end, run.body))
    }
}

/// Refuses, before any of them is read, more chunks than the file can hold or the memory takes.
fn check_count(file: &FileHeader, size: u64, memory: u64) -> Result<()> {
    let chunks = file.total_chunks;
    let room = size.saturating_sub(file.file_hdr_sz);
    if chunks > room.checked_div(file.chunk_hdr_sz).unwrap_or(0) {
        let what = format!("{chunks} chunks do not fit into a file of {size} bytes");
        return Err(Error::new(Kind::Corrupt, what));
    }
    let needed = chunks.saturating_mul(BYTES_PER_CHUNK);
    if needed > memory {
        let mib = needed.saturating_mul(super::INDEX_PART) >> 20;
        let what = format!("an index of {chunks} chunks takes {needed} bytes, {memory} are left");
        return Err(
            Error::new(Kind::Limit, what).hint(format!("--cache-size={}M", mib.saturating_add(1)))
        );
    }
    Ok(())
}

/// The chunks that were kept, put together with the same checks as those of a file.
fn load(file: &FileHeader, size: u64, cx: &Cx) -> Option<Index> {
    if file.total_chunks < WORTH_KEEPING {
        return None;
    }
    let len = file.total_chunks.checked_mul(KEPT)?;
    let kept = cx.place.as_ref()?.load(NAME, len)?;
    if u64::try_from(kept.len()).ok()? != len {
        return None;
    }
    let mut builder = Builder::new(*file, size);
    for bytes in kept.chunks_exact(usize::try_from(KEPT).ok()?) {
        let chunk = header::chunk_header(bytes, builder.at, file).ok()?;
        let word = array(bytes, HEAD)?;
        builder.push(chunk, word).ok()?;
    }
    builder.finish().ok()
}

/// The header of the chunk at `at`, and the word behind it where its kind has one.
fn read_chunk(
    headers: &mut Headers<'_>,
    at: u64,
    file: &FileHeader,
) -> Result<([u8; HEAD], [u8; 4])> {
    let cut = || {
        let what = format!("the file ends within the chunk at {at}");
        Error::new(Kind::Corrupt, what)
    };
    let head: [u8; HEAD] = array(headers.at(at, CHUNK_HEADER)?, 0).ok_or_else(cut)?;
    let chunk = header::chunk_header(&head, at, file)?;
    let mut word = [0; 4];
    if chunk.kind == ChunkKind::Fill {
        let behind = at.saturating_add(file.chunk_hdr_sz);
        word = array(headers.at(behind, 4)?, 0).ok_or_else(cut)?;
    }
    Ok((head, word))
}

/// The parts of a file that hold headers, read in small windows: what lies close together comes
/// with one request.
#[derive(Debug)]
struct Headers<'a> {
    below: &'a Volume,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Headers<'a> {
    fn new(below: &'a Volume) -> Self {
        Self {
            below,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// The `len` bytes at `at`; fewer where the file ends.
    fn at(&mut self, at: u64, len: u64) -> Result<&[u8]> {
        let size = self.below.size();
        let len = len.min(size.saturating_sub(at));
        let have = u64::try_from(self.bytes.len()).unwrap_or(0);
        let end = self.start.saturating_add(have);
        if at < self.start || at.saturating_add(len) > end {
            let window = WINDOW.min(size.saturating_sub(at));
            self.bytes.clear();
            self.bytes.resize(usize::try_from(window).unwrap_or(0), 0);
            self.start = at.min(size);
            self.below.read_at(&mut self.bytes, self.start)?;
        }
        let skip = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(0);
        Ok(slice(&self.bytes, skip, len).unwrap_or(&[]))
    }
}

/// Puts runs together, and checks that the chunks are what the header promised.
#[derive(Debug)]
struct Builder {
    file: FileHeader,
    /// Bytes of the file.
    file_size: u64,
    /// Where the next chunk begins in the file.
    at: u64,
    /// Blocks so far.
    blocks: u64,
    runs: Vec<Run>,
}

impl Builder {
    fn new(file: FileHeader, file_size: u64) -> Self {
        Self {
            at: file.file_hdr_sz,
            file,
            file_size,
            blocks: 0,
            runs: Vec::new(),
        }
    }

    fn push(&mut self, chunk: ChunkHeader, word: [u8; 4]) -> Result<()> {
        let at = self.at;
        // Each is below 2^33 above what was checked against the file's and the image's size.
        let end = at.saturating_add(chunk.total_sz);
        if end > self.file_size {
            let (len, size) = (chunk.total_sz, self.file_size);
            let what =
                format!("the file ends at {size}, within the {len} bytes of the chunk at {at}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let blocks = self.blocks.saturating_add(chunk.chunk_sz);
        let total = self.file.total_blks;
        if blocks > total {
            let what = format!("the chunk at {at} ends at block {blocks} of {total}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let body = match chunk.kind {
            ChunkKind::Raw => Body::Raw(at.saturating_add(self.file.chunk_hdr_sz)),
            ChunkKind::Fill => Body::Fill(word),
            ChunkKind::DontCare | ChunkKind::Crc32 => Body::Hole,
        };
        // Neighbours that are the same are one run.
        let last = self.runs.last().map(|run| run.body);
        if chunk.chunk_sz > 0 && last != Some(body) {
            let start = self.blocks.saturating_mul(self.file.blk_sz);
            self.runs.push(Run { start, body });
        }
        self.at = end;
        self.blocks = blocks;
        Ok(())
    }

    fn finish(self) -> Result<Index> {
        let (blocks, total) = (self.blocks, self.file.total_blks);
        if blocks != total {
            let what = format!("the chunks have {blocks} blocks, the header says {total}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let rest = self.file_size.saturating_sub(self.at);
        if rest > 0 {
            let at = self.at;
            let what = format!("{rest} bytes follow the last chunk, which ends at {at}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(Index {
            runs: self.runs,
            size: self.file.size(),
        })
    }
}
