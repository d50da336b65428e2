//! Each command of the user on real images, as root and as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use common::damage::xz;
use common::images::{self, HELLO, ROOT_SIZE, ROOT_START, ROOT_UUID, read_range, sha256};
use common::sandbox::{EVERYBODY, means, with_small_disk};
use common::system::mount_at;
use common::{Sandbox, Who, must, require_tool, umount, until};
use rustix::process::Signal;

/// SHA-256 of what `file` holds as the one who types sees it.
#[track_caller]
fn sha256_seen(sandbox: &Sandbox, file: &Path) -> String {
    let line = sandbox.tool("sha256sum").arg("-b").arg(file).ok().out();
    line.trim_start_matches('\\')
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn the_carried_disk_is_mounted_read_and_taken_down() {
    for who in EVERYBODY {
        for via in means(who) {
            let (sandbox, image) = with_small_disk(who);
            let point = sandbox.mount(&["--via", via], &image, "mnt");
            let mount = mount_at(&point).unwrap();
            for option in ["ro", "nosuid", "nodev"] {
                assert!(
                    mount.options.split(',').any(|have| have == option),
                    "{option}: {mount:?}"
                );
            }
            if *via == "fuse" || who == Who::User {
                assert_eq!(mount.kind, "fuse.loopmount");
                let id = sandbox.unit_id();
                assert_eq!(mount.source.to_str(), Some(&*format!("loopmount:{id}")));
            } else {
                assert_eq!(mount.kind, "ext4");
            }
            let names = sandbox.tool("ls").arg(&point).ok().out();
            assert_eq!(names, "etc\nlost+found\nusr\nvar\n", "{who:?} --via {via}");
            let hello = sandbox.read_text(point.join(HELLO));
            assert!(hello.starts_with("If you can read this"), "{hello}");
            assert_eq!(sandbox.read_text(point.join("etc/motd")), hello);
            let refused = sandbox.tool("touch").arg(point.join("etc/new")).fails(1);
            assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
            sandbox.unmount(&point);
            assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
        }
    }
}

#[test]
fn every_shape_of_xz_gives_the_same_files() {
    let set = common::images();
    let kernel = images::with_mounted(&set.ext4(), &["-r"], |dir| {
        ["var/lib/random", "var/lib/sparse", "var/lib/text"].map(|name| sha256(&dir.join(name)))
    });
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        for image in [set.disk_xz(), set.disk_single_block(), set.disk_streams()] {
            let image = sandbox.image(&image);
            let point = sandbox.mount(&[], &image, "mnt");
            for (name, hash) in ["var/lib/random", "var/lib/sparse", "var/lib/text"]
                .iter()
                .zip(&kernel)
            {
                assert_eq!(&sha256_seen(&sandbox, &point.join(name)), hash, "{image:?}");
            }
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_partition_is_named_by_number_label_or_uuid() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk());
        let sfdisk = must(
            Command::new("sfdisk")
                .args(["--part-uuid"])
                .arg(&image)
                .arg("2"),
        );
        let part_uuid = String::from_utf8(sfdisk).unwrap().trim().to_owned();
        for name in [
            "2",
            "system",
            "rich",
            ROOT_UUID,
            &part_uuid.to_lowercase(),
            &part_uuid,
        ] {
            let point = sandbox.mount(&["-P", name], &image, "mnt");
            let text = sandbox.read_text(point.join("etc/os-release"));
            assert!(text.contains("ID=rich"), "-P {name}");
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
        }
        let image = sandbox.image(&common::images().mbr());
        for name in ["5", "logic"] {
            let point = sandbox.mount(&["-P", name], &image, "mnt");
            let text = sandbox.read_text(point.join("which"));
            assert_eq!(text, "the logical partition\n", "-P {name}");
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
        }
    }
}

#[test]
fn without_a_name_the_one_that_looks_like_a_root_is_taken() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().mbr());
        let point = sandbox.mount(&[], &image, "mnt");
        let text = sandbox.read_text(point.join("etc/os-release"));
        assert!(text.contains("ID=rich"));
        sandbox.unmount(&point);
    }
}

