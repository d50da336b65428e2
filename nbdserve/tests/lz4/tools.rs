//! What the lz4 tests share: images, the `lz4` tool as the oracle, frames made by hand.

use nbdserve::layer::lz4::LZ4;
pub(crate) use nbdserve::testing::packed::{keeping, roomy, try_read_all, verifying};
pub(crate) use nbdserve::testing::{disk_like as image, noise};
use nbdserve::testing::{packed, tools};
use nbdserve::{Cx, Kind, Result, Volume};

pub(crate) const MIB: usize = 1 << 20;

/// `lz4 ARGS < bytes`.
pub(crate) fn lz4(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter("lz4", &[&["-q", "-c"], args].concat(), bytes)
}

/// As [`lz4`] from a file, whose size the tool knows.
pub(crate) fn lz4_sized(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    std::fs::write(&file, bytes).unwrap();
    let args = [args, &["--content-size", file.to_str().unwrap()]].concat();
    lz4(&[], &args)
}

/// A skippable frame.
pub(crate) fn skippable(variant: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50 | variant, 0x2a, 0x4d, 0x18];
    frame.extend((content.len() as u32).to_le_bytes());
    frame.extend(content);
    frame
}

pub(crate) fn xxh32(bytes: &[u8]) -> u32 {
    twox_hash::XxHash32::oneshot(0, bytes)
}

/// The header of a frame with these flags, block descriptor and further fields.
pub(crate) fn header(flags: u8, block: u8, fields: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x04, 0x22, 0x4d, 0x18, flags, block];
    bytes.extend(fields);
    bytes.push((xxh32(&bytes[4..]) >> 8) as u8);
    bytes
}

/// A compressed block of a frame, or one that is stored as it is.
pub(crate) fn block(bytes: &[u8], raw: bool) -> Vec<u8> {
    let data = if raw {
        bytes.to_vec()
    } else {
        lz4_flex::block::compress(bytes)
    };
    let size = data.len() as u32 | u32::from(raw) << 31;
    [&size.to_le_bytes()[..], &data].concat()
}

/// A frame with content checksum of two blocks, the second of which refers to the first.
pub(crate) fn linked(first: &[u8], second: &[u8]) -> Vec<u8> {
    let data = lz4_flex::block::compress_with_dict(second, first);
    let mut file = [header(0x44, 0x40, &[]), block(first, false)].concat();
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file.extend([0; 4]);
    file.extend(xxh32(&[first, second].concat()).to_le_bytes());
    file
}

pub(crate) fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    packed::open_on(&LZ4, below, cx)
}

pub(crate) fn open(file: Vec<u8>, cx: &Cx) -> Result<Volume> {
    packed::open(&LZ4, file, cx)
}

pub(crate) fn kind_of_open(file: Vec<u8>, cx: &Cx) -> Option<Kind> {
    open(file, cx).err().map(|error| error.kind())
}

/// The layer must read a file as `bytes`, and so must the tool.
pub(crate) fn assert_reads_back(bytes: &[u8], file: &[u8]) {
    assert!(lz4(file, &["-d"]) == bytes, "the tool reads other bytes");
    reads_back(bytes, file);
}

/// As [`assert_reads_back`], for what the tool does not read from a pipe.
pub(crate) fn reads_back(bytes: &[u8], file: &[u8]) {
    for cx in [roomy(), Cx::new(20 << 20), verifying(roomy())] {
        let volume = open(file.to_vec(), &cx).unwrap();
        assert_eq!(volume.size(), bytes.len() as u64);
        assert!(try_read_all(&volume).unwrap() == bytes, "other bytes");
    }
}
