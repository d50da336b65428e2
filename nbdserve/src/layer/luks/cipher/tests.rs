#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "tests with small numbers"
)]

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs
        .map(|pair| u8::from_str_radix(&pair, 16).unwrap())
        .collect()
}

/// IEEE 1619-2007, annex B: vectors 1, 2, 4 and 10, of the long ones the beginning.
#[test]
fn xts_gives_what_the_standard_has() {
    let counted: Vec<u8> = (0..512).map(|n| n as u8).collect();
    let e_pi = hex("27182818284590452353602874713526 31415926535897932384626433832795");
    let long = hex(
        "2718281828459045235360287471352662497757247093699959574966967627
         3141592653589793238462643383279502884197169399375105820974944592",
    );
    for (key, number, plain, start) in [
        (
            vec![0; 32],
            0,
            vec![0; 32],
            "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e",
        ),
        (
            [vec![0x11; 16], vec![0x22; 16]].concat(),
            0x33_3333_3333,
            vec![0x44; 32],
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        ),
        (
            e_pi,
            0,
            counted.clone(),
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
        ),
        (
            long,
            0xff,
            counted,
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
        ),
    ] {
        let sectors = Sectors {
            len: plain.len(),
            number,
            step: 1,
        };
        let (xts, iv) = (
            Xts::new(&key).unwrap(),
            Iv::new(IvSpec::Plain64, &key).unwrap(),
        );
        let mut buf = plain.clone();
        xts.run(&mut buf, sectors, &iv, Direction::Encrypt);
        assert_eq!(buf[..32], hex(start)[..]);
        xts.run(&mut buf, sectors, &iv, Direction::Decrypt);
        assert_eq!(buf, plain);
    }
}

/// Longer sectors are counted in units of 512 bytes all the same; the order of work changes nothing.
#[test]
fn sectors_of_all_lengths_are_each_by_themselves() {
    for (name, len) in [
        ("aes-xts-plain64", 64),
        ("aes-xts-plain", 48),
        ("aes-cbc-essiv:sha256", 32),
        ("aes-cbc-plain64be", 24),
    ] {
        let key: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let spec = CipherSpec::parse(name, len).unwrap();
        for sector in [512, 1024, 4096] {
            let one = SectorCipher::new(&spec, &key, sector, 1).unwrap();
            let many = SectorCipher::new(&spec, &key, sector, 8).unwrap();
            let plain: Vec<u8> = (0..1_200_000 / sector * sector)
                .map(|n| (n % 251) as u8)
                .collect();
            let number = u64::MAX - 70;
            let mut all = plain.clone();
            many.encrypt(&mut all, number);
            for (index, bytes) in plain.chunks(sector).enumerate().step_by(31) {
                let mut alone = bytes.to_vec();
                let at = number.wrapping_add((index * sector / 512) as u64);
                one.encrypt(&mut alone, at);
                assert!(
                    alone == all[index * sector..][..sector],
                    "{name} {sector} {index}"
                );
            }
            many.decrypt(&mut all, number);
            assert!(all == plain, "{name} {sector}");
        }
    }
}

#[test]
fn other_ciphers_and_keys_are_refused() {
    for name in [
        "aes",
        "aes-",
        "aes-xts",
        "aes-xts-",
        "aes-ecb",
        "AES-xts-plain64",
        "-xts-plain64",
    ] {
        let error = CipherSpec::parse(name, 64).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{name}");
    }
    for (name, len) in [
        ("aes-xts-plain64", 0),
        ("aes-xts-plain64", 16),
        ("aes-xts-plain64", 33),
        ("aes-xts-plain64", u64::MAX),
        ("aes-cbc-plain", 64),
        ("aes-cbc-plain", 17),
    ] {
        let error = CipherSpec::parse(name, len).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{name} {len}");
    }
    let spec = CipherSpec::parse("aes-xts-plain64", 64).unwrap();
    for (len, sector) in [(32, 512), (64, 0), (64, 511), (64, 16)] {
        assert!(SectorCipher::new(&spec, &vec![0; len], sector, 1).is_err());
    }
}
