//! VMDK.

use std::fs;
use std::path::Path;

use nbdserve::layer::vmdk::VMDK;
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, conformance, noise, tools};
use nbdserve::{ByteRange, Kind};

use crate::tools::{
    MIB, Made, a_cut_is_told_of, convert, cx, disk, error_of, error_of_file, is_probed,
    is_right_or_refused, lie_in_each_field, open_bytes, open_file, our_data, qemu_data, qemu_reads,
    read_all, with,
};

const ONE_FILE: &[&str] = &["monolithicSparse", "streamOptimized"];
const MORE_FILES: &[&str] = &[
    "monolithicFlat",
    "twoGbMaxExtentFlat",
    "twoGbMaxExtentSparse",
];

fn made(bytes: &[u8], subformat: &str) -> Made {
    Made::new(bytes, "vmdk", &format!("subformat={subformat}"))
}

fn le32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn le64(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// Where the first grain table with an entry lies.
fn table(image: &[u8]) -> usize {
    le32(image, le64(image, 56) * 512) * 512
}

#[test]
fn the_suite_holds_on_what_qemu_makes() {
    let disk = disk(3);
    for subformat in ONE_FILE {
        let image = made(&disk, subformat).bytes();
        conformance::check(|| (open_bytes(&VMDK, &image).unwrap(), disk.clone()));
        conformance::check_errors("vmdk", &image, |below| {
            (VMDK.open)(below, &Default::default(), &cx())
        });
    }
    for subformat in MORE_FILES {
        let made = made(&disk, subformat);
        conformance::check(|| (open_file(&VMDK, &made.image).unwrap(), disk.clone()));
    }
}

#[test]
fn holes_are_those_of_qemu() {
    let mut disk = disk(9);
    disk[3 * MIB..6 * MIB].fill(0);
    for subformat in ONE_FILE {
        let made = made(&disk, subformat);
        let volume = open_bytes(&VMDK, &made.bytes()).unwrap();
        assert_eq!(
            our_data(&volume),
            qemu_data(&made.image, "vmdk"),
            "{subformat}"
        );
        assert!(our_data(&volume).len() > 1);
    }
}

#[test]
fn a_large_and_empty_disk_is_one_hole() {
    for subformat in [
        "monolithicSparse",
        "streamOptimized",
        "twoGbMaxExtentSparse",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.vmdk");
        let mut command = tools::command("qemu-img");
        command.args(["create", "-q", "-f", "vmdk", "-o"]);
        command.arg(format!("subformat={subformat}")).arg(&image);
        tools::run_command(command.arg("5G"));
        let volume = open_file(&VMDK, &image).unwrap();
        assert_eq!(volume.size(), 5 << 30);
        let extents = volume.extents(ByteRange::between(0, 5 << 30)).unwrap();
        assert_eq!(extents.runs().len(), 1, "{subformat}");
        assert_eq!(our_data(&volume), []);
    }
}

#[test]
fn a_zeroed_grain_is_told_from_a_hole() {
    let disk = disk(3);
    let made = Made::new(&disk, "vmdk", "subformat=monolithicSparse,zeroed_grain=on");
    let image = made.bytes();
    let image = with(&image, table(&image) + 4, &[1, 0, 0, 0]);
    let volume = open_bytes(&VMDK, &image).unwrap();
    let found = read_all(&volume).unwrap();
    assert!(found[..65536] == disk[..65536] && found[131_072..] == disk[131_072..]);
    assert!(found[65536..131_072].iter().all(|byte| *byte == 0));
    // Without the flag it is a grain in the header.
    let image = with(&image, 8, &[3]);
    let volume = open_bytes(&VMDK, &image).unwrap();
    assert!(read_all(&volume).is_ok());
}

#[test]
fn each_sort_is_probed() {
    let disk = disk(3);
    let image = made(&disk, "streamOptimized").bytes();
    assert!(
        is_probed(&VMDK, &image)
            .unwrap()
            .contains("compressed grains")
    );
    let flat = made(&disk, "monolithicFlat");
    assert!(
        is_probed(&VMDK, &flat.bytes())
            .unwrap()
            .contains("Descriptor")
    );
    assert!(is_probed(&VMDK, b"# disk descriptorFILE\n").is_some());
    for other in [
        &b"# Disk Descriptor"[..],
        b" # Disk DescriptorFile",
        b"version=1",
        b"KDM",
    ] {
        assert_eq!(is_probed(&VMDK, other), None);
    }
}

/// `image` (streamOptimized) as VMware writes it in one go: the directory is named in the footer only.
fn with_footer(image: &[u8]) -> Vec<u8> {
    let mut bytes = image.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let header = bytes[..512].to_vec();
    let mut marker = vec![0; 512];
    marker[0] = 1;
    marker[12] = 3;
    bytes.extend(&marker);
    bytes.extend(&header);
    bytes.extend([0; 512]);
    bytes[56..64].fill(0xff);
    bytes
}

#[test]
fn a_file_that_was_written_in_one_go_has_its_directory_in_the_footer() {
    let disk = disk(4);
    let image = with_footer(&made(&disk, "streamOptimized").bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vmdk");
    fs::write(&path, &image).unwrap();
    // qemu finds it there, too.
    assert!(qemu_reads(&path, "vmdk") == disk);
    conformance::check(|| (open_bytes(&VMDK, &image).unwrap(), disk.clone()));
    let end = image.len();
    for (bytes, word) in [
        (image[..end - 512].to_vec(), "footer"),
        (image[..end - 1024].to_vec(), "footer"),
        (with(&image, end - 1024, b"x"), "damaged"),
        (with(&image, end - 1024 + 12, &[0xff]), "differs"),
        (with(&image, end - 1024 + 56, &[0xff; 8]), "neither"),
        (with(&image, end - 1536 + 12, &[2]), "footer"),
        (with(&image, end - 512, &[2]), "footer"),
    ] {
        let error = error_of(&VMDK, &bytes);
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn the_copy_of_the_directory_is_used_when_the_first_is_damaged() {
    let disk = disk(3);
    let image = made(&disk, "monolithicSparse").bytes();
    let directory = le64(&image, 56) * 512;
    for bytes in [
        with(&image, 56, &[0xff, 0xff, 0xff, 0xff]),
        with(&image, directory, &[0xff; 4]),
    ] {
        let volume = open_bytes(&VMDK, &bytes).unwrap();
        assert!(read_all(&volume).unwrap() == disk);
    }
    let second = le64(&image, 48) * 512;
    let both = with(&with(&image, directory, &[0xff; 4]), second, &[0xff; 4]);
    let error = error_of(&VMDK, &both);
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("grain table 0"), "{error}");
}

/// The fields of the header.
const FIELDS: &[(usize, usize)] = &[
    (4, 4),
    (8, 4),
    (12, 8),
    (20, 8),
    (28, 8),
    (36, 8),
    (44, 4),
    (48, 8),
    (56, 8),
    (73, 4),
    (77, 2),
];

#[test]
fn every_field_may_lie() {
    for subformat in ONE_FILE {
        let image = made(&disk(3), subformat).bytes();
        let mut fields = FIELDS.to_vec();
        let first = table(&image);
        fields.extend([(le64(&image, 56) * 512, 4), (first, 4), (first + 4, 4)]);
        if *subformat == "streamOptimized" {
            let grain = le32(&image, first) * 512;
            fields.extend([(grain, 8), (grain + 8, 4), (grain + 12, 2), (grain + 14, 8)]);
        }
        lie_in_each_field(
            &image,
            &fields,
            |_| {},
            |bytes, what| {
                is_right_or_refused(&VMDK, bytes, what);
            },
        );
    }
}

#[test]
fn each_lie_is_named() {
    let sparse = made(&disk(3), "monolithicSparse").bytes();
    let stream = made(&disk(3), "streamOptimized").bytes();
    let grain = le32(&stream, table(&stream)) * 512;
    let size = le32(&stream, grain + 8);
    for (bytes, kind, word) in [
        (with(&sparse, 0, b"x"), Kind::NotThisFormat, "magic"),
        (with(&sparse, 4, &[4]), Kind::Unsupported, "version 4"),
        (with(&sparse, 4, &[0]), Kind::Unsupported, "version 0"),
        (with(&sparse, 12, &[0xff; 8]), Kind::Corrupt, "a disk of"),
        (with(&sparse, 20, &[0x81]), Kind::Corrupt, "power of two"),
        (with(&sparse, 20, &[0]), Kind::Corrupt, "power of two"),
        (with(&sparse, 44, &[0; 4]), Kind::Corrupt, "entries"),
        (with(&sparse, 44, &[1, 2]), Kind::Corrupt, "entries"),
        (with(&sparse, 73, &[13]), Kind::Corrupt, "line ends"),
        (with(&sparse, 28, &[0]), Kind::Unsupported, "part of a disk"),
        (
            with(&sparse, 29, &[0xff; 4]),
            Kind::Corrupt,
            "descriptor of",
        ),
        (with(&sparse, 512, b"x"), Kind::Corrupt, "descriptor at"),
        (with(&stream, 77, &[2]), Kind::Unsupported, "type 2"),
        (with(&stream, 10, &[1]), Kind::Unsupported, "markers"),
        (with(&stream, grain, &[1]), Kind::Corrupt, "sector 1"),
        (
            with(&stream, grain + 8, &[0; 4]),
            Kind::Corrupt,
            "cannot be",
        ),
        (
            with(&stream, grain + 8, &[0xff; 4]),
            Kind::Corrupt,
            "cannot be",
        ),
        (
            with(&stream, grain + 12, &[0]),
            Kind::Corrupt,
            "zlib stream",
        ),
        (
            with(&stream, grain + 14, &[7]),
            Kind::Corrupt,
            "cannot be decoded",
        ),
        (
            with(
                &stream,
                grain + 12 + size - 1,
                &[stream[grain + 11 + size] ^ 0x5a, 1],
            ),
            Kind::Corrupt,
            "checksum",
        ),
        (
            with(&stream, grain + 8, &((size - 9) as u32).to_le_bytes()),
            Kind::Corrupt,
            "data ends",
        ),
    ] {
        let error = error_of(&VMDK, &bytes);
        let text = error.report().what + &error.report().because.join(" ");
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// `bytes` as a zlib stream.
fn zlib(bytes: &[u8]) -> Vec<u8> {
    tools::filter("pigz", &["--zlib", "-9", "-c"], bytes)
}

#[test]
fn a_grain_that_is_not_of_its_length_is_refused() {
    let image = made(&disk(3), "streamOptimized").bytes();
    let first = table(&image);
    let grain = |bytes: &[u8]| {
        let stream = zlib(bytes);
        let mut image = image.clone();
        image.resize(image.len().next_multiple_of(512), 0);
        let at = image.len() / 512;
        image.extend([0; 8]);
        image.extend((stream.len() as u32).to_le_bytes());
        image.extend(stream);
        image.resize(image.len().next_multiple_of(512), 0);
        with(&image, first, &(at as u32).to_le_bytes())
    };
    for (len, word) in [
        (65_537, "more than"),
        (40 << 20, "more than"),
        (65_535, "65535 bytes"),
        (0, "0 bytes"),
    ] {
        let error = error_of(&VMDK, &grain(&vec![7; len]));
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let volume = open_bytes(&VMDK, &grain(&vec![7; 65_536])).unwrap();
    assert!(
        volume
            .read_vec(0, 65_536)
            .unwrap()
            .iter()
            .all(|byte| *byte == 7)
    );
    assert!(volume.read_vec(65_536, 65_536).unwrap() == disk(3)[65_536..131_072]);
}

#[test]
fn the_last_grain_may_be_cut_by_the_end_of_the_disk() {
    let mut bytes = disk(3);
    bytes.truncate(2 * MIB + 40 * 512);
    let end = bytes.len();
    bytes[end - 3000..].copy_from_slice(&noise(3000, 4));
    for subformat in ONE_FILE {
        let image = made(&bytes, subformat).bytes();
        let volume = open_bytes(&VMDK, &image).unwrap();
        assert!(read_all(&volume).unwrap() == bytes, "{subformat}");
    }
}

#[test]
fn a_file_that_is_cut_is_corrupt() {
    for subformat in ONE_FILE {
        let image = made(&disk(3), subformat).bytes();
        let first = table(&image);
        let entries = (first..first + 4 * 48).step_by(4);
        let last = entries.map(|at| le32(&image, at)).max().unwrap() * 512;
        for len in [4, 20, 78, 511, 512, 600, 11_000, last, last + 600] {
            let error = error_of(&VMDK, &image[..len]);
            assert_eq!(error.kind(), Kind::Corrupt, "{subformat} {len}: {error}");
        }
    }
}

#[test]
fn what_was_cut_off_is_told_of() {
    let disk = disk(3);
    for subformat in ONE_FILE {
        let image = made(&disk, subformat).bytes();
        let first = table(&image);
        let entries = (first..first + 4 * 48).step_by(4);
        let last = entries.map(|at| le32(&image, at)).max().unwrap() * 512;
        for len in [last, last + 600, last - 1] {
            a_cut_is_told_of(&VMDK, &image, len, &disk);
        }
    }
}

/// A directory of nothing, as long as a sparse file may be, is not looked at to its end.
#[test]
fn the_tables_of_a_disk_that_is_too_large_are_not_all_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vmdk");
    let mut image = made(&disk(3), "monolithicSparse").bytes();
    // Grains of 512 bytes, tables of one entry: 2^41 bytes take a directory of 16 GiB.
    let capacity = 1_u64 << 32;
    image[12..20].copy_from_slice(&capacity.to_le_bytes());
    image[20..28].copy_from_slice(&1_u64.to_le_bytes());
    image[44..48].copy_from_slice(&1_u32.to_le_bytes());
    // Where the file has ended, no copy of it.
    image[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let directory = (image.len() as u64).div_ceil(512);
    image[56..64].copy_from_slice(&directory.to_le_bytes());
    fs::write(&path, image).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(directory * 512 + capacity * 4).unwrap();
    let volume = open_file(&VMDK, &path).unwrap();
    assert_eq!(volume.size(), capacity * 512);
    let begun = std::time::Instant::now();
    assert!(volume.notes().is_empty());
    let took = begun.elapsed();
    assert!(took.as_secs() < 60, "{took:?}");
}

#[test]
fn an_extent_that_was_cut_off_is_named() {
    let part = made(&disk(3), "monolithicSparse").bytes();
    let sectors = 3 * MIB / 512;
    let one = format!("RW {sectors} SPARSE \"a.vmdk\"\nRW {sectors} SPARSE \"b.vmdk\"\n");
    let cut = &part[..part.len() - 100];
    let (_dir, path) = described(&one, &[("a.vmdk", &part), ("b.vmdk", cut)]);
    let notes = open_file(&VMDK, &path).unwrap().notes();
    assert!(
        notes.len() == 1 && notes[0].starts_with("extent 2: the file was cut off"),
        "{notes:?}"
    );
}

#[test]
fn a_descriptor_that_was_cut_off_is_told_of() {
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vmdk");
        let mut create = tools::command("qemu-img");
        create.args(["create", "-q", "-f", "vmdk", "-o"]);
        create.arg(format!("subformat={subformat}"));
        tools::run_command(create.arg(&path).arg("5G"));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("\nRW ").count(), 3);
        let first = text.find("\nRW ").unwrap() + 1;
        let ends = text[first..].match_indices('\n');
        let mut sizes = Vec::new();
        for end in ends.map(|(at, _)| first + at + 1) {
            fs::write(&path, &text[..end]).unwrap();
            let volume = open_file(&VMDK, &path).unwrap();
            let notes = volume.notes();
            let is_noted = notes.iter().any(|note| note.contains("cut off"));
            assert_eq!(is_noted, !text[..end].contains("ddb."), "{end}: {notes:?}");
            assert!(is_noted || volume.size() == 5 << 30);
            sizes.push(volume.size());
        }
        assert_eq!(sizes[..3], [2 << 30, 4 << 30, 5 << 30]);
    }
}

/// A folder with a descriptor of these extents, and these files.
fn described(extents: &str, files: &[(&str, &[u8])]) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join("in").join(name), bytes).unwrap();
    }
    let path = dir.path().join("in/disk.vmdk");
    fs::write(&path, descriptor(extents)).unwrap();
    (dir, path)
}

fn descriptor(extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"custom\"\n\n{extents}\n\nddb.adapterType = \"ide\"\n"
    )
}

