//! Entries of refcount blocks: 1 to 64 bits wide, big-endian; those of less than a byte begin at its
//! lowest bit.

/// Widest entries: 2^6 bits.
pub(super) const MAX_ORDER: u32 = 6;

/// How entries of `2^order` bits lie in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Width {
    order: u32,
}

impl Width {
    /// Entries of `2^order` bits; `None` for wider ones than there are.
    pub(super) fn new(order: u32) -> Option<Self> {
        (order <= MAX_ORDER).then_some(Self { order })
    }

    /// Bits of an entry.
    fn bits(self) -> usize {
        match self.order {
            0 => 1,
            1 => 2,
            2 => 4,
            3 => 8,
            4 => 16,
            5 => 32,
            _ => 64,
        }
    }

    /// The largest count.
    pub(super) fn max(self) -> u64 {
        let unused = 64_usize.saturating_sub(self.bits());
        let unused = u32::try_from(unused).unwrap_or(0);
        u64::MAX.checked_shr(unused).unwrap_or(0)
    }

    /// How many entries a block of `bytes` holds.
    pub(super) fn entries(self, bytes: usize) -> usize {
        bytes
            .saturating_mul(8)
            .checked_div(self.bits())
            .unwrap_or(0)
    }

    /// The bytes that entry `index` lies in.
    pub(super) fn bytes_of(self, index: usize) -> std::ops::Range<usize> {
        let first = index.saturating_mul(self.bits());
        let last = first.saturating_add(self.bits()).saturating_sub(1);
        first / 8..(last / 8).saturating_add(1)
    }

    /// Entry `index`; `None` beyond the block.
    pub(super) fn get(self, block: &[u8], index: usize) -> Option<u64> {
        let bytes = block.get(self.bytes_of(index))?;
        if self.order >= 3 {
            let whole = |value: u64, byte: &u8| value.wrapping_shl(8) | u64::from(*byte);
            return Some(bytes.iter().fold(0, whole));
        }
        let byte = u64::from(*bytes.first()?);
        Some(byte.checked_shr(self.shift(index)).unwrap_or(0) & self.max())
    }

    /// Sets entry `index`. `false`, and nothing is changed, beyond the block and when `value` is too
    /// large.
    #[must_use]
    pub(super) fn set(self, block: &mut [u8], index: usize, value: u64) -> bool {
        let shift = self.shift(index);
        let max = self.max();
        let Some(bytes) = block.get_mut(self.bytes_of(index)) else {
            return false;
        };
        if value > max {
            return false;
        }
        if self.order >= 3 {
            for (byte, new) in bytes.iter_mut().rev().zip(value.to_le_bytes()) {
                *byte = new;
            }
            return true;
        }
        let placed = |value: u64| {
            let value = value.checked_shl(shift).unwrap_or(0);
            // Within the byte: the entry is.
            u8::try_from(value).unwrap_or(0)
        };
        for byte in bytes {
            *byte = (*byte & !placed(max)) | placed(value);
        }
        true
    }

    /// Where in its byte an entry of less than 8 bits begins.
    fn shift(self, index: usize) -> u32 {
        let bit = index.saturating_mul(self.bits()) % 8;
        u32::try_from(bit).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_every_width_lie_where_the_format_has_them() {
        let at = |order: u32, index: usize, value: u64| {
            let mut block = vec![0; 32];
            assert!(Width::new(order).unwrap().set(&mut block, index, value));
            let first = block.iter().position(|byte| *byte != 0).unwrap();
            (first, block[first])
        };
        assert_eq!(at(0, 0, 1), (0, 1));
        assert_eq!(at(0, 10, 1), (1, 4));
        assert_eq!(at(1, 5, 3), (1, 0x0c));
        assert_eq!(at(2, 1, 9), (0, 0x90));
        assert_eq!(at(3, 7, 200), (7, 200));
        assert_eq!(at(4, 2, 1), (5, 1));
        assert_eq!(at(5, 1, 1), (7, 1));
        assert_eq!(at(6, 1, 1), (15, 1));
    }

    #[test]
    fn what_was_set_is_read_and_no_neighbour_changes() {
        for order in 0..=MAX_ORDER {
            let width = Width::new(order).unwrap();
            let mut block = vec![0; 64];
            let entries = width.entries(block.len());
            assert_eq!(entries, 512 >> order);
            let mut expected = vec![0; entries];
            for step in 0..3 * entries {
                let index = step * 7 % entries;
                let value = u64::try_from(step)
                    .unwrap()
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    & width.max();
                assert!(width.set(&mut block, index, value));
                expected[index] = value;
                let found = (0..entries).map(|index| width.get(&block, index).unwrap());
                assert!(found.eq(expected.iter().copied()), "order {order}");
            }
        }
    }

    #[test]
    fn nothing_is_set_beyond_the_block_or_the_width() {
        for order in 0..=MAX_ORDER {
            let width = Width::new(order).unwrap();
            let mut block = vec![0xff; 8];
            let entries = width.entries(8);
            assert!(!width.set(&mut block, entries, 0));
            assert!(!width.set(&mut block, usize::MAX, 0));
            assert_eq!(width.get(&block, entries), None);
            if let Some(more) = width.max().checked_add(1) {
                assert!(!width.set(&mut block, 0, more));
            }
            assert_eq!(block, vec![0xff; 8]);
        }
        assert_eq!(Width::new(MAX_ORDER + 1), None);
    }
}
