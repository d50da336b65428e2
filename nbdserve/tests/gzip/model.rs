//! Random files against the bytes they were made of.

use nbdserve::{Cx, testing};
use proptest::prelude::*;

use crate::tools::{image, keeping, member, noise, open, packed};

const TOOLS: [(&str, &[&str]); 8] = [
    ("gzip", &["-1"]),
    ("gzip", &["-9", "-n"]),
    ("gzip", &["-6", "--rsyncable"]),
    ("pigz", &["-1", "-b", "64"]),
    ("pigz", &["-2", "--independent"]),
    ("pigz", &["-0"]),
    ("bgzip", &["-l", "1"]),
    ("bgzip", &["-l", "6"]),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_file_reads_as_what_it_was_made_of(
        members in prop::collection::vec((0..5_000_000_usize, 0..9_usize, 0..100_u64), 1..4),
        small in any::<bool>(),
        budget in prop::sample::select(vec![2_u64 << 20, 20 << 20, 256 << 20]),
        verify: bool,
        padding in prop::sample::select(vec![0, 0, 1, 5000]),
        reads in prop::collection::vec((any::<u32>(), 1..300_000_usize), 4..24),
    ) {
        let mut bytes = Vec::new();
        let mut file = Vec::new();
        for (len, tool, seed) in members {
            let len = if small { len / 10_000 } else { len };
            let part = match seed % 3 {
                0 => noise(len, seed),
                1 => vec![0; len],
                _ => image(len, seed),
            };
            match TOOLS.get(tool) {
                Some((program, args)) => file.extend(packed(program, &part, args)),
                None => file.extend(member(0, &[], &part)),
            }
            bytes.extend(part);
        }
        file.resize(file.len() + padding, 0);
        let folder = tempfile::tempdir().unwrap();
        // The second time from the index.
        for _ in 0..2 {
            let mut cx = keeping(Cx::new(budget), folder.path());
            cx.verify = verify;
            let volume = open(file.clone(), &cx).unwrap();
            testing::packed::assert_reads(&volume, &bytes, &reads);
        }
    }
}
