//! Blocks that decode to nothing but zeroes, told from their codes (RFC 1951, 3.2). Pure.
//!
//! Behind a window of zeroes a match yields zeroes whatever its distance is, so nothing has to be
//! copied to know what a block of matches decodes to: only lengths are summed up. Long runs of zeroes
//! are the same match again and again, the same few bits: as many of them as a register holds are
//! taken at once. That makes 100 GiB of zeroes less than a second, where decoding takes a minute.
//!
//! Nothing is guessed, and nothing is taken that a decoder may refuse: such a block is left to it.

/// Symbols of an alphabet, at most: literals and lengths, with the two of the fixed code that are
/// never used.
const SYMBOLS: usize = 288;
/// Bits of a code, at most.
const LONGEST: usize = 15;
/// The symbol that ends a block.
const END: u16 = 256;
/// The order in which the lengths of the code for code lengths are stored (3.2.7).
const ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
/// Of the symbols from 257 on: the shortest match, and extra bits (3.2.5).
const LENGTHS: [(u64, u32); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// Symbols for distances.
const DISTANCES: u16 = 30;

/// What lies in front of the first block that is something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blank {
    /// Bits of all blocks.
    pub(crate) bits: u64,
    /// Zeroes that they decode to.
    pub(crate) len: u64,
}

/// The whole blocks at the beginning of `bytes`, behind its first `skip` bits (0 to 7), that decode
/// to nothing but zeroes when there is a whole window of zeroes before them. The last block of a
/// stream is none of them. Stops when there are `most` zeroes.
pub(crate) fn blank(bytes: &[u8], skip: u8, most: u64) -> Blank {
    let mut bits = Bits::new(bytes);
    let mut found = Blank::default();
    if bits.take(u32::from(skip)).is_none() {
        return found;
    }
    while found.len < most {
        let Some(len) = block(&mut bits) else {
            break;
        };
        found.len = found.len.saturating_add(len);
        found.bits = bits.used.saturating_sub(u64::from(skip));
    }
    found
}

/// What one block decodes to: so many zeroes, or `None` for anything else.
fn block(bits: &mut Bits<'_>) -> Option<u64> {
    let is_last = bits.take(1)? == 1;
    let kind = bits.take(2)?;
    if is_last {
        return None;
    }
    let (literals, distances) = match kind {
        0 => return empty(bits),
        1 => fixed()?,
        2 => dynamic(bits)?,
        _ => return None,
    };
    let mut len = 0_u64;
    loop {
        bits.fill();
        let (word, valid) = (bits.word, bits.have);
        match literals.decode(bits)? {
            END => return Some(len),
            0 => len = len.saturating_add(1),
            symbol => {
                let number = usize::from(symbol.checked_sub(257)?);
                let (base, extra) = *LENGTHS.get(number)?;
                let one = base.saturating_add(bits.take(extra)?);
                let distance = distances.decode(bits)?;
                if distance >= DISTANCES {
                    return None;
                }
                bits.take(u32::from(distance / 2).saturating_sub(1))?;
                len = len.saturating_add(one);
                let again = bits.repeat(word, valid);
                len = len.saturating_add(one.saturating_mul(again));
            }
        }
    }
}

