//! Blocks that go from the cache on disk, or are only just decoded, at the worst moment.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nbdserve::cache::{Blocks, Decode, Huge, Job};
use nbdserve::store::{Place, Store};
use nbdserve::testing::{noise, store_files};
use nbdserve::{Cx, Result};

/// What blocks are decoded and kept in.
const PIECE: usize = 256 << 10;

/// One block, and what happens while it is decoded.
#[derive(Debug)]
struct Format {
    bytes: Vec<u8>,
    /// Damaged when a run over the block has begun, once.
    damage: Mutex<Option<PathBuf>>,
    /// Taken down when so many bytes are decoded.
    stop_at: usize,
    cx: Cx,
    /// Whether the decoder was told to stop then.
    stopped: AtomicBool,
}

impl Format {
    fn new(len: usize, cx: &Cx) -> Self {
        Self {
            bytes: noise(len, 1),
            damage: Mutex::default(),
            stop_at: usize::MAX,
            cx: cx.clone(),
            stopped: AtomicBool::new(false),
        }
    }

    fn blocks(self) -> (Blocks, Arc<Self>) {
        let format = Arc::new(self);
        let huge = Huge {
            longest: Some(1 << 30),
            ..Huge::default()
        };
        let blocks = Blocks::new("slow", Arc::clone(&format) as _, huge, &format.cx).unwrap();
        (blocks, format)
    }
}

impl Decode for Format {
    fn len(&self, _number: u64) -> u64 {
        self.bytes.len() as u64
    }

    fn offset(&self, _number: u64) -> u64 {
        0
    }

    fn describe(&self, _number: u64) -> String {
        if let Some(path) = self.damage.lock().unwrap().take() {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            // Pages of the last piece: those before it are read first.
            let end = file.metadata().unwrap().len();
            file.write_all_at(&[0x5a; PIECE / 2], end - PIECE as u64 / 2 - 8192)
                .unwrap();
        }
        "the block".to_owned()
    }

    fn decode(&self, _number: u64, job: &mut Job<'_>) -> Result<()> {
        if !job.start(0)? {
            return Ok(());
        }
        let mut at = 0;
        while at < self.bytes.len() {
            let spare = job.spare()?;
            let len = spare.len();
            spare.copy_from_slice(&self.bytes[at..at + len]);
            job.advance(len)?;
            at += len;
            if at >= self.stop_at {
                self.cx.cancel.cancel();
                if let Err(error) = job.beat() {
                    self.stopped.store(true, Ordering::SeqCst);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn is_slow(&self) -> bool {
        true
    }
}

fn keeping(folder: &Path) -> Cx {
    let mut cx = Cx::new(64 << 20);
    cx.place = Some(Place::new(Store::open(folder).unwrap(), "an image"));
    cx
}

fn read(blocks: &Blocks, len: usize) -> Result<Vec<u8>> {
    let mut found = vec![0; len];
    blocks.read(0, 0, &mut found).map(|()| found)
}

#[test]
fn a_kept_block_that_goes_while_it_is_taken_is_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let len = 4 * PIECE;
    let cx = keeping(folder.path());
    let (blocks, format) = Format::new(len, &cx).blocks();
    assert!(read(&blocks, len).unwrap() == format.bytes);
    cx.pool.wait_idle();
    drop(blocks);

    let files = store_files(folder.path()).into_iter();
    let is_pages = |path: &PathBuf| path.extension().is_some_and(|end| end == "pages");
    let [path] = &files.filter(is_pages).collect::<Vec<_>>()[..] else {
        panic!("one file of pages is expected");
    };
    for (damaged, decodes) in [(None, 0), (Some(path.clone()), 1), (None, 0)] {
        let cx = keeping(folder.path());
        let mut format = Format::new(len, &cx);
        format.damage = Mutex::new(damaged);
        let (blocks, format) = format.blocks();
        assert!(read(&blocks, len).unwrap() == format.bytes);
        assert_eq!(blocks.stats().decodes, decodes);
        cx.pool.wait_idle();
    }
}

#[test]
fn a_block_of_which_all_is_decoded_is_kept_though_the_unit_is_taken_down() {
    for (stop_at, decodes) in [(PIECE, 1), (2 * PIECE, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let cx = keeping(folder.path());
        let mut format = Format::new(2 * PIECE, &cx);
        format.stop_at = stop_at;
        let (blocks, format) = format.blocks();
        // Served or not, depending on who is faster.
        let _ = read(&blocks, 2 * PIECE);
        cx.pool.wait_idle();
        assert_eq!(format.stopped.load(Ordering::SeqCst), decodes == 1);
        drop(blocks);

        let cx = keeping(folder.path());
        let (blocks, format) = Format::new(2 * PIECE, &cx).blocks();
        assert!(read(&blocks, 2 * PIECE).unwrap() == format.bytes);
        assert_eq!(blocks.stats().decodes, decodes);
    }
}
