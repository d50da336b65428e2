//! The header of LUKS1: `struct luks_phdr` of the LUKS On-Disk Format Specification 1.2.3.

use super::cipher::CipherSpec;
use super::hash::Hash;
use super::header::{Digest, Header, Keyslot, MAGIC, Segment, Slot, check_stripes, text};
use super::kdf::Kdf;
use crate::bytes::{array, slice};
use crate::{Error, Kind, Result};

/// Bytes of the header.
pub(super) const LEN: usize = 592;
const SECTOR: u64 = 512;
const SLOTS: u32 = 8;
const FIRST_SLOT: usize = 208;
const SLOT_LEN: usize = 48;
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const DIGEST_LEN: usize = 20;
const SALT_LEN: usize = 32;

/// Reads a header, of which the first [`LEN`] bytes are given.
///
/// # Errors
/// `NotThisFormat`, `Corrupt`, `Unsupported` by name, `Limit`.
pub(super) fn parse(bytes: &[u8]) -> Result<Header> {
    let short = || {
        let what = format!("the header ends after {} of {LEN} bytes", bytes.len());
        Error::new(Kind::Corrupt, what)
    };
    if !bytes.starts_with(MAGIC) {
        return Err(Error::new(Kind::NotThisFormat, "no header of LUKS"));
    }
    let word = |at| array(bytes, at).map(u32::from_be_bytes).ok_or_else(short);
    let field = |at, len| slice(bytes, at, len).ok_or_else(short);
    let name = |at| {
        let field = field(at, 32)?;
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(32);
        Ok::<_, Error>(String::from_utf8_lossy(field.get(..end).unwrap_or(field)).into_owned())
    };
    if bytes.len() < LEN {
        return Err(short());
    }
    let cipher = format!("{}-{}", name(8)?, name(40)?);
    let cipher = CipherSpec::parse(&cipher, u64::from(word(108)?))?;
    let hash = Hash::parse(&name(72)?)?;
    let digest = Digest {
        hash,
        salt: field(132, SALT_LEN)?.to_vec(),
        iterations: word(164)?,
        digest: field(112, DIGEST_LEN)?.to_vec(),
    };
    let mut slots = Vec::new();
    // LEN is less.
    let mut end = u64::try_from(LEN).unwrap_or(0);
    for number in 0..SLOTS {
        // Eight of 48 bytes.
        let index = usize::try_from(number).unwrap_or(0);
        let at = FIRST_SLOT.saturating_add(index.saturating_mul(SLOT_LEN));
        let slot = field(at, SLOT_LEN)?;
        let word = |at| array(slot, at).map_or(0, u32::from_be_bytes);
        match word(0) {
            DISABLED => continue,
            ENABLED => {}
            other => {
                let what = format!("keyslot {number} is neither in use nor free: {other:#010x}");
                return Err(Error::new(Kind::Corrupt, what));
            }
        }
        let content = keyslot(slot, hash, &cipher);
        if let Ok(keyslot) = &content {
            // Offsets are 32 bits of sectors.
            end = end.max(keyslot.end().unwrap_or(u64::MAX));
        }
        slots.push(Slot {
            number,
            on_demand: false,
            content,
        });
    }
    Ok(Header {
        version: 1,
        uuid: text(field(168, 40)?),
        label: None,
        segment: Segment {
            offset: u64::from(word(104)?).saturating_mul(SECTOR),
            size: None,
            cipher,
            sector: 512,
            iv_tweak: 0,
        },
        digest,
        slots,
        end,
        notes: Vec::new(),
    })
}

fn keyslot(slot: &[u8], hash: Hash, cipher: &CipherSpec) -> Result<Keyslot> {
    let word = |at| array(slot, at).map_or(0, u32::from_be_bytes);
    let stripes = word(44);
    check_stripes(stripes)?;
    let offset = u64::from(word(40)).saturating_mul(SECTOR);
    if offset < u64::try_from(LEN).unwrap_or(0) {
        let what = format!("its key is at {offset}, within the header");
        return Err(Error::new(Kind::Corrupt, what));
    }
    let salt = slice(slot, 8, SALT_LEN).unwrap_or_default().to_vec();
    Ok(Keyslot {
        kdf: Kdf::pbkdf2(hash, salt, word(4))?,
        stripes,
        af_hash: hash,
        offset,
        cipher: cipher.clone(),
        key_len: cipher.key_len(),
    })
}
