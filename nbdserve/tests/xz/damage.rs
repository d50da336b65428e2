//! Files that are damaged or that lie.

use std::sync::Arc;

use nbdserve::testing::conformance::read_all;
use nbdserve::testing::packed;
use nbdserve::{Cx, Kind};
use proptest::prelude::*;

use crate::forge;
use crate::tools::{
    MIB, Probe, Witness, image, noise, open, open_on, read, roomy, try_read_all, verifying, xz,
};

fn kind_of_open(file: Vec<u8>, cx: &Cx) -> Option<Kind> {
    open(file, cx).err().map(|error| error.kind())
}

#[test]
fn a_wrong_byte_costs_its_block_and_no_other() {
    let bytes = noise(5 * MIB, 31);
    let mut file = xz(&bytes, &["-0", "--block-size=1MiB"]);
    let wrong = forge::block_offsets(&file)[2];
    file[wrong + 500_000] ^= 1;
    let witness = Arc::new(Witness::default());
    let mut cx = roomy();
    cx.observer = witness.clone();
    // Nothing is served before it is known to be right, so nothing is ever taken back.
    cx.verify = true;
    let volume = open(file, &cx).unwrap();
    for block in [0, 1, 3, 4] {
        let at = block * MIB;
        assert!(read(&volume, at, MIB).unwrap() == bytes[at..at + MIB]);
    }
    for at in [2 * MIB, 3 * MIB - 1, 2 * MIB] {
        let error = read(&volume, at, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        assert!(text.contains(&format!("xz: block 2 at {wrong} ")), "{text}");
        assert!(text.contains("check"), "{text}");
    }
    assert_eq!(witness.poisoned(), Vec::<String>::new());
}

#[test]
fn bytes_that_were_served_before_the_check_failed_are_taken_back_once() {
    let bytes = noise(6 * MIB, 32);
    let mut file = xz(&bytes, &["-0", "--block-size=3MiB"]);
    let blocks = forge::block_offsets(&file);
    file[blocks[1] - 1] ^= 1;
    let witness = Arc::new(Witness::default());
    let mut cx = roomy();
    cx.observer = witness.clone();
    let probe = Probe::new(file);
    let volume = open_on(&probe.volume(), &cx).unwrap();
    // The end of the block is not there yet: these bytes are served unchecked.
    probe.hold_from(2 << 20);
    assert!(read(&volume, 1000, 1000).unwrap() == bytes[1000..2000]);
    assert_eq!(witness.poisoned().len(), 0);
    probe.release();
    for _ in 0..3 {
        let error = read(&volume, 3 * MIB - 10, 10).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert_eq!(read(&volume, 1000, 1000).unwrap_err().kind(), Kind::Corrupt);
    }
    let told = witness.wait_poisoned();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("xz: block 0 at 12"), "{told:?}");
    assert!(read(&volume, 3 * MIB, 3 * MIB).unwrap() == bytes[3 * MIB..]);
    assert_eq!(probe.reads_within(0..1 << 20), 1, "decoded once, not again");
}

