//! A safe face of the few zlib calls that decode raw deflate data (RFC 1951).
//!
//! Only the raw decoder is used: what stands around the data (gzip members, zip entries) is read by
//! the layers, in safe code, and so are the checksums.

use std::fmt;

use libz_rs_sys as ffi;

/// Bytes of a window: no match reaches farther back (RFC 1951, 2).
pub(crate) const WINDOW: usize = 32 << 10;

/// Window bits of the largest window; negative for data without header and trailer.
const RAW: i32 = -15;
/// What `data_type` says after a call: bits of the last byte that were not used,
const UNUSED_BITS: i32 = 0x3f;
/// whether the block is the last one of its stream,
const LAST_BLOCK: i32 = 0x40;
/// and whether decoding stopped behind the end of a block.
const BLOCK_END: i32 = 0x80;

/// Why zlib gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The bytes are no deflate data.
    Data,
    /// The system has no memory for the decoder.
    Memory,
    /// A call that zlib thinks is wrong; the return code.
    Misuse(i32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data => f.write_str("zlib: the deflate data is corrupt"),
            Self::Memory => f.write_str("zlib: out of memory"),
            Self::Misuse(code) => write!(f, "zlib: unexpected return code {code}"),
        }
    }
}

impl std::error::Error for Failure {}

fn check(ret: i32) -> Result<(), Failure> {
    match ret {
        ffi::Z_OK => Ok(()),
        ffi::Z_DATA_ERROR => Err(Failure::Data),
        ffi::Z_MEM_ERROR => Err(Failure::Memory),
        other => Err(Failure::Misuse(other)),
    }
}

/// Where a step shall stop, beside the ends of its input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nowhere else.
    Never,
    /// Behind each block that is not the last one of its stream.
    Block,
}

/// Where a step has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Anywhere. When nothing was read nor written, more input or room for output is needed.
    Within,
    /// Behind a block; the next one begins `unused` bits before the end of what was read.
    Boundary {
        /// Bits that were read but not used.
        unused: u8,
    },
    /// Behind the last byte of the stream.
    End,
}

/// What a step of decoding did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes of input that were consumed.
    pub(crate) read: usize,
    /// Bytes of output that were produced.
    pub(crate) written: usize,
    /// Where it stopped, or why this was the last step.
    pub(crate) place: Result<Place, Failure>,
}

/// The Adler-32 of `bytes` (RFC 1950, 8.2), which stands behind a stream with a zlib header.
pub(crate) fn adler32(bytes: &[u8]) -> u32 {
    // SAFETY: pointer and length come from one slice, which zlib only reads.
    let sum = unsafe { ffi::adler32_z(1, bytes.as_ptr(), bytes.len()) };
    // Two sums of 16 bits.
    sum as u32
}

/// A decoder that can be used for one stream after another.
pub(crate) struct Inflate {
    /// In a box: zlib may keep its address.
    strm: Box<ffi::z_stream>,
}

// SAFETY: all state behind the pointers is owned by this value alone, and zlib ties nothing to a
// thread.
unsafe impl Send for Inflate {}

impl Inflate {
    /// Bytes that a decoder takes, rounded up: a window and the tables of Huffman codes.
    pub(crate) const MEMORY: u64 = 64 << 10;

    /// A decoder at the beginning of a stream.
    ///
    /// # Errors
    /// `Memory`.
    pub(crate) fn new() -> Result<Self, Failure> {
        let mut strm = Box::<ffi::z_stream>::default();
        let size = i32::try_from(size_of::<ffi::z_stream>()).unwrap_or(i32::MAX);
        // SAFETY: strm is a valid z_stream of this size without a state; the version is a C string
        // of zlib's own.
        check(unsafe { ffi::inflateInit2_(&raw mut *strm, RAW, ffi::zlibVersion(), size) })?;
        Ok(Self { strm })
    }

    /// Goes to the beginning of a stream.
    ///
    /// # Errors
    /// None that is expected.
    pub(crate) fn reset(&mut self) -> Result<(), Failure> {
        // SAFETY: strm was initialised by `new`.
        check(unsafe { ffi::inflateReset(&raw mut *self.strm) })
    }

    /// Goes to the beginning of a block, behind `window` (at most [`WINDOW`] bytes). The first
    /// `bits` bits (0 to 7) of it are the upper ones of `byte`, the others are the input to come.
    ///
    /// # Errors
    /// `Misuse` for more bits or a longer window.
    pub(crate) fn enter(&mut self, bits: u8, byte: u8, window: &[u8]) -> Result<(), Failure> {
        if bits > 7 || window.len() > WINDOW {
            return Err(Failure::Misuse(ffi::Z_STREAM_ERROR));
        }
        self.reset()?;
        if bits > 0 {
            let value = i32::from(byte >> (8 - bits));
            // SAFETY: strm was initialised by `new`.
            check(unsafe { ffi::inflatePrime(&raw mut *self.strm, i32::from(bits), value) })?;
        }
        if window.is_empty() {
            return Ok(());
        }
        // At most WINDOW.
        let len = window.len() as u32;
        // SAFETY: strm was initialised by `new`; pointer and length come from one slice, which zlib
        // only reads.
        check(unsafe { ffi::inflateSetDictionary(&raw mut *self.strm, window.as_ptr(), len) })
    }

