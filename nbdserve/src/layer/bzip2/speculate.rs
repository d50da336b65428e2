//! Blocks decoded ahead of the pass that needs them, on the pool.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::scan::Span;
use super::wrapped::{Failure, Wrapped};
use crate::cache::{Priority, Sink};
use crate::layer::recent::Recent;
use crate::{Cx, Error, Kind, Result};

/// A wait looks this often whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a piece of what is decoded.
const PIECE: usize = 256 << 10;
/// A block of zeroes is encoded in some forty bytes; longer ones are not remembered.
const ALIKE_LONGEST: u64 = 8 << 10;

/// A block that is to be decoded by itself.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) level: u8,
    pub(super) span: Span,
    pub(super) crc: u32,
}

/// What a block has become.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its bytes.
    Decoded(Vec<Piece>),
    /// It is sound, but has more bytes than may wait.
    Long(Encoded),
    Failed(Failure),
}

/// Decoded bytes.
#[derive(Debug)]
pub(super) enum Piece {
    Zero(usize),
    Data(Vec<u8>),
}

impl Encoded {
    /// As [`Self::decode`]; what is known to be zero is not decoded.
    fn decode_or_know(self, most: usize, alike: &Alike) -> Outcome {
        let Some(bits) = self.bits() else {
            return self.decode(most);
        };
        if let Some(pieces) = alike.find(self.level, &bits) {
            return Outcome::Decoded(pieces);
        }
        let level = self.level;
        let outcome = self.decode(most);
        alike.learn(level, bits, &outcome);
        outcome
    }

    /// The bits of a short block and no others, from the first one of a byte on.
    fn bits(&self) -> Option<Vec<u8>> {
        let Span { bytes, skip, len } = &self.span;
        if *len > ALIKE_LONGEST * 8 {
            return None;
        }
        let mut bits = bytes.clone();
        super::bits::shift(&mut bits, *skip);
        bits.truncate(usize::try_from(len.div_ceil(8)).ok()?);
        if len % 8 != 0
            && let Some(last) = bits.last_mut()
        {
            *last &= !(0xff >> (len % 8));
        }
        Some(bits)
    }

    /// Decodes the block, and keeps at most about `most` bytes that are not zero.
    pub(super) fn decode(self, most: usize) -> Outcome {
        match self.pieces(most) {
            Ok(Some(pieces)) => Outcome::Decoded(pieces),
            Ok(None) => Outcome::Long(self),
            Err(failure) => Outcome::Failed(failure),
        }
    }

    fn wrapped(&self) -> std::result::Result<Wrapped, Failure> {
        let Span { bytes, skip, len } = &self.span;
        let span = Span {
            bytes: bytes.clone(),
            skip: *skip,
            len: *len,
        };
        Wrapped::new(self.level, span, self.crc)
    }

    fn pieces(&self, most: usize) -> std::result::Result<Option<Vec<Piece>>, Failure> {
        let mut wrapped = self.wrapped()?;
        let mut pieces = Vec::new();
        let mut kept = 0_usize;
        let mut piece = vec![0; PIECE];
        let mut filled = 0_usize;
        loop {
            let step = wrapped.step(piece.get_mut(filled..).unwrap_or(&mut []))?;
            filled = filled.saturating_add(step.written);
            if filled < piece.len() && !step.end {
                continue;
            }
            let bytes = piece.get(..filled).unwrap_or(&[]);
            if bytes.iter().all(|byte| *byte == 0) {
                pieces.push(Piece::Zero(filled));
            } else {
                kept = kept.saturating_add(filled);
                if kept <= most {
                    pieces.push(Piece::Data(bytes.to_vec()));
                } else {
                    // What follows is decoded for its check only.
                    pieces = Vec::new();
                }
            }
            if step.end {
                return Ok((kept <= most).then_some(pieces));
            }
            filled = 0;
        }
    }

    /// Decodes a block that is known to be sound once more; the number of its bytes.
    ///
    /// # Errors
    /// What `sink` says.
    pub(super) fn decode_to(&self, sink: &mut dyn Sink) -> Result<u64> {
        let changed = |_| Error::new(Kind::Changed, "a block has changed while it was decoded");
        let mut wrapped = self.wrapped().map_err(changed)?;
        let mut len = 0_u64;
        loop {
            let step = wrapped.step(sink.spare()?).map_err(changed)?;
            len = len.saturating_add(u64::try_from(step.written).unwrap_or(u64::MAX));
            sink.advance(step.written)?;
            if step.end {
                return Ok(len);
            }
        }
    }
}

