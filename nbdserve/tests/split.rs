//! Images that were cut into files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nbdserve::layer::split::look;
use nbdserve::plan::{self, Info, LayerSpec, Pick, Purpose, Request, Resolved};
use nbdserve::source::split::{self, Joined, Look, MOST_PARTS};
use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::{Faulty, conformance, noise, tools};
use nbdserve::{ByteRange, Cx, ExtentFlags, Kind, Result, Volume};
use tempfile::TempDir;

/// Bytes cut at these places.
fn cut(bytes: &[u8], at: &[usize]) -> Vec<Vec<u8>> {
    let ends = at.iter().copied().chain([bytes.len()]);
    let mut start = 0;
    ends.map(|end| {
        let part = bytes[start..end].to_vec();
        start = end;
        part
    })
    .collect()
}

/// Files called `disk.001` and so on, with these bytes.
fn files(parts: &[Vec<u8>]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for (number, bytes) in parts.iter().enumerate() {
        fs::write(dir.path().join(format!("disk.{:03}", number + 1)), bytes).unwrap();
    }
    let first = dir.path().join("disk.001");
    (dir, first)
}

fn open(first: &Path, look: Look, mode: OpenMode) -> Result<Volume> {
    split::open(first, look, mode, &[]).and_then(Joined::volume)
}

fn names(first: &Path, look: Look) -> Result<Vec<String>> {
    let files = split::open(first, look, OpenMode::ReadOnly, &[])?;
    let names = files.iter().map(|file| {
        let path = Path::new(file.display_name());
        path.file_name().unwrap().to_str().unwrap().to_owned()
    });
    Ok(names.collect())
}

#[test]
fn the_suite_holds_on_parts_of_any_length() {
    let bytes = noise(700_000, 1);
    for at in [
        &[100, 100_001, 100_001, 250_000][..],
        &[0, 1, 2, 699_999],
        &[512, 4096, 700_000],
    ] {
        let parts = cut(&bytes, at);
        let memory = || {
            let parts = parts.iter().map(|part| Memory::volume(part.clone()));
            Joined::of(parts.collect()).unwrap()
        };
        conformance::check(|| (memory(), bytes.clone()));
        conformance::check_writer(|| (memory(), bytes.clone()));
    }
}

#[test]
fn the_suite_holds_on_files() {
    let bytes = noise(300_000, 2);
    let parts = cut(&bytes, &[100_001, 200_002]);
    let dirs = std::cell::RefCell::new(Vec::new());
    let fresh = |mode| {
        let (dir, first) = files(&parts);
        dirs.borrow_mut().push(dir);
        (open(&first, Look::Auto, mode).unwrap(), bytes.clone())
    };
    conformance::check(|| fresh(OpenMode::ReadOnly));
    conformance::check_writer(|| fresh(OpenMode::Write));
}

#[test]
fn what_fails_in_one_part_leaves_the_others_readable() {
    let parts = [noise(5000, 1), noise(5000, 2), noise(5000, 3)];
    let (middle, faults) = Faulty::volume(Memory::volume(parts[1].clone()));
    let joined = Joined::of(vec![
        Memory::volume(parts[0].clone()),
        middle,
        Memory::volume(parts[2].clone()),
    ])
    .unwrap();
    faults.fail_all(Kind::TimedOut);
    assert_eq!(joined.read_vec(0, 5000).unwrap(), parts[0]);
    assert_eq!(joined.read_vec(10_000, 5000).unwrap(), parts[2]);
    for (at, len) in [(4999, 2), (9999, 2), (0, 15_000)] {
        let error = joined.read_vec(at, len).unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
    }
}

