//! Decodes the streams of a source one after the other, from the beginning or from a checkpoint.

use crc32fast::Hasher;

use super::blank::blank;
use super::feed::{Beat, Feed};
use super::zeroes::Zeroes;
use super::{Framing, Seen, Source};
use crate::layer::cut::cut_off;
use crate::sys::zlib::{Failure, Inflate, Place, Stop, WINDOW};
use crate::{ByteRange, Error, Kind, Result};

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// No place of interest.
    Within,
    /// The end of a block inside of a stream; the next one begins at this bit of the volume below.
    Boundary(u64),
    /// The end of a stream; what stands behind it was read and is right.
    Between,
    /// The end of all streams.
    End,
}

/// The stream that is being decoded.
#[derive(Debug)]
struct Stream<H> {
    /// `None` when it was entered in the middle.
    whole: Option<Whole<H>>,
}

/// What can be checked of a stream that is decoded from its beginning.
#[derive(Debug)]
struct Whole<H> {
    header: H,
    /// Of all bytes but those in `Cursor::part`.
    crc: Hasher,
    len: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cursor<'a, F: Framing> {
    source: &'a Source<F>,
    feed: Feed<'a>,
    inflate: Box<Inflate>,
    stream: Option<Stream<F::Header>>,
    /// Of the bytes since both others were brought up to date.
    part: Hasher,
    /// Of the bytes since [`Self::take_crc`].
    span: Hasher,
    zeroes: Zeroes,
}

impl<'a, F: Framing> Cursor<'a, F> {
    /// At the beginning of a stream, which is that of `range`.
    pub(crate) fn new(source: &'a Source<F>, range: ByteRange, inflate: Box<Inflate>) -> Self {
        Self {
            source,
            feed: Feed::new(&source.below, range),
            inflate,
            stream: None,
            part: Hasher::new(),
            span: Hasher::new(),
            zeroes: Zeroes::default(),
        }
    }

    /// Goes into the stream whose next block begins `skip` bits (0 to 7) behind the next byte's
    /// first one, with the bytes that were decoded before.
    ///
    /// # Errors
    /// `Corrupt` when there is no byte; what the volume below or `beat` says.
    pub(crate) fn enter(&mut self, skip: u8, window: &[u8], beat: Beat<'_>) -> Result<()> {
        self.go_on(skip, window, beat)?;
        self.stream = Some(Stream { whole: None });
        Ok(())
    }

    /// As [`Self::enter`], in the stream that is being decoded.
    fn go_on(&mut self, skip: u8, window: &[u8], beat: Beat<'_>) -> Result<()> {
        let (mut bits, mut byte) = (0, 0);
        if skip > 0 {
            let first = self.feed.array::<1>(beat)?;
            [byte] = first.ok_or_else(|| self.truncated())?;
            bits = 8_u8.saturating_sub(skip);
        }
        self.inflate
            .enter(bits, byte, window)
            .map_err(|failure| self.failed(failure))
    }

    /// Where decoding has come to a boundary, at `bit`, behind the window `zeroes`, which is whole and
    /// all zero: goes over the blocks that decode to more of that, until there are `most` bytes.
    /// How many there are, and at which bit the next block begins; `None` where there is none of them.
    ///
    /// # Errors
    /// What the volume below or `beat` says.
    pub(crate) fn skip_zeroes(
        &mut self,
        bit: u64,
        most: u64,
        zeroes: &[u8; WINDOW],
        beat: Beat<'_>,
    ) -> Result<Option<(u64, u64)>> {
        let ahead = self.feed.at().saturating_sub(bit / 8);
        let ahead = usize::try_from(ahead).unwrap_or(usize::MAX);
        if !self.feed.back(ahead) {
            return Ok(None);
        }
        // Below eight.
        let skip = u8::try_from(bit % 8).unwrap_or(0);
        let found = blank(self.feed.bytes(), skip, most);
        if found.bits == 0 {
            self.feed.consume(ahead);
            return Ok(None);
        }
        let next = bit.saturating_add(found.bits);
        let over = (next / 8).saturating_sub(bit / 8);
        self.feed
            .consume(usize::try_from(over).unwrap_or(usize::MAX));
        self.go_on(u8::try_from(next % 8).unwrap_or(0), zeroes, beat)?;
        self.fold();
        let crc32 = self.zeroes.crc32(found.len);
        self.part = Hasher::new_with_initial_len(crc32, found.len);
        self.fold();
        Ok(Some((found.len, next)))
    }

