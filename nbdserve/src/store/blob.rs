//! A file that is there as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

/// What a file begins with; the digest of all that follows comes next.
const MAGIC: &[u8; 16] = b"loopmount blob 1";
/// Bytes of a digest.
const DIGEST: usize = 32;
/// Bytes of a length.
const LENGTH: usize = 8;

/// The file of `name` for the volume `key`.
fn path(folder: &Path, key: &str, name: &str) -> PathBuf {
    let digest = Sha256::digest(key.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("{hex}.{name}"))
}

pub(super) fn load(folder: &Path, key: &str, name: &str, most: u64) -> Option<Vec<u8>> {
    let mut file = File::open(path(folder, key, name)).ok()?;
    let around = MAGIC.len() + DIGEST + LENGTH + key.len();
    if file.metadata().ok()?.len() > most.saturating_add(around as u64) {
        return None;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
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

pub(super) fn save(folder: &Path, key: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let len = (key.len() as u64).to_le_bytes();
    let mut digest = Sha256::new();
    for part in [&len[..], key.as_bytes(), bytes] {
        digest.update(part);
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let new = folder.join(format!("new-{}-{number}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        for part in [
            MAGIC,
            digest.finalize().as_slice(),
            &len,
            key.as_bytes(),
            bytes,
        ] {
            file.write_all(part)?;
        }
        fs::rename(&new, path(folder, key, name))
    };
    let result = write();
    if result.is_err() {
        let _ = fs::remove_file(&new);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_by_its_key_and_name_alone() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), "disk", "index", b"abc").unwrap();
        let load = |key, name, most| load(folder.path(), key, name, most);
        assert_eq!(load("disk", "index", 3).as_deref(), Some(&b"abc"[..]));
        assert_eq!(load("disk", "index", 2), None);
        assert_eq!(load("disk", "other", 3), None);
        assert_eq!(load("disc", "index", 3), None);
    }

    #[test]
    fn any_damage_is_a_miss() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), "disk", "index", b"abc").unwrap();
        let file = path(folder.path(), "disk", "index");
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            assert_eq!(load(folder.path(), "disk", "index", 9), None, "byte {at}");
            fs::write(&file, &good[..at]).unwrap();
            assert_eq!(load(folder.path(), "disk", "index", 9), None, "{at} bytes");
        }
    }
}
