//! The volume as crate `fs_ext4` wants to see it: metadata through a cache that reads in chunks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fs_ext4::block_io::BlockDevice;
use fs_ext4::checksum::{Checksummer, linux_crc32c};
use fs_ext4::features::{Compat, Incompat};
use fs_ext4::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock};
use nbdserve::{Error, Kind, Result, Volume};

use crate::tree::cache::Cache;

/// Unit of reading and caching. Inode tables, directories and extent trees lie side by side, so
/// the next blocks are usually wanted next.
const CHUNK: u64 = 32 << 10;
/// As [`CHUNK`] where hints are given for what is read, as much as the kernel reads of an inode table:
/// the more inodes pass by, the more is known.
const CHUNK_AHEAD: u64 = 128 << 10;
/// Bytes of chunks that are kept for sure; twice as many at most.
const KEPT: u64 = 3 << 20;
/// Block groups of 128 MiB, 16 TiB of them, are a sixteenth of this. The crate takes some 60 bytes
/// for each before it reads them.
const MAX_GROUPS: u64 = 1 << 21;
/// What the crate may read while it opens a file system. It holds a replayed journal in memory,
/// and believes the image how long that is.
const OPEN_BUDGET: u64 = 512 << 20;
/// The start of a block in the journal that lists others (`JBD2_MAGIC_NUMBER`, descriptor), and
/// what one costs in memory for each of its bytes.
const DESCRIPTOR: [u8; 8] = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 1];
const DESCRIPTOR_COST: u64 = 8;
/// Offset in the superblock of `s_journal_inum`, the inode of the journal (0: none).
const S_JOURNAL_INUM: usize = 0xe0;
/// Offset in the superblock of `s_checksum`, which covers everything before it.
const S_CHECKSUM: usize = 0x3fc;

/// Metadata of a file system on a volume, read-only.
pub(super) struct Device {
    volume: Volume,
    chunk: u64,
    chunks: Cache<u64, Arc<[u8]>>,
    /// Single blocks, where there are hints: these name blocks, and the rest of a chunk would have
    /// to be fetched besides.
    blocks: Option<Cache<u64, Arc<[u8]>>>,
    /// What to show for the superblock in place of its bytes.
    superblock: Option<Vec<u8>>,
    /// What may still be read, in bytes.
    budget: AtomicU64,
}

impl Device {
    /// Reads the superblock and decides whether the journal is shown.
    ///
    /// The crate opens every journal to see whether it is empty, and journals lie in the middle
    /// of the image: on a volume that is decoded from the start that costs half the decoding. But
    /// the superblock says already whether there is something to replay (`needs_recovery`; the
    /// kernel relies on it too). So the journal of an image that needs none is hidden.
    ///
    /// # Errors
    /// `NotThisFormat`, `Unsupported` for a full journal on another device, or that of the volume.
    pub(super) fn open(volume: Volume) -> Result<Self> {
        if volume.size() < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64 {
            let what = format!("{} bytes are too few for ext4", volume.size());
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let raw = volume.read_vec(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)?;
        let superblock = Superblock::parse(raw.clone()).map_err(super::error)?;
        let groups = superblock.block_group_count();
        if groups > MAX_GROUPS {
            let what = format!("{groups} block groups, where {MAX_GROUPS} are allowed");
            return Err(Error::new(Kind::Limit, what));
        }
        let has_journal = superblock.feature_compat & Compat::HAS_JOURNAL.bits() != 0;
        let recover = superblock.feature_incompat & Incompat::RECOVER.bits() != 0;
        let shown = if !(has_journal && recover) {
            without_journal(raw, &superblock)
        } else if superblock.journal_inode == 0 {
            return Err(Error::new(
                Kind::Unsupported,
                "the file system was not unmounted, and its journal is on another device",
            ));
        } else {
            None
        };
        let kept = |len: u64| Cache::new((KEPT / len.max(1)) as usize);
        let ahead = volume.gathers();
        let chunk = if ahead { CHUNK_AHEAD } else { CHUNK };
        Ok(Self {
            volume,
            chunk,
            chunks: kept(chunk),
            blocks: ahead.then(|| kept(superblock.block_size().into())),
            superblock: shown,
            budget: AtomicU64::new(OPEN_BUDGET),
        })
    }

    /// To be called when the file system is open: from here on, what is read is not held.
    pub(super) fn lift_budget(&self) {
        self.budget.store(u64::MAX, Ordering::Relaxed);
    }

    /// Takes the cost of the bytes just read off the budget.
    fn charge(&self, bytes: &[u8]) -> Result<()> {
        let budget = self.budget.load(Ordering::Relaxed);
        if budget == u64::MAX {
            return Ok(());
        }
        let len = bytes.len() as u64;
        let cost = if bytes.starts_with(&DESCRIPTOR) {
            len.saturating_mul(DESCRIPTOR_COST)
        } else {
            len
        };
        // One thread opens: nobody else takes from it meanwhile.
        let left = budget.checked_sub(cost).ok_or_else(|| {
            let what = format!("the journal to be replayed takes over {OPEN_BUDGET} bytes");
            Error::new(Kind::Limit, what).hint("let the kernel or e2fsck replay it")
        })?;
        self.budget.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// What the metadata lies on.
    pub(super) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Forgets all chunks.
    pub(super) fn drop_cache(&self) {
        self.chunks.clear();
        if let Some(blocks) = &self.blocks {
            blocks.clear();
        }
    }

    /// The `len` bytes of metadata at `offset`, if it is to be read block by block.
    pub(super) fn read_block(&self, offset: u64, len: u32) -> Option<Result<Vec<u8>>> {
        let blocks = self.blocks.as_ref()?;
        let read = || {
            let bytes = self.volume.read_vec(offset, len as usize)?;
            Ok::<_, Error>(Arc::from(bytes))
        };
        Some(blocks.get_or_try(offset, read).map(|bytes| bytes.to_vec()))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        // A long read is worth a request of its own, and would only push out what is kept.
        if buf.len() as u64 >= self.chunk {
            self.volume.read_at(buf, offset)?;
        } else {
            self.read_cached(offset, buf)?;
        }
        if let Some(superblock) = &self.superblock {
            overlay(buf, offset, superblock, SUPERBLOCK_OFFSET);
        }
        Ok(())
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let beyond = || {
            let size = self.volume.size();
            let what = format!("metadata at byte {offset} of an image of {size} bytes");
            Error::new(Kind::Corrupt, what)
        };
        let mut done = 0;
        while done < buf.len() {
            let at = offset.checked_add(done as u64).ok_or_else(beyond)?;
            let start = at - at % self.chunk;
            let chunk = self.chunks.get_or_try(start, || {
                let left = self.volume.size().saturating_sub(start);
                // At most a chunk, which fits.
                let bytes = self.volume.read_vec(start, left.min(self.chunk) as usize)?;
                Ok::<_, Error>(Arc::from(bytes))
            })?;
            // Below the length of a chunk.
            let skip = (at - start) as usize;
            let part = chunk
                .get(skip..)
                .filter(|part| !part.is_empty())
                .ok_or_else(beyond)?;
            let len = part.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&part[..len]);
            done += len;
        }
        Ok(())
    }
}

impl BlockDevice for Device {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> fs_ext4::Result<()> {
        // Comes back out of the crate as it went in: see `super::error`.
        self.read(offset, buf)
            .and_then(|()| self.charge(buf))
            .map_err(|error| fs_ext4::Error::Io(io::Error::other(error)))
    }

