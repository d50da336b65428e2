//! Runs liblzma over one stream: what the layers lzma and lzip have in common.

use crate::cache::Sink;
use crate::layer::input::Input;
use crate::sys::lzma::{Failure, StreamDecoder};
use crate::{Error, Kind, Result};

/// Encoded bytes per request to the volume below.
pub(in crate::layer) const INPUT: u64 = 1 << 20;
/// What a decoder takes beside its dictionary: probabilities, its own bookkeeping.
const OVERHEAD: u64 = 128 << 10;

/// LZMA cannot shrink more than this: 273 zeroes take a third of a bit.
const SHRINKS: u64 = 16384;

/// Whether so many encoded bytes can become that many.
pub(in crate::layer) fn can_become(encoded: u64, decoded: u64) -> bool {
    decoded / SHRINKS <= encoded
}

/// The memory of a decoder with this dictionary, the encoded bytes included.
pub(in crate::layer) fn decoder_memory(dictionary: u32) -> u64 {
    u64::from(dictionary)
        .saturating_add(OVERHEAD)
        .saturating_add(INPUT)
}

/// How a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layer) enum Ending {
    /// With its end marker, at its size, or behind its trailer.
    Sound,
    /// Before that, after so many decoded bytes.
    Broken { failure: Failure, out: u64 },
    /// There is no more input, after so many decoded bytes.
    CutShort { out: u64 },
    /// It has more bytes than there is room for.
    TooLong,
}

impl Ending {
    /// Nothing for a sound end, else an error about what `name` describes.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported` or `Limit`.
    pub(in crate::layer) fn check(self, name: &str, at: u64) -> Result<()> {
        let corrupt = |what: String| Err(Error::new(Kind::Corrupt, format!("{name}: {what}")));
        match self {
            Self::Sound => Ok(()),
            Self::Broken { failure, out } => {
                let kind = match failure {
                    Failure::Data => Kind::Corrupt,
                    Failure::Options => Kind::Unsupported,
                    Failure::Memory => Kind::Limit,
                    Failure::Misuse(_) => Kind::Io,
                };
                let what =
                    format!("{name}: cannot be decoded beyond byte {out} of it, near {at} below");
                Err(Error::new(kind, what).caused_by(failure))
            }
            Self::CutShort { out } => {
                corrupt(format!("cut short at {at}, after {out} decoded bytes"))
            }
            Self::TooLong => corrupt("it has more bytes than it should".to_owned()),
        }
    }
}

/// Decodes `head` and then `input` to the end of the stream. `told` is called for each request
/// with how far the input is.
///
/// # Errors
/// What `input` and `sink` say; what is wrong with the stream is no error here.
pub(in crate::layer) fn decode<S: Sink>(
    decoder: &mut StreamDecoder,
    mut head: &[u8],
    input: &mut Input<'_>,
    sink: &mut S,
    mut told: impl FnMut(&mut S, u64),
) -> Result<Ending> {
    let mut out: u64 = 0;
    loop {
        if head.is_empty() && input.bytes().is_empty() && !input.is_at_end() {
            input.read(INPUT)?;
            sink.beat()?;
            told(sink, input.at());
        }
        let from = if head.is_empty() { input.bytes() } else { head };
        let last = from.is_empty();
        let spare = sink.spare()?;
        // When all is there, the end is still to come; a decoder wants room to look for it.
        let mut beyond = [0];
        let full = spare.is_empty();
        let step = decoder.step(from, if full { &mut beyond } else { spare });
        if head.is_empty() {
            input.consume(step.read);
        } else {
            head = head.get(step.read..).unwrap_or(&[]);
        }
        if full && step.written > 0 {
            return Ok(Ending::TooLong);
        }
        out = out.saturating_add(u64::try_from(step.written).unwrap_or(u64::MAX));
        if step.written > 0 {
            sink.advance(step.written)?;
        }
        match step.end {
            Ok(true) => return Ok(Ending::Sound),
            Ok(false) if last && step.written == 0 => return Ok(Ending::CutShort { out }),
            Ok(false) => {}
            Err(Failure::Data) if last => return Ok(Ending::CutShort { out }),
            Err(failure) => return Ok(Ending::Broken { failure, out }),
        }
    }
}