#[test]
fn holes_of_each_part_come_up_at_their_place() {
    let dir = tempfile::tempdir().unwrap();
    const UNIT: u64 = 1 << 20;
    for (number, data) in [(1, 0), (2, 1)] {
        let path = dir.path().join(format!("disk.00{number}"));
        let file = fs::File::create(&path).unwrap();
        file.set_len(2 * UNIT).unwrap();
        let bytes = noise(UNIT as usize, number);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, data * UNIT).unwrap();
    }
    let volume = open(&dir.path().join("disk.001"), Look::Auto, OpenMode::ReadOnly).unwrap();
    let extents = volume.extents(ByteRange::between(0, 4 * UNIT)).unwrap();
    let runs: Vec<_> = extents
        .runs()
        .iter()
        .map(|run| (run.range.end() / UNIT, run.flags))
        .collect();
    assert_eq!(
        runs,
        [
            (1, ExtentFlags::DATA),
            (3, ExtentFlags::HOLE),
            (4, ExtentFlags::DATA)
        ]
    );
}

#[test]
fn split1_and_we_agree_on_names() {
    let bytes = noise(40_000, 1);
    for (options, first) in [
        (&["-b", "999"][..], "disk.aa"),
        (&["-b", "999", "-d"], "disk.00"),
        (
            &["-b", "999", "--numeric-suffixes=1", "-a", "3"],
            "disk.001",
        ),
        (&["-b", "9999", "-a", "4"], "disk.aaaa"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        fs::write(&whole, &bytes).unwrap();
        let mut command = tools::command("split");
        tools::run_command(
            command
                .args(options)
                .arg(&whole)
                .arg(dir.path().join("disk.")),
        );
        let volume = open(&dir.path().join(first), Look::Auto, OpenMode::ReadOnly).unwrap();
        assert!(conformance::read_all(&volume) == bytes, "{options:?}");
    }
}

#[test]
fn parts_are_looked_for_as_far_as_they_are_wanted() {
    let (dir, first) = files(&[vec![1], vec![2], vec![3]]);
    let three = ["disk.001", "disk.002", "disk.003"];
    assert_eq!(names(&first, Look::Auto).unwrap(), three);
    assert_eq!(names(&first, Look::All).unwrap(), three);
    assert_eq!(names(&first, Look::Exactly(2)).unwrap(), three[..2]);
    assert_eq!(names(&first, Look::Exactly(1)).unwrap(), three[..1]);
    assert_eq!(names(&first, Look::Never).unwrap(), three[..1]);
    let error = names(&first, Look::Exactly(4)).unwrap_err();
    assert!(error.to_string().contains("disk.004"), "{error}");

    // The second one is no first part, whatever lies beside it.
    let second = dir.path().join("disk.002");
    assert_eq!(names(&second, Look::Auto).unwrap(), ["disk.002"]);
    let error = names(&second, Look::All).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    assert!(error.report().to_string().contains("disk.001"));
}

#[test]
fn a_missing_part_is_named() {
    let (dir, first) = files(&[vec![1], vec![2], vec![3], vec![4]]);
    fs::remove_file(dir.path().join("disk.003")).unwrap();
    for look in [Look::Auto, Look::All] {
        let error = names(&first, look).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("disk.003 is missing"), "{text}");
        assert!(text.contains("disk.004 is there"), "{text}");
    }
    assert_eq!(names(&first, Look::Exactly(2)).unwrap().len(), 2);
    fs::remove_file(dir.path().join("disk.002")).unwrap();
    let error = names(&first, Look::Auto).unwrap_err();
    assert!(error.to_string().contains("disk.002 is missing"), "{error}");
    // A name that only looks alike is no part.
    fs::rename(
        dir.path().join("disk.004"),
        dir.path().join("disk.20240101"),
    )
    .unwrap();
    assert_eq!(names(&first, Look::Auto).unwrap(), ["disk.001"]);
}

#[test]
fn a_part_that_is_not_complete_is_named() {
    for lens in [[100, 99, 100], [99, 100, 100], [100, 100, 101], [100, 0, 1]] {
        let (_dir, first) = files(&lens.map(|len| vec![7; len]));
        let error = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        assert!(text.contains("is not complete"), "{text}");
        // Whoever says so gets them as they are.
        let joined = open(&first, Look::All, OpenMode::ReadOnly).unwrap();
        assert_eq!(joined.size(), lens.iter().sum::<usize>() as u64);
    }
    for lens in [[100, 100, 100], [100, 100, 1], [100, 100, 0]] {
        let (_dir, first) = files(&lens.map(|len| vec![7; len]));
        open(&first, Look::Auto, OpenMode::ReadOnly).unwrap();
    }
}

