//! AES of the three key lengths, many blocks at a time.

use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncClosure, BlockCipherEncrypt, KeyInit,
};
use aes::{Aes128, Aes192, Aes256};

pub(super) use aes::Block;

/// Bytes of a block.
pub(super) const BLOCK: usize = 16;
/// A key, expanded. Wiped when it is dropped.
pub(super) enum Aes {
    Aes128(Box<Aes128>),
    Aes192(Box<Aes192>),
    Aes256(Box<Aes256>),
}

impl Aes {
    /// `None` for a key that is not of 16, 24 or 32 bytes.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => Aes128::new_from_slice(key)
                .ok()
                .map(|key| Self::Aes128(Box::new(key))),
            24 => Aes192::new_from_slice(key)
                .ok()
                .map(|key| Self::Aes192(Box::new(key))),
            32 => Aes256::new_from_slice(key)
                .ok()
                .map(|key| Self::Aes256(Box::new(key))),
            _ => None,
        }
    }

    pub(super) fn encrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Aes128(key) => key.encrypt_blocks(blocks),
            Self::Aes192(key) => key.encrypt_blocks(blocks),
            Self::Aes256(key) => key.encrypt_blocks(blocks),
        }
    }

    pub(super) fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Aes128(key) => key.decrypt_blocks(blocks),
            Self::Aes192(key) => key.decrypt_blocks(blocks),
            Self::Aes256(key) => key.decrypt_blocks(blocks),
        }
    }

    /// Does a `job` that encrypts.
    pub(super) fn encrypt_with(&self, job: impl BlockCipherEncClosure<BlockSize = U16>) {
        match self {
            Self::Aes128(key) => key.encrypt_with_backend(job),
            Self::Aes192(key) => key.encrypt_with_backend(job),
            Self::Aes256(key) => key.encrypt_with_backend(job),
        }
    }

    /// Does a `job` that decrypts.
    pub(super) fn decrypt_with(&self, job: impl BlockCipherDecClosure<BlockSize = U16>) {
        match self {
            Self::Aes128(key) => key.decrypt_with_backend(job),
            Self::Aes192(key) => key.decrypt_with_backend(job),
            Self::Aes256(key) => key.decrypt_with_backend(job),
        }
    }
}

/// The block in `bytes`, which are 16, as a number.
pub(super) fn load(bytes: &[u8]) -> u128 {
    // Only whole blocks are passed, see `SectorCipher`.
    bytes.try_into().map_or(0, u128::from_le_bytes)
}
