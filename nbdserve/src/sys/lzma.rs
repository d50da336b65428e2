//! A safe face of the few liblzma calls that decode one .xz Block, one .lzma file or one member of
//! a .lz file.
//!
//! Only single-threaded decoders are used. liblzma's own .xz stream and index decoders are not:
//! which block lies where is read by `layer::xz`, in safe code.

use std::fmt;
use std::ptr;

use liblzma_sys as ffi;

/// The CRC32 of `bytes` continued from `crc` (zero at the start), as in the .xz file format.
pub(crate) fn crc32(bytes: &[u8], crc: u32) -> u32 {
    // SAFETY: the pointer and length come from one slice; liblzma only reads it.
    unsafe { ffi::lzma_crc32(bytes.as_ptr(), bytes.len(), crc) }
}

/// Why liblzma gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The bytes break the format, or a check does not match.
    Data,
    /// A filter, an option or a reserved bit that this liblzma does not know.
    Options,
    /// The system has no memory for the decoder.
    Memory,
    /// A call that liblzma thinks is wrong; the return code.
    Misuse(u32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data => f.write_str("liblzma: the compressed data is corrupt"),
            Self::Options => f.write_str("liblzma: unknown filter or option"),
            Self::Memory => f.write_str("liblzma: out of memory"),
            Self::Misuse(code) => write!(f, "liblzma: unexpected return code {code}"),
        }
    }
}

impl std::error::Error for Failure {}

fn check(ret: ffi::lzma_ret) -> Result<(), Failure> {
    match ret {
        ffi::LZMA_OK => Ok(()),
        ffi::LZMA_DATA_ERROR | ffi::LZMA_FORMAT_ERROR | ffi::LZMA_BUF_ERROR => Err(Failure::Data),
        ffi::LZMA_OPTIONS_ERROR => Err(Failure::Options),
        ffi::LZMA_MEM_ERROR | ffi::LZMA_MEMLIMIT_ERROR => Err(Failure::Memory),
        other => Err(Failure::Misuse(other)),
    }
}

/// A decoded Block Header: sizes and the filter chain.
pub(crate) struct BlockHeader {
    /// `filters` in it is set anew before each call, since this struct may move.
    block: ffi::lzma_block,
    /// The chain, ended by an entry with an unknown id; liblzma owns the options.
    filters: [ffi::lzma_filter; ffi::LZMA_FILTERS_MAX as usize + 1],
}

// SAFETY: the options are plain heap memory of which this struct is the only owner; liblzma ties
// nothing to a thread.
unsafe impl Send for BlockHeader {}

impl BlockHeader {
    /// Longest Block Header, in bytes.
    pub(crate) const MAX: u16 = 1024;

    /// The size of a Block Header that starts with `first`; `None` for zero, which is the start
    /// of an Index instead.
    pub(crate) fn size(first: u8) -> Option<usize> {
        (first != 0).then(|| (usize::from(first) + 1) * 4)
    }

    /// Decodes the header at the start of `bytes`. `check_id` is the Check of the stream (0 to
    /// 15). The sizes, where the header states them, must agree with those of the index:
    /// `unpadded` (header, compressed data and check) and `uncompressed`.
    ///
    /// # Errors
    /// `Data` also when `bytes` is shorter than the header or the sizes disagree.
    pub(crate) fn decode(
        bytes: &[u8],
        check_id: u8,
        unpadded: u64,
        uncompressed: u64,
    ) -> Result<Self, Failure> {
        let size = bytes.first().and_then(|first| Self::size(*first));
        let size = size
            .filter(|size| *size <= bytes.len())
            .ok_or(Failure::Data)?;
        if check_id > 15 {
            return Err(Failure::Options);
        }
        let unused = ffi::lzma_filter {
            id: ffi::LZMA_VLI_UNKNOWN,
            options: ptr::null_mut(),
        };
        // SAFETY: lzma_block is a plain C struct for which all zero bytes are valid: integers,
        // an array and null pointers.
        let block: ffi::lzma_block = unsafe { std::mem::zeroed() };
        let mut header = Self {
            block,
            filters: [unused; ffi::LZMA_FILTERS_MAX as usize + 1],
        };
        header.block.version = 1;
        header.block.check = ffi::lzma_check::from(check_id);
        // At most 1024.
        header.block.header_size = size as u32;
        header.block.filters = header.filters.as_mut_ptr();
        // SAFETY: `bytes` holds header_size bytes; filters has LZMA_FILTERS_MAX + 1 entries.
        check(unsafe {
            ffi::lzma_block_header_decode(&raw mut header.block, ptr::null(), bytes.as_ptr())
        })?;
        // SAFETY: block was filled by the call above; it is only read and written in place.
        check(unsafe { ffi::lzma_block_compressed_size(&raw mut header.block, unpadded) })?;
        let stated = header.block.uncompressed_size;
        if stated != ffi::LZMA_VLI_UNKNOWN && stated != uncompressed {
            return Err(Failure::Data);
        }
        header.block.uncompressed_size = uncompressed;
        Ok(header)
    }

