//! Which nodes the kernel has heard of, at a bit each.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Nodes per chunk: 512 bytes of bits.
const CHUNK: u64 = 4096;
const WORD: u64 = 64;

/// A set of inode numbers that only grows. The kernel forgets nodes; to it, news about a node it
/// has forgotten is no error, so what is in here need not be exact.
#[derive(Debug, Default)]
pub(super) struct NodeSet(Mutex<HashMap<u64, Box<[u64]>>>);

impl NodeSet {
    /// Adds `ino`.
    pub(super) fn insert(&self, ino: u64) {
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bits = chunks
            .entry(ino / CHUNK)
            .or_insert_with(|| vec![0; (CHUNK / WORD) as usize].into());
        // Below CHUNK / WORD by the remainder.
        bits[(ino % CHUNK / WORD) as usize] |= 1 << (ino % WORD);
    }

    /// All members, in no order.
    pub(super) fn to_vec(&self) -> Vec<u64> {
        let chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::new();
        for (chunk, words) in chunks.iter() {
            for (at, word) in words.iter().enumerate() {
                let base = chunk * CHUNK + at as u64 * WORD;
                out.extend(
                    (0..WORD)
                        .filter(|bit| word >> bit & 1 == 1)
                        .map(|bit| base + bit),
                );
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_once() {
        let set = NodeSet::default();
        let wanted = [1, 2, 63, 64, 4095, 4096, 1 << 40];
        for ino in wanted.into_iter().chain(wanted) {
            set.insert(ino);
        }
        let mut found = set.to_vec();
        found.sort_unstable();
        assert_eq!(found, wanted);
    }
}