#[test]
fn the_first_part_of_a_later_one_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in [
        "d.001", "d.002", "d.aa", "d.ab", "d.part2", "d.part1", "e.002", "f",
    ] {
        fs::write(at(name), "x").unwrap();
    }
    for (later, first) in [
        ("d.002", Some("d.001")),
        ("d.010", Some("d.001")),
        ("d.ab", Some("d.aa")),
        ("d.part2", Some("d.part1")),
        ("d.001", None),
        ("d.aa", None),
        ("e.002", None),
        ("d.raw", None),
        ("f", None),
        ("\u{fc}\u{fc}", None),
        ("", None),
    ] {
        assert_eq!(split::first_of(&at(later)), first.map(at), "{later}");
    }
}

/// A folder `in` with `disk.001` and what `second` says is `disk.002`, and `out/secret`.
fn with_link(second: &Path) -> (TempDir, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    for folder in ["in/deep", "out"] {
        fs::create_dir_all(top.path().join(folder)).unwrap();
    }
    for (name, byte) in [("in/disk.001", 1), ("in/deep/part", 2), ("out/secret", 9)] {
        fs::write(top.path().join(name), [byte; 8]).unwrap();
    }
    symlink(second, top.path().join("in/disk.002")).unwrap();
    let first = top.path().join("in/disk.001");
    (top, first)
}

#[test]
fn a_part_that_is_a_link_out_of_the_folder_is_refused() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    for second in [
        Path::new("../out/secret"),
        secret.path(),
        Path::new("/etc/passwd"),
    ] {
        let (top, first) = with_link(second);
        for mode in [OpenMode::ReadOnly, OpenMode::Write] {
            for look in [Look::Auto, Look::All, Look::Exactly(2)] {
                let error = split::open(&first, look, mode, &[]).unwrap_err();
                assert_eq!(error.kind(), Kind::Denied, "{error}");
                let real = first.with_file_name("disk.002").canonicalize().unwrap();
                let text = error.to_string();
                for name in [&first.with_file_name("disk.002"), &real] {
                    assert!(text.contains(name.to_str().unwrap()), "{text}");
                }
                let hint = error.report().hint.unwrap();
                let allows = format!(
                    "--references {} allows it",
                    real.parent().unwrap().display()
                );
                assert!(hint.starts_with(&allows), "{hint}");
                assert!(hint.contains("--layer split:parts=1"), "{hint}");
            }
        }
        // Both of what the hint says.
        let alone = open(&first, Look::Exactly(1), OpenMode::ReadOnly).unwrap();
        assert_eq!(alone.size(), 8);
        let out = top.path().join("out");
        let named = split::open(&first, Look::All, OpenMode::ReadOnly, &[out]);
        if second.starts_with("..") {
            let whole = Joined::volume(named.unwrap()).unwrap();
            assert_eq!(whole.read_vec(0, 16).unwrap(), [[1; 8], [9; 8]].concat());
        } else {
            assert_eq!(named.unwrap_err().kind(), Kind::Denied);
        }
    }
}

#[test]
fn a_descriptor_of_a_process_is_no_part() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    let link = format!("/proc/self/fd/{}", secret.as_file().as_raw_fd());
    let (_top, first) = with_link(Path::new(&link));
    let error = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
}

#[test]
fn a_part_may_be_a_link_within_the_folder() {
    for absolute in [false, true] {
        let (top, first) = with_link(Path::new("deep/part"));
        if absolute {
            let second = top.path().join("in/disk.002");
            fs::remove_file(&second).unwrap();
            symlink(top.path().join("in/deep/part"), &second).unwrap();
        }
        let volume = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap();
        let expected = [[1; 8], [2; 8]].concat();
        assert_eq!(volume.read_vec(0, 16).unwrap(), expected, "{absolute}");
    }
    // One that leads to itself is named, too.
    let (_top, first) = with_link(Path::new("disk.002"));
    let error = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("disk.002"), "{error}");
}

