//! Data of all ciphers, in both directions.

use std::fs;

use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::{Counting, StrictDisk, conformance, disk_like, noise};
use nbdserve::{ByteRange, ExtentFlags, Volume, WriteFeatures};

use crate::images::{Dir, HEAD, PASS, cx, open, open_with};

const MIB: usize = 1 << 20;
const DATA: usize = 64 << 10;
const SUITE: usize = 256 << 10;

/// What qemu-img makes: cipher, mode, initialisation vectors, hash. It takes seconds for each.
const QEMU: [(&str, &str, &str, &str); 2] = [
    ("aes-256", "xts", "ivgen-alg=plain64", "hash-alg=sha512"),
    (
        "aes-256",
        "cbc",
        "ivgen-alg=essiv,ivgen-hash-alg=sha256",
        "hash-alg=sha1",
    ),
];

#[test]
fn what_qemu_encrypts_is_read_and_what_is_written_qemu_decrypts() {
    let dir = Dir::new();
    for (cipher, mode, iv, hash) in QEMU {
        let plain = disk_like(MIB + 512 * 7, 3);
        let options = format!("cipher-alg={cipher},cipher-mode={mode},{iv},{hash}");
        let below = Memory::volume(dir.qemu_encrypts(&plain, &options));
        let volume = open_with(&below, &[], &cx(PASS)).unwrap();
        assert!(conformance::read_all(&volume) == plain, "{options}");
        let mut plain = plain;
        for (at, len) in [(0, 1), (511, 2), (4096, 700_000), (MIB + 17, 3000)] {
            let bytes = noise(len, at as u64);
            plain[at..at + len].copy_from_slice(&bytes);
            let writer = volume.writer().unwrap();
            writer.write_at(&bytes, at as u64, false).unwrap();
        }
        volume.writer().unwrap().flush().unwrap();
        volume.close().unwrap();
        dir.write("image", &conformance::read_all(&below));
        assert!(dir.qemu_decrypts("image") == plain, "{options}");
    }
}

/// An image with a header by cryptsetup and these bytes, written by us.
fn written(header: Vec<u8>, plain: &[u8]) -> Vec<u8> {
    let below = Memory::volume(header);
    let volume = open_with(&below, &[], &cx(PASS)).unwrap();
    assert_eq!(volume.size(), plain.len() as u64);
    volume.writer().unwrap().write_at(plain, 0, true).unwrap();
    conformance::read_all(&below)
}

#[test]
fn the_suite_holds() {
    let dir = Dir::new();
    let plain = disk_like(SUITE, 5);
    let cbc = ["--cipher=aes-cbc-essiv:sha256", "--key-size=256"];
    for (header, block) in [
        (dir.luks1(SUITE, &cbc), 512),
        (dir.luks2(SUITE, &["--sector-size=4096"]), 4096),
    ] {
        let image = written(header, &plain);
        assert_eq!(open(&image, PASS).unwrap().geometry().min_block, block);
        conformance::check(|| (open(&image, PASS).unwrap(), plain.clone()));
        conformance::check_writer(|| (open(&image, PASS).unwrap(), plain.clone()));
    }
}

#[test]
fn a_set_of_hints_stays_a_set() {
    let dir = Dir::new();
    let below = Memory::volume(dir.luks1(SUITE, &[]));
    conformance::check_hint_set(&below, |below| open_with(below, &[], &cx(PASS)).unwrap());
}

#[test]
fn what_fails_below_comes_up() {
    let dir = Dir::new();
    let image = dir.luks2(DATA, &["--sector-size=4096", "--key-size=256"]);
    conformance::check_errors("luks", &image, |below| open_with(below, &[], &cx(PASS)));
}

/// qemu knows no LUKS2, but data are the same: a LUKS1 with the same volume key is put in front.
#[test]
fn data_of_luks2_are_what_qemu_decrypts_with_the_same_volume_key() {
    let dir = Dir::new();
    let plain = disk_like(MIB, 6);
    for (cipher, bits) in [
        ("aes-xts-plain64", 512),
        ("aes-xts-plain", 256),
        ("aes-cbc-essiv:sha256", 256),
        ("aes-cbc-plain64", 256),
        ("aes-cbc-plain", 128),
    ] {
        let cipher = format!("--cipher={cipher}");
        let bits = format!("--key-size={bits}");
        let image = dir.luks2(MIB, &["--sector-size=512", &cipher, &bits]);
        let key = format!("--volume-key-file={}", dir.arg("volume-key"));
        let _ = fs::remove_file(dir.path("volume-key"));
        dir.cryptsetup("luksDump", &["--dump-volume-key", &key], "image", &[]);
        let two = written(image, &plain);

        let mut one = dir.luks1(MIB, &[&cipher, &bits, &key]);
        one[HEAD..].copy_from_slice(&two[HEAD..]);
        dir.write("image", &one);
        assert!(dir.qemu_decrypts("image") == plain, "{cipher} {bits}");
    }
}

