//! What a superblock becomes when its array is written to, and when that is over. Pure.

use super::header::{SUPERBLOCK, Superblock, Version, new_sum, old_sum};
use crate::bytes::le32;

/// Bytes that change, and are written: what a disk writes whole or not at all. All that is marked lies
/// in them, the checksum too.
pub(super) const MARKED: usize = 512;

/// What a superblock says of its array's writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) events: u64,
    /// The members hold the same.
    pub(super) clean: bool,
}

impl Mark {
    /// As `superblock` has it.
    pub(super) fn of(superblock: &Superblock) -> Self {
        Self {
            events: superblock.events,
            clean: superblock.clean,
        }
    }
}

/// The first bytes of the superblock `bytes`, with another mark, the time `now` in seconds since 1970,
/// and the checksum for it. `None` when there are too few of them.
pub(super) fn marked(bytes: &[u8], version: Version, mark: Mark, now: u64) -> Option<Vec<u8>> {
    let mut whole = bytes.get(..SUPERBLOCK)?.to_vec();
    match version {
        Version::V090 => old(&mut whole, mark, now)?,
        Version::V10 | Version::V11 | Version::V12 => new(&mut whole, mark, now)?,
    }
    whole.truncate(MARKED);
    Some(whole)
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) -> Option<()> {
    let end = at.checked_add(field.len())?;
    bytes.get_mut(at..end)?.copy_from_slice(field);
    Some(())
}

/// `struct mdp_superblock_1`
fn new(bytes: &mut [u8], mark: Mark, now: u64) -> Option<()> {
    // utime: 40 bits of seconds.
    let now = now & 0xff_ffff_ffff;
    put(bytes, 192, &now.to_le_bytes())?;
    put(bytes, 200, &mark.events.to_le_bytes())?;
    // resync_offset: all of it is in sync, or none is known to be.
    let in_sync = if mark.clean { u64::MAX } else { 0 };
    put(bytes, 208, &in_sync.to_le_bytes())?;
    let roles = usize::try_from(le32(bytes, 220)?).ok()?;
    let sum = new_sum(bytes, roles)?;
    put(bytes, 216, &sum.to_le_bytes())
}

/// `struct mdp_superblock_s`, in words.
fn old(bytes: &mut [u8], mark: Mark, now: u64) -> Option<()> {
    let half = |wide: u64, high: bool| {
        let [a, b, c, d, e, f, g, h] = wide.to_le_bytes();
        match high {
            true => [e, f, g, h],
            false => [a, b, c, d],
        }
    };
    let state = le32(bytes, 33_usize.checked_mul(4)?)?;
    let (state, events_then, in_sync) = match mark.clean {
        true => (state | 1, mark.events, u32::MAX),
        false => (state & !1, 0, 0),
    };
    for (word, value) in [
        (32_usize, half(now, false)),
        (33, state.to_le_bytes()),
        (39, half(mark.events, false)),
        (40, half(mark.events, true)),
        // cp_events and recovery_cp: how far it is in sync, and at which event.
        (41, half(events_then, false)),
        (42, half(events_then, true)),
        (43, in_sync.to_le_bytes()),
    ] {
        put(bytes, word.checked_mul(4)?, &value)?;
    }
    let sum = old_sum(bytes)?;
    put(bytes, 38_usize.checked_mul(4)?, &sum.to_le_bytes())
}