    /// Bytes that a decoder for this chain takes, dictionary included. `None` for a chain that
    /// is not valid.
    pub(crate) fn decoder_memory(&self) -> Option<u64> {
        // SAFETY: the chain is ended by an entry with the id LZMA_VLI_UNKNOWN and its options are
        // those that liblzma decoded.
        let bytes = unsafe { ffi::lzma_raw_decoder_memusage(self.filters.as_ptr()) };
        (bytes != u64::MAX).then_some(bytes)
    }
}

impl Drop for BlockHeader {
    fn drop(&mut self) {
        // SAFETY: the options are from liblzma's own allocator or null, and are freed once:
        // the call sets the entries to unused.
        unsafe { ffi::lzma_filters_free(self.filters.as_mut_ptr(), ptr::null()) };
    }
}

/// What a step of decoding did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes of input that were consumed.
    pub(crate) read: usize,
    /// Bytes of output that were produced.
    pub(crate) written: usize,
    /// Whether the block has ended (sizes, padding and check were right), or why this was the
    /// last step.
    pub(crate) end: Result<bool, Failure>,
}

/// A block decoder that can be used for one block after another; it keeps its dictionary when the
/// next block has one of the same size.
pub(crate) struct BlockDecoder {
    strm: ffi::lzma_stream,
    /// What `strm` refers to while a block is being decoded.
    header: Option<Box<BlockHeader>>,
}

// SAFETY: all state behind the pointers is owned by this value alone, and liblzma ties nothing to
// a thread.
unsafe impl Send for BlockDecoder {}

impl BlockDecoder {
    /// A decoder that takes no memory until [`Self::start`].
    pub(crate) fn new() -> Self {
        // SAFETY: all zero bytes are LZMA_STREAM_INIT.
        let strm = unsafe { std::mem::zeroed() };
        Self { strm, header: None }
    }

    /// Prepares for the block behind `header`. Takes the memory that
    /// [`BlockHeader::decoder_memory`] says.
    ///
    /// # Errors
    /// `Memory`, or `Options` for a chain that cannot be decoded.
    pub(crate) fn start(&mut self, header: BlockHeader) -> Result<(), Failure> {
        let mut header = Box::new(header);
        header.block.filters = header.filters.as_mut_ptr();
        let block = &raw mut header.block;
        // The stream may still refer to the old header: it goes only after the call below has
        // replaced that reference.
        let old = self.header.replace(header);
        // SAFETY: strm is valid since `new`; block lives in a Box in self.header until strm is
        // started anew or ended.
        let result = check(unsafe { ffi::lzma_block_decoder(&raw mut self.strm, block) });
        drop(old);
        result
    }

    /// Decodes from `input` (what follows the Block Header) to `out`. Either may be empty. Fails
    /// with `Data` also when neither consuming nor producing is possible, at the latest in the
    /// second such call.
    pub(crate) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        if self.header.is_none() {
            return Step {
                read: 0,
                written: 0,
                end: Err(Failure::Misuse(ffi::LZMA_PROG_ERROR)),
            };
        }
        code(&mut self.strm, input, out)
    }
}

/// One step of the decoder that `strm` is.
fn code(strm: &mut ffi::lzma_stream, input: &[u8], out: &mut [u8]) -> Step {
    strm.next_in = input.as_ptr();
    strm.avail_in = input.len();
    strm.next_out = out.as_mut_ptr();
    strm.avail_out = out.len();
    // SAFETY: the pointers and lengths come from two slices that outlive the call; liblzma writes
    // only avail_out bytes at next_out. A decoder was started on strm, or it is LZMA_STREAM_INIT,
    // which gives an error.
    let ret = unsafe { ffi::lzma_code(&raw mut *strm, ffi::LZMA_RUN) };
    let step = Step {
        read: input.len() - strm.avail_in,
        written: out.len() - strm.avail_out,
        end: match ret {
            ffi::LZMA_STREAM_END => Ok(true),
            other => check(other).map(|()| false),
        },
    };
    // The slices are gone when the caller returns; leave no pointers to them.
    strm.next_in = ptr::null();
    strm.avail_in = 0;
    strm.next_out = ptr::null_mut();
    strm.avail_out = 0;
    step
}

