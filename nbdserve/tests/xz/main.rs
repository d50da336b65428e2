//! The xz layer against the `xz` tool.
#![allow(clippy::unwrap_used)]

mod conformance;
mod damage;
mod forge;
mod frontier;
mod kept;
mod model;
mod tools;

use nbdserve::{Access, Kind};
use tools::{MIB, Probe, image, noise, open, open_on, read, roomy, try_read_all, xz};

/// Compresses `bytes` and compares all that the layer reads.
fn assert_reads_back(bytes: &[u8], compressed: Vec<u8>) {
    let volume = open(compressed, &roomy()).unwrap();
    assert_eq!(volume.size(), bytes.len() as u64);
    assert!(try_read_all(&volume).unwrap() == bytes, "other bytes");
}

#[test]
fn all_check_types_block_sizes_and_filters_read_back() {
    let bytes = image(3 * MIB, 1);
    for args in [
        &["-0", "--check=none"][..],
        &["-0", "--check=crc32", "--block-size=100000"],
        &["-1", "--check=crc64", "-T2", "--block-size=1MiB"],
        &["-0", "--check=sha256", "--block-size=777777"],
        &["--x86", "--lzma2=preset=0"],
        &["--delta=dist=4", "--x86", "--lzma2=preset=0,dict=4KiB"],
        &["-9e", "--block-size=2MiB"],
        &["-0", "--block-list=1,5,4096,100000,0"],
    ] {
        assert_reads_back(&bytes, xz(&bytes, args));
    }
}

#[test]
fn streams_padding_and_empty_streams_are_one_image() {
    let parts = [noise(50_000, 1), Vec::new(), image(MIB, 2), vec![7; 5]];
    let mut compressed = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let check = ["--check=crc32", "--check=none", "--check=sha256"][number % 3];
        compressed.extend(xz(part, &["-0", check, "--block-size=30000"]));
        compressed.extend(vec![0; 4 * number]);
    }
    assert_reads_back(&parts.concat(), compressed);
}

#[test]
fn an_empty_file_and_an_empty_stream_are_told_apart() {
    assert_reads_back(&[], xz(&[], &[]));
    let error = open(Vec::new(), &roomy()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
}

#[test]
fn parallel_unaligned_readers_all_see_the_image() {
    let bytes = image(4 * MIB, 3);
    let volume = open(xz(&bytes, &["-0", "--block-size=300000"]), &roomy()).unwrap();
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

#[test]
fn many_readers_of_one_block_cost_one_decode_of_it() {
    let bytes = noise(4 * MIB, 9);
    let compressed = xz(&bytes, &["-0", "--block-size=1000000"]);
    let probe = Probe::new(compressed);
    let volume = open_on(&probe.volume(), &roomy()).unwrap();
    probe.take_reads();
    // The first block's bytes are held back until all readers are there.
    probe.hold_from(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..16)
            .map(|n| {
                let volume = &volume;
                scope.spawn(move || read(volume, n * 60_000, 5000).unwrap())
            })
            .collect();
        probe.wait_for_reads(1);
        probe.release();
        for (n, reader) in readers.into_iter().enumerate() {
            assert!(reader.join().unwrap() == bytes[n * 60_000..n * 60_000 + 5000]);
        }
    });
    assert_eq!(probe.take_reads().len(), 1, "a block is less than 1 MiB");
}

#[test]
fn bytes_are_served_before_the_end_of_their_block_has_been_read() {
    let bytes = noise(8 * MIB, 11);
    let probe = Probe::new(xz(&bytes, &["-0", "-T1"]));
    let volume = open_on(&probe.volume(), &roomy()).unwrap();
    assert_eq!(volume.geometry().access, Access::Block(8 << 20));
    probe.hold_from(3 << 20);
    assert!(read(&volume, MIB, 4096).unwrap() == bytes[MIB..MIB + 4096]);
    probe.release();
    assert!(try_read_all(&volume).unwrap() == bytes);
}

#[test]
fn a_source_that_fails_for_a_while_leaves_no_damage() {
    let bytes = noise(3 * MIB, 13);
    let probe = Probe::new(xz(&bytes, &["-0", "--block-size=1MiB"]));
    let volume = open_on(&probe.volume(), &roomy()).unwrap();
    probe.fail_from(Some(2 << 20));
    assert!(read(&volume, 0, 1000).unwrap() == bytes[..1000]);
    assert_eq!(read(&volume, 2 * MIB + 5, 10).unwrap_err().kind(), Kind::Io);
    probe.fail_from(None);
    assert!(try_read_all(&volume).unwrap() == bytes);
}
