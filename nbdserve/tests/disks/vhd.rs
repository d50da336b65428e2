//! VHD.

use nbdserve::layer::vhd::VHD;
use nbdserve::source::Memory;
use nbdserve::testing::{conformance, noise, tools};
use nbdserve::{ByteRange, Cx, ExtentFlags, Kind, plan};

use crate::tools::{
    MIB, Made, a_cut_is_told_of, disk, error_of, error_of_file, is_probed, is_right_or_refused,
    lie_in_each_field, open_bytes, open_file, our_data, qemu_data, qemu_reads, read_all, with,
    write,
};

const FOOTER: usize = 512;

/// Puts the right checksum at `at` of the `len` bytes from `start` on.
fn mend(bytes: &mut [u8], start: usize, len: usize, at: usize) {
    bytes[start + at..start + at + 4].fill(0);
    let sum: u32 = bytes[start..start + len]
        .iter()
        .map(|byte| u32::from(*byte))
        .sum();
    bytes[start + at..start + at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Mends all structures of a dynamic image.
fn mend_all(bytes: &mut [u8]) {
    let end = bytes.len() - FOOTER;
    mend(bytes, 0, FOOTER, 0x40);
    mend(bytes, end, FOOTER, 0x40);
    mend(bytes, 512, 1024, 0x24);
}

/// `bytes` with others in both copies of the footer, mended.
fn in_footer(image: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let end = image.len() - FOOTER;
    let mut bytes = with(&with(image, at, new), end + at, new);
    mend_all(&mut bytes);
    bytes
}

/// `bytes` with others in the dynamic disk header, mended.
fn in_header(image: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = with(image, 512 + at, new);
    mend_all(&mut bytes);
    bytes
}

/// As the tools of the format's owner make it: exactly so many bytes.
fn dynamic(bytes: &[u8]) -> Vec<u8> {
    Made::new(bytes, "vpc", "force_size=on").bytes()
}

#[test]
fn the_suite_holds_on_what_qemu_makes() {
    for options in ["force_size=on", "subformat=fixed,force_size=on"] {
        let disk = disk(5);
        let image = Made::new(&disk, "vpc", options).bytes();
        conformance::check(|| (open_bytes(&VHD, &image).unwrap(), disk.clone()));
        conformance::check_errors("vhd", &image, |below| {
            (VHD.open)(below, &Default::default(), &crate::tools::cx())
        });
    }
}

#[test]
fn the_size_is_that_of_the_program_that_made_it() {
    // Without force_size qemu makes images for Virtual PC, which counts in cylinders.
    for options in ["", "subformat=fixed"] {
        let disk = disk(5);
        let made = Made::new(&disk, "vpc", options);
        let volume = open_file(&VHD, &made.image).unwrap();
        let theirs = qemu_reads(&made.image, "vpc");
        assert!(theirs.len() > disk.len());
        assert_eq!(volume.size(), theirs.len() as u64);
        assert!(read_all(&volume).unwrap() == theirs);
    }
    let image = dynamic(&disk(5));
    for (creator, geometry, size) in [
        (b"vpc ", [0, 150, 4, 17], 150 * 4 * 17 * 512),
        (b"qemu", [0, 100, 4, 17], 100 * 4 * 17 * 512),
        (b"win ", [0, 100, 4, 17], 5 << 20),
        (b"vbox", [0, 100, 4, 17], 5 << 20),
        (b"vpc ", [0xff, 0xff, 16, 255], 5 << 20),
        (b"vpc ", [0, 0, 4, 17], 5 << 20),
    ] {
        let image = in_footer(&in_footer(&image, 0x1c, creator), 0x38, &geometry);
        let volume = open_bytes(&VHD, &image).unwrap();
        assert_eq!(volume.size(), size, "{creator:?} {geometry:?}");
    }
}

#[test]
fn holes_are_those_of_qemu() {
    let mut disk = disk(12);
    disk[3 * MIB..9 * MIB].fill(0);
    let made = Made::new(&disk, "vpc", "force_size=on");
    let volume = open_bytes(&VHD, &made.bytes()).unwrap();
    assert_eq!(our_data(&volume), qemu_data(&made.image, "vpc"));
    assert!(our_data(&volume).len() > 1);
}

#[test]
fn each_sort_is_probed() {
    let image = dynamic(&disk(3));
    assert!(is_probed(&VHD, &image).unwrap().contains("dynamic"));
    assert!(
        is_probed(&VHD, &image[..image.len() - 1])
            .unwrap()
            .contains("at 0")
    );
    let fixed = Made::new(&disk(3), "vpc", "subformat=fixed,force_size=on").bytes();
    assert!(is_probed(&VHD, &fixed).unwrap().contains("before the end"));
    assert_eq!(is_probed(&VHD, &fixed[..fixed.len() - 1]), None);
}

/// The layers of what `file` is found to be, and how many blocks of the outermost were decoded.
fn found(file: Vec<u8>) -> (Vec<String>, u64) {
    let request = plan::Request {
        pick: plan::Pick::Disk,
        purpose: plan::Purpose::Bytes,
        ..plan::Request::default()
    };
    let cx = Cx::new(64 << 20);
    let found = plan::resolve(Memory::volume(file), "x", &request, &|_, _| None, &cx).unwrap();
    let names = found.chain.iter().skip(1).map(|one| one.name().to_owned());
    let blocks = found.chain[1].stats().blocks.unwrap();
    (names.collect(), blocks.decodes)
}

#[test]
fn a_fixed_one_that_is_compressed_in_blocks_is_known_by_its_last_block() {
    let disk = noise(4 << 20, 1);
    let fixed = Made::new(&disk, "vpc", "subformat=fixed,force_size=on").bytes();
    let xz = |bytes: &[u8]| tools::filter("xz", &["-0", "-c", "--block-size=1MiB"], bytes);
    let (layers, decodes) = found(xz(&fixed));
    assert_eq!(layers, ["xz", "vhd"]);
    assert!(decodes <= 3, "{decodes} blocks of 5");
    // Of a disk of a usual size only the first one is looked at.
    assert_eq!(found(xz(&disk)), (vec!["xz".to_owned()], 1));
    // A last block that is damaged leaves the rest as it is.
    let odd = noise((4 << 20) + 512, 2);
    let mut file = xz(&odd);
    let last = file.len() - 200;
    file[last] ^= 1;
    assert_eq!(found(file).0, ["xz"]);
}

#[test]
fn a_fixed_one_whose_footer_is_damaged_is_told_of() {
    let disk = noise(4 << 20, 1);
    let fixed = Made::new(&disk, "vpc", "subformat=fixed,force_size=on").bytes();
    let end = fixed.len() - FOOTER;
    let notes = |file: &[u8], layers: &[&str]| {
        let layers: Vec<_> = layers.iter().map(|text| text.parse().unwrap()).collect();
        let source = Memory::volume(file.to_vec());
        let found = plan::inspect(source, "x.vhd", &layers, &crate::tools::cx()).unwrap();
        let info = plan::Info::new(&found);
        let notes = info.layers.iter().flat_map(|layer| layer.notes.clone());
        (notes.collect::<Vec<_>>(), found.volume)
    };
    assert!(notes(&fixed, &[]).0.is_empty());
    for damaged in [
        with(&fixed, end + 0x30, &[0x77]),
        with(&fixed, end, b"K"),
        with(&fixed, end + 6, b"IX"),
    ] {
        let (found, volume) = notes(&damaged, &[]);
        assert_eq!(volume.size(), damaged.len() as u64);
        assert!(found.len() == 1, "{found:?}");
        assert!(found[0].contains("footer of a vhd"), "{found:?}");
        // What it says to type shows the disk.
        let layer = format!("offset:0,size={end}");
        assert!(
            found[0].contains(&format!("; --layer {layer} ")),
            "{found:?}"
        );
        let (found, volume) = notes(&damaged, &[&layer]);
        assert!(found.is_empty() && read_all(&volume).unwrap() == disk);
        // What is meant to be bytes is none of our business.
        assert!(notes(&damaged, &["raw"]).0.is_empty());
    }
    // Behind other layers, these are named too.
    let damaged = with(&fixed, end + 0x30, &[0x77]);
    let packed = tools::filter("xz", &["-0", "-c", "--block-size=1MiB"], &damaged);
    let (found, _) = notes(&packed, &[]);
    let layers = format!("--layer xz --layer offset:0,size={end} ");
    assert!(found.len() == 1 && found[0].contains(&layers), "{found:?}");
    assert!(
        notes(&with(&disk, disk.len() - FOOTER, b"connect"), &[])
            .0
            .is_empty()
    );
}

#[test]
fn the_copy_of_the_footer_is_used_when_the_other_is_damaged() {
    let disk = disk(3);
    let image = dynamic(&disk);
    let end = image.len() - FOOTER;
    for damaged in [
        with(&image, end, &[0; FOOTER]),
        with(&image, end + 0x30, &[0x77]),
        image[..end].to_vec(),
        image[..image.len() - 1].to_vec(),
        with(&image, 0, &[0; FOOTER]),
    ] {
        let volume = open_bytes(&VHD, &damaged).unwrap();
        assert!(read_all(&volume).unwrap() == disk);
    }
    let both = with(&with(&image, end + 0x30, &[0x77]), 0x30, &[0x77]);
    let error = error_of(&VHD, &both);
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("checksum"), "{error}");
}

/// Fields of the footer and of the dynamic disk header.
const FOOTER_FIELDS: &[(usize, usize)] = &[
    (0xc, 4),
    (0x10, 8),
    (0x30, 8),
    (0x38, 4),
    (0x3c, 4),
    (0x40, 4),
];
const HEADER_FIELDS: &[(usize, usize)] = &[
    (0x10, 8),
    (0x18, 4),
    (0x1c, 4),
    (0x20, 4),
    (0x24, 4),
    (0x240, 4),
    (0x248, 4),
];

#[test]
fn every_field_may_lie() {
    let image = dynamic(&disk(3));
    let end = image.len() - FOOTER;
    let shifted = |fields: &[(usize, usize)], by: usize| -> Vec<(usize, usize)> {
        fields.iter().map(|(at, width)| (at + by, *width)).collect()
    };
    for fields in [shifted(FOOTER_FIELDS, end), shifted(HEADER_FIELDS, 512)] {
        lie_in_each_field(
            &image,
            &fields,
            |bytes| mend_all(bytes),
            |bytes, what| {
                is_right_or_refused(&VHD, bytes, what);
            },
        );
        lie_in_each_field(
            &image,
            &fields,
            |_| {},
            |bytes, what| {
                is_right_or_refused(&VHD, bytes, what);
            },
        );
    }
}

#[test]
fn each_lie_is_named() {
    let image = dynamic(&disk(3));
    let table = u64::from_be_bytes(image[0x210..0x218].try_into().unwrap()) as usize;
    let fixed = Made::new(&disk(3), "vpc", "subformat=fixed,force_size=on").bytes();
    let fixed = fixed[512..].to_vec();
    for (bytes, kind, word) in [
        (
            in_footer(&image, 0xc, &[0, 2, 0, 0]),
            Kind::Unsupported,
            "version 2.0",
        ),
        (in_footer(&image, 0x3f, &[7]), Kind::Unsupported, "type 7"),
        (fixed, Kind::Corrupt, "fixed disk of"),
        (
            in_footer(&image, 0x10, &[0, 0, 0, 0, 0xff]),
            Kind::Corrupt,
            "not within",
        ),
        (
            in_footer(&image, 0x10, &[0xff; 8]),
            Kind::Corrupt,
            "not within",
        ),
        (in_footer(&image, 0x30, &[0, 1]), Kind::Corrupt, "takes"),
        (in_header(&image, 0, b"x"), Kind::Corrupt, "cxsparse"),
        (
            in_header(&image, 0x18, &[0, 9]),
            Kind::Unsupported,
            "version 9.0",
        ),
        (
            in_header(&image, 0x20, &[0, 0, 0, 0]),
            Kind::Corrupt,
            "power of two",
        ),
        (
            in_header(&image, 0x20, &[0, 0, 1, 0]),
            Kind::Corrupt,
            "power of two",
        ),
        (
            in_header(&image, 0x1c, &[0, 0, 0, 1]),
            Kind::Corrupt,
            "takes 2",
        ),
        (
            in_header(&image, 0x10, &[0xff; 8]),
            Kind::Corrupt,
            "allocation table",
        ),
        (in_footer(&image, 0x3f, &[4]), Kind::Corrupt, "parent"),
        (
            with(&image, table, &[0, 0, 0, 0]),
            Kind::Corrupt,
            "in the header",
        ),
        (
            with(&image, table, &[0xff, 0xff, 0xff, 0xfe]),
            Kind::Corrupt,
            "block 0",
        ),
    ] {
        let error = error_of(&VHD, &bytes);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn what_was_cut_off_is_told_of() {
    let disk = disk(5);
    let image = dynamic(&disk);
    // The last block has 1 MiB of the disk.
    let end = image.len() - FOOTER;
    let unused = 2 * MIB - MIB;
    for missing in [1, 4096, MIB, MIB + 1] {
        a_cut_is_told_of(&VHD, &image, end - unused - missing, &disk);
    }
    // Only the footer is missing, or the room behind the end of the disk too.
    for len in [end, end - unused] {
        let volume = open_bytes(&VHD, &image[..len]).unwrap();
        assert!(read_all(&volume).unwrap() == disk);
        let notes = volume.notes();
        assert!(
            notes.len() == 1 && notes[0].contains("no footer"),
            "{notes:?}"
        );
    }
    let damaged = open_bytes(&VHD, &with(&image, end + 100, &[1])).unwrap();
    let notes = damaged.notes().join("; ");
    assert!(notes.contains("its copy at 0: the checksum"), "{notes}");
}

#[test]
fn a_file_that_is_cut_is_corrupt() {
    let image = dynamic(&disk(3));
    for len in [512, 700, 1536, 1600, 2 * MIB] {
        let error = error_of(&VHD, &image[..len]);
        assert_eq!(error.kind(), Kind::Corrupt, "{len}: {error}");
    }
    for len in [0, 100, 511] {
        let error = error_of(&VHD, &image[..len]);
        let wanted = if len < 8 {
            Kind::NotThisFormat
        } else {
            Kind::Corrupt
        };
        assert_eq!(error.kind(), wanted, "{len}: {error}");
    }
}

/// A differencing disk on `parent`: some sectors of a block and all of another are new, a third block
/// has no table entry. Its parent is called `name` in a locator, and `unicode` in the header.
struct Difference {
    image: Vec<u8>,
    expected: Vec<u8>,
}

const BLOCK: usize = 64 << 10;

fn differencing(
    parent: &[u8],
    parent_disk: &[u8],
    name: &str,
    unicode: &str,
    size: usize,
) -> Difference {
    let id = &parent[parent.len() - FOOTER + 0x44..][..16];
    let blocks = size.div_ceil(BLOCK);
    let mut footer = parent[parent.len() - FOOTER..].to_vec();
    footer[0x10..0x18].copy_from_slice(&512_u64.to_be_bytes());
    footer[0x30..0x38].copy_from_slice(&(size as u64).to_be_bytes());
    footer[0x3c..0x40].copy_from_slice(&4_u32.to_be_bytes());
    footer[0x44..0x54].copy_from_slice(&noise(16, size as u64 + parent.len() as u64));
    footer[0x1c..0x20].copy_from_slice(b"win ");
    mend(&mut footer, 0, FOOTER, 0x40);

    let path: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xff);
    header[0x10..0x18].copy_from_slice(&2048_u64.to_be_bytes());
    header[0x18..0x1c].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
    header[0x1c..0x20].copy_from_slice(&(blocks as u32).to_be_bytes());
    header[0x20..0x24].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    header[0x28..0x38].copy_from_slice(id);
    for (at, unit) in unicode.encode_utf16().enumerate() {
        header[0x40 + 2 * at..0x42 + 2 * at].copy_from_slice(&unit.to_be_bytes());
    }
    if !name.is_empty() {
        header[0x240..0x244].copy_from_slice(b"W2ru");
        header[0x244..0x248].copy_from_slice(&512_u32.to_be_bytes());
        header[0x248..0x24c].copy_from_slice(&(path.len() as u32).to_be_bytes());
        header[0x250..0x258].copy_from_slice(&1536_u64.to_be_bytes());
    }
    mend(&mut header, 0, 1024, 0x24);

    let mut image = [&footer[..], &header].concat();
    image.extend(&path);
    image.resize(2048, 0);
    let mut expected = parent_disk.to_vec();
    expected.resize(size, 0);
    let mut table = vec![0xff; (blocks * 4).next_multiple_of(512)];
    let first = 2048 + table.len();
    for (number, block) in [0, 3].into_iter().enumerate() {
        let at = (first + number * (BLOCK + 512)) / 512;
        table[block * 4..block * 4 + 4].copy_from_slice(&(at as u32).to_be_bytes());
    }
    image.extend(table);
    for block in [0_usize, 3] {
        let new = noise(BLOCK, 100 + block as u64);
        let mut bitmap = vec![0; 512];
        for sector in 0..BLOCK / 512 {
            let is_new = block == 3 || sector % 7 < 2 || (40..60).contains(&sector);
            let at = block * BLOCK + sector * 512;
            if is_new && at < size {
                bitmap[sector / 8] |= 0x80 >> (sector % 8);
                expected[at..at + 512].copy_from_slice(&new[sector * 512..sector * 512 + 512]);
            }
        }
        image.extend(bitmap);
        image.extend(new);
    }
    image.extend(footer);
    Difference { image, expected }
}

#[test]
fn what_a_differencing_disk_does_not_have_is_in_its_parent() {
    let base_disk = disk(3);
    for options in ["force_size=on", "subformat=fixed,force_size=on"] {
        let base = Made::new(&base_disk, "vpc", options).bytes();
        for (name, unicode, size) in [
            (".\\base.vhd", "", 3 * MIB),
            ("base.vhd", "", 3 * MIB + BLOCK),
            ("..\\else\\base.vhd", "", 2 * MIB),
            ("", "base.vhd", 3 * MIB),
            ("C:\\disks\\base.vhd", "gone.vhd", 3 * MIB),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), "base.vhd", &base);
            let child = differencing(
                &base,
                &base_disk[..base_disk.len().min(size)],
                name,
                unicode,
                size,
            );
            let path = write(dir.path(), "child.vhd", &child.image);
            let volume = open_file(&VHD, &path).unwrap();
            assert!(
                read_all(&volume).unwrap() == child.expected,
                "{name} {unicode}"
            );
        }
    }
}

