//! What the user types and reads: usage, help, `--info`, and one clear message for every image that
//! cannot be mounted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::damage::{gpt, mbr, xz};
use common::sandbox::{EVERYBODY, with_small_disk};
use common::{Sandbox, Who, images, json, must};

#[test]
fn wrong_usage_ends_with_2_and_says_how() {
    let (sandbox, image) = with_small_disk(Who::User);
    let image = image.to_str().unwrap();
    let point = sandbox.new_dir("mnt");
    let point = point.to_str().unwrap();
    let cases: &[&[&str]] = &[
        &[],
        &["--no-such-option"],
        &[image],
        &["--via", "pigeon", image, point],
        &["--via"],
        &["-u"],
        &["-P"],
        &["--lazy", image, point],
        &["--json", image, point],
        &["--info"],
        &["-u", point, "--info", image],
        &["--list", "-u", point],
        &[image, point, "one-too-many"],
        &["--cache-size", "much", image, point],
        &[image, "--"],
    ];
    for case in cases {
        let outcome = sandbox.loopmount().args(*case).fails(2);
        assert!(
            outcome.stderr.contains("--help") || outcome.stderr.contains("Usage"),
            "{case:?}: {}",
            outcome.stderr
        );
        assert!(outcome.stdout.is_empty(), "{case:?}");
    }
}

#[test]
fn help_fits_a_screen_and_has_examples() {
    let sandbox = Sandbox::new(Who::User);
    let help = sandbox.loopmount().arg("-h").ok().out();
    let lines = help.lines().count();
    assert!(lines <= 50, "{lines} lines:\n{help}");
    for line in help.lines() {
        assert!(line.chars().count() <= 100, "too long: {line}");
    }
    for word in [
        "loopmount disk.raw.xz /mnt",
        "--via",
        "--fuse",
        "--info",
        "--list",
        "-u, ",
        "--lazy",
        "--foreground",
        "--layer",
        "--cache-size",
        "--verify",
        "--verbose",
        "-P",
        "-w",
    ] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    // What few need is told by the longer one.
    let all = sandbox.loopmount().arg("--help").ok().out();
    for word in ["--key-file-offset", "--references", "--temp-dir", "-w"] {
        assert!(all.contains(word), "{word} is not in:\n{all}");
    }
}

