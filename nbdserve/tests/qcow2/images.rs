//! Images, and what qemu-img says of them.

use std::path::Path;

use nbdserve::layer::Args;
use nbdserve::layer::qcow2::QCOW2;
use nbdserve::references::References;
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::disk_like;
use nbdserve::{ByteRange, Cx, Result, Volume};

pub(crate) use crate::folder::Folder;

pub(crate) const MIB: usize = 1 << 20;

pub(crate) fn cx() -> Cx {
    Cx::new(64 << 20)
}

impl Folder {
    /// Makes an empty image.
    pub(crate) fn create(&self, name: &str, size: &str, options: &str) {
        self.create_with(&["-o", options], name, size);
    }

    /// Makes an empty image that is encrypted, as `options` have it, with the secret `s`.
    pub(crate) fn create_encrypted(&self, name: &str, size: &str, secret: &str, options: &str) {
        let secret = format!("secret,id=s,data={secret}");
        let options = format!("encrypt.key-secret=s,{options}");
        self.create_with(&["--object", &secret, "-o", &options], name, size);
    }

    fn create_with(&self, options: &[&str], name: &str, size: &str) {
        let create = ["create", "-q", "-f", "qcow2"];
        self.img(&[&create, options, &[name, size]].concat());
    }

    /// Runs commands of qemu-io on an image.
    pub(crate) fn io(&self, name: &str, commands: &[&str]) {
        let mut args = vec!["-f", "qcow2"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(name);
        self.run("qemu-io", &args);
    }

    /// A disk with text, noise and zeroes, as `raw`.
    pub(crate) fn disk(&self, len: usize, seed: u64) -> Vec<u8> {
        let bytes = disk_like(len, seed);
        self.write("raw", &bytes);
        bytes
    }

    /// What qemu-img reads from an image.
    pub(crate) fn oracle(&self, name: &str, options: &[&str]) -> Vec<u8> {
        let mut args = vec!["convert", "-O", "raw"];
        args.extend(options);
        args.extend([name, "oracle.raw"]);
        self.img(&args);
        self.read("oracle.raw")
    }

    pub(crate) fn open(&self, name: &str) -> Result<Volume> {
        self.open_with(name, &[], &cx())
    }

    pub(crate) fn open_with(&self, name: &str, args: &[(&str, &str)], cx: &Cx) -> Result<Volume> {
        let path = self.path(name);
        let below = Volume::new(File::open(&path, OpenMode::ReadOnly)?);
        open_on(&below, &path, args, cx)
    }
}

/// What `qemu-img map` says of an image, and what `volume` says of itself: bytes that it says are zero
/// are zero here too. There may be more.
pub(crate) fn compare_extents(folder: &Folder, name: &str, volume: &Volume) {
    let map = folder.img(&["map", "--output=json", name]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let ours = volume
        .extents(ByteRange::between(0, volume.size()))
        .unwrap();
    let mut ours = ours.runs().iter().peekable();
    for entry in map.as_array().unwrap() {
        let start = entry["start"].as_u64().unwrap();
        let end = start + entry["length"].as_u64().unwrap();
        let zero = entry["zero"].as_bool().unwrap();
        while let Some(run) = ours.peek() {
            let part = run.range.intersect(ByteRange::between(start, end));
            if !part.is_empty() {
                assert!(run.flags.zero || !zero, "{part}: {entry}\n{map:#}");
                let len = usize::try_from(part.len()).unwrap().min(4 * MIB);
                let bytes = volume.read_vec(part.start(), len).unwrap();
                assert!(
                    !run.flags.zero || bytes.iter().all(|byte| *byte == 0),
                    "{part}"
                );
            }
            if run.range.end() > end {
                break;
            }
            ours.next();
        }
    }
}

/// Opens the image at `path`, whose bytes are `below`.
pub(crate) fn open_on(
    below: &Volume,
    path: &Path,
    args: &[(&str, &str)],
    cx: &Cx,
) -> Result<Volume> {
    let mut cx = cx.clone();
    let opened = std::fs::File::open(path).unwrap();
    cx.references = References::of(path, opened, &[])?;
    let args: Args = args
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    (QCOW2.open)(below, &args, &cx)
}
