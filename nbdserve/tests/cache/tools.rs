//! Images of all formats of which something is kept, made by the tools that users have.

use std::path::Path;
use std::sync::Arc;

use nbdserve::layer::{Args, LAYERS};
use nbdserve::source::Memory;
use nbdserve::store::Store;
use nbdserve::testing::{Rng, noise, tools};
use nbdserve::{Cx, Result, Volume};

/// Memory of a mount: an image of [`LEN`] bytes in one block does not fit a quarter of it.
const BUDGET: u64 = 9 << 20;
const LEN: usize = (2 << 20) + 500_000;

/// A format, and how an image is made of bytes on the standard input.
pub(crate) const FORMATS: &[(&str, &str, &[&str])] = &[
    ("xz", "xz", &["-0", "--block-size=300KiB"]),
    ("xz", "xz", &["-0", "-T1"]),
    ("lzip", "lzip", &["-0", "-b", "256KiB", "-s", "64KiB"]),
    ("lzma", "xz", &["-0", "--format=lzma"]),
    ("bzip2", "bzip2", &["-1"]),
    ("gzip", "gzip", &["-1"]),
    ("zstd", "zstd", &["-1", "-q"]),
    ("lz4", "lz4", &["-BD", "-B4", "-qq"]),
    ("tar", "", &[]),
];

/// A format's image.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) layer: &'static str,
    pub(crate) number: usize,
    pub(crate) file: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
}

/// Data of all sorts, different in each version.
pub(crate) fn bytes(version: u64) -> Vec<u8> {
    let mut bytes = noise(LEN, version + 1);
    bytes[LEN / 4..LEN / 2].fill(0);
    for (number, line) in bytes[LEN / 2..LEN * 3 / 4].chunks_mut(64).enumerate() {
        let text = format!("line {number} of version {version} {:>64}", "");
        line.copy_from_slice(&text.as_bytes()[..line.len()]);
    }
    bytes
}

impl Image {
    pub(crate) fn make(number: usize, bytes: &[u8]) -> Self {
        let (layer, program, args) = FORMATS[number];
        let file = match layer {
            "tar" => tar(bytes),
            _ => tools::filter(program, args, bytes),
        };
        Self {
            layer,
            number,
            file,
            bytes: bytes.to_vec(),
        }
    }

    /// Opens it with a cache in `folder`, as the version of the image that `identity` names.
    pub(crate) fn open(&self, folder: &Path, identity: &str, verify: bool) -> Result<Volume> {
        let store = Store::with_limit(folder, 1 << 30).unwrap();
        self.open_in(&store, identity, verify)
    }

    pub(crate) fn open_in(
        &self,
        store: &Arc<Store>,
        identity: &str,
        verify: bool,
    ) -> Result<Volume> {
        self.open_with(Cx::new(BUDGET), store, identity, verify)
    }

    /// As [`Self::open_in`], with the threads and the memory of `cx`.
    fn open_with(
        &self,
        mut cx: Cx,
        store: &Arc<Store>,
        identity: &str,
        verify: bool,
    ) -> Result<Volume> {
        let place = store.place(&format!("{identity} {}", self.number), "/images/disk");
        cx.place = Some(place.inside(self.layer));
        cx.verify = verify;
        let args = match self.layer {
            "tar" => Args::from([("name".to_owned(), "disk".to_owned())]),
            _ => Args::new(),
        };
        let layer = LAYERS.iter().find(|one| one.name == self.layer).unwrap();
        (layer.open)(&Memory::volume(self.file.clone()), &args, &cx)
    }

    /// Reads all of it, all checked, and waits until what was decoded is kept. How many blocks were decoded.
    pub(crate) fn decodes(&self, store: &Arc<Store>, identity: &str) -> u64 {
        let cx = Cx::new(BUDGET);
        let volume = self.open_with(cx.clone(), store, identity, true).unwrap();
        assert!(volume.read_vec(0, self.bytes.len()).unwrap() == self.bytes);
        cx.pool.wait_idle();
        let decodes = volume.stats().blocks.map_or(0, |blocks| blocks.decodes);
        volume.close().unwrap();
        decodes
    }

    /// Reads at some places and compares.
    pub(crate) fn check(&self, volume: &Volume, rng: &mut Rng, reads: usize) {
        assert_eq!(volume.size(), self.bytes.len() as u64, "{}", self.layer);
        for _ in 0..reads {
            let at = rng.below(volume.size()) as usize;
            let len = (rng.below(300_000) as usize).min(self.bytes.len() - at);
            let found = volume.read_vec(at as u64, len);
            let right = found.unwrap() == self.bytes[at..at + len];
            assert!(right, "{}: other bytes at {at}", self.layer);
        }
    }
}

/// An archive with so many entries that an index of it is kept.
fn tar(bytes: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..200 {
        std::fs::write(dir.path().join(format!("f{number}")), [7; 600]).unwrap();
    }
    std::fs::write(dir.path().join("disk"), bytes).unwrap();
    let archive = dir.path().join("archive");
    let mut tar = tools::command("tar");
    tar.arg("-C").arg(dir.path()).arg("-cf").arg(&archive);
    tools::run_command(
        tar.args((0..200).map(|number| format!("f{number}")))
            .arg("disk"),
    );
    std::fs::read(archive).unwrap()
}
