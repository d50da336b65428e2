//! Bytes at offsets, some of them there and some not: a sparse file of pages, each with a hash.
//!
//! ```text
//!  header, 4 KiB: magic, id, digest of the key, digest of these
//!  spans, each:
//!    4 KiB     a record for each chunk (256 KiB) of the span: "all of it is zero"
//!    256 KiB   a record for each page (4 KiB) of the span: its hash, or "zero"
//!    128 MiB   the pages
//! ```
//!
//! A record has 8 bytes. Zero says that nothing is there; every other value is a hash seeded with
//! the number of the page and the file's random id, so that nothing but the right bytes in the
//! right place of the right file agrees with it: not a torn write, not a page that a crash has
//! lost, not what another file has left on the disk. Pages are written before their records, and
//! compared with them each time they are read. Two writers write the same bytes to the same
//! places, which is harmless.

mod header;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use twox_hash::XxHash3_64;

use self::header::{read_header, remove_damaged, write_header};
use super::folder;
use super::image::Image;
use crate::bytes::is_zero;

/// What is there or not.
pub(in crate::store) const PAGE: usize = 4096;
/// What is known to be zero at the cost of one record.
pub(in crate::store) const CHUNK: usize = CHUNK_PAGES * PAGE;
/// Pages of a chunk: as many as a mask has bits.
const CHUNK_PAGES: usize = 64;
const RECORD: usize = 8;
/// Chunks of a span.
const SPAN_CHUNKS: u64 = 512;

const PAGE_BYTES: u64 = PAGE as u64;
const CHUNK_BYTES: u64 = CHUNK as u64;
const RECORD_BYTES: u64 = RECORD as u64;
const HEADER: u64 = PAGE_BYTES;
/// Bytes of the records of a span's chunks.
const ZEROS: u64 = SPAN_CHUNKS * RECORD_BYTES;
const SPAN_PAGES: u64 = SPAN_CHUNKS * CHUNK_PAGES as u64;
/// Bytes of the records of a span's pages.
const RECORDS: u64 = SPAN_PAGES * RECORD_BYTES;
const SPAN: u64 = ZEROS + RECORDS + SPAN_PAGES * PAGE_BYTES;

/// No byte beyond this is kept: the file would be longer than a file can be.
const LONGEST: u64 = 1 << 62;
/// The limits are looked at each time this much was written, or as much as this part of the store's
/// limit if that is less.
const LOOK_EACH: u64 = 32 << 20;
const LOOK_PART: u64 = 16;

/// An open file of pages.
#[derive(Debug)]
pub(crate) struct Pages {
    file: File,
    path: PathBuf,
    image: Arc<Image>,
    id: u64,
    /// Bytes written by this process.
    written: AtomicU64,
    /// Nothing more is kept.
    full: AtomicBool,
}

