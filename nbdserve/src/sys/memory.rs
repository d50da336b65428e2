//! Memory for decoded bytes: mappings that are used again and again.
//!
//! A fresh mapping costs a page fault for each of its pages, which all in all takes longer than a
//! fast codec takes to fill them. So the pages come with the mapping, in one call, and mappings
//! that are not in use are kept for whoever comes next.

use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Mutex, PoisonError};

use libc::c_void;

/// Less than this is left to the heap.
const SMALL: usize = 128 << 10;
/// Bytes of mappings that are kept for the next use.
const SPARE: usize = 8 << 20;

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
        let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
        // What was given back last is the warmest.
        let found = spares.iter().rposition(|map| map.len == len);
        let map = found.map(|at| spares.swap_remove(at));
        drop(spares);
        Some(Self(Held::Mapped(Some(match map {
            Some(map) => map,
            None => Map::new(len)?,
        }))))
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Heap(bytes) => bytes,
            Held::Mapped(map) => map.as_ref().map_or(&[], Map::bytes),
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Held::Heap(bytes) => bytes,
            Held::Mapped(map) => map.as_mut().map_or(&mut [], Map::bytes_mut),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Held::Mapped(map) = &mut self.0
            && let Some(map) = map.take()
        {
            let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes: usize = spares.iter().map(|spare| spare.len).sum();
            // What has no room is unmapped after the lock is gone.
            let gone = if bytes.saturating_add(map.len) <= SPARE {
                spares.push(map);
                None
            } else {
                Some(map)
            };
            drop(spares);
            drop(gone);
        }
    }
}

/// An anonymous mapping, all of it readable and writable.
#[derive(Debug)]
struct Map {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and this owns it as a box does.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(len: usize) -> Option<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping, where the system likes.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        let at = NonNull::new(at.cast::<u8>())?;
        Some(Self { at, len })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped from there as long as this lives, and the pages of an
        // anonymous mapping have a content from the beginning.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; nobody else has the mapping.
        unsafe { slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; nobody has a reference into it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast::<c_void>(), self.len) };
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
    fn what_is_kept_for_the_next_use_is_bounded() {
        let all: Vec<_> = (0..64).map(|_| Memory::new(PIECE).unwrap()).collect();
        drop(all);
        let bytes: usize = SPARES.lock().unwrap().iter().map(|map| map.len).sum();
        // Other tests of this process use it, too.
        assert!(bytes <= SPARE);
    }
}
