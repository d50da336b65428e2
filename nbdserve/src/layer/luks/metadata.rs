//! From the metadata of LUKS2 to a [`Header`]: what cannot be opened is refused by its name.

use super::cipher::CipherSpec;
use super::hash::Hash;
use super::header::{Digest, Header, Keyslot, Segment, Slot, check_stripes};
use super::header2::Fixed;
use super::json::{self, Metadata, Size};
use super::kdf::Kdf;
use crate::error::{quote, quote_if_needed};
use crate::{Error, Kind, Result};

/// Bytes that a digest has at least: less would let other keys pass.
const SHORTEST_DIGEST: usize = 16;
const SECTORS: [u32; 4] = [512, 1024, 2048, 4096];

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, what)
}

fn missing(what: &str) -> Error {
    corrupt(format!("the metadata lack {what}"))
}

/// The header that a fixed part and its metadata make.
///
/// # Errors
/// `Corrupt`, `Unsupported` by name.
pub(super) fn header(fixed: Fixed, json: &[u8]) -> Result<Header> {
    let metadata = json::parse(json)?;
    let begin = check_config(&fixed, &metadata.config)?;
    check_requirements(&metadata)?;
    let (name, segment) = the_segment(&metadata)?;
    let (keyslots, digest) = the_digest(&metadata, name)?;
    let end = begin.saturating_add(metadata.config.keyslots_size.0);
    let mut slots = Vec::new();
    for (number, slot) in &metadata.keyslots.0 {
        // Others hold no volume key, or one of other data.
        if !keyslots.has(number) {
            continue;
        }
        let number = number
            .parse()
            .map_err(|_| corrupt(format!("a keyslot is called {}", quote(number))))?;
        slots.push((
            slot.priority.unwrap_or(1),
            Slot {
                number,
                on_demand: slot.priority == Some(0),
                content: keyslot(slot, begin, end),
            },
        ));
    }
    slots.sort_by_key(|(priority, slot)| (std::cmp::Reverse(*priority), slot.number));
    Ok(Header {
        version: 2,
        uuid: fixed.uuid,
        label: fixed.label,
        segment,
        digest,
        slots: slots.into_iter().map(|(_, slot)| slot).collect(),
        end,
        notes: Vec::new(),
    })
}

/// Where the keyslots begin.
fn check_config(fixed: &Fixed, config: &json::Config) -> Result<u64> {
    const FIXED: u64 = 4096;
    let json_size = config.json_size.0;
    if json_size.checked_add(FIXED) != Some(fixed.hdr_size) {
        let have = fixed.hdr_size;
        let what = format!("metadata of {json_size} bytes do not go with a header of {have}");
        return Err(corrupt(what));
    }
    let keyslots = config.keyslots_size.0;
    if !keyslots.is_multiple_of(FIXED) || keyslots > 128 << 20 {
        return Err(corrupt(format!("keyslots of {keyslots} bytes")));
    }
    Ok(fixed.hdr_size.saturating_mul(2))
}

fn check_requirements(metadata: &Metadata) -> Result<()> {
    let requirements = metadata.config.requirements.as_ref();
    let names = requirements.and_then(|requirements| requirements.mandatory.as_ref());
    let names = names.map_or(&[][..], |names| &names.0);
    if names
        .iter()
        .any(|name| name.starts_with("online-reencrypt"))
    {
        return Err(in_progress());
    }
    if let Some(name) = names.first() {
        let what = format!(
            "it requires {}, which this version does not have",
            quote(name)
        );
        return Err(unsupported(what));
    }
    Ok(())
}

fn in_progress() -> Error {
    unsupported("reencryption is in progress, which this version does not have")
        .hint("cryptsetup reencrypt finishes it")
}

