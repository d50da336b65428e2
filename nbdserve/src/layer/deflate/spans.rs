//! Decoding of one span, independent of all others.

use super::cursor::{Cursor, Event};
use super::feed::{Beat, REQUEST};
use super::index::{Entry, Index, Span, unpack};
use super::{Framing, Source, wide};
use crate::cache::{Decode, Job};
use crate::layer::decoded::Layout;
use crate::sys::zlib::{Inflate, Stop};
use crate::{ByteRange, Error, Kind, Result, Volume};

/// What a decoder takes beside its input: its own state, an unpacked window, zstd's state.
const DECODER: u64 = Inflate::MEMORY.saturating_mul(4);

/// The spans of a source.
#[derive(Debug)]
pub(super) struct Spans<F> {
    source: Source<F>,
    index: Index,
}

impl<F: Framing> Spans<F> {
    pub(super) fn new(source: Source<F>, index: Index) -> Self {
        Self { source, index }
    }

    fn encoded_range(&self, number: u64) -> ByteRange {
        self.index.encoded(number)
    }

    /// A cursor at the beginning of a span.
    fn cursor(&self, number: u64, span: &Span, job: &mut Job<'_>) -> Result<Cursor<'_, F>> {
        let inflate = match job.take_spare_decoder::<Inflate>() {
            Some(spare) => spare,
            None => Box::new(Inflate::new().map_err(|failure| {
                Error::new(Kind::Limit, "no memory for a decoder").caused_by(failure)
            })?),
        };
        let mut cursor = Cursor::new(&self.source, self.encoded_range(number), inflate);
        if let Entry::Block(packed) = &span.entry {
            let window = unpack(packed)?;
            // Below eight.
            let skip = u8::try_from(span.bit % 8).unwrap_or(0);
            cursor.enter(skip, &window, &job.pulse())?;
        }
        Ok(cursor)
    }

    /// Decodes a span that `job` was started for.
    fn run(&self, number: u64, span: &Span, job: &mut Job<'_>) -> Result<Box<Inflate>> {
        let len = self.index.decoded(number).len();
        let mut cursor = self.cursor(number, span, job)?;
        let beat = job.pulse();
        let mut out: u64 = 0;
        let mut last = 0;
        while out < len {
            job.advance(std::mem::take(&mut last))?;
            let (written, event) = cursor.step(job.spare()?, Stop::Never, &beat)?;
            if event == Event::End {
                let what = format!("{out} bytes are there, {len} were promised");
                return Err(Error::new(Kind::Corrupt, what));
            }
            out = out.saturating_add(wide(written));
            last = written;
        }
        // The last bytes are given out after the check.
        if number.saturating_add(1) >= self.count() || span.crc32.is_none() {
            // Whole streams end where the span does.
            end(&mut cursor, len, &beat)?;
        }
        let found = cursor.take_crc();
        if let Some(expected) = span.crc32
            && expected != found
        {
            let what = format!("its CRC32 is {found:08x}, and was {expected:08x} before");
            return Err(Error::new(Kind::Corrupt, what));
        }
        job.advance(last)?;
        Ok(cursor.into_inflate())
    }
}

/// Reads on to the end of all streams, where `len` bytes were decoded.
fn end<F: Framing>(cursor: &mut Cursor<'_, F>, len: u64, beat: Beat<'_>) -> Result<()> {
    loop {
        beat()?;
        let (more, event) = cursor.step(&mut [0], Stop::Never, beat)?;
        if more > 0 {
            let what = format!("more than the {len} bytes are there that were promised");
            return Err(Error::new(Kind::Corrupt, what));
        }
        if event == Event::End {
            return Ok(());
        }
    }
}

impl<F: Framing> Decode for Spans<F> {
    fn len(&self, number: u64) -> u64 {
        self.index.decoded(number).len()
    }

    fn offset(&self, number: u64) -> u64 {
        self.index.decoded(number).start()
    }

    fn describe(&self, number: u64) -> String {
        let decoded = self.index.decoded(number);
        format!(
            "span {number} at {} (bytes {}..{} of the image)",
            self.encoded_range(number).start(),
            decoded.start(),
            decoded.end()
        )
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let span = self.index.span(number).ok_or_else(|| {
            let what = format!("there is no span {number}");
            Error::new(Kind::OutOfRange, what)
        })?;
        let range = self.encoded_range(number);
        // All of it will be read: over a network, one request in place of several.
        self.source.below.will_need(range);
        if !job.start(DECODER.saturating_add(REQUEST.min(range.len())))? {
            return Ok(());
        }
        let inflate = self.run(number, span, job).map_err(|error| {
            if error.kind() != Kind::Corrupt {
                return error;
            }
            let what = format!("{}: cannot be decoded", self.describe(number));
            Error::new(Kind::Corrupt, what).caused_by(error)
        })?;
        job.leave_decoder(inflate);
        Ok(())
    }
}

impl<F: Framing> Layout for Spans<F> {
    fn below(&self) -> &Volume {
        &self.source.below
    }

    fn size(&self) -> u64 {
        self.index.size()
    }

    fn count(&self) -> u64 {
        wide(self.index.spans.len())
    }

    fn find(&self, offset: u64) -> u64 {
        self.index.find(offset)
    }

    fn encoded(&self, number: u64) -> u64 {
        self.encoded_range(number).len()
    }

    fn is_zero(&self, number: u64) -> bool {
        self.index.span(number).is_some_and(|span| span.zero)
    }

    fn index(&self) -> crate::Index {
        let mut spans = self.index.spans.iter();
        if spans.any(|span| matches!(span.entry, Entry::Block(_))) {
            crate::Index::Checkpoints
        } else {
            crate::Index::Found
        }
    }
}
