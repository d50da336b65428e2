//! Differencing disks.

use nbdserve::layer::vhdx::VHDX;
use nbdserve::testing::{conformance, noise};
use nbdserve::{ByteRange, Kind};

use super::{HEADERS, PARAMETERS, bat, header, item, le64, made, mend_all, metadata};
use crate::tools::{MIB, disk, error_of, error_of_file, open_file, read_all, with, write};

/// A differencing disk made of a copy of `base` with blocks of one MiB: the first is partly here, the
/// second not at all, the third wholly.
fn differencing(
    base: &[u8],
    base_disk: &[u8],
    relative: &str,
    absolute: &str,
) -> (Vec<u8>, Vec<u8>) {
    let mut image = base.to_vec();
    let mut expected = base_disk.to_vec();
    let parameters = item(base, PARAMETERS);
    image[parameters + 4] |= 2;
    let guid = |bytes: &[u8]| {
        let part = |range: std::ops::Range<usize>, turn: bool| -> String {
            let mut bytes = bytes[range].to_vec();
            if turn {
                bytes.reverse();
            }
            bytes.iter().map(|byte| format!("{byte:02X}")).collect()
        };
        let parts = [
            part(0..4, true),
            part(4..6, true),
            part(6..8, true),
            part(8..10, false),
            part(10..16, false),
        ];
        format!("{{{}}}", parts.join("-"))
    };
    let head = header(base);
    let linkage = guid(&base[head + 32..head + 48]);
    let mut locator = vec![
        0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59,
        0x13,
    ];
    let pairs = [
        ("parent_linkage", linkage.as_str()),
        ("relative_path", relative),
        ("absolute_win32_path", absolute),
    ];
    let pairs: Vec<_> = pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    locator.extend([0, 0, pairs.len() as u8, 0]);
    let mut text: Vec<u8> = Vec::new();
    let start = 20 + 12 * pairs.len();
    for (key, value) in &pairs {
        let wide =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let (key, value) = (wide(key), wide(value));
        let at = (start + text.len()) as u32;
        locator.extend(at.to_le_bytes());
        locator.extend((at + key.len() as u32).to_le_bytes());
        locator.extend((key.len() as u16).to_le_bytes());
        locator.extend((value.len() as u16).to_le_bytes());
        text.extend(key);
        text.extend(value);
    }
    locator.extend(text);
    // Behind the other items.
    let table = metadata(base);
    let count = image[table + 10] as usize;
    let slot = table + 32 + 32 * count;
    let place = 100 << 10;
    image[table + 10] += 1;
    image[slot..slot + 16].copy_from_slice(&[
        0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab,
        0x0c,
    ]);
    image[slot + 16..slot + 20].copy_from_slice(&(place as u32).to_le_bytes());
    image[slot + 20..slot + 24].copy_from_slice(&(locator.len() as u32).to_le_bytes());
    image[slot + 24] = 4;
    image[table + place..table + place + locator.len()].copy_from_slice(&locator);

    // The table has an entry for sector bits behind 4096 blocks of one MiB.
    let bat = bat(base);
    let bits = image.len().next_multiple_of(MIB);
    image.resize(bits + MIB, 0);
    image[bat + 8 * 4096..bat + 8 * 4096 + 8].copy_from_slice(&(bits as u64 | 6).to_le_bytes());
    image[bat] = image[bat] & !7 | 7;
    image[bat + 8..bat + 16].fill(0);
    for number in [0_usize, 2] {
        let at = le64(&image, bat + 8 * number) & !0xf_ffff;
        let new = noise(MIB, 50 + number as u64);
        image[at..at + MIB].copy_from_slice(&new);
        for sector in 0..2048 {
            let here = number == 2 || sector % 11 < 3 || (100..900).contains(&sector);
            let place = number * MIB + sector * 512;
            if here {
                image[bits + (number * 2048 + sector) / 8] |= 1 << (sector % 8);
                expected[place..place + 512]
                    .copy_from_slice(&new[sector * 512..sector * 512 + 512]);
            }
        }
    }
    let id = noise(16, image.len() as u64 + u64::from(base[0x10020]));
    for at in HEADERS {
        image[at + 32..at + 48].copy_from_slice(&id);
    }
    mend_all(&mut image);
    (image, expected)
}

