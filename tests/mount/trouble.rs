//! Damaged images, a full disk, an image that changes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::common;
use crate::common::damage::xz;
use crate::common::sandbox::{EVERYBODY, means};
use crate::common::{Sandbox, must, umount, until};

/// The number of a block in the middle of the root partition that is full of data.
fn full_block(packed: &[u8]) -> usize {
    let records = xz::records(packed);
    let blocks = records.iter().enumerate().skip(10);
    let fullest = blocks.max_by_key(|(_, (unpadded, _))| *unpadded);
    fullest.unwrap().0
}

#[test]
fn a_damaged_block_fails_alone_and_is_logged() {
    let set = common::images();
    let whole = fs::read(set.disk()).unwrap();
    let packed = fs::read(set.disk_xz()).unwrap();
    let number = full_block(&packed);
    let (start, length) = xz::block(&packed, number);
    let first = u64::try_from(number).unwrap() << 20;
    for who in EVERYBODY {
        // The check at the end, and a byte in the middle.
        for at in [start + length - 1, start + length / 2] {
            for verify in [&[][..], &["--verify"]] {
                let sandbox = Sandbox::new(who);
                let mut bytes = packed.clone();
                bytes[at] ^= 0x40;
                let image = sandbox.new_file("damaged.xz", bytes);
                let raw = sandbox.join("raw");
                sandbox
                    .loopmount()
                    .args(verify)
                    .arg("--fuse")
                    .arg(&image)
                    .arg(&raw)
                    .ok();
                let read = |offset: u64, length: u64| {
                    sandbox
                        .tool("dd")
                        .args(["bs=1M", "iflag=skip_bytes,count_bytes", "status=none"])
                        .arg(format!("skip={offset}"))
                        .arg(format!("count={length}"))
                        .arg(format!("if={}", raw.display()))
                        .run()
                };
                let expect_error = |outcome: common::run::Outcome| {
                    assert_ne!(outcome.code(), 0, "at {at}: the damage is not noticed");
                    assert!(
                        outcome.stderr.contains("Input/output error"),
                        "{}",
                        outcome.stderr
                    );
                };
                if verify.is_empty() {
                    // Bytes may be served before the check is known, but not after.
                    let _ = read(first, 1 << 20);
                    let log = sandbox.state_dir().join(sandbox.unit_id()).join("log");
                    until("the damage is logged", || {
                        let text = fs::read_to_string(&log).unwrap_or_default();
                        text.contains("xz") && text.contains(&first.to_string())
                    });
                }
                expect_error(read(first + (1 << 20) - 4096, 4096));
                expect_error(read(first, 4096));
                for (offset, length) in [(0, first), (first + (1 << 20), 4 << 20)] {
                    let outcome = read(offset, length).expect(0);
                    let from = usize::try_from(offset).unwrap();
                    let expected = &whole[from..][..usize::try_from(length).unwrap()];
                    assert!(outcome.stdout == expected, "other blocks are readable");
                }
                sandbox.unmount(&raw);
            }
        }
    }
}

#[test]
fn a_damaged_block_gives_eio_through_a_mount_too() {
    let set = common::images();
    let packed = fs::read(set.disk_xz()).unwrap();
    let number = full_block(&packed);
    let (start, length) = xz::block(&packed, number);
    let mut damaged = packed;
    damaged[start + length / 2] ^= 0x40;
    for who in EVERYBODY {
        for via in means(who) {
            let sandbox = Sandbox::new(who);
            let image = sandbox.new_file("damaged.xz", &damaged);
            let point = sandbox.mount(&["--via", via], &image, "mnt");
            let text = sandbox.read_text(point.join("etc/os-release"));
            assert!(text.contains("ID=rich"));
            // The densest block belongs to the one large file of random bytes.
            let outcome = sandbox
                .tool("sha256sum")
                .arg(point.join("var/lib/random"))
                .run();
            assert_ne!(outcome.code(), 0, "--via {via}");
            assert!(
                outcome.stderr.contains("Input/output error"),
                "{}",
                outcome.stderr
            );
            sandbox.unmount(&point);
        }
    }
}

#[test]
fn no_space_for_the_frontier_is_an_error_and_never_wrong_data() {
    let set = common::images();
    let expected = fs::read(set.disk()).unwrap();
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&set.disk_single_block());
        let tiny = sandbox.new_dir("tiny");
        must(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=1m,mode=1777", "lm-tiny"])
                .arg(&tiny),
        );
        let raw = sandbox.join("raw");
        let opened = sandbox
            .loopmount()
            .args(["--fuse", "--cache-size", "8M", "--cache-limit", "0"])
            .arg(&image)
            .arg(&raw)
            .env("TMPDIR", &tiny)
            .run();
        if opened.code() == 0 {
            let outcome = sandbox.tool("cat").arg(&raw).run();
            assert_ne!(outcome.code(), 0, "64 MiB cannot pass through 1 MiB");
            assert!(outcome.stdout.len() < expected.len());
            assert!(expected.starts_with(&outcome.stdout), "no wrong data");
            let log = sandbox.state_dir().join(sandbox.unit_id()).join("log");
            until("the log says why", || {
                let text = fs::read_to_string(&log).unwrap_or_default().to_lowercase();
                text.contains("space") || text.contains("room")
            });
            sandbox.unmount(&raw);
        } else {
            opened.expect(1).says(&["space"]);
        }
        assert_eq!(
            fs::read_dir(&tiny).unwrap().count(),
            0,
            "unlinked files only"
        );
        umount(&tiny);
    }
}

#[test]
fn an_image_that_changes_under_a_reader_fails_from_then_on() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk_xz());
        let raw = sandbox.join("raw");
        sandbox.loopmount().arg("--fuse").arg(&image).arg(&raw).ok();
        let read = |offset: u64| {
            sandbox
                .tool("dd")
                .args(["bs=4096", "count=1", "iflag=skip_bytes", "status=none"])
                .arg(format!("skip={offset}"))
                .arg(format!("if={}", raw.display()))
                .run()
        };
        read(0).expect(0);
        let file = fs::File::options().write(true).open(&image).unwrap();
        file.write_all_at(b"?", 100_000).unwrap();
        drop(file);
        must(Command::new("touch").args(["-d", "2001-01-01"]).arg(&image));
        // Far from what was read ahead.
        for offset in [40 << 20, 41 << 20, 42 << 20] {
            let outcome = read(offset);
            assert_ne!(outcome.code(), 0, "a read at {offset} after the change");
        }
        sandbox.unmount(&raw);
    }
}

#[test]
fn a_file_system_that_was_cut_off_is_refused_with_both_sizes() {
    for who in EVERYBODY {
        for via in means(who) {
            let sandbox = Sandbox::new(who);
            let image = sandbox.image(&common::images().ext4());
            let size = fs::metadata(&image).unwrap().len();
            let file = fs::File::options().write(true).open(&image).unwrap();
            file.set_len(size / 2).unwrap();
            let point = sandbox.new_dir("mnt");
            let cmd = sandbox.loopmount().args(["--via", via]);
            cmd.arg(&image).arg(&point).fails(1).says(&[
                &format!("states a size of {size} bytes, and {} are there", size / 2),
                "cut off",
            ]);
        }
    }
}
