//! Reading and writing through the map.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::map::{Map, State};
use super::{NAME, Storage};
use crate::{
    ByteRange, Device, Done, ExtentFlags, Extents, Geometry, Result, Volume, WriteFeatures, Writer,
    ZeroOpts,
};

/// Blocks that share a lock.
const REGION: u64 = 256;
/// Locks.
const LOCKS: usize = 64;
/// An estimate of what is stored looks at no more runs than this.
const MOST_RUNS: usize = 1024;

/// A volume and the blocks that were written on top of it.
#[derive(Debug)]
pub(super) struct Cow {
    below: Volume,
    size: u64,
    block: u64,
    map: Map,
    storage: Box<dyn Storage>,
    /// Held shared by whoever replaces blocks or parts of blocks that are stored, alone by whoever
    /// makes a block of a part: so that nobody's neighbours are lost.
    regions: [RwLock<()>; LOCKS],
}

impl Cow {
    pub(super) fn volume(
        below: &Volume,
        block: u32,
        map: Map,
        storage: Box<dyn Storage>,
    ) -> Volume {
        Volume::new(Self {
            below: below.clone(),
            size: below.size(),
            block: u64::from(block).max(1),
            map,
            storage,
            regions: [const { RwLock::new(()) }; LOCKS],
        })
    }

    fn region(&self, block: u64) -> &RwLock<()> {
        let index = usize::try_from(block / REGION % 64).unwrap_or(0);
        // LOCKS is 64.
        self.regions.get(index).unwrap_or(&self.regions[0])
    }

    fn shared(&self, block: u64) -> RwLockReadGuard<'_, ()> {
        let lock = self.region(block).read();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self, block: u64) -> RwLockWriteGuard<'_, ()> {
        let lock = self.region(block).write();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// The block that the byte `offset` is in.
    fn block_at(&self, offset: u64) -> u64 {
        // Not zero.
        offset.checked_div(self.block).unwrap_or(0)
    }

    /// The bytes of the blocks from `first` to `end`.
    fn bytes(&self, first: u64, end: u64) -> ByteRange {
        let start = first.saturating_mul(self.block);
        ByteRange::between(start, end.saturating_mul(self.block).min(self.size))
    }

    /// The run of blocks in one state at `offset`, its bytes cut to `range`.
    fn run(&self, offset: u64, range: ByteRange) -> (State, ByteRange) {
        let first = self.block_at(offset);
        let end = range.end().div_ceil(self.block);
        let (state, end) = self.map.run(first, end);
        let end = end.saturating_mul(self.block).min(range.end());
        (state, ByteRange::between(offset, end))
    }

    /// The next piece of a change of `range` at `offset`: whole blocks of one region, or a part of
    /// one block. The block it begins in, the bytes, whether it is whole blocks.
    fn piece(&self, offset: u64, range: ByteRange) -> (u64, ByteRange, bool) {
        let block = self.block_at(offset);
        let one = self.bytes(block, block.saturating_add(1));
        if offset > one.start() || range.end() < one.end() {
            let end = range.end().min(one.end());
            return (block, ByteRange::between(offset, end), false);
        }
        let last = if range.end() == self.size {
            self.size.div_ceil(self.block)
        } else {
            self.block_at(range.end())
        };
        let region_end = (block / REGION).saturating_add(1).saturating_mul(REGION);
        (block, self.bytes(block, last.min(region_end)), true)
    }

    /// Puts `new` into the block that it lies in.
    fn write_part(&self, block: u64, offset: u64, new: &[u8]) -> Result<()> {
        let whole = self.bytes(block, block.saturating_add(1));
        let len = usize::try_from(whole.len()).unwrap_or(usize::MAX);
        let start = usize::try_from(offset.saturating_sub(whole.start())).unwrap_or(usize::MAX);
        let mut below = None;
        loop {
            let state = self.map.get(block);
            if matches!(state, State::Stored | State::Held) {
                let _shared = self.shared(block);
                if self.map.get(block) == state && self.storage.patch(state, block, offset, new)? {
                    return Ok(());
                }
                continue;
            }
            // What is below does not change: nobody waits for it.
            let mut bytes = match (state, &below) {
                (State::Absent, Some(bytes)) => Vec::clone(bytes),
                (State::Absent, None) => below
                    .insert(self.below.read_vec(whole.start(), len)?)
                    .clone(),
                _ => vec![0; len],
            };
            let _alone = self.alone(block);
            if self.map.get(block) != state {
                continue;
            }
            if let Some(part) = bytes.get_mut(start..start.saturating_add(new.len())) {
                part.copy_from_slice(new);
            }
            return self.storage.write(&self.map, whole.start(), &bytes);
        }
    }

    /// Makes whole blocks zero; those that are below only as well, unless `keep`.
    fn clear(&self, range: ByteRange, keep: bool) {
        let first = self.block_at(range.start());
        let _shared = self.shared(first);
        let mut at = range.start();
        while at < range.end() {
            let (state, run) = self.run(at, range);
            let blocks = (self.block_at(at), run.end().div_ceil(self.block));
            match state {
                State::Zero => {}
                State::Absent if keep => {}
                state => self.storage.clear(&self.map, state, blocks, run),
            }
            at = run.end();
        }
    }
}

