//! The reference that a volume is compared with.

use crate::{ByteRange, Done, Volume, ZeroOpts};

/// What a volume must read as, byte by byte, after the operations applied to it. Trimmed bytes are
/// undefined until written again.
#[derive(Clone, Debug)]
pub struct Model {
    bytes: Vec<u8>,
    undefined: Vec<bool>,
}

/// One operation on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads and compares.
    Read(ByteRange),
    /// Writes noise made from `seed`.
    Write {
        /// Where.
        range: ByteRange,
        /// The noise.
        seed: u64,
        /// Durable on return.
        fua: bool,
    },
    /// Makes zero.
    Zero {
        /// Where.
        range: ByteRange,
        /// How.
        opts: ZeroOpts,
    },
    /// Makes undefined.
    Trim {
        /// Where.
        range: ByteRange,
        /// Durable on return.
        fua: bool,
    },
    /// Makes durable.
    Flush,
}

impl Op {
    /// An operation within `size` bytes that depends on `seed` only, no longer than `max_len`.
    #[must_use]
    pub fn from_seed(seed: u64, size: u64, max_len: u64) -> Self {
        let mut rng = super::Rng::new(seed);
        let range = rng.range(size, max_len);
        let fua = rng.below(4) == 0;
        match rng.below(16) {
            0..=5 => Self::Read(range),
            6..=11 => Self::Write { range, seed, fua },
            12 | 13 => Self::Zero {
                range,
                opts: ZeroOpts {
                    may_trim: rng.below(2) == 0,
                    fua,
                    fast_only: rng.below(4) == 0,
                },
            },
            14 => Self::Trim { range, fua },
            _ => Self::Flush,
        }
    }
}

impl Model {
    /// A model of a volume with these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            undefined: vec![false; bytes.len()],
            bytes,
        }
    }

    /// The bytes; trimmed ones are what they were before.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Does `op` to the volume and to the model.
    ///
    /// # Panics
    /// When the volume fails, or reads as something that the model does not allow.
    pub fn apply(&mut self, volume: &Volume, op: Op) {
        match op {
            Op::Read(range) => {
                let found = volume
                    .read_vec(range.start(), index(range).len())
                    .unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
                self.compare(&found, range);
            }
            Op::Write { range, seed, fua } => {
                let bytes = super::noise(index(range).len(), seed);
                writer(volume)
                    .write_at(&bytes, range.start(), fua)
                    .unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
                self.write(range.start(), &bytes);
            }
            Op::Zero { range, opts } => {
                let done = writer(volume)
                    .zero(range, opts)
                    .unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
                match done {
                    Done::Yes => self.zero(range),
                    Done::Declined => assert!(opts.fast_only, "{op:?}: declined"),
                }
            }
            Op::Trim { range, fua } => {
                writer(volume)
                    .trim(range, fua)
                    .unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
                self.trim(range);
            }
            Op::Flush => writer(volume)
                .flush()
                .unwrap_or_else(|error| panic!("{op:?}: {error:?}")),
        }
    }

    /// The bytes from `offset` on are now `bytes`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let range = index(ByteRange::between(offset, offset + bytes.len() as u64));
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.undefined[range].fill(false);
    }

    /// The bytes in `range` are now zero.
    pub fn zero(&mut self, range: ByteRange) {
        self.bytes[index(range)].fill(0);
        self.undefined[index(range)].fill(false);
    }

    /// The bytes in `range` are now undefined.
    pub fn trim(&mut self, range: ByteRange) {
        self.undefined[index(range)].fill(true);
    }

    /// Compares what was read from `range`.
    ///
    /// # Panics
    /// When a defined byte differs; says which.
    pub fn compare(&self, found: &[u8], range: ByteRange) {
        assert_eq!(found.len(), index(range).len());
        for (at, &byte) in index(range).zip(found) {
            assert!(
                self.undefined[at] || self.bytes[at] == byte,
                "byte {at} of {range} is {byte:#04x}, must be {:#04x}",
                self.bytes[at]
            );
        }
    }

    /// Compares all of the volume.
    ///
    /// # Panics
    /// When the size or a defined byte differs.
    pub fn compare_all(&self, volume: &Volume) {
        assert_eq!(volume.size(), self.bytes.len() as u64);
        let found = volume
            .read_vec(0, self.bytes.len())
            .unwrap_or_else(|error| panic!("reading everything: {error:?}"));
        self.compare(&found, ByteRange::between(0, volume.size()));
    }
}

/// A range as indices; the model's bytes are in a Vec, so it fits.
fn index(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}

fn writer(volume: &Volume) -> crate::VolumeWriter<'_> {
    volume
        .writer()
        .unwrap_or_else(|| panic!("{volume:?} cannot be written"))
}
