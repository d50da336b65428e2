//! Logical volumes of groups that were made by hand: where their bytes lie, and every way in which
//! metadata can lie. That the kernel agrees is shown in `kernel_volumes.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod forge;
mod good;

use nbdserve::layer::lvm::LVM;
use nbdserve::layer::{Args, Sample, Verdict};
use nbdserve::source::Memory;
use nbdserve::{Cx, Kind, Result, Volume};

fn cx() -> Cx {
    Cx::new(16 << 20)
}

fn open_on(below: &Volume, name: &str) -> Result<Volume> {
    let args = Args::from([("volume".to_owned(), name.to_owned())]);
    (LVM.open)(below, &args, &cx())
}

fn open(image: &[u8], name: &str) -> Result<Volume> {
    open_on(&Memory::volume(image.to_vec()), name)
}

fn probe(head: &[u8]) -> Verdict {
    (LVM.probe)(&Sample {
        head,
        tail: None,
        size: head.len() as u64,
    })
}

/// The kind and the words of the error.
#[track_caller]
fn refused(image: &[u8], name: &str) -> (Kind, String) {
    let error = open(image, name).expect_err("it must not be opened");
    (error.kind(), error.report().to_string())
}
