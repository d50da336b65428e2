//! Which block lies where, as the pass over the file has found it.

use super::header::{BLOCK_MOST, combine};
use super::wrapped::decoder_memory;
use crate::{ByteRange, Error, Kind, Result};

/// Blocks of a stream are taken together until they have this many decoded bytes: small ones are
/// not worth the bookkeeping, those of `bzip2 -9` are.
const GROUP: u64 = 800_000;
/// They also stay below this many encoded bytes, as long as they are more than one.
const GROUP_ENCODED: u64 = 4 << 20;
/// Memory for a group, in bytes, with room for the vector to grow.
const GROUP_MEMORY: u64 = 96;
/// Bytes of a kept index before its groups, and of each of those.
const HEAD: usize = 16;
const ENTRY: usize = 25;
/// Beside the level of a kept group: its bytes are zero.
const ZERO: u8 = 0x80;

/// Consecutive blocks of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Where their decoded bytes begin in the image.
    pub(super) start: u64,
    /// Decoded bytes.
    pub(super) len: u64,
    /// The bit of the file at which the first one begins.
    pub(super) at: u64,
    /// Bits in the file.
    pub(super) bits: u64,
    /// The check of a stream that has no other blocks.
    pub(super) crc: u32,
    /// The level of their stream.
    pub(super) level: u8,
    /// All decoded bytes are zero.
    pub(super) zero: bool,
}

impl Group {
    /// Their decoded bytes.
    pub(super) fn decoded(&self) -> ByteRange {
        ByteRange::between(self.start, self.start.saturating_add(self.len))
    }

    /// The bit behind the last block.
    pub(super) fn end(&self) -> u64 {
        self.at.saturating_add(self.bits)
    }

    /// Bytes of the file that hold them.
    pub(super) fn encoded(&self) -> u64 {
        self.bits.div_ceil(8)
    }

    fn len_end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// All blocks with decoded bytes, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    groups: Vec<Group>,
}

impl Index {
    /// Decoded bytes.
    pub(super) fn size(&self) -> u64 {
        self.groups.last().map_or(0, Group::len_end)
    }

    pub(super) fn count(&self) -> usize {
        self.groups.len()
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn group(&self, number: usize) -> Option<&Group> {
        self.groups.get(number)
    }

    /// The group that holds the decoded byte at `offset`.
    pub(super) fn find(&self, offset: u64) -> usize {
        self.groups
            .partition_point(|group| group.start <= offset)
            .saturating_sub(1)
    }

    /// The index as bytes, for a file of `file_size` bytes.
    pub(super) fn to_bytes(&self, file_size: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(file_size.to_le_bytes());
        bytes.extend(u64::try_from(self.groups.len()).unwrap_or(0).to_le_bytes());
        for group in &self.groups {
            bytes.extend(group.at.to_le_bytes());
            // Both are bounded by the size of a group.
            bytes.extend(u32::try_from(group.bits).unwrap_or(0).to_le_bytes());
            bytes.extend(group.len.to_le_bytes());
            bytes.extend(group.crc.to_le_bytes());
            bytes.push(group.level | if group.zero { ZERO } else { 0 });
        }
        bytes
    }

    /// Reads [`Self::to_bytes`]; `None` when that cannot be the index of a file of this size.
    pub(super) fn from_bytes(bytes: &[u8], file_size: u64) -> Option<Self> {
        let (head, entries) = bytes.split_first_chunk::<HEAD>()?;
        let (size, count) = head.split_first_chunk::<8>()?;
        let count = usize::try_from(u64::from_le_bytes(count.try_into().ok()?)).ok()?;
        if u64::from_le_bytes(*size) != file_size || count.checked_mul(ENTRY)? != entries.len() {
            return None;
        }
        let mut groups = Vec::with_capacity(count);
        let (mut start, mut end) = (0_u64, 0_u64);
        for entry in entries.as_chunks::<ENTRY>().0 {
            let group = group(entry, start)?;
            let most = GROUP_ENCODED.saturating_add(BLOCK_MOST).saturating_mul(8);
            let sane = group.at >= end
                && group.end() <= file_size.saturating_mul(8)
                && (1..=most).contains(&group.bits)
                && group.len > 0
                && (1..=9).contains(&group.level);
            if !sane {
                return None;
            }
            end = group.end();
            start = start.checked_add(group.len)?;
            groups.push(group);
        }
        (start <= u64::MAX >> 1).then_some(Self { groups })
    }

    /// The longest [`Self::to_bytes`] of an index that takes `memory` bytes.
    pub(super) fn most_bytes(memory: u64) -> u64 {
        let entries = memory / GROUP_MEMORY;
        let entry = u64::try_from(ENTRY).unwrap_or(0);
        let head = u64::try_from(HEAD).unwrap_or(0);
        entries.saturating_mul(entry).saturating_add(head)
    }
}

/// An entry of a kept index, of which the decoded bytes begin at `start`.
fn group(entry: &[u8; ENTRY], start: u64) -> Option<Group> {
    let (at, rest) = entry.split_first_chunk::<8>()?;
    let (bits, rest) = rest.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    Some(Group {
        start,
        len: u64::from_le_bytes(*len),
        at: u64::from_le_bytes(*at),
        bits: u64::from(u32::from_le_bytes(*bits)),
        crc: u32::from_le_bytes(*crc),
        level: rest.first()? & !ZERO,
        zero: rest.first()? & ZERO != 0,
    })
}

/// A block as the pass has decoded it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// The bits at which it begins and behind which it ends.
    pub(super) at: u64,
    pub(super) end: u64,
    /// Its decoded bytes.
    pub(super) len: u64,
    pub(super) crc: u32,
    /// The level of its stream.
    pub(super) level: u8,
    /// All decoded bytes are zero.
    pub(super) zero: bool,
}

