//! Archives as tools make them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use nbdserve::layer::Args;
use nbdserve::plan::{self, Pick, Purpose, Request};
use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::tools as foreign;
use nbdserve::testing::{Counting, conformance};
use nbdserve::{ByteRange, Kind, Volume};

use crate::tools::{args, cx, noise, open, open_on, read_all, stored, zip};

#[test]
fn stored_files_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("folder")).unwrap();
    let mut files = Vec::new();
    for (n, size) in [0, 1, 511, 70_000, 300_000].into_iter().enumerate() {
        let name = format!("folder/f{size}");
        let bytes = noise(size, n as u64);
        fs::write(dir.join(&name), &bytes).unwrap();
        files.push((name, bytes));
    }
    symlink("f1", dir.join("folder/link")).unwrap();
    fs::write(dir.join("comment"), "a comment\n.\n").unwrap();
    for how in [
        &["-q", "-0", "-r", "-y"][..],
        &["-q", "-0", "-r", "-y", "-X"],
        &["-q", "-0", "-r", "-y", "-D", "-fz"],
    ] {
        let _ = fs::remove_file(dir.join("out.zip"));
        let bytes = zip(dir, &[how, &["out.zip", "folder"]].concat());
        for (name, content) in &files {
            let volume = open(&bytes, name).unwrap_or_else(|error| panic!("{how:?} {error}"));
            assert!(read_all(&volume) == *content, "{how:?} {name}");
            assert_eq!(volume.name(), format!("zip:{name}"));
            // Something vouches for these bytes.
            assert!(volume.writer().is_none());
        }
        for name in ["folder", "folder/", "folder/link", "nothing"] {
            let error = open(&bytes, name).unwrap_err();
            assert_eq!(error.kind(), Kind::OutOfRange, "{name}: {error}");
        }
        // With a comment.
        let mut command = foreign::command("zip");
        command.args(["-q", "-z", "out.zip"]).current_dir(dir);
        command.stdin(fs::File::open(dir.join("comment")).unwrap());
        foreign::run_command(&mut command);
        let longer = fs::read(dir.join("out.zip")).unwrap();
        assert!(longer != bytes);
        let (name, content) = &files[3];
        assert!(read_all(&open(&longer, name).unwrap()) == *content);
    }
}

#[test]
fn other_writers_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = noise(100_000, 1);
    fs::write(dir.join("disk"), &content).unwrap();
    let made = ["--format=zip", "--options=zip:compression=store"];
    let mut command = foreign::command("bsdtar");
    command.args(["-cf", "out.zip"]).args(made).arg("disk");
    foreign::run_command(command.current_dir(dir));
    let bytes = fs::read(dir.join("out.zip")).unwrap();
    assert!(read_all(&open(&bytes, "disk").unwrap()) == content);
}

#[test]
fn what_is_streamed_has_its_sizes_behind_the_data() {
    let content = noise(100_000, 1);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), &content).unwrap();
    // To a pipe: nothing is known when the local header is written.
    let made = ["--format=zip", "--options=zip:compression=store"];
    let mut command = foreign::command("bsdtar");
    command.args(["-cf", "-"]).args(made).arg("disk");
    let mut bytes = command.current_dir(dir.path()).output().unwrap().stdout;
    // It fills up a block, as of a tape.
    bytes.truncate(crate::tools::last(&bytes, b"PK\x05\x06") + 22);
    assert_eq!(bytes[6] & 8, 8, "no data descriptor");
    assert!(read_all(&open(&bytes, "disk").unwrap()) == content);
}

