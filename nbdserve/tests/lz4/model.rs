//! Random files against the bytes they were made of.

use nbdserve::Cx;
use nbdserve::testing::packed;
use proptest::prelude::*;

use crate::tools::{image, lz4, lz4_sized, noise, open, skippable};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_file_reads_as_what_it_was_made_of(
        frames in prop::collection::vec((0..900_000_usize, 0..6_usize), 1..6),
        budget in prop::sample::select(vec![24_u64 << 20, 64 << 20]),
        verify: bool,
        reads in prop::collection::vec((any::<u32>(), 1..300_000_usize), 4..24),
    ) {
        let mut bytes = Vec::new();
        let mut file = Vec::new();
        for (number, (len, how)) in frames.into_iter().enumerate() {
            let part = match number % 2 {
                0 => image(len, how as u64),
                _ => noise(len, how as u64),
            };
            file.extend(match how {
                0 => lz4(&part, &["-B4"]),
                1 => lz4(&part, &["-B5", "-BD", "-BX"]),
                2 => lz4_sized(&part, &["-B4"]),
                3 => lz4(&part, &["-l"]),
                4 => lz4(&part, &["-9", "-BD", "-B4", "--no-frame-crc"]),
                _ => skippable(7, &part[..part.len().min(100)]),
            });
            if how < 5 {
                bytes.extend(part);
            }
        }
        let mut cx = Cx::new(budget);
        cx.verify = verify;
        let volume = open(file, &cx).unwrap();
        packed::assert_reads(&volume, &bytes, &reads);
    }
}
