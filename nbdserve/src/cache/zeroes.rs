//! Which pieces of a block are zero.

use super::block::PIECE_BYTES;

/// A bit for each piece that is zero; what has none is not.
#[derive(Debug, Default)]
pub(super) struct Zeroes(Vec<u64>);

impl Zeroes {
    /// `bits` has a bit for each piece, the lowest first.
    pub(super) fn of(bits: Vec<u64>) -> Self {
        Self(bits)
    }

    /// The piece at the byte `at` is zero.
    pub(super) fn set(&mut self, at: u64) {
        let index = at / PIECE_BYTES;
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (index % 64);
    }

    /// Whether the piece with the byte `at` is zero.
    pub(super) fn has(&self, at: u64) -> bool {
        self.is_zero(at / PIECE_BYTES)
    }

    /// Whether the piece with the byte `at` is zero, and where the run of its like ends: at `until`,
    /// which is beyond `at`, at the latest.
    pub(super) fn run(&self, at: u64, until: u64) -> (bool, u64) {
        let first = at / PIECE_BYTES;
        let last = until.div_ceil(PIECE_BYTES);
        let zero = self.is_zero(first);
        let end = self.end_of_run(first, last, zero);
        (zero, (end * PIECE_BYTES).min(until))
    }

    /// The 64 pieces that `index` belongs to. What has no bit is not zero.
    fn word(&self, index: u64) -> u64 {
        let word = usize::try_from(index / 64).ok();
        word.and_then(|word| self.0.get(word)).copied().unwrap_or(0)
    }

    fn is_zero(&self, index: u64) -> bool {
        self.word(index) >> (index % 64) & 1 == 1
    }

    /// The first piece from `index` on that is not zero, or is, if `zero` is false; `last` when there is
    /// none before it. An image may have millions of pieces, so 64 are looked at at once.
    fn end_of_run(&self, mut index: u64, last: u64, zero: bool) -> u64 {
        while index < last {
            let word = self.word(index);
            let others = if zero { !word } else { word } >> (index % 64);
            if others != 0 {
                return last.min(index + u64::from(others.trailing_zeros()));
            }
            index = (index / 64 + 1) * 64;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_that_were_set() {
        let mut zeroes = Zeroes::default();
        for index in (0..3).chain(64..130) {
            zeroes.set(index * PIECE_BYTES);
        }
        let end = 200 * PIECE_BYTES;
        for (start, until, zero) in [(0, 3, true), (3, 64, false), (64, 130, true)] {
            let at = start * PIECE_BYTES + 7;
            assert_eq!(zeroes.has(at), zero);
            assert_eq!(zeroes.run(at, end), (zero, until * PIECE_BYTES));
        }
        // Of what lies behind the last bit nothing is zero.
        assert_eq!(zeroes.run(130 * PIECE_BYTES, end - 5), (false, end - 5));
        assert_eq!(
            Zeroes::of(vec![0b100]).run(0, end),
            (false, 2 * PIECE_BYTES)
        );
    }
}
