//! Decoding of compressed clusters.

use std::sync::Arc;

use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::entry::Compressed;
use super::header::{Compression, corrupt};
use super::tables::Tables;
use crate::cache::{Decode, Job};
use crate::layer::scan::{narrow, wide};
use crate::sys::zlib::{Failure, Inflate, Stop};
use crate::{Error, Kind, Result};

/// Longest window of a zstd frame, as a power of two: no cluster is longer by far.
const WINDOW_LOG_MOST: u32 = 23;
/// Memory of a zstd decoder beside its window, which has about the length of a cluster.
const ZSTD_MEMORY: u64 = 512 << 10;

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

    fn gone(&self, number: u64) -> Error {
        let what = format!("{} is no longer there", self.describe(number));
        Error::new(Kind::Io, what)
    }

    /// Memory of a decoder, with its input.
    fn memory(&self, data: Compressed) -> u64 {
        let cluster = self.tables.shape().cluster_size();
        let decoder = match self.compression {
            Compression::Zlib => Inflate::MEMORY,
            Compression::Zstd => ZSTD_MEMORY.saturating_add(cluster),
        };
        decoder.saturating_add(data.len)
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
                    .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MOST))
                    .map_err(zstd_error)?;
                Ok(Self::Zstd(context))
            }
        }
    }

    /// Goes to the beginning of a cluster.
    fn reset(&mut self) -> Result<()> {
        match self {
            Self::Zlib(inflate) => inflate.reset().map_err(not_deflate),
            Self::Zstd(context) => {
                let reset = context.reset(ResetDirective::SessionOnly);
                reset.map(|_| ()).map_err(zstd_error)
            }
        }
    }

    /// Decodes some of `input`, which may go on behind the data, into `out`: how much was read and
    /// written. Nothing of both when there is no more.
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize)> {
        match self {
            Self::Zlib(inflate) => {
                let step = inflate.step(input, out, Stop::Never);
                step.place.map_err(not_deflate)?;
                Ok((step.read, step.written))
            }
            Self::Zstd(context) => {
                let mut input = InBuffer::around(input);
                let mut output = OutBuffer::around(out);
                context
                    .decompress_stream(&mut output, &mut input)
                    .map_err(zstd_error)?;
                Ok((input.pos(), output.pos()))
            }
        }
    }

    /// Decodes a cluster of `len` bytes into `job`.
    fn decode(&mut self, input: &[u8], len: u64, job: &mut Job<'_>) -> Result<()> {
        self.reset()?;
        let mut rest = input;
        let mut done = 0_u64;
        while done < len {
            let room = job.spare()?;
            let (read, written) = self.step(rest, room)?;
            if (read, written) == (0, 0) {
                let what = format!("{done} bytes come out of it, {len} were to");
                return Err(corrupt(what));
            }
            rest = rest.get(read..).unwrap_or(&[]);
            job.advance(written)?;
            done = done.saturating_add(wide(written));
        }
        Ok(())
    }
}

fn not_deflate(failure: Failure) -> Error {
    corrupt("it is no deflate data".to_owned()).caused_by(failure)
}

fn zstd_error(code: usize) -> Error {
    let name = zstd_safe::get_error_name(code);
    corrupt(format!("it is no zstd frame: {name}"))
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
            return Err(self.gone(number));
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
        let spare = job.take_spare_decoder::<Decoder>();
        let mut decoder = match spare {
            Some(decoder) => decoder,
            None => Box::new(Decoder::new(self.compression)?),
        };
        let result = decoder.decode(&input, self.len(number), job);
        if result.is_err() && self.tables.compressed(number)? != Some(data) {
            // Its place had other data already.
            return Err(self.gone(number));
        }
        result.map_err(|error| match error.kind() {
            Kind::Corrupt => {
                let what = self.describe(number);
                let name = self.compression.name();
                let (at, len) = (data.at, data.len);
                let what = format!("{what} ({name}, {len} bytes at {at}) cannot be decoded");
                Error::new(Kind::Corrupt, what).caused_by(error)
            }
            _ => error,
        })?;
        job.leave_decoder(decoder);
        Ok(())
    }
}
