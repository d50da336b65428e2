//! The beginning of a file of pages.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::store::image::is_at;

const MAGIC: &[u8; 16] = b"loopmount pages1";

fn header(id: u64, key: &str) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(id.to_le_bytes());
    header.extend(Sha256::digest(key.as_bytes()));
    let digest = Sha256::digest(&header);
    header.extend(digest);
    header
}

/// The id in the header.
pub(super) fn read_header(file: &File, key: &str) -> Option<u64> {
    let mut found = header(0, key);
    file.read_exact_at(&mut found, 0).ok()?;
    let id = found.get(MAGIC.len()..)?.first_chunk()?;
    let id = u64::from_le_bytes(*id);
    (found == header(id, key)).then_some(id)
}

pub(super) fn write_header(file: &File, key: &str) -> io::Result<()> {
    // Keys of hash maps are random.
    let id = RandomState::new().build_hasher().finish();
    file.write_all_at(&header(id, key), 0)
}

/// Takes the file at `path` away if it is `damaged`, and not a good one that another process has put in its
/// place meanwhile. Whoever has the damaged one open goes on with it.
pub(super) fn remove_damaged(damaged: &File, path: &Path) -> io::Result<()> {
    // Who has the lock sees what those have done that had it before. Without one, on a file system that has none,
    // a good file is taken away at worst, and made anew.
    let _ = flock(damaged, FlockOperation::LockExclusive);
    if !is_at(damaged, path) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
