//! Images made by hand, to be damaged.

use nbdserve::layer::Args;
use nbdserve::layer::qcow2::QCOW2;
use nbdserve::source::Memory;
use nbdserve::{Result, Volume};

use crate::images::cx;

/// Bytes of a cluster of the images that [`image`] makes.
pub(crate) const CLUSTER: usize = 4096;
/// Where the L1 table lies in them.
pub(crate) const L1: usize = 3 * CLUSTER;
/// Where the L2 table lies.
pub(crate) const L2: usize = 4 * CLUSTER;
/// Where the first data cluster lies; a few follow.
pub(crate) const DATA: usize = 5 * CLUSTER;
/// Data clusters.
pub(crate) const CLUSTERS: usize = 4;
/// `COPIED`.
pub(crate) const COPIED: u64 = 1 << 63;

pub(crate) fn put32(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put64(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn get64(file: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(file[at..at + 8].try_into().unwrap())
}

/// The byte that fills a data cluster.
pub(crate) fn fill(number: usize) -> u8 {
    u8::try_from(0x11 * (number + 1)).unwrap()
}

/// An image of version 3 with a disk of sixteen clusters, the first four of which are allocated:
/// header, refcount table, refcount block, L1, L2, data.
pub(crate) fn image() -> Vec<u8> {
    let mut file = vec![0; DATA + CLUSTERS * CLUSTER];
    file[..4].copy_from_slice(b"QFI\xfb");
    put32(&mut file, 4, 3);
    put32(&mut file, 20, 12);
    put64(&mut file, 24, 16 * CLUSTER as u64);
    put32(&mut file, 36, 1);
    put64(&mut file, 40, L1 as u64);
    put64(&mut file, 48, CLUSTER as u64);
    put32(&mut file, 56, 1);
    put32(&mut file, 96, 4);
    put32(&mut file, 100, 112);
    put64(&mut file, CLUSTER, 2 * CLUSTER as u64);
    for cluster in 0..5 + CLUSTERS {
        file[2 * CLUSTER + 2 * cluster + 1] = 1;
    }
    put64(&mut file, L1, L2 as u64 | COPIED);
    for number in 0..CLUSTERS {
        let at = DATA + number * CLUSTER;
        put64(&mut file, L2 + 8 * number, at as u64 | COPIED);
        file[at..at + CLUSTER].fill(fill(number));
    }
    file
}

/// What the disk of [`image`] reads as.
pub(crate) fn disk() -> Vec<u8> {
    let mut disk = Vec::new();
    for number in 0..CLUSTERS {
        disk.extend([fill(number); CLUSTER]);
    }
    disk.resize(16 * CLUSTER, 0);
    disk
}

/// Adds header extensions, which take the place of the zeroes behind the header.
pub(crate) fn extensions(file: &mut [u8], list: &[(u32, Vec<u8>)]) {
    let mut at = 112;
    for (kind, body) in list {
        put32(file, at, *kind);
        put32(file, at + 4, u32::try_from(body.len()).unwrap());
        file[at + 8..at + 8 + body.len()].copy_from_slice(body);
        at += 8 + body.len().next_multiple_of(8);
    }
}

pub(crate) fn open(file: &[u8]) -> Result<Volume> {
    (QCOW2.open)(&Memory::read_only(file.to_vec()), &Args::new(), &cx())
}

/// `bytes` as raw deflate data.
pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let packed = nbdserve::testing::tools::filter("gzip", &["-n", "-c"], bytes);
    // Without the header of ten bytes, the CRC and the length.
    packed[10..packed.len() - 8].to_vec()
}
