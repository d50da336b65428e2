//! What will be read next, told from what is read now.
//!
//! A kernel that mounts an image asks for a block, waits, looks at it and asks for the next. Where
//! every answer takes tens of milliseconds, that is what a mount's time is made of. But the blocks
//! that pass by say where the others are: whoever reads the first block of a directory will want
//! the rest of it, and that an inode read long before has told where that is.
//!
//! [`watch`] puts a device on a volume that passes everything on unchanged, looks at the bytes that
//! are read anyway, and gives hints. It reads nothing by itself. All it does wrong, because the
//! image lies or has changed meanwhile, is a bounded number of hints that nobody needed.
#![deny(clippy::arithmetic_side_effects, clippy::as_conversions)]

mod ext4;

use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::stats::BlockStats;
use crate::{
    Access, ByteRange, Cost, Device, Done, Extents, Geometry, Lent, Result, Volume, WriteFeatures,
    Writer, ZeroOpts,
};

/// A hint names no more ranges than this; more are several hints.
const MOST_PARTS: usize = 64;
/// Where more than this is decoded for a byte, a hint that is wrong costs too much.
const LONGEST_BLOCK: u64 = 256 << 10;
/// Whoever has read so many bytes in order copies the volume, and knows nothing of files.
const COPIES: u64 = 8 << 20;

/// What knows a file system.
trait Guide: Send + Debug {
    /// What else will be read, now that `range` is about to be. The surest first.
    fn asked(&mut self, range: ByteRange) -> Vec<ByteRange>;

    /// Takes note of the bytes at `offset` that were read, and says what will be read after them.
    fn passed(&mut self, offset: u64, bytes: &[u8]) -> Vec<ByteRange>;
}

/// `volume`, watched while it is read if the file system on it is one that is known here and if
/// hints are worth while: else itself. `source` is what its bytes come from; nothing is said while
/// that cannot have several ranges for the price of one (see [`Device::gathers`]).
#[must_use]
pub fn watch(volume: &Volume, source: &Volume) -> Volume {
    if !source.gathers() {
        return volume.clone();
    }
    let cheap = match volume.geometry().access {
        Access::Random => true,
        Access::Block(len) => len <= LONGEST_BLOCK,
        Access::FirstPass => false,
    };
    let guide = cheap.then(|| ext4::recognise(volume)).flatten();
    let Some(guide) = guide else {
        return volume.clone();
    };
    Volume::new(Watched {
        below: volume.clone(),
        source: source.clone(),
        state: Mutex::new(State {
            guide: Box::new(guide),
            next: 0,
            run: 0,
            declined: None,
        }),
    })
}

/// Everything goes to the volume below.
#[derive(Debug)]
struct Watched {
    below: Volume,
    source: Volume,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    guide: Box<dyn Guide>,
    /// One past the last byte read.
    next: u64,
    /// Bytes read in order until there.
    run: u64,
    /// What could not be lent is read next: it was noted, and whether it is looked at.
    declined: Option<(ByteRange, bool)>,
}

impl State {
    /// Notes a read; whether it is one of a file system's.
    fn note(&mut self, range: ByteRange) -> bool {
        let before = if range.start() == self.next {
            self.run
        } else {
            0
        };
        self.run = before.saturating_add(range.len());
        self.next = range.end();
        self.run <= COPIES
    }
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a read and gives the hints that come before it. Whether its bytes are looked at.
    fn before(&self, range: ByteRange) -> bool {
        let mut state = self.lock();
        match state.declined.take() {
            Some((noted, is_watched)) if noted == range => return is_watched,
            _ => {}
        }
        let is_watched = state.note(range) && self.source.gathers();
        let hints = match is_watched {
            true => state.guide.asked(range),
            false => Vec::new(),
        };
        drop(state);
        self.tell(&hints);
        is_watched
    }

    /// Looks at the bytes at `offset`, which were read.
    fn after(&self, offset: u64, bytes: &[u8]) {
        let hints = self.lock().guide.passed(offset, bytes);
        self.tell(&hints);
    }

    fn tell(&self, hints: &[ByteRange]) {
        for part in hints.chunks(MOST_PARTS) {
            tracing::trace!("foresight: {part:?}");
            self.below.will_need_parts(part);
        }
    }

    fn all(&self) -> ByteRange {
        ByteRange::between(0, self.below.size())
    }
}

impl Device for Watched {
    /// As the volume below is called: messages and figures are about that one.
    fn name(&self) -> &str {
        self.below.name()
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            // The volume below serves what is not aligned.
            min_block: 1,
            ..self.below.geometry()
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let is_watched = self.before(ByteRange::of(buf, offset));
        self.below.read_at(buf, offset)?;
        if is_watched {
            self.after(offset, buf);
        }
        Ok(())
    }

    fn lend(&self, range: ByteRange) -> Result<Option<Lent>> {
        let is_watched = self.before(range);
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let lent = self.below.lend(range.start(), len)?;
        match &lent {
            Some(lent) if is_watched => self.after(range.start(), lent),
            Some(_) => {}
            None => self.lock().declined = Some((range, is_watched)),
        }
        Ok(lent)
    }

    fn extents(&self, _range: ByteRange, out: &mut Extents) -> Result<()> {
        self.below.extents_moved(self.all(), out)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        let writer: &dyn Writer = self;
        self.below.writer().map(|_| writer)
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        self.below.will_need_parts(ranges);
    }

    /// Whoever reads in order to be understood may ask.
    fn gathers(&self) -> bool {
        self.source.gathers()
    }

    fn source_identity(&self) -> Option<String> {
        self.below.source_identity()
    }

    fn parts(&self) -> Option<usize> {
        self.below.parts()
    }

    fn cost(&self) -> Option<Cost> {
        self.below.cost()
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        self.below.stored(range)
    }

    fn may_be_kept(&self) -> bool {
        self.below.may_be_kept()
    }

    fn notes(&self) -> Vec<String> {
        self.below.notes()
    }

    fn block_stats(&self) -> Option<BlockStats> {
        self.below.stats().blocks
    }

    fn close(&self) -> Result<()> {
        self.below.close()
    }
}

/// What is written is not looked at: the kernel that wrote it has it in memory.
impl Writer for Watched {
    fn features(&self) -> WriteFeatures {
        self.below
            .writer()
            .map_or_else(WriteFeatures::default, |writer| writer.features())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.below.need_writer()?.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<()> {
        self.below.need_writer()?.flush()
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        self.below.need_writer()?.zero(range, opts)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        self.below.need_writer()?.trim(range, fua)
    }
}
