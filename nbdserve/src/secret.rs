//! Passphrases and keys on their way to a layer. They are wiped when they are dropped, and never in a
//! plan, a record, a log or a message. Where they lie is locked into memory, as far as the system
//! allows it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::{Zeroize, zeroize_stack};

use crate::{Error, Kind, Result};

pub use crate::sys::locked::LockedBytes;

/// Does `work`, and wipes `STACK` bytes of the stack, which it and all that it calls have used: pieces of
/// keys may be left there.
pub(crate) fn with_wiped_stack<const STACK: usize, T>(work: impl FnOnce() -> T) -> T {
    /// Not inlined, or its variables would not lie where the wiping begins.
    #[inline(never)]
    fn below<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let result = below(work);
    zeroize_stack::<STACK>();
    result
}

/// Most bytes of a passphrase or a key file, as cryptsetup has it.
pub const MOST_BYTES: usize = 8 << 20;

/// A passphrase or the content of a key file. Wiped on drop; `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(Arc<LockedBytes>);

impl Secret {
    /// Takes over the bytes, and wipes where they were. Whoever made them sees to it that no other
    /// copy is left.
    #[must_use]
    pub fn new(mut bytes: Vec<u8>) -> Self {
        let secret = Self::from(LockedBytes::copy_of(&bytes));
        bytes.zeroize();
        secret
    }

    /// The bytes themselves.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<LockedBytes> for Secret {
    fn from(bytes: LockedBytes) -> Self {
        Self(Arc::new(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What a layer wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which thing is locked, for the user: `LUKS2 "backup" (a9f5…)`. Escaped.
    pub what: String,
    /// How many answers to this question were wrong before.
    pub attempt: u32,
}

/// Whoever has the secrets: a key file, a person at a terminal, nobody.
pub trait Secrets: Send + Sync {
    /// The answer to a question. May wait for a person.
    ///
    /// # Errors
    /// `Secret` when there is none, or none that was not tried before; the sentence is for the user.
    fn answer(&self, question: &Question) -> Result<Secret>;
}

impl fmt::Debug for dyn Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// [`Secrets`] of somebody who has none.
#[derive(Debug)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn answer(&self, question: &Question) -> Result<Secret> {
        let what = format!("{} is locked, and no key was given", question.what);
        Err(Error::new(Kind::Secret, what).hint("--key-file FILE gives one"))
    }
}

/// [`Secrets`] with one answer to everything, for the first attempt.
#[derive(Debug)]
pub struct OneSecret(pub Secret);

impl Secrets for OneSecret {
    fn answer(&self, question: &Question) -> Result<Secret> {
        if question.attempt == 0 {
            return Ok(self.0.clone());
        }
        let what = format!("the key does not open {}", question.what);
        Err(Error::new(Kind::Secret, what))
    }
}

/// Whoever has the secrets, and what the last answers were: so that an image can be opened twice and
/// nobody is asked twice.
pub struct Remembered {
    inner: Arc<dyn Secrets>,
    answers: Mutex<Vec<(String, Secret)>>,
    repeats: AtomicBool,
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered")
    }
}

impl Remembered {
    /// Asks `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Secrets>) -> Self {
        Self {
            inner,
            answers: Mutex::default(),
            repeats: AtomicBool::new(false),
        }
    }

    /// From here on the last answer to a question is the first one to the same question.
    pub fn repeat(&self) {
        self.repeats.store(true, Ordering::Release);
    }

    /// Wipes the answers; nothing is remembered any more.
    pub fn forget(&self) {
        self.repeats.store(false, Ordering::Release);
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Secret)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Secrets for Remembered {
    fn answer(&self, question: &Question) -> Result<Secret> {
        if self.repeats.load(Ordering::Acquire) && question.attempt == 0 {
            let answers = self.lock();
            let known = answers.iter().find(|(what, _)| *what == question.what);
            if let Some((_, secret)) = known {
                return Ok(secret.clone());
            }
        }
        let secret = self.inner.answer(question)?;
        let mut answers = self.lock();
        answers.retain(|(what, _)| *what != question.what);
        answers.push((question.what.clone(), secret.clone()));
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_twice_until_it_is_forgotten() {
        let one = OneSecret(Secret::new(b"swordfish".to_vec()));
        let remembered = Remembered::new(Arc::new(one));
        let question = |attempt| Question {
            what: "luks".to_owned(),
            attempt,
        };
        remembered.answer(&question(0)).unwrap();
        remembered.repeat();
        let again = remembered.answer(&question(0)).unwrap();
        assert_eq!(again.bytes(), b"swordfish");
        remembered.answer(&question(1)).unwrap_err();
        remembered.forget();
        assert!(remembered.lock().is_empty());
    }

    #[test]
    fn a_secret_is_not_printed() {
        let secret = Secret::new(b"swordfish".to_vec());
        assert_eq!(format!("{:?}", OneSecret(secret)), "OneSecret(Secret)");
    }

    #[test]
    fn one_key_is_tried_once() {
        let secrets = OneSecret(Secret::new(b"swordfish".to_vec()));
        let mut question = Question {
            what: "luks".to_owned(),
            attempt: 0,
        };
        assert_eq!(secrets.answer(&question).unwrap().bytes(), b"swordfish");
        question.attempt = 1;
        assert_eq!(secrets.answer(&question).unwrap_err().kind(), Kind::Secret);
    }
}
