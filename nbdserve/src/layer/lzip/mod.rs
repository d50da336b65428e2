//! lzip: any number of members, each decoded by itself.
//!
//! The sizes of a member are in its trailer, so the members are found from the end of the file
//! (`index.rs`), without decoding. Small ones are decoded in groups.

mod header;
mod index;

use std::sync::Arc;

use header::HEADER;
use index::{Index, Member};

use super::decoded::{Decoded, Layout};
use super::input::Input;
use super::lzma::stream::{self, decoder_memory};
use super::scan::wide;
use super::{Args, Confidence, INDEX_PART, LayerType, Sample, Verdict};
use crate::cache::{Blocks, Decode, Job};
use crate::sys::lzma::{Format, StreamDecoder};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

/// The layer `lzip`.
pub static LZIP: LayerType = LayerType {
    name: "lzip",
    summary: "lzip compressed data (.lz, several members; also of plzip)",
    params: &[],
    probe,
    open,
};

/// What is kept for later openings, of files with at least [`KEEP`] members: each is a request.
const KEPT: &str = "lzip-index-1";
const KEEP: usize = 16;

fn probe(sample: &Sample<'_>) -> Verdict {
    let Some(rest) = sample.head.strip_prefix(header::MAGIC) else {
        return Verdict::No;
    };
    let magic = "magic 4c 5a 49 50 (LZIP) at 0";
    let evidence = match header::header(sample.head, 0) {
        Ok(dictionary) => format!("{magic}, version 1, dictionary {}", dictionary.size()),
        // Text may begin with these letters.
        Err(_) if rest.first().is_none_or(|version| *version > 1) => return Verdict::No,
        Err(error) => format!("{magic}, but {error}"),
    };
    Verdict::Yes {
        confidence: Confidence::MAGIC,
        evidence,
    }
}

fn open(below: &Volume, _args: &Args, cx: &Cx) -> Result<Volume> {
    let index = match kept(below, cx) {
        Some(index) => index,
        None => {
            let index = Index::read(below, cx.cache.budget() / INDEX_PART, &cx.cancel)?;
            if let Some(place) = cx.place.as_ref().filter(|_| index.members() >= KEEP) {
                place.save(KEPT, &index.to_bytes());
            }
            index
        }
    };
    let layout = LzipMembers {
        below: below.clone(),
        index,
    };
    Blocks::check_decoder_memory(&layout.describe(0), layout.decoder_memory(0), cx)?;
    Decoded::volume("lzip", Arc::new(layout), cx)
}

/// The index that an earlier opening has kept.
fn kept(below: &Volume, cx: &Cx) -> Option<Index> {
    let most = Index::most_bytes(cx.cache.budget() / INDEX_PART);
    let bytes = cx.place.as_ref()?.load(KEPT, most)?;
    Index::from_bytes(&bytes, below.size())
}

/// The members of a .lz file, in groups.
#[derive(Debug)]
struct LzipMembers {
    below: Volume,
    index: Index,
}

impl LzipMembers {
    fn group(&self, number: u64) -> &[Member] {
        usize::try_from(number).map_or(&[], |number| self.index.group(number))
    }

    /// The memory of a decoder for each member of a group.
    fn decoder_memory(&self, number: u64) -> u64 {
        let members = self.group(number).iter();
        let dictionary = members.map(|one| one.dictionary.for_data(one.len).size());
        decoder_memory(dictionary.max().unwrap_or(0))
    }

    fn decode_member(
        &self,
        member: &Member,
        decoder: &mut StreamDecoder,
        job: &mut Job<'_>,
    ) -> Result<()> {
        let name = || format!("the member at {}", member.at);
        let mut input = Input::new(&self.below, member.range());
        input.read(stream::INPUT)?;
        job.beat()?;
        let found = input.bytes().get(..6).unwrap_or(&[]);
        if found != member.dictionary.header() {
            let what = format!("{}: its header is not what it was at opening", name());
            return Err(Error::new(Kind::Corrupt, what));
        }
        input.consume(usize::try_from(HEADER).unwrap_or(0));
        let failed = |failure| Error::new(Kind::Limit, "no decoder can be had").caused_by(failure);
        decoder.start(Format::Lzip).map_err(failed)?;
        let head = member.dictionary.for_data(member.len).header();
        let ending = stream::decode(decoder, &head, &mut input, job, |_, _| ())?;
        ending.check(&name(), input.at())?;
        if !input.is_at_end() {
            let what = format!("{}: it ends at {} already", name(), input.at());
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(())
    }
}

impl Decode for LzipMembers {
    fn len(&self, number: u64) -> u64 {
        // The sum over all members was bounded.
        self.group(number)
            .iter()
            .fold(0, |sum, one| sum.saturating_add(one.len))
    }

    fn offset(&self, number: u64) -> u64 {
        usize::try_from(number).map_or(0, |number| self.index.start(number))
    }

    fn describe(&self, number: u64) -> String {
        let members = self.group(number);
        let at = members.first().map_or(0, |first| first.at);
        let start = self.offset(number);
        let end = start.saturating_add(self.len(number));
        let count = members.len();
        format!("block {number} at {at}, {count} members (bytes {start}..{end} of the image)")
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        if let Some(first) = self.group(number).first() {
            self.below.will_need(first.range());
        }
        if !job.start(self.decoder_memory(number))? {
            return Ok(());
        }
        let mut decoder = job
            .take_spare_decoder()
            .unwrap_or_else(|| Box::new(StreamDecoder::new()));
        for member in self.group(number) {
            self.decode_member(member, &mut decoder, job)?;
        }
        job.leave_decoder(decoder);
        Ok(())
    }

    fn is_slow(&self) -> bool {
        true
    }
}

impl Layout for LzipMembers {
    fn below(&self) -> &Volume {
        &self.below
    }

    fn size(&self) -> u64 {
        self.index.size()
    }

    fn count(&self) -> u64 {
        wide(self.index.count())
    }

    fn find(&self, offset: u64) -> u64 {
        wide(self.index.find(offset))
    }

    fn encoded(&self, number: u64) -> u64 {
        let members = self.group(number).iter();
        members.fold(0, |sum, one| sum.saturating_add(one.size))
    }

    fn twin(&self, number: u64) -> Option<(ByteRange, u64)> {
        // Whole members, which depend on nothing else.
        let (first, last) = match self.group(number) {
            [first, .., last] => (first, last),
            [one] => (one, one),
            [] => return None,
        };
        let range = ByteRange::between(first.range().start(), last.range().end());
        Some((range, 0))
    }

    fn index(&self) -> crate::Index {
        // Each member's trailer says how long it is.
        crate::Index::InImage
    }
}
