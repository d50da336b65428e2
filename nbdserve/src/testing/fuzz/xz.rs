//! The xz layer.

use super::{cx, exercise, may_refuse, mend};
use crate::layer::Args;
use crate::layer::xz::XZ;
use crate::source::Memory;

/// A file as it is.
pub(super) fn open(data: &[u8]) {
    let below = Memory::volume(data.to_vec());
    match (XZ.open)(&below, &Args::new(), &cx()) {
        Ok(volume) => {
            exercise(&volume);
            // Closing promises nothing about the image.
            let _ = volume.close();
        }
        Err(error) => may_refuse(&error),
    }
}

/// A file whose CRCs are made right first.
pub(super) fn mended(data: &[u8]) {
    let mut file = data.to_vec();
    let _ = mend::xz(&mut file);
    open(&file);
}

/// Any bytes as the body of an Index, after as many bytes of blocks as the first two of them say.
pub(super) fn index(data: &[u8]) {
    let Some((blocks, body)) = data.split_first_chunk::<2>() else {
        return;
    };
    let mut file = vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0, 1, 0, 0, 0, 0];
    file.resize(file.len() + usize::from(u16::from_le_bytes(*blocks)) * 4, 0);
    let start = file.len();
    file.extend(body);
    file.resize(file.len().next_multiple_of(4) + 4, 0);
    let words = (file.len() - start) / 4;
    let backward = u32::try_from(words).map_or(u32::MAX, |words| words.saturating_sub(1));
    file.extend([0; 4]);
    file.extend(backward.to_le_bytes());
    file.extend([0, 1, b'Y', b'Z']);
    mended(&file);
}
