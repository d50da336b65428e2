//! Tables of an image that may be longer than memory: read page by page as they are wanted, and the
//! pages that were wanted last are kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::cut::cut_off;
use crate::bytes::array;
use crate::{Result, Volume};

/// Bytes of a page: one request, and many entries.
const PAGE: u64 = 16 << 10;
/// What a page takes beside its bytes, rounded up.
const OVERHEAD: u64 = 256;
/// At least so many pages are kept.
const LEAST: u64 = 8;

/// A page; short at the end of the volume.
type Page = Arc<[u8]>;
/// Which volume, and which page of it.
type Key = (u64, u64);

/// The memory for the tables of some volumes that belong together: the files of a disk, a chain of
/// disks.
#[derive(Clone, Debug)]
pub(crate) struct PageCache(Arc<Mutex<Kept>>);

impl PageCache {
    /// At most about `memory` bytes are kept.
    pub(crate) fn new(memory: u64) -> Self {
        let one = PAGE.saturating_add(OVERHEAD).saturating_mul(2);
        let most = memory.checked_div(one).unwrap_or(0).max(LEAST);
        Self(Arc::new(Mutex::new(Kept {
            young: HashMap::new(),
            old: HashMap::new(),
            most: usize::try_from(most).unwrap_or(usize::MAX),
            volumes: 0,
        })))
    }

    /// The tables in `volume`.
    pub(crate) fn pages(&self, volume: &Volume) -> Pages {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.volumes = kept.volumes.saturating_add(1);
        Pages {
            volume: volume.clone(),
            number: kept.volumes,
            cache: self.clone(),
        }
    }
}

/// Parts of a volume, in memory.
#[derive(Debug)]
pub(crate) struct Pages {
    volume: Volume,
    /// That of the volume in the cache.
    number: u64,
    cache: PageCache,
}

/// Two generations: a page that is asked for moves to the young ones. When these are as many as may
/// be kept, they become the old ones, and the old ones go.
#[derive(Debug)]
struct Kept {
    young: HashMap<Key, Page>,
    old: HashMap<Key, Page>,
    /// Most pages of a generation.
    most: usize,
    /// Volumes so far.
    volumes: u64,
}

impl Pages {
    /// The tables in `volume`, of which at most about `memory` bytes are kept.
    pub(crate) fn new(volume: &Volume, memory: u64) -> Self {
        PageCache::new(memory).pages(volume)
    }

    /// The volume that they lie in.
    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The page of this number.
    fn page(&self, number: u64) -> Result<Page> {
        let kept = &self.cache.0;
        let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (self.number, number);
        if let Some(page) = lock().get(key) {
            return Ok(page);
        }
        let at = number.saturating_mul(PAGE);
        let len = PAGE.min(self.volume.size().saturating_sub(at));
        let len = usize::try_from(len).unwrap_or(0);
        let page: Page = self.volume.read_vec(at, len)?.into();
        lock().put(key, &page);
        Ok(page)
    }

    /// Calls `look` with the bytes from `at` on, as many as are at hand: at least `len`, which is at
    /// most the entry that begins there, and up to `most`.
    ///
    /// # Errors
    /// `Corrupt` when the volume ends before; what the volume says.
    pub(crate) fn with<T>(
        &self,
        at: u64,
        len: usize,
        most: usize,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        let end = u64::try_from(len).ok().and_then(|len| at.checked_add(len));
        if end.is_none_or(|end| end > self.volume.size()) {
            let size = self.volume.size();
            let what = format!("{len} bytes of a table at {at}, the file has only {size}");
            return Err(cut_off(what));
        }
        let number = at.checked_div(PAGE).unwrap_or(0);
        let page = self.page(number)?;
        let skip = usize::try_from(at.saturating_sub(number.saturating_mul(PAGE)));
        let here = page.get(skip.unwrap_or(usize::MAX)..).unwrap_or(&[]);
        if here.len() >= len {
            return Ok(look(here.get(..most).unwrap_or(here)));
        }
        // An entry across two pages.
        Ok(look(&self.volume.read_vec(at, len)?))
    }

    /// The `N` bytes at `at`.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub(crate) fn array<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let found = self.with(at, N, N, |bytes| array(bytes, 0))?;
        // There were that many.
        Ok(found.unwrap_or([0; N]))
    }
}

impl Kept {
    fn get(&mut self, key: Key) -> Option<Page> {
        if let Some(page) = self.young.get(&key) {
            return Some(Arc::clone(page));
        }
        let page = self.old.remove(&key)?;
        self.put(key, &page);
        Some(page)
    }

    fn put(&mut self, key: Key, page: &Page) {
        if self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, Arc::clone(page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use crate::source::Memory;

    fn pages(len: u64) -> Pages {
        let bytes = (0..len).map(|at| u8::try_from(at % 251).unwrap());
        Pages::new(&Memory::volume(bytes.collect()), 0)
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    #[test]
    fn entries_are_read_wherever_they_lie() {
        let len = PAGE.saturating_mul(40).saturating_add(5);
        let pages = pages(len);
        for round in 0..3 {
            for at in (0..len.saturating_sub(4)).step_by(4093) {
                let found: [u8; 4] = pages.array(at).unwrap();
                let wanted = [0, 1, 2, 3].map(|more| byte(at.saturating_add(more)));
                assert_eq!(found, wanted, "{at} in round {round}");
            }
        }
        let kept = pages.cache.0.lock().unwrap();
        assert!(kept.young.len() <= 8 && kept.old.len() <= 8, "{kept:?}");
    }

    #[test]
    fn an_entry_across_pages_and_one_behind_the_end() {
        let pages = pages(PAGE.saturating_add(3));
        let at = PAGE.saturating_sub(2);
        let found: [u8; 4] = pages.array(at).unwrap();
        let wanted = [0, 1, 2, 3].map(|more| byte(at.saturating_add(more)));
        assert_eq!(found, wanted);
        for at in [PAGE, PAGE.saturating_add(3), u64::MAX] {
            let error = pages.array::<4>(at).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{at}");
        }
    }

    #[test]
    fn volumes_share_the_memory_and_not_the_pages() {
        let cache = PageCache::new(0);
        let len = usize::try_from(PAGE.saturating_mul(6)).unwrap();
        let all = [1, 2, 3].map(|byte| cache.pages(&Memory::volume(vec![byte; len])));
        for _ in 0..3 {
            for (byte, pages) in (1..).zip(&all) {
                for number in 0..6_u64 {
                    let at = number.saturating_mul(PAGE);
                    assert_eq!(pages.array(at).unwrap(), [byte; 4]);
                }
            }
        }
        let kept = cache.0.lock().unwrap();
        assert!(kept.young.len() <= 8 && kept.old.len() <= 8, "{kept:?}");
    }

    #[test]
    fn what_is_at_hand_is_given_at_once() {
        let pages = pages(PAGE);
        let len = pages.with(8, 4, 4096, <[u8]>::len).unwrap();
        assert_eq!(len, 4096);
        let len = pages.with(PAGE.saturating_sub(8), 4, 4096, <[u8]>::len);
        assert_eq!(len.unwrap(), 8);
    }
}
