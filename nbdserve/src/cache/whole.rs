//! Bytes whose number nobody knows before they are decoded: a pass at opening, into a temp file.

use std::sync::Arc;
use std::time::Instant;

use super::Sink;
use super::backing::{Backing, new_pages_for};
use super::block::{Block, PIECE, PIECE_BYTES};
use super::blocks::Blocks;
use super::budget::{Class, Reservation};
use super::job::{TELL, decoding_once};
use super::kept::Kept;
use crate::bytes::is_zero;
use crate::cx::Pass;
use crate::{Cx, Error, Kind, Result};

/// Where blocks of unknown length are stored, one after the other. Made once for a layer.
#[derive(Debug)]
pub struct Shelf {
    name: String,
    cx: Cx,
    file: Arc<Backing>,
    /// Where the next block begins in the file.
    base: u64,
}

impl Shelf {
    /// For the layer called `name` in messages.
    ///
    /// # Errors
    /// When nothing is kept on disk and no temp file can be created.
    pub fn new(name: &str, cx: &Cx) -> Result<Self> {
        let file = match new_pages_for(&Kept::shelf(name), cx) {
            Some(pages) => Backing::kept(pages, cx),
            None => Backing::temporary(cx)?,
        };
        Ok(Self {
            name: name.to_owned(),
            cx: cx.clone(),
            file: Arc::new(file),
            base: 0,
        })
    }

    /// Begins the pass over one block, with a decoder of `decoder_bytes`. `what` describes the
    /// block, `total` is how far [`Whole::reached`] will count.
    ///
    /// # Errors
    /// `Limit` when the decoder alone needs more than the whole budget, `TimedOut` when no memory
    /// comes back, or that the unit is being taken down.
    pub fn begin(&mut self, what: &str, decoder_bytes: u64, total: u64) -> Result<Whole<'_>> {
        let memory =
            OpeningMemory::take(what, decoder_bytes.saturating_add(PIECE_BYTES), &self.cx)?;
        self.cx.observer.begins(&Pass {
            what: decoding_once(&self.name),
            why: format!("the length of {what} is not known before"),
            kept: self.cx.kept(false),
        });
        Ok(Whole {
            shelf: self,
            _memory: memory,
            piece: vec![0; PIECE].into_boxed_slice(),
            filled: 0,
            blank: false,
            at: 0,
            zero: Vec::new(),
            total,
            told: Instant::now(),
        })
    }
}

/// Memory for a decoder that runs while a layer is opened, given back when dropped: on the thread that
/// has taken it.
#[derive(Debug)]
pub struct OpeningMemory {
    _memory: Reservation,
}

impl OpeningMemory {
    /// Takes `bytes` for the decoder of what `what` describes, waiting until the budget has them.
    ///
    /// # Errors
    /// `Limit` when the decoder alone needs more than the whole budget, `TimedOut` when no memory
    /// comes back, or that the unit is being taken down.
    pub fn take(what: &str, bytes: u64, cx: &Cx) -> Result<Self> {
        Blocks::check_decoder_memory(what, bytes, cx)?;
        let since = Instant::now();
        let memory = cx.cache.reserve(bytes, Class::Pass, || {
            cx.cancel.check()?;
            if since.elapsed() >= cx.no_progress {
                let what = format!("no memory came back for {bytes} bytes");
                return Err(
                    Error::new(Kind::TimedOut, what).hint("give more with --cache-size=SIZE")
                );
            }
            Ok(true)
        })?;
        // The wait above never gives up by itself.
        let memory = memory.ok_or_else(|| Error::new(Kind::TimedOut, "no memory came back"))?;
        Ok(Self { _memory: memory })
    }
}

/// The pass over one block of unknown length: takes the decoded bytes in order.
#[derive(Debug)]
pub struct Whole<'a> {
    shelf: &'a mut Shelf,
    _memory: OpeningMemory,
    piece: Box<[u8]>,
    filled: usize,
    /// What is filled are zeroes, which were not written there.
    blank: bool,
    /// Bytes stored.
    at: u64,
    zero: Vec<u64>,
    total: u64,
    told: Instant,
}