/// What blocks look like that were found to be zero: a block depends on its bits and on the level of
/// its stream, so others like it need not be decoded. A disk that is mostly empty has thousands.
#[derive(Debug, Default)]
pub(super) struct Alike(Mutex<Recent<Zero>>);

#[derive(Debug)]
struct Zero {
    level: u8,
    bits: Vec<u8>,
    /// Lengths of the pieces.
    pieces: Vec<usize>,
}

impl Alike {
    fn find(&self, level: u8, bits: &[u8]) -> Option<Vec<Piece>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let zero = known.find(|zero| zero.level == level && zero.bits == bits)?;
        Some(zero.pieces.iter().map(|len| Piece::Zero(*len)).collect())
    }

    fn learn(&self, level: u8, bits: Vec<u8>, outcome: &Outcome) {
        let Outcome::Decoded(pieces) = outcome else {
            return;
        };
        let lengths = pieces.iter().map(|piece| match piece {
            Piece::Zero(len) => Some(*len),
            Piece::Data(_) => None,
        });
        let Some(pieces) = lengths.collect::<Option<Vec<_>>>() else {
            return;
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.add(Zero {
            level,
            bits,
            pieces,
        });
    }
}

/// Puts `bytes` into `sink`.
///
/// # Errors
/// What `sink` says.
fn put(sink: &mut dyn Sink, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let spare = sink.spare()?;
        let len = spare.len().min(bytes.len());
        let (now, later) = bytes.split_at(len);
        spare.get_mut(..len).unwrap_or(&mut []).copy_from_slice(now);
        sink.advance(len)?;
        bytes = later;
    }
    Ok(())
}

/// Puts decoded pieces into `sink`; the number of their bytes.
///
/// # Errors
/// What `sink` says.
pub(super) fn put_all(sink: &mut dyn Sink, pieces: &[Piece]) -> Result<u64> {
    let mut all = 0_u64;
    for piece in pieces {
        let len = match piece {
            Piece::Zero(len) => {
                sink.zeroes(*len)?;
                *len
            }
            Piece::Data(bytes) => {
                put(sink, bytes)?;
                bytes.len()
            }
        };
        all = all.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    }
    Ok(all)
}

/// A block that is being decoded, or waits for a thread. Dropped, it is not begun any more.
#[derive(Debug)]
pub(super) struct Task {
    /// Taken by who decodes it.
    encoded: Arc<Mutex<Option<Encoded>>>,
    outcome: Receiver<Outcome>,
    most: usize,
    alike: Arc<Alike>,
}

impl Task {
    /// Has `encoded` decoded on the pool; see [`Encoded::decode`] for `most`.
    pub(super) fn begin(encoded: Encoded, most: usize, alike: &Arc<Alike>, cx: &Cx) -> Self {
        let encoded = Arc::new(Mutex::new(Some(encoded)));
        let (sender, outcome) = channel();
        let task = Self {
            encoded: Arc::clone(&encoded),
            outcome,
            most,
            alike: Arc::clone(alike),
        };
        let alike = Arc::clone(alike);
        let cancel = cx.cancel.clone();
        let work = move || {
            if !cancel.is_cancelled() {
                run(&encoded, &sender, most, &alike);
            }
        };
        // What is refused here is decoded by who waits for it.
        drop(cx.pool.submit(Priority::Demand, Box::new(work)));
        task
    }

    /// What the block has become. The caller decodes it when nobody has begun to: the pool's
    /// threads may all be busy with others' work, or be the caller.
    ///
    /// # Errors
    /// That the unit is being taken down.
    pub(super) fn wait(self, cx: &Cx) -> Result<Outcome> {
        if let Some(encoded) = take(&self.encoded) {
            return Ok(encoded.decode_or_know(self.most, &self.alike));
        }
        loop {
            cx.cancel.check()?;
            // A thread decodes it now, so this ends.
            match self.outcome.recv_timeout(LOOK) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "the decoder ended unexpectedly";
                    return Err(Error::new(Kind::Io, what));
                }
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        drop(take(&self.encoded));
    }
}

fn take(encoded: &Mutex<Option<Encoded>>) -> Option<Encoded> {
    encoded
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

fn run(encoded: &Mutex<Option<Encoded>>, outcome: &Sender<Outcome>, most: usize, alike: &Alike) {
    if let Some(encoded) = take(encoded) {
        // Nobody may want it any more.
        let _ = outcome.send(encoded.decode_or_know(most, alike));
    }
}
