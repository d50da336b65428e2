//! Random files against the bytes they were made of.

use nbdserve::Cx;
use nbdserve::testing::packed;
use proptest::prelude::*;

use crate::tools::{image, noise, open, piped, seekable, skippable, zstd};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_file_reads_as_what_it_was_made_of(
        frames in prop::collection::vec((0..900_000_usize, 0..4_usize), 1..6),
        table: bool,
        budget in prop::sample::select(vec![3_u64 << 20, 6 << 20, 64 << 20]),
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
                0 => zstd(&part, &["-1"]),
                1 => piped(&part, &["-1", "--zstd=wlog=17"]),
                2 => zstd(&part, &["-3", "--no-check"]),
                _ => skippable(7, &part[..part.len().min(100)]),
            });
            if how < 3 {
                bytes.extend(part);
            }
        }
        if table {
            file = seekable(&bytes, 250_000, verify);
        }
        let mut cx = Cx::new(budget);
        cx.verify = verify;
        let volume = open(file, &cx).unwrap();
        packed::assert_reads(&volume, &bytes, &reads);
    }
}