/// A block that was decoded as a whole, for [`Blocks::with_stored`].
#[derive(Debug)]
pub struct Stored {
    pub(super) file: Arc<Backing>,
    pub(super) base: u64,
    pub(super) len: u64,
    pub(super) zero: Vec<u64>,
}

impl Stored {
    /// Decoded bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether all of it is known to be zero.
    pub(crate) fn is_zero(&self) -> bool {
        let zeroes: u64 = self
            .zero
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        zeroes >= self.len.div_ceil(PIECE_BYTES)
    }

    pub(super) fn into_block(self) -> Block {
        Block::stored(self.len, self.file, self.base, self.zero)
    }
}

impl Whole<'_> {
    /// Bytes decoded so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.at + self.filled as u64
    }

    /// Whether there are none so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Encoded bytes used so far: the observer is told, now and then.
    pub fn reached(&mut self, done: u64) {
        if self.told.elapsed() >= TELL || done == self.total {
            self.told = Instant::now();
            let what = decoding_once(&self.shelf.name);
            self.shelf.cx.observer.progress(&what, done, self.total);
        }
    }

    /// The block is complete.
    ///
    /// # Errors
    /// When its last bytes cannot be stored.
    pub fn finish(mut self) -> Result<Stored> {
        self.store()?;
        let (base, len) = (self.shelf.base, self.at);
        // Whole pieces, so that no two blocks share one.
        self.shelf.base = base.saturating_add(len.next_multiple_of(PIECE_BYTES));
        Ok(Stored {
            file: Arc::clone(&self.shelf.file),
            base,
            len,
            zero: self.zero,
        })
    }

    fn store(&mut self) -> Result<()> {
        let bytes = &self.piece[..self.filled];
        if bytes.is_empty() {
            return Ok(());
        }
        if self.blank || is_zero(bytes) {
            return self.store_zero(self.filled);
        }
        let at = self.place()?;
        self.shelf.file.write(&self.piece[..self.filled], at)?;
        self.at += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// The next piece, of `len` bytes, is zero.
    fn store_zero(&mut self, len: usize) -> Result<()> {
        let at = self.place()?;
        let index = self.at / PIECE_BYTES;
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        if self.zero.len() <= word {
            self.zero.resize(word + 1, 0);
        }
        self.zero[word] |= 1 << (index % 64);
        self.shelf.file.write_zero(at);
        self.at += len as u64;
        self.filled = 0;
        self.blank = false;
        Ok(())
    }

    /// Where the next piece belongs in the file.
    fn place(&self) -> Result<u64> {
        let end = self.shelf.base.checked_add(self.at);
        let end = end.filter(|end| *end <= i64::MAX.unsigned_abs() - PIECE_BYTES);
        end.ok_or_else(|| {
            let what = format!("more than {} decoded bytes", self.at);
            Error::new(Kind::Limit, what)
        })
    }
}

impl Sink for Whole<'_> {
    fn spare(&mut self) -> Result<&mut [u8]> {
        self.shelf.cx.cancel.check()?;
        if std::mem::take(&mut self.blank) {
            self.piece[..self.filled].fill(0);
        }
        Ok(&mut self.piece[self.filled..])
    }

    fn advance(&mut self, len: usize) -> Result<()> {
        self.filled += len;
        if self.filled == self.piece.len() {
            self.store()?;
        }
        self.beat()
    }

    /// Pieces of nothing but zeroes are not put into memory first.
    fn zeroes(&mut self, mut len: usize) -> Result<()> {
        while len > 0 {
            self.beat()?;
            let now = len.min(PIECE - self.filled);
            if self.filled == 0 {
                self.blank = true;
            } else if !self.blank {
                self.piece[self.filled..self.filled + now].fill(0);
            }
            self.filled += now;
            if self.filled == PIECE {
                self.store()?;
            }
            len -= now;
        }
        Ok(())
    }

    fn beat(&self) -> Result<()> {
        self.shelf.cx.cache.beat();
        self.shelf.cx.cancel.check()
    }
}