    /// Decodes from `input` to `out`; either may be empty.
    pub(crate) fn step(&mut self, input: &[u8], out: &mut [u8], stop: Stop) -> Step {
        let flush = match stop {
            Stop::Never => ffi::Z_NO_FLUSH,
            Stop::Block => ffi::Z_BLOCK,
        };
        let input = &input[..input.len().min(u32::MAX as usize)];
        let room = out.len().min(u32::MAX as usize);
        self.strm.next_in = input.as_ptr();
        self.strm.avail_in = input.len() as u32;
        self.strm.next_out = out.as_mut_ptr();
        self.strm.avail_out = room as u32;
        // SAFETY: strm was initialised by `new`; the pointers and lengths come from two slices that
        // outlive the call, and zlib writes only avail_out bytes at next_out.
        let ret = unsafe { ffi::inflate(&raw mut *self.strm, flush) };
        let state = self.strm.data_type;
        let place = match ret {
            ffi::Z_STREAM_END => Ok(Place::End),
            // No progress. The end of a block may lie in bits that were read before.
            ffi::Z_OK | ffi::Z_BUF_ERROR => {
                let stopped = stop == Stop::Block && state & BLOCK_END != 0;
                Ok(if stopped && state & LAST_BLOCK == 0 {
                    // At most 63.
                    let unused = (state & UNUSED_BITS) as u8;
                    Place::Boundary { unused }
                } else {
                    Place::Within
                })
            }
            // A stream that demands a dictionary exists with a zlib header only.
            other => Err(check(other).err().unwrap_or(Failure::Data)),
        };
        let step = Step {
            read: input.len() - self.strm.avail_in as usize,
            written: room - self.strm.avail_out as usize,
            place,
        };
        // The slices are gone when this returns; leave no pointers to them.
        self.strm.next_in = std::ptr::null();
        self.strm.avail_in = 0;
        self.strm.next_out = std::ptr::null_mut();
        self.strm.avail_out = 0;
        step
    }

    /// The decoded bytes before the place that was reached, as far as the next ones may refer to
    /// them: copied to the beginning of `window`, and how many.
    ///
    /// # Errors
    /// None that is expected.
    pub(crate) fn window(&self, window: &mut [u8; WINDOW]) -> Result<usize, Failure> {
        let mut len = 0;
        // SAFETY: strm was initialised by `new`; zlib writes at most WINDOW bytes, the size of the
        // largest window, and `len`.
        check(unsafe {
            ffi::inflateGetDictionary(&raw const *self.strm, window.as_mut_ptr(), &raw mut len)
        })?;
        Ok(WINDOW.min(len as usize))
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: strm was initialised by `new`; this frees its memory once.
        unsafe { ffi::inflateEnd(&raw mut *self.strm) };
    }
}

impl fmt::Debug for Inflate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inflate")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "abc" in a stored block, a fixed block that says it once more by a match, and the end.
    const DATA: [u8; 12] = [
        0, 3, 0, 0xfc, 0xff, b'a', b'b', b'c', 0x02, 0x22, 0xc0, 0x00,
    ];

    fn all(inflate: &mut Inflate, mut input: &[u8], stop: Stop) -> (Vec<u8>, Vec<(usize, u8)>) {
        let (mut out, mut boundaries, mut read) = (Vec::new(), Vec::new(), 0);
        loop {
            let mut buf = [0; 2];
            let step = inflate.step(input, &mut buf, stop);
            out.extend(&buf[..step.written]);
            input = &input[step.read..];
            read += step.read;
            match step.place.unwrap() {
                Place::End => return (out, boundaries),
                Place::Boundary { unused } => boundaries.push((read, unused)),
                Place::Within => assert!(step.read + step.written > 0, "stuck"),
            }
        }
    }

    #[test]
    fn a_stream_can_be_entered_at_each_boundary() {
        let mut inflate = Inflate::new().unwrap();
        let (whole, boundaries) = all(&mut inflate, &DATA, Stop::Block);
        assert_eq!(whole, b"abcabc");
        assert_eq!(boundaries.len(), 2, "{boundaries:?}");
        for (read, unused) in boundaries {
            let byte = DATA[read - 1];
            let rest = if read == 8 { &whole[3..] } else { &[][..] };
            inflate.enter(unused, byte, b"abc").unwrap();
            assert_eq!(all(&mut inflate, &DATA[read..], Stop::Never).0, rest);
        }
        inflate.reset().unwrap();
        assert_eq!(all(&mut inflate, &DATA, Stop::Never).0, b"abcabc");
    }

    #[test]
    fn the_check_value_of_adler32() {
        assert_eq!(adler32(b"123456789"), 0x091e_01de);
        assert_eq!(adler32(b""), 1);
    }

    #[test]
    fn the_window_is_what_was_decoded_last() {
        let mut inflate = Inflate::new().unwrap();
        all(&mut inflate, &DATA, Stop::Never);
        let mut window = [0; WINDOW];
        let len = inflate.window(&mut window).unwrap();
        assert_eq!(&window[..len], b"abcabc");
    }

    #[test]
    fn what_is_no_deflate_data_is_said_to_be_so() {
        let mut inflate = Inflate::new().unwrap();
        let step = inflate.step(&[0xff; 16], &mut [0; 16], Stop::Never);
        assert_eq!(step.place, Err(Failure::Data));
        // A match that reaches before the window that was given.
        inflate.enter(0, 0, b"ab").unwrap();
        let step = inflate.step(&DATA[8..], &mut [0; 16], Stop::Never);
        assert_eq!(step.place, Err(Failure::Data));
        assert!(inflate.enter(8, 0, b"").is_err());
        assert!(inflate.enter(0, 0, &[0; WINDOW + 1]).is_err());
    }
}