/// The only segment, and its name.
fn the_segment(metadata: &Metadata) -> Result<(&str, Segment)> {
    let moving = |segment: &json::Segment| {
        let flags = segment.flags.as_ref();
        flags.is_some_and(|flags| flags.0.iter().any(|flag| flag.starts_with("backup-")))
    };
    let all = &metadata.segments.0;
    if all.iter().any(|(_, segment)| moving(segment)) {
        return Err(in_progress());
    }
    let (name, segment) = match all.as_slice() {
        [] => return Err(missing("a segment")),
        [(name, segment)] => (name, segment),
        more => {
            let kinds: Vec<_> = more
                .iter()
                .map(|(_, more)| quote_if_needed(&more.kind))
                .collect();
            let what = format!("{} segments ({})", more.len(), kinds.join(", "));
            return Err(unsupported(format!("{what}, and this version has one")));
        }
    };
    if segment.kind != "crypt" {
        let kind = quote(&segment.kind);
        let what = format!("a segment of type {kind}, which this version does not have");
        return Err(unsupported(what));
    }
    if let Some(integrity) = &segment.integrity {
        let kind = integrity.kind.as_deref().unwrap_or_default();
        let what = format!(
            "integrity {}, which this version does not have",
            quote(kind)
        );
        return Err(unsupported(what));
    }
    let sector = segment.sector_size.ok_or_else(|| missing("sector_size"))?;
    if !SECTORS.contains(&sector) {
        return Err(corrupt(format!("sectors of {sector} bytes")));
    }
    let offset = segment
        .offset
        .ok_or_else(|| missing("the offset of the segment"))?
        .0;
    let size = match segment
        .size
        .ok_or_else(|| missing("the size of the segment"))?
    {
        Size::Dynamic => None,
        Size::Bytes(size) => Some(size),
    };
    for (what, value) in [("offset", offset), ("size", size.unwrap_or(0))] {
        if !value.is_multiple_of(u64::from(sector)) {
            return Err(corrupt(format!(
                "an {what} of {value} with sectors of {sector} bytes"
            )));
        }
    }
    let encryption = segment
        .encryption
        .as_deref()
        .ok_or_else(|| missing("encryption"))?;
    // The volume key is as long as the keyslots say.
    let (_, digest) = metadata
        .digests
        .0
        .iter()
        .find(|(_, digest)| digest.segments.has(name))
        .ok_or_else(|| missing("a digest of the segment"))?;
    let slots = metadata.keyslots.0.iter();
    let key_size = slots
        .filter(|(number, _)| digest.keyslots.has(number))
        .find_map(|(_, slot)| slot.key_size);
    // Without a keyslot there is no key either.
    let key_size = key_size.unwrap_or(if encryption.contains("-cbc-") { 32 } else { 64 });
    let segment = Segment {
        offset,
        size,
        cipher: CipherSpec::parse(encryption, key_size)?,
        sector,
        iv_tweak: segment.iv_tweak.map_or(0, |number| number.0),
    };
    Ok((name, segment))
}

/// The digest of the key of the segment, and the keyslots that have that key.
fn the_digest<'a>(metadata: &'a Metadata, segment: &str) -> Result<(&'a json::Names, Digest)> {
    let mut digests = metadata.digests.0.iter();
    let digest = digests.find(|(_, digest)| digest.segments.has(segment));
    let (_, digest) = digest.ok_or_else(|| missing("a digest of the segment"))?;
    if digest.kind != "pbkdf2" {
        let kind = quote(&digest.kind);
        let what = format!("a digest of type {kind}, which this version does not have");
        return Err(unsupported(what));
    }
    let hash = digest
        .hash
        .as_deref()
        .ok_or_else(|| missing("the hash of the digest"))?;
    let bytes = digest
        .digest
        .as_ref()
        .ok_or_else(|| missing("the digest"))?;
    let hash = Hash::parse(hash)?;
    if !(SHORTEST_DIGEST..=64).contains(&bytes.0.len()) {
        return Err(corrupt(format!("a digest of {} bytes", bytes.0.len())));
    }
    let salt = digest
        .salt
        .as_ref()
        .ok_or_else(|| missing("the salt of the digest"))?;
    let iterations = digest
        .iterations
        .ok_or_else(|| missing("iterations of the digest"))?;
    let digest_of = Digest {
        hash,
        salt: salt.0.clone(),
        iterations,
        digest: bytes.0.clone(),
    };
    Ok((&digest.keyslots, digest_of))
}

