//! What all formats of disks have in common against those who mean ill: images that are cut at any
//! byte, files that name each other, writers that are killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cut;
#[path = "../common/folder.rs"]
mod folder;
mod images;
mod killed;
mod names;
