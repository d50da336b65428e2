//! Pure parsers of the entries of L1 and L2 tables, and what these tables look like.

use super::header::{FARTHEST, corrupt};
use crate::Result;
use crate::layer::scan::narrow;

/// Set in entries of clusters that nothing else refers to.
pub(super) const COPIED: u64 = 1 << 63;
/// Set in L2 entries of compressed clusters.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Set in L2 entries of clusters that read as zeroes.
pub(super) const ZERO: u64 = 1;
/// The offset in an entry.
pub(super) const OFFSET: u64 = (FARTHEST - 1) & !0x1ff;
/// Subclusters of a cluster, where there are any.
pub(super) const SUBCLUSTERS: u32 = 32;
/// A table is read in pieces of at most so many bytes.
const SLICE_BITS: u32 = 16;

/// What decides how tables are laid out and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of a cluster, as a power of two: 9 to 21.
    pub(super) cluster_bits: u32,
    /// L2 entries have a second word, the bitmap of subclusters.
    pub(super) extended: bool,
    /// Guest clusters are in another file than the tables.
    pub(super) external: bool,
    /// And all of it lies there where the guest sees it.
    pub(super) raw: bool,
    /// [`ZERO`] has a meaning.
    pub(super) zero_flag: bool,
}

impl Shape {
    /// Bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of a subcluster; of a cluster, where there are none.
    pub(super) fn subcluster_size(&self) -> u64 {
        match self.extended {
            true => self.cluster_size() >> 5,
            false => self.cluster_size(),
        }
    }

    /// Bytes of an L2 entry, as a power of two.
    pub(super) fn entry_bits(&self) -> u32 {
        if self.extended { 4 } else { 3 }
    }

    /// Words of an L2 entry.
    pub(super) fn entry_words(&self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// Entries of an L2 table, as a power of two.
    pub(super) fn l2_bits(&self) -> u32 {
        self.cluster_bits.saturating_sub(self.entry_bits())
    }

    /// Bytes of the guest that an L1 entry stands for, as a power of two.
    pub(super) fn l1_span_bits(&self) -> u32 {
        self.cluster_bits.saturating_add(self.l2_bits())
    }

    /// L1 entries for a disk of `size` bytes.
    pub(super) fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.l1_span_bits())
    }

    /// Bytes of a slice of an L2 table, as a power of two.
    pub(super) fn slice_bits(&self) -> u32 {
        self.cluster_bits.min(SLICE_BITS)
    }

    /// The L1 entry for the guest's byte at `offset`.
    pub(super) fn l1_index(&self, offset: u64) -> usize {
        narrow(offset >> self.l1_span_bits())
    }

    /// The L2 entry for the guest's byte at `offset`, in its table.
    pub(super) fn l2_index(&self, offset: u64) -> u64 {
        (offset >> self.cluster_bits) & (1_u64 << self.l2_bits()).saturating_sub(1)
    }

    /// Which slice of its table that entry is in: where it begins in the table, and the number of
    /// the entry in the slice.
    pub(super) fn slice_of(&self, l2_index: u64) -> (u64, usize) {
        let bits = self.slice_bits().saturating_sub(self.entry_bits());
        let number = l2_index >> bits;
        let first = number << bits;
        (
            number << self.slice_bits(),
            narrow(l2_index.saturating_sub(first)),
        )
    }

    /// Where the byte at `offset` lies in its cluster.
    pub(super) fn within(&self, offset: u64) -> u64 {
        offset & self.cluster_size().saturating_sub(1)
    }

    /// The subcluster in which the byte at `within` of a cluster lies.
    pub(super) fn subcluster(&self, within: u64) -> u32 {
        let number = within.checked_div(self.subcluster_size()).unwrap_or(0);
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// The table that an L1 entry points to: its place and whether nothing else refers to it; `None`
    /// where there is none.
    ///
    /// # Errors
    /// `Corrupt` for an offset that is no cluster's, and for reserved bits.
    pub(super) fn l1_entry(&self, entry: u64, index: usize) -> Result<Option<Table>> {
        if entry & OFFSET == 0 && entry & !COPIED == 0 {
            return Ok(None);
        }
        let at = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 || at & self.cluster_size().saturating_sub(1) != 0 {
            let cluster = self.cluster_size();
            let what = format!(
                "L1 entry {index} is {entry:#018x}, which is no cluster of {cluster} bytes"
            );
            return Err(corrupt(what));
        }
        Ok(Some(Table {
            at,
            copied: entry & COPIED != 0,
        }))
    }

    /// What an L2 entry says; `bitmap` is its second word, zero where there is none. `guest` is the
    /// guest's offset that it is for.
    ///
    /// # Errors
    /// `Corrupt` for an offset that is no cluster's, for reserved bits, and for a bitmap that
    /// contradicts itself.
    pub(super) fn l2_entry(&self, entry: u64, bitmap: u64, guest: u64) -> Result<Cluster> {
        let bad = |why: &str| {
            let cluster = guest & !self.cluster_size().saturating_sub(1);
            let bitmap = match self.extended {
                true => format!(", {bitmap:#018x}"),
                false => String::new(),
            };
            corrupt(format!(
                "the L2 entry of the cluster at {cluster} is {entry:#018x}{bitmap}, {why}"
            ))
        };
        if entry & COMPRESSED != 0 {
            if self.external {
                return Err(bad("compressed, which it cannot be in a data file"));
            }
            if entry & COPIED != 0 || bitmap != 0 {
                return Err(bad("compressed, with bits that are reserved then"));
            }
            return Ok(Cluster::Compressed(self.compressed(entry)));
        }
        let zero = entry & ZERO != 0;
        if entry & !(OFFSET | COPIED | ZERO) != 0 {
            return Err(bad("with reserved bits set"));
        }
        if zero && (self.extended || !self.zero_flag) {
            return Err(bad("with a zero flag, which it has not in this image"));
        }
        let at = entry & OFFSET;
        if at & self.cluster_size().saturating_sub(1) != 0 {
            let cluster = self.cluster_size();
            return Err(bad(&format!("which is no cluster of {cluster} bytes")));
        }
        let copied = entry & COPIED != 0;
        // In a data file the first cluster is one like others.
        let host = (at != 0 || self.external && copied).then_some(Host { at, copied });
        if self.extended {
            let [zeroed, allocated] = halves(bitmap);
            if zeroed & allocated != 0 {
                return Err(bad("of which subclusters are allocated and zero"));
            }
            if host.is_none() && allocated != 0 {
                return Err(bad("of which subclusters are allocated nowhere"));
            }
            return Ok(Cluster::Parts(Parts {
                host,
                allocated,
                zeroed,
            }));
        }
        Ok(match (host, zero) {
            (host, true) => Cluster::Zero(host),
            (Some(host), false) => Cluster::Standard(host),
            (None, false) => Cluster::Unallocated,
        })
    }

    /// Where a compressed cluster lies.
    fn compressed(&self, entry: u64) -> Compressed {
        // 54 for clusters of 64 KiB.
        let bits = 70_u32.saturating_sub(self.cluster_bits);
        let at = entry & (1_u64 << bits).saturating_sub(1);
        let sectors = ((entry & !COMPRESSED) >> bits).saturating_add(1);
        // The first sector counts from where the data begins in it.
        let len = (sectors << 9).saturating_sub(at & 0x1ff);
        Compressed { at, len }
    }
}

