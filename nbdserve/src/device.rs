//! The contract between sources, layers and targets.

use std::fmt::Debug;
use std::ops::{Deref, Range};
use std::sync::Arc;

use serde::Serialize;

use crate::stats::BlockStats;
use crate::sys::memory::Area;
use crate::{ByteRange, Cx, Extents, Result};

/// How a device likes to be used. All figures are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of bytes.
    pub size: u64,
    /// Offsets and lengths given to the device are multiples of this, except that the last
    /// request may end at `size`. A power of two, at most 65536.
    pub min_block: u32,
    /// The request that is served without waste. A power of two.
    pub preferred_block: u32,
    /// A longer request is split by [`crate::Volume`]. At least `min_block`.
    pub max_request: u64,
    /// What a jump costs.
    pub access: Access,
}

impl Geometry {
    /// `size` bytes that can be read anywhere, in any length.
    #[must_use]
    pub fn bytes(size: u64) -> Self {
        Self {
            size,
            min_block: 1,
            preferred_block: 4096,
            max_request: 32 << 20,
            access: Access::Random,
        }
    }
}

/// What it costs to read far from the bytes read before. A layer passes on what its below says,
/// or says something worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Any byte costs about the same.
    Random,
    /// A byte costs the decoding of at most one block of this many bytes.
    Block(u64),
    /// Bytes appear in order, once: a byte costs the decoding of everything before it.
    FirstPass,
}

/// How a layer knows which byte lies where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Index {
    /// The image says it.
    InImage,
    /// It was found out when the image was opened.
    Found,
    /// As [`Self::Found`], with what a decoder must know to begin there.
    Checkpoints,
}

/// Where something stays that took time to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeping {
    /// In memory, as far as that goes.
    Memory,
    /// In a temp file, until the image is closed.
    TempFile,
    /// In the cache on disk, for the next mount too.
    Disk,
}

impl Keeping {
    /// What a layer with this context decodes, if it is decoded into a file, in part at least, or is
    /// worth being written there.
    pub(crate) fn decoded(cx: &Cx, in_file: bool, worth: bool) -> Self {
        match (cx.place.is_some(), in_file) {
            (true, true) => Self::Disk,
            (true, false) if worth => Self::Disk,
            (false, true) => Self::TempFile,
            (_, false) => Self::Memory,
        }
    }

    /// The index of a layer with this context.
    pub(crate) fn index(cx: &Cx) -> Self {
        match cx.place {
            Some(_) => Self::Disk,
            None => Self::Memory,
        }
    }
}

/// What reading somewhere in a layer costs, the layers below it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cost {
    /// What is decoded for a byte.
    pub access: Access,
    /// How it is known where that lies.
    pub index: Index,
    /// Where that stays, if the image does not say it.
    pub index_kept: Keeping,
    /// Where what was decoded stays.
    pub kept: Keeping,
}

/// Bytes of a device that are not copied: they stay in memory as long as somebody has them.
#[derive(Debug)]
pub struct Lent {
    area: Arc<Area>,
    range: Range<usize>,
}

impl Lent {
    /// A part of an area; `None` when it is not there yet.
    pub(crate) fn new(area: Arc<Area>, range: Range<usize>) -> Option<Self> {
        area.get(range.clone())?;
        Some(Self { area, range })
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // What is there stays.
        self.area.get(self.range.clone()).unwrap_or_default()
    }
}

/// A source or a layer: bytes at offsets, readable by many threads at once.
///
/// Only [`crate::Volume`] calls these methods. It guarantees for every call: the range lies within
/// the device and is not empty; a range to be read, written, zeroed or trimmed is aligned to
/// `min_block`; one to be read or written is no longer than `max_request`.
pub trait Device: Send + Sync + Debug {
    /// The name in messages: `xz`, `partition:2`.
    fn name(&self) -> &str;

