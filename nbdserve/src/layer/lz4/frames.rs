//! Which blocks a file has: found from its start on.
//!
//! A block does not say how many bytes it decodes to, only how many it has at most. Where the frame
//! states its content size, the last block shows whether all others are full; else the sequences of
//! each block are summed up, which is less work than decoding. Linked blocks are decoded, for what
//! the blocks behind a checkpoint refer to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::header::{self, Block, FrameHeader, FrameKind, HEADER_MOST, Start, WORD};
use super::stream::{self, Content, Decoder};
use crate::bytes::le32;
use crate::cache::OpeningMemory;
use crate::layer::INDEX_PART;
use crate::layer::cut::cut_off;
use crate::layer::scan::{Scan, wide};
use crate::layer::spans::{Builder, Spans};
use crate::{Cx, Error, Kind, Result};

/// Linked blocks can be entered each time this many bytes were decoded.
const DISTANCE: u64 = 4 << 20;
/// Those that are not linked, when they are decoded all the same.
const DISTANCE_FREE: u64 = 1 << 20;
/// What a checkpoint takes beside its bytes.
const OVERHEAD: u64 = 128;
/// Progress is told this often.
const TELL: Duration = Duration::from_millis(300);
/// zstd's level for what checkpoints keep.
const LEVEL: i32 = 1;
/// In the note of a block the state at its start is below this bit, the largest kind above.
const SHIFT: u32 = 16;

/// All blocks of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// For the notes see [`note`].
    pub(super) spans: Spans,
    /// What linked blocks refer to, by the number of the block: compressed with zstd.
    pub(super) histories: HashMap<u64, Box<[u8]>>,
    /// The content was held against the checksums of frames while it was looked at.
    pub(super) verified: bool,
    /// There are checksums that were not.
    pub(super) unverified: bool,
}

/// The note of a unit: the state at its start (zero: between frames), and the largest kind of frame
/// in it.
pub(super) fn note(within: bool, kind: FrameKind) -> u64 {
    let bits = kind.to_bits();
    bits << SHIFT | if within { bits } else { 0 }
}

/// The state at a block's start, and a kind of frame that has the largest blocks in it.
pub(super) fn from_note(note: u64) -> (Option<FrameKind>, Option<FrameKind>) {
    let low = note & ((1 << SHIFT) - 1);
    (
        FrameKind::from_bits(low),
        FrameKind::from_bits(note >> SHIFT),
    )
}

fn merge(first: u64, next: u64) -> u64 {
    let low = first & ((1 << SHIFT) - 1);
    // The size is what counts most in the bits of a kind.
    (first >> SHIFT).max(next >> SHIFT) << SHIFT | low
}

/// Finds the blocks of the volume that `scan` looks at.
///
/// # Errors
/// `Corrupt` with the place, `Unsupported`, `Limit`, what the volume below says.
pub(super) fn find(scan: &mut Scan<'_>, cx: &Cx) -> Result<Found> {
    let size = scan.size();
    let mut finder = Finder {
        scan,
        cx,
        builder: Builder::new(merge, cx),
        found: Found {
            verified: cx.verify,
            ..Found::default()
        },
        kept: 0,
        told: Instant::now(),
    };
    let mut at = 0;
    while at < size {
        cx.cancel.check()?;
        let bytes = finder.scan.get(at, HEADER_MOST)?;
        at = match header::start(bytes, at)? {
            Start::Skippable(size) => finder.scan.end(at, size)?,
            Start::Frame(header) => finder.frame(at, &header)?,
        };
    }
    let Finder { builder, found, .. } = finder;
    Ok(Found {
        spans: builder.finish(size),
        ..found
    })
}

struct Finder<'a, 'b> {
    scan: &'a mut Scan<'b>,
    cx: &'a Cx,
    builder: Builder,
    found: Found,
    /// Bytes of all checkpoints.
    kept: u64,
    told: Instant,
}

/// A block whose length is found out when it is known whether it is the last one.
#[derive(Clone, Copy)]
struct Pending {
    /// Where its unit begins: at its size, or with the header of the frame.
    unit: u64,
    /// Where its data begins.
    at: u64,
    size: u64,
    raw: bool,
    first: bool,
}

