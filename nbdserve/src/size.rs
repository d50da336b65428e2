//! Sizes as people write and read them.

use crate::{Error, Kind, Result};

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Reads `4096`, `0x1000`, `512K`, `1M`, `1MiB`, `20GB`: suffixes are powers of 1024, in either
/// case. (`GB` too: who types it means what the tools around disks mean by `G`.)
///
/// # Errors
/// `OutOfRange` when it is no number, or exceeds `u64`.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || {
        let text = crate::error::quote(text);
        Error::new(Kind::OutOfRange, format!("{text} is not a number of bytes"))
            .hint("write 1048576, 0x100000, 1024K or 1M")
    };
    if let Some(digits) = text.strip_prefix("0x") {
        // from_str_radix takes a sign.
        if digits.starts_with('+') {
            return Err(wrong());
        }
        return u64::from_str_radix(digits, 16).map_err(|_| wrong());
    }
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let suffix = suffix.to_ascii_uppercase();
    let mut rest = suffix.chars();
    let shift = match rest.next() {
        None => 0,
        Some('B') if rest.as_str().is_empty() => 0,
        Some(unit) => {
            let (_, shift) = *UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(wrong)?;
            if !matches!(rest.as_str(), "" | "B" | "IB") {
                return Err(wrong());
            }
            shift
        }
    };
    1_u64
        .checked_shl(shift)
        .and_then(|unit| number.checked_mul(unit))
        .ok_or_else(wrong)
}

/// `512 B`, `1.5 MiB`, `2 GiB`: at most one decimal, rounded down, for people.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    for (unit, shift) in UNITS.iter().rev() {
        let one = 1_u64 << shift;
        if bytes >= one {
            let whole = bytes / one;
            let tenth = u128::from(bytes % one) * 10 / u128::from(one);
            return match tenth {
                0 => format!("{whole} {unit}iB"),
                _ => format!("{whole}.{tenth} {unit}iB"),
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_suffixes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512b", 512),
            ("1k", 1024),
            ("1M", 1 << 20),
            ("1MiB", 1 << 20),
            ("20GB", 20 << 30),
            ("16P", 16 << 50),
            ("0x100000", 1 << 20),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5M",
            "1X",
            "1Mi",
            "1MB2",
            " 1",
            "1 ",
            "0x",
            "0x+1",
            "1KK",
            "18446744073709551616",
            "16384P",
            "99999999999G",
        ] {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error.kind(), Kind::OutOfRange, "{text}");
        }
    }

    #[test]
    fn sizes_are_written_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (20 << 30, "20 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }
}
