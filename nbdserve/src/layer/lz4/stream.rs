//! Decoding of blocks in order, for whoever takes the bytes.

use std::hash::Hasher;

use twox_hash::XxHash32;

use super::header::{self, Block, FrameHeader, FrameKind, HEADER_MOST, Start, WORD};
use crate::bytes::le32;
use crate::cache::Sink;
use crate::layer::cut::cut_off;
use crate::layer::input::Input;
use crate::layer::scan::{narrow, wide};
use crate::{Error, Kind, Result};

/// Encoded bytes per request to the volume below.
pub(super) const INPUT: u64 = 1 << 20;
/// How far a linked block refers back.
pub(super) const HISTORY: usize = 64 << 10;

/// Room for one decoded block and for what linked ones refer to.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    out: Vec<u8>,
    /// The last bytes before the next block, at most [`HISTORY`] of them.
    history: Vec<u8>,
    /// No block decodes to more than this.
    most: u64,
}

/// What a [`Decoder`] takes for blocks of a frame of this kind that have `len` bytes in `encoded`, its
/// input included.
pub(super) fn memory(kind: FrameKind, len: u64, encoded: u64) -> u64 {
    let input = kind.encoded_most().saturating_add(INPUT).min(encoded);
    kind.block_most()
        .min(len)
        .saturating_add(input)
        .saturating_add(wide(3 * HISTORY))
}

impl Decoder {
    /// Bytes that it holds.
    pub(super) fn memory(&self) -> u64 {
        wide(self.out.capacity().saturating_add(self.history.capacity()))
    }

    /// Blocks will follow that have `len` bytes altogether, and refer to nothing so far.
    pub(super) fn begin(&mut self, len: u64) {
        self.most = len;
        self.history.clear();
    }

    /// What the next block may refer to.
    pub(super) fn history(&self) -> &[u8] {
        &self.history
    }

    /// The next block refers to `history`.
    pub(super) fn set_history(&mut self, history: &[u8]) {
        self.history.clear();
        self.history.extend_from_slice(history);
    }

    /// Decodes the block whose encoded bytes are given, with its checksum if it has one; it was read
    /// at `at`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn block(
        &mut self,
        bytes: &[u8],
        raw: bool,
        kind: FrameKind,
        at: u64,
    ) -> Result<&[u8]> {
        let corrupt = |what: String| Err(Error::new(Kind::Corrupt, what));
        let size = bytes.len().saturating_sub(narrow(kind.block_trailer()));
        let (data, sum) = bytes.split_at(size.min(bytes.len()));
        if kind.block_sum && le32(sum, 0) != Some(header::xxh32(data)) {
            return corrupt(format!("the checksum of the block at {at} does not match"));
        }
        let len = if raw {
            self.out.clear();
            self.out.extend_from_slice(data);
            data.len()
        } else {
            self.out.resize(narrow(kind.block_most().min(self.most)), 0);
            let result = if kind.linked {
                lz4_flex::block::decompress_into_with_dict(data, &mut self.out, &self.history)
            } else {
                lz4_flex::block::decompress_into(data, &mut self.out)
            };
            match result {
                Ok(len) => len,
                Err(error) => {
                    return corrupt(format!("the block at {at} cannot be decoded: {error}"));
                }
            }
        };
        let out = self.out.get(..len).unwrap_or(&[]);
        if kind.linked {
            if len >= HISTORY {
                self.history.clear();
            } else {
                let keep = HISTORY.saturating_sub(len);
                let drop = self.history.len().saturating_sub(keep);
                self.history.drain(..drop);
            }
            let from = len.saturating_sub(HISTORY);
            self.history
                .extend_from_slice(out.get(from..).unwrap_or(&[]));
        }
        Ok(out)
    }
}

/// Where in the row of frames and blocks the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A frame begins here, or the file ends.
    Between,
    /// A block of such a frame begins here.
    Within(FrameKind),
}

/// A frame whose beginning was seen.
#[derive(Debug)]
pub(super) struct Content {
    hash: Option<XxHash32>,
    len: u64,
    stated: Option<u64>,
}

