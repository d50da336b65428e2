//! Arrays of members that were made by hand: where their bytes lie, and every way in which superblocks
//! can lie. That the kernel agrees is shown in `kernel_volumes.rs`, that mdadm does here.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod forge;
mod good;
mod mirror;

use nbdserve::layer::Args;
use nbdserve::layer::raid::RAID;
use nbdserve::source::Memory;
use nbdserve::{Cx, Kind, Result, Volume};

fn cx() -> Cx {
    Cx::new(16 << 20)
}

fn open_on(below: &Volume, args: &[(&str, &str)]) -> Result<Volume> {
    let args = args
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    (RAID.open)(below, &args.collect::<Args>(), &cx())
}

fn open(image: &[u8], args: &[(&str, &str)]) -> Result<Volume> {
    open_on(&Memory::volume(image.to_vec()), args)
}

/// The kind and the words of the error.
#[track_caller]
fn refused(image: &[u8]) -> (Kind, String) {
    let error = open(image, &[]).expect_err("it must not be opened");
    (error.kind(), error.report().to_string())
}
