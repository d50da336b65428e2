//! Memory for decoded bytes: mappings that are used again and again.
//!
//! A fresh mapping costs a page fault for each of its pages, which all in all takes longer than a
//! fast codec takes to fill them. So the pages come with the mapping, in one call (those of a long
//! one are huge, and come step by step), and mappings that are not in use are kept for whoever comes
//! next.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::mapping::Mapping;

/// Less than this is left to the heap.
const SMALL: usize = 128 << 10;
/// Bytes of mappings that are kept for the next use.
const SPARE: usize = 16 << 20;
/// From this length on a mapping has huge pages.
const HUGE: usize = 2 << 20;
/// The pages of a mapping that has huge ones come in steps of this: who only needs its beginning shall not wait for
/// all of them.
const AT_ONCE: usize = 8 << 20;
/// What the pages that are given back are multiples of.
const PAGE: usize = 4096;

/// Mappings that nobody uses.
static SPARES: Mutex<Vec<Map>> = Mutex::new(Vec::new());

/// Gives the memory back that is kept for the next use.
pub(crate) fn drop_spares() {
    let spares = std::mem::take(&mut *SPARES.lock().unwrap_or_else(PoisonError::into_inner));
    drop(spares);
}

/// Bytes with a fixed length.
#[derive(Debug)]
pub(crate) struct Memory(Held);

#[derive(Debug)]
enum Held {
    Heap(Box<[u8]>),
    /// `Some` but while it is dropped.
    Mapped(Option<Map>),
}

impl Memory {
    /// `len` bytes of undefined content. `None` when there is no memory.
    pub(crate) fn new(len: usize) -> Option<Self> {
        if len < SMALL {
            return Some(Self(Held::Heap(vec![0; len].into_boxed_slice())));
        }
        Some(Self(Held::Mapped(Some(Map::used_again(len)?))))
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Heap(bytes) => bytes,
            Held::Mapped(map) => map.as_ref().map_or(&[], |map| map.mapping.bytes()),
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Held::Heap(bytes) => bytes,
            Held::Mapped(map) => map.as_mut().map_or(&mut [], |map| map.mapping.bytes_mut()),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Held::Mapped(map) = &mut self.0
            && let Some(map) = map.take()
        {
            map.give_back();
        }
    }
}

/// Bytes that one owner, its [`Filling`], fills from the start on, while others read what is filled
/// already.
pub(crate) struct Area {
    at: NonNull<u8>,
    len: usize,
    /// `None` but while it is dropped, or when it is a boxed slice.
    map: Option<Map>,
    /// The bytes up to here never change again.
    ready: AtomicUsize,
}

// SAFETY: the memory belongs to the process, and this owns it as a box does. Bytes are shared only
// when they do not change any more.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// `len` bytes, of which none is ready. `None` when there is no memory.
    pub(crate) fn start(len: usize) -> Option<(Arc<Self>, Filling)> {
        let (at, map) = if len < SMALL {
            let heap: *mut [u8] = Box::into_raw(vec![0; len].into_boxed_slice());
            (NonNull::new(heap.cast::<u8>())?, None)
        } else {
            let map = Map::used_again(len)?;
            (map.mapping.at(), Some(map))
        };
        let area = Arc::new(Self {
            at,
            len,
            map,
            ready: AtomicUsize::new(0),
        });
        let filling = Filling {
            area: Arc::clone(&area),
            written: 0,
        };
        Some((area, filling))
    }

    /// The bytes of `range`; `None` when they are not all ready.
    pub(crate) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.ready.load(Ordering::Acquire) {
            return None;
        }
        let len = range.end.checked_sub(range.start)?;
        // SAFETY: the range lies within what is allocated as long as this lives, its bytes have a
        // content from the beginning, and nobody writes to what is ready.
        Some(unsafe { slice::from_raw_parts(self.at.as_ptr().add(range.start), len) })
    }
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Area({:?} of {} bytes)", self.ready, self.len)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        match self.map.take() {
            Some(map) => map.give_back(),
            None => {
                let heap = ptr::slice_from_raw_parts_mut(self.at.as_ptr(), self.len);
                // SAFETY: it was made from a box of this length.
                drop(unsafe { Box::from_raw(heap) });
            }
        }
    }
}

