//! The layer that keeps writes apart: scratch and kept.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod binding;
mod committing;
mod conformance;
mod crash;
mod damage;
mod plans;
mod space;

use std::path::Path;

use nbdserve::layer::Args;
use nbdserve::layer::cow::{Base, COW, open_medium};
use nbdserve::source::Memory;
use nbdserve::testing::{Platter, noise};
use nbdserve::{Cx, Result, Volume};

/// Not a multiple of a block.
const SIZE: usize = 300_000;

fn cx() -> Cx {
    Cx::new(16 << 20)
}

/// The arguments for writes that are kept in `file`.
fn kept(file: &Path) -> Args {
    let file = file.to_str().unwrap().to_owned();
    [("file".to_owned(), file)].into_iter().collect()
}

fn scratch_on(below: &Volume) -> Volume {
    (COW.open)(below, &Args::new(), &cx()).unwrap()
}

fn on_platter(below: &Volume, platter: &Platter) -> Result<Volume> {
    open_medium(below, Box::new(platter.clone()), "kept", &Base::default())
}

fn disk() -> (Volume, Vec<u8>) {
    let bytes = noise(SIZE, 1);
    (Memory::volume(bytes.clone()), bytes)
}