/// Puts an index together.
#[derive(Debug)]
pub(super) struct Builder {
    groups: Vec<Group>,
    most: u64,
}

impl Builder {
    /// For an index that takes at most `memory` bytes.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            groups: Vec::new(),
            most: memory / GROUP_MEMORY,
        }
    }

    /// The next block of the file.
    ///
    /// # Errors
    /// `Limit` when they are too many.
    pub(super) fn push(&mut self, block: Block) -> Result<()> {
        let bits = block.end.saturating_sub(block.at);
        let start = self.groups.last().map_or(0, Group::len_end);
        if let Some(last) = self.groups.last_mut() {
            let all = last.bits.saturating_add(bits);
            // Blocks of other streams have a stream's end and header before them.
            if last.end() == block.at && last.len < GROUP && all <= GROUP_ENCODED.saturating_mul(8)
            {
                last.bits = all;
                last.len = last.len.saturating_add(block.len);
                last.crc = combine(last.crc, block.crc);
                last.zero &= block.zero;
                return Ok(());
            }
        }
        let count = u64::try_from(self.groups.len()).unwrap_or(u64::MAX);
        if count >= self.most {
            let what = format!("more than {count} streams and blocks: too many for the index");
            return Err(Error::new(Kind::Limit, what).hint("give more with --cache-size=SIZE"));
        }
        self.groups.push(Group {
            start,
            len: block.len,
            at: block.at,
            bits,
            crc: combine(0, block.crc),
            level: block.level,
            zero: block.zero,
        });
        Ok(())
    }

    pub(super) fn finish(mut self) -> Index {
        self.groups.shrink_to_fit();
        Index {
            groups: self.groups,
        }
    }
}

impl Group {
    /// The memory that decoding them takes beside their bytes.
    pub(super) fn decoder_memory(&self) -> u64 {
        decoder_memory(self.level).saturating_add(self.encoded())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(at: u64, end: u64, len: u64) -> Block {
        Block {
            at,
            end,
            len,
            crc: 0x8000_0001,
            level: 9,
            zero: false,
        }
    }

    fn index() -> Index {
        let mut builder = Builder::new(1 << 20);
        for (at, end, len) in [
            (32, 1000, 500_000),
            (1000, 2001, 500_000),
            (2001, 3000, 10),
            // Another stream.
            (4000, 5000, 7),
        ] {
            builder.push(block(at, end, len)).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn small_blocks_of_a_stream_are_taken_together() {
        let index = index();
        let facts: Vec<_> = index
            .groups
            .iter()
            .map(|g| (g.start, g.len, g.at))
            .collect();
        assert_eq!(
            facts,
            [
                (0, 1_000_000, 32),
                (1_000_000, 10, 2001),
                (1_000_010, 7, 4000)
            ]
        );
        assert_eq!(index.groups[0].crc, 0x8000_0001 ^ 0x0000_0003);
        assert_eq!(index.size(), 1_000_017);
        let found = [0, 999_999, 1_000_000, 1_000_016].map(|offset| index.find(offset));
        assert_eq!(found, [0, 0, 1, 2]);
    }

    #[test]
    fn an_index_is_kept_and_a_damaged_one_is_refused() {
        let index = index();
        let bytes = index.to_bytes(700);
        assert_eq!(Index::from_bytes(&bytes, 700).as_ref(), Some(&index));
        assert_eq!(Index::from_bytes(&bytes, 701), None);
        for len in 0..bytes.len() {
            assert_eq!(Index::from_bytes(&bytes[..len], 700), None, "{len}");
        }
        // Each field at its extremes: no panic, and nothing that leaves the file.
        for at in HEAD..bytes.len() {
            for width in [1, 4, 8] {
                for byte in [0, 0x7f, 0xff] {
                    let mut bad = bytes.clone();
                    let end = bad.len().min(at + width);
                    bad[at..end].fill(byte);
                    let Some(index) = Index::from_bytes(&bad, 700) else {
                        continue;
                    };
                    assert!(index.groups.iter().all(|g| g.end() <= 5600 && g.len > 0));
                }
            }
        }
    }

    #[test]
    fn an_index_is_bounded() {
        let mut builder = Builder::new(GROUP_MEMORY * 2);
        builder.push(block(32, 100, 5)).unwrap();
        builder.push(block(200, 300, 5)).unwrap();
        builder.push(block(300, 400, 5)).unwrap();
        let error = builder.push(block(500, 600, 5)).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit);
    }
}
