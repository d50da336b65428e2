//! Data of all ciphers, in both directions.

use nbdserve::source::Memory;
use nbdserve::testing::{conformance, disk_like, noise};

use crate::images::{Dir, PASS, cx, file, open, open_with};

const MIB: usize = 1 << 20;

/// What qemu-img can make, as its options and as the header names it.
const QEMU: &[(&str, &str)] = &[
    (
        "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256",
        "aes-xts-plain64",
    ),
    (
        "cipher-alg=aes-128,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha1",
        "aes-xts-plain64",
    ),
    (
        "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain,hash-alg=sha512",
        "aes-xts-plain",
    ),
    (
        "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1",
        "aes-cbc-essiv:sha256",
    ),
    (
        "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha256",
        "aes-cbc-essiv:sha256",
    ),
    (
        "cipher-alg=aes-192,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha256",
        "aes-cbc-plain64",
    ),
    (
        "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain,hash-alg=sha224",
        "aes-cbc-plain",
    ),
];

#[test]
fn what_qemu_encrypts_is_read_and_what_is_written_qemu_decrypts() {
    let dir = Dir::new();
    for (options, name) in QEMU {
        let plain = disk_like(MIB + 512 * 7, 3);
        let image = dir.qemu_encrypts(&plain, options);
        let volume = open(&image, PASS).unwrap();
        assert!(conformance::read_all(&volume) == plain, "{name}");
        drop(volume);

        let volume = open_with(&file(&dir.path("image")), &[], &cx(PASS)).unwrap();
        let mut plain = plain;
        for (at, len) in [(0, 1), (511, 2), (4096, 70_000), (MIB + 17, 3000)] {
            let bytes = noise(len, at as u64);
            plain[at..at + len].copy_from_slice(&bytes);
            let writer = volume.writer().unwrap();
            writer.write_at(&bytes, at as u64, false).unwrap();
        }
        volume.writer().unwrap().flush().unwrap();
        volume.close().unwrap();
        drop(volume);
        assert!(dir.qemu_decrypts("image") == plain, "{name}");
    }
}

#[test]
fn the_suite_holds() {
    let dir = Dir::new();
    let plain = disk_like(MIB, 5);
    let image = dir.qemu_encrypts(&plain, QEMU[3].0);
    conformance::check(|| (open(&image, PASS).unwrap(), plain.clone()));
    conformance::check_writer(|| (open(&image, PASS).unwrap(), plain.clone()));
    conformance::check_errors("luks", &image, |below| open_with(below, &[], &cx(PASS)));

    // Longer sectors, written by ourselves.
    let image = dir.luks2(MIB, &["--sector-size", "4096"]);
    let below = Memory::volume(image);
    let volume = open_with(&below, &[], &cx(PASS)).unwrap();
    assert_eq!(volume.geometry().min_block, 4096);
    volume.writer().unwrap().write_at(&plain, 0, true).unwrap();
    let image = conformance::read_all(&below);
    conformance::check(|| (open(&image, PASS).unwrap(), plain.clone()));
    conformance::check_writer(|| (open(&image, PASS).unwrap(), plain.clone()));
}
