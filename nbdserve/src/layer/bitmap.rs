//! Bitmaps of sectors, of which each bit says whether a sector is there.

/// Which bit of a byte is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    Highest,
    Lowest,
}

/// What the bit `number` of `bits` says, and how many from there on say the same; at least one.
pub(super) fn alike(bits: &[u8], number: usize, first: First) -> (bool, u64) {
    let here = bit(bits, number, first).unwrap_or(false);
    let whole = if here { 0xff } else { 0 };
    let mut next = number.saturating_add(1);
    loop {
        if next & 7 == 0 && bits.get(next >> 3) == Some(&whole) {
            next = next.saturating_add(8);
        } else if bit(bits, next, first) == Some(here) {
            next = next.saturating_add(1);
        } else {
            break;
        }
    }
    let count = u64::try_from(next.saturating_sub(number)).unwrap_or(1);
    (here, count)
}

fn bit(bits: &[u8], number: usize, first: First) -> Option<bool> {
    let byte = *bits.get(number >> 3)?;
    let within = u32::try_from(number & 7).ok()?;
    let shift = match first {
        First::Highest => 7_u32.saturating_sub(within),
        First::Lowest => within,
    };
    Some(byte.checked_shr(shift)? & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_from_either_end_of_a_byte() {
        let highest = [0b1110_0000_u8, 0xff, 0, 0b0000_0001];
        let lowest = highest.map(u8::reverse_bits);
        for (number, here, count) in [
            (0, true, 3),
            (2, true, 1),
            (3, false, 5),
            (8, true, 8),
            (10, true, 6),
            (16, false, 15),
            (31, true, 1),
        ] {
            let found = alike(&highest, number, First::Highest);
            assert_eq!(found, (here, count), "{number}");
            let found = alike(&lowest, number, First::Lowest);
            assert_eq!(found, (here, count), "{number}");
        }
    }
}
