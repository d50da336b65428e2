//! How much to fetch when something is read: what is read, what is hinted at, and more of what
//! is read in order.

use std::collections::{BTreeSet, VecDeque};

use super::locality::{Locality, Width};
use super::store::{CHUNK, PAGE, chunks};
use crate::ByteRange;

/// The least that is fetched for a read out of the blue, and what it is aligned to. At 10 MB/s it
/// takes 7 ms, less than the round trip to ask for a neighbour; a file system's metadata has many
/// of those.
pub(super) const WINDOW: u64 = 64 << 10;
/// The same while somebody says what will be needed: that has the neighbours that count.
const GUIDED_WINDOW: u64 = 4 << 10;
/// It is taken for said no longer after so many reads without a word.
const GUIDED_READS: u64 = 256;
/// Where most of what lies near to each other is read, though in no order, that much is fetched.
const WIDTHS: [Width; 4] = [
    Width::new(WINDOW, 16, 16),
    Width::new(256 << 10, 16, 16),
    Width::new(1 << 20, 16, 16),
    Width::new(4 << 20, 256, 32),
];
/// Readers that are recognised at the same time.
const MOST_STREAMS: usize = 16;
/// A read this far beyond the last one still continues it: the kernel reads ahead with several
/// requests at once, which come in any order.
const SLACK: u64 = 256 << 10;
/// A stream that had none of this many last reads is taken to have ended.
const LIVELY: u64 = 64;
/// Hints that are remembered.
const MOST_HINTS: usize = 1024;

/// One part in so many is fetched beyond what a row of hints has named.
const GROWTH: u64 = 8;

/// What was read lately.
#[derive(Debug)]
pub(super) struct Streams {
    size: u64,
    /// Most bytes to fetch ahead at once, for one stream.
    most: u64,
    /// Counts the reads.
    clock: u64,
    /// When several ranges at once were last said to be needed.
    guided: Option<u64>,
    locality: Locality,
    /// The least recently used first.
    live: VecDeque<Stream>,
    hinted: VecDeque<Hint>,
}

/// Hints that continue each other.
#[derive(Debug)]
struct Hint {
    /// What was said to be needed.
    range: ByteRange,
    /// One past the last byte fetched for it.
    asked: u64,
}

/// A reader that goes forward.
#[derive(Debug)]
struct Stream {
    /// One past the last byte read.
    next: u64,
    /// Bytes read so far.
    run: u64,
    /// One past the last byte fetched for it.
    asked: u64,
    /// How many bytes were fetched at once.
    piece: u64,
    /// When it was last read.
    used: u64,
    /// Something that it read was neither there nor on its way.
    missed: bool,
}

impl Streams {
    /// For a device of `size` bytes; at most `most` bytes are fetched ahead at once, and by all
    /// streams together about four times as much.
    pub(super) fn new(size: u64, most: u64) -> Self {
        Self {
            size,
            most: most.max(WINDOW),
            clock: 0,
            guided: None,
            locality: Locality::new(&WIDTHS),
            live: VecDeque::new(),
            hinted: VecDeque::new(),
        }
    }

    /// What to have for a read of `range`: it, and maybe more, aligned to pages.
    ///
    /// A stream is fetched ahead in pieces as long as what it has read so far, so that pieces
    /// double and a reader that stops has cost about twice what it used. The next piece is asked
    /// for when half of the last one is read. Nothing is guessed where there was a hint: whoever
    /// gives hints knows better.
    ///
    /// Neither is there where all of `range` is there or on its way (`is_here`), but for what
    /// continues a stream; and a read behind one that is not there has a neighbourhood like any
    /// other.
    pub(super) fn read(&mut self, range: ByteRange, is_here: bool) -> ByteRange {
        self.locality.note(range);
        let continues = |stream: &Stream| {
            let near = stream.next.saturating_sub(SLACK)..=stream.next.saturating_add(SLACK);
            near.contains(&range.start())
        };
        // The latest first: of two streams that meet, the one that is alive.
        let found = self.live.iter().rposition(continues);
        if self.hinted.iter().any(|hint| hint.range.contains(range)) {
            if let Some(stream) = found.and_then(|at| self.live.get_mut(at)) {
                stream.next = stream.next.max(range.end());
            }
            return self.align(range, PAGE);
        }
        self.clock += 1;
        let Some(mut stream) = found.and_then(|at| self.live.remove(at)) else {
            let window = self.window(range, is_here);
            if self.live.len() >= MOST_STREAMS {
                self.live.pop_front();
            }
            self.live.push_back(Stream {
                next: range.end(),
                run: range.len(),
                asked: window.end(),
                piece: window.len(),
                used: self.clock,
                missed: !is_here,
            });
            return window;
        };
        let want = self.continued(&mut stream, range, is_here);
        self.live.push_back(stream);
        want
    }