/// Two streams with padding between them, several blocks, in a few hundred bytes.
fn small() -> (Vec<u8>, Vec<u8>) {
    let text = image(900, 35);
    let mut file = xz(
        &text,
        &["-6", "--x86", "--lzma2=dict=4KiB", "--block-size=350"],
    );
    file.extend([0; 8]);
    file.extend(xz(b"and a second stream", &["--check=sha256", "-0"]));
    ([&text[..], b"and a second stream"].concat(), file)
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, file) = small();
    let cx = verifying(roomy());
    assert!(read_all(&open(file.clone(), &cx).unwrap()) == bytes);
    for len in 0..file.len() {
        match open(file[..len].to_vec(), &cx) {
            Err(error) => {
                let kind = error.kind();
                assert!(
                    matches!(kind, Kind::Corrupt | Kind::NotThisFormat),
                    "{error:?}"
                );
            }
            // Cut between streams, or within the padding: a whole file.
            Ok(volume) => assert!(bytes.starts_with(&read_all(&volume)), "cut at {len}"),
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_gives_an_error_or_the_right_bytes() {
    let (bytes, file) = small();
    let cx = verifying(roomy());
    let kinds = [Kind::Corrupt, Kind::Unsupported, Kind::NotThisFormat];
    let survived = packed::flips_without_effect(&file, &bytes, &kinds, |bad| {
        open(bad, &cx).and_then(|volume| try_read_all(&volume))
    });
    assert!(survived < 8, "{survived} flips were not noticed");
    assert_eq!(cx.cache.used(), 0, "what is gone takes no memory");
}

#[test]
fn trailing_garbage_is_refused() {
    let mut file = xz(b"some bytes", &[]);
    file.extend(b"garbage!");
    assert_eq!(kind_of_open(file, &roomy()), Some(Kind::Corrupt));
    let mut file = xz(b"some bytes", &[]);
    file.extend([0; 6]);
    assert_eq!(
        kind_of_open(file, &roomy()),
        Some(Kind::Corrupt),
        "padding not in fours"
    );
}

/// Changes the records of an index.
type Lie<'a> = &'a dyn Fn(&mut Vec<(u64, u64)>);

#[test]
fn an_index_that_cannot_be_true_is_refused_at_open() {
    let bytes = noise(30_000, 36);
    let file = xz(&bytes, &["-0", "--block-size=10000"]);
    let true_records = forge::records(&file);
    assert_eq!(true_records.len(), 3);
    let forged = |change: Lie<'_>| {
        let mut records = true_records.clone();
        change(&mut records);
        forge::with_index(&file, &forge::index(records.len() as u64, &records))
    };
    let lies: [Lie<'_>; 9] = [
        &|records| records[1].1 = 1 << 62,
        &|records| records.iter_mut().for_each(|one| one.1 = (1 << 63) - 1),
        &|records| records[1].0 = 1 << 62,
        &|records| records[1].0 += 4,
        &|records| records[1].0 -= 4,
        &|records| records[1].0 = 0,
        &|records| records.clear(),
        &|records| records.truncate(2),
        &|records| records.push((100, 100)),
    ];
    let cx = roomy();
    for (number, lie) in lies.into_iter().enumerate() {
        assert_eq!(
            kind_of_open(forged(lie), &cx),
            Some(Kind::Corrupt),
            "lie {number}"
        );
    }
    let endless = forge::with_index(&file, &forge::index(1 << 62, &true_records));
    assert_eq!(kind_of_open(endless, &cx), Some(Kind::Corrupt));
    assert_eq!(cx.cache.peak(), 0, "no memory was taken");
}

#[test]
fn an_index_that_lies_a_little_costs_the_blocks_it_lies_about() {
    let bytes = image(30_000, 37);
    // Without and with sizes in the block headers.
    for args in [
        &["-0", "--block-size=10000"][..],
        &["-0", "-T2", "--block-size=10000"],
    ] {
        let file = xz(&bytes, args);
        let mut records = forge::records(&file);
        records[0].1 -= 1;
        records[1].1 += 1;
        let index = forge::index(3, &records);
        let volume = open(forge::with_index(&file, &index), &roomy()).unwrap();
        assert_eq!(volume.size(), 30_000);
        for at in [9_998, 10_000, 19_999] {
            assert_eq!(
                read(&volume, at, 1).unwrap_err().kind(),
                Kind::Corrupt,
                "{at}"
            );
        }
        assert!(read(&volume, 20_000, 10_000).unwrap() == bytes[20_000..]);
    }
}

#[test]
fn a_block_that_is_said_to_be_empty_is_looked_into() {
    let bytes = image(30_000, 37);
    let file = xz(&bytes, &["-0", "--block-size=10000"]);
    for number in 0..3 {
        let mut records = forge::records(&file);
        records[number].1 = 0;
        let index = forge::index(3, &records);
        let bad = forge::with_index(&file, &index);
        assert_eq!(kind_of_open(bad, &roomy()), Some(Kind::Corrupt));
    }
    // A small one, too: ten thousand zeroes.
    let zeroes = xz(&vec![0; 20_000], &["-0", "--block-size=10000"]);
    let mut records = forge::records(&zeroes);
    records[1].1 = 0;
    let bad = forge::with_index(&zeroes, &forge::index(2, &records));
    assert_eq!(kind_of_open(bad, &roomy()), Some(Kind::Corrupt));
}

#[test]
fn header_and_footer_must_agree_and_the_footer_must_not_lie() {
    let file = xz(&[1; 100], &["--check=crc32"]);
    let other = forge::with_check(&file, 4);
    let mut mixed = file.clone();
    mixed[..12].copy_from_slice(&other[..12]);
    assert_eq!(kind_of_open(mixed, &roomy()), Some(Kind::Corrupt));
    // A footer that claims an index of 16 GiB.
    let mut lying = file.clone();
    let at = lying.len() - 12;
    lying[at + 4..at + 8].fill(0xff);
    let crc = forge::crc32(&lying[at + 4..at + 10]);
    lying[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(kind_of_open(lying, &roomy()), Some(Kind::Corrupt));
}

#[test]
fn a_check_of_an_unknown_type_is_no_obstacle() {
    let bytes = image(50_000, 38);
    let file = xz(&bytes, &["-0", "--check=crc32", "--block-size=20000"]);
    // Check 2 is reserved and has four bytes as CRC32 has.
    let volume = open(forge::with_check(&file, 2), &roomy()).unwrap();
    assert!(read_all(&volume) == bytes);
}

/// Offset of the LZMA2 properties in a block header without sizes: header size, flags, filter id,
/// size of properties.
const DICT_AT: usize = 4;

#[test]
fn a_dictionary_of_four_gib_is_refused_before_memory_is_taken() {
    let bytes = image(30_000, 39);
    let file = xz(&bytes, &["-0", "--block-size=10000"]);
    let blocks = forge::block_offsets(&file);
    let cx = roomy();
    let huge = |at| forge::with_header(&file, at, |header| header[DICT_AT] = 40);
    let error = open(huge(blocks[0]), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    let report = error.report();
    assert!(
        report
            .hint
            .is_some_and(|hint| hint.starts_with("--cache-size="))
    );
    assert!(
        report.what.contains(&cx.cache.budget().to_string()),
        "{}",
        report.what
    );
    assert_eq!(cx.cache.peak(), 0);

    // A later block is refused when it is read.
    let volume = open(huge(blocks[1]), &cx).unwrap();
    assert_eq!(read(&volume, 10_000, 1).unwrap_err().kind(), Kind::Limit);
    assert!(read(&volume, 0, 10_000).unwrap() == bytes[..10_000]);
    assert!(read(&volume, 20_000, 10_000).unwrap() == bytes[20_000..]);
    assert!(cx.cache.peak() < 32 << 20, "{}", cx.cache.peak());
}

#[test]
fn an_unknown_filter_is_unsupported_not_corrupt() {
    let file = xz(&image(30_000, 40), &["-0", "--block-size=10000"]);
    let blocks = forge::block_offsets(&file);
    let unknown = |at| forge::with_header(&file, at, |header| header[2] = 0x7e);
    assert_eq!(
        kind_of_open(unknown(blocks[0]), &roomy()),
        Some(Kind::Unsupported)
    );
    let volume = open(unknown(blocks[2]), &roomy()).unwrap();
    assert_eq!(
        read(&volume, 29_999, 1).unwrap_err().kind(),
        Kind::Unsupported
    );
    assert!(read(&volume, 0, 20_000).is_ok());
}

#[test]
fn a_block_header_that_is_damaged_is_corrupt() {
    let bytes = image(30_000, 41);
    let file = xz(&bytes, &["-0", "--block-size=10000"]);
    let blocks = forge::block_offsets(&file);
    let changes: [fn(&mut [u8]); 3] = [
        |header| header[0] = 0,
        |header| header[0] = 0xff,
        |header| header[DICT_AT] = 0,
    ];
    for change in changes {
        let mut bad = file.clone();
        change(&mut bad[blocks[0]..]);
        let volume = open(bad, &roomy()).unwrap();
        assert_eq!(read(&volume, 5, 1).unwrap_err().kind(), Kind::Corrupt);
        assert!(read(&volume, 10_000, 20_000).unwrap() == bytes[10_000..]);
    }
}

/// A file whose index is about to be changed, and its bytes.
fn forgeable() -> &'static (Vec<u8>, Vec<u8>) {
    static FILE: std::sync::OnceLock<(Vec<u8>, Vec<u8>)> = std::sync::OnceLock::new();
    FILE.get_or_init(|| {
        let bytes = image(60_000, 42);
        let file = xz(&bytes, &["-0", "--block-size=10000"]);
        (bytes, file)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn an_index_of_any_numbers_costs_no_block_it_is_right_about(
        changes in prop::collection::vec((0..6_usize, any::<bool>(), number()), 1..4),
        count in prop::option::weighted(0.2, number()),
        memory in prop::sample::select(vec![1_u64 << 20, 64 << 20]),
    ) {
        let (bytes, file) = forgeable();
        let mut records = forge::records(file);
        for (at, size, number) in changes {
            let record = &mut records[at];
            let old = if size { &mut record.1 } else { &mut record.0 };
            *old = match number {
                Number::Near(by) => old.saturating_add_signed(by),
                Number::Exact(value) => value,
            };
        }
        let count = match count {
            Some(Number::Exact(count)) => count,
            _ => records.len() as u64,
        };
        let forged = forge::with_index(file, &forge::index(count, &records));
        let mut cx = Cx::new(memory);
        cx.verify = true;
        let Ok(volume) = open(forged, &cx) else {
            return Ok(());
        };
        let true_records = forge::records(file);
        let (mut start, mut at, mut true_at) = (0, 0, 0);
        for (number, (record, true_record)) in records.iter().zip(&true_records).enumerate() {
            let len = record.1 as usize;
            let right = record == true_record && at == true_at;
            match read(&volume, start, len.min(10_000)) {
                Ok(found) if right => {
                    prop_assert!(found == bytes[number * 10_000..][..10_000], "block {}", number);
                }
                // Nothing was read.
                Ok(found) => prop_assert!(found.is_empty(), "block {} of {:?}", number, records),
                Err(_) => prop_assert!(!right, "block {} of {:?}", number, records),
            }
            start += len;
            at += record.0.next_multiple_of(4);
            true_at += true_record.0.next_multiple_of(4);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Number {
    Near(i64),
    Exact(u64),
}

fn number() -> impl Strategy<Value = Number> {
    let edges = [
        0,
        1,
        4,
        5,
        1 << 31,
        1 << 32,
        1 << 62,
        (1 << 63) - 4,
        (1 << 63) - 1,
    ];
    prop_oneof![
        (-8_i64..=8).prop_map(Number::Near),
        prop::sample::select(edges.to_vec()).prop_map(Number::Exact),
        (0..1_u64 << 63).prop_map(Number::Exact),
    ]
}