#[test]
fn what_a_differencing_disk_does_not_have_is_in_its_parent() {
    let base_disk = disk(3);
    let base = made(&base_disk, "block_size=1M");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base.vhdx", &base);
    for (relative, absolute) in [
        (".\\base.vhdx", ""),
        ("..\\gone\\base.vhdx", ""),
        ("", "C:\\disks\\base.vhdx"),
        ("other.vhdx", "D:\\base.vhdx"),
    ] {
        let (image, expected) = differencing(&base, &base_disk, relative, absolute);
        let path = write(dir.path(), "child.vhdx", &image);
        let volume = open_file(&VHDX, &path).unwrap();
        assert!(
            read_all(&volume).unwrap() == expected,
            "{relative} {absolute}"
        );
    }
    let (middle, expected) = differencing(&base, &base_disk, "base.vhdx", "");
    write(dir.path(), "middle.vhdx", &middle);
    let (last, expected) = differencing_of(&middle, &base, &expected);
    let path = write(dir.path(), "last.vhdx", &last);
    conformance::check(|| (open_file(&VHDX, &path).unwrap(), expected.clone()));
}

/// A differencing disk on `middle`, which is one itself: made of `base` with the identity of `middle`.
fn differencing_of(middle: &[u8], base: &[u8], expected: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut like = base.to_vec();
    for at in HEADERS {
        like[at + 32..at + 48].copy_from_slice(&middle[at + 32..at + 48]);
    }
    differencing(&like, expected, "middle.vhdx", "")
}

#[test]
fn a_parent_that_has_changed_or_is_elsewhere_is_refused() {
    let base_disk = disk(3);
    let base = made(&base_disk, "block_size=1M");
    let dir = tempfile::tempdir().unwrap();
    let at = |relative: &str| differencing(&base, &base_disk, relative, "").0;
    let path = write(dir.path(), "in/child.vhdx", &at("base.vhdx"));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Io);
    let mut other = base.clone();
    for at in HEADERS {
        other[at + 32] ^= 1;
    }
    mend_all(&mut other);
    write(dir.path(), "in/base.vhdx", &other);
    let error = error_of_file(&VHDX, &path);
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("written to since"), "{error}");
    write(dir.path(), "out/far.vhdx", &base);
    let path = write(dir.path(), "in/child.vhdx", &at("..\\out\\far.vhdx"));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Denied);
    let path = write(dir.path(), "in/child.vhdx", &at("child.vhdx"));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Corrupt);
    let path = write(dir.path(), "in/child.vhdx", &at(""));
    assert_eq!(error_of_file(&VHDX, &path).kind(), Kind::Corrupt);
    assert_eq!(error_of(&VHDX, &at("base.vhdx")).kind(), Kind::Unsupported);
}

#[test]
fn a_locator_that_lies_is_refused() {
    let base_disk = disk(3);
    let base = made(&base_disk, "block_size=1M");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base.vhdx", &base);
    let (image, _) = differencing(&base, &base_disk, "base.vhdx", "");
    let locator = metadata(&image) + (100 << 10);
    for (at, new, kind) in [
        (0, &[0][..], Kind::Unsupported),
        (18, &[0, 0], Kind::Corrupt),
        (18, &[0xff, 0xff], Kind::Corrupt),
        (20, &[0xff; 4], Kind::Corrupt),
        (24, &[0xff; 4], Kind::Corrupt),
        (28, &[0xff; 2], Kind::Corrupt),
        (30, &[0xff; 2], Kind::Corrupt),
        (30, &[0; 2], Kind::Corrupt),
    ] {
        let path = write(dir.path(), "child.vhdx", &with(&image, locator + at, new));
        let error = error_of_file(&VHDX, &path);
        assert_eq!(error.kind(), kind, "{at}: {error}");
    }
    // Sector bits that are not there.
    let path = write(
        dir.path(),
        "child.vhdx",
        &with(&image, bat(&image) + 8 * 4096, &[0; 8]),
    );
    let error = error_of_file(&VHDX, &path);
    assert!(error.to_string().contains("sector bits"), "{error}");
    let volume = open_file(&VHDX, &path).unwrap();
    assert!(volume.extents(ByteRange::between(0, 1 << 20)).is_err());
    assert!(volume.read_vec(2 << 20, MIB).is_ok());
}
