//! The lz4 layer.

use twox_hash::XxHash32;

use super::{cx, exercise, may_refuse};
use crate::layer::Args;
use crate::layer::lz4::LZ4;
use crate::source::Memory;

/// More frames than this are left as they are.
const FRAMES: usize = 64;

/// A file whose frames get right header checksums first, as it is and with all checks at opening.
pub(super) fn open(data: &[u8]) {
    let mut file = data.to_vec();
    mend(&mut file);
    let below = Memory::volume(file);
    for verify in [false, true] {
        let mut cx = cx();
        cx.verify = verify;
        match (LZ4.open)(&below, &Args::new(), &cx) {
            Ok(volume) => {
                exercise(&volume);
                // Closing promises nothing about the image.
                let _ = volume.close();
            }
            Err(error) => may_refuse(&error),
        }
    }
}

/// Makes the checksum of each header right, wherever a magic stands.
fn mend(file: &mut [u8]) {
    let magic = [0x04, 0x22, 0x4d, 0x18];
    let starts: Vec<_> = file
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == magic)
        .map(|(at, _)| at)
        .take(FRAMES)
        .collect();
    for at in starts {
        // What is cut short has no checksum.
        let _ = mend_header(&mut file[at + 4..]);
    }
}

fn mend_header(descriptor: &mut [u8]) -> Option<()> {
    let flags = descriptor.first()?;
    let content = if flags & 8 != 0 { 8 } else { 0 };
    let dictionary = if flags & 1 != 0 { 4 } else { 0 };
    let len = 2 + content + dictionary;
    let sum = XxHash32::oneshot(0, descriptor.get(..len)?);
    *descriptor.get_mut(len)? = (sum >> 8) as u8;
    Some(())
}