/// The right to fill an [`Area`]. There is one for each.
#[derive(Debug)]
pub(crate) struct Filling {
    area: Arc<Area>,
    /// Bytes that were written, which is at least what is ready.
    written: usize,
}

impl Filling {
    /// Where the next bytes go: all that was not written.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        self.have_pages();
        let len = self.area.len.saturating_sub(self.written);
        // SAFETY: within what is allocated and has a content; nobody reads it before it is ready,
        // and nobody else can write.
        unsafe { slice::from_raw_parts_mut(self.area.at.as_ptr().add(self.written), len) }
    }

    /// Has the pages that come next.
    fn have_pages(&self) {
        if let Some(map) = &self.area.map {
            map.have_pages(self.written);
        }
    }

    /// The next `len` bytes were written.
    pub(crate) fn advance(&mut self, len: usize) {
        self.written = self.written.saturating_add(len).min(self.area.len);
    }

    /// What was written from `start` on, `len` bytes at most.
    pub(crate) fn written(&self, start: usize, len: usize) -> &[u8] {
        let end = start.saturating_add(len).min(self.written);
        let start = start.min(end);
        // SAFETY: written, so within what is allocated, and only this could change it.
        unsafe {
            slice::from_raw_parts(self.area.at.as_ptr().add(start), end.saturating_sub(start))
        }
    }

    /// What was written up to `end` is ready for everybody.
    pub(crate) fn publish(&mut self, end: usize) {
        let end = end.min(self.written);
        let ready = self.area.ready.load(Ordering::Relaxed);
        self.area.ready.store(end.max(ready), Ordering::Release);
    }

    /// The `len` bytes from `start` on are zero: their pages are given back. They still read as zeroes.
    pub(crate) fn forget_zeroes(&mut self, start: usize, len: usize) {
        let end = start.saturating_add(len).min(self.written) / PAGE * PAGE;
        let first = start.next_multiple_of(PAGE);
        if let Some(map) = &self.area.map
            && first < end
        {
            debug_assert!(
                self.written(first, end - first)
                    .iter()
                    .all(|byte| *byte == 0)
            );
            // SAFETY: whole pages. An anonymous page that is not there is zero, as these are, so who reads
            // them at this moment sees no change.
            unsafe { map.mapping.advise(first..end, libc::MADV_DONTNEED) };
        }
    }

    /// All of the area, for a decoder that looks back into what it has written.
    pub(crate) fn room(&mut self) -> Room<'_> {
        self.have_pages();
        Room(self)
    }
}

/// Memory for all that a decoder makes, in which it may look back: an output of libzstd.
#[derive(Debug)]
pub struct Room<'a>(&'a mut Filling);

impl Room<'_> {
    /// Where the next byte goes.
    #[must_use]
    pub fn at(&self) -> usize {
        self.0.written
    }
}

// SAFETY: the pointer is that of `capacity` bytes, which are allocated as long as this lives and have
// a content from the beginning. `as_slice` is not used to look at what others may write: nobody does.
unsafe impl zstd_safe::WriteBuf for Room<'_> {
    fn as_slice(&self) -> &[u8] {
        let area = &self.0.area;
        // SAFETY: as above.
        unsafe { slice::from_raw_parts(area.at.as_ptr(), area.len) }
    }

    fn capacity(&self) -> usize {
        self.0.area.len
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.area.at.as_ptr()
    }

    unsafe fn filled_until(&mut self, _: usize) {
        // Whoever decodes says so, with `Filling::advance`.
    }
}

/// A mapping that is used again.
#[derive(Debug)]
struct Map {
    mapping: Mapping,
    /// Bytes from the start on that have pages.
    paged: AtomicUsize,
}

impl Map {
    /// One that nobody uses, or a new one.
    fn used_again(len: usize) -> Option<Self> {
        let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
        // What was given back last is the warmest.
        let found = spares.iter().rposition(|map| map.len() == len);
        let map = found.map(|at| spares.swap_remove(at));
        drop(spares);
        match map {
            Some(map) => Some(map),
            None => Self::new(len),
        }
    }