impl Finder<'_, '_> {
    /// Adds the frame at `at`; where it ends.
    fn frame(&mut self, at: u64, header: &FrameHeader) -> Result<u64> {
        let kind = header.kind;
        if kind.linked || (self.cx.verify && kind.content_sum) {
            return self.decode(at, header);
        }
        if kind.content_sum {
            self.found.unverified = true;
        }
        if kind.is_legacy() || header.content.is_some() {
            let mark = self.builder.mark();
            if let Some(end) = self.measure(at, header, false)? {
                return Ok(end);
            }
            self.builder.rewind(&mark);
        }
        self.measure(at, header, true)?.ok_or_else(|| {
            let what = format!("the frame at {at} has not the content size that it says");
            Error::new(Kind::Corrupt, what)
        })
    }

    /// Adds the blocks of a frame. Unless `exact`, all but the last one are taken to be full.
    /// `None` when they do not sum up to what the frame says.
    fn measure(&mut self, at: u64, header: &FrameHeader, exact: bool) -> Result<Option<u64>> {
        let kind = header.kind;
        let mut next = self.scan.end(at, header.size)?;
        let mut pending: Option<Pending> = None;
        let mut len = 0_u64;
        let mut begun = false;
        let end = loop {
            self.cx.cancel.check()?;
            self.tell(next);
            let word = le32(self.scan.get(next, WORD)?, 0);
            if kind.is_legacy() {
                let left = self.scan.size().saturating_sub(next);
                if left == 0 || left == WORD && !word.is_some_and(header::is_magic) {
                    len = self.settle(pending.take(), kind, true, len)?;
                    break self.legacy_end(next, word, len)?;
                }
            }
            match header::block(word, next, kind)? {
                Block::End => {
                    len = self.settle(pending.take(), kind, true, len)?;
                    if kind.is_legacy() {
                        break next;
                    }
                    break self.scan.end(next, WORD.saturating_add(kind.trailer()))?;
                }
                Block::Data { size, raw } => {
                    let first = !begun;
                    begun = true;
                    len = self.settle(pending.take(), kind, false, len)?;
                    let data = next.saturating_add(WORD);
                    let block = Pending {
                        unit: if first { at } else { next },
                        at: data,
                        size,
                        raw,
                        first,
                    };
                    next = self
                        .scan
                        .end(data, size.saturating_add(kind.block_trailer()))?;
                    if exact {
                        len = self.settle(Some(block), kind, true, len)?;
                    } else {
                        pending = Some(block);
                    }
                }
            }
        };
        if !begun {
            // So that its header is looked at again by whoever decodes what is around it.
            self.builder.unit(at, 0, note(false, kind))?;
        }
        Ok(header
            .content
            .is_none_or(|content| content == len)
            .then_some(end))
    }

    /// A legacy frame has no end mark. A kernel image has the length of the content there.
    fn legacy_end(&self, at: u64, word: Option<u32>, len: u64) -> Result<u64> {
        match word {
            None => Ok(at),
            Some(word) if u64::from(word) == len & 0xffff_ffff => self.scan.end(at, WORD),
            Some(word) => {
                let what = format!("the file is truncated: {word:08x} at {at} is no whole block");
                Err(cut_off(what))
            }
        }
    }

    /// Adds a block, if there is one; the content of the frame so far.
    fn settle(
        &mut self,
        pending: Option<Pending>,
        kind: FrameKind,
        exact: bool,
        len: u64,
    ) -> Result<u64> {
        let Some(block) = pending else {
            return Ok(len);
        };
        let own = if block.raw {
            block.size
        } else if exact {
            let data = self.scan.get(block.at, block.size)?;
            let own = header::decoded_len(data).filter(|own| *own <= kind.block_most());
            own.ok_or_else(|| {
                let at = block.at.saturating_sub(WORD);
                let what = format!(
                    "the block at {at} is damaged: it does not decode to {} bytes at most",
                    kind.block_most()
                );
                Error::new(Kind::Corrupt, what)
            })?
        } else {
            kind.block_most()
        };
        self.builder
            .unit(block.unit, own, note(!block.first, kind))?;
        Ok(len.saturating_add(own))
    }