impl Drop for BlockDecoder {
    fn drop(&mut self) {
        // SAFETY: strm is valid; this frees its memory once. The header is dropped afterwards.
        unsafe { ffi::lzma_end(&raw mut self.strm) };
    }
}

impl fmt::Debug for BlockDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockDecoder")
    }
}

/// What a [`StreamDecoder`] decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A .lzma file, from its header on.
    Alone,
    /// A member of a .lz file, from its header to its trailer, whose values are checked.
    Lzip,
}

/// A decoder of LZMA with a header before it, which can be used again and again; it keeps its
/// dictionary when the next one has the same size.
pub(crate) struct StreamDecoder {
    strm: ffi::lzma_stream,
}

// SAFETY: all state behind the pointers is owned by this value alone, and liblzma ties nothing to
// a thread.
unsafe impl Send for StreamDecoder {}

impl StreamDecoder {
    /// A decoder that takes no memory until it has seen a header.
    pub(crate) fn new() -> Self {
        // SAFETY: all zero bytes are LZMA_STREAM_INIT.
        let strm = unsafe { std::mem::zeroed() };
        Self { strm }
    }

    /// Prepares for a header, which says how much memory is taken: the caller bounds that by
    /// looking at the header first.
    ///
    /// # Errors
    /// `Memory`.
    pub(crate) fn start(&mut self, format: Format) -> Result<(), Failure> {
        let strm = &raw mut self.strm;
        // SAFETY: strm is valid since `new`; the calls start it anew whatever it was before.
        check(unsafe {
            match format {
                Format::Alone => ffi::lzma_alone_decoder(strm, u64::MAX),
                Format::Lzip => ffi::lzma_lzip_decoder(strm, u64::MAX, 0),
            }
        })
    }

    /// Decodes from `input` to `out`, which must not be empty: a .lzma header is not read before
    /// there is room. Fails with `Data` also when neither consuming nor producing is possible, at
    /// the latest in the second such call.
    pub(crate) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        code(&mut self.strm, input, out)
    }
}

impl Drop for StreamDecoder {
    fn drop(&mut self) {
        // SAFETY: strm is valid; this frees its memory once.
        unsafe { ffi::lzma_end(&raw mut self.strm) };
    }
}

impl fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamDecoder")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_is_that_of_the_format_and_can_be_continued() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(b"123456789", 0), 0xcbf4_3926);
        assert_eq!(crc32(b"6789", crc32(b"12345", 0)), 0xcbf4_3926);
    }

    #[test]
    fn a_header_of_zeroes_or_one_cut_short_is_corrupt() {
        for bytes in [&[][..], &[0; 8], &[2, 0, 0x21, 1, 0x16, 0, 0, 0]] {
            let result = BlockHeader::decode(bytes, 4, 100, 100);
            assert_eq!(result.err(), Some(Failure::Data), "{bytes:?}");
        }
    }

    #[test]
    fn a_decoder_that_was_not_started_refuses() {
        let mut out = [0; 8];
        let result = BlockDecoder::new().step(&[0; 8], &mut out);
        assert!(matches!(result.end, Err(Failure::Misuse(_))));
        let result = StreamDecoder::new().step(&[0; 8], &mut out);
        assert!(matches!(result.end, Err(Failure::Misuse(_))));
    }

    #[test]
    fn a_decoder_can_be_used_for_one_stream_after_another() {
        // The smallest files of either format: nothing, with an end marker.
        let alone =
            b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0\x83\xff\xfb\xff\xff\xc0\0\0\0";
        let lzip = b"LZIP\x01\x0c\0\x83\xff\xfb\xff\xff\xc0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x24\0\0\0\0\0\0\0";
        let mut decoder = StreamDecoder::new();
        for _ in 0..2 {
            for (format, file) in [(Format::Alone, &alone[..]), (Format::Lzip, lzip)] {
                decoder.start(format).unwrap();
                let step = decoder.step(file, &mut [0; 8]);
                assert_eq!((step.read, step.written), (file.len(), 0));
                assert_eq!(step.end, Ok(true), "{format:?}");
            }
        }
    }
}
