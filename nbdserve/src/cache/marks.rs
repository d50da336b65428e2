//! A bit for each of many numbers, most of which are small or close together.

use std::collections::HashMap;

/// Numbers below this many times 64 have a place in a row: 8 MiB at most.
const NEAR: usize = 1 << 20;
/// Of other numbers, so many groups of 64 are remembered: an image that has few blocks with large
/// numbers must not cost what many would.
const MOST_FAR: usize = 1 << 16;

/// A set of numbers. It may forget numbers that are large, if there are very many.
#[derive(Debug, Default)]
pub(super) struct Marks {
    near: Vec<u64>,
    far: HashMap<u64, u64>,
}

impl Marks {
    pub(super) fn set(&mut self, number: u64) {
        let (word, bit) = (number / 64, 1 << (number % 64));
        match usize::try_from(word) {
            Ok(index) if index < NEAR => {
                if self.near.len() <= index {
                    self.near.resize(index + 1, 0);
                }
                self.near[index] |= bit;
            }
            _ => {
                if self.far.len() < MOST_FAR || self.far.contains_key(&word) {
                    *self.far.entry(word).or_default() |= bit;
                }
            }
        }
    }

    pub(super) fn has(&self, number: u64) -> bool {
        let (word, bit) = (number / 64, 1 << (number % 64));
        let near = usize::try_from(word).ok().filter(|index| *index < NEAR);
        let bits = match near {
            Some(index) => self.near.get(index),
            None => self.far.get(&word),
        };
        bits.is_some_and(|bits| bits & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_near_and_far_are_found_again_and_no_others() {
        let mut marks = Marks::default();
        let numbers = [
            0,
            63,
            64,
            1 << 20,
            (1 << 26) - 1,
            1 << 26,
            1 << 50,
            u64::MAX,
        ];
        for number in numbers {
            assert!(!marks.has(number), "{number}");
            marks.set(number);
        }
        for number in numbers {
            assert!(marks.has(number), "{number}");
            for other in [number ^ 1, number ^ (1 << 40)] {
                assert_eq!(marks.has(other), numbers.contains(&other), "{other}");
            }
        }
        assert_eq!(marks.near.len(), NEAR);
    }

    #[test]
    fn very_many_far_numbers_do_not_take_more_memory() {
        let mut marks = Marks::default();
        for step in 0..MOST_FAR as u64 + 10 {
            marks.set((1 << 30) + step * 64);
        }
        assert_eq!(marks.far.len(), MOST_FAR);
        marks.set((1 << 30) + 1);
        assert!(marks.has((1 << 30) + 1));
    }
}
