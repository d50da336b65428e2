//! The layers: each unwraps one format and is a [`Device`](crate::Device) on a [`Volume`].
//!
//! A layer is a folder of the same shape: `header.rs` (a pure parser: bytes in, typed values or a
//! precise error out) and `mod.rs` (its [`LayerType`] and its device).
#![deny(clippy::arithmetic_side_effects, clippy::as_conversions)]

pub(crate) mod archive;
mod bitmap;
pub mod bzip2;
pub mod cow;
pub(crate) mod cut;
mod decoded;
pub(crate) mod deflate;
pub mod gzip;
mod input;
pub mod luks;
pub mod lvm;
pub mod lz4;
pub mod lzip;
pub mod lzma;
mod mapped;
mod numbered;
pub mod offset;
mod pages;
pub mod partition;
pub(crate) mod parts;
pub mod qcow2;
pub mod raid;
mod recent;
mod scan;
pub mod simg;
mod spans;
pub mod split;
mod striped;
mod tail;
pub mod tar;
mod twins;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
mod window;
mod winpath;
pub mod xz;
pub mod zip;
pub mod zstd;

use std::collections::BTreeMap;

use crate::{Cx, Result, Volume};

/// Every layer that can be named or found by probing.
pub static LAYERS: &[&LayerType] = &[
    &xz::XZ,
    &gzip::GZIP,
    &bzip2::BZIP2,
    &lzip::LZIP,
    &lzma::LZMA,
    &zstd::ZSTD,
    &lz4::LZ4,
    &tar::TAR,
    &zip::ZIP,
    &simg::SIMG,
    &vmdk::VMDK,
    &vdi::VDI,
    &vhd::VHD,
    &vhdx::VHDX,
    &qcow2::QCOW2,
    &luks::LUKS,
    &lvm::LVM,
    &raid::RAID,
    &split::SPLIT,
    &cow::COW,
    &offset::OFFSET,
    &partition::PARTITION,
];

/// Of the memory budget, the index of a layer takes at most one part in this many.
const INDEX_PART: u64 = 8;

/// What a layer is called, how it is recognised and how it is opened.
#[derive(Debug)]
pub struct LayerType {
    /// As in `--layer NAME` and in messages.
    pub name: &'static str,
    /// One line for help.
    pub summary: &'static str,
    /// What it takes after the name: `--layer NAME:key=value,...`.
    pub params: &'static [Param],
    /// Whether these bytes look like this format. Pure: no I/O, no panic.
    pub probe: fn(&Sample<'_>) -> Verdict,
    /// Opens the layer on `below`. Whoever calls it adds the layer's name to an error.
    ///
    /// # Errors
    /// `NotThisFormat`, `Corrupt`, `Unsupported`, `Limit` or what `below` says.
    pub open: fn(below: &Volume, args: &Args, cx: &Cx) -> Result<Volume>,
}

/// One parameter of a layer.
#[derive(Debug)]
pub struct Param {
    /// The key.
    pub name: &'static str,
    /// One line for help.
    pub summary: &'static str,
}

/// Parameters of one use of a layer, by name.
pub type Args = BTreeMap<String, String>;

/// What [`LayerType::probe`] sees of an image.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The first bytes: [`Sample::HEAD`], or all when the image is shorter.
    pub head: &'a [u8],
    /// The last bytes: [`Sample::TAIL`], or all when the image is shorter. `None` when reading
    /// them would cost decoding.
    pub tail: Option<&'a [u8]>,
    /// Bytes of the image.
    pub size: u64,
}

impl Sample<'_> {
    /// Length of `head` for an image that is long enough: beyond the superblocks of all file
    /// systems we name (btrfs has the last one, at 64 KiB).
    pub const HEAD: usize = 68 * 1024;
    /// Length of `tail` for an image that is long enough.
    pub const TAIL: usize = 4096;
}

/// What a probe says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not this format.
    No,
    /// This format, by evidence that is given for the user to read.
    Yes {
        /// How sure; see the constants of [`Confidence`].
        confidence: Confidence,
        /// `magic fd 37 7a 58 5a 00 at 0`.
        evidence: String,
    },
}

/// The order in which probes win. A higher value beats a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Confidence(pub u8);

impl Confidence {
    /// Plausible numbers, no magic.
    pub const WEAK: Self = Self(10);
    /// A short magic that other formats carry too (`55 aa`).
    pub const SHORT_MAGIC: Self = Self(40);
    /// A partition table without a checksum, with entries that make sense. What leaves the first
    /// sector to others (ext4, LVM) ranks lower, for making it would have wiped the table; what has
    /// its own mark in the first sector ranks higher.
    pub const TABLE: Self = Self(60);
    /// A magic of four bytes or more.
    pub const MAGIC: Self = Self(80);
    /// A magic and a matching checksum.
    pub const CHECKED: Self = Self(100);
}
