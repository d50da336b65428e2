//! Passphrases and keys on their way to a layer. They are wiped when they are dropped, and never in a
//! plan, a record, a log or a message.

use std::fmt;

use zeroize::Zeroizing;

use crate::{Error, Kind, Result};

/// Most bytes of a passphrase or a key file, as cryptsetup has it.
pub const MOST_BYTES: usize = 8 << 20;

/// A passphrase or the content of a key file. Wiped on drop; `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over the bytes. Whoever made them sees to it that no copy is left.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
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

#[cfg(test)]
mod tests {
    use super::*;

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