#[test]
fn a_program_in_front_is_skipped() {
    let content = noise(70_000, 1);
    let archive = stored(&[("disk", &content), ("other", b"x")]);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let with_program = [noise(12_345, 2), archive].concat();
    fs::write(dir.join("out.zip"), &with_program).unwrap();
    assert!(read_all(&open(&with_program, "disk").unwrap()) == content);
    // With its offsets adjusted.
    let adjusted = zip(dir, &["-q", "-A", "out.zip"]);
    assert!(adjusted != with_program && adjusted.len() == with_program.len());
    assert!(read_all(&open(&adjusted, "disk").unwrap()) == content);
    foreign::run_command(
        foreign::command("unzip")
            .args(["-qt", "out.zip"])
            .current_dir(dir),
    );
    // The same with numbers of 64 bits.
    fs::write(dir.join("disk"), &content).unwrap();
    fs::remove_file(dir.join("out.zip")).unwrap();
    let long = zip(dir, &["-q", "-0", "-fz", "out.zip", "disk"]);
    assert!(
        long.windows(4).any(|bytes| bytes == b"PK\x06\x06"),
        "no zip64"
    );
    let long = [noise(999, 3), long].concat();
    assert!(read_all(&open(&long, "disk").unwrap()) == content);
}

#[test]
fn more_than_four_gigabytes_and_more_than_65535_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Holes: little is stored, though all of it is read once by the tool.
    let size = (4_u64 << 30) + 512;
    fs::File::create(dir.join("big"))
        .unwrap()
        .set_len(size)
        .unwrap();
    fs::write(dir.join("small"), b"small").unwrap();
    let out = dir.join("out.zip");
    forge_big(&out, size);
    let volume = Volume::new(File::open(&out, OpenMode::ReadOnly).unwrap());
    let (below, counts) = Counting::volume(volume);
    let big = open_on(&below, &args("name", "big")).unwrap();
    assert_eq!(big.size(), size);
    assert!(counts.reads() < 10 && counts.read_bytes() < 200_000);
    let listed = foreign::run("unzip", ["-l", out.to_str().unwrap()]);
    assert!(listed.contains(&size.to_string()), "{listed}");

    let files = dir.join("many");
    fs::create_dir(&files).unwrap();
    for n in 0..66_000 {
        fs::File::create(files.join(n.to_string())).unwrap();
    }
    fs::write(files.join("disk"), b"content").unwrap();
    fs::remove_file(&out).unwrap();
    let bytes = zip(dir, &["-q", "-0", "-X", "-r", "out.zip", "many"]);
    let cx = nbdserve::Cx::new(256 << 20);
    let layer = &nbdserve::layer::zip::ZIP;
    let below = Memory::volume(bytes);
    let volume = (layer.open)(&below, &args("name", "many/disk"), &cx).unwrap();
    assert_eq!(read_all(&volume), b"content");
    // Not where there is no memory for them.
    let error = (layer.open)(&below, &Args::new(), &crate::tools::cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
}

