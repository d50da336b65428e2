//! The figures of a whole file system, as the kernel's ext4 gives them.

use fs_ext4::bgd::BlockGroupDescriptor;
use fs_ext4::features::{Incompat, RoCompat};
use fs_ext4::superblock::Superblock;

use super::dir::NAME_MAX;
use crate::tree::StatFs;

/// Offset in the superblock of `s_log_cluster_size`, counted as `s_log_block_size`.
const S_LOG_CLUSTER_SIZE: usize = 0x1c;
/// Offset in the superblock of `s_overhead_clusters`, those that never hold data.
const S_OVERHEAD_CLUSTERS: usize = 0x248;
/// The kernel keeps a fiftieth of the clusters back, but at most so many, for trees of extents
/// that grow when delayed writes get their place.
const RESERVED_PART: u64 = 50;
const RESERVED_MOST: u64 = 4096;

/// What statfs(2) says. Free blocks and inodes are counted by the groups: the superblock's own
/// counts are old when a journal had to be replayed.
pub(super) fn of(superblock: &Superblock, groups: &[BlockGroupDescriptor]) -> StatFs {
    let cluster = blocks_per_cluster(superblock);
    let overhead = u64::from(word(superblock, S_OVERHEAD_CLUSTERS)).saturating_mul(cluster);
    let sum = |count: fn(&BlockGroupDescriptor) -> u32| -> u64 {
        groups.iter().map(|group| u64::from(count(group))).sum()
    };
    let free = sum(|group| group.free_blocks_count).saturating_mul(cluster);
    let reserved = superblock
        .r_blocks_count
        .saturating_add(kept_back(superblock, cluster));
    StatFs {
        block_size: superblock.block_size(),
        blocks: superblock.blocks_count.saturating_sub(overhead),
        free,
        available: free.saturating_sub(reserved),
        files: superblock.inodes_count.into(),
        files_free: sum(|group| group.free_inodes_count),
        name_max: NAME_MAX as u32,
    }
}

fn kept_back(superblock: &Superblock, cluster: u64) -> u64 {
    if superblock.feature_incompat & Incompat::EXTENTS.bits() == 0 {
        return 0;
    }
    let clusters = superblock.blocks_count / cluster;
    (clusters / RESERVED_PART).min(RESERVED_MOST) * cluster
}

/// At least 1.
fn blocks_per_cluster(superblock: &Superblock) -> u64 {
    if superblock.feature_ro_compat & RoCompat::BIGALLOC.bits() == 0 {
        return 1;
    }
    let log = word(superblock, S_LOG_CLUSTER_SIZE).saturating_sub(superblock.log_block_size);
    1_u64.checked_shl(log.min(31)).unwrap_or(1)
}

fn word(superblock: &Superblock, at: usize) -> u32 {
    let raw = superblock.raw.get(at..).and_then(|rest| rest.first_chunk());
    raw.map_or(0, |raw| u32::from_le_bytes(*raw))
}
