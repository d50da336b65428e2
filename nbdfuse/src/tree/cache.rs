//! A small cache of what many threads look up again and again.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps at least the `half` entries used last and at most twice as many.
///
/// Two generations: what is used moves to the young one; when that is full, the old one is
/// dropped and the young one becomes the old.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    half: usize,
    generations: Mutex<Generations<K, V>>,
}

#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Counts the clearings, so that nothing made before one is kept after it.
    epoch: u64,
}

impl<K: Eq + Hash + Copy, V: Clone> Cache<K, V> {
    /// Of at most `2 * half` entries; nothing is allocated before they come.
    pub(crate) fn new(half: usize) -> Self {
        Self {
            half: half.max(1),
            generations: Mutex::new(Generations {
                young: HashMap::new(),
                old: HashMap::new(),
                epoch: 0,
            }),
        }
    }

    /// The value of `key`, made by `make` without a lock held when there is none: two threads may
    /// both make it, which is harmless for what never changes.
    ///
    /// # Errors
    /// Those of `make`; they are not kept.
    pub(crate) fn get_or_try<E>(
        &self,
        key: K,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, E> {
        let epoch = match self.get(key) {
            Ok(value) => return Ok(value),
            Err(epoch) => epoch,
        };
        let value = make()?;
        let mut now = self.lock();
        if now.epoch == epoch {
            now.put(self.half, key, value.clone());
        }
        Ok(value)
    }

    /// Forgets everything, and what is being made now.
    pub(crate) fn clear(&self) {
        let mut now = self.lock();
        now.epoch += 1;
        now.young.clear();
        now.old.clear();
    }

    /// The value, or the epoch in which it was missing.
    fn get(&self, key: K) -> Result<V, u64> {
        let mut now = self.lock();
        if let Some(value) = now.young.get(&key) {
            return Ok(value.clone());
        }
        let value = now.old.remove(&key).ok_or(now.epoch)?;
        now.put(self.half, key, value.clone());
        Ok(value)
    }

    fn lock(&self) -> MutexGuard<'_, Generations<K, V>> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V> Generations<K, V> {
    fn put(&mut self, half: usize, key: K, value: V) {
        if self.young.len() >= half {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let cache = Cache::new(10);
        let mut made = 0;
        for round in 0..1000 {
            cache
                .get_or_try::<()>(u64::MAX, || {
                    made += 1;
                    Ok(0)
                })
                .unwrap();
            cache.get_or_try::<()>(round, || Ok(round)).unwrap();
        }
        assert_eq!(made, 1);
        let now = cache.generations.lock().unwrap();
        assert!(now.young.len() + now.old.len() <= 20);
    }

    #[test]
    fn what_was_being_made_at_a_clearing_is_not_kept() {
        let cache = Cache::new(10);
        let make = || {
            cache.clear();
            Ok::<_, ()>(1)
        };
        assert_eq!(cache.get_or_try(7, make), Ok(1));
        assert_eq!(cache.get_or_try(7, || Ok::<_, ()>(2)), Ok(2));
        assert_eq!(cache.get_or_try(7, || Ok::<_, ()>(3)), Ok(2));
    }

    #[test]
    fn a_failure_is_not_kept() {
        let cache = Cache::new(10);
        assert_eq!(cache.get_or_try(1, || Err::<u64, _>("no")), Err("no"));
        assert_eq!(cache.get_or_try::<&str>(1, || Ok(5)), Ok(5));
    }
}