/// A `vmfsSparse` extent: every second grain of eight sectors is there.
fn cowd(bytes: &[u8]) -> Vec<u8> {
    let grains = bytes.len().div_ceil(4096);
    let tables = grains.div_ceil(4096);
    let first = 4 + 1 + tables * 32;
    let mut header = b"COWD".to_vec();
    for word in [1, 3, bytes.len() / 512, 8, 4, tables, first] {
        header.extend((word as u32).to_le_bytes());
    }
    header.resize(4 * 512, 0);
    for table in 0..tables {
        header.extend(((5 + table * 32) as u32).to_le_bytes());
    }
    header.resize(5 * 512, 0);
    let mut data: Vec<u8> = Vec::new();
    for grain in 0..grains {
        let here = grain % 2 == 0;
        let at = if here { first + data.len() / 512 } else { 0 };
        header.extend((at as u32).to_le_bytes());
        if here {
            data.extend(&bytes[grain * 4096..grain * 4096 + 4096]);
        }
    }
    header.resize(first * 512, 0);
    header.extend(data);
    header
}

#[test]
fn extents_of_all_sorts_make_one_disk() {
    let flat = noise(20 * 512, 1);
    let bytes = disk(3);
    let sparse = made(&bytes, "monolithicSparse").bytes();
    let cowd = cowd(&bytes);
    let (_dir, path) = described(
        &format!(
            "RW 10 FLAT \"flat\" 3\nRW 7 ZERO\nRW {0} SPARSE \"sparse\"\nRW {0} VMFSSPARSE \"cowd\"\n\
             RW 5 VMFS \"flat\"\nRW 100 SPARSE \"sparse\"",
            bytes.len() / 512
        ),
        &[("flat", &flat), ("sparse", &sparse), ("cowd", &cowd)],
    );
    let mut halves = bytes.clone();
    for grain in halves.chunks_mut(4096).skip(1).step_by(2) {
        grain.fill(0);
    }
    let expected = [
        &flat[3 * 512..13 * 512],
        &[0; 7 * 512],
        &bytes,
        &halves,
        &flat[..5 * 512],
        &bytes[..100 * 512],
    ]
    .concat();
    conformance::check(|| (open_file(&VMDK, &path).unwrap(), expected.clone()));
}

