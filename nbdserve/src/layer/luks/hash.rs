//! The hash functions that headers name.

use hmac::Hmac;
use sha1::Sha1;
use sha2::digest::{Digest, FixedOutput, KeyInit, Update};
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use crate::error::quote;
use crate::{Error, Kind, Result};

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    const ALL: [Self; 5] = [
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
    ];

    /// # Errors
    /// `Unsupported` for another one, by its name.
    pub(super) fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|hash| hash.name() == name);
        found.ok_or_else(|| {
            let what = format!("the hash {} is none that this version has", quote(name));
            let hint = "it has sha1, sha224, sha256, sha384 and sha512";
            Error::new(Kind::Unsupported, what).hint(hint)
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of its result: at most 64.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The hash of all parts, one after the other. Wiped when dropped.
    pub(super) fn of(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Sha1 => digest::<Sha1>(parts),
            Self::Sha224 => digest::<Sha224>(parts),
            Self::Sha256 => digest::<Sha256>(parts),
            Self::Sha384 => digest::<Sha384>(parts),
            Self::Sha512 => digest::<Sha512>(parts),
        }
    }

    /// PBKDF2 (RFC 8018) with HMAC of this function. Fills `out`.
    pub(super) fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        match self {
            Self::Sha1 => pbkdf2::<Hmac<Sha1>>(password, salt, iterations, out),
            Self::Sha224 => pbkdf2::<Hmac<Sha224>>(password, salt, iterations, out),
            Self::Sha256 => pbkdf2::<Hmac<Sha256>>(password, salt, iterations, out),
            Self::Sha384 => pbkdf2::<Hmac<Sha384>>(password, salt, iterations, out),
            Self::Sha512 => pbkdf2::<Hmac<Sha512>>(password, salt, iterations, out),
        }
    }
}

fn digest<D: Digest>(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut hash = D::new();
    for part in parts {
        Digest::update(&mut hash, part);
    }
    Zeroizing::new(hash.finalize().to_vec())
}

fn pbkdf2<M>(password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8])
where
    M: KeyInit + Update + FixedOutput + Clone,
{
    // HMAC takes a key of any length, the only error there is.
    let done = ::pbkdf2::pbkdf2::<M>(password, salt, iterations, out);
    debug_assert!(done.is_ok());
}