#[test]
fn root_mounts_the_file_systems_of_the_kernel_packed_or_not() {
    let set = common::images();
    for image in [set.xfs(), set.btrfs(), set.squashfs(), set.erofs()] {
        let sandbox = Sandbox::new(Who::Root);
        let raw = sandbox.image(&image);
        let packed = sandbox.join("packed.xz");
        images::xz(&raw, &packed, &["-0", "--block-size=4MiB"]);
        for image in [&raw, &packed] {
            let point = sandbox.mount(&[], image, "mnt");
            let text = sandbox.read_text(point.join("link"));
            assert_eq!(text, "ID=small\n");
            let numbers = sandbox.read_text(point.join("numbers"));
            assert_eq!(numbers.lines().count(), 50_000);
            assert_eq!(numbers.lines().last(), Some("49999"));
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
            sandbox.assert_clean();
        }
    }
}

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
fn writes_of_root_land_in_the_image() {
    for via in ["auto", "loop"] {
        let sandbox = Sandbox::new(Who::Root);
        let image = sandbox.image(&common::images().disk());
        let before = sha256(&image);
        let point = sandbox.mount(&["-w", "--via", via, "-P", "2"], &image, "mnt");
        let write = |name: &str, bytes: Vec<u8>| {
            let of = format!("of={}", point.join(name).display());
            sandbox.tool("dd").arg(of).stdin(bytes).ok();
        };
        write("etc/new", b"written through the mount\n".to_vec());
        write("var/lib/random", vec![0x5a; 5_000_000]);
        fs::remove_file(point.join("usr/bin/tool")).unwrap();
        sandbox.unmount(&point);
        assert_ne!(sha256(&image), before);
        check_written(&sandbox, &image);
    }
}

/// The kernel takes what is written and writes it later, where it may have no room any more.
#[test]
fn an_unmount_says_what_did_not_reach_the_image() {
    require_tool("qemu-img", "qemu-utils");
    let sandbox = Sandbox::new(Who::Root);
    let small = sandbox.new_dir("small");
    must(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8M", "tmpfs"])
            .arg(&small),
    );
    let image = small.join("disk.qcow2");
    let raw = sandbox.join("raw");
    images::make_sparse(&raw, 64 << 20);
    must(
        Command::new("mkfs.ext4")
            .args(["-q", "-b", "4096"])
            .arg(&raw),
    );
    let convert = ["convert", "-O", "qcow2"];
    must(Command::new("qemu-img").args(convert).arg(&raw).arg(&image));
    let write = |mib: usize| {
        let point = sandbox.mount(&["-w", "--via", "loop"], &image, &format!("mnt{mib}"));
        let of = format!("of={}", point.join("new").display());
        sandbox.tool("dd").arg(of).stdin(vec![0x5a; mib << 20]).ok();
        sandbox.loopmount().arg("-u").arg(&point).run()
    };
    write(1).expect(0);
    write(20).expect(1).says(&[
        "not all that was written",
        "writes of the file system failed",
    ]);
    umount(&small);
    sandbox.assert_clean();
}

/// What [`writes_of_root_land_in_the_image`] wrote is there, and the file system is sound.
#[track_caller]
fn check_written(sandbox: &Sandbox, disk: &Path) {
    let root = sandbox.join("root.raw");
    images::make_sparse(&root, ROOT_SIZE);
    let bytes = read_range(disk, ROOT_START, usize::try_from(ROOT_SIZE).unwrap()).unwrap();
    fs::write(&root, bytes).unwrap();
    must(Command::new("e2fsck").arg("-fn").arg(&root));
    images::with_mounted(&root, &["-r"], |dir| {
        let text = fs::read_to_string(dir.join("etc/new")).unwrap();
        assert_eq!(text, "written through the mount\n");
        let random = fs::read(dir.join("var/lib/random")).unwrap();
        assert_eq!(random, vec![0x5a; 5_000_000]);
        assert!(!dir.join("usr/bin/tool").exists());
    });
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

#[test]
fn what_cannot_be_written_is_refused_with_its_name() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.new_dir("mnt");
        sandbox
            .loopmount()
            .arg("-w")
            .arg(&image)
            .arg(&point)
            .fails(1)
            .says(&["xz", "writ", "--cow"]);
    }
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&common::images().ext4());
    must(Command::new("chown").arg("root:root").arg(&image));
    let raw = sandbox.join("raw");
    let write = || {
        let cmd = sandbox.loopmount().args(["-w", "--fuse"]);
        cmd.arg(&image).arg(&raw).fails(1)
    };
    write().says(&["permission denied", "--cow takes writes"]);
    // What cannot be read either is not offered.
    must(Command::new("chmod").arg("600").arg(&image));
    let refused = write().says(&["permission denied"]);
    assert!(!refused.stderr.contains("--cow"), "{}", refused.stderr);
}

