//! All `unsafe` of this crate: the calls into liblzma and zlib, locks of open file descriptions,
//! memory for decoded bytes and for keys, and the heap's own housekeeping.
#![allow(unsafe_code)]

pub(crate) mod locked;
pub(crate) mod lzma;
mod mapping;
pub(crate) mod memory;
pub(crate) mod ofd_lock;
pub(crate) mod zlib;

/// Gives memory that was freed back to the system, where it is kept otherwise.
pub(crate) fn trim_heap() {
    memory::drop_spares();
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread; it touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