    fn size_bytes(&self) -> u64 {
        self.volume.size()
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.volume.fmt(f)
    }
}

/// The superblock `raw` with no journal. `None` when it has none, or when its checksum is wrong:
/// that must be found by whoever reads it.
fn without_journal(mut raw: Vec<u8>, superblock: &Superblock) -> Option<Vec<u8>> {
    let checksum = Checksummer::from_superblock(superblock);
    if superblock.journal_inode == 0 || (checksum.enabled && !checksum.verify_superblock(&raw)) {
        return None;
    }
    raw.get_mut(S_JOURNAL_INUM..S_JOURNAL_INUM + 4)?.fill(0);
    if checksum.enabled {
        let new = linux_crc32c(!0, raw.get(..S_CHECKSUM)?);
        raw.get_mut(S_CHECKSUM..S_CHECKSUM + 4)?
            .copy_from_slice(&new.to_le_bytes());
    }
    Some(raw)
}

/// Puts what `patch`, which belongs at `patch_at`, has in common with `buf` at `offset` into it.
fn overlay(buf: &mut [u8], offset: u64, patch: &[u8], patch_at: u64) {
    let end = offset.saturating_add(buf.len() as u64);
    let from = offset.max(patch_at);
    let to = end.min(patch_at + patch.len() as u64);
    if from < to {
        // Differences within the two slices.
        let (target, source) = ((from - offset) as usize, (from - patch_at) as usize);
        let len = (to - from) as usize;
        buf[target..target + len].copy_from_slice(&patch[source..source + len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_touches_what_both_have() {
        let patch = [1, 2, 3, 4];
        for (offset, wanted) in [
            (0, [0, 0, 1, 2]),
            (2, [1, 2, 3, 4]),
            (4, [3, 4, 0, 0]),
            (6, [0; 4]),
            (u64::MAX, [0; 4]),
        ] {
            let mut buf = [0; 4];
            overlay(&mut buf, offset, &patch, 2);
            assert_eq!(buf, wanted, "at {offset}");
        }
    }

    #[test]
    fn what_is_read_while_opening_is_bounded() {
        let device = Device {
            volume: nbdserve::source::Memory::volume(DESCRIPTOR.repeat(1 << 17)),
            chunk: CHUNK,
            chunks: Cache::new(1),
            blocks: None,
            superblock: None,
            budget: AtomicU64::new(OPEN_BUDGET),
        };
        let mut block = vec![0; 1 << 20];
        let allowed = OPEN_BUDGET / (DESCRIPTOR_COST << 20);
        for _ in 0..allowed {
            device.read_at(0, &mut block).unwrap();
        }
        let refused = super::super::error(device.read_at(0, &mut block).unwrap_err());
        assert_eq!(refused.kind(), Kind::Limit);
        device.lift_budget();
        device.read_at(0, &mut block).unwrap();
    }
}
