//! The gzip layer against `gzip`, `pigz` and `bgzip`.
#![allow(clippy::unwrap_used)]

mod conformance;
mod damage;
mod index;
mod model;
mod tools;

use nbdserve::{Access, Kind};
use tools::{
    MIB, bgzip, content, gzip, image, member, noise, open, packed, read, refusal, roomy,
    try_read_all,
};

/// Compares all that the layer reads.
fn assert_reads_back(bytes: &[u8], file: Vec<u8>) {
    let volume = open(file, &roomy()).unwrap();
    assert_eq!(volume.size(), bytes.len() as u64);
    assert!(try_read_all(&volume).unwrap() == bytes, "other bytes");
}

#[test]
fn what_every_tool_makes_reads_back() {
    let bytes = image(9 * MIB + 4711, 1);
    for (program, args) in [
        ("gzip", &["-1"][..]),
        ("gzip", &["-6", "-n"]),
        ("gzip", &["-9", "--rsyncable"]),
        ("pigz", &["-1", "-p", "3"]),
        ("pigz", &["-6", "--independent", "-b", "128"]),
        ("pigz", &["-0"]),
        ("pigz", &["-3", "--huffman"]),
        ("pigz", &["-3", "--rle"]),
        ("bgzip", &["-l", "1"]),
        ("bgzip", &["-l", "9", "-@", "2"]),
        ("bgzip", &["-l", "0"]),
    ] {
        println!("{program} {args:?}");
        assert_reads_back(&bytes, packed(program, &bytes, args));
    }
}

#[test]
fn members_of_all_tools_one_after_the_other_are_one_image() {
    let parts = [
        noise(50_000, 1),
        Vec::new(),
        image(6 * MIB, 2),
        vec![7; 5],
        image(2 * MIB, 3),
        image(3 * MIB, 4),
        Vec::new(),
    ];
    let programs = ["gzip", "pigz", "bgzip", "gzip", "bgzip", "pigz", "bgzip"];
    let mut file = Vec::new();
    for (part, program) in parts.iter().zip(programs) {
        file.extend(packed(
            program,
            part,
            &["-n"][..usize::from(program == "gzip")],
        ));
    }
    assert_reads_back(&parts.concat(), file);
}

#[test]
fn thousands_of_small_members_are_one_image() {
    let line = |n: usize| format!("member {n}\n").repeat(n % 7);
    let mut file = Vec::new();
    let mut bytes = Vec::new();
    for n in 0..20_000 {
        file.extend(member(0, &[], line(n).as_bytes()));
        bytes.extend(line(n).bytes());
    }
    let volume = open(file, &roomy()).unwrap();
    assert!(try_read_all(&volume).unwrap() == bytes);
    assert_eq!(volume.geometry().access, Access::Random, "less than 1 MiB");
}

#[test]
fn headers_may_have_everything() {
    let bytes = image(100_000, 3);
    let long = vec![b'n'; 3 * MIB];
    let extra = [&[0xff, 0xff][..], &noise(0xffff, 2)].concat();
    let text = [&b"name\0comment"[..], &long, &[0]].concat();
    for (flags, rest) in [
        (1, &b""[..]),
        (4, &[0, 0][..]),
        (4, &extra[..]),
        (8, b"name\0"),
        (16, b"\0"),
        (24, &text[..]),
    ] {
        let file = member(flags, rest, &bytes);
        assert!(content(&file).unwrap() == bytes, "{flags}");
        // And with a checksum over all that.
        let header = [&[0x1f, 0x8b, 8, flags | 2, 0, 0, 0, 0, 0, 255], rest].concat();
        let crc = crc32fast::hash(&header) as u16;
        let rest = [rest, &crc.to_le_bytes()].concat();
        assert!(content(&member(flags | 2, &rest, &bytes)).unwrap() == bytes);
        let wrong = [&rest[..rest.len() - 2], &(!crc).to_le_bytes()].concat();
        let (kind, text) = refusal(&member(flags | 2, &wrong, &bytes));
        assert_eq!(kind, Kind::Corrupt);
        assert!(text.contains("CRC of the gzip header at 0"), "{text}");
    }
}

#[test]
fn zeroes_behind_the_last_member_are_ignored_as_gzip_does() {
    let bytes = image(50_000, 5);
    for file in [gzip(&bytes), bgzip(&bytes)] {
        for zeroes in [1, 7, 511, 2 * MIB] {
            let mut padded = file.clone();
            padded.resize(file.len() + zeroes, 0);
            assert!(content(&padded).unwrap() == bytes, "{zeroes}");
        }
    }
}

#[test]
fn an_empty_file_and_an_empty_member_are_told_apart() {
    for program in ["gzip", "pigz", "bgzip"] {
        assert_reads_back(&[], packed(program, &[], &[]));
    }
    for file in [&b""[..], &[0x1f], &[0, 0], b"text"] {
        assert_eq!(refusal(file).0, Kind::NotThisFormat);
    }
}

#[test]
fn parallel_unaligned_readers_all_see_the_image() {
    let bytes = image(20 * MIB, 3);
    let volume = open(gzip(&bytes), &roomy()).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (volume, bytes) = (&volume, &bytes);
            scope.spawn(move || {
                for step in 0..50_usize {
                    let offset = (step * 7_919_311 + seed * 131_071) % bytes.len();
                    let len = (step * 37_507 % 600_000).min(bytes.len() - offset);
                    let found = read(volume, offset, len).unwrap();
                    assert!(found == bytes[offset..offset + len], "{len} at {offset}");
                }
            });
        }
    });
}
