//! Reply buffers that are kept for the next request.

use std::ops::DerefMut;
use std::sync::{Mutex, PoisonError};

/// Most buffers kept, and most bytes of all of them together.
const MAX_KEPT: usize = 16;
const MAX_KEPT_BYTES: usize = 3 << 20;

/// Buffers not in use. The one used last is given out first: it is the warmest.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// Calls `fill` with `len` bytes of undefined content.
    pub(super) fn with<R>(&self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.take(len);
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let result = fill(&mut buffer[..len]);
        self.give_back(buffer);
        result
    }

    /// The kept buffer used last of those large enough, else a new one.
    fn take(&self, len: usize) -> Vec<u8> {
        let mut kept = self.lock();
        let fit = kept.iter().rposition(|buffer| buffer.len() >= len);
        match fit {
            Some(at) => kept.swap_remove(at),
            None => vec![0; len],
        }
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut kept = self.lock();
        let bytes: usize = kept.iter().map(Vec::len).sum();
        if kept.len() < MAX_KEPT && bytes.saturating_add(buffer.len()) <= MAX_KEPT_BYTES {
            kept.push(buffer);
        }
    }

    fn lock(&self) -> impl DerefMut<Target = Vec<Vec<u8>>> + '_ {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers = Buffers::default();
        buffers.with(1 << 20, |_| {
            buffers.with(1 << 20, |_| {
                buffers.with(1 << 20, |_| buffers.with(1 << 20, |buf| buf.len()))
            })
        });
        let kept = buffers.lock();
        assert_eq!(kept.iter().map(Vec::len).sum::<usize>(), MAX_KEPT_BYTES);
    }

    #[test]
    fn a_buffer_is_used_again() {
        let buffers = Buffers::default();
        buffers.with(100, |buf| buf.fill(7));
        buffers.with(50, |buf| assert_eq!(buf, [7; 50]));
        assert_eq!(buffers.lock().len(), 1);
    }
}
