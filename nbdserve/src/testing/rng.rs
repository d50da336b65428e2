//! Repeatable random numbers.

/// The generator "splitmix64" of Steele, Lea and Flood (OOPSLA 2014): the same sequence for the
/// same seed, on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence that depends on `seed` only.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 when `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64().checked_rem(limit).unwrap_or(0)
    }

    /// A range within `size` bytes, of at most `max_len` bytes; now and then empty, at the very
    /// start or at the very end.
    pub fn range(&mut self, size: u64, max_len: u64) -> crate::ByteRange {
        let len = self.below(max_len.min(size) + 1);
        let start = match self.below(8) {
            0 => 0,
            1 => size - len,
            _ => self.below(size - len + 1),
        };
        crate::ByteRange::between(start, start + len)
    }
}