/// A stored block without bytes, with which some encoders end each piece of their work.
fn empty(bits: &mut Bits<'_>) -> Option<u64> {
    let odd = u32::try_from(bits.used % 8).ok()?;
    bits.take(8_u32.saturating_sub(odd) % 8)?;
    let is_empty = bits.take(16)? == 0 && bits.take(16)? == 0xffff;
    is_empty.then_some(0)
}

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    rest: &'a [u8],
    /// The next `have` bits, the first one lowest; zeroes above.
    word: u64,
    have: u32,
    /// Bits that were taken.
    used: u64,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            word: 0,
            have: 0,
            used: 0,
        }
    }

    /// Sees to it that there are at least 57 bits, or all that are left.
    fn fill(&mut self) {
        while self.have <= 56 {
            let Some((byte, rest)) = self.rest.split_first() else {
                return;
            };
            self.word |= u64::from(*byte).wrapping_shl(self.have);
            self.have = self.have.saturating_add(8);
            self.rest = rest;
        }
    }

    /// The next `count` bits, at most 16, if there are so many.
    fn take(&mut self, count: u32) -> Option<u64> {
        if self.have < count {
            self.fill();
        }
        let value = self.word & low(count);
        self.drop(count)?;
        Some(value)
    }

    /// Goes over `count` bits, less than 64.
    fn drop(&mut self, count: u32) -> Option<()> {
        self.have = self.have.checked_sub(count)?;
        self.word = self.word.wrapping_shr(count);
        self.used = self.used.saturating_add(u64::from(count));
        Some(())
    }

    /// `word` were the next `valid` bits before some of them were taken: goes over as many further
    /// bits as say the same once more, and again. How many times.
    fn repeat(&mut self, word: u64, valid: u32) -> u64 {
        // Where bits were read meanwhile, there were too few to say.
        let Some(period) = valid.checked_sub(self.have).filter(|bits| *bits > 0) else {
            return 0;
        };
        let differ = word ^ word.checked_shr(period).unwrap_or(0);
        let same = differ.trailing_zeros().min(self.have);
        let times = same.checked_div(period).unwrap_or(0);
        match self.drop(times.saturating_mul(period)) {
            Some(()) => u64::from(times),
            None => 0,
        }
    }
}

/// The lowest `count` bits, less than 64.
fn low(count: u32) -> u64 {
    1_u64.wrapping_shl(count).wrapping_sub(1)
}

/// A Huffman code.
struct Code {
    /// Of each length: how many codes.
    counts: [u16; LONGEST + 1],
    /// In the order of their codes.
    symbols: [u16; SYMBOLS],
}

impl Code {
    /// The code with these lengths, zero for symbols that have none. `None` when it is not complete,
    /// other than the code of one symbol with one bit, where `single` allows that.
    fn new(lengths: &[u8], single: bool) -> Option<Self> {
        let mut counts = [0_u16; LONGEST + 1];
        for length in lengths {
            let count = counts.get_mut(usize::from(*length))?;
            *count = count.checked_add(1)?;
        }
        counts[0] = 0;
        let mut left = 1_i32;
        let mut at = [0_usize; LONGEST + 2];
        let mut sum = 0_usize;
        for (length, count) in counts.iter().enumerate().skip(1) {
            left = left.checked_mul(2)?.checked_sub(i32::from(*count))?;
            if left < 0 {
                return None;
            }
            *at.get_mut(length)? = sum;
            sum = sum.checked_add(usize::from(*count))?;
        }
        let is_single = sum == 1 && counts[1] == 1;
        if left > 0 && !(single && is_single) {
            return None;
        }
        let mut symbols = [0; SYMBOLS];
        for (symbol, length) in (0_u16..).zip(lengths) {
            if *length == 0 {
                continue;
            }
            let next = at.get_mut(usize::from(*length))?;
            *symbols.get_mut(*next)? = symbol;
            *next = next.checked_add(1)?;
        }
        Some(Self { counts, symbols })
    }

    /// The next symbol.
    fn decode(&self, bits: &mut Bits<'_>) -> Option<u16> {
        if usize::try_from(bits.have).ok()? < LONGEST {
            bits.fill();
        }
        let mut rest = bits.word;
        let (mut code, mut first, mut index) = (0_u16, 0_u16, 0_u16);
        for (length, count) in (0_u32..).zip(&self.counts).skip(1) {
            code |= u16::from(rest & 1 == 1);
            rest >>= 1;
            // All numbers are below 2^16: a code has at most 15 bits, `first` is at most one more.
            let within = code.wrapping_sub(first);
            if within < *count {
                bits.drop(length)?;
                let index = usize::from(index.wrapping_add(within));
                return self.symbols.get(index).copied();
            }
            index = index.wrapping_add(*count);
            first = first.wrapping_add(*count).wrapping_shl(1);
            code = code.wrapping_shl(1);
        }
        None
    }
}

