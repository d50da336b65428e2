//! Anonymous memory of the process: mapped, read, written and unmapped as one.

use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;

use libc::{c_int, c_void};

/// An anonymous mapping, all of it readable and writable. Zeroed in the beginning.
#[derive(Debug)]
pub(super) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and this owns it as a box does.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes, at least one, where the system likes; `flags` besides those that make it private.
    /// `None` when there is no memory.
    pub(super) fn new(len: usize, flags: c_int) -> Option<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        // SAFETY: a new mapping, where the system likes.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        let at = NonNull::new(at.cast::<u8>())?;
        Some(Self { at, len })
    }

    /// Where it begins.
    pub(super) fn at(&self) -> NonNull<u8> {
        self.at
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Tells the system something about the pages of `range`, which begins with one. Best effort: an
    /// older kernel may not know the `advice`.
    ///
    /// # Safety
    /// What anybody has a reference to must be the same after it.
    pub(super) unsafe fn advise(&self, range: Range<usize>, advice: c_int) {
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        // SAFETY: within the mapping; the rest is the caller's promise.
        unsafe {
            let at = self.at.as_ptr().add(start).cast::<c_void>();
            libc::madvise(at, end.saturating_sub(start), advice);
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped from there as long as this lives, and the pages of an
        // anonymous mapping have a content from the beginning.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; nobody else has the mapping.
        unsafe { slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; nobody has a reference into it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast::<c_void>(), self.len) };
    }
}