#[test]
fn two_writers_of_one_image_are_refused() {
    require_tool("qemu-io", "qemu-utils");
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().ext4());
        let first = sandbox.join("first");
        let second = sandbox.join("second");
        let open = |args: &[&str], target: &Path| {
            let cmd = sandbox.loopmount().arg("--fuse").args(args);
            cmd.arg(&image).arg(target)
        };
        open(&["-w"], &first).ok();
        open(&["-w"], &second).fails(1).says(&["in use"]);
        open(&[], &second).fails(1).says(&["in use"]);
        let qemu = |args: &[&str]| sandbox.tool("qemu-io").args(["-f", "raw"]).args(args);
        let refused = qemu(&["-c", "write 0 512"]).arg(&image).run();
        assert!(refused.stderr.contains("lock"), "{}", refused.stderr);
        sandbox.unmount(&first);

        open(&[], &first).ok();
        open(&[], &second).ok();
        let third = sandbox.join("third");
        open(&["-w"], &third).fails(1).says(&["in use"]);
        sandbox.unmount(&first);
        sandbox.unmount(&second);
        open(&["-w"], &third).ok();
        sandbox.unmount(&third);
    }
    // The kernel's own loop device keeps the lock although no process of ours stays.
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().ext4());
    let point = sandbox.mount(&["-w"], &image, "mnt");
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
    let other = sandbox.new_dir("other");
    sandbox
        .loopmount()
        .arg("-w")
        .arg(&image)
        .arg(&other)
        .fails(1)
        .says(&["in use"]);
    sandbox.unmount(&point);
}

#[test]
fn a_command_runs_in_the_root_of_the_image() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let run = |args: &[&str]| sandbox.loopmount().arg(&image).arg("--").args(args);
        let outcome = run(&["cat", "etc/hostname"]).ok();
        assert_eq!(outcome.out(), "two-partitions\n");
        assert_eq!(outcome.stderr, "");
        let text = run(&["ls", "-l"]).ok().out();
        assert!(text.contains("etc") && text.contains("usr"), "{text}");
        // Standard input and output are the command's own.
        let outcome = run(&["cat"]).stdin("in and out").ok();
        assert_eq!(outcome.out(), "in and out");
        sandbox.assert_clean();
    }
}

#[test]
fn a_command_gives_its_exit_code_and_ours_are_those_of_env() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let run = |args: &[&str]| sandbox.loopmount().arg(&image).arg("--").args(args);
        run(&["true"]).ok();
        run(&["sh", "-c", "exit 7"]).fails(7);
        run(&["sh", "-c", "kill -TERM $$"]).fails(143);
        run(&["no-such-command"])
            .fails(127)
            .says(&["no-such-command"]);
        run(&["./etc/hostname"]).fails(126).says(&["etc/hostname"]);
        sandbox
            .loopmount()
            .arg(sandbox.new_file("empty", ""))
            .args(["--", "true"])
            .fails(125)
            .says(&["empty"]);
        sandbox.assert_clean();
    }
}

