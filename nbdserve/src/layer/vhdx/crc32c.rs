//! The CRC-32C (Castagnoli) that the structures of a VHDX are protected by.

/// The reversed polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What each value of a byte does to the checksum.
static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut low = 0;
    // A byte is a table index and at most 255: the loop ends.
    while low < 256_u32 {
        let mut crc = low;
        let mut bit = 0;
        while bit < 8_u32 {
            let lost = crc & 1;
            crc >>= 1;
            if lost == 1 {
                crc ^= POLYNOMIAL;
            }
            bit = bit.wrapping_add(1);
        }
        let [index, ..] = low.to_le_bytes();
        table[index_of(index)] = crc;
        low = low.wrapping_add(1);
    }
    table
}

/// `usize::from` is no const function.
#[expect(clippy::as_conversions, reason = "widening, in a const function")]
const fn index_of(byte: u8) -> usize {
    byte as usize
}

/// A checksum that is computed piece by piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crc32c(u32);

impl Crc32c {
    pub(super) fn new() -> Self {
        Self(u32::MAX)
    }

    pub(super) fn update(self, bytes: &[u8]) -> Self {
        let crc = bytes.iter().fold(self.0, |crc, &byte| {
            let [low, ..] = crc.to_le_bytes();
            (crc >> 8) ^ TABLE[index_of(low ^ byte)]
        });
        Self(crc)
    }

    pub(super) fn value(self) -> u32 {
        !self.0
    }
}

/// The checksum of `bytes`, in which those of the checksum itself, the four from the fifth on, count as
/// zeroes: all structures have it there.
pub(super) fn of_structure(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(bytes.len().min(4));
    let tail = rest.get(4..).unwrap_or(&[]);
    Crc32c::new()
        .update(head)
        .update(&[0; 4])
        .update(tail)
        .value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        let whole = Crc32c::new().update(b"1234").update(b"56789");
        assert_eq!(whole.value(), 0xe306_9283);
        assert_eq!(Crc32c::new().value(), 0);
    }
}