#[test]
fn the_parts_of_a_first_one_that_is_a_link_are_beside_the_file() {
    let (dir, _) = files(&[vec![1; 8], vec![2; 8]]);
    let links = tempfile::tempdir().unwrap();
    let link = |name: &str| links.path().join(name);
    symlink(dir.path().join("disk.001"), link("disk.001")).unwrap();
    symlink(dir.path().join("disk.001"), link("latest")).unwrap();
    let both = ["disk.001", "disk.002"];
    assert_eq!(names(&link("disk.001"), Look::Auto).unwrap(), both);
    for look in [Look::Auto, Look::All] {
        assert_eq!(
            names(&link("latest"), look).unwrap(),
            ["latest", "disk.002"]
        );
    }
    // A link for each, as some tools make them.
    symlink(dir.path().join("disk.002"), link("disk.002")).unwrap();
    assert_eq!(names(&link("disk.001"), Look::Auto).unwrap(), both);

    // Where files are kept by other names they are beside the link.
    for part in ["001", "002"] {
        let kept = dir.path().join(format!("kept{part}"));
        fs::write(&kept, [7; 8]).unwrap();
        symlink(&kept, link(&format!("other.{part}"))).unwrap();
    }
    let first = link("other.001");
    let error = names(&first, Look::Auto).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    let allowed = [dir.path().to_owned()];
    let files = split::open(&first, Look::Auto, OpenMode::ReadOnly, &allowed).unwrap();
    assert_eq!(files.len(), 2);
}

#[test]
fn what_is_no_file_is_no_part() {
    let (dir, first) = files(&[vec![1; 8]]);
    let second = dir.path().join("disk.002");
    for mode in [OpenMode::ReadOnly, OpenMode::Write] {
        tools::run("mkfifo", [&second]);
        let error = open(&first, Look::Auto, mode).unwrap_err();
        assert_eq!(error.kind(), Kind::NotThisFormat);
        assert!(error.to_string().contains("disk.002 is a FIFO"), "{error}");
        fs::remove_file(&second).unwrap();
    }
    fs::create_dir(&second).unwrap();
    let error = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap_err();
    assert!(
        error.to_string().contains("disk.002 is a directory"),
        "{error}"
    );
    fs::remove_dir(&second).unwrap();
    symlink("nowhere", &second).unwrap();
    let error = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("disk.002"), "{error}");
}

#[test]
fn there_is_a_limit_to_the_number_of_parts() {
    let parts = vec![vec![7_u8]; MOST_PARTS];
    let (dir, first) = files(&parts);
    assert_eq!(names(&first, Look::Auto).unwrap().len(), MOST_PARTS);
    let volume = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap();
    assert_eq!(volume.size(), MOST_PARTS as u64);
    fs::write(dir.path().join(format!("disk.{}", MOST_PARTS + 1)), [7]).unwrap();
    assert_eq!(names(&first, Look::Auto).unwrap_err().kind(), Kind::Limit);
}

#[test]
fn every_part_is_locked() {
    let (dir, first) = files(&[vec![1; 100], vec![2; 100], vec![3; 100]]);
    let volume = open(&first, Look::Auto, OpenMode::Write).unwrap();
    for number in 1..=3 {
        let path = dir.path().join(format!("disk.00{number}"));
        let error = File::open(&path, OpenMode::Write).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
    }
    drop(volume);
    let third = File::open(&dir.path().join("disk.003"), OpenMode::Write).unwrap();
    let error = open(&first, Look::Auto, OpenMode::Write).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("disk.003"), "{error}");
    drop(third);
    open(&first, Look::Auto, OpenMode::Write).unwrap();
}

#[test]
fn a_part_that_changes_is_noticed() {
    let (dir, first) = files(&[vec![1; 100], vec![2; 100]]);
    let volume = open(&first, Look::Auto, OpenMode::ReadOnly).unwrap();
    fs::write(dir.path().join("disk.002"), vec![3; 99]).unwrap();
    volume.read_vec(0, 100).unwrap();
    assert_eq!(volume.read_vec(0, 150).unwrap_err().kind(), Kind::Changed);
}

