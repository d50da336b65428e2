//! Finding out what an image is.
//!
//! [`resolve()`] looks at a source, takes off one layer after the other, chooses a partition and
//! names the file system; what comes out is a [`Plan`] that [`reopen`] follows without looking.
//!
//! What wins when bytes look like several things at once, strongest first (the numbers are
//! [`Confidence`](crate::layer::Confidence)):
//!
//! 1. ISO 9660 and UDF (120). They leave the first 32 KiB to others: a hybrid image that carries
//!    an MBR or a GPT too is an ISO image. Asking for a partition makes the table win.
//! 2. A GPT with a right checksum (100).
//! 3. What has its mark in the first sector (80): compression, disk formats, LUKS, FAT, NTFS, XFS,
//!    squashfs. Where an MBR has its entries, these have something else.
//! 4. An MBR with entries that make sense, or one that protects a damaged GPT (60).
//! 5. What leaves the first sector to boot code (50): ext4, btrfs, LVM, swap. Making one of them
//!    wipes the sector, so a table in it is the younger of the two.

mod choose;
mod enter;
pub mod fs;
mod info;
mod refuse;
mod resolve;
mod sample;
mod spec;
mod volumes;
mod walk;

pub use fs::{Class, FsInfo};
pub use info::{AccessInfo, Info, LayerInfo, PartitionInfo, TableInfo};
pub use resolve::{
    LooksLikeRoot, Opened, Request, Resolved, Step, commit, inspect, inspect_with, looks_plain,
    reopen, resolve,
};
pub use spec::{Content, LayerSpec, Locked, Pick, Plan, Purpose, RAW};
pub use volumes::VolumeInfo;
