//! File systems that are watched while they are read.

use super::DEPTH;
use crate::source::Memory;
use crate::testing::Counting;
use crate::{ByteRange, foresight};

/// Lengths of reads: a block, what the kernel reads at once, and one that fits nothing.
const READS: [usize; 3] = [1024, 16 << 10, 5000];
/// What a hint may name for each block of a read, as a multiple of the longest for a folder.
const MOST: u64 = 4 << 20;

/// A file system as it is: its bytes pass unchanged, and the hints are bounded.
pub(super) fn watch(data: &[u8]) {
    let len = data.len().min(usize::try_from(DEPTH).unwrap_or(usize::MAX));
    let data = &data[..len];
    let (source, counts) = Counting::source(Memory::volume(data.to_vec()));
    let volume = foresight::watch(&source, &source);
    for len in READS {
        let mut buf = vec![0; len];
        // From the end on: whoever copies in order is not watched.
        let mut pieces: Vec<_> = data.chunks(len).enumerate().collect();
        pieces.reverse();
        for (number, piece) in pieces {
            counts.reset();
            let buf = &mut buf[..piece.len()];
            let read = volume.read_at(buf, (number * len) as u64);
            assert!(read.is_ok(), "{read:?}");
            assert!(buf == piece, "the bytes at {} differ", number * len);
            check(&counts.hint_sets(), len as u64 / 1024 + 2, volume.size());
        }
    }
}

fn check(sets: &[Vec<ByteRange>], blocks: u64, size: u64) {
    let all = ByteRange::between(0, size);
    let mut bytes = 0;
    for set in sets {
        assert!(!set.is_empty() && set.len() <= 64, "{} ranges", set.len());
        assert!(set.iter().all(|range| all.contains(*range)), "{set:?}");
        bytes += set.iter().map(|range| range.len()).sum::<u64>();
    }
    assert!(bytes <= blocks * MOST, "{bytes} bytes for {blocks} blocks");
}