/// One stored file of zeroes in a sparse archive, as zip64 has it.
fn forge_big(path: &std::path::Path, size: u64) {
    // Any will do: nobody checks the CRC of a stored file.
    let crc = [1, 2, 3, 4];
    let long = |numbers: &[u64]| {
        let mut field = vec![1, 0, 8 * numbers.len() as u8, 0];
        field.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        field
    };
    let sizes = [0xff_u8; 8];
    let mut local = b"PK\x03\x04\x2d\0\0\0\0\0\0\0\x21\0".to_vec();
    local.extend(
        [
            &crc[..],
            &sizes,
            &[3, 0, 20, 0],
            b"big",
            &long(&[size, size]),
        ]
        .concat(),
    );
    let mut central = b"PK\x01\x02\x2d\x03\x2d\0\0\0\0\0\0\0\x21\0".to_vec();
    central.extend(
        [
            &crc[..],
            &sizes,
            &[3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat(),
    );
    central.extend([&[0, 0][..], b"big", &long(&[size, size])].concat());
    let directory = local.len() as u64 + size;
    let end64_at = directory + central.len() as u64;
    let mut end = b"PK\x06\x06".to_vec();
    end.extend(44_u64.to_le_bytes());
    end.extend([0x2d, 3, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [1, 1, central.len() as u64, directory] {
        end.extend(number.to_le_bytes());
    }
    end.extend(b"PK\x06\x07\0\0\0\0");
    end.extend(end64_at.to_le_bytes());
    end.extend(1_u32.to_le_bytes());
    end.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    end.extend((central.len() as u32).to_le_bytes());
    end.extend([0xff, 0xff, 0xff, 0xff, 0, 0]);
    let mut out = fs::File::create(path).unwrap();
    out.write_all(&local).unwrap();
    std::io::Seek::seek(&mut out, std::io::SeekFrom::Start(directory)).unwrap();
    out.write_all(&central).unwrap();
    out.write_all(&end).unwrap();
}

/// A stored file made a compressed one: another method, and its real size.
fn as_method(packed: &[u8], number: u8, size: usize) -> Vec<u8> {
    let mut bytes = stored(&[("disk", packed)]);
    let central = crate::tools::last(&bytes, b"PK\x01\x02");
    for (header, method, at) in [(0, 8, 22), (central, 10, 24)] {
        bytes[header + method] = number;
        let size = u32::try_from(size).unwrap().to_le_bytes();
        bytes[header + at..header + at + 4].copy_from_slice(&size);
    }
    bytes
}

#[test]
fn codecs_of_other_layers_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = [noise(50_000, 1), vec![0; 400_000]].concat();
    fs::write(dir.join("disk"), &content).unwrap();
    let disk = dir.join("disk");
    for (tool, args, ending, number) in [
        ("xz", ["-k", "-0"], "xz", 95),
        ("bzip2", ["-k", "-1"], "bz2", 12),
        ("zstd", ["-q", "-1"], "zst", 93),
        // What zstd had at first.
        ("zstd", ["-qf", "-1"], "zst", 20),
    ] {
        foreign::run(tool, args.iter().copied().chain([disk.to_str().unwrap()]));
        let packed = fs::read(disk.with_extension(ending)).unwrap();
        let good = as_method(&packed, number, content.len());
        let fresh = || (open(&good, "disk").unwrap(), content.clone());
        conformance::check(fresh);
        let volume = fresh().0;
        assert_eq!(volume.name(), "zip:disk");
        assert!(volume.stats().blocks.is_some());
        let longer = as_method(&packed, number, content.len() + 1);
        let error = open(&longer, "disk").unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{tool}: {error}");
    }
}

/// An archive of `disk`, of this content, that 7-Zip has packed with this method.
fn by_7zip(content: &[u8], method: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("disk"), content).unwrap();
    let args = ["a", "-tzip", &format!("-mm={method}"), "out.zip", "disk"];
    foreign::run_command(foreign::command("7zz").args(args).current_dir(dir));
    fs::read(dir.join("out.zip")).unwrap()
}

#[test]
fn each_method_of_7zip_reads_back_or_is_refused_by_name() {
    let content = [noise(50_000, 1), vec![0; 400_000], b"end".to_vec()].concat();
    for (method, number) in [
        ("Copy", 0),
        ("Deflate", 8),
        ("BZip2", 12),
        ("LZMA:eos=off", 14),
        ("LZMA:eos=on", 14),
        ("xz", 95),
    ] {
        let archive = by_7zip(&content, method);
        assert_eq!(archive[8], number, "{method}");
        let has_marker = archive[6] & 2 != 0;
        assert_eq!(has_marker, method.contains("eos=on"), "{method}");
        conformance::check(|| (open(&archive, "disk").unwrap(), content.clone()));
    }
    let error = open(&by_7zip(&content, "Deflate64"), "disk").unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(
        error.to_string().ends_with("deflate64 (method 9)"),
        "{error}"
    );
}

#[test]
fn lzma_that_is_damaged_is_never_served_as_a_whole() {
    let content = [noise(5_000, 1), vec![7; 40_000]].concat();
    for method in ["LZMA:eos=off", "LZMA:eos=on"] {
        let archive = by_7zip(&content, method);
        let data = 30 + "disk".len();
        let end = crate::tools::last(&archive, b"PK\x01\x02");
        let result = |bytes: &[u8]| {
            let volume = open(bytes, "disk")?;
            volume.read_vec(0, content.len())
        };
        assert!(result(&archive).unwrap() == content);
        // The header, and bytes everywhere behind it. The first byte of the range coder and the version
        // say nothing.
        let places = (data + 2..data + 9).chain((data + 10..end).step_by(97));
        for at in places {
            let mut bytes = archive.clone();
            bytes[at] ^= 0x10;
            match result(&bytes) {
                // A longer dictionary is no damage.
                Ok(found) => assert!(found == content, "{method}: byte {at}"),
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        Kind::Corrupt | Kind::Limit | Kind::Unsupported
                    ),
                    "{method}: byte {at}: {error}"
                ),
            }
        }
        // The CRC, in the directory and in the local header.
        let mut bytes = archive.clone();
        bytes[14] ^= 1;
        bytes[end + 16] ^= 1;
        let error = result(&bytes).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("CRC"), "{error}");
    }
}

