use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs
        .map(|pair| u8::from_str_radix(&pair, 16).unwrap())
        .collect()
}

fn cipher(name: &str, key: &[u8], sector: usize) -> SectorCipher {
    let spec = CipherSpec::parse(name, key.len() as u64).unwrap();
    SectorCipher::new(&spec, key, sector, 1).unwrap()
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
