//! Opening a keyslot: derive its key, decrypt the stripes, merge them, check the digest.

use super::cipher::{IV_UNIT, SectorCipher};
use super::hash::Hash;
use super::header::{Digest, Keyslot};
use super::kdf::{Bounds, Kdf};
use crate::secret::{LockedBytes, Secret};
use crate::{Cx, Error, Kind, Result, Volume};

/// A key. Wiped when it is dropped.
pub(super) type Key = LockedBytes;

/// The volume key that `secret` finds in this keyslot; `None` when that is not the one of `digest`.
///
/// # Errors
/// `Corrupt` and `Limit` for what the keyslot asks for, and what reading says.
pub(super) fn open(
    below: &Volume,
    keyslot: &Keyslot,
    digest: &Digest,
    secret: &Secret,
    bounds: &Bounds,
    cx: &Cx,
) -> Result<Option<Key>> {
    let len = keyslot.split_len();
    let area = len.checked_next_multiple_of(IV_UNIT).unwrap_or(len);
    if keyslot.end().is_none_or(|end| end > below.size()) {
        let (at, have) = (keyslot.offset, below.size());
        let what = format!("its {len} bytes at {at} are not within the {have} bytes of the image");
        return Err(Error::new(Kind::Corrupt, what));
    }
    // First what is cheap.
    let mut split = LockedBytes::new(area);
    below.read_at(&mut split, keyslot.offset)?;
    let key = keyslot
        .kdf
        .derive(secret, keyslot.cipher.key_len(), bounds, cx)?;
    SectorCipher::new(&keyslot.cipher, &key, IV_UNIT, 1)?.decrypt(&mut split, 0);
    split.truncate(len);
    let key = merge(&split, keyslot.key_len, keyslot.af_hash);
    Ok(is_right(&key, digest, bounds, cx)?.then_some(key))
}

/// Whether `key` is the volume key.
fn is_right(key: &Key, digest: &Digest, bounds: &Bounds, cx: &Cx) -> Result<bool> {
    let kdf = Kdf::pbkdf2(digest.hash, digest.salt.clone(), digest.iterations)?;
    let secret = Secret::from(LockedBytes::copy_of(key));
    let found = kdf.derive(&secret, digest.digest.len(), bounds, cx)?;
    // In a time that tells nothing.
    let differ = found.iter().zip(&digest.digest);
    Ok(differ.fold(0, |all, (a, b)| all | (a ^ b)) == 0)
}

/// AFmerge of the specification: all stripes are needed for any of the key.
pub(super) fn merge(split: &[u8], key_len: usize, hash: Hash) -> Key {
    let mut key = Key::new(key_len);
    let mut stripes = split.chunks_exact(key_len.max(1)).peekable();
    while let Some(stripe) = stripes.next() {
        for (byte, other) in key.iter_mut().zip(stripe) {
            *byte ^= other;
        }
        if stripes.peek().is_some() {
            diffuse(&mut key, hash);
        }
    }
    key
}

/// Replaces each piece, as long as a hash, by the hash of its number and itself.
fn diffuse(key: &mut [u8], hash: Hash) {
    for (piece, number) in key.chunks_mut(hash.len()).zip(0_u32..) {
        let hashed = hash.of(&[&number.to_be_bytes(), piece]);
        for (byte, new) in piece.iter_mut().zip(hashed.iter()) {
            *byte = *new;
        }
    }
}
