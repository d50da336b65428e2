//! A disk as one file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::Sandbox;
use crate::common::images::{ROOT_START, read_range, sha256};
use crate::common::sandbox::EVERYBODY;
use crate::{common, sha256_seen};

#[test]
fn fuse_shows_the_decoded_disk_as_one_file() {
    let set = common::images();
    let whole = sha256(&set.disk());
    let root = sha256(&set.ext4());
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        for image in [
            set.disk_xz(),
            set.disk_single_block(),
            set.disk_streams(),
            set.disk(),
        ] {
            let image = sandbox.image(&image);
            let raw = sandbox.join("raw");
            sandbox.loopmount().arg("--fuse").arg(&image).arg(&raw).ok();
            assert_eq!(sha256_seen(&sandbox, &raw), whole, "{image:?}");
            sandbox.unmount(&raw);
            assert!(!raw.exists(), "the file that was made is removed again");
            sandbox.assert_clean();
        }
        let image = sandbox.image(&set.disk_xz());
        let raw = sandbox.new_file("there-before", "");
        sandbox
            .loopmount()
            .args(["--fuse", "-P", "2"])
            .arg(&image)
            .arg(&raw)
            .ok();
        assert_eq!(sha256_seen(&sandbox, &raw), root);
        sandbox.unmount(&raw);
        assert_eq!(fs::read(&raw).unwrap(), b"", "a file that was there stays");

        let full = sandbox.new_file("full", "precious");
        sandbox
            .loopmount()
            .arg("--fuse")
            .arg(&image)
            .arg(&full)
            .fails(1)
            .says(&["full", "empty"]);
        assert_eq!(fs::read(&full).unwrap(), b"precious");
    }
}

#[test]
fn the_decoded_file_has_holes_where_the_image_has_zeroes() {
    let set = common::images();
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        for image in [set.disk(), set.disk_xz()] {
            let image = sandbox.image(&image);
            let raw = sandbox.join("raw");
            sandbox.loopmount().arg("--fuse").arg(&image).arg(&raw).ok();
            let copy = sandbox.join("copy");
            // `auto` looks for holes with SEEK_HOLE and never at the bytes.
            let cp = sandbox.tool("cp").arg("--sparse=auto");
            cp.arg(&raw).arg(&copy).ok();
            sandbox.unmount(&raw);
            let meta = fs::metadata(&copy).unwrap();
            assert_eq!(meta.len(), fs::metadata(set.disk()).unwrap().len());
            assert!(
                meta.blocks() * 512 < meta.len() / 2,
                "{image:?}: {} of {} bytes are allocated",
                meta.blocks() * 512,
                meta.len()
            );
            assert_eq!(sha256(&copy), sha256(&set.disk()), "{image:?}");
            fs::remove_file(copy).unwrap();
        }
    }
}

#[test]
fn writes_to_the_decoded_file_land_in_the_image() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk());
        let raw = sandbox.join("raw");
        sandbox
            .loopmount()
            .args(["-w", "--fuse", "-P", "2"])
            .arg(&image)
            .arg(&raw)
            .ok();
        let data: Vec<u8> = (0..100_003_u32).flat_map(u32::to_le_bytes).collect();
        sandbox
            .tool("dd")
            .args([
                "bs=7777",
                "oflag=seek_bytes",
                "seek=1000001",
                "conv=notrunc,fsync",
            ])
            .arg(format!("of={}", raw.display()))
            .stdin(data.clone())
            .ok();
        sandbox.unmount(&raw);
        let there = read_range(&image, ROOT_START + 1_000_001, data.len()).unwrap();
        assert!(there == data);
        let original = common::images().disk();
        let around = |path: &Path| {
            let end = ROOT_START + 1_000_001 + u64::try_from(data.len()).unwrap();
            (
                read_range(path, ROOT_START, 1_000_001).unwrap(),
                read_range(path, end, 4_000_000).unwrap(),
            )
        };
        assert!(around(&image) == around(&original), "bytes beside it stay");
    }
}
