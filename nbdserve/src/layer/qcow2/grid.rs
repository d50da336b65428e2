//! Clusters and offsets.

/// The size of clusters, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    bits: u32,
}

impl Grid {
    /// Clusters of `2^bits` bytes; the header has checked `bits`.
    pub(super) fn new(bits: u32) -> Self {
        Self { bits: bits.min(30) }
    }

    /// Bytes of a cluster.
    pub(super) fn size(self) -> u64 {
        1_u64.checked_shl(self.bits).unwrap_or(1)
    }

    /// The same as an index.
    pub(super) fn bytes(self) -> usize {
        to_usize(self.size())
    }

    /// The cluster that the byte at `offset` lies in.
    pub(super) fn index(self, offset: u64) -> u64 {
        offset.checked_shr(self.bits).unwrap_or(0)
    }

    /// Where cluster `index` begins.
    pub(super) fn offset(self, index: u64) -> u64 {
        index.saturating_mul(self.size())
    }

    /// How far into its cluster the byte at `offset` lies.
    pub(super) fn within(self, offset: u64) -> u64 {
        offset & self.size().saturating_sub(1)
    }

    /// Clusters that `bytes` take.
    pub(super) fn count(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.size())
    }
}

/// A number of bytes of something that is in memory, or shall be.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A length in memory as a number of bytes of a device.
pub(super) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
