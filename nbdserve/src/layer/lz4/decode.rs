//! Decoding of one block of the image: some neighbouring blocks of the file.

use super::frames::{self, Found, from_note};
use super::stream::{self, Decoder, State};
use crate::cache::{Decode, Job};
use crate::layer::decoded::Layout;
use crate::layer::input::Input;
use crate::layer::numbered;
use crate::layer::spans::Span;
use crate::{ByteRange, Error, Kind, Result, Volume};

/// The volume below is told of this much of a block before it is read.
const AHEAD: u64 = 8 << 20;

/// A byte of a sequence stands for at most 255 zeroes; headers of small blocks take their part.
const ZERO_RATIO: u64 = 200;

/// The blocks of a .lz4 file.
#[derive(Debug)]
pub(super) struct Lz4Blocks {
    below: Volume,
    found: Found,
}

impl Lz4Blocks {
    pub(super) fn new(below: Volume, found: Found) -> Self {
        Self { below, found }
    }

    fn span(&self, number: u64) -> Option<Span> {
        self.found.spans.get(number)
    }

    /// The memory that the decoder of a block takes.
    pub(super) fn decoder_memory(&self, number: u64) -> u64 {
        let Some(span) = self.span(number) else {
            return 0;
        };
        let largest = from_note(span.note).1;
        largest.map_or(0, |kind| stream::memory(kind, span.len, span.range.len()))
    }

    /// Sets what the first block of a span refers to.
    fn enter(&self, number: u64, decoder: &mut Decoder) -> Result<()> {
        let Some(packed) = self.found.histories.get(&number) else {
            return Ok(());
        };
        let history = frames::unpack(packed).ok_or_else(|| {
            let what = format!("{}: its checkpoint cannot be used", self.describe(number));
            Error::new(Kind::Io, what)
        })?;
        decoder.set_history(&history);
        Ok(())
    }
}

impl Decode for Lz4Blocks {
    fn len(&self, number: u64) -> u64 {
        self.span(number).map_or(0, |span| span.len)
    }

    fn offset(&self, number: u64) -> u64 {
        self.span(number).map_or(0, |span| span.start)
    }

    fn describe(&self, number: u64) -> String {
        let place = self.span(number).map(Span::place);
        numbered::called(number, place)
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let span = self.span(number).ok_or_else(|| numbered::missing(number))?;
        let (begin, end) = (span.range.start(), span.range.end());
        self.below.will_need(ByteRange::between(
            begin,
            begin.saturating_add(AHEAD).min(end),
        ));
        let memory = self.decoder_memory(number);
        if !job.start(memory)? {
            return Ok(());
        }
        let spare = job.take_spare_decoder::<Decoder>();
        let mut decoder = spare
            .filter(|spare| spare.memory() <= memory)
            .unwrap_or_default();
        decoder.begin(span.len);
        self.enter(number, &mut decoder)?;
        let state = from_note(span.note).0.map_or(State::Between, State::Within);
        let mut input = Input::new(&self.below, span.range);
        stream::decode(&mut decoder, &mut input, state, job).map_err(|error| {
            let what = format!("{}: {error}", self.describe(number));
            match error.kind() {
                Kind::Corrupt | Kind::Unsupported => Error::new(error.kind(), what),
                _ => error,
            }
        })?;
        job.leave_decoder(decoder);
        Ok(())
    }
}

impl Layout for Lz4Blocks {
    fn below(&self) -> &Volume {
        &self.below
    }

    fn size(&self) -> u64 {
        self.found.spans.size()
    }

    fn count(&self) -> u64 {
        self.found.spans.count()
    }

    fn find(&self, offset: u64) -> u64 {
        self.found.spans.find(offset)
    }

    fn encoded(&self, number: u64) -> u64 {
        self.span(number).map_or(0, |span| span.range.len())
    }

    fn is_fast(&self) -> bool {
        true
    }

    fn zero_ratio(&self) -> u64 {
        ZERO_RATIO
    }

    fn twin(&self, number: u64) -> Option<(ByteRange, u64)> {
        // Linked blocks depend on what was before them, too.
        let span = self.span(number)?;
        let free = !self.found.histories.contains_key(&number);
        free.then_some((span.range, span.note))
    }
}