    /// Where the next byte lies in the volume below.
    pub(crate) fn at(&self) -> u64 {
        self.feed.at()
    }

    /// Decodes some bytes to `out`; says how many, and what it has come to. Without room in `out`
    /// it goes on to where the next byte would be written, and then does nothing.
    ///
    /// # Errors
    /// `Corrupt` for what is not deflate data, is cut short, or does not agree with what stands
    /// around it; what the volume below or `beat` says.
    pub(crate) fn step(
        &mut self,
        out: &mut [u8],
        stop: Stop,
        beat: Beat<'_>,
    ) -> Result<(usize, Event)> {
        if self.stream.is_none() {
            let start = self.source.range.start();
            let Some(header) = self.source.framing.before(&mut self.feed, start, beat)? else {
                return Ok((0, Event::End));
            };
            self.inflate
                .reset()
                .map_err(|failure| self.failed(failure))?;
            let (crc, len) = (Hasher::new(), 0);
            let whole = Some(Whole { header, crc, len });
            self.stream = Some(Stream { whole });
        }
        let more = self.feed.fill(beat)?;
        let step = self.inflate.step(self.feed.bytes(), out, stop);
        self.feed.consume(step.read);
        self.part.update(out.get(..step.written).unwrap_or(&[]));
        let event = match step.place.map_err(|failure| self.failed(failure))? {
            Place::Within => {
                if !more && step.written == 0 && !out.is_empty() {
                    return Err(self.truncated());
                }
                Event::Within
            }
            Place::Boundary { unused } => {
                let bits = self.feed.at().saturating_mul(8);
                Event::Boundary(bits.saturating_sub(u64::from(unused)))
            }
            Place::End => {
                self.fold();
                let seen = self.stream.take().and_then(|stream| stream.whole);
                let seen = seen.map(|whole| Seen {
                    header: whole.header,
                    crc32: whole.crc.finalize(),
                    len: whole.len,
                });
                self.source.framing.after(&mut self.feed, seen, beat)?;
                Event::Between
            }
        };
        Ok((step.written, event))
    }

    /// The CRC32 of all bytes since the last call.
    pub(crate) fn take_crc(&mut self) -> u32 {
        self.fold();
        std::mem::take(&mut self.span).finalize()
    }

    /// The decoded bytes before this place, as far as the next ones may refer to them: copied to
    /// the beginning of `window`, and how many.
    ///
    /// # Errors
    /// None that is expected.
    pub(crate) fn window(&self, window: &mut [u8; WINDOW]) -> Result<usize> {
        self.inflate
            .window(window)
            .map_err(|failure| self.failed(failure))
    }

    /// The decoder, for another cursor.
    pub(crate) fn into_inflate(self) -> Box<Inflate> {
        self.inflate
    }

    /// Each byte goes through the checksum once; that of the stream and that of the span are put
    /// together from the parts.
    fn fold(&mut self) {
        let len = self.part.total_len();
        if len == 0 {
            return;
        }
        self.span.combine(&self.part);
        if let Some(Stream { whole: Some(whole) }) = &mut self.stream {
            whole.crc.combine(&self.part);
            whole.len = whole.len.saturating_add(len);
        }
        self.part = Hasher::new();
    }

    fn failed(&self, failure: Failure) -> Error {
        let at = self.feed.at();
        let (kind, what) = match failure {
            Failure::Data => (
                Kind::Corrupt,
                format!("no valid deflate data near {at} in the file"),
            ),
            Failure::Memory => (Kind::Limit, "no memory for a decoder".to_owned()),
            Failure::Misuse(_) => (Kind::Io, format!("cannot decode near {at} in the file")),
        };
        Error::new(kind, what).caused_by(failure)
    }

    fn truncated(&self) -> Error {
        let at = self.feed.at();
        cut_off(format!(
            "the deflate data is cut short at {at}: the file is truncated"
        ))
    }
}