#[test]
fn qemu_reads_the_same_of_a_vmfs_sparse_extent() {
    let bytes = disk(3);
    let extent = format!("RW {} VMFSSPARSE \"cowd\"", bytes.len() / 512);
    let (_dir, path) = described(&extent, &[("cowd", &cowd(&bytes))]);
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("custom", "vmfsSparse");
    fs::write(&path, text).unwrap();
    let volume = open_file(&VMDK, &path).unwrap();
    // qemu shows an extent of this type twice, one after the other.
    let theirs = qemu_reads(&path, "vmdk");
    assert!(read_all(&volume).unwrap() == theirs[..bytes.len()]);
}

#[test]
fn extents_that_lie_are_refused() {
    let flat = noise(20 * 512, 1);
    let sparse = made(&disk(3), "monolithicSparse").bytes();
    let files: &[(&str, &[u8])] = &[("flat", &flat), ("sparse", &sparse)];
    for (extents, kind, word) in [
        ("RW 21 FLAT \"flat\" 0", Kind::Corrupt, "10240 bytes"),
        ("RW 1 FLAT \"flat\" 20", Kind::Corrupt, "10240 bytes"),
        (
            "RW 1 FLAT \"flat\" 18446744073709551615",
            Kind::Corrupt,
            "flat",
        ),
        ("RW 18446744073709551615 ZERO", Kind::Corrupt, "sectors"),
        (
            "RW 9007199254740992 ZERO\nRW 9007199254740992 ZERO",
            Kind::Corrupt,
            "sectors",
        ),
        ("RW 6145 SPARSE \"sparse\"", Kind::Corrupt, "3145728 bytes"),
        ("RW 1 SPARSE \"flat\"", Kind::Corrupt, "cannot be used"),
        ("RW 0 ZERO", Kind::Corrupt, "without an extent"),
        ("", Kind::Corrupt, "without an extent"),
        ("RW 1 SESPARSE \"flat\"", Kind::Unsupported, "SESPARSE"),
        ("RW 1 VMFSRDM \"flat\"", Kind::Unsupported, "VMFSRDM"),
        ("RW 1 FLAT \"nothing\" 0", Kind::Io, "nothing"),
        ("RW 1 FLAT \"../far\" 0", Kind::Denied, "outside"),
        ("RW 1 FLAT \"/dev/null\" 0", Kind::Denied, "outside"),
        (
            "RW 1 FLAT \"disk.vmdk\" 0",
            Kind::Corrupt,
            "the image itself",
        ),
        (
            "RW 1 FLAT \"nbd:x\" 0",
            Kind::Unsupported,
            "plain file name",
        ),
        (
            "encryption.keySafe = \"x\"\nRW 1 ZERO",
            Kind::Unsupported,
            "encrypted",
        ),
    ] {
        let (dir, path) = described(extents, files);
        fs::write(dir.path().join("far"), &flat).unwrap();
        let error = error_of_file(&VMDK, &path);
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{extents}: {text}");
        assert!(text.contains(word), "{extents}: {text}");
    }
    // A part without its descriptor says what to open, and a sparse file may name others.
    let part = with(&sparse, 28, &[0]);
    let error = error_of(&VMDK, &part);
    assert!(error.report().hint.unwrap().contains("name that file"));
    assert_eq!(error_of(&VMDK, &cowd(&disk(3))).kind(), Kind::Unsupported);
    let (_dir, path) = described("", &[]);
    let hosted = with(
        &with(&sparse, 12, &[0; 8]),
        512,
        descriptor("RW 1 FLAT \"disk.vmdk\" 0\n\0").as_bytes(),
    );
    fs::write(&path, hosted).unwrap();
    assert_eq!(error_of_file(&VMDK, &path).kind(), Kind::Corrupt);
}

