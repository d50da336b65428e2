//! Memory for keys: pages of their own that are not swapped out, not part of a core dump, not there in
//! a child, and wiped before they are given back.
//!
//! Not `memfd_secret`: as long as such memory exists the machine cannot hibernate, and a mount lives
//! for days.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_void;
use zeroize::Zeroize;

use super::mapping::Mapping;

/// More than this at once is not locked: the limit for a process may be little more, and what comes
/// later is needed for longer.
const MOST_LOCKED: usize = 1 << 20;
/// Alignment that a mapping has at least.
const ALIGNMENT: usize = 4096;

/// Pages of their own, zeroed in the beginning and wiped in the end.
struct Pages(Mapping);

impl Pages {
    /// Without memory it ends the process, as the heap does.
    fn new(len: usize) -> Self {
        let len = len.max(1);
        let Some(mapping) = Mapping::new(len, 0) else {
            let layout = Layout::from_size_align(len, ALIGNMENT);
            handle_alloc_error(layout.unwrap_or(Layout::new::<[u8; ALIGNMENT]>()));
        };
        for advice in [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK] {
            // Best effort: both are for the case that something else fails.
            // SAFETY: they change nothing for this process.
            unsafe { mapping.advise(0..len, advice) };
        }
        let at = mapping.at().as_ptr().cast::<c_void>();
        // SAFETY: the mapping that was just made.
        if len > MOST_LOCKED || unsafe { libc::mlock(at, len) } != 0 {
            unlocked();
        }
        Self(mapping)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // Then it is unmapped, which unlocks it.
        self.0.bytes_mut().zeroize();
    }
}

/// Says once that the limit is too small.
fn unlocked() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::info!("keys are not locked into memory: they may be swapped out (ulimit -l)");
    }
}

/// A value that is or has a key. It is dropped, then wiped.
pub(crate) struct Locked<T> {
    pages: Pages,
    owned: PhantomData<T>,
}

impl<T> Locked<T> {
    /// Moves the value there. What the move leaves on the stack is the caller's to wipe.
    pub(crate) fn new(value: T) -> Self {
        const { assert!(align_of::<T>() <= ALIGNMENT) };
        let pages = Pages::new(size_of::<T>());
        // SAFETY: the mapping is as large as a `T`, aligned for it, and holds nothing.
        unsafe { pages.0.at().cast::<T>().write(value) };
        Self {
            pages,
            owned: PhantomData,
        }
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` has put a `T` there, and it is dropped with this only.
        unsafe { self.pages.0.at().cast::<T>().as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: `new` has put a `T` there; nobody has a reference to it any more, and the pages have
        // nothing to drop but bytes.
        unsafe { ptr::drop_in_place(self.pages.0.at().cast::<T>().as_ptr()) };
    }
}

impl<T> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked")
    }
}

/// Bytes that are a key. Zeroes in the beginning; `Debug` shows nothing of them.
pub struct LockedBytes {
    pages: Pages,
    /// At most as many as were mapped.
    len: usize,
}

impl LockedBytes {
    /// So many zeroes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self {
            pages: Pages::new(len),
            len,
        }
    }

    /// A copy.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::new(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }

    /// Keeps the first `len` bytes; does nothing when there are no more.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self[len..].zeroize();
            self.len = len;
        }
    }
}

impl Deref for LockedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.0.bytes()[..self.len]
    }
}

impl DerefMut for LockedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.pages.0.bytes_mut()[..len]
    }
}

impl fmt::Debug for LockedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockedBytes({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping that `at` lies in.
    fn flags_of(at: *const u8) -> Vec<String> {
        let at = at.addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            let number = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(a, b)| (number(a), number(b))) {
                inside = (start..end).contains(&at);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("{at:x} is not mapped");
    }

    fn has(flags: &[String], flag: &str) -> bool {
        flags.iter().any(|has| has == flag)
    }

    #[test]
    fn bytes_and_values_are_locked_and_in_no_dump_and_in_no_child() {
        let bytes = LockedBytes::copy_of(b"swordfish");
        let value = Locked::new([7_u64; 60]);
        assert_eq!(&bytes[..], b"swordfish");
        assert_eq!(*value, [7; 60]);
        for at in [bytes.as_ptr(), ptr::from_ref(&*value).cast()] {
            let flags = flags_of(at);
            for flag in ["lo", "dd", "wf"] {
                assert!(has(&flags, flag), "{flag} is not in {flags:?}");
            }
        }
        let ordinary = vec![0_u8; 1 << 20];
        assert!(!has(&flags_of(ordinary.as_ptr()), "lo"));
    }

    #[test]
    fn what_is_too_large_to_be_locked_serves_all_the_same() {
        let mut large = LockedBytes::new(MOST_LOCKED + 1);
        large.fill(1);
        assert!(large.iter().all(|byte| *byte == 1));
        let flags = flags_of(large.as_ptr());
        assert!(!has(&flags, "lo") && has(&flags, "dd"), "{flags:?}");
    }

    #[test]
    fn what_is_cut_off_is_wiped() {
        let mut bytes = LockedBytes::copy_of(b"swordfish and more");
        bytes.truncate(9);
        bytes.truncate(100);
        assert_eq!(&bytes[..], b"swordfish");
        assert!(bytes.pages.0.bytes()[9..].iter().all(|byte| *byte == 0));
        assert!(LockedBytes::new(0).is_empty());
    }

    #[test]
    fn a_value_is_dropped_once() {
        let counted = std::sync::Arc::new(());
        let locked = Locked::new(std::sync::Arc::clone(&counted));
        assert_eq!(std::sync::Arc::strong_count(&locked), 2);
        drop(locked);
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
    }
}