#[test]
fn a_command_is_ended_with_the_launcher_and_nothing_stays() {
    for who in EVERYBODY {
        for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
            let (sandbox, image) = with_small_disk(who);
            let running = sandbox
                .loopmount()
                .arg(&image)
                .args(["--", "sleep", "1000"])
                .spawn();
            let sleeps = || {
                let all = sandbox.processes();
                all.into_iter().find(|process| process.args[0] == "sleep")
            };
            let sleep = common::eventually("the command runs", sleeps);
            running.signal(signal);
            if signal == Signal::KILL {
                // Nobody is left to pass the signal on; the command lives as long as it likes.
                common::run::send_signal(sleep.pid, Signal::KILL);
            }
            assert_ne!(running.wait().code(), 0);
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_damaged_block_fails_alone_and_is_logged() {
    let set = common::images();
    let whole = fs::read(set.disk()).unwrap();
    let packed = fs::read(set.disk_xz()).unwrap();
    // A block of the middle of the root partition that is full of data.
    let number = xz::records(&packed)
        .iter()
        .enumerate()
        .skip(10)
        .max_by_key(|(_, (unpadded, _))| *unpadded)
        .unwrap()
        .0;
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
    let number = xz::records(&packed)
        .iter()
        .enumerate()
        .skip(10)
        .max_by_key(|(_, (unpadded, _))| *unpadded)
        .unwrap()
        .0;
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
fn options_that_shape_the_decoding_keep_the_bytes() {
    let set = common::images();
    let whole = sha256(&set.disk());
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&set.disk_xz());
    let packed = sha256(&image);
    for (args, expected) in [
        (&["--cache-size", "4M"][..], &whole),
        (&["--cache-size", "1G", "--verify"], &whole),
        (&["--layer", "xz"], &whole),
        (&["--layer", "xz", "--layer", "raw"], &whole),
        (&["--layer", "raw"], &packed),
        (&["-v"], &whole),
    ] {
        let raw = sandbox.join("raw");
        sandbox
            .loopmount()
            .arg("--fuse")
            .args(args)
            .arg(&image)
            .arg(&raw)
            .ok();
        assert_eq!(&sha256_seen(&sandbox, &raw), expected, "{args:?}");
        sandbox.unmount(&raw);
    }
    let point = sandbox.new_dir("mnt");
    sandbox
        .loopmount()
        .args(["--layer", "partition"])
        .arg(&image)
        .arg(&point)
        .fails(1)
        .says(&["partition"]);
    let unknown = sandbox
        .loopmount()
        .args(["--layer", "no-such-layer"])
        .arg(&image)
        .arg(&point)
        .fails(2)
        .stderr;
    assert!(
        unknown.contains("no-such-layer") && unknown.contains("xz"),
        "{unknown}"
    );
}

#[test]
fn the_foreground_ends_with_the_signal_and_takes_all_down() {
    for who in EVERYBODY {
        for signal in [Signal::TERM, Signal::INT] {
            let (sandbox, image) = with_small_disk(who);
            let point = sandbox.new_dir("mnt");
            let mut running = sandbox
                .loopmount()
                .arg("--foreground")
                .arg(&image)
                .arg(&point)
                .spawn();
            until("the mount appears", || mount_at(&point).is_some());
            let hello = sandbox.read_text(point.join(HELLO));
            assert!(hello.starts_with("If you can read this"));
            assert!(running.is_running());
            running.signal(signal);
            running.wait().expect(0);
            assert!(mount_at(&point).is_none());
        }
    }
}

#[test]
fn one_image_can_be_mounted_twice_for_reading() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let first = sandbox.mount(&[], &image, "first");
        let second = sandbox.mount(&[], &image, "second");
        assert_eq!(sandbox.units().len(), 2);
        sandbox.unmount(&first);
        assert!(mount_at(&second).is_some());
        let hello = sandbox.read_text(second.join(HELLO));
        assert!(hello.starts_with("If you can read this"));
        sandbox.unmount(&second);
    }
}

#[test]
fn root_on_a_plain_file_leaves_no_process() {
    let sandbox = Sandbox::new(Who::Root);
    for image in [common::images().ext4(), common::images().disk()] {
        let image = sandbox.image(&image);
        let point = sandbox.mount(&[], &image, "mnt");
        assert_eq!(mount_at(&point).unwrap().kind, "ext4");
        assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
        let listed = sandbox.loopmount().args(["--list", "--json"]).ok().out();
        common::json::has(&common::json::parse(&listed), &[point.to_str().unwrap()]);
        sandbox.unmount(&point);
        fs::remove_dir(point).unwrap();
    }
}