#[test]
fn stored_files_conform() {
    let content = noise(300_001, 1);
    let archive = stored(&[("a", b"x"), ("disk", &content)]);
    conformance::check(|| (open(&archive, "disk").unwrap(), content.clone()));
    let open = |below: &Volume| open_on(below, &args("name", "disk"));
    conformance::check_errors("zip:disk", &archive, open);
}

#[test]
fn the_only_image_is_taken_and_the_plan_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = dir.join("disk.img");
    fs::File::create(&disk).unwrap().set_len(256 << 10).unwrap();
    foreign::run("mkfs.ext4", ["-q", "-F", disk.to_str().unwrap()]);
    fs::write(dir.join("README"), "text").unwrap();
    let bytes = zip(dir, &["-q", "-0", "out.zip", "README", "disk.img"]);
    let request = Request {
        layers: Vec::new(),
        pick: Pick::Auto,
        purpose: Purpose::FileSystem,
    };
    let image = || Memory::volume(bytes.clone());
    let found = plan::resolve(image(), "image", &request, &|_, _| None, &cx()).unwrap();
    assert_eq!(found.plan.to_string(), "image -> zip:disk.img -> ext4");
    assert!(read_all(&found.volume) == fs::read(&disk).unwrap());
    // The kernel must not write there behind the back of the CRC.
    assert_eq!(found.source_range, None);
    let (source, counts) = Counting::volume(image());
    let opened = plan::reopen(source, &found.plan, &cx()).unwrap();
    let data = crate::tools::first(&bytes, b"disk.img") as u64 + 100;
    assert!(!counts.has_read(ByteRange::between(data + 70_000, data + 80_000)));
    assert_eq!(opened.volume.size(), 256 << 10);
}

#[test]
fn the_last_of_a_name_wins_and_names_may_be_old() {
    // Two files become one name; the first byte of the other's is of code page 437.
    let mut bytes = stored(&[("aaaa", b"first"), ("bbbb", b"second"), ("cccc", b"third")]);
    for at in 0..bytes.len() - 4 {
        match &bytes[at..at + 4] {
            b"aaaa" => bytes[at..at + 4].copy_from_slice(b"bbbb"),
            b"cccc" => bytes[at..at + 4].copy_from_slice(b"c\x84.\x81"),
            _ => {}
        }
    }
    assert_eq!(read_all(&open(&bytes, "bbbb").unwrap()), b"second");
    assert_eq!(read_all(&open(&bytes, "cä.ü").unwrap()), b"third");
    let below = Memory::volume(bytes);
    let first = open_on(&below, &args("number", "1")).unwrap();
    assert_eq!(read_all(&first), b"first");
}

#[test]
fn an_empty_archive_and_one_of_folders_have_no_image() {
    let empty = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let error = open_on(&Memory::volume(empty.to_vec()), &Args::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat, "{error}");
    assert!(error.to_string().contains("no file in it"), "{error}");
}