/// A snapshot of `base.vmdk`, with text in its second MiB.
fn snapshot(dir: &Path, base: &str, name: &str, seed: u64) {
    let mut command = tools::command("qemu-img");
    command
        .current_dir(dir)
        .args(["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", base, name]);
    tools::run_command(&mut command);
    let write = format!("write -P {seed} {} 150k", MIB + 70_000);
    let mut command = tools::command("qemu-io");
    command
        .current_dir(dir)
        .args(["-f", "vmdk", "-c", &write, name]);
    tools::run_command(&mut command);
}

#[test]
fn what_a_snapshot_does_not_have_is_in_its_parent() {
    for subformat in ["monolithicSparse", "streamOptimized", "twoGbMaxExtentFlat"] {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        fs::write(&raw, disk(4)).unwrap();
        let options = format!("subformat={subformat}");
        convert(&raw, "raw", &dir.path().join("base.vmdk"), "vmdk", &options);
        snapshot(dir.path(), "base.vmdk", "one.vmdk", 1);
        snapshot(dir.path(), "one.vmdk", "two.vmdk", 2);
        let path = dir.path().join("two.vmdk");
        let expected = qemu_reads(&path, "vmdk");
        assert!(
            expected[MIB + 70_000..MIB + 200_000]
                .iter()
                .all(|byte| *byte == 2)
        );
        let open = || (open_file(&VMDK, &path).unwrap(), expected.clone());
        assert!(read_all(&open().0).unwrap() == expected, "{subformat}");
        if subformat == "streamOptimized" {
            conformance::check(open);
        }
    }
}

