//! VDI.

use nbdserve::Kind;
use nbdserve::layer::vdi::VDI;
use nbdserve::testing::conformance;

use crate::tools::{
    MIB, Made, a_cut_is_told_of, disk, error_of, is_probed, is_right_or_refused, lie_in_each_field,
    open_bytes, our_data, qemu_data, read_all, with,
};

#[test]
fn the_suite_holds_on_what_qemu_makes() {
    for options in ["", "static=on"] {
        let disk = disk(5);
        let image = Made::new(&disk, "vdi", options).bytes();
        conformance::check(|| (open_bytes(&VDI, &image).unwrap(), disk.clone()));
    }
    let image = Made::new(&disk(3), "vdi", "").bytes();
    conformance::check_errors("vdi", &image, |below| {
        (VDI.open)(below, &Default::default(), &crate::tools::cx())
    });
}

#[test]
fn holes_are_those_of_qemu() {
    let mut disk = disk(9);
    disk[3 * MIB..6 * MIB].fill(0);
    let made = Made::new(&disk, "vdi", "");
    let volume = open_bytes(&VDI, &made.bytes()).unwrap();
    assert_eq!(our_data(&volume), qemu_data(&made.image, "vdi"));
    assert!(our_data(&volume).len() > 1);
}

#[test]
fn a_disk_that_is_no_multiple_of_blocks_is_cut_where_it_ends() {
    let mut disk = disk(4);
    disk.truncate(3 * MIB + 512 * 7);
    let image = Made::new(&disk, "vdi", "").bytes();
    let volume = open_bytes(&VDI, &image).unwrap();
    assert!(read_all(&volume).unwrap() == disk);
}

#[test]
fn a_discarded_block_is_zero() {
    let disk = disk(3);
    let image = Made::new(&disk, "vdi", "").bytes();
    let map = u32::from_le_bytes(image[0x154..0x158].try_into().unwrap()) as usize;
    let image = with(&image, map + 4, &[0xfe, 0xff, 0xff, 0xff]);
    let volume = open_bytes(&VDI, &image).unwrap();
    let found = read_all(&volume).unwrap();
    assert!(found[..MIB] == disk[..MIB] && found[2 * MIB..] == disk[2 * MIB..]);
    assert!(found[MIB..2 * MIB].iter().all(|byte| *byte == 0));
    assert!(!our_data(&volume).contains(&(0, 3 << 20)));
}

/// All fields of the header that are looked at.
const FIELDS: &[(usize, usize)] = &[
    (0x40, 4),
    (0x44, 4),
    (0x48, 4),
    (0x4c, 4),
    (0x154, 4),
    (0x158, 4),
    (0x168, 4),
    (0x170, 8),
    (0x178, 4),
    (0x17c, 4),
    (0x180, 4),
    (0x184, 4),
];

#[test]
fn every_field_may_lie() {
    let image = Made::new(&disk(3), "vdi", "").bytes();
    assert!(is_probed(&VDI, &image).unwrap().contains("dynamic"));
    lie_in_each_field(
        &image,
        FIELDS,
        |_| {},
        |bytes, what| {
            is_right_or_refused(&VDI, bytes, what);
        },
    );
    // Entries of the block map.
    let map = u32::from_le_bytes(image[0x154..0x158].try_into().unwrap()) as usize;
    let wrong = error_of(&VDI, &with(&image, map, &[0xfd, 0xff, 0xff, 0xff]));
    assert_eq!(wrong.kind(), Kind::Corrupt, "{wrong}");
    assert!(wrong.to_string().contains("block 0"), "{wrong}");
}

#[test]
fn each_lie_is_named() {
    let image = Made::new(&disk(3), "vdi", "").bytes();
    for (at, new, kind, word) in [
        (0x40, &[0][..], Kind::NotThisFormat, "magic"),
        (0x44, &[0, 0, 1, 0], Kind::Unsupported, "version 1.0"),
        (0x4c, &[4], Kind::Unsupported, "differencing"),
        (0x4c, &[3], Kind::Unsupported, "differencing"),
        (0x4c, &[5], Kind::Corrupt, "type 5"),
        (0x1a8, &[7], Kind::Unsupported, "differencing"),
        (0x1b8, &[7], Kind::Unsupported, "differencing"),
        (0x168, &[0, 16], Kind::Unsupported, "4096"),
        (0x17c, &[1], Kind::Unsupported, "before each block"),
        (0x178, &[0, 0, 0x11, 0], Kind::Corrupt, "power of two"),
        (0x178, &[0, 1, 0, 0], Kind::Corrupt, "power of two"),
        (0x180, &[2, 0, 0, 0], Kind::Corrupt, "takes 3"),
        (0x176, &[1], Kind::Corrupt, "takes"),
        (0x154, &[0, 0, 0, 0], Kind::Corrupt, "in the way"),
        (0x158, &[0, 0, 0, 0], Kind::Corrupt, "in the way"),
    ] {
        let error = error_of(&VDI, &with(&image, at, new));
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_is_corrupt() {
    let image = Made::new(&disk(3), "vdi", "").bytes();
    for len in [
        0x44,
        0x100,
        0x155,
        0x170,
        0x1c7,
        0x1c8,
        0x200,
        MIB,
        image.len() - 4096,
    ] {
        let error = error_of(&VDI, &image[..len]);
        assert_eq!(error.kind(), Kind::Corrupt, "{len}: {error}");
    }
}

#[test]
fn what_was_cut_off_is_told_of() {
    for options in ["", "static=on"] {
        let disk = disk(3);
        let image = Made::new(&disk, "vdi", options).bytes();
        for missing in [1, 4096, MIB, MIB + 1] {
            a_cut_is_told_of(&VDI, &image, image.len() - missing, &disk);
        }
    }
    // The last block may end where the disk does.
    let mut short = disk(3);
    short.truncate(2 * MIB + 512 * 7);
    let image = Made::new(&short, "vdi", "").bytes();
    let volume = open_bytes(&VDI, &image[..image.len() - MIB + 512 * 7]).unwrap();
    assert!(read_all(&volume).unwrap() == short && volume.notes().is_empty());
}
