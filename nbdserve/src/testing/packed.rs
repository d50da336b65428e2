//! What tests of layers that decode have in common: opening a file, reading all of it, a place that
//! keeps what was learnt, and what must hold for every file that is damaged.

use std::path::Path;

use crate::layer::{Args, LayerType};
use crate::source::Memory;
use crate::store::{Place, Store};
use crate::{Cx, Kind, Result, Volume};

/// A reader goes on by so many bytes, which fit nothing.
const STEP: usize = 300_007;

/// A context with a budget that holds all blocks of small tests.
#[must_use]
pub fn roomy() -> Cx {
    Cx::new(256 << 20)
}

/// Nothing is served before its check was made.
#[must_use]
pub fn verifying(mut cx: Cx) -> Cx {
    cx.verify = true;
    cx
}

/// With a place in `folder` for what is learnt about the one image there is.
///
/// # Panics
/// When `folder` cannot be used.
#[must_use]
pub fn keeping(mut cx: Cx, folder: &Path) -> Cx {
    let store = Store::open(folder).expect("a store in a folder of the test");
    cx.place = Some(Place::new(store, "the image"));
    cx
}

/// Opens `layer` on a file of these bytes, without parameters.
///
/// # Errors
/// As the layer, with its name.
pub fn open(layer: &LayerType, file: Vec<u8>, cx: &Cx) -> Result<Volume> {
    open_on(layer, &Memory::volume(file), cx)
}

/// As [`open`], on any volume.
///
/// # Errors
/// As the layer, with its name.
pub fn open_on(layer: &LayerType, below: &Volume, cx: &Cx) -> Result<Volume> {
    (layer.open)(below, &Args::new(), cx).map_err(|error| error.in_layer(layer.name))
}

/// The `len` bytes at `offset`.
///
/// # Errors
/// As [`Volume::read_vec`].
pub fn read(volume: &Volume, offset: usize, len: usize) -> Result<Vec<u8>> {
    volume.read_vec(offset as u64, len)
}

/// All of the image, read in pieces that fit nothing.
///
/// # Errors
/// As [`Volume::read_at`].
///
/// # Panics
/// When it does not fit memory.
pub fn try_read_all(volume: &Volume) -> Result<Vec<u8>> {
    let mut all = vec![0; usize::try_from(volume.size()).expect("a test image fits memory")];
    for (number, part) in all.chunks_mut(STEP).enumerate() {
        volume.read_at(part, (number * STEP) as u64)?;
    }
    Ok(all)
}

/// Reads at places (taken modulo the size) with so many bytes, by several threads, and compares.
///
/// # Panics
/// When something else is there than in `bytes`.
pub fn assert_reads(volume: &Volume, bytes: &[u8], reads: &[(u32, usize)]) {
    assert_eq!(volume.size(), bytes.len() as u64);
    std::thread::scope(|scope| {
        for part in reads.chunks(6) {
            scope.spawn(move || {
                for (at, len) in part {
                    let at = *at as usize % (bytes.len() + 1);
                    let len = (*len).min(bytes.len() - at);
                    let found = read(volume, at, len);
                    let found = found.unwrap_or_else(|error| panic!("{len} at {at}: {error:?}"));
                    assert!(found == bytes[at..at + len], "{len} at {at}: other bytes");
                }
            });
        }
    });
}

/// Many readers of different parts at once, in a small budget (`cx`), which must hold.
///
/// # Panics
/// When it does not, or other bytes are read than `bytes`: at least 24 MiB.
pub fn assert_budget_holds(volume: &Volume, bytes: &[u8], cx: &Cx) {
    const MIB: usize = 1 << 20;
    std::thread::scope(|scope| {
        for reader in 0..6 {
            scope.spawn(move || {
                for step in 0..40 {
                    let at = (reader * 4 * MIB + step * 100_000) % (23 * MIB);
                    let found = read(volume, at, 100_000);
                    assert!(found.is_ok_and(|found| found == bytes[at..at + 100_000]));
                }
            });
        }
    });
    let (peak, budget) = (cx.cache.peak(), cx.cache.budget());
    assert!(peak <= budget, "{peak} of {budget}");
}

/// What becomes of `file` cut at each of `places`: it is refused as damaged, or it was cut where a whole
/// file ends, and is the beginning of `bytes`. `content` opens a file and reads all of it.
///
/// # Panics
/// When it is anything else.
pub fn assert_cuts(
    file: &[u8],
    bytes: &[u8],
    places: impl IntoIterator<Item = usize>,
    content: impl Fn(Vec<u8>) -> Result<Vec<u8>>,
) {
    for len in places {
        match content(file[..len].to_vec()) {
            Err(error) => assert!(
                matches!(error.kind(), Kind::Corrupt | Kind::NotThisFormat),
                "cut at {len}: {error:?}"
            ),
            Ok(found) => assert!(bytes.starts_with(&found), "cut at {len}"),
        }
    }
}

/// Flips each bit of `file` by itself: an error of one of these kinds, or the right bytes. In how many
/// places it was the latter. `content` opens a file and reads all of it.
///
/// # Panics
/// When there are other bytes, or another error.
#[must_use]
pub fn flips_without_effect(
    file: &[u8],
    bytes: &[u8],
    kinds: &[Kind],
    content: impl Fn(Vec<u8>) -> Result<Vec<u8>>,
) -> usize {
    let mut survived = 0;
    for bit in 0..file.len() * 8 {
        let mut bad = file.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        match content(bad) {
            Ok(found) => {
                assert!(found == bytes, "bit {bit}: other bytes");
                survived += 1;
            }
            Err(error) => assert!(kinds.contains(&error.kind()), "bit {bit}: {error:?}"),
        }
    }
    survived
}