    /// Keeps it for the next use, if there is room.
    fn give_back(self) {
        let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = spares.iter().map(Map::len).sum();
        // What has no room is unmapped after the lock is gone.
        let gone = if bytes.saturating_add(self.len()) <= SPARE {
            spares.push(self);
            None
        } else {
            Some(self)
        };
        drop(spares);
        drop(gone);
    }

    fn new(len: usize) -> Option<Self> {
        let huge = len >= HUGE;
        let mapping = Mapping::new(len, if huge { 0 } else { libc::MAP_POPULATE })?;
        if huge {
            // SAFETY: about the pages, not what they hold. Where the kernel has no huge ones it has others.
            unsafe { mapping.advise(0..len, libc::MADV_HUGEPAGE) };
        }
        let paged = AtomicUsize::new(if huge { 0 } else { len });
        Some(Self { mapping, paged })
    }

    fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Sees to it that the bytes behind `written` have pages, some of them.
    fn have_pages(&self, written: usize) {
        let paged = self.paged.load(Ordering::Relaxed);
        if paged >= self.len() || written < paged {
            return;
        }
        let end = written.saturating_add(AT_ONCE).min(self.len());
        self.paged.store(end, Ordering::Relaxed);
        let first = paged / PAGE * PAGE;
        // SAFETY: what the pages hold does not change. Where the kernel (before 5.14) cannot do it, they
        // come when they are touched.
        unsafe { self.mapping.advise(first..end, libc::MADV_POPULATE_WRITE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 256 << 10;

    #[test]
    fn no_two_have_the_same_bytes() {
        let mut all: Vec<Memory> = (0..9).map(|_| Memory::new(PIECE).unwrap()).collect();
        for (number, memory) in (0..).zip(&mut all) {
            memory.fill(number);
        }
        for (number, memory) in (0..).zip(&all) {
            assert_eq!(memory.len(), PIECE);
            assert!(memory.iter().all(|byte| *byte == number), "{number}");
        }
    }

    #[test]
    fn each_length_is_served() {
        for len in [0, 1, SMALL - 1, SMALL, SMALL + 1, PIECE - 1, PIECE] {
            let mut memory = Memory::new(len).unwrap();
            memory.fill(1);
            assert_eq!(memory.len(), len);
        }
    }

    #[test]
    fn an_area_shows_what_is_ready_and_nothing_else() {
        for len in [10, SMALL - 1, SMALL, PIECE, 2 * AT_ONCE + 5] {
            let (area, mut filling) = Area::start(len).unwrap();
            assert_eq!(filling.spare().len(), len);
            filling.spare()[..5].fill(7);
            filling.advance(5);
            assert_eq!(area.get(0..1), None);
            assert_eq!(area.get(0..0), Some(&[][..]));
            assert_eq!(filling.written(1, 100), [7; 4]);
            filling.publish(100);
            assert_eq!(area.get(1..5), Some(&[7; 4][..]));
            assert_eq!(area.get(1..6), None);
            #[allow(clippy::reversed_empty_ranges, reason = "what must be refused")]
            let reversed = area.get(3..2);
            assert_eq!(reversed, None);
            assert_eq!(filling.spare().len(), len - 5);
            let spare = filling.spare().len();
            filling.spare()[spare - 1] = 1;
            filling.advance(len);
            assert_eq!(filling.spare().len(), 0);
        }
    }

    #[test]
    fn zeroes_that_are_given_back_are_still_zeroes() {
        let (area, mut filling) = Area::start(4 * PIECE).unwrap();
        filling.spare().fill(9);
        filling.spare()[PIECE..2 * PIECE + 100].fill(0);
        filling.advance(4 * PIECE);
        filling.publish(PIECE);
        filling.forget_zeroes(PIECE, PIECE + 100);
        filling.publish(4 * PIECE);
        let bytes = area.get(0..4 * PIECE).unwrap();
        let zeroes = PIECE..2 * PIECE + 100;
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte == 0, zeroes.contains(&at), "{at}");
        }
    }

    #[test]
    fn what_is_kept_for_the_next_use_is_bounded() {
        let all: Vec<_> = (0..64).map(|_| Memory::new(PIECE).unwrap()).collect();
        drop(all);
        let bytes: usize = SPARES.lock().unwrap().iter().map(Map::len).sum();
        // Other tests of this process use it, too.
        assert!(bytes <= SPARE);
    }
}
