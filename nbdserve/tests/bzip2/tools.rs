//! What the bzip2 tests share.

use std::sync::{Arc, Mutex};

use nbdserve::cx::Observer;
use nbdserve::layer::bzip2::BZIP2;
use nbdserve::source::Memory;
pub(crate) use nbdserve::testing::noise;
use nbdserve::testing::tools;
use nbdserve::{Cx, Result, Volume};

/// `bzip2 ARGS < bytes`.
pub(crate) fn bzip2(bytes: &[u8], args: &[&str]) -> Vec<u8> {
    tools::filter("bzip2", args, bytes)
}

/// What the reference makes of a file.
pub(crate) fn bunzip2(file: &[u8]) -> Vec<u8> {
    tools::filter("bzip2", &["-d"], file)
}

/// Lines as in a log.
pub(crate) fn text(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 100);
    let mut line = 0_u64;
    while bytes.len() < len {
        line += 1;
        bytes.extend(format!("line {line} is not {}\n", line * line).bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Like a disk image: text, noise, zeroes and other runs.
pub(crate) fn image(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 1_000_000);
    let mut part = 0;
    while bytes.len() < len {
        part += 1;
        match part % 4 {
            0 => bytes.extend(noise(150_000, part)),
            1 => bytes.extend(text(200_000)),
            2 => bytes.extend(vec![0; 700_000]),
            _ => bytes.extend(vec![0xff; 300_000]),
        }
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn open(file: Vec<u8>, cx: &Cx) -> Result<Volume> {
    open_on(&Memory::volume(file), cx)
}

pub(crate) fn open_on(below: &Volume, cx: &Cx) -> Result<Volume> {
    (BZIP2.open)(below, &nbdserve::layer::Args::new(), cx)
}

pub(crate) fn roomy() -> Cx {
    Cx::new(128 << 20)
}

/// Keeps what an observer is told.
#[derive(Debug, Default)]
pub(crate) struct Witness(Mutex<Vec<(u64, u64)>>);

impl Witness {
    pub(crate) fn watch(cx: &mut Cx) -> Arc<Self> {
        let witness = Arc::new(Self::default());
        cx.observer = witness.clone();
        witness
    }

    pub(crate) fn progress(&self) -> Vec<(u64, u64)> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Witness {
    fn progress(&self, _what: &str, done: u64, total: u64) {
        self.0.lock().unwrap().push((done, total));
    }
}