/// The upper and the lower half.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_be_bytes)
}

/// What a table's words are in the file.
pub(super) fn words(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

/// An L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Where it lies: a multiple of the cluster size, not zero.
    pub(super) at: u64,
    /// Nothing else refers to it.
    pub(super) copied: bool,
}

/// Where a cluster lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// A multiple of the cluster size.
    pub(super) at: u64,
    /// Nothing else refers to it.
    pub(super) copied: bool,
}

/// A compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compressed {
    /// Where its data begins: any byte of the file.
    pub(super) at: u64,
    /// Bytes up to the end of its last sector: the data may end before, and so may the file.
    pub(super) len: u64,
}

/// A cluster whose subclusters have states of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Where it lies.
    pub(super) host: Option<Host>,
    /// A bit each, the first subcluster's the lowest: it lies there.
    pub(super) allocated: u32,
    /// It reads as zeroes.
    pub(super) zeroed: u32,
}

/// What a guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// As in the backing file.
    Unallocated,
    /// Zeroes, whatever its place holds.
    Zero(Option<Host>),
    /// As it is in the file.
    Standard(Host),
    /// Packed.
    Compressed(Compressed),
    /// With subclusters.
    Parts(Parts),
}

/// What a part of a guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// As in the backing file.
    Unallocated,
    /// Zeroes; `allocated`: there is a place for other bytes.
    Zero { allocated: bool },
    /// At this place in the file; counted from the start of the cluster.
    Data(u64),
    /// In the packed cluster.
    Compressed(Compressed),
}

impl Cluster {
    /// What the byte at `within` of the cluster is, and where the part that is like it ends.
    pub(super) fn state(&self, within: u64, shape: &Shape) -> (State, u64) {
        let whole = shape.cluster_size();
        match *self {
            Self::Unallocated => (State::Unallocated, whole),
            Self::Zero(host) => {
                let allocated = host.is_some();
                (State::Zero { allocated }, whole)
            }
            Self::Standard(host) => (State::Data(host.at), whole),
            Self::Compressed(data) => (State::Compressed(data), whole),
            Self::Parts(parts) => parts.state(within, shape),
        }
    }
}

impl Parts {
    /// What a subcluster is.
    fn one(&self, number: u32) -> State {
        let bit = 1_u32.checked_shl(number).unwrap_or(0);
        if self.zeroed & bit != 0 {
            let allocated = self.host.is_some();
            return State::Zero { allocated };
        }
        match self.host {
            Some(host) if self.allocated & bit != 0 => State::Data(host.at),
            _ => State::Unallocated,
        }
    }

    fn state(&self, within: u64, shape: &Shape) -> (State, u64) {
        let first = shape.subcluster(within);
        let state = self.one(first);
        let next = (first.saturating_add(1)..SUBCLUSTERS)
            .find(|number| self.one(*number) != state)
            .unwrap_or(SUBCLUSTERS);
        (
            state,
            u64::from(next).saturating_mul(shape.subcluster_size()),
        )
    }
}
/// What words are in the file.
pub(super) fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
