//! Functions that take any bytes and must come back: no panic, no endless work, no memory beyond
//! [`CACHE`] and a small multiple of the input.
//!
//! Each is one target of `nbdserve/fuzz` (cargo-fuzz) and, over real files and a bounded number of
//! mutations, one test of `nbdserve/tests/fuzz/`. They check more than that nothing breaks: what
//! was opened is read, read again, and held against its own extents.

pub mod cow;
mod disks;
mod foresight;
mod gzip;
mod http;
mod luks;
mod lz4;
mod mend;
mod nbd;
mod packed;
mod partition;
mod plan;
mod qcow2;
mod simg;
mod tar;
mod volumes;
mod xz;
mod zip;
mod zstd;

use std::sync::OnceLock;
use std::time::Duration;

use crate::{ByteRange, Cx, Error, Kind, Volume};

/// Budget for decoded blocks and decoders, in bytes.
pub const CACHE: u64 = 8 << 20;
/// Most bytes of temp files.
const TEMP: u64 = 64 << 20;
/// What is opened is read up to here, so that a small input cannot cost much time.
const DEPTH: u64 = 4 << 20;
/// Length of one read.
const PIECE: u64 = 5000;
/// A layer that makes no progress for this long hangs.
const HANGS: Duration = Duration::from_secs(30);

/// One fuzz target.
#[derive(Debug)]
pub struct Target {
    /// Its name: that of its file in `nbdserve/fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Takes any bytes. Panics when something is wrong with our code.
    pub run: fn(&[u8]),
}

/// All of them.
pub static TARGETS: &[Target] = &[
    Target {
        name: "probe",
        run: plan::probe,
    },
    Target {
        name: "resolve",
        run: plan::resolve,
    },
    Target {
        name: "layer_spec",
        run: plan::layer_spec,
    },
    Target {
        name: "xz_open",
        run: xz::open,
    },
    Target {
        name: "xz_mended",
        run: xz::mended,
    },
    Target {
        name: "xz_index",
        run: xz::index,
    },
    Target {
        name: "zstd_open",
        run: zstd::open,
    },
    Target {
        name: "zstd_seek_table",
        run: zstd::seek_table,
    },
    Target {
        name: "gzip_open",
        run: gzip::open,
    },
    Target {
        name: "gzip_header",
        run: gzip::header,
    },
    Target {
        name: "gzip_index",
        run: gzip::index,
    },
    Target {
        name: "deflate_zeroes",
        run: gzip::zeroes,
    },
    Target {
        name: "http_multipart",
        run: http::multipart,
    },
    Target {
        name: "tar_open",
        run: tar::open,
    },
    Target {
        name: "tar_headers",
        run: tar::headers,
    },
    Target {
        name: "ova",
        run: tar::ova,
    },
    Target {
        name: "zip_open",
        run: zip::open,
    },
    Target {
        name: "lz4_open",
        run: lz4::open,
    },
    Target {
        name: "bzip2_open",
        run: packed::bzip2,
    },
    Target {
        name: "lzma_open",
        run: packed::lzma,
    },
    Target {
        name: "lzip_open",
        run: packed::lzip,
    },
    Target {
        name: "qcow2_open",
        run: qcow2::open,
    },
    Target {
        name: "qcow2_write",
        run: qcow2::write,
    },
    Target {
        name: "simg_open",
        run: simg::open,
    },
    Target {
        name: "foresight",
        run: foresight::watch,
    },
    Target {
        name: "cow_open",
        run: cow::open,
    },
    Target {
        name: "cow_map",
        run: cow::map,
    },
    Target {
        name: "luks1_header",
        run: luks::header1,
    },
    Target {
        name: "luks2_header",
        run: luks::header2,
    },
    Target {
        name: "luks_open",
        run: luks::open,
    },
    Target {
        name: "vmdk_open",
        run: disks::vmdk,
    },
    Target {
        name: "vdi_open",
        run: disks::vdi,
    },
    Target {
        name: "vhd_open",
        run: disks::vhd,
    },
    Target {
        name: "vhdx_open",
        run: disks::vhdx,
    },
    Target {
        name: "gpt",
        run: partition::gpt,
    },
    Target {
        name: "mbr",
        run: partition::mbr,
    },
    Target {
        name: "lvm_text",
        run: volumes::lvm_text,
    },
    Target {
        name: "lvm_open",
        run: volumes::lvm_open,
    },
    Target {
        name: "md_superblock",
        run: volumes::md_superblock,
    },
    Target {
        name: "raid_open",
        run: volumes::raid_open,
    },
    Target {
        name: "nbd_request",
        run: nbd::request,
    },
    Target {
        name: "nbd_connection",
        run: nbd::connection,
    },
];

