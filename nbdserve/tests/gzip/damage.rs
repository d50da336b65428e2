//! Files that are damaged or that lie.

use nbdserve::{Cx, Kind};

use crate::tools::{
    MIB, bgzip, blocks, content, decodes, gzip, image, member, noise, open, packed, read, refusal,
    roomy, try_read_all,
};

/// Two members with a name and a checksum of the header, and their bytes.
fn small() -> (Vec<u8>, usize, Vec<u8>) {
    let text = image(700, 3);
    let mut header = vec![0x1f, 0x8b, 8, 0x0a, 0, 0, 0, 0, 0, 255];
    header.extend(b"name\0");
    let crc = crc32fast::hash(&header) as u16;
    let rest = [b"name\0", &crc.to_le_bytes()[..]].concat();
    let mut file = member(0x0a, &rest, b"a first member");
    let second = file.len();
    file.extend(gzip(&text));
    (file, second, [b"a first member", &text[..]].concat())
}

#[test]
fn every_cut_is_an_error_by_name() {
    let (file, second, bytes) = small();
    assert!(content(&file).unwrap() == bytes);
    for len in 2..file.len() {
        if len == second {
            assert!(content(&file[..len]).unwrap() == b"a first member");
            continue;
        }
        let (kind, text) = refusal(&file[..len]);
        assert_eq!(kind, Kind::Corrupt, "{len}");
        assert!(text.contains("truncated"), "{len}: {text}");
    }
}

