//! What the zstd tests share: images, the tools `zstd` and `pzstd` as oracles, frames made by hand.

use nbdserve::layer::Args;
use nbdserve::layer::zstd::ZSTD;
use nbdserve::source::Memory;
pub(crate) use nbdserve::testing::packed::{keeping, roomy, try_read_all, verifying};
use nbdserve::testing::tools;
pub(crate) use nbdserve::testing::{disk_like as image, noise};
use nbdserve::{Cx, Kind, Result, Volume};

pub(crate) const MIB: usize = 1 << 20;

/// One frame that does not say its size.
pub(crate) fn piped(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter("zstd", &[&["-q", "-c"], args].concat(), bytes)
}

/// One frame that says its size.
pub(crate) fn zstd(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    let size = format!("--stream-size={}", bytes.len());
    piped(bytes, &[&[size.as_str()], args].concat())
}

/// What `pzstd` makes: frames that do not say their size, with notes before them.
pub(crate) fn pzstd(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    std::fs::write(&file, bytes).unwrap();
    let args = [&["-q", "-c"], args, &[file.to_str().unwrap()]].concat();
    tools::filter("pzstd", &args, &[])
}

/// What `zstd -dc` makes of a file.
pub(crate) fn zstdcat(bytes: &[u8]) -> Vec<u8> {
    tools::filter("zstd", &["-q", "-dc", "--long=31"], bytes)
}

/// A skippable frame.
pub(crate) fn skippable(variant: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50 | variant, 0x2a, 0x4d, 0x18];
    frame.extend((content.len() as u32).to_le_bytes());
    frame.extend(content);
    frame
}

/// A block as it stands in a frame.
pub(crate) fn block(kind: u32, size: u32, last: bool, content: &[u8]) -> Vec<u8> {
    let header = (size << 3 | kind << 1 | u32::from(last)).to_le_bytes();
    [&header[..3], content].concat()
}

/// A frame with a window of 128 KiB, this Frame_Content_Size and these blocks; no checksum.
pub(crate) fn frame(content: Option<u64>, blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
    frame.push(if content.is_some() { 0xc0 } else { 0 });
    frame.push(7 << 3);
    if let Some(content) = content {
        frame.extend(content.to_le_bytes());
    }
    frame.extend(blocks.concat());
    frame
}

/// Frames of `step` bytes each with a seek table at the end (contrib/seekable_format).
pub(crate) fn seekable(bytes: &[u8], step: usize, checks: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut entries = Vec::new();
    for part in bytes.chunks(step) {
        let frame = piped(part, &["-1", "--no-check"]);
        let sum = xxh64(part);
        entries.push((frame.len() as u32, part.len() as u32, checks.then_some(sum)));
        file.extend(frame);
    }
    file.extend(seek_table(&entries));
    file
}

/// The lower half of XXH64.
pub(crate) fn xxh64(bytes: &[u8]) -> u32 {
    twox_hash::XxHash64::oneshot(0, bytes) as u32
}

/// A seek table with these entries.
pub(crate) fn seek_table(entries: &[(u32, u32, Option<u32>)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (encoded, len, sum) in entries {
        content.extend(encoded.to_le_bytes());
        content.extend(len.to_le_bytes());
        if let Some(sum) = sum {
            content.extend(sum.to_le_bytes());
        }
    }
    content.extend((entries.len() as u32).to_le_bytes());
    let checks = entries.iter().any(|(_, _, sum)| sum.is_some());
    content.push(u8::from(checks) << 7);
    content.extend(0x8f92_eab1_u32.to_le_bytes());
    skippable(0xe, &content)
}

pub(crate) fn open_with(below: &Volume, walk: bool, cx: &Cx) -> Result<Volume> {
    let mut args = Args::new();
    if walk {
        args.insert("walk".to_owned(), "yes".to_owned());
    }
    (ZSTD.open)(below, &args, cx).map_err(|error| error.in_layer("zstd"))
}

pub(crate) fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    open_with(below, false, cx)
}

pub(crate) fn open(file: Vec<u8>, cx: &Cx) -> Result<Volume> {
    open_on(&Memory::volume(file), cx)
}

pub(crate) fn kind_of_open(file: Vec<u8>, cx: &Cx) -> Option<Kind> {
    open(file, cx).err().map(|error| error.kind())
}

/// Blocks of more than 2 MiB go to the temp file.
pub(crate) fn tight() -> Cx {
    Cx::new(8 << 20)
}

/// The layer must read a file as `bytes`, and so must the tool.
pub(crate) fn assert_reads_back(bytes: &[u8], file: &[u8]) {
    assert!(zstdcat(file) == bytes, "the tool reads other bytes");
    for cx in [roomy(), tight()] {
        for walk in [false, true] {
            let below = Memory::volume(file.to_vec());
            let volume = open_with(&below, walk, &cx).unwrap();
            assert_eq!(volume.size(), bytes.len() as u64);
            assert!(try_read_all(&volume).unwrap() == bytes, "other bytes");
        }
    }
}
