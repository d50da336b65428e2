//! Decoding of one block: some neighbouring frames, independent of all others.

use super::header::{self, HEADER_MOST, Start};
use super::stream::{Decoder, Frames, INPUT};
use super::table::Check;
use crate::cache::{Decode, Job};
use crate::layer::decoded::Layout;
use crate::layer::input::Input;
use crate::layer::numbered;
use crate::layer::scan::narrow;
use crate::layer::spans::{Span, Spans};
use crate::store::Place;
use crate::{ByteRange, Error, Index, Kind, Result, Volume};

/// The volume below is told of this much of a block before it is read.
const AHEAD: u64 = 8 << 20;

/// Where the blocks are known from.
#[derive(Debug)]
pub(super) enum Known {
    /// Every header was seen; the note of a block is the memory of its decoder.
    Seen,
    /// A seek table; the note of a block is the number of its first frame, for the table's checks.
    Table(Option<Vec<Check>>),
    /// As [`Self::Seen`], but the last frame is only assumed to reach to the end of the file.
    Assumed(Option<Place>),
}

/// The name under which blocks are kept for the next mount.
pub(super) const INDEX: &str = "zstd-index-1";
/// The name under which it is kept that the frames of a file must be looked for.
pub(super) const WALK: &str = "zstd-walk-1";

/// The blocks of a .zst file.
#[derive(Debug)]
pub(super) struct ZstdBlocks {
    below: Volume,
    spans: Spans,
    known: Known,
}

impl ZstdBlocks {
    pub(super) fn new(below: Volume, spans: Spans, known: Known) -> Self {
        Self {
            below,
            spans,
            known,
        }
    }

    fn existing(&self, number: u64) -> Result<Span> {
        self.spans
            .get(number)
            .ok_or_else(|| numbered::missing(number))
    }

    /// The memory that the decoder of a block takes.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, what the volume below says.
    pub(super) fn decoder_memory(&self, number: u64) -> Result<u64> {
        let span = self.existing(number)?;
        let mut input = Input::new(&self.below, span.range);
        self.memory(span, &mut input)
    }

    /// As [`Self::decoder_memory`], from the input, of which nothing was consumed yet.
    fn memory(&self, span: Span, input: &mut Input<'_>) -> Result<u64> {
        let Known::Table(_) = self.known else {
            return Ok(span.note);
        };
        // Frames that say how long they are need as much as that.
        let mut memory = header::memory_for(span.len);
        input.need(HEADER_MOST, HEADER_MOST)?;
        let at = input.at();
        if !input.is_at_end()
            && let Start::Frame(first) = header::start(input.bytes(), at)?
        {
            memory = memory.max(first.memory());
        }
        Ok(memory)
    }

    /// The checks of the frames of a block.
    fn checks(&self, number: u64, span: Span) -> &[Check] {
        let Known::Table(Some(checks)) = &self.known else {
            return &[];
        };
        let first = narrow(span.note);
        let next = number.checked_add(1).and_then(|next| self.spans.get(next));
        let end = next.map_or(checks.len(), |next| narrow(next.note));
        checks.get(first..end).unwrap_or(&[])
    }

    /// For a block that was only assumed to reach to the end of the file.
    fn assumed(&self, number: u64) -> Option<&Option<Place>> {
        match &self.known {
            Known::Assumed(place) if number.saturating_add(1) == self.spans.count() => Some(place),
            _ => None,
        }
    }

    /// The assumption was wrong: a frame begins at `at`. The next opening will look for it.
    fn second(&self, at: u64) -> Error {
        if let Known::Assumed(Some(place)) = &self.known {
            place.save(WALK, &[]);
        }
        let what = format!(
            "another frame follows at {at}: the image has more than the {} bytes that its first \
             frame said",
            self.spans.size()
        );
        Error::new(Kind::Unsupported, what)
            .hint("--layer zstd:walk=yes looks for all frames when the image is opened")
    }

    fn run(&self, number: u64, span: Span, job: &mut Job<'_>) -> Result<()> {
        let ahead = span.range.start().saturating_add(AHEAD);
        self.below.will_need(ByteRange::between(
            span.range.start(),
            ahead.min(span.range.end()),
        ));
        let mut input = Input::new(&self.below, span.range);
        let memory = self.memory(span, &mut input)?;
        job.beat()?;
        if !job.start(memory.saturating_add(INPUT.min(span.range.len())))? {
            return Ok(());
        }
        let spare = job.take_spare_decoder::<Decoder>();
        // One that has grown beyond what is accounted is of no use here.
        let mut decoder = match spare.filter(|spare| spare.memory() <= memory) {
            Some(decoder) => decoder,
            None => Box::new(Decoder::new()?),
        };
        let assumed = self.assumed(number);
        let second: &dyn Fn(u64) -> Error = &|at| self.second(at);
        let frames = Frames {
            name: &|| self.describe(number),
            memory,
            len: Some(span.len),
            checks: self.checks(number, span),
            one: false,
            second: assumed.map(|_| second),
        };
        decoder.decode(&mut input, job, &frames, &mut |job, _| job.beat())?;
        if let Some(Some(place)) = assumed {
            // It is certain now.
            place.save(INDEX, &self.spans.to_bytes());
        }
        if decoder.is_ready() {
            job.leave_decoder(decoder);
        }
        Ok(())
    }
}

impl Decode for ZstdBlocks {
    fn len(&self, number: u64) -> u64 {
        self.spans.get(number).map_or(0, |span| span.len)
    }

    fn offset(&self, number: u64) -> u64 {
        self.spans.get(number).map_or(0, |span| span.start)
    }

    fn describe(&self, number: u64) -> String {
        let place = self.spans.get(number).map(Span::place);
        numbered::called(number, place)
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let span = self.existing(number)?;
        self.run(number, span, job)
    }
}

impl Layout for ZstdBlocks {
    fn below(&self) -> &Volume {
        &self.below
    }

    fn size(&self) -> u64 {
        self.spans.size()
    }

    fn count(&self) -> u64 {
        self.spans.count()
    }

    fn find(&self, offset: u64) -> u64 {
        self.spans.find(offset)
    }

    fn encoded(&self, number: u64) -> u64 {
        self.spans.get(number).map_or(0, |span| span.range.len())
    }

    fn is_fast(&self) -> bool {
        true
    }

    fn index(&self) -> Index {
        match self.known {
            Known::Table(_) => Index::InImage,
            Known::Seen | Known::Assumed(_) => Index::Found,
        }
    }

    fn twin(&self, number: u64) -> Option<(ByteRange, u64)> {
        // Whole frames, which say all that they need.
        self.spans.get(number).map(|span| (span.range, 0))
    }
}
