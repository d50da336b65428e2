//! Paths in JSON: a string, or where a path is not UTF-8 (which a path need not be) its bytes as a
//! list of numbers, so that it comes back as it was.
//!
//! Used as `#[serde(with = "path_text")]`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

/// Writes `path`.
///
/// # Errors
/// What `serializer` says.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => text.serialize(serializer),
        None => path.as_os_str().as_bytes().serialize(serializer),
    }
}

/// Reads what [`serialize`] has written.
///
/// # Errors
/// When it is neither a string nor a list of bytes.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Ok(match Form::deserialize(deserializer)? {
        Form::Text(text) => PathBuf::from(text),
        Form::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
    })
}

/// The same for a path that may be missing; for output only.
///
/// # Errors
/// What `serializer` says.
pub fn serialize_option<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serialize(path, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] PathBuf);

    #[test]
    fn any_path_comes_back_as_it_was() {
        for bytes in [&b"/mnt/a"[..], b"/mnt/\xff\n", b""] {
            let path = Holder(PathBuf::from(OsString::from_vec(bytes.to_vec())));
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(
                serde_json::from_str::<Holder>(&json).unwrap(),
                path,
                "{json}"
            );
        }
    }

    #[test]
    fn a_path_of_text_is_a_string() {
        let json = serde_json::to_string(&Holder(PathBuf::from("/mnt"))).unwrap();
        assert_eq!(json, "\"/mnt\"");
    }
}
