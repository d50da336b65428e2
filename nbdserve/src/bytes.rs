//! Numbers out of the bytes of an image; `None` when the bytes end before. And whether bytes are
//! zero.

/// The `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    let end = at.checked_add(N)?;
    bytes.get(at..end)?.try_into().ok()
}

/// The `len` bytes at `at`.
pub(crate) fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

/// Whether `magic` stands at `at`.
pub(crate) fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    slice(bytes, at, magic.len()) == Some(magic)
}

/// Two hexadecimal digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What [`hex`] has made of some bytes; `None` for anything else.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes = pairs.iter().map(|[high, low]| {
        let value = digit(*high)? << 4 | digit(*low)?;
        u8::try_from(value).ok()
    });
    bytes
        .collect::<Option<Vec<_>>>()
        .filter(|_| rest.is_empty())
}

/// Unsigned, little-endian, 16 bits.
pub(crate) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Unsigned, little-endian, 32 bits.
pub(crate) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Unsigned, little-endian, 64 bits.
pub(crate) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Unsigned, big-endian, 16 bits.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Unsigned, big-endian, 32 bits.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Unsigned, big-endian, 64 bits.
pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Whether all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Most data differs early; the rest is compared in strides the compiler makes wide.
    const STRIDE: usize = 64;
    let mut strides = bytes.chunks_exact(STRIDE);
    strides.all(|stride| stride.iter().fold(0, |all, byte| all | byte) == 0)
        && bytes[bytes.len() - bytes.len() % STRIDE..]
            .iter()
            .all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_come_back_as_bytes_and_nothing_else_does() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&hex(&all)), Some(all));
        assert_eq!(from_hex(""), Some(Vec::new()));
        for text in ["0", "0g", "abc", "+1", "ä"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }

    #[test]
    fn zero_is_told_from_one_bit_anywhere() {
        for len in [0, 1, 63, 64, 65, 200] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