    /// Adds the blocks of a frame by decoding them, with checkpoints where they are linked.
    fn decode(&mut self, at: u64, header: &FrameHeader) -> Result<u64> {
        let kind = header.kind;
        let name = format!("the frame at {at}");
        let left = self.scan.size().saturating_sub(at);
        let memory = stream::memory(kind, kind.block_most(), left);
        let _memory = OpeningMemory::take(&name, memory, self.cx)?;
        let mut decoder = Decoder::default();
        decoder.begin(kind.block_most());
        let mut content = Content::new(header);
        let mut checks = Checkpoints::new(at, kind, self.room());
        let mut next = self.scan.end(at, header.size)?;
        let end = loop {
            self.cx.cancel.check()?;
            self.tell(next);
            let word = le32(self.scan.get(next, WORD)?, 0);
            match header::block(word, next, kind)? {
                Block::End => {
                    let sum = next.saturating_add(WORD);
                    let end = self.scan.end(sum, kind.trailer())?;
                    let sum = le32(self.scan.get(sum, WORD)?, 0);
                    content.check(sum, end)?;
                    break end;
                }
                Block::Data { size, raw } => {
                    checks.block(next, decoder.history())?;
                    let data = next.saturating_add(WORD);
                    let size = size.saturating_add(kind.block_trailer());
                    let end = self.scan.end(data, size)?;
                    let bytes = self.scan.get(data, size)?;
                    let out = decoder.block(bytes, raw, kind, next)?;
                    content.take(out);
                    checks.grow(wide(out.len()));
                    next = end;
                }
            }
        };
        for check in checks.list {
            if let Some(history) = check.history {
                let number = self.builder.close();
                self.kept = self.kept.saturating_add(size_of_history(&history));
                self.found.histories.insert(number, history);
            }
            self.builder.unit(check.unit, check.len, check.note)?;
        }
        Ok(end)
    }

    /// Bytes that are left for checkpoints.
    fn room(&self) -> u64 {
        (self.cx.cache.budget() / INDEX_PART / 2).saturating_sub(self.kept)
    }

    fn tell(&mut self, at: u64) {
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            let size = self.scan.size();
            self.cx.indexing("lz4: looking for blocks", at, size);
        }
    }
}

fn size_of_history(history: &[u8]) -> u64 {
    wide(history.len()).saturating_add(OVERHEAD)
}

/// Where a frame can be entered.
struct Checkpoints {
    kind: FrameKind,
    list: Vec<Checkpoint>,
    distance: u64,
    /// Bytes of all in the list, and how many there may be.
    kept: u64,
    room: u64,
}

struct Checkpoint {
    unit: u64,
    len: u64,
    note: u64,
    /// What the first block refers to; `None` where that is nothing.
    history: Option<Box<[u8]>>,
}

impl Checkpoints {
    fn new(at: u64, kind: FrameKind, room: u64) -> Self {
        let first = Checkpoint {
            unit: at,
            len: 0,
            note: note(false, kind),
            history: None,
        };
        Self {
            kind,
            list: vec![first],
            distance: if kind.linked { DISTANCE } else { DISTANCE_FREE },
            kept: 0,
            room,
        }
    }

    /// A block begins at `at` that may refer to `history`.
    fn block(&mut self, at: u64, history: &[u8]) -> Result<()> {
        if self.list.last().is_none_or(|last| last.len < self.distance) {
            return Ok(());
        }
        let history = if self.kind.linked {
            Some(pack(history)?)
        } else {
            None
        };
        let more = history.as_deref().map_or(0, size_of_history);
        while self.kind.linked && self.kept.saturating_add(more) > self.room {
            if self.list.len() <= 1 {
                // Not one can be kept: the frame is entered at its beginning only.
                self.distance = u64::MAX;
                return Ok(());
            }
            self.thin_out();
            if self.list.last().is_none_or(|last| last.len < self.distance) {
                return Ok(());
            }
        }
        self.kept = self.kept.saturating_add(more);
        self.list.push(Checkpoint {
            unit: at,
            len: 0,
            note: note(true, self.kind),
            history,
        });
        Ok(())
    }

