//! The CRC-32 of GPT (UEFI 2.10, 5.3.2: that of ISO 3309 and Ethernet).

/// The reversed polynomial.
const POLYNOMIAL: u32 = 0xedb8_8320;

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

/// The CRC-32 of `bytes`.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, &byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ TABLE[index_of(low ^ byte)]
    });
    !crc
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(super::crc32(b""), 0);
    }
}