/// Which parts of a file the target `vhdx_open` takes.
pub use disks::VHDX_PARTS;
/// What a decoder makes of deflate blocks behind zeroes.
pub use gzip::deflate_boundaries;
/// Seeds of the target `gzip_index`: what is kept of a file.
pub use gzip::seeds as gzip_index_seeds;
pub use luks::{PASSPHRASE as LUKS_PASSPHRASE, assert_opens as assert_luks_opens};

/// Runs the target called `name`.
///
/// # Panics
/// When there is none, or when `data` shows an error in our code.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("there is no fuzz target {name}"));
    (target.run)(data);
}

/// One context for all runs: starting threads each time would be most of the work.
fn cx() -> Cx {
    static CX: OnceLock<Cx> = OnceLock::new();
    CX.get_or_init(|| {
        let mut cx = Cx::new(CACHE);
        cx.temp_limit = TEMP;
        cx.no_progress = HANGS;
        cx
    })
    .clone()
}

/// An image may be refused for these reasons only.
pub(crate) fn may_refuse(error: &Error) {
    let expected = matches!(
        error.kind(),
        Kind::NotThisFormat
            | Kind::Unsupported
            | Kind::Corrupt
            | Kind::Limit
            | Kind::NoSpace
            | Kind::Secret
    );
    assert!(expected, "{error:?}");
    let report = error.report().to_string();
    assert!(is_printable(&report), "{report:?}");
}

/// Whether text can go to a terminal: nothing of the image's own making moves the cursor.
fn is_printable(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\n')
}

/// Looks at a volume as [`exercise`] does, and closes it.
pub(crate) fn look(volume: &Volume) {
    exercise(volume);
    // Closing promises nothing about the image.
    let _ = volume.close();
}

/// Reads here and there, twice, and asks for extents: the answers must agree.
fn exercise(volume: &Volume) {
    // What they say of an image that lies may be anything, in bounded time.
    let _ = volume.notes();
    let size = volume.size().min(DEPTH);
    let starts = [0, size / 3, size.saturating_sub(PIECE)];
    let mut seen = Vec::new();
    for start in starts {
        let len = PIECE.min(size - start);
        let first = read(volume, start, len);
        let mut again = read(volume, start, len);
        if first.is_some() && again.is_none() {
            // It was answered before the check of its block, which then failed: that is for ever.
            again = read(volume, start, len);
            assert_eq!(again, None, "the bytes at {start} have come back");
        } else {
            assert_eq!(first, again, "the bytes at {start} have changed");
        }
        seen.push((start, again));
    }
    match volume.extents(ByteRange::between(0, size)) {
        Err(error) => may_refuse(&error),
        Ok(extents) => {
            for run in extents.runs().iter().filter(|run| run.flags.zero) {
                for (start, bytes) in &seen {
                    let Some(bytes) = bytes else { continue };
                    let end = start + bytes.len() as u64;
                    let both = run.range.intersect(ByteRange::between(*start, end));
                    let part = |offset: u64| (offset - start) as usize;
                    if !both.is_empty() {
                        let claimed = &bytes[part(both.start())..part(both.end())];
                        assert!(
                            claimed.iter().all(|byte| *byte == 0),
                            "{both:?} is not zero"
                        );
                    }
                }
            }
        }
    }
}

/// The bytes, or `None` when the image refuses to give them.
fn read(volume: &Volume, start: u64, len: u64) -> Option<Vec<u8>> {
    match volume.read_vec(start, len as usize) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            may_refuse(&error);
            None
        }
    }
}
