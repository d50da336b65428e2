//! Random files against the bytes they were made of.

use nbdserve::Cx;
use nbdserve::testing::packed;
use proptest::prelude::*;

use crate::tools::{image, noise, open, xz};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_file_reads_as_what_it_was_made_of(
        streams in prop::collection::vec((0..900_000_usize, 20_000..600_000_usize, 0..5_usize), 1..4),
        budget in prop::sample::select(vec![2_u64 << 20, 5 << 20, 64 << 20]),
        verify: bool,
        reads in prop::collection::vec((any::<u32>(), 1..300_000_usize), 4..24),
    ) {
        let mut bytes = Vec::new();
        let mut file = Vec::new();
        for (number, (len, block, check)) in streams.into_iter().enumerate() {
            let part = match number % 2 {
                0 => image(len, check as u64),
                _ => noise(len, check as u64),
            };
            let check = ["none", "crc32", "crc64", "sha256", "crc64"][check];
            let args = [
                &format!("--check={check}"),
                &format!("--block-size={block}"),
                "--lzma2=preset=0,dict=64KiB",
            ];
            file.extend(xz(&part, &args.map(|arg| arg as &str)));
            file.extend(vec![0; 4 * number]);
            bytes.extend(part);
        }
        let mut cx = Cx::new(budget);
        cx.verify = verify;
        let volume = open(file, &cx).unwrap();
        packed::assert_reads(&volume, &bytes, &reads);
    }
}
