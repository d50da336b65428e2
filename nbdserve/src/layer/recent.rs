//! A few things of which those that are used stay.

/// So many are remembered.
const MOST: usize = 8;

/// What was found or added lately, the latest first.
#[derive(Debug)]
pub(super) struct Recent<T>(Vec<T>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Recent<T> {
    /// The first one that `fits`, which is the latest from now on.
    pub(super) fn find(&mut self, fits: impl Fn(&T) -> bool) -> Option<&T> {
        let at = self.0.iter().position(fits)?;
        let (before, _) = self.0.split_at_mut_checked(at.checked_add(1)?)?;
        before.rotate_right(1);
        self.0.first()
    }

    /// One more. Where there are too many, the one that was not used for the longest time goes.
    pub(super) fn add(&mut self, one: T) {
        self.0.truncate(MOST.saturating_sub(1));
        self.0.insert(0, one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_however_much_comes_that_is_not() {
        let mut recent = Recent::default();
        recent.add(1000);
        for number in 0..100 {
            recent.add(number);
            if number % 7 == 6 {
                assert_eq!(recent.find(|one| *one == 1000), Some(&1000));
            }
        }
        assert_eq!(recent.find(|one| *one == 1), None);
        assert_eq!(recent.find(|one| *one == 99), Some(&99));
        assert_eq!(recent.0, [99, 98, 1000, 97, 96, 95, 94, 93]);
    }
}
