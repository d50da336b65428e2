//! Devices and checks for tests: a model, faulty, slow, counting and strict devices, and the
//! conformance suite that every source and layer runs through.
//!
//! Nothing here is meant for production: a failed check is a panic.

pub mod conformance;
mod counting;
mod faulty;
pub mod fuzz;
mod model;
pub mod packed;
mod platter;
mod recorder;
mod rng;
mod slow;
mod strict;
pub mod tools;

use std::path::{Path, PathBuf};

pub use counting::{Counting, Counts};
pub use faulty::{Faults, Faulty};
pub use model::{Model, Op};
pub use platter::{Event, Platter, SECTOR};
pub use recorder::Recorder;
pub use rng::Rng;
pub use slow::{Gate, Slow};
pub use strict::{Strict, StrictDisk};

/// `len` bytes without a pattern, the same ones for the same seed.
#[must_use]
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// `len` bytes like a disk image: text, noise and long runs of zeroes. The same for the same `seed`.
#[must_use]
pub fn disk_like(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 100_000);
    let mut part = seed;
    while bytes.len() < len {
        part += 1;
        match part % 4 {
            0 => bytes.extend(noise(40_000, part)),
            1 => bytes.extend(vec![0; 700_000]),
            _ => {
                for line in 0..2000 {
                    bytes.extend(format!("line {line} of part {part}, as in a log\n").bytes());
                }
            }
        }
    }
    bytes.truncate(len);
    bytes
}

/// All files about images in the folder of a [`crate::store::Store`], in the order of their names.
///
/// # Panics
/// When there is no such folder.
#[must_use]
pub fn store_files(folder: &Path) -> Vec<PathBuf> {
    let images = std::fs::read_dir(folder.join("images"));
    let images = images.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = images
        .flatten()
        .filter_map(|image| std::fs::read_dir(image.path()).ok())
        .flat_map(|files| files.flatten().map(|file| file.path()))
        .collect();
    files.sort();
    files
}