#[test]
fn version_is_the_one_of_the_package() {
    let sandbox = Sandbox::new(Who::User);
    let out = sandbox.loopmount().arg("--version").ok().out();
    assert_eq!(out, format!("loopmount {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn info_shows_layers_partitions_and_file_systems() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let text = sandbox.loopmount().arg("--info").arg(&image).ok().out();
        for word in ["xz", "GPT", "FAT12", "ext4", "ESP", "esp", "root", "16 MiB"] {
            assert!(text.contains(word), "{word} is not in:\n{text}");
        }
        let out = sandbox
            .loopmount()
            .args(["--info", "--json"])
            .arg(&image)
            .ok()
            .out();
        json::has(
            &json::parse(&out),
            &[
                "xz",
                "16777216",
                "3145728",
                "12582912",
                "ext4",
                "vfat",
                "esp",
                "root",
                "5d1c6c0e-7a0b-4b6e-9a54-0c7f2a4b1e02",
            ],
        );
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is_one() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.mount(&[], &image, "mnt");
    let (image, point) = (image.to_str().unwrap(), point.to_str().unwrap());
    let outputs: &[&[&str]] = &[
        &["--info", image],
        &["--info", "--json", image],
        &["--list"],
        &["--list", "--json"],
        &["--stats", point],
        &["--stats", "--json", point],
        &["--cache"],
        &["--cache", "--json"],
    ];
    let run = |args: &[&str], out: std::process::Stdio| {
        let mut command = sandbox.loopmount().args(args).into_command();
        let output = command.stdin(Stdio::null()).stdout(out).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        (output.status.code(), said)
    };
    for args in outputs {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(
            run(args, writer.into()),
            (Some(0), String::new()),
            "{args:?}"
        );
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = run(args, full.into());
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(said.contains("cannot write to standard output"), "{said}");
    }
    sandbox.unmount(std::path::Path::new(point));
}

#[test]
fn info_names_every_file_system_it_can_meet() {
    let sandbox = Sandbox::new(Who::User);
    let set = common::images();
    let cases = [
        (set.ext4(), "ext4", Some("rich")),
        (set.ext2(), "ext2", Some("old")),
        (set.xfs(), "xfs", Some("xee")),
        (set.btrfs(), "btrfs", Some("bee")),
        (set.squashfs(), "squashfs", None),
        (set.erofs(), "erofs", None),
        (set.iso(), "iso9660", Some("EYE")),
    ];
    for (image, kind, label) in cases {
        let image = sandbox.image(&image);
        let text = sandbox.loopmount().arg("--info").arg(&image).ok().out();
        assert!(text.contains(kind), "{kind} is not in:\n{text}");
        let out = sandbox
            .loopmount()
            .args(["--info", "--json"])
            .arg(&image)
            .ok()
            .out();
        let value = json::parse(&out);
        json::has(&value, &[kind]);
        if let Some(label) = label {
            json::has(&value, &[label]);
        }
        fs::remove_file(image).unwrap();
    }
}

#[test]
fn info_lists_logical_partitions() {
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&common::images().mbr());
    let out = sandbox
        .loopmount()
        .args(["--info", "--json"])
        .arg(&image)
        .ok()
        .out();
    json::has(
        &json::parse(&out),
        &["1", "5", "6", "logic", "old", "1048576", "35651584"],
    );
}

#[test]
fn list_is_empty_when_nothing_is_mounted() {
    let sandbox = Sandbox::new(Who::User);
    sandbox.loopmount().arg("--list").ok();
    let out = sandbox.loopmount().args(["--list", "--json"]).ok().out();
    // The same user may have something mounted in a test beside this one.
    assert!(json::parse(&out).is_array());
    assert!(!out.contains(sandbox.path().to_str().unwrap()), "{out}");
}

/// Mounts must fail with 1 and one message that holds `words`, and leave nothing.
#[track_caller]
fn refuses(sandbox: &Sandbox, image: &PathBuf, words: &[&str]) {
    let point = sandbox.join("refused");
    fs::create_dir_all(&point).unwrap();
    // Empty and owned by root also when the user types: refused for the image's sake all the same,
    // since an image is looked at first.
    for arguments in [&[][..], &["--info"], &["--fuse"]] {
        let raw = sandbox.join("raw");
        let mut cmd = sandbox.loopmount().args(arguments).arg(image);
        match arguments.first() {
            Some(&"--fuse") => cmd = cmd.arg(&raw),
            Some(_) => {}
            None => cmd = cmd.arg(&point),
        }
        cmd.fails(1).says(words);
        assert!(!raw.exists(), "{} was left", raw.display());
        sandbox.assert_clean();
    }
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
}

#[test]
fn things_that_are_no_images_are_refused() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let empty = sandbox.new_file("empty", "");
        refuses(&sandbox, &empty, &["empty"]);
        let dir = sandbox.new_dir("dir");
        refuses(&sandbox, &dir, &["dir", "directory"]);
        let fifo = sandbox.join("fifo");
        must(Command::new("mkfifo").args(["-m", "666"]).arg(&fifo));
        refuses(&sandbox, &fifo, &["fifo"]);
        let missing = sandbox.join("missing");
        refuses(&sandbox, &missing, &["missing", "no such file"]);
        refuses(&sandbox, &PathBuf::from("/dev/null"), &["/dev/null"]);
    }
}

#[test]
fn a_file_that_is_nothing_we_know_is_named_so() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let text = sandbox.new_file("notes.txt", "just a few words\n".repeat(1000));
        let point = sandbox.new_dir("mnt");
        sandbox
            .loopmount()
            .arg(&text)
            .arg(&point)
            .fails(1)
            .says(&["notes.txt", "nothing we know"]);
        let wrapped = sandbox.join("notes.xz");
        images::xz(&text, &wrapped, &["-1"]);
        sandbox
            .loopmount()
            .arg(&wrapped)
            .arg(&point)
            .fails(1)
            .says(&["notes.xz", "nothing we know"]);
    }
}

#[test]
fn a_file_that_the_user_may_not_read_is_denied() {
    let sandbox = Sandbox::new(Who::User);
    let image = sandbox.image(&images::carried());
    must(Command::new("chown").arg("root:root").arg(&image));
    must(Command::new("chmod").arg("600").arg(&image));
    refuses(&sandbox, &image, &["permission denied"]);
}

#[test]
fn truncated_xz_files_are_refused() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let whole = fs::read(images::carried()).unwrap();
        for keep in [12, 20, whole.len() / 2, whole.len() - 12, whole.len() - 4] {
            let image = sandbox.new_file(format!("cut-{keep}.xz"), &whole[..keep]);
            refuses(&sandbox, &image, &["xz"]);
        }
    }
}

