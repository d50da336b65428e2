//! Whether a server answers requests for several ranges. No field of an answer tells; it is tried.

use std::sync::{Mutex, PoisonError};

/// What is known of a server.
#[derive(Debug)]
pub(super) struct Ability(Mutex<Known>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// It has refused one, which may have had other reasons.
    Doubted,
    Able,
    Unable,
}

impl Ability {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Known::Nothing))
    }

    /// Whether several ranges may be asked for at once.
    pub(super) fn may_be(&self) -> bool {
        self.with(|known| *known != Known::Unable)
    }

    /// It has sent several.
    pub(super) fn shown(&self) {
        self.with(|known| {
            if *known != Known::Unable {
                *known = Known::Able;
            }
        });
    }

    /// It has answered with something else. For good: even one that could is asked range by range.
    pub(super) fn missing(&self) {
        self.with(|known| *known = Known::Unable);
    }

    /// There was no usable answer, which a request for one range might have got too.
    pub(super) fn doubted(&self) {
        self.with(|known| {
            *known = match *known {
                Known::Nothing => Known::Doubted,
                Known::Doubted => Known::Unable,
                other => other,
            };
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_refusals_count_only_before_the_first_success() {
        let ability = Ability::new();
        ability.doubted();
        assert!(ability.may_be());
        ability.doubted();
        assert!(!ability.may_be());
        ability.shown();
        assert!(!ability.may_be());

        let ability = Ability::new();
        ability.doubted();
        ability.shown();
        ability.doubted();
        ability.doubted();
        assert!(ability.may_be());
        ability.missing();
        assert!(!ability.may_be());
    }
}
