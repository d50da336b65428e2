//! Decoding of frames in order, for whoever takes the bytes.

use std::fmt;
use std::hash::Hasher;

use twox_hash::XxHash64;
use zstd_safe::zstd_sys::ZSTD_ErrorCode as Code;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::header::{self, HEADER_MOST, Start};
use super::table::Check;
use crate::cache::Sink;
use crate::layer::input::Input;
use crate::layer::scan::wide;
use crate::{Error, Kind, Result};

/// Encoded bytes per request to the volume below.
pub(super) const INPUT: u64 = 1 << 20;
/// Largest window, as a power of two: what libzstd has. The memory is accounted by whoever decodes.
const WINDOW_LOG_MOST: u32 = 31;

/// Of these, so many are decoded before the outcome is handed on.
const STEP: usize = 128 << 10;

/// A context of libzstd, ready for the next frame.
pub(super) struct Decoder {
    context: DCtx<'static>,
    /// It decodes to where all bytes stay, and keeps no window of its own.
    stable: bool,
}

/// What a call of libzstd has come to.
struct Step {
    result: zstd_safe::SafeResult,
    /// Bytes of the input that are done with.
    taken: usize,
    written: usize,
    /// Bytes that had room.
    room: usize,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

/// What is known of the frames before they are decoded.
pub(super) struct Frames<'a> {
    /// What they are called in messages.
    pub(super) name: &'a dyn Fn() -> String,
    /// Memory that was taken for the decoder.
    pub(super) memory: u64,
    /// Decoded bytes of all frames, where that is known. The last of them are not handed on before
    /// the frames have ended as they should.
    pub(super) len: Option<u64>,
    /// What the frames must have, one by one; empty where that is not known.
    pub(super) checks: &'a [Check],
    /// Stop after the first frame, and not at the end of the input.
    pub(super) one: bool,
    /// Called with the place of a second frame, where there should be none: the error.
    pub(super) second: Option<&'a dyn Fn(u64) -> Error>,
}

/// Why and how frames were not what they should be.
enum Fault {
    /// libzstd says so.
    Code(usize),
    /// The input ends within a frame.
    Cut,
    /// There is more than was promised.
    TooLong,
}

impl Decoder {
    /// # Errors
    /// `Limit` when there is no memory.
    pub(super) fn new() -> Result<Self> {
        let no_memory = || Error::new(Kind::Limit, "there is no memory for a decoder");
        let mut context = DCtx::try_create().ok_or_else(no_memory)?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MOST))
            .map_err(|code| {
                let what = format!("libzstd: {}", zstd_safe::get_error_name(code));
                Error::new(Kind::Unsupported, what)
            })?;
        Ok(Self {
            context,
            stable: false,
        })
    }

    /// Bytes that it holds.
    pub(super) fn memory(&self) -> u64 {
        wide(self.context.sizeof())
    }

    /// Decodes frames from `input` into `sink` and returns how many bytes they had. `read` is called
    /// after each request to the volume below. After an error the decoder is of no more use.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Limit` when a frame needs more memory than was taken, and what
    /// `input` and `sink` say.
    pub(super) fn decode<S: Sink>(
        &mut self,
        input: &mut Input<'_>,
        sink: &mut S,
        frames: &Frames<'_>,
        read: &mut dyn FnMut(&mut S, u64) -> Result<()>,
    ) -> Result<u64> {
        self.be_stable(sink.room()?.is_some());
        let mut out = Out {
            sink,
            frames,
            len: 0,
            held: 0,
        };
        let mut checks = frames.checks.iter();
        let mut begun = false;
        loop {
            if input.need(HEADER_MOST, INPUT)? {
                read(out.sink, input.at())?;
            }
            if input.is_at_end() {
                break;
            }
            let check = checks.next();
            match header::start(input.bytes(), input.at())? {
                Start::Skippable { size, .. } => {
                    out.sink.spare()?;
                    if !input.skip(size) {
                        return Err(out.failed(input, &Fault::Cut));
                    }
                    continue;
                }
                Start::Frame(header) => {
                    if let Some(second) = frames.second.filter(|_| begun) {
                        return Err(second(input.at()));
                    }
                    begun = true;
                    let need = header.memory();
                    if need > frames.memory {
                        let what = format!(
                            "{}: the frame at {} needs {need} bytes of memory, more than the {} \
                             that those before it led to expect",
                            (frames.name)(),
                            input.at(),
                            frames.memory
                        );
                        return Err(Error::new(Kind::Limit, what).hint("--layer zstd:walk=yes"));
                    }
                }
            }
            let hash = check.map(|_| XxHash64::with_seed(0));
            self.frame(input, &mut out, hash, check, read)?;
            if frames.one {
                break;
            }
        }
        out.end()
    }

    /// Sets how it decodes, between frames. Where libzstd does not agree, a window does as well.
    fn be_stable(&mut self, stable: bool) {
        let parameter = DParameter::StableOutBuffer(stable);
        self.stable = self.context.set_parameter(parameter).is_ok() && stable;
    }

    /// Decodes the frame that begins here.
    fn frame<S: Sink>(
        &mut self,
        input: &mut Input<'_>,
        out: &mut Out<'_, '_, S>,
        mut hash: Option<XxHash64>,
        check: Option<&Check>,
        read: &mut dyn FnMut(&mut S, u64) -> Result<()>,
    ) -> Result<()> {
        let start = out.len;
        loop {
            if input.need(1, INPUT)? {
                read(out.sink, input.at())?;
            }
            let at_end = input.is_at_end();
            let Step {
                result,
                taken,
                written,
                room,
            } = self.step(input.bytes(), out, hash.as_mut())?;
            input.consume(taken);
            let left = match result {
                Ok(left) => left,
                Err(code) if self.stable && is_kind(code, &[Code::ZSTD_error_dstSize_tooSmall]) => {
                    return Err(out.failed(input, &Fault::TooLong));
                }
                Err(code) => return Err(out.failed(input, &Fault::Code(code))),
            };
            out.take(written)?;
            if left == 0 {
                break;
            }
            if taken == 0 && written == 0 {
                let fault = if at_end || room > 0 {
                    Fault::Cut
                } else {
                    Fault::TooLong
                };
                return Err(out.failed(input, &fault));
            }
        }
        if let (Some(hash), Some(check)) = (hash, check) {
            let len = out.len.saturating_sub(start);
            if len != u64::from(check.len) || hash.finish() & 0xffff_ffff != u64::from(check.sum) {
                let what = format!(
                    "{}: the frame before {} is not what the seek table says",
                    (out.frames.name)(),
                    input.at()
                );
                return Err(Error::new(Kind::Corrupt, what));
            }
        }
        Ok(())
    }

    /// Decodes some of the `input` to where it belongs.
    fn step<S: Sink>(
        &mut self,
        input: &[u8],
        out: &mut Out<'_, '_, S>,
        hash: Option<&mut XxHash64>,
    ) -> Result<Step> {
        if let Some(mut room) = out.sink.room()?.filter(|_| self.stable) {
            let at = room.at().saturating_add(out.held);
            // A part, so that readers need not wait for all.
            let part = input.get(..STEP).unwrap_or(input);
            let mut from = InBuffer::around(part);
            let mut to = OutBuffer::around_pos(&mut room, at);
            let result = self.context.decompress_stream(&mut to, &mut from);
            if let Some(hash) = hash {
                hash.write(to.as_slice().get(at..).unwrap_or_default());
            }
            return Ok(Step {
                result,
                taken: from.pos(),
                written: to.pos().saturating_sub(at),
                room: to.capacity().saturating_sub(to.pos()),
            });
        }
        let held = out.held > 0;
        let spare = out.sink.spare()?;
        let spare = if held { &mut [] } else { spare };
        let room = spare.len();
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around(spare);
        let result = self.context.decompress_stream(&mut to, &mut from);
        if let Some(hash) = hash {
            hash.write(to.as_slice());
        }
        Ok(Step {
            result,
            taken: from.pos(),
            written: to.pos(),
            room,
        })
    }

    /// Makes it ready for the next frame, whatever happened.
    pub(super) fn is_ready(&mut self) -> bool {
        self.context.reset(ResetDirective::SessionOnly).is_ok()
    }
}