    fn continued(&self, stream: &mut Stream, range: ByteRange, is_here: bool) -> ByteRange {
        if range.end() <= stream.next {
            return self.window(range, is_here);
        }
        stream.run = stream.run.saturating_add(range.len());
        stream.next = range.end();
        stream.used = self.clock;
        stream.missed |= !is_here;
        let far = stream.asked.saturating_sub(stream.next) >= stream.piece / 2;
        // One that has never waited may find the rest there, too: from an earlier mount.
        if far || !stream.missed {
            return self.align(range, PAGE);
        }
        let lively = |other: &&Stream| other.used.saturating_add(LIVELY) > self.clock;
        let others = self.live.iter().filter(lively).count() as u64;
        let most = (self.most.saturating_mul(4) / (others + 1)).clamp(WINDOW, self.most);
        let least = self.least().min(most);
        let doubled = stream.piece.saturating_mul(2);
        stream.piece = stream.run.min(doubled).clamp(least, most);
        let from = stream.asked.max(range.start());
        let end = from.saturating_add(stream.piece).max(range.end());
        let want = self.align(ByteRange::between(range.start(), end), PAGE);
        stream.asked = want.end();
        want
    }

    /// What to fetch when `range` is said to be needed: exactly it, aligned to pages.
    ///
    /// Only when hints come in order and one is short against those before it, an eighth of their
    /// length is added, so that many short hints do not become as many requests.
    pub(super) fn hint(&mut self, range: ByteRange) -> ByteRange {
        let want = self.align(range, PAGE);
        if want.is_empty() {
            return want;
        }
        let touches =
            |hint: &Hint| hint.range.start() <= want.end() && want.start() <= hint.range.end();
        let found = self.hinted.iter().rposition(touches);
        let mut hint = found.and_then(|at| self.hinted.remove(at)).unwrap_or(Hint {
            range: want,
            asked: want.end(),
        });
        let start = hint.range.start().min(want.start());
        hint.range = ByteRange::between(start, hint.range.end().max(want.end()));
        let mut end = want.end();
        if want.end() > hint.asked {
            let more = (hint.range.len() / GROWTH).min(self.most);
            if want.end() - hint.asked <= more {
                end = end.saturating_add(more);
            }
        }
        let want = self.align(ByteRange::between(want.start(), end), PAGE);
        hint.asked = hint.asked.max(want.end());
        if self.hinted.len() >= MOST_HINTS {
            self.hinted.pop_front();
        }
        self.hinted.push_back(hint);
        want
    }

    /// What to fetch when all of `ranges` are said to be needed: exactly they, aligned to pages, in
    /// order, those that touch as one.
    pub(super) fn hint_set(&mut self, ranges: &[ByteRange]) -> Vec<ByteRange> {
        let pages = ranges.iter().map(|range| self.align(*range, PAGE));
        let wanted = merged(pages.collect(), 0);
        self.guided = Some(self.clock);
        for range in &wanted {
            if self.hinted.len() >= MOST_HINTS {
                self.hinted.pop_front();
            }
            self.hinted.push_back(Hint {
                range: *range,
                asked: range.end(),
            });
        }
        wanted
    }

    /// What to have for a read that continues nothing.
    fn window(&self, range: ByteRange, is_here: bool) -> ByteRange {
        self.align(range, if is_here { PAGE } else { self.least() })
    }

    /// The fewest bytes to fetch when there is something to be fetched.
    fn least(&self) -> u64 {
        let usual = if self.is_guided() {
            GUIDED_WINDOW
        } else {
            WINDOW
        };
        let reach = self.locality.reach().unwrap_or(usual);
        reach.clamp(usual, self.most)
    }

