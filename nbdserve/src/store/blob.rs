//! A file that is there as a whole or not at all.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::folder;

/// What a file begins with; the digest of all that follows comes next.
const MAGIC: &[u8; 16] = b"loopmount blob 1";
/// Bytes of a digest.
const DIGEST: usize = 32;
/// Bytes of a length.
const LENGTH: usize = 8;

/// What [`save`] has put into `file` for the volume `key`.
pub(super) fn load(file: &Path, key: &str, most: u64) -> Option<Vec<u8>> {
    let file = File::open(file).ok()?;
    let around = (MAGIC.len() + DIGEST + LENGTH + key.len()) as u64;
    let longest = most.saturating_add(around);
    let mut bytes = Vec::new();
    // It may grow while it is read.
    let mut reader = file.take(longest.saturating_add(1));
    reader.read_to_end(&mut bytes).ok()?;
    if bytes.len() as u64 > longest {
        return None;
    }
    let body = bytes.strip_prefix(MAGIC)?;
    let (digest, body) = body.split_at_checked(DIGEST)?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    // The whole key, so that what is found is about this volume.
    let (len, body) = body.split_first_chunk::<LENGTH>()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    let (found, body) = body.split_at_checked(len)?;
    (found == key.as_bytes()).then(|| body.to_vec())
}

/// Puts `bytes` into `file`.
pub(super) fn save(file: &Path, key: &str, bytes: &[u8]) -> io::Result<()> {
    let len = (key.len() as u64).to_le_bytes();
    let mut digest = Sha256::new();
    for part in [&len[..], key.as_bytes(), bytes] {
        digest.update(part);
    }
    let digest = digest.finalize();
    folder::replace(file, |new| {
        for part in [MAGIC, digest.as_slice(), &len, key.as_bytes(), bytes] {
            new.write_all(part)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_kept_is_found_by_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("index");
        save(&file, "disk", b"abc").unwrap();
        assert_eq!(load(&file, "disk", 3).as_deref(), Some(&b"abc"[..]));
        assert_eq!(load(&file, "disk", 2), None);
        assert_eq!(load(&file, "disc", 3), None);
        assert_eq!(load(&folder.path().join("other"), "disk", 3), None);
    }

    #[test]
    fn any_damage_is_a_miss() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("index");
        save(&file, "disk", b"abc").unwrap();
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            assert_eq!(load(&file, "disk", 9), None, "byte {at}");
            fs::write(&file, &good[..at]).unwrap();
            assert_eq!(load(&file, "disk", 9), None, "{at} bytes");
        }
    }
}