#[test]
fn a_chain_of_differencing_disks_is_followed() {
    let base_disk = disk(3);
    let base = dynamic(&base_disk);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base.vhd", &base);
    let middle = differencing(&base, &base_disk, "base.vhd", "", 3 * MIB);
    write(dir.path(), "middle.vhd", &middle.image);
    let last = differencing(&middle.image, &middle.expected, "middle.vhd", "", 3 * MIB);
    let path = write(dir.path(), "last.vhd", &last.image);
    let open = || (open_file(&VHD, &path).unwrap(), last.expected.clone());
    conformance::check(open);
    let (volume, _) = open();
    // Nothing below is a hole that has data.
    let extents = volume
        .extents(ByteRange::between(0, volume.size()))
        .unwrap();
    for run in extents
        .runs()
        .iter()
        .filter(|run| run.flags == ExtentFlags::HOLE)
    {
        let range = run.range.start() as usize..run.range.end() as usize;
        assert!(last.expected[range].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_parent_that_is_another_disk_or_elsewhere_is_refused() {
    let base_disk = disk(3);
    let base = dynamic(&base_disk);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| differencing(&base, &base_disk, name, "", 3 * MIB).image;
    let path = write(dir.path(), "in/child.vhd", &at("base.vhd"));
    let error = error_of_file(&VHD, &path);
    assert_eq!(error.kind(), Kind::Io, "{error}");

    let other = in_footer(&base, 0x44, &[9; 16]);
    write(dir.path(), "in/base.vhd", &other);
    let error = error_of_file(&VHD, &path);
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("not the disk"), "{error}");

    write(dir.path(), "out/far.vhd", &base);
    let path = write(dir.path(), "in/child.vhd", &at("..\\out\\far.vhd"));
    let error = error_of_file(&VHD, &path);
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(error.report().hint.unwrap().contains("--references"));

    // Itself, and one that names it.
    let path = write(dir.path(), "in/child.vhd", &at("child.vhd"));
    assert_eq!(error_of_file(&VHD, &path).kind(), Kind::Corrupt);
    let image = at("x.vhd");
    let looped = differencing(&image, &base_disk, "y.vhd", "", 3 * MIB).image;
    write(dir.path(), "in/x.vhd", &looped);
    let path = write(dir.path(), "in/y.vhd", &at("x.vhd"));
    assert_eq!(error_of_file(&VHD, &path).kind(), Kind::Corrupt);
    // In memory there is nothing beside it.
    assert_eq!(error_of(&VHD, &at("base.vhd")).kind(), Kind::Unsupported);
}

#[test]
fn a_path_that_lies_is_refused() {
    let base_disk = disk(3);
    let base = dynamic(&base_disk);
    let image = differencing(&base, &base_disk, "base.vhd", "", 3 * MIB).image;
    for (at, new) in [
        (0x248, &[0xff, 0xff, 0xff, 0xff][..]),
        (0x248, &[0, 0, 16, 1]),
        (0x250, &[0xff; 8]),
        (0x250, &[0, 0, 0, 0, 0x7f, 0, 0, 0]),
    ] {
        let error = error_of(&VHD, &in_header(&image, at, new));
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains("path of the parent"), "{error}");
    }
}