    /// Whether somebody says what will be needed.
    fn is_guided(&self) -> bool {
        let lasts = |told: u64| self.clock.saturating_sub(told) < GUIDED_READS;
        self.guided.is_some_and(lasts)
    }

    /// `range` widened to multiples of `unit`, cut at the end of the device.
    fn align(&self, range: ByteRange, unit: u64) -> ByteRange {
        let end = range.end().checked_next_multiple_of(unit);
        let end = end.map_or(self.size, |end| end.min(self.size));
        ByteRange::between((range.start() / unit * unit).min(end), end)
    }
}

/// `ranges` in order, those as one between which there are at most `near` bytes, without empty ones.
pub(super) fn merged(mut ranges: Vec<ByteRange>, near: u64) -> Vec<ByteRange> {
    ranges.sort_unstable_by_key(|range| range.start());
    let mut merged: Vec<ByteRange> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end().saturating_add(near) => {
                *last = ByteRange::between(last.start(), last.end().max(range.end()));
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Of `ranges`, the first that have room in `most` bytes of memory.
pub(super) fn fitting(ranges: &[ByteRange], most: u64) -> Vec<ByteRange> {
    let mut taken = BTreeSet::new();
    let mut fitting = Vec::new();
    for range in ranges {
        let end = chunks(*range).find(|index| {
            let room = (taken.len() as u64) < most / CHUNK;
            if room {
                taken.insert(*index);
            }
            !taken.contains(index)
        });
        let Some(end) = end else {
            fitting.push(*range);
            continue;
        };
        let end = end.saturating_mul(CHUNK);
        fitting.push(ByteRange::between(range.start(), end.max(range.start())));
        break;
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::between(start, start + len)
    }

    /// Feeds reads and collects what is fetched anew, as a store without limit would.
    fn fetched(streams: &mut Streams, reads: impl Iterator<Item = ByteRange>) -> Vec<ByteRange> {
        let mut have: Vec<ByteRange> = Vec::new();
        for read in reads {
            let want = streams.read(read, false);
            assert!(want.contains(read));
            let start = have.iter().fold(want.start(), |start, got| {
                if got.start() <= start && start < got.end() {
                    got.end()
                } else {
                    start
                }
            });
            if start < want.end() {
                have.push(ByteRange::between(start, want.end()));
            }
        }
        have
    }

    #[test]
    fn a_sequential_reader_gets_ever_longer_pieces() {
        let mut streams = Streams::new(100 * MIB, 4 * MIB);
        let reads = (0..64 * 8).map(|at| range(at * 128 * KIB, 128 * KIB));
        let fetched = fetched(&mut streams, reads);
        let longest = fetched.iter().map(|piece| piece.len()).max();
        assert_eq!(longest, Some(4 * MIB));
        assert!(fetched.len() < 30, "{} pieces for 64 MiB", fetched.len());
        assert!(
            fetched
                .windows(2)
                .all(|pair| pair[0].end() == pair[1].start())
        );
    }

    #[test]
    fn a_reader_that_stops_has_cost_little_more_than_twice_what_it_read() {
        for reads in 1..200 {
            let mut streams = Streams::new(1000 * MIB, 64 * MIB);
            let read = reads * 128 * KIB;
            let fetched = fetched(
                &mut streams,
                (0..reads).map(|at| range(at * 128 * KIB, 128 * KIB)),
            );
            let bytes: u64 = fetched.iter().map(|piece| piece.len()).sum();
            assert!(bytes <= read * 5 / 2, "{bytes} for {read}");
        }
    }

    #[test]
    fn interleaved_readers_are_told_apart() {
        let mut streams = Streams::new(1 << 40, 4 * MIB);
        let reads = (0..64).flat_map(|at| {
            (0..10).map(move |reader| range((reader << 32) + at * 64 * KIB, 64 * KIB))
        });
        let fetched = fetched(&mut streams, reads);
        // 10 readers of 4 MiB each.
        assert!(fetched.len() <= 10 * 9, "{} pieces", fetched.len());
    }

    #[test]
    fn a_read_out_of_the_blue_fetches_one_window() {
        let mut streams = Streams::new(1 << 40, 4 * MIB);
        for at in [5u64, 1 << 20, 7 << 30, 3 << 25] {
            assert_eq!(streams.read(range(at, 4096), false).len(), WINDOW);
        }
        let end = 1u64 << 40;
        assert_eq!(
            streams.read(range(end - 10, 10), false),
            range(end - WINDOW, WINDOW)
        );
    }

    #[test]
    fn nothing_is_guessed_within_a_hint() {
        let mut streams = Streams::new(1 << 40, 4 * MIB);
        assert_eq!(
            streams.hint(range(5000, MIB)),
            ByteRange::between(4096, 4096 + MIB + 4096)
        );
        streams.hint(range(5000 + MIB, MIB));
        for at in 0..16 {
            let read = range(5000 + at * 128 * KIB, 128 * KIB);
            assert!(streams.read(read, false).len() <= 128 * KIB + PAGE);
        }
    }

    #[test]
    fn a_row_of_short_hints_becomes_few_requests_and_little_more_bytes() {
        let mut streams = Streams::new(1 << 40, 4 * MIB);
        let (mut requests, mut have) = (0, 0);
        let last = 256 * MIB;
        for at in (0..last).step_by(MIB as usize) {
            // As a decoder does that is told to stay 4 MiB ahead.
            let want = streams.hint(range(at, 4 * MIB));
            assert!(want.contains(range(at, 4 * MIB)));
            if want.end() > have {
                requests += 1;
                have = want.end();
            }
        }
        assert!(requests < 80, "{requests} requests for 256 hints");
        assert!(have <= last + 4 * MIB + 4 * MIB, "{have}");
    }

    #[test]
    fn what_is_hinted_at_takes_no_more_chunks_than_there_are() {
        let range = ByteRange::between;
        let set = [
            range(5 * CHUNK + 1, 5 * CHUNK + 2),
            range(0, 1),
            // In a chunk that was taken already.
            range(5 * CHUNK + 9, 5 * CHUNK + 10),
            range(CHUNK - 1, 4 * CHUNK),
            range(9 * CHUNK, 9 * CHUNK + 1),
        ];
        assert_eq!(fitting(&set, 6 * CHUNK), set);
        assert_eq!(
            fitting(&set, 5 * CHUNK + 1),
            [&set[..4], &[range(9 * CHUNK, 9 * CHUNK)]].concat()
        );
        let cut = range(CHUNK - 1, 3 * CHUNK);
        assert_eq!(fitting(&set, 4 * CHUNK), [&set[..3], &[cut]].concat());
        assert_eq!(fitting(&set, 0), [range(5 * CHUNK + 1, 5 * CHUNK + 1)]);
        let all = range(0, u64::MAX);
        assert_eq!(fitting(&[all, all], 7 * CHUNK), [range(0, 7 * CHUNK)]);
    }

    #[test]
    fn ranges_that_touch_or_are_near_are_merged() {
        let set = vec![
            range(50, 10),
            range(10, 5),
            range(60, 5),
            range(12, 1),
            range(7, 0),
        ];
        let expected = [range(10, 5), range(50, 15)];
        assert_eq!(merged(set.clone(), 0), expected);
        assert_eq!(merged(set.clone(), 34), expected);
        assert_eq!(merged(set, 35), [range(10, 55)]);
        let far = vec![ByteRange::between(u64::MAX - 1, u64::MAX), range(0, 1)];
        assert_eq!(merged(far.clone(), u64::MAX - 3).len(), 2);
        assert_eq!(merged(far, u64::MAX).len(), 1);
    }

    #[test]
    fn nothing_is_guessed_within_a_set_of_hints() {
        let mut streams = Streams::new(1 << 40, 4 * MIB);
        let set: Vec<_> = (0..60).map(|at| range(at * MIB + 100, 10)).collect();
        let pages: Vec<_> = (0..60).map(|at| range(at * MIB, PAGE)).collect();
        assert_eq!(streams.hint_set(&set), pages);
        for page in pages {
            assert_eq!(streams.read(page, false), page);
        }
    }

    #[test]
    fn hints_of_long_blocks_are_not_exceeded() {
        let mut streams = Streams::new(1 << 40, 4 * MIB);
        for block in 0..7 {
            let block = range(block * 6 * MIB, 6 * MIB);
            assert_eq!(streams.hint(block), block);
            // Again, in pieces.
            assert_eq!(streams.hint(range(block.start() + MIB, MIB)).len(), MIB);
        }
    }
}
