//! What makes each sector's ciphertext different: a number of the sector, as `dm-crypt` writes it.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::aes::{Aes, Block};

/// How an initialisation vector is made of the number of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IvSpec {
    /// The low 32 bits, little-endian.
    Plain,
    /// 64 bits, little-endian.
    Plain64,
    /// 64 bits, big-endian, at the end.
    Plain64be,
    /// 64 bits, encrypted with the hash of the key.
    EssivSha256,
}

/// The same, with the key that it may need.
pub(super) struct Iv {
    spec: IvSpec,
    essiv: Option<Aes>,
}

impl IvSpec {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "plain" => Self::Plain,
            "plain64" => Self::Plain64,
            "plain64be" => Self::Plain64be,
            "essiv:sha256" => Self::EssivSha256,
            _ => return None,
        })
    }
}

impl Iv {
    pub(super) fn new(spec: IvSpec, key: &[u8]) -> Option<Self> {
        let essiv = match spec {
            IvSpec::EssivSha256 => {
                let salt = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(key)));
                Some(Aes::new(&salt[..])?)
            }
            IvSpec::Plain | IvSpec::Plain64 | IvSpec::Plain64be => None,
        };
        Some(Self { spec, essiv })
    }

    /// Those of the sectors from `number` on, which are `step` apart.
    pub(super) fn fill(&self, number: u64, step: u64, out: &mut [Block]) {
        let mut number = number;
        for block in out.iter_mut() {
            let wide = u128::from(number);
            *block = match self.spec {
                IvSpec::Plain => (wide & 0xffff_ffff).to_le_bytes(),
                IvSpec::Plain64 | IvSpec::EssivSha256 => wide.to_le_bytes(),
                IvSpec::Plain64be => wide.to_be_bytes(),
            }
            .into();
            number = number.wrapping_add(step);
        }
        if let Some(key) = &self.essiv {
            key.encrypt(out);
        }
    }
}