/// A keyslot, whose area is between `begin` and `end`.
fn keyslot(slot: &json::Keyslot, begin: u64, end: u64) -> Result<Keyslot> {
    if slot.kind != "luks2" {
        let kind = quote(&slot.kind);
        return Err(unsupported(format!("a keyslot of type {kind}")));
    }
    let area = slot
        .area
        .as_ref()
        .ok_or_else(|| missing("the area of a keyslot"))?;
    let kdf = slot
        .kdf
        .as_ref()
        .ok_or_else(|| missing("the kdf of a keyslot"))?;
    let af = slot
        .af
        .as_ref()
        .ok_or_else(|| missing("the af of a keyslot"))?;
    if area.kind != "raw" {
        let kind = quote(&area.kind);
        return Err(unsupported(format!(
            "a keyslot with an area of type {kind}"
        )));
    }
    if af.kind != "luks1" {
        let kind = quote(&af.kind);
        return Err(unsupported(format!("a keyslot with an af of type {kind}")));
    }
    check_stripes(af.stripes)?;
    let key_size = slot
        .key_size
        .ok_or_else(|| missing("the key_size of a keyslot"))?;
    let key_len = usize::try_from(key_size)
        .ok()
        .filter(|len| (16..=64).contains(len));
    let key_len = key_len.ok_or_else(|| corrupt(format!("a volume key of {key_size} bytes")))?;
    let encryption = area
        .encryption
        .as_deref()
        .ok_or_else(|| missing("area.encryption"))?;
    let area_key = area.key_size.ok_or_else(|| missing("area.key_size"))?;
    let keyslot = Keyslot {
        kdf: derivation(kdf)?,
        stripes: af.stripes,
        af_hash: Hash::parse(&af.hash)?,
        offset: area.offset.0,
        cipher: CipherSpec::parse(encryption, area_key)?,
        key_len,
    };
    let (from, size) = (area.offset.0, area.size.0);
    let area_end = from.checked_add(size).filter(|area_end| *area_end <= end);
    let fits = keyslot
        .end()
        .zip(area_end)
        .is_some_and(|(used, area_end)| used <= area_end);
    if from < begin || !fits {
        let what = format!("a keyslot of {size} bytes at {from}, not between {begin} and {end}");
        return Err(corrupt(what));
    }
    Ok(keyslot)
}

fn derivation(kdf: &json::Kdf) -> Result<Kdf> {
    use argon2::Algorithm;

    let salt = kdf.salt.0.clone();
    let algorithm = match kdf.kind.as_str() {
        "pbkdf2" => {
            let hash = kdf.hash.as_deref().ok_or_else(|| missing("kdf.hash"))?;
            let iterations = kdf.iterations.ok_or_else(|| missing("kdf.iterations"))?;
            return Kdf::pbkdf2(Hash::parse(hash)?, salt, iterations);
        }
        "argon2i" => Algorithm::Argon2i,
        "argon2id" => Algorithm::Argon2id,
        other => {
            let other = quote(other);
            return Err(unsupported(format!("a keyslot with the kdf {other}")));
        }
    };
    Ok(Kdf::Argon2 {
        algorithm,
        salt,
        time: kdf.time.ok_or_else(|| missing("kdf.time"))?,
        memory: kdf.memory.ok_or_else(|| missing("kdf.memory"))?,
        lanes: kdf.cpus.ok_or_else(|| missing("kdf.cpus"))?,
    })
}