fn specs(layers: &[&str]) -> Vec<LayerSpec> {
    layers.iter().map(|layer| layer.parse().unwrap()).collect()
}

#[test]
fn the_layers_that_are_named_say_whether_parts_are_wanted() {
    for (layers, expected) in [
        (&[][..], Look::Auto),
        (&["split"], Look::All),
        (&["split", "raw"], Look::All),
        (&["split:3"], Look::Exactly(3)),
        (&["split:parts=1"], Look::Exactly(1)),
        (&["raw"], Look::Never),
        (&["xz"], Look::Never),
    ] {
        assert_eq!(look(&specs(layers)).unwrap(), expected, "{layers:?}");
    }
    for layer in ["split:0", "split:501", "split:-1", "split:x"] {
        assert_eq!(look(&specs(&[layer])).unwrap_err().kind(), Kind::OutOfRange);
    }
}

fn resolve(source: Volume, layers: &[&str]) -> Result<Resolved> {
    let request = Request {
        layers: specs(layers),
        pick: Pick::Disk,
        purpose: Purpose::Bytes,
        ..Request::default()
    };
    plan::resolve(
        source,
        "/images/disk.001",
        &request,
        &|_, _| None,
        &Cx::new(8 << 20),
    )
}

/// A squashfs, for its superblock is at the start and names its length.
fn filesystem() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), noise(50_000, 1)).unwrap();
    let mut command = tools::command("mksquashfs");
    tools::run_command(
        command
            .arg(&tree)
            .arg(&image)
            .args(["-quiet", "-no-progress"]),
    );
    fs::read(&image).unwrap()
}

#[test]
fn the_plan_shows_the_parts_and_is_followed_without_a_look() {
    let bytes = filesystem();
    let parts = cut(&bytes, &[20_000, 40_000]);
    let (_dir, first) = files(&parts);
    let source = || open(&first, Look::Auto, OpenMode::ReadOnly).unwrap();
    for layers in [&[][..], &["split"], &["split:3"]] {
        let found = resolve(source(), layers).unwrap();
        assert_eq!(
            found.plan.to_string(),
            "/images/disk.001 -> split:3 -> squashfs"
        );
        assert!(
            found.source_range.is_none(),
            "the kernel would need one file"
        );
        assert!(conformance::read_all(&found.volume) == bytes);
        let info = Info::new(&found);
        assert_eq!(info.layers[1].name, "split");
        let evidence = info.layers[1].evidence.as_deref();
        assert_eq!(evidence, Some("3 parts, disk.001 to disk.003"));
        let again = plan::reopen(source(), &found.plan, &Cx::new(8 << 20)).unwrap();
        assert!(conformance::read_all(&again.volume) == bytes);
    }
    let error = resolve(source(), &["split:2"]).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);

    let found = resolve(source(), &[]).unwrap();
    let two = open(&first, Look::Exactly(2), OpenMode::ReadOnly).unwrap();
    let error = plan::reopen(two, &found.plan, &Cx::new(8 << 20)).unwrap_err();
    assert!(
        error.to_string().contains("3 parts are wanted, 2"),
        "{error}"
    );
}

#[test]
fn a_single_file_is_split_only_if_that_is_said() {
    let (_dir, first) = files(&[filesystem()]);
    let source = || open(&first, Look::Auto, OpenMode::ReadOnly).unwrap();
    let plain = resolve(source(), &[]).unwrap();
    assert_eq!(plain.plan.to_string(), "/images/disk.001 -> squashfs");
    assert!(plain.source_range.is_some());
    let said = resolve(source(), &["split"]).unwrap();
    assert_eq!(
        said.plan.to_string(),
        "/images/disk.001 -> split:1 -> squashfs"
    );
    // What is no file, or lies in another layer, was never cut into files.
    for (source, layers) in [
        (Memory::volume(filesystem()), &["split"][..]),
        (source(), &["offset:0", "split"]),
    ] {
        let error = resolve(source, layers).unwrap_err();
        assert_eq!(error.kind(), Kind::NotThisFormat, "{error}");
    }
}
