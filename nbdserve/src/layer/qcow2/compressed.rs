//! Decoding of compressed clusters.

use std::sync::Arc;

use zstd_safe::{DCtx, InBuffer, OutBuffer};

use super::entry::Compressed;
use super::header::{Compression, corrupt};
use super::tables::Tables;
use crate::cache::{Decode, Job};
use crate::layer::scan::narrow;
use crate::sys::zlib::{Failure, Inflate, Place, Stop};
use crate::{Error, Kind, Result};

/// Longest window of a zstd frame, as a power of two: a frame of a cluster needs no longer one.
const WINDOW_LOG_MOST: u32 = 23;
/// Memory of a zstd decoder beside its window.
const ZSTD_MEMORY: u64 = 256 << 10;

/// The compressed clusters of a disk. Blocks are numbered as clusters are, from the disk's start.
#[derive(Debug)]
pub(super) struct CompressedClusters {
    tables: Arc<Tables>,
    compression: Compression,
}

impl CompressedClusters {
    pub(super) fn new(tables: Arc<Tables>, compression: Compression) -> Self {
        Self {
            tables,
            compression,
        }
    }

    /// Memory of a decoder, with its input.
    fn memory(&self, data: Compressed) -> u64 {
        let cluster = self.tables.shape().cluster_size();
        let decoder = match self.compression {
            Compression::Zlib => Inflate::MEMORY,
            Compression::Zstd => ZSTD_MEMORY.saturating_add(cluster),
        };
        // Input, and all of the output, before it is handed on.
        decoder.saturating_add(data.len).saturating_add(cluster)
    }
}

/// A decoder of either sort.
enum Decoder {
    Zlib(Inflate),
    Zstd(DCtx<'static>),
}

impl Decoder {
    fn new(compression: Compression) -> Result<Self> {
        match compression {
            Compression::Zlib => {
                let inflate = Inflate::new();
                inflate.map(Self::Zlib).map_err(|failure| {
                    Error::new(Kind::Limit, "there is no memory for a decoder").caused_by(failure)
                })
            }
            Compression::Zstd => {
                let no_memory = || Error::new(Kind::Limit, "there is no memory for a decoder");
                let mut context = DCtx::try_create().ok_or_else(no_memory)?;
                context
                    .set_parameter(zstd_safe::DParameter::WindowLogMax(WINDOW_LOG_MOST))
                    .map_err(zstd_error)?;
                Ok(Self::Zstd(context))
            }
        }
    }

    /// Fills `out` from `input`, which may go on behind the data.
    fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<()> {
        match self {
            Self::Zlib(inflate) => inflated(inflate, input, out),
            Self::Zstd(context) => unpacked(context, input, out),
        }
    }
}

fn short(done: usize, wanted: usize) -> Error {
    corrupt(format!("{done} bytes come out of it, {wanted} were to"))
}

fn inflated(inflate: &mut Inflate, input: &[u8], out: &mut [u8]) -> Result<()> {
    let bad = |failure: Failure| corrupt("it is no deflate data".to_owned()).caused_by(failure);
    inflate.reset().map_err(bad)?;
    let (mut read, mut written) = (0_usize, 0_usize);
    let wanted = out.len();
    while written < wanted {
        let rest = input.get(read..).unwrap_or(&[]);
        let room = out.get_mut(written..).unwrap_or(&mut []);
        let step = inflate.step(rest, room, Stop::Never);
        read = read.saturating_add(step.read);
        written = written.saturating_add(step.written);
        match step.place.map_err(bad)? {
            Place::End if written < wanted => return Err(short(written, wanted)),
            Place::Within if step.read == 0 && step.written == 0 => {
                return Err(short(written, wanted));
            }
            _ => {}
        }
    }
    Ok(())
}

fn zstd_error(code: usize) -> Error {
    let name = zstd_safe::get_error_name(code);
    corrupt(format!("it is no zstd frame: {name}"))
}

fn unpacked(context: &mut DCtx<'_>, input: &[u8], out: &mut [u8]) -> Result<()> {
    context
        .reset(zstd_safe::ResetDirective::SessionOnly)
        .map_err(zstd_error)?;
    let wanted = out.len();
    let mut input = InBuffer::around(input);
    let mut output = OutBuffer::around(out);
    while output.pos() < wanted {
        let before = (input.pos(), output.pos());
        let left = context
            .decompress_stream(&mut output, &mut input)
            .map_err(zstd_error)?;
        let stuck = before == (input.pos(), output.pos());
        if output.pos() < wanted && (left == 0 || stuck) {
            return Err(short(output.pos(), wanted));
        }
    }
    Ok(())
}

impl Decode for CompressedClusters {
    fn len(&self, _number: u64) -> u64 {
        self.tables.shape().cluster_size()
    }

    fn offset(&self, number: u64) -> u64 {
        number.saturating_mul(self.len(number))
    }

    fn describe(&self, number: u64) -> String {
        let at = self.offset(number);
        format!("the compressed cluster of the disk's bytes from {at} on")
    }

    fn decode(&self, number: u64, job: &mut Job<'_>) -> Result<()> {
        let Some(data) = self.tables.compressed(number)? else {
            // It was written to since somebody asked: who asks again is told what is there now.
            let what = format!("{} is no longer there", self.describe(number));
            return Err(Error::new(Kind::Io, what));
        };
        if !job.start(self.memory(data))? {
            return Ok(());
        }
        let file = self.tables.file();
        let here = file.size().saturating_sub(data.at).min(data.len);
        let mut input = vec![0; narrow(here)];
        job.beat()?;
        file.read_at(&mut input, data.at)?;
        job.beat()?;
        let spare = job.take_spare_decoder();
        let spare = spare.and_then(|spare| spare.downcast::<Decoder>().ok());
        let mut decoder = match spare {
            Some(decoder) => decoder,
            None => Box::new(Decoder::new(self.compression)?),
        };
        let mut out = vec![0; narrow(self.len(number))];
        decoder.decode(&input, &mut out).map_err(|error| {
            let what = self.describe(number);
            let name = self.compression.name();
            let (at, len) = (data.at, data.len);
            let what = format!("{what} ({name}, {len} bytes at {at}) cannot be decoded");
            Error::new(error.kind(), what).caused_by(error)
        })?;
        job.leave_decoder(decoder);
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            let spare = job.spare()?;
            let len = spare.len().min(rest.len());
            if len == 0 {
                break;
            }
            let (now, later) = rest.split_at(len);
            if let Some(room) = spare.get_mut(..len) {
                room.copy_from_slice(now);
            }
            job.advance(len)?;
            rest = later;
        }
        Ok(())
    }
}