#[test]
fn every_cut_of_a_bgzip_file_is_an_error_by_name() {
    let bytes = noise(200_000, 3);
    let file = bgzip(&bytes);
    let starts = blocks(&file);
    for start in &starts {
        for len in start + 2..start + 40 {
            if starts.contains(&len) || len >= file.len() {
                continue;
            }
            let (kind, text) = refusal(&file[..len]);
            assert_eq!(kind, Kind::Corrupt, "{len}");
            assert!(text.contains("truncated"), "{len}: {text}");
        }
        // Between members: as `head -c` of whole ones, which no one can tell from a whole file.
        let (whole, rest) = (content(&file[..*start]), start % file.len());
        assert!(rest == 0 || bytes.starts_with(&whole.unwrap()));
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_harmless() {
    let (file, _, bytes) = small();
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match content(&bad) {
            Ok(found) => assert!(found == bytes, "bit {bit}"),
            Err(kind) => assert!(
                matches!(
                    kind,
                    Kind::Corrupt | Kind::Unsupported | Kind::NotThisFormat
                ),
                "bit {bit}: {kind:?}"
            ),
        }
    }
}

#[test]
fn a_wrong_checksum_or_length_is_an_error_by_name() {
    let bytes = image(300_000, 4);
    let file = gzip(&bytes);
    let trailer = file.len() - 8;
    let with = |at: usize, value: u32| {
        let mut bad = file.clone();
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bad
    };
    for value in [0, 1, u32::MAX - 1, u32::MAX] {
        let (kind, text) = refusal(&with(trailer, value));
        assert_eq!(kind, Kind::Corrupt);
        assert!(text.contains(&format!("{value:08x} is stored")), "{text}");
        assert!(text.contains("CRC32 of the gzip member at 0"), "{text}");
        let (kind, text) = refusal(&with(trailer + 4, value));
        assert_eq!(kind, Kind::Corrupt);
        assert!(text.contains("300000 bytes"), "{text}");
    }
    // Of a member that is not the last one, too.
    let two = [&with(trailer, 7), &file[..]].concat();
    assert_eq!(refusal(&two).0, Kind::Corrupt);
}

#[test]
fn trailing_garbage_is_an_error_by_name() {
    for file in [gzip(b"bytes"), bgzip(b"bytes")] {
        let end = file.len();
        for (garbage, at) in [
            (&b"x"[..], end),
            (b"garbage", end),
            (&[0, 0, 1], end + 2),
            (&[0x1f, 0x8c], end),
            // A member behind zeroes is not looked for, as with gzip.
            (&[&[0; 512][..], &file].concat(), end + 512),
        ] {
            let (kind, text) = refusal(&[&file, garbage].concat());
            assert_eq!(kind, Kind::Corrupt);
            assert!(text.contains("trailing garbage"), "{text}");
            assert!(text.contains(&format!("at {at},")), "{at}: {text}");
        }
    }
}

#[test]
fn what_is_newer_is_unsupported() {
    let file = gzip(b"bytes");
    for (at, value) in [(2, 9), (3, 0x20), (3, 0x40), (3, 0x80)] {
        let mut newer = file.clone();
        newer[at] = value;
        assert_eq!(refusal(&newer).0, Kind::Unsupported);
        // Also behind another member.
        assert_eq!(refusal(&[&file, &newer[..]].concat()).0, Kind::Unsupported);
    }
}

#[test]
fn damage_in_the_middle_is_found_when_it_is_opened() {
    let file = gzip(&noise(9 * MIB, 5));
    for at in [file.len() / 5, file.len() / 2, file.len() - 100] {
        let mut bad = file.clone();
        bad[at] ^= 1;
        assert_eq!(refusal(&bad).0, Kind::Corrupt, "{at}");
    }
}

#[test]
fn a_block_size_that_is_wrong_is_not_believed() {
    let bytes = image(3 * MIB, 6);
    let file = bgzip(&bytes);
    let starts = blocks(&file);
    for start in [starts[0], starts[3], starts[starts.len() - 1]] {
        let right = u16::from_le_bytes([file[start + 16], file[start + 17]]);
        for value in [0, 1, 25, right - 1, right + 1, u16::MAX - 1, u16::MAX] {
            let mut bad = file.clone();
            bad[start + 16..start + 18].copy_from_slice(&value.to_le_bytes());
            // gzip does not look at it: the members are as good as before.
            let found = content(&bad);
            assert!(found.as_ref() == Ok(&bytes), "{value} at {start}");
        }
    }
}

#[test]
fn a_block_whose_length_or_checksum_is_wrong_costs_its_span_only() {
    let bytes = noise(4 * MIB, 7);
    let file = bgzip(&bytes);
    let starts = blocks(&file);
    let end = starts[starts.len() / 2];
    let len = u32::from_le_bytes(file[end - 4..end].try_into().unwrap());
    for (at, value) in [
        (end - 4, 0),
        (end - 4, 1),
        (end - 4, len - 1),
        (end - 4, len + 1),
        (end - 4, 1 << 16),
        (end - 8, 0),
        (end - 8, u32::MAX),
    ] {
        let mut bad = file.clone();
        bad[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        let mut cx = roomy();
        cx.verify = true;
        let volume = open(bad, &cx).unwrap();
        assert_eq!(try_read_all(&volume).unwrap_err().kind(), Kind::Corrupt);
        assert!(read(&volume, 0, MIB).unwrap() == bytes[..MIB]);
        let tail = volume.size() as usize - MIB;
        assert!(read(&volume, tail, MIB).unwrap() == bytes[3 * MIB..]);
    }
    // More than a block can hold: decoded, then, and the length is wrong.
    for value in [(1 << 16) + 1, u32::MAX - 1, u32::MAX] {
        let mut bad = file.clone();
        bad[end - 4..end].copy_from_slice(&value.to_le_bytes());
        assert_eq!(refusal(&bad).0, Kind::Corrupt, "{value}");
    }
}

#[test]
fn blocks_that_decode_to_nothing_are_looked_into() {
    let mut file = bgzip(&[]);
    assert_eq!(content(&file), Ok(vec![]));
    let crc = file.len() - 8;
    file[crc] ^= 1;
    assert_eq!(refusal(&file).0, Kind::Corrupt);
    // Empty ones around others, too.
    let good = bgzip(b"some bytes");
    for bad in [[&file[..], &good].concat(), [&good[..], &file].concat()] {
        assert_eq!(content(&bad), Err(Kind::Corrupt));
    }
}

#[test]
fn a_bomb_takes_little_memory_and_no_time_to_read() {
    // 128 MiB of zeroes in gzip in gzip.
    let inner = packed("pigz", &vec![0; 128 * MIB], &["-9"]);
    let outer = gzip(&inner);
    assert!(outer.len() < 10_000, "{}", outer.len());
    let cx = Cx::new(16 << 20);
    let middle = open(outer, &cx).unwrap();
    let volume = crate::tools::open_on(&middle, &cx).unwrap();
    assert_eq!(volume.size(), 128 << 20);
    let peak = cx.cache.peak();
    assert!(read(&volume, 100 * MIB, MIB).unwrap() == vec![0; MIB]);
    assert_eq!(decodes(&volume), 0);
    assert!(peak <= 16 << 20, "{peak}");
}