impl Content {
    pub(super) fn new(header: &FrameHeader) -> Self {
        Self {
            hash: header.kind.content_sum.then(|| XxHash32::with_seed(0)),
            len: 0,
            stated: header.content,
        }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.hash {
            hash.write(bytes);
        }
        self.len = self.len.saturating_add(wide(bytes.len()));
    }

    /// The frame ends before `at`; `sum` is its checksum, if it has one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn check(&self, sum: Option<u32>, at: u64) -> Result<()> {
        let corrupt = |what: String| Err(Error::new(Kind::Corrupt, what));
        if let Some(stated) = self.stated.filter(|stated| *stated != self.len) {
            return corrupt(format!(
                "the frame before {at} says that it has {stated} bytes of content, but has {}",
                self.len
            ));
        }
        if let (Some(hash), Some(sum)) = (&self.hash, sum)
            && hash.finish_32() != sum
        {
            return corrupt(format!(
                "the checksum of the content of the frame before {at} does not match"
            ));
        }
        Ok(())
    }
}

/// Decodes all of `input` into `sink`, from `state` on; what a linked block refers to was set.
///
/// # Errors
/// `Corrupt`, `Unsupported`, what `input` and `sink` say.
pub(super) fn decode<S: Sink>(
    decoder: &mut Decoder,
    input: &mut Input<'_>,
    mut state: State,
    sink: &mut S,
) -> Result<()> {
    let mut content: Option<Content> = None;
    loop {
        if input.need(HEADER_MOST, INPUT)? {
            sink.beat()?;
        }
        if input.is_at_end() {
            return Ok(());
        }
        let at = input.at();
        let State::Within(kind) = state else {
            match header::start(input.bytes(), at)? {
                Start::Skippable(size) => skip(input, size)?,
                Start::Frame(header) => {
                    skip(input, header.size)?;
                    content = Some(Content::new(&header));
                    decoder.set_history(&[]);
                    state = State::Within(header.kind);
                }
            }
            continue;
        };
        let word = le32(input.bytes(), 0);
        if kind.is_legacy() && input.left() == WORD {
            // The length that a kernel image has at its end: verified when the file was opened.
            skip(input, WORD)?;
            continue;
        }
        match header::block(word, at, kind)? {
            Block::End if kind.is_legacy() => state = State::Between,
            Block::End => {
                skip(input, WORD)?;
                input.need(WORD, WORD)?;
                let sum = le32(input.bytes(), 0);
                skip(input, kind.trailer())?;
                if let Some(content) = content.take() {
                    content.check(sum, input.at())?;
                }
                state = State::Between;
            }
            Block::Data { size, raw } => {
                skip(input, WORD)?;
                let size = size.saturating_add(kind.block_trailer());
                if input.need(size, INPUT)? {
                    sink.beat()?;
                }
                let Some(bytes) = input.bytes().get(..narrow(size)) else {
                    return Err(cut(at));
                };
                let out = decoder.block(bytes, raw, kind, at)?;
                if let Some(content) = &mut content {
                    content.take(out);
                }
                put(out, sink, at)?;
                skip(input, size)?;
            }
        }
    }
}

fn skip(input: &mut Input<'_>, len: u64) -> Result<()> {
    let at = input.at();
    if input.skip(len) {
        Ok(())
    } else {
        Err(cut(at))
    }
}

fn cut(at: u64) -> Error {
    let what = format!("the file is truncated: what begins at {at} is cut short");
    cut_off(what)
}

/// Hands decoded bytes on.
fn put<S: Sink>(mut bytes: &[u8], sink: &mut S, at: u64) -> Result<()> {
    while !bytes.is_empty() {
        let spare = sink.spare()?;
        let len = spare.len().min(bytes.len());
        if len == 0 {
            let what =
                format!("the block at {at} has more bytes than were found when it was opened");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let (now, later) = bytes.split_at(len);
        if let Some(room) = spare.get_mut(..len) {
            room.copy_from_slice(now);
        }
        sink.advance(len)?;
        bytes = later;
    }
    Ok(())
}