#[test]
fn many_sectors_are_the_same_on_one_core_and_on_many() {
    let dir = Dir::new();
    let plain = noise(3 * MIB + 4096, 7);
    let image = written(dir.luks2(plain.len(), &["--sector-size=4096"]), &plain);
    let mut several = cx(PASS);
    several.pool = std::sync::Arc::new(nbdserve::cache::Pool::new(4));
    let below = Memory::volume(image.clone());
    let volume = open_with(&below, &[], &several).unwrap();
    for (at, len) in [(0, plain.len()), (4096, MIB), (0, 256 << 10), (0, 4096)] {
        let found = volume.read_vec(at as u64, len).unwrap();
        assert!(found == plain[at..at + len], "{len} at {at}");
        // In small pieces nothing is shared out.
        let pieces = (at..at + len).step_by(4096);
        let pieces = pieces.map(|at| volume.read_vec(at as u64, 4096).unwrap());
        assert!(pieces.flatten().collect::<Vec<_>>() == found);
    }
    volume.writer().unwrap().write_at(&plain, 0, false).unwrap();
    assert!(conformance::read_all(&below) == image);
}

#[test]
fn a_read_is_one_read_below_and_a_write_one_write() {
    let dir = Dir::new();
    let image = dir.luks1(MIB, &[]);
    let (below, counts) = Counting::volume(Memory::volume(image));
    let volume = open_with(&below, &[], &cx(PASS)).unwrap();
    let before = counts.reads();
    volume.read_vec(0, 128 << 10).unwrap();
    assert_eq!(counts.reads() - before, 1);
    // Half sectors at both ends are read, and no others.
    volume
        .writer()
        .unwrap()
        .write_at(&[1; 1024], 700, false)
        .unwrap();
    assert_eq!(counts.reads() - before, 3);
}

#[test]
fn holes_below_are_data_and_discards_are_passed_on_only_when_that_is_asked_for() {
    let dir = Dir::new();
    let image = dir.luks2(MIB, &["--sector-size=4096"]);
    let holes = |below: &Volume| {
        let data = ByteRange::between(HEAD as u64, (HEAD + MIB) as u64);
        let extents = below.extents(data).unwrap();
        let holes = extents.runs().iter().filter(|run| run.flags.hole);
        holes.map(|run| run.range.len()).sum::<u64>()
    };
    for (name, args, expected) in [
        ("usual", &[][..], 0),
        ("no", &[("discards", "no")], 0),
        ("yes", &[("discards", "yes")], MIB as u64),
    ] {
        let path = dir.write(name, &image);
        let below = Volume::new(File::open(&path, OpenMode::Write).unwrap());
        let volume = open_with(&below, args, &cx(PASS)).unwrap();
        let writer = volume.writer().unwrap();
        writer.write_at(&vec![7; MIB], 0, true).unwrap();
        let all = ByteRange::between(0, volume.size());
        writer.trim(all, false).unwrap();
        assert_eq!(holes(&below), expected, "{args:?}");
        let extents = volume.extents(all).unwrap();
        let runs: Vec<_> = extents.runs().iter().map(|run| run.flags).collect();
        assert_eq!(runs, [ExtentFlags::DATA]);
    }
}

/// A write that was flushed is there after power was lost, and no other sector has changed.
#[test]
fn what_was_flushed_survives_a_loss_of_power() {
    let dir = Dir::new();
    let plain = disk_like(MIB, 9);
    let image = written(dir.luks2(MIB, &["--sector-size=4096"]), &plain);
    for native in [false, true] {
        let features = WriteFeatures {
            fua: native,
            ..WriteFeatures::default()
        };
        let (below, disk) = StrictDisk::new(512)
            .features(features)
            .volume(image.clone());
        let volume = open_with(&below, &[], &cx(PASS)).unwrap();
        let mut plain = plain.clone();
        let writer = volume.writer().unwrap();
        for step in 0..20 {
            let at = 1000 * step + 17;
            let bytes = noise(6000, step as u64);
            writer.write_at(&bytes, at as u64, step % 2 == 0).unwrap();
            if step % 2 == 1 {
                writer.flush().unwrap();
            }
            plain[at..at + 6000].copy_from_slice(&bytes);
            // Not flushed.
            let later = 500_000 + 10_000 * step as u64;
            writer.write_at(&noise(9000, 1), later, false).unwrap();
            let left = conformance::read_all(&open(&disk.durable(), PASS).unwrap());
            assert!(left[..500_000] == plain[..500_000], "{step}");
            assert!(left[MIB - 100_000..] == plain[MIB - 100_000..], "{step}");
        }
    }
}
