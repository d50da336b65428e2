//! The metadata of LUKS2. Objects that are not ours (tokens) are passed over without being kept; how
//! many of ours there may be is bounded.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::escape;
use crate::{Error, Kind, Result};

/// Most keyslots, segments, digests and requirements. The format allows 32 keyslots.
const MOST: usize = 64;

/// All of it that we need.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) keyslots: Few<Keyslot>,
    pub(super) segments: Few<Segment>,
    pub(super) digests: Few<Digest>,
    pub(super) config: Config,
}

#[derive(Debug, Deserialize)]
pub(super) struct Keyslot {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) key_size: Option<u64>,
    pub(super) area: Option<Area>,
    pub(super) kdf: Option<Kdf>,
    pub(super) af: Option<Af>,
    pub(super) priority: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Area {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) offset: Number,
    pub(super) size: Number,
    pub(super) encryption: Option<String>,
    pub(super) key_size: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Kdf {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) salt: Base64,
    pub(super) hash: Option<String>,
    pub(super) iterations: Option<u32>,
    pub(super) time: Option<u32>,
    pub(super) memory: Option<u32>,
    pub(super) cpus: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Af {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) stripes: u32,
    pub(super) hash: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Segment {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) offset: Option<Number>,
    pub(super) size: Option<Size>,
    pub(super) iv_tweak: Option<Number>,
    pub(super) encryption: Option<String>,
    pub(super) sector_size: Option<u32>,
    pub(super) integrity: Option<Integrity>,
    pub(super) flags: Option<Names>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Integrity {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Digest {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) keyslots: Names,
    pub(super) segments: Names,
    pub(super) salt: Option<Base64>,
    pub(super) digest: Option<Base64>,
    pub(super) hash: Option<String>,
    pub(super) iterations: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) json_size: Number,
    pub(super) keyslots_size: Number,
    pub(super) requirements: Option<Requirements>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Requirements {
    pub(super) mandatory: Option<Names>,
}

/// # Errors
/// `Corrupt`.
pub(super) fn parse(json: &[u8]) -> Result<Metadata> {
    serde_json::from_slice(json).map_err(|error| {
        let what = format!(
            "the metadata are not as they must be: {}",
            escape(&error.to_string())
        );
        Error::new(Kind::Corrupt, what)
    })
}

/// 64 bits, which JSON has as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(pub(super) u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("\"{text}\" is no number of 64 bits")))
    }
}

/// A number of bytes, or all that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Dynamic,
    Bytes(u64),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "dynamic" {
            return Ok(Self::Dynamic);
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number
            .map(Self::Bytes)
            .ok_or_else(|| D::Error::custom(format!("\"{text}\" is no size")))
    }
}

/// Bytes, which JSON has as base64 (RFC 4648, 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        base64(text.as_bytes())
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("\"{text}\" is no base64")))
    }
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut groups = text.chunks_exact(4).peekable();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    while let Some(group) = groups.next() {
        let pad = group.iter().rev().take_while(|byte| **byte == b'=').count();
        if pad > 2 || pad > 0 && groups.peek().is_some() {
            return None;
        }
        let mut bits = 0_u32;
        for byte in group.iter().take(4_usize.saturating_sub(pad)) {
            bits = (bits << 6) | digit(*byte)?;
        }
        bits <<= [0, 6, 12].get(pad)?;
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend(bytes.iter().take(3_usize.saturating_sub(pad)));
    }
    Some(out)
}

fn digit(byte: u8) -> Option<u32> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let at = digits.iter().position(|digit| *digit == byte)?;
    u32::try_from(at).ok()
}

/// An object of a few named things.
#[derive(Debug)]
pub(super) struct Few<T>(pub(super) Vec<(String, T)>);

impl<T> Few<T> {
    /// The thing of that name.
    pub(super) fn get(&self, name: &str) -> Option<&T> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, thing)| thing)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Things<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Things<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Few<T>, A::Error> {
                let mut few = Few(Vec::new());
                while let Some((name, thing)) = map.next_entry::<String, T>()? {
                    if few.0.len() >= MOST {
                        return Err(A::Error::custom(format!("more than {MOST} of a kind")));
                    }
                    if few.get(&name).is_some() {
                        return Err(A::Error::custom(format!("\"{name}\" is there twice")));
                    }
                    few.0.push((name, thing));
                }
                Ok(few)
            }
        }
        from.deserialize_map(Things(PhantomData))
    }
}

/// A few names.
#[derive(Debug, Default)]
pub(super) struct Names(pub(super) Vec<String>);

impl Names {
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|known| known == name)
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Names, A::Error> {
                let mut names = Names::default();
                while let Some(name) = list.next_element()? {
                    if names.0.len() >= MOST {
                        return Err(A::Error::custom(format!("more than {MOST} names")));
                    }
                    names.0.push(name);
                }
                Ok(names)
            }
        }
        from.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_as_rfc_4648_has_it() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYmFy", b"foobar"),
            ("+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes), "{text}");
        }
        for wrong in ["Z", "Zg=", "Zg==Zg==", "====", "Z===", "Zg=v", "Zm9\n"] {
            assert_eq!(base64(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn there_may_be_few_things_only_and_each_once() {
        let many = |count: usize| {
            let items: Vec<_> = (0..count).map(|n| format!("\"{n}\": \"{n}\"")).collect();
            format!("{{{}}}", items.join(","))
        };
        assert!(serde_json::from_str::<Few<Number>>(&many(MOST)).is_ok());
        assert!(serde_json::from_str::<Few<Number>>(&many(MOST + 1)).is_err());
        assert!(serde_json::from_str::<Few<Number>>("{\"a\":\"1\",\"a\":\"1\"}").is_err());
        let names = |count| format!("[{}]", vec!["\"x\""; count].join(","));
        assert!(serde_json::from_str::<Names>(&names(MOST)).is_ok());
        assert!(serde_json::from_str::<Names>(&names(MOST + 1)).is_err());
        for wrong in [
            "\"\"",
            "\"-1\"",
            "\"+1\"",
            "\"1 \"",
            "1",
            "\"18446744073709551616\"",
        ] {
            assert!(serde_json::from_str::<Number>(wrong).is_err(), "{wrong}");
        }
    }
}
