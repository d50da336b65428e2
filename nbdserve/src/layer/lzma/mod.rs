//! lzma: the older format of the xz tools (.lzma), one stream of LZMA behind a short header.
//!
//! There are no blocks and no checks. A stated size is trusted until decoding shows otherwise;
//! without one, all of the file is decoded at the first opening, and the size is kept.
//!
//! Files in zip archives have the same coded bytes behind a header of their own, and a CRC.

mod checked;
mod header;
pub(super) mod stream;

use std::collections::HashMap;
use std::sync::Arc;

use checked::Checked;
use header::Header;
use stream::{INPUT, decoder_memory};

use super::decoded::{Decoded, Layout};
use super::input::Input;
use super::scan::{narrow, wide};
use super::{Args, Confidence, LayerType, Sample, Verdict};
use crate::cache::{Blocks, Decode, Job, Shelf, Sink, Stored, Whole};
use crate::sys::lzma::{Format, StreamDecoder};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// The layer `lzma`.
pub static LZMA: LayerType = LayerType {
    name: "lzma",
    summary: "LZMA compressed data (.lzma, the format before .xz)",
    params: &[],
    probe,
    open,
};

/// What is kept for later openings: the sizes of the file and of the image.
const KEPT: &str = "lzma-size-1";
/// The bytes that a probe decodes at most, and its dictionary.
const TRIED: usize = 4096;
/// An encoder does not write as many zeroes at the start of the coded bytes.
const ZEROES: usize = 12;

fn probe(sample: &Sample<'_>) -> Verdict {
    let evidence = plausible(sample.head, sample.size);
    evidence.map_or(Verdict::No, |evidence| Verdict::Yes {
        confidence: Confidence::SHORT_MAGIC,
        evidence,
    })
}

/// Without a magic, only decoding tells: random bytes soon ask for what is not in the dictionary.
fn plausible(head: &[u8], size: u64) -> Option<String> {
    let header = Header::parse(head)
        .ok()
        .filter(|header| header.is_plausible())?;
    let coded = head.get(header::SIZE..)?;
    // The first byte of what a range coder has made is always zero.
    let zeroes = coded.iter().take_while(|byte| **byte == 0).count();
    if zeroes == 0 || zeroes >= ZEROES {
        return None;
    }
    let mut decoder = StreamDecoder::new();
    decoder.start(Format::Alone).ok()?;
    let dictionary = u32::try_from(TRIED).unwrap_or(u32::MAX);
    let mut out = [0; TRIED];
    let step = decoder.step(&header.with_dictionary(dictionary), &mut out);
    step.end.ok()?;
    let step = decoder.step(coded, &mut out);
    let complete = step.end.ok()?;
    let here = u64::try_from(head.len()).unwrap_or(u64::MAX);
    // It may end early, but only with the file.
    let read = step.read.saturating_add(header::SIZE);
    let whole = complete && here == size && read == head.len();
    if step.written < TRIED && !whole {
        return None;
    }
    let stated = header.size.map_or_else(
        || "of unknown size".to_owned(),
        |size| format!("of {size} bytes"),
    );
    Some(format!(
        "a plausible header {stated}, the first {} decode",
        step.written
    ))
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let head = below.read_vec(0, narrow(below.size().min(wide(header::SIZE))))?;
    let header = Header::parse(&head)?;
    let coded = Coded {
        below: below.clone(),
        header,
        start: wide(header::SIZE),
        head: header.to_bytes(),
        crc32: None,
    };
    coded.open(cx)
}

/// What a zip archive says of a file that is compressed with LZMA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Decoded bytes.
    pub(super) size: u64,
    pub(super) crc32: u32,
    /// The coded bytes end with a marker.
    pub(super) marker: bool,
}

/// The file in a zip archive whose data is `below`. Its CRC is that of each pass over it.
///
/// # Errors
/// As opening a .lzma file; `Corrupt` when there are no such properties.
pub(super) fn member(below: &Volume, expected: Expected, cx: &Cx) -> Result<Volume> {
    let head = below.read_vec(0, narrow(below.size().min(wide(header::MEMBER))))?;
    let header = Header::parse_member(&head, expected.size)?;
    let coded = Coded {
        below: below.clone(),
        header,
        start: wide(header::MEMBER),
        head: if expected.marker {
            header.to_bytes_with_marker()
        } else {
            header.to_bytes()
        },
        crc32: Some(expected.crc32),
    };
    coded.open(cx)
}

/// Coded bytes, and what is said of them.
#[derive(Debug)]
struct Coded {
    below: Volume,
    header: Header,
    /// Where they begin.
    start: u64,
    /// What the decoder gets before them.
    head: [u8; header::SIZE],
    /// What the decoded bytes must have.
    crc32: Option<u32>,
}

