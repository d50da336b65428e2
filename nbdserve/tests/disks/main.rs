//! Disk images of VMware, VirtualBox, Virtual PC and Hyper-V: made by qemu-img and by hand, read back
//! by qemu-img, damaged in every field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tools;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