    /// Size and limits. Never changes while the device lives, but for the size by [`Writer::grow`].
    fn geometry(&self) -> Geometry;

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// Any failure; `buf` is then undefined. There are no short reads.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// As [`Self::read_at`], for a device that has just these bytes in a row in its memory: they are
    /// not copied. `None`, at once, when it has not.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn lend(&self, range: ByteRange) -> Result<Option<Lent>> {
        let _ = range;
        Ok(None)
    }

    /// Says which parts of `range` are holes or read as zeroes, by pushing onto `out` from
    /// `range.start()` on. May stop early, and should once `out` is full; what is not covered
    /// counts as data. ZERO is claimed only when proven.
    ///
    /// # Errors
    /// When the answer needs I/O and that fails.
    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        let _ = (range, out);
        Ok(())
    }

    /// The write side, or `None` when the device cannot be written.
    fn writer(&self) -> Option<&dyn Writer> {
        None
    }

    /// Why there is no write side, where that needs words. Texts from the image are escaped.
    fn read_only_because(&self) -> Option<String> {
        None
    }

    /// A hint that `range` will be read soon. Returns at once and reports nothing.
    ///
    /// A device has this or [`Self::will_need_parts`], which is the one that is called.
    fn will_need(&self, range: ByteRange) {
        let _ = range;
    }

    /// As [`Self::will_need`] for several ranges that are known together, so that they can be had
    /// together: a source far away asks for all of them at once. In any order, they may overlap;
    /// each is within the device and not empty. A device that moves or translates ranges passes
    /// them on as one set; by default each is a hint of its own.
    fn will_need_parts(&self, ranges: &[ByteRange]) {
        for range in ranges {
            self.will_need(*range);
        }
    }

    /// Whether what one call of [`Self::will_need_parts`] names is had for about the price of one
    /// range. Sources say it, and what gives such hints by itself (see [`crate::foresight`]); no
    /// layer passes it on.
    fn gathers(&self) -> bool {
        false
    }

    /// What tells these bytes from all others that were ever here: what was learnt about them, and
    /// what was decoded of them, is kept under it for the next mount. `None` for what may change
    /// without a trace, and for what is not a source. May wait a moment.
    fn source_identity(&self) -> Option<String> {
        None
    }

    /// How many files it is put together from; `None` for what is no file, or not by itself.
    fn parts(&self) -> Option<usize> {
        None
    }

    /// What reading somewhere costs; `None` for what decodes nothing.
    fn cost(&self) -> Option<Cost> {
        None
    }

    /// About how many bytes of `range` are not zero, as far as that can be told without reading
    /// anything: an estimate for st_blocks. `None` when nobody can say.
    fn stored(&self, range: ByteRange) -> Option<u64> {
        let _ = range;
        None
    }

    /// Whether what is decoded of it may be kept for the next mount, under the name of the source:
    /// not what is decrypted here, and not what other files have a part in.
    fn may_be_kept(&self) -> bool {
        true
    }

    /// What is unusual about it, for `--info`: may read a part of what is below to find out. Texts from
    /// the image are escaped.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How its decoded blocks were used; `None` when it has none.
    fn block_stats(&self) -> Option<BlockStats> {
        None
    }

    /// Ends background work and makes written data durable. The device answers no more requests.
    /// Bounded in time. `Drop` does the same but cannot report.
    ///
    /// # Errors
    /// When data that was accepted could not be stored.
    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// What a [`Writer`] does by itself; the rest is emulated by [`crate::Volume`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFeatures {
    /// `write_at`, `zero` and `trim` honour `fua`.
    pub fua: bool,
    /// `zero` can be cheaper than writing zeroes.
    pub zero: bool,
    /// `trim` can give space back.
    pub trim: bool,
}

/// How to zero a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOpts {
    /// The range may become a hole.
    pub may_trim: bool,
    /// Durable before the call returns (only asked of a device where [`WriteFeatures::fua`] is
    /// set).
    pub fua: bool,
    /// Decline rather than write zeroes.
    pub fast_only: bool,
}

/// Whether an optional operation was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Done {
    /// Carried out in full.
    Yes,
    /// Not possible this way, nothing was changed; no error.
    Declined,
}

/// The write side of a device. The same guarantees as for [`Device`] hold.
pub trait Writer: Send + Sync {
    /// What is native here.
    fn features(&self) -> WriteFeatures;

    /// Writes all of `buf` at `offset`; durable on return when `fua` (only asked where
    /// [`WriteFeatures::fua`] is set).
    ///
    /// # Errors
    /// Any failure; what the range holds is then undefined.
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()>;

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// When durability cannot be promised.
    fn flush(&self) -> Result<()>;

    /// Makes `range` read as zeroes.
    ///
    /// # Errors
    /// Any failure other than "cannot do it this way", which is [`Done::Declined`].
    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        let _ = (range, opts);
        Ok(Done::Declined)
    }

    /// Makes the device `size` bytes long, which is more than it has; the new bytes read as zeroes.
    /// For a device that is a file of its own, below a format that allocates. No format and no
    /// part of a device passes it on.
    ///
    /// # Errors
    /// `NoSpace` when there is no room; a size that is given is [`Done::Declined`].
    fn grow(&self, size: u64) -> Result<Done> {
        let _ = size;
        Ok(Done::Declined)
    }

    /// Says that the contents of `range` are no longer needed. They are undefined afterwards;
    /// the loss is durable on return when `fua` (only asked where [`WriteFeatures::fua`] is set).
    ///
    /// # Errors
    /// Any failure; not being able to is none.
    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        let _ = (range, fua);
        Ok(())
    }
}
