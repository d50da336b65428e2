//! The tar layer.

use super::{cx, mend};
use crate::layer::archive;
use crate::layer::tar::TAR;
use crate::source::Memory;

/// An archive as it is.
pub(super) fn open(data: &[u8]) {
    archive::exercise(&TAR, &Memory::volume(data.to_vec()), &cx());
}

/// An archive whose headers get the right checksum first.
pub(super) fn headers(data: &[u8]) {
    let mut file = data.to_vec();
    mend::tar(&mut file);
    open(&file);
}

/// Any bytes as the descriptor of an OVA.
pub(super) fn ova(data: &[u8]) {
    let mut file = Vec::new();
    for (name, content) in [
        ("a.ovf", data),
        ("disk.img", &[1; 600]),
        ("other", &[2; 600]),
    ] {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let size = format!("{:011o}", content.len());
        header[124..135].copy_from_slice(size.as_bytes());
        header[156..157].copy_from_slice(b"0");
        header[257..263].copy_from_slice(b"ustar\0");
        file.extend(header);
        file.extend(content);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    headers(&file);
}
