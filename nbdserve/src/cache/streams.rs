//! Which reads follow each other. Several streams are told apart: file data that is read in order
//! is interleaved with metadata elsewhere, and more than one file may be read at once.

use crate::ByteRange;

/// Streams that are told apart at once.
const STREAMS: usize = 16;
/// Reads of one stream may come this far out of order: the kernel's read-ahead and parallel
/// requests overtake each other.
const DISORDER: u64 = 1 << 20;
/// A stream is sequential after this many bytes, if it took at least two reads.
const ENOUGH: u64 = 512 << 10;

/// The streams seen lately.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Bytes read in order.
    bytes: u64,
    reads: u64,
    used: u64,
}

impl Streams {
    /// Notes a read; how many bytes its stream was sequential for, zero when that is not enough to
    /// expect more. Where blocks have `block` bytes, a run over two small ones is enough.
    pub(super) fn note(&mut self, range: ByteRange, block: u64) -> u64 {
        self.clock += 1;
        let clock = self.clock;
        let near = |stream: &&mut Stream| {
            range.start() <= stream.next.saturating_add(DISORDER)
                && range.end().saturating_add(DISORDER) > stream.next
        };
        let found = self
            .slots
            .iter_mut()
            .filter(near)
            .min_by_key(|stream| stream.next.abs_diff(range.start()));
        if let Some(stream) = found {
            let forward = range.end().saturating_sub(stream.next).min(range.len());
            stream.next = stream.next.max(range.end());
            stream.bytes = stream.bytes.saturating_add(forward);
            stream.reads += 1;
            stream.used = clock;
            let enough = ENOUGH.min(block.saturating_mul(2));
            if stream.reads >= 2 && stream.bytes >= enough {
                return stream.bytes;
            }
            return 0;
        }
        let new = Stream {
            next: range.end(),
            bytes: range.len(),
            reads: 1,
            used: clock,
        };
        if self.slots.len() < STREAMS {
            self.slots.push(new);
        } else if let Some(oldest) = self.slots.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = new;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const GIB: u64 = 1 << 30;

    fn read(streams: &mut Streams, start: u64, len: u64) -> bool {
        streams.note(ByteRange::between(start, start + len), 24 << 20) > 0
    }

    #[test]
    fn interleaved_streams_are_each_sequential() {
        let mut streams = Streams::default();
        let mut last = Vec::new();
        for step in 0..8 {
            last = (0..3)
                .map(|n| read(&mut streams, n * GIB + step * 128 * KIB, 128 * KIB))
                .collect();
        }
        assert_eq!(last, [true, true, true]);
    }

    #[test]
    fn scattered_reads_are_not() {
        let mut streams = Streams::default();
        for n in 0..200 {
            let start = n * 7919 % 200 * GIB;
            assert!(!read(&mut streams, start, 128 * KIB), "{n}");
        }
    }

    #[test]
    fn one_spot_read_again_and_again_is_not() {
        let mut streams = Streams::default();
        for _ in 0..1000 {
            assert!(!read(&mut streams, GIB, 4 * KIB));
        }
    }

    #[test]
    fn order_may_be_disturbed_a_little() {
        let mut streams = Streams::default();
        let order = [1, 0, 3, 2, 5, 4, 7, 6];
        let found = order.map(|n| read(&mut streams, n * 128 * KIB, 128 * KIB));
        assert!(found[7]);
    }
}
