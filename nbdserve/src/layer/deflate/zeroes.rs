//! Checksums of zeroes, without looking at any.

use crc32fast::Hasher;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Zeroes {
    /// Of 1, 2, 4, 8 ... bytes, as many as were needed.
    powers: Vec<Hasher>,
    /// The latest answer. Most spans of zeroes are as long as others.
    latest: Option<(u64, u32)>,
}

impl Zeroes {
    /// The CRC32 of `len` zeroes.
    pub(super) fn crc32(&mut self, len: u64) -> u32 {
        if let Some((_, crc32)) = self.latest.filter(|(known, _)| *known == len) {
            return crc32;
        }
        let mut all = Hasher::new();
        for bit in (0..u64::BITS).take_while(|bit| len >> bit != 0) {
            let power = self.power(bit);
            if len >> bit & 1 == 1 {
                all.combine(&power);
            }
        }
        let crc32 = all.finalize();
        self.latest = Some((len, crc32));
        crc32
    }

    /// Of `2^bit` bytes; asked for in ascending order.
    fn power(&mut self, bit: u32) -> Hasher {
        let known = usize::try_from(bit)
            .ok()
            .and_then(|bit| self.powers.get(bit));
        if let Some(known) = known {
            return known.clone();
        }
        let mut power = match self.powers.last() {
            Some(half) => half.clone(),
            None => {
                let mut one = Hasher::new();
                one.update(&[0]);
                self.powers.push(one.clone());
                return one;
            }
        };
        power.combine(&power.clone());
        self.powers.push(power.clone());
        power
    }
}

#[cfg(test)]
#[allow(clippy::as_conversions)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_zeroes_is_that_of_zeroes() {
        let mut zeroes = Zeroes::default();
        for len in [1, 2, 3, 4, 5, 1000, 65536, 1 << 20, 1_234_567, 1_234_567, 7] {
            let expected = crc32fast::hash(&vec![0; len]);
            assert_eq!(zeroes.crc32(len as u64), expected, "{len}");
        }
    }
}