impl Pages {
    /// The file at `path`, if it is one that [`Self::make`] has made for `key`.
    pub(super) fn find(image: &Arc<Image>, path: &Path, key: &str) -> Option<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        let id = read_header(&file, key)?;
        Some(Self {
            file,
            path: path.to_owned(),
            image: Arc::clone(image),
            id,
            written: AtomicU64::new(0),
            full: AtomicBool::new(false),
        })
    }

    /// The file at `path`, which is made anew if it is not there or damaged.
    pub(super) fn make(image: &Arc<Image>, path: &Path, key: &str) -> io::Result<Self> {
        let made = || Self::find(image, path, key);
        if let Some(pages) = made() {
            return Ok(pages);
        }
        match File::options().read(true).write(true).open(path) {
            Ok(found) if read_header(&found, key).is_none() => remove_damaged(&found, path)?,
            // Another process was faster: that one is shared.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => fs::remove_file(path)?,
        }
        let (file, new) = folder::new_beside(path)?;
        let result = write_header(&file, key).and_then(|()| fs::hard_link(&new, path));
        let _ = fs::remove_file(&new);
        match result {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => made().ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }

    /// What tells this file from all others.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether nothing more is kept here.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Keeps nothing more.
    pub(crate) fn stop(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    /// Takes the file away. Who has it open, this process too, can still read what is in it.
    pub(crate) fn discard(&self) {
        self.stop();
        let _ = fs::remove_file(&self.path);
    }

    /// Keeps `bytes`, which begin at a page and end within its chunk; a last page that is not
    /// whole is filled up with zeroes. False when they are not kept: there is no room, now or ever.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> bool {
        debug_assert!(at.is_multiple_of(PAGE_BYTES));
        if !self.may_write(at, bytes.len() as u64) {
            return false;
        }
        let result = self.try_write(at, bytes);
        self.note(&result)
    }

    fn try_write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let first = at / PAGE_BYTES;
        let mut records = Vec::with_capacity(bytes.len().div_ceil(PAGE) * RECORD);
        // Where the run of pages begins that are not zero and not written yet.
        let mut run = None;
        for (number, page) in (first..).zip(bytes.chunks(PAGE)) {
            let start = (number - first) as usize * PAGE;
            let record = if is_zero(page) {
                if let Some(run) = run.take() {
                    self.write_run(at, &bytes[run..start], run)?;
                }
                self.zero_record(number)
            } else {
                run.get_or_insert(start);
                self.record(number, page)
            };
            records.extend(record.to_le_bytes());
        }
        if let Some(run) = run {
            self.write_run(at, &bytes[run..], run)?;
        }
        self.file.write_all_at(&records, record_at(first))
    }

    /// Writes the pages that begin at `start` of those from `at` on.
    fn write_run(&self, at: u64, bytes: &[u8], start: usize) -> io::Result<()> {
        let mut to = data_at(at / PAGE_BYTES + (start / PAGE) as u64);
        let whole = bytes.len() / PAGE * PAGE;
        self.file.write_all_at(&bytes[..whole], to)?;
        let rest = &bytes[whole..];
        if !rest.is_empty() {
            to += whole as u64;
            let mut page = [0; PAGE];
            page[..rest.len()].copy_from_slice(rest);
            self.file.write_all_at(&page, to)?;
        }
        Ok(())
    }

    /// Keeps that the chunk at `at` is zero. False when that is not kept.
    pub(crate) fn write_zero_chunk(&self, at: u64) -> bool {
        debug_assert!(at.is_multiple_of(CHUNK_BYTES));
        if !self.may_write(at, PAGE_BYTES / SPAN_CHUNKS) {
            return false;
        }
        let chunk = at / CHUNK_BYTES;
        let record = self.chunk_record(chunk).to_le_bytes();
        let result = self.file.write_all_at(&record, chunk_record_at(chunk));
        self.note(&result)
    }

    /// Leaves a mark at a page that holds nothing else.
    pub(crate) fn mark(&self, at: u64) -> bool {
        if !self.may_write(at, 0) {
            return false;
        }
        let number = at / PAGE_BYTES;
        let record = self.mark_record(number).to_le_bytes();
        let result = self.file.write_all_at(&record, record_at(number));
        self.note(&result)
    }

    /// Whether [`Self::mark`] has been there.
    pub(crate) fn is_marked(&self, at: u64) -> bool {
        let number = at / PAGE_BYTES;
        let mut record = [0; RECORD];
        self.load(&mut record, record_at(number)) == RECORD
            && u64::from_le_bytes(record) == self.mark_record(number)
    }

    /// Fills `buf` with the bytes at `at`. False when some are not there or damaged; `buf` is
    /// undefined then.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let within = (at % CHUNK_BYTES) as usize;
            let len = rest.len().min(CHUNK - within);
            let (part, after) = rest.split_at_mut(len);
            if !self.read_within(at, part) {
                return false;
            }
            at = at.saturating_add(len as u64);
            rest = after;
        }
        true
    }

    /// As [`Self::read`], within one chunk.
    fn read_within(&self, at: u64, buf: &mut [u8]) -> bool {
        if at > LONGEST {
            return false;
        }
        let first = at / PAGE_BYTES;
        let skip = (at % PAGE_BYTES) as usize;
        let pages = (skip + buf.len()).div_ceil(PAGE);
        let mut records = [0; CHUNK_PAGES * RECORD];
        let records = &mut records[..pages * RECORD];
        self.load_sparse(records, record_at(first));
        let records = || {
            let all = records.chunks_exact(RECORD).zip(first..);
            all.map(|(record, number)| {
                // Each has 8 bytes.
                let record = u64::from_le_bytes(record.try_into().unwrap_or_default());
                (number, record)
            })
        };
        if records().any(|(_, record)| record == 0) {
            let zero = self.is_zero_chunk(at / CHUNK_BYTES);
            if zero {
                buf.fill(0);
            }
            return zero;
        }
        if records().all(|(number, record)| record == self.zero_record(number)) {
            buf.fill(0);
            return true;
        }
        if skip == 0 && buf.len().is_multiple_of(PAGE) {
            self.load_sparse(buf, data_at(first));
            return self.settle(records(), buf);
        }
        let mut whole = vec![0; pages * PAGE];
        self.load_sparse(&mut whole, data_at(first));
        if !self.settle(records(), &mut whole) {
            return false;
        }
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        true
    }

    /// Whether all pages are what their records say. Nothing was ever written of a page of zeroes:
    /// whatever lies in its place, it is zero.
    fn settle(&self, records: impl Iterator<Item = (u64, u64)>, pages: &mut [u8]) -> bool {
        records
            .zip(pages.chunks_exact_mut(PAGE))
            .all(|((number, record), page)| {
                let zero = record == self.zero_record(number);
                if zero {
                    page.fill(0);
                }
                zero || record == self.record(number, page)
            })
    }

    /// Which pages of the chunk at `at` are said to be there; that they are undamaged is seen when
    /// they are read.
    pub(crate) fn present(&self, at: u64) -> u64 {
        let chunk = at / CHUNK_BYTES;
        if self.is_zero_chunk(chunk) {
            return u64::MAX;
        }
        let mut records = [0; CHUNK_PAGES * RECORD];
        let found = self.load(
            &mut records,
            record_at(at / CHUNK_BYTES * CHUNK_PAGES as u64),
        );
        let records = records[..found].chunks_exact(RECORD);
        let there = records.map(|record| u64::from(record.iter().any(|byte| *byte != 0)));
        (0..)
            .zip(there)
            .fold(0, |mask, (number, there)| mask | there << number)
    }

    /// Which of the chunks in the `len` bytes from the chunk at `at` on are zero as a whole, a bit
    /// each.
    pub(crate) fn zero_chunks(&self, at: u64, len: u64) -> Vec<u64> {
        let first = at / CHUNK_BYTES;
        let count = len.div_ceil(CHUNK_BYTES);
        let mut bits = vec![0; usize::try_from(count.div_ceil(64)).unwrap_or(0)];
        let mut records = vec![0; ZEROS as usize];
        let mut done = 0;
        while done < count {
            let chunk = first.saturating_add(done);
            let here = (SPAN_CHUNKS - chunk % SPAN_CHUNKS).min(count - done);
            let part = &mut records[..here as usize * RECORD];
            let found = self.load(part, chunk_record_at(chunk));
            for (number, record) in (0..).zip(part[..found].chunks_exact(RECORD)) {
                let record = u64::from_le_bytes(record.try_into().unwrap_or_default());
                if record != 0 && record == self.chunk_record(chunk + number) {
                    let index = done + number;
                    bits[(index / 64) as usize] |= 1 << (index % 64);
                }
            }
            done += here;
        }
        bits
    }

    /// Takes away what is kept of the `len` bytes from the page at `at` on.
    pub(crate) fn forget(&self, at: u64, len: u64) {
        let none = [0; CHUNK_PAGES * RECORD];
        let end = at.saturating_add(len).min(LONGEST);
        let mut at = at;
        while at < end {
            let chunk = at / CHUNK_BYTES;
            let next = ((chunk + 1) * CHUNK_BYTES).min(end);
            let pages = (next - at).div_ceil(PAGE_BYTES) as usize;
            let records = &none[..pages * RECORD];
            let zero = self
                .file
                .write_all_at(&none[..RECORD], chunk_record_at(chunk));
            if zero
                .and_then(|()| self.file.write_all_at(records, record_at(at / PAGE_BYTES)))
                .is_err()
            {
                // So that nothing of it is found by anyone who comes later.
                return self.discard();
            }
            at = next;
        }
    }

    fn is_zero_chunk(&self, chunk: u64) -> bool {
        let mut record = [0; RECORD];
        self.load(&mut record, chunk_record_at(chunk)) == RECORD
            && u64::from_le_bytes(record) == self.chunk_record(chunk)
    }

    /// Reads what there is, and zeroes behind the end of the file: zeroes are not written, so the
    /// last pages may lie there.
    fn load_sparse(&self, buf: &mut [u8], at: u64) {
        let found = self.load(buf, at);
        buf[found..].fill(0);
    }

    /// Reads as much as there is.
    fn load(&self, buf: &mut [u8], at: u64) -> usize {
        let mut done = 0;
        while done < buf.len() {
            match self
                .file
                .read_at(&mut buf[done..], at.saturating_add(done as u64))
            {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!("cannot read {}: {error}", self.path.display());
                    break;
                }
            }
        }
        done
    }

    /// Whether there is room for `len` more bytes at `at`.
    fn may_write(&self, at: u64, len: u64) -> bool {
        if self.is_full() || at > LONGEST {
            return false;
        }
        let before = self.written.fetch_add(len, Ordering::Relaxed);
        let after = before.saturating_add(len);
        let limit = self.image.store().limit();
        let each = (limit / LOOK_PART).clamp(CHUNK_BYTES, LOOK_EACH);
        let look = before == 0 || before / each != after / each;
        // Nobody looks before this much more is there.
        if look && !self.image.may_grow(len, each) {
            tracing::info!(
                "the cache is full: no more is kept in {}",
                self.path.display()
            );
            self.stop();
            return false;
        }
        true
    }

    /// Whether a write has worked.
    fn note(&self, result: &io::Result<()>) -> bool {
        if let Err(error) = result {
            tracing::warn!("cannot write {}: {error}", self.path.display());
            self.stop();
        }
        result.is_ok()
    }

    fn record(&self, number: u64, page: &[u8]) -> u64 {
        if page.len() == PAGE {
            return self.hash(number, page);
        }
        let mut whole = [0; PAGE];
        whole[..page.len()].copy_from_slice(page);
        self.hash(number, &whole)
    }

    fn zero_record(&self, number: u64) -> u64 {
        self.hash(number, b"zero")
    }

    fn chunk_record(&self, chunk: u64) -> u64 {
        self.hash(chunk, b"zero chunk")
    }

    fn mark_record(&self, number: u64) -> u64 {
        self.hash(number, b"mark")
    }

    /// Never 0.
    fn hash(&self, number: u64, bytes: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(self.id.wrapping_add(number), bytes).max(1)
    }
}

/// Where the record of a page lies.
fn record_at(number: u64) -> u64 {
    let (span, within) = (number / SPAN_PAGES, number % SPAN_PAGES);
    HEADER + span * SPAN + ZEROS + within * RECORD_BYTES
}

/// Where the record of a chunk lies.
fn chunk_record_at(chunk: u64) -> u64 {
    let (span, within) = (chunk / SPAN_CHUNKS, chunk % SPAN_CHUNKS);
    HEADER + span * SPAN + within * RECORD_BYTES
}

/// Where a page lies.
fn data_at(number: u64) -> u64 {
    let (span, within) = (number / SPAN_PAGES, number % SPAN_PAGES);
    HEADER + span * SPAN + ZEROS + RECORDS + within * PAGE_BYTES
}
