//! qcow2 images: made by qemu-img and by hand, compared with what qemu-img reads, damaged in every
//! field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chain;
mod consistency;
mod counts;
mod crash;
mod encrypted;
#[path = "../common/folder.rs"]
mod folder;
mod forge;
mod good;
mod images;
mod lies;
mod snapshots;
mod write;