impl Device for Cow {
    fn name(&self) -> &'static str {
        NAME
    }

    fn geometry(&self) -> Geometry {
        let below = self.below.geometry();
        Geometry {
            min_block: 1,
            preferred_block: below.preferred_block.max(4096),
            max_request: 32 << 20,
            ..below
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if self.map.is_empty() {
            return self.below.read_at(buf, offset);
        }
        let range = ByteRange::of(buf, offset);
        let mut at = offset;
        while at < range.end() {
            let (state, run) = self.run(at, range);
            let start = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
            let len = usize::try_from(run.len()).unwrap_or(usize::MAX);
            // The run lies within the range, so this lies within the buffer.
            let Some(now) = buf.get_mut(start..start.saturating_add(len)) else {
                break;
            };
            let done = match state {
                State::Absent => self.below.read_at(now, at).map(|()| now.len())?,
                State::Zero => {
                    now.fill(0);
                    now.len()
                }
                // Fewer bytes when a block was made zero meanwhile: it is looked at again.
                state => self.storage.read(state, at, now)?,
            };
            at = at.saturating_add(u64::try_from(done).unwrap_or(0));
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        while !out.is_full() && out.next_offset() < range.end() {
            let at = out.next_offset();
            let (state, run) = self.run(at, range);
            match state {
                State::Absent => self.below.extents_placed(run, run.start(), out)?,
                State::Zero => out.push_until(run.end(), ExtentFlags::HOLE),
                State::Stored | State::Held => out.push_until(run.end(), ExtentFlags::DATA),
            }
        }
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        let absent = |range: &ByteRange| {
            let (state, run) = self.run(range.start(), *range);
            state == State::Absent || run.end() < range.end()
        };
        let below: Vec<_> = ranges.iter().copied().filter(absent).collect();
        self.below.will_need_parts(&below);
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        let (mut at, mut sum) = (range.start(), 0_u64);
        for _ in 0..MOST_RUNS {
            if at >= range.end() {
                return Some(sum);
            }
            let (state, run) = self.run(at, range);
            let stored = match state {
                State::Absent => self.below.stored(run)?,
                State::Zero => 0,
                State::Stored | State::Held => run.len(),
            };
            sum = sum.saturating_add(stored);
            at = run.end();
        }
        None
    }

    /// The image's name says nothing of what was written.
    fn may_be_kept(&self) -> bool {
        false
    }

    fn close(&self) -> Result<()> {
        let flushed = self.storage.flush(&self.map);
        flushed.and(self.below.close())
    }
}

impl Writer for Cow {
    fn features(&self) -> WriteFeatures {
        WriteFeatures {
            // Where nothing has to be durable everything is as durable as it must be.
            fua: !self.storage.is_durable(),
            zero: true,
            trim: true,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let (mut at, mut rest) = (offset, buf);
        while at < range.end() {
            let (block, piece, is_whole) = self.piece(at, range);
            let len = usize::try_from(piece.len()).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(len.min(rest.len()));
            if is_whole {
                let _shared = self.shared(block);
                self.storage.write(&self.map, at, now)?;
            } else {
                self.write_part(block, at, now)?;
            }
            (at, rest) = (piece.end(), later);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.storage.flush(&self.map)
    }

    fn zero(&self, range: ByteRange, _opts: ZeroOpts) -> Result<Done> {
        let mut at = range.start();
        while at < range.end() {
            let (block, piece, is_whole) = self.piece(at, range);
            if is_whole {
                self.clear(piece, false);
            } else if self.map.get(block) != State::Zero {
                let len = usize::try_from(piece.len()).unwrap_or(usize::MAX);
                self.write_part(block, at, &vec![0; len])?;
            }
            at = piece.end();
        }
        Ok(Done::Yes)
    }

    fn trim(&self, range: ByteRange, _fua: bool) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let (_, piece, is_whole) = self.piece(at, range);
            if is_whole {
                // What is below takes no space of ours.
                self.clear(piece, true);
            }
            at = piece.end();
        }
        Ok(())
    }
}