    fn grow(&mut self, len: u64) {
        if let Some(last) = self.list.last_mut() {
            last.len = last.len.saturating_add(len);
        }
    }

    /// Forgets every second one.
    fn thin_out(&mut self) {
        self.distance = self.distance.saturating_mul(2);
        let old = std::mem::take(&mut self.list);
        self.kept = 0;
        for (number, check) in old.into_iter().enumerate() {
            match self.list.last_mut() {
                Some(last) if number % 2 == 1 => last.len = last.len.saturating_add(check.len),
                _ => {
                    let more = check.history.as_deref().map_or(0, size_of_history);
                    self.kept = self.kept.saturating_add(more);
                    self.list.push(check);
                }
            }
        }
    }
}

/// Compresses what a block refers to.
fn pack(history: &[u8]) -> Result<Box<[u8]>> {
    let mut packed = vec![0; zstd_safe::compress_bound(history.len())];
    let len = zstd_safe::compress(&mut packed[..], history, LEVEL).map_err(|code| {
        let what = format!("libzstd: {}", zstd_safe::get_error_name(code));
        Error::new(Kind::Limit, what)
    })?;
    packed.truncate(len);
    Ok(packed.into_boxed_slice())
}

/// What [`pack`] was given; `None` for anything else.
pub(super) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let mut history = vec![0; stream::HISTORY];
    let len = zstd_safe::decompress(&mut history[..], packed).ok()?;
    history.truncate(len);
    Some(history)
}

/// Bytes behind their number, and what follows.
fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    rest.split_at_checked(len)
}

impl Found {
    /// In a form that [`Self::from_bytes`] reads.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let spans = self.spans.to_bytes();
        let mut bytes = vec![u8::from(self.verified)];
        bytes.extend(wide(spans.len()).to_le_bytes());
        bytes.extend(spans);
        let mut histories: Vec<_> = self.histories.iter().collect();
        histories.sort_unstable_by_key(|(number, _)| **number);
        for (number, history) in histories {
            bytes.extend(number.to_le_bytes());
            bytes.extend(wide(history.len()).to_le_bytes());
            bytes.extend_from_slice(history);
        }
        bytes
    }

    /// What [`Self::to_bytes`] has made for a file of `size` bytes; `None` for anything else.
    pub(super) fn from_bytes(bytes: &[u8], size: u64) -> Option<Self> {
        let (verified, rest) = bytes.split_first()?;
        let (spans, mut rest) = part(rest)?;
        let spans = Spans::from_bytes(spans, size)?;
        let mut histories = HashMap::new();
        while let Some((number, after)) = rest.split_first_chunk::<8>() {
            let (history, after) = part(after)?;
            histories.insert(u64::from_le_bytes(*number), history.into());
            rest = after;
        }
        if !rest.is_empty() {
            return None;
        }
        Some(Self {
            spans,
            histories,
            verified: *verified == 1,
            unverified: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_unpacked_as_it_was() {
        for history in [vec![], vec![0; stream::HISTORY], vec![7; 100]] {
            let packed = pack(&history).map(|packed| unpack(&packed));
            assert_eq!(packed.ok(), Some(Some(history)));
        }
        assert_eq!(unpack(b"garbage"), None);
    }

    #[test]
    fn what_was_saved_is_found_again_and_nothing_else_is() {
        let mut builder = Builder::new(merge, &Cx::new(64 << 20));
        for unit in [(0, 3 << 20, 5), (70, 2 << 20, 6)] {
            let _ = builder.unit(unit.0, unit.1, unit.2);
        }
        let found = Found {
            spans: builder.finish(100),
            histories: HashMap::from([(1, b"what was before".to_vec().into_boxed_slice())]),
            verified: true,
            unverified: false,
        };
        let bytes = found.to_bytes();
        assert_eq!(Found::from_bytes(&bytes, 100), Some(found));
        assert_eq!(Found::from_bytes(&bytes, 99), None);
        assert_eq!(Found::from_bytes(&bytes[..bytes.len() - 1], 100), None);
        assert_eq!(Found::from_bytes(&[], 100), None);
    }
}