/// Where the decoded bytes go.
struct Out<'a, 'b, S> {
    sink: &'a mut S,
    frames: &'a Frames<'b>,
    /// Bytes decoded.
    len: u64,
    /// The last of them, which are in the sink's spare room and were not handed on.
    held: usize,
}

impl<S: Sink> Out<'_, '_, S> {
    /// `len` bytes were decoded.
    fn take(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.len = self.len.saturating_add(wide(len));
        if self.frames.len == Some(self.len) {
            self.held = len;
            return Ok(());
        }
        self.sink.advance(len)
    }

    /// All frames have ended.
    fn end(self) -> Result<u64> {
        if self.held > 0 {
            self.sink.advance(self.held)?;
        }
        Ok(self.len)
    }

    /// Why decoding broke off.
    fn failed(&self, input: &Input<'_>, fault: &Fault) -> Error {
        let name = (self.frames.name)();
        let (out, at) = (self.len, input.at());
        let code = match fault {
            Fault::Cut => {
                let what = format!("{name}: a frame is cut short at {at}");
                return Error::new(Kind::Corrupt, what);
            }
            Fault::TooLong => {
                let what =
                    format!("{name}: more than {out} bytes are there, near {at} in the file");
                return Error::new(Kind::Corrupt, what);
            }
            Fault::Code(code) => *code,
        };
        let is = |kinds: &[Code]| is_kind(code, kinds);
        let kind = if is(&[
            Code::ZSTD_error_frameParameter_unsupported,
            Code::ZSTD_error_frameParameter_windowTooLarge,
            Code::ZSTD_error_version_unsupported,
            Code::ZSTD_error_parameter_unsupported,
        ]) {
            Kind::Unsupported
        } else if is(&[Code::ZSTD_error_memory_allocation]) {
            Kind::Limit
        } else if is(&[Code::ZSTD_error_stage_wrong, Code::ZSTD_error_init_missing]) {
            Kind::Io
        } else {
            Kind::Corrupt
        };
        let what = if is(&[Code::ZSTD_error_checksum_wrong]) {
            format!("{name}: the checksum before {at} does not match")
        } else {
            let reason = zstd_safe::get_error_name(code);
            format!(
                "{name}: cannot be decoded beyond byte {out} of it, near {at} in the file: libzstd says {reason}"
            )
        };
        Error::new(kind, what)
    }
}

fn is_kind(code: usize, kinds: &[Code]) -> bool {
    kinds
        .iter()
        .any(|kind| zstd_safe::is_error_kind(code, *kind))
}