#[test]
fn a_parent_that_was_changed_or_is_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    fs::write(&raw, disk(3)).unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    let folder = dir.path().join("in");
    let base = folder.join("base.vmdk");
    convert(&raw, "raw", &base, "vmdk", "subformat=monolithicSparse");
    snapshot(&folder, "base.vmdk", "one.vmdk", 1);
    let path = folder.join("one.vmdk");
    assert!(open_file(&VMDK, &path).is_ok());

    let good = fs::read(&base).unwrap();
    let text = String::from_utf8_lossy(&good[512..2048]).into_owned();
    let cid = 512 + text.find("CID=").unwrap() + 4;
    fs::write(&base, with(&good, cid, b"00000007")).unwrap();
    let error = error_of_file(&VMDK, &path);
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("00000007"), "{error}");

    fs::rename(&base, dir.path().join("base.vmdk")).unwrap();
    assert_eq!(error_of_file(&VMDK, &path).kind(), Kind::Io);
    let image = fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&image[512..2048]).into_owned();
    let hint = 512 + text.find("\"base.vmdk\"").unwrap();
    for (name, kind) in [
        ("\"../b.vmdk\"", Kind::Io),
        ("\"/base.vmd\"", Kind::Io),
        ("\"oneX.vmdk\"", Kind::Io),
        ("\"./one.vmd\"", Kind::Io),
    ] {
        fs::write(&path, with(&image, hint, name.as_bytes())).unwrap();
        let error = error_of_file(&VMDK, &path);
        let found = error.kind();
        assert!(found == kind || found == Kind::Denied, "{name}: {error}");
    }
    // By a link out of the folder, and itself.
    fs::write(&path, &image).unwrap();
    std::os::unix::fs::symlink("../base.vmdk", &base).unwrap();
    assert_eq!(error_of_file(&VMDK, &path).kind(), Kind::Denied);
    fs::remove_file(&base).unwrap();
    fs::hard_link(&path, &base).unwrap();
    assert_eq!(error_of_file(&VMDK, &path).kind(), Kind::Corrupt);
}

#[test]
fn grains_in_a_row_are_read_with_one_request() {
    let bytes = disk(4);
    for (subformat, most) in [("monolithicSparse", 1), ("streamOptimized", 8)] {
        let image = made(&bytes, subformat).bytes();
        let (below, counts) = Counting::volume(Memory::volume(image));
        let volume = (VMDK.open)(&below, &Default::default(), &cx()).unwrap();
        // What is below may not be asked for more than headers before.
        assert!(
            counts.reads() <= 4,
            "{subformat}: {} to open",
            counts.reads()
        );
        volume.read_vec(0, 512).unwrap();
        let before = counts.reads();
        // Four grains, all stored; the first of them and the table are known.
        assert!(volume.read_vec(0, 4 * 65_536).unwrap() == bytes[..4 * 65_536]);
        let took = counts.reads() - before;
        assert!(took <= most, "{subformat}: {took}");
    }
}
