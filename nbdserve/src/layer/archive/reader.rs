//! Headers of an archive as its parsers want them: a few bytes here, a few there, mostly forwards.

use crate::layer::INDEX_PART;
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// What a jump reads: a header, those that belong to it, and what a small body holds.
const JUMP: u64 = 4096;
/// What is read at once where all of it is wanted.
const STREAM: u64 = 256 << 10;
/// A step over fewer bytes than this is reading on, not a jump.
const NEAR: u64 = 16 << 10;

/// Reads small pieces of a volume with few requests: large ones where the pieces lie close together,
/// small ones where what lies between is skipped.
#[derive(Debug)]
pub(in crate::layer) struct Reader<'a> {
    below: &'a Volume,
    bytes: Vec<u8>,
    start: u64,
    window: u64,
    requests: u64,
}

impl<'a> Reader<'a> {
    /// Nothing is read yet.
    pub(in crate::layer) fn new(below: &'a Volume) -> Self {
        Self {
            below,
            bytes: Vec::new(),
            start: 0,
            window: JUMP,
            requests: 0,
        }
    }

    /// The volume that is read.
    pub(in crate::layer) fn below(&self) -> &'a Volume {
        self.below
    }

    /// Requests so far.
    pub(in crate::layer) fn requests(&self) -> u64 {
        self.requests
    }

    /// The bytes `range`, which the caller has bounded; `None` when they are not within the volume.
    ///
    /// # Errors
    /// What the volume says.
    pub(in crate::layer) fn get(&mut self, range: ByteRange) -> Result<Option<&[u8]>> {
        let size = self.below.size();
        if range.end() > size {
            return Ok(None);
        }
        if !self.held().contains(range) {
            let held = self.held();
            let near = held.start() <= range.start()
                && range.start() <= held.end().saturating_add(NEAR)
                && !held.is_empty();
            self.window = if near {
                self.window.saturating_mul(2).min(STREAM)
            } else {
                JUMP
            };
            let len = self.window.max(range.len());
            let end = range.start().saturating_add(len).min(size);
            let len = usize::try_from(end.saturating_sub(range.start())).unwrap_or(usize::MAX);
            self.bytes.clear();
            self.bytes.resize(len, 0);
            self.start = range.start();
            self.requests = self.requests.saturating_add(1);
            if let Err(error) = self.below.read_at(&mut self.bytes, range.start()) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let skip = usize::try_from(range.start().saturating_sub(self.start)).unwrap_or(usize::MAX);
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        Ok(self.bytes.get(skip..skip.saturating_add(len)))
    }

    fn held(&self) -> ByteRange {
        let len = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        ByteRange::between(self.start, self.start.saturating_add(len))
    }
}

/// The memory that an index may take, spent piece by piece.
#[derive(Debug)]
pub(in crate::layer) struct Allowance {
    all: u64,
    left: u64,
}

impl Allowance {
    /// That of a layer's index.
    pub(in crate::layer) fn of_index(cx: &Cx) -> Self {
        let all = cx.cache.budget() / INDEX_PART;
        Self { all, left: all }
    }

    /// Takes `bytes` for one more of `what`.
    ///
    /// # Errors
    /// `Limit` when they are not left.
    pub(in crate::layer) fn spend(&mut self, bytes: usize, what: &str) -> Result<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                let what = format!("{what} take more than the {} bytes for an index", self.all);
                Err(Error::new(Kind::Limit, what).hint("a larger --cache-size allows more"))
            }
        }
    }

    /// What is left, in bytes.
    pub(in crate::layer) fn left(&self) -> u64 {
        self.left
    }
}
