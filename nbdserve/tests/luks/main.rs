//! LUKS images: made by cryptsetup and qemu-img, read and written, read back by qemu-img, damaged in
//! every field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod data;
mod images;
mod keys;
mod plan;
