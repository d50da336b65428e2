//! The zstd layer.

use super::{cx, exercise, may_refuse};
use crate::layer::Args;
use crate::layer::zstd::ZSTD;
use crate::source::Memory;

/// Bytes of an entry with a checksum.
const ENTRY: usize = 12;
/// A frame of 1000 times the same byte, in one RLE block.
const FRAME: [u8; 10] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38, 0x43, 0x1f, 0x00, b'a'];

/// A file as it is, and once more with every block header looked at.
pub(super) fn open(data: &[u8]) {
    let below = Memory::volume(data.to_vec());
    for walk in ["no", "yes"] {
        let args = Args::from([("walk".to_owned(), walk.to_owned())]);
        match (ZSTD.open)(&below, &args, &cx()) {
            Ok(volume) => {
                exercise(&volume);
                // Closing promises nothing about the image.
                let _ = volume.close();
            }
            Err(error) => may_refuse(&error),
        }
    }
}

/// Any bytes as the entries of a seek table, behind as many frames as the first of them says. The
/// last entry is made to fit.
pub(super) fn seek_table(data: &[u8]) {
    let Some((frames, entries)) = data.split_first() else {
        return;
    };
    let mut file = FRAME.repeat(usize::from(*frames));
    let (len, start) = (file.len(), file.len() + 8);
    let entries = &entries[..entries.len() / ENTRY * ENTRY];
    let count = (entries.len() / ENTRY) as u32;
    file.extend([0x5e, 0x2a, 0x4d, 0x18]);
    file.extend((entries.len() as u32 + 9).to_le_bytes());
    file.extend(entries);
    let sizes = entries.chunks(ENTRY).rev().skip(1);
    let sum: u64 = sizes
        .filter_map(|entry| entry.first_chunk::<4>())
        .map(|size| u64::from(u32::from_le_bytes(*size)))
        .sum();
    if let Some(last) = (len as u64).checked_sub(sum)
        && count > 0
    {
        let at = start + entries.len() - ENTRY;
        file[at..at + 4].copy_from_slice(&(last as u32).to_le_bytes());
    }
    file.extend(count.to_le_bytes());
    file.push(0x80);
    file.extend(0x8f92_eab1_u32.to_le_bytes());
    open(&file);
}