impl Coded {
    fn open(self, cx: &Cx) -> Result<Volume> {
        let (below, header) = (&self.below, self.header);
        if let Some(size) = header
            .size
            .filter(|len| !stream::can_become(below.size(), *len))
        {
            let file = below.size();
            let what = format!("the header claims {size} bytes, which {file} bytes cannot become");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let memory = decoder_memory(header.dictionary());
        Blocks::check_decoder_memory("the image", memory, cx)?;
        let known = header.size.or_else(|| kept(below, cx));
        // An empty image costs nothing, and nobody would ever come to its end.
        let known = known.filter(|len| *len > 0);
        let mut stored = HashMap::new();
        let len = match known {
            Some(len) => len,
            None => {
                let whole = self.measure(cx)?;
                let len = whole.len();
                if let Some(place) = &cx.place {
                    place.save(
                        KEPT,
                        [below.size(), len].map(u64::to_le_bytes).as_flattened(),
                    );
                }
                stored.insert(0, whole);
                len
            }
        };
        let layout = Lzma { coded: self, len };
        Decoded::volume_with("lzma", Arc::new(layout), stored, cx)
    }

    /// Decodes all, to know how much it is.
    fn measure(&self, cx: &Cx) -> Result<Stored> {
        let size = self.below.size();
        let mut shelf = Shelf::new("lzma", cx)?;
        let memory = decoder_memory(self.header.dictionary());
        let mut whole = shelf.begin("the image", memory, size)?;
        self.decode(&mut whole, Whole::reached)?;
        whole.reached(size);
        whole.finish()
    }

    /// Decodes all to the end, and checks it.
    fn decode<S: Sink>(&self, sink: &mut S, mut told: impl FnMut(&mut S, u64)) -> Result<()> {
        let mut decoder = StreamDecoder::new();
        let size = self.below.size();
        let mut input = Input::new(&self.below, ByteRange::between(self.start, size));
        let failed = |failure| Error::new(Kind::Limit, "no decoder can be had").caused_by(failure);
        decoder.start(Format::Alone).map_err(failed)?;
        let ending = if let Some(crc32) = self.crc32 {
            let mut checked = Checked::new(sink, self.header.size.unwrap_or(u64::MAX));
            let told = |checked: &mut Checked<'_, S>, at| told(checked.sink(), at);
            let ending = stream::decode(&mut decoder, &self.head, &mut input, &mut checked, told)?;
            ending.check("the image", input.at())?;
            checked.check(crc32)?;
            ending
        } else {
            stream::decode(&mut decoder, &self.head, &mut input, sink, told)?
        };
        ending.check("the image", input.at())?;
        if !input.is_at_end() {
            let at = input.at();
            let garbage = size.saturating_sub(at);
            let what =
                format!("trailing garbage: {garbage} bytes at {at}, after the end of the data");
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(())
    }
}

/// The size of the image, as an earlier opening has found it.
fn kept(below: &Volume, cx: &Cx) -> Option<u64> {
    let bytes = cx.place.as_ref()?.load(KEPT, 16)?;
    let (file, image) = bytes.split_first_chunk::<8>()?;
    let image = u64::from_le_bytes(image.try_into().ok()?);
    let ours = u64::from_le_bytes(*file) == below.size();
    (ours && image <= u64::MAX >> 1).then_some(image)
}

/// An image of known size: one block.
#[derive(Debug)]
struct Lzma {
    coded: Coded,
    len: u64,
}

impl Decode for Lzma {
    fn len(&self, _number: u64) -> u64 {
        self.len
    }

    fn offset(&self, _number: u64) -> u64 {
        0
    }

    fn describe(&self, _number: u64) -> String {
        format!("the image of {} bytes", self.len)
    }

    fn decode(&self, _number: u64, job: &mut Job<'_>) -> Result<()> {
        let below = &self.coded.below;
        below.will_need(ByteRange::between(0, INPUT.min(below.size())));
        if !job.start(decoder_memory(self.coded.header.dictionary()))? {
            return Ok(());
        }
        self.coded.decode(job, |_, _| ())
    }

    fn is_slow(&self) -> bool {
        true
    }
}

impl Layout for Lzma {
    fn below(&self) -> &Volume {
        &self.coded.below
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn count(&self) -> u64 {
        1
    }

    fn find(&self, _offset: u64) -> u64 {
        0
    }

    fn encoded(&self, _number: u64) -> u64 {
        self.coded.below.size()
    }
}
