//! What the gzip tests share: images, the foreign tools, members made by hand.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nbdserve::cx::Observer;
use nbdserve::layer::gzip::GZIP;
use nbdserve::source::Memory;
pub(crate) use nbdserve::testing::packed::{keeping, read, roomy, try_read_all};
use nbdserve::testing::{self, Counting, Counts, tools};
pub(crate) use nbdserve::testing::{disk_like as image, noise};
use nbdserve::{Cx, Kind, Result, Volume};

pub(crate) const MIB: usize = 1 << 20;

/// `PROGRAM ARGS -c < bytes`.
pub(crate) fn packed(program: &str, bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter(program, &[args, &["-c"]].concat(), bytes)
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    packed("gzip", bytes, &["-1", "-n"])
}

pub(crate) fn bgzip(bytes: &[u8]) -> Vec<u8> {
    packed("bgzip", bytes, &["-l", "1"])
}

pub(crate) fn open(file: Vec<u8>, cx: &Cx) -> Result<Volume> {
    testing::packed::open(&GZIP, file, cx)
}

pub(crate) fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    testing::packed::open_on(&GZIP, below, cx)
}

/// Opens, counting what is asked of the file.
pub(crate) fn counted(file: &[u8], cx: &Cx) -> (Volume, Counts) {
    let (below, counts) = Counting::volume(Memory::volume(file.to_vec()));
    (open_on(&below, cx).unwrap(), counts)
}

/// The indexes in a store.
pub(crate) fn indexes(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(indexes(&path));
        } else if path.to_string_lossy().ends_with(".blob") {
            found.push(path);
        }
    }
    found
}

/// Their bytes.
pub(crate) fn stored(folder: &Path) -> u64 {
    let files = indexes(folder);
    assert!(!files.is_empty());
    let sizes = files.iter().map(|file| file.metadata().unwrap().len());
    sizes.sum()
}

/// How many spans were decoded so far.
pub(crate) fn decodes(volume: &Volume) -> u64 {
    volume.stats().blocks.unwrap().decodes
}

/// Opens and reads all of it; the kind of error where that fails.
pub(crate) fn content(file: &[u8]) -> Result<Vec<u8>, Kind> {
    let volume = open(file.to_vec(), &roomy());
    let all = volume.and_then(|volume| try_read_all(&volume));
    all.map_err(|error| error.kind())
}

/// What opening `file` says.
pub(crate) fn refusal(file: &[u8]) -> (Kind, String) {
    let error = open(file.to_vec(), &roomy()).unwrap_err();
    (error.kind(), error.report().to_string())
}

/// A member with this header (from the flags on), its bytes in stored blocks.
pub(crate) fn member(flags: u8, rest_of_header: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255];
    out.extend(rest_of_header);
    for part in bytes.chunks(0xffff) {
        let len = part.len() as u16;
        out.push(0);
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(part);
    }
    // An empty last block.
    out.extend([1, 0, 0, 0xff, 0xff]);
    out.extend(crc32fast::hash(bytes).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

/// Where the members of a bgzip file begin, by their own words.
pub(crate) fn blocks(file: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let mut starts = Vec::new();
    while at < file.len() {
        assert_eq!(file[at + 12..at + 14], *b"BC");
        starts.push(at);
        let size = u16::from_le_bytes(file[at + 16..at + 18].try_into().unwrap());
        at += usize::from(size) + 1;
    }
    starts
}

/// Keeps what an observer is told.
#[derive(Debug, Default)]
pub(crate) struct Witness(pub(crate) Mutex<Vec<(String, u64, u64)>>);

impl Observer for Witness {
    fn progress(&self, what: &str, done: u64, total: u64) {
        self.0.lock().unwrap().push((what.to_owned(), done, total));
    }
}
