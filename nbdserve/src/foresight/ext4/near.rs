//! How many directories to guess at: as many as such guesses are worth.

/// The fewest and the most at once. What is had at once is one request, which names at most so many
/// ranges.
const LEAST: usize = 8;
const MOST: usize = 64;
/// While there were fewer guesses than this, nothing is known.
const FEW: u32 = 32;
/// The last so many guesses count most.
const REMEMBERED: u32 = 256;

/// What became of the guesses so far.
#[derive(Debug, Default)]
pub(super) struct Near {
    guessed: u32,
    read: u32,
}

impl Near {
    /// So many directories were guessed at.
    pub(super) fn guessed(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(REMEMBERED);
        self.guessed = self.guessed.saturating_add(count);
        while self.guessed > REMEMBERED {
            self.guessed /= 2;
            self.read /= 2;
        }
    }

    /// One of them is read.
    pub(super) fn was_read(&mut self) {
        self.read = self.read.saturating_add(1).min(self.guessed);
    }

    /// How many to guess at next: all there can be when most are read, a few when hardly any are.
    pub(super) fn most(&self) -> usize {
        if self.guessed < FEW {
            return LEAST.saturating_mul(4);
        }
        let all = usize::try_from(self.guessed).unwrap_or(usize::MAX).max(1);
        let read = usize::try_from(self.read).unwrap_or(0);
        let share = read.saturating_mul(2).saturating_mul(MOST);
        share.checked_div(all).unwrap_or(0).clamp(LEAST, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_that_are_right_become_more_and_others_fewer() {
        let mut near = Near::default();
        let first = near.most();
        assert!(LEAST < first && first < MOST);
        for _ in 0..20 {
            near.guessed(near.most());
        }
        assert_eq!(near.most(), LEAST);
        for _ in 0..40 {
            let count = near.most();
            near.guessed(count);
            (0..count).for_each(|_| near.was_read());
        }
        assert_eq!(near.most(), MOST);
    }

    #[test]
    fn more_reads_than_guesses_are_not_believed() {
        let mut near = Near::default();
        for _ in 0..1000 {
            near.was_read();
            near.guessed(1);
        }
        assert_eq!(near.most(), MOST);
        assert!(near.read <= near.guessed);
    }
}
