//! The files in which writes are kept.

use std::sync::OnceLock;

use twox_hash::XxHash3_64;

use super::{exercise, may_refuse};
use crate::layer::cow::header::{MAP_AT, SECTOR_LEN, SLOT_LEN};
use crate::layer::cow::{Base, open_medium};
use crate::source::Memory;
use crate::testing::Platter;
use crate::{Error, Kind, Volume};

/// Bytes of the disk below: its map has two sectors and a bit.
pub const DISK: usize = (9 << 20) + 512;

fn below() -> Volume {
    static BELOW: OnceLock<Volume> = OnceLock::new();
    let below = BELOW.get_or_init(|| Memory::volume(vec![0; DISK]));
    below.clone()
}

/// A file that was made for another image is refused as such.
fn refused(error: &Error) {
    if error.kind() != Kind::Changed && error.kind() != Kind::Denied {
        may_refuse(error);
    }
}

fn look(platter: Platter) {
    match open_medium(&below(), Box::new(platter), "kept", &Base::default()) {
        Ok(volume) => exercise(&volume),
        Err(error) => refused(&error),
    }
}

/// A file as it is, its first header with a right checksum: the rest of it is believed then.
pub(super) fn open(data: &[u8]) {
    look(Platter::with(data));
    let mut mended = data.to_vec();
    if let Some(slot) = mended.get_mut(..SLOT_LEN) {
        let sum = XxHash3_64::oneshot(&slot[..SLOT_LEN - 8]);
        slot[SLOT_LEN - 8..].copy_from_slice(&sum.to_le_bytes());
        look(Platter::with(&mended));
    }
}

/// A map in a file whose header is right.
pub(super) fn map(data: &[u8]) {
    let platter = Platter::default();
    let made = open_medium(
        &below(),
        Box::new(platter.clone()),
        "kept",
        &Base::default(),
    );
    drop(made.expect("a new file"));
    let mut bytes = platter.bytes();
    bytes.resize(MAP_AT as usize, 0);
    // The id, which is the seed: any will do, if the header says so.
    bytes[24..32].fill(7);
    let sum = XxHash3_64::oneshot(&bytes[..SLOT_LEN - 8]);
    bytes[SLOT_LEN - 8..SLOT_LEN].copy_from_slice(&sum.to_le_bytes());
    let id = u64::from_le_bytes([7; 8]);
    for (index, sector) in data.chunks(SECTOR_LEN).take(8).enumerate() {
        let mut sector = sector.to_vec();
        sector.resize(SECTOR_LEN, 0);
        let seed = id ^ (index as u64).rotate_left(32);
        let sum = XxHash3_64::oneshot_with_seed(seed, &sector[8..]);
        sector[..8].copy_from_slice(&sum.to_le_bytes());
        bytes.extend(sector);
    }
    look(Platter::with(&bytes));
}