#[test]
fn an_xz_index_that_lies_is_refused() {
    let whole = fs::read(images::carried()).unwrap();
    let good = xz::records(&whole);
    assert_eq!(
        xz::with_records(&whole, &good),
        whole,
        "the recipe is right"
    );

    let mut longer = good.clone();
    longer[3].1 += 1 << 20;
    let mut swapped = good.clone();
    swapped[0].0 = good[1].0;
    swapped[1].0 = good[0].0;
    let mut huge = good.clone();
    huge[0].1 = 1 << 62;
    let mut overflowing = good.clone();
    overflowing.iter_mut().for_each(|record| record.1 = 1 << 62);
    let mut missing = good.clone();
    missing.pop();
    let zero: Vec<_> = good.iter().map(|_| (0, 0)).collect();
    let cases = [
        ("overflowing", xz::with_records(&whole, &overflowing)),
        ("missing", xz::with_records(&whole, &missing)),
        ("zero", xz::with_records(&whole, &zero)),
        ("no-records", xz::with_records(&whole, &[])),
        ("2^62-records", xz::stream(&[], 1 << 62, &[])),
        ("2^62-bytes", xz::claims(1 << 62)),
        ("1-TiB", xz::claims(1 << 40)),
    ];
    let sandbox = Sandbox::new(Who::User);
    let point = sandbox.new_dir("mnt");
    for (name, bytes) in cases {
        let image = sandbox.new_file(format!("{name}.xz"), bytes);
        sandbox
            .loopmount()
            .args(["--via", "fuse"])
            .arg(&image)
            .arg(&point)
            .fails(1)
            .says(&["xz"]);
        sandbox.assert_clean();
    }
    // Where the lie is about a block that nothing needs yet, the disk may open; the block must not
    // be served as if nothing were wrong.
    for (name, records) in [("swapped", swapped), ("longer", longer), ("huge", huge)] {
        let image = sandbox.new_file(format!("{name}.xz"), xz::with_records(&whole, &records));
        let raw = sandbox.join("raw");
        let opened = sandbox
            .loopmount()
            .arg("--fuse")
            .arg(&image)
            .arg(&raw)
            .run();
        if opened.code() == 0 {
            let copy = sandbox.tool("cp").arg(&raw).arg("/dev/null").run();
            assert_ne!(copy.code(), 0, "{name}: read to the end");
            sandbox.unmount(&raw);
        } else {
            opened.expect(1).says(&["xz"]);
        }
        sandbox.assert_clean();
    }
}

#[test]
fn a_gpt_whose_first_copy_is_damaged_is_read_from_the_second() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().disk());
        let mut disk = fs::read(&image).unwrap();
        gpt::break_primary(&mut disk);
        fs::write(&image, &disk).unwrap();
        let point = sandbox.mount(&["-P", "2"], &image, "mnt");
        let text = sandbox.read_text(point.join("etc/os-release"));
        assert!(text.contains("ID=rich"));
        sandbox.unmount(&point);

        gpt::break_backup(&mut disk);
        fs::write(&image, &disk).unwrap();
        let point = sandbox.new_dir("again");
        sandbox
            .loopmount()
            .arg(&image)
            .arg(&point)
            .fails(1)
            .says(&["gpt", "checksum", "--fuse"]);
        // Whoever repairs it needs the disk, not the table.
        let raw = sandbox.join("raw");
        let cmd = sandbox.loopmount().arg("--fuse");
        cmd.arg(&image).arg(&raw).ok();
        assert!(sandbox.read(&raw) == disk);
        sandbox.unmount(&raw);
    }
}

#[test]
fn partitions_that_loop_overlap_or_lie_outside_are_refused() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let point = sandbox.new_dir("mnt");
        for (name, disk, args) in [
            ("looping", mbr::looping(), &[][..]),
            ("overlapping", mbr::overlapping(), &[]),
            ("overlapping", mbr::overlapping(), &["-P", "5"]),
            ("outside", mbr::outside(), &["-P", "2"]),
        ] {
            let image = sandbox.new_file(name, disk);
            sandbox
                .loopmount()
                .args(args)
                .arg(&image)
                .arg(&point)
                .fails(1)
                .says(&["partition"]);
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_disk_cut_short_says_which_partition_is_outside() {
    let sandbox = Sandbox::new(Who::Root);
    let image = sandbox.image(&common::images().disk());
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_len(images::ROOT_START + images::ROOT_SIZE / 2)
        .unwrap();
    let point = sandbox.new_dir("mnt");
    sandbox
        .loopmount()
        .args(["-P", "2"])
        .arg(&image)
        .arg(&point)
        .fails(1)
        .says(&["partition", "2"]);
}

#[test]
fn a_partition_that_is_not_there_is_answered_with_the_choices() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let point = sandbox.new_dir("mnt");
        for (wrong, choices) in [
            ("3", ["1", "2"]),
            ("no-such-label", ["esp", "root"]),
            ("c0ffee00-0000-0000-0000-000000000000", ["esp", "root"]),
        ] {
            sandbox
                .loopmount()
                .args(["-P", wrong])
                .arg(&image)
                .arg(&point)
                .fails(1)
                .says(&[wrong, choices[0], choices[1]]);
        }
    }
}

