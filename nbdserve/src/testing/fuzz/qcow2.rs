//! The layer for qcow2 images.

use super::{PIECE, cx, exercise, may_refuse};
use crate::layer::Args;
use crate::layer::offset::OFFSET;
use crate::layer::qcow2::QCOW2;
use crate::source::Memory;
use crate::{ByteRange, Kind, Volume, ZeroOpts};

/// An image as it is, and its first snapshot.
pub(super) fn open(data: &[u8]) {
    let below = Memory::read_only(data.to_vec());
    open_with(&below, &Args::new());
    open_with(
        &below,
        &Args::from([("snapshot".to_owned(), "1".to_owned())]),
    );
}

/// An image is written to: whatever it is, what was written is read.
pub(super) fn write(data: &[u8]) {
    let file = Memory::volume(data.to_vec());
    // A part of something has the size that it has: an image cannot make the memory grow.
    let below = (OFFSET.open)(&file, &Args::new(), &cx()).expect("all of it");
    let volume = match (QCOW2.open)(&below, &Args::new(), &cx()) {
        Ok(volume) => volume,
        Err(error) if error.kind() == Kind::Secret => return,
        Err(error) => return may_refuse(&error),
    };
    let Some(writer) = volume.writer() else {
        return;
    };
    let size = volume.size();
    let starts = [0, size / 3, size / 2, size.saturating_sub(PIECE)];
    for (number, start) in (0_u8..).zip(starts) {
        let range = ByteRange::between(start, size.min(start.saturating_add(PIECE)));
        let bytes = vec![number + 1; range.len() as usize];
        match writer.write_at(&bytes, start, false) {
            Ok(()) => {
                let found = volume.read_vec(start, bytes.len());
                let found = found.expect("what was written can be read");
                assert!(found == bytes, "{range} is not what was written");
            }
            Err(error) => may_refuse(&error),
        }
        let opts = ZeroOpts {
            may_trim: number % 2 == 0,
            ..ZeroOpts::default()
        };
        if let Err(error) = writer.zero(range, opts) {
            may_refuse(&error);
        }
        let all = ByteRange::between(0, size.min(1 << 20));
        if number == 2
            && let Err(error) = writer.trim(all, false)
        {
            may_refuse(&error);
        }
        if let Err(error) = writer.flush() {
            may_refuse(&error);
        }
    }
    exercise(&volume);
    if let Err(error) = volume.close() {
        may_refuse(&error);
    }
}

fn open_with(below: &Volume, args: &Args) {
    match (QCOW2.open)(below, args, &cx()) {
        Ok(volume) => exercise(&volume),
        // No snapshot; no passphrase.
        Err(error) if matches!(error.kind(), Kind::OutOfRange | Kind::Secret) => {}
        Err(error) => may_refuse(&error),
    }
}