/// The codes that need not be stored (3.2.6).
fn fixed() -> Option<(Code, Code)> {
    let mut lengths = [8; SYMBOLS];
    lengths.get_mut(144..256)?.fill(9);
    lengths.get_mut(256..280)?.fill(7);
    Some((Code::new(&lengths, false)?, Code::new(&[5; 32], false)?))
}

/// The codes that stand in front of the data of a block (3.2.7).
fn dynamic(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    let literals = usize::try_from(bits.take(5)?).ok()?.checked_add(257)?;
    let distances = usize::try_from(bits.take(5)?).ok()?.checked_add(1)?;
    let count = usize::try_from(bits.take(4)?).ok()?.checked_add(4)?;
    if literals > 286 || distances > usize::from(DISTANCES) {
        return None;
    }
    let mut lengths = [0_u8; 19];
    for place in ORDER.iter().take(count) {
        *lengths.get_mut(*place)? = u8::try_from(bits.take(3)?).ok()?;
    }
    let code = Code::new(&lengths, false)?;
    let all = literals.checked_add(distances)?;
    let mut lengths = Vec::with_capacity(all);
    while lengths.len() < all {
        let (value, times) = match code.decode(bits)? {
            length @ 0..=15 => (u8::try_from(length).ok()?, 1),
            16 => (*lengths.last()?, bits.take(2)?.saturating_add(3)),
            17 => (0, bits.take(3)?.saturating_add(3)),
            _ => (0, bits.take(7)?.saturating_add(11)),
        };
        let times = usize::try_from(times).ok()?;
        if times > all.saturating_sub(lengths.len()) {
            return None;
        }
        lengths.extend(std::iter::repeat_n(value, times));
    }
    let (one, two) = lengths.split_at_checked(literals)?;
    // Without an end a block is none.
    if one.get(usize::from(END)).is_none_or(|length| *length == 0) {
        return None;
    }
    Some((Code::new(one, false)?, Code::new(two, true)?))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;
    use crate::testing::fuzz::deflate_boundaries;
    use crate::testing::{Rng, noise};

    /// Bits and bytes of all blocks so far, after each.
    fn boundaries(bytes: &[u8], skip: u8) -> Vec<Blank> {
        let found = deflate_boundaries(bytes, skip, u64::MAX).into_iter();
        found.map(|(bits, len)| Blank { bits, len }).collect()
    }

    fn deflate(bytes: &[u8], level: i32) -> Vec<u8> {
        let gzip =
            crate::testing::tools::filter("gzip", &["-n", "-c", &format!("-{level}")], bytes);
        gzip[10..gzip.len() - 8].to_vec()
    }

    #[test]
    fn blocks_of_zeroes_end_where_they_end_for_a_decoder() {
        for level in [1, 6, 9] {
            let mut data = deflate(&vec![0; 30 << 20], level);
            if level == 9 {
                // An empty stored block in front.
                data.splice(..0, [0, 0, 0, 0xff, 0xff]);
            }
            let all = boundaries(&data, 0);
            let expected: Vec<_> = all.iter().filter(|one| one.len > 0).collect();
            assert!(expected.len() > 2, "{level}: {}", expected.len());
            let last = *expected[expected.len() - 1];
            assert_eq!(blank(&data, 0, u64::MAX), last, "{level}");
            // Not more than asked for, but for the last block.
            assert_eq!(blank(&data, 0, 1), *expected[0]);
            assert_eq!(blank(&data, 0, expected[0].len + 1), *expected[1]);
            assert_eq!(blank(&data, 0, 0), Blank::default());
            // From a bit within a byte, and cut anywhere.
            let bit = expected[0].bits;
            let (from, skip) = ((bit / 8) as usize, (bit % 8) as u8);
            let found = blank(&data[from..], skip, u64::MAX);
            assert_eq!(found.bits, last.bits - bit);
            assert_eq!(found.len, last.len - expected[0].len);
            let mut rng = Rng::new(1);
            for _ in 0..50 {
                let cut = rng.below(data.len() as u64) as usize;
                let found = blank(&data[..cut], 0, u64::MAX);
                let fits = |one: &&Blank| one.bits <= cut as u64 * 8;
                let expected = all.iter().rfind(fits);
                assert_eq!(found, expected.copied().unwrap_or_default(), "{cut}");
            }
        }
    }

    #[test]
    fn a_byte_that_is_not_zero_ends_it() {
        let mut bytes = vec![0; 30 << 20];
        bytes[25 << 20] = 1;
        let data = deflate(&bytes, 6);
        let expected = boundaries(&data, 0).last().copied().unwrap();
        assert!((10 << 20..=25 << 20).contains(&expected.len));
        assert_eq!(blank(&data, 0, u64::MAX), expected);
        assert_eq!(blank(&deflate(&noise(1 << 20, 1), 6), 0, u64::MAX).len, 0);
        assert_eq!(blank(&[], 0, u64::MAX), Blank::default());
        assert_eq!(blank(&[], 7, u64::MAX), Blank::default());
    }

    #[test]
    fn short_blocks_fixed_and_dynamic_ones() {
        // Three zeroes, a match of all lengths and distances there are, in a fixed block.
        let mut writer = Writer::default();
        writer.fixed_block(&[(257, 0, 0), (284, 31, 29), (285, 0, 3), (265, 1, 0)]);
        writer.fixed_block(&[]);
        writer.put(1, 1);
        let found = blank(&writer.bytes, 0, u64::MAX);
        assert_eq!(found.len, 3 + 258 + 258 + 12);
        assert_eq!(Some(&found), boundaries(&writer.bytes, 0).last());
        // Symbols that have no meaning.
        for symbols in [(286, 0, 0), (287, 0, 0), (257, 0, 30), (257, 0, 31)] {
            let mut writer = Writer::default();
            writer.fixed_block(&[symbols]);
            writer.put(0, 64);
            assert_eq!(blank(&writer.bytes, 0, u64::MAX), Blank::default());
        }
    }

    /// Whatever is in it: no more than what zlib takes as well.
    #[test]
    fn flipped_bits_never_make_more_of_it_than_a_decoder() {
        let data = deflate(&vec![0; 10 << 20], 9);
        let mut rng = Rng::new(7);
        let mut changed = 0;
        for round in 0..300 {
            let mut bad = data[..data.len().min(9000)].to_vec();
            // Most of them in the codes, which stand at the beginning of a block.
            let most = if round % 2 == 0 {
                200
            } else {
                bad.len() as u64 * 8
            };
            let bit = rng.below(most) as usize;
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = blank(&bad, 0, u64::MAX);
            if found.len > 0 {
                assert!(boundaries(&bad, 0).contains(&found), "bit {bit}: {found:?}");
                changed += 1;
            }
        }
        assert!(changed > 0);
    }

    #[derive(Default)]
    struct Writer {
        bytes: Vec<u8>,
        used: usize,
    }

    impl Writer {
        fn put(&mut self, value: u64, count: usize) {
            for bit in 0..count {
                if self.used.is_multiple_of(8) {
                    self.bytes.push(0);
                }
                let one = (value.checked_shr(bit as u32).unwrap_or(0) & 1) as u8;
                *self.bytes.last_mut().unwrap() |= one << (self.used % 8);
                self.used += 1;
            }
        }

        fn code(&mut self, code: u64, count: usize) {
            for bit in (0..count).rev() {
                self.put(code >> bit & 1, 1);
            }
        }

        fn literal(&mut self, symbol: u64) {
            match symbol {
                256..=279 => self.code(symbol - 256, 7),
                _ => self.code(0xc0 + symbol - 280, 8),
            }
        }

        /// Matches: symbol, extra bits, symbol of the distance.
        fn fixed_block(&mut self, matches: &[(u64, u64, u64)]) {
            self.put(0, 1);
            self.put(1, 2);
            for (symbol, extra, distance) in matches {
                self.literal(*symbol);
                let bits = LENGTHS.get(*symbol as usize - 257).map_or(0, |one| one.1);
                self.put(*extra, bits as usize);
                self.code(*distance, 5);
                self.put(0, (*distance as usize / 2).saturating_sub(1));
            }
            self.literal(256);
        }
    }
}