#[test]
fn a_mount_point_that_cannot_be_one_is_refused() {
    for who in EVERYBODY {
        let (sandbox, image) = with_small_disk(who);
        let file = sandbox.new_file("file", "not a folder");
        let below_nothing = sandbox.join("missing/mnt");
        for (point, words) in [
            (&file, ["file", "not a folder"]),
            (&below_nothing, ["missing", "no such file"]),
        ] {
            sandbox
                .loopmount()
                .arg(&image)
                .arg(point)
                .fails(1)
                .says(&words);
        }
        sandbox
            .loopmount()
            .arg("--fuse")
            .arg(&image)
            .arg(&file)
            .fails(1)
            .says(&["file"]);
        assert_eq!(fs::read(&file).unwrap(), b"not a folder");
    }
}

#[test]
fn an_option_that_a_mount_in_user_space_would_pass_over_is_refused() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.new_dir("mnt");
    let raw = sandbox.join("raw");
    for (option, name) in [("bogus", "bogus"), ("noexec,data=journal", "data")] {
        let refused = [
            sandbox
                .loopmount()
                .args(["-o", option])
                .arg(&image)
                .arg(&point),
            sandbox
                .loopmount()
                .args(["-o", option, "--fuse"])
                .arg(&image)
                .arg(&raw),
        ];
        for command in refused {
            command
                .fails(1)
                .says(&[&format!("the option {name} is for"), "hint: leave it out"]);
        }
    }
    let taken = "ro,rw,nosuid,nodev,loop,noexec,noatime,relatime";
    let point = sandbox.mount(&["-o", taken], &image, "taken");
    sandbox.unmount(&point);
    sandbox.assert_clean();
}

#[test]
fn a_temp_folder_that_is_none_is_said_at_the_start() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.new_dir("mnt");
    let file = sandbox.new_file("file", "");
    for (folder, why) in [
        (sandbox.join("missing"), "no such file"),
        (file, "not a directory"),
    ] {
        let named = format!("--temp-dir={}", folder.display());
        sandbox
            .loopmount()
            .args(["--cow", &named])
            .arg(&image)
            .arg(&point)
            .fails(1)
            .says(&["the temp folder", why, "hint: --temp-dir=DIR"]);
    }
}

#[test]
fn a_file_system_that_we_cannot_read_yet_is_named_with_a_way_out() {
    let sandbox = Sandbox::new(Who::User);
    let set = common::images();
    for (image, kind) in [
        (set.xfs(), "xfs"),
        (set.btrfs(), "btrfs"),
        (set.squashfs(), "squashfs"),
        (set.erofs(), "erofs"),
        (set.iso(), "iso9660"),
    ] {
        let image = sandbox.image(&image);
        let point = sandbox.join("mnt");
        if !point.exists() {
            sandbox.new_dir("mnt");
        }
        sandbox
            .loopmount()
            .arg(&image)
            .arg(&point)
            .fails(1)
            .says(&[kind, "--fuse"]);
        sandbox.assert_clean();
        fs::remove_file(image).unwrap();
    }
}

#[test]
fn a_tree_that_we_cannot_write_is_refused_with_a_way_out() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = sandbox.image(&common::images().ext4());
        let point = sandbox.new_dir("mnt");
        for option in ["-w", "--cow"] {
            sandbox
                .loopmount()
                .args([option, "--via", "fuse"])
                .arg(&image)
                .arg(&point)
                .fails(1)
                .says(&["ext4", &format!("--fuse {option}")]);
        }
    }
}

#[test]
fn an_address_that_nothing_answers_is_refused() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let point = sandbox.new_dir("mnt");
        // Port 1 of this machine: no network is asked.
        for (address, words) in [
            ("http://127.0.0.1:1/disk.raw.xz", ["127.0.0.1:1", "refused"]),
            ("ftp://127.0.0.1/disk.raw.xz", ["ftp", "https://"]),
        ] {
            sandbox
                .loopmount()
                .arg(address)
                .arg(&point)
                .fails(1)
                .says(&words);
            sandbox.assert_clean();
        }
    }
}

#[test]
fn means_that_are_not_there_are_named() {
    let (sandbox, image) = with_small_disk(Who::User);
    let point = sandbox.new_dir("mnt");
    for via in ["loop", "nbd"] {
        sandbox
            .loopmount()
            .args(["--via", via])
            .arg(&image)
            .arg(&point)
            .fails(1)
            .says(&[via, "root"]);
    }
}
