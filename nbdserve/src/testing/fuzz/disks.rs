//! The layers for disks of other machines. They may refer to no file here.

use super::{cx, exercise, may_refuse};
use crate::layer::{Args, LayerType, vdi, vhd, vhdx, vmdk};
use crate::source::Memory;

fn open(layer: &LayerType, data: &[u8]) {
    let below = Memory::volume(data.to_vec());
    match (layer.open)(&below, &Args::new(), &cx()) {
        Ok(volume) => exercise(&volume),
        Err(error) => may_refuse(&error),
    }
}

/// A file as it is.
pub(super) fn vmdk(data: &[u8]) {
    open(&vmdk::VMDK, data);
}

/// A file as it is.
pub(super) fn vdi(data: &[u8]) {
    open(&vdi::VDI, data);
}

/// A file as it is, and with the right checksums.
pub(super) fn vhd(data: &[u8]) {
    open(&vhd::VHD, data);
    let mut file = data.to_vec();
    mend_vhd(&mut file);
    open(&vhd::VHD, &file);
}

fn mend_vhd(file: &mut [u8]) {
    let mut mend = |start: usize, len: usize, at: usize| {
        if let Some(part) = file.get_mut(start..start.saturating_add(len)) {
            part[at..at + 4].fill(0);
            let sum: u32 = part.iter().map(|byte| u32::from(*byte)).sum();
            part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    };
    mend(0, 512, 0x40);
    mend(512, 1024, 0x24);
    let end = file.len().saturating_sub(512);
    if let Some(part) = file.get_mut(end..).filter(|part| part.len() == 512) {
        part[0x40..0x44].fill(0);
        let sum: u32 = part.iter().map(|byte| u32::from(*byte)).sum();
        part[0x40..0x44].copy_from_slice(&(!sum).to_be_bytes());
    }
}

/// The parts of a VHDX that mean something, as qemu places them: where each lies, and its bytes.
pub const VHDX_PARTS: &[(usize, usize)] = &[
    (0, 64),
    (64 << 10, 128),
    (128 << 10, 128),
    (192 << 10, 128),
    (256 << 10, 128),
    // Block allocation table, metadata table, metadata, log.
    (2 << 20, 128),
    (3 << 20, 320),
    ((3 << 20) + (64 << 10), 512),
    (1 << 20, 64 << 10),
];
/// Bytes of a file that is made of such parts.
const VHDX_SIZE: usize = 5 << 20;

/// The parts of a file ([`VHDX_PARTS`]), one after the other; with the right checksums, and as they
/// are.
pub(super) fn vhdx(data: &[u8]) {
    let mut file = vec![0; VHDX_SIZE];
    let mut rest = data;
    for (at, len) in VHDX_PARTS {
        let (now, later) = rest.split_at(rest.len().min(*len));
        file[*at..*at + now.len()].copy_from_slice(now);
        rest = later;
    }
    open(&vhdx::VHDX, &file);
    mend_vhdx(&mut file);
    open(&vhdx::VHDX, &file);
    open(&vhdx::VHDX, data);
}

fn mend_vhdx(file: &mut [u8]) {
    for (at, len) in [
        (64 << 10, 4096),
        (128 << 10, 4096),
        (192 << 10, 64 << 10),
        (256 << 10, 64 << 10),
    ] {
        vhdx::mend(&mut file[at..at + len]);
    }
    for at in ((1 << 20)..(1 << 20) + (64 << 10)).step_by(4096) {
        let len: [u8; 4] = [file[at + 8], file[at + 9], file[at + 10], file[at + 11]];
        let len = u32::from_le_bytes(len) as usize;
        if file[at..].starts_with(b"loge") && len >= 4096 && at + len <= 2 << 20 {
            vhdx::mend(&mut file[at..at + len]);
        }
    }
}
