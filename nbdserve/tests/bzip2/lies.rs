//! Files that lie: magics where nothing begins, checks that are wrong.

use nbdserve::Kind;
use nbdserve::testing::Counting;
use nbdserve::testing::conformance::read_all;

use crate::forge::{BLOCK, END, Parts, bits};
use crate::opening::knowing;
use crate::tools::{bunzip2, bzip2, open, open_on, roomy, text};

/// Three blocks of a level 1 stream.
fn three() -> (Vec<u8>, Parts) {
    let bytes = text(290_000);
    let parts = Parts::of(&bzip2(&bytes, &["-1"]));
    assert_eq!(parts.blocks.len(), 3);
    (bytes, parts)
}

#[track_caller]
fn assert_reads_back(parts: &Parts, bytes: &[u8]) {
    let file = parts.file();
    assert!(bunzip2(&file) == bytes, "the reference takes it");
    let folder = tempfile::tempdir().unwrap();
    // After the pass and from its index; with room for one block and for many.
    for budget in [9 << 20, 128 << 20] {
        let cx = knowing(folder.path(), &file, budget);
        assert!(read_all(&open(file.clone(), &cx).unwrap()) == bytes);
    }
    let volume = open(file.clone(), &roomy()).unwrap();
    assert!(read_all(&volume) == bytes);
}

#[test]
fn a_magic_within_a_block_is_no_block() {
    let (bytes, parts) = three();
    assert_reads_back(&parts, &bytes);
    for block in 0..3 {
        for (magic, other) in [(BLOCK, END), (END, BLOCK)] {
            let (_, mut parts) = three();
            parts.insert(block, |_| magic.to_owned());
            assert_reads_back(&parts, &bytes);
            parts.insert(block, |_| format!("10{magic}0{other}{magic}"));
            assert_reads_back(&parts, &bytes);
        }
    }
}

#[test]
fn many_magics_within_all_blocks_are_no_blocks() {
    let (bytes, mut parts) = three();
    for block in 0..3 {
        parts.insert(block, |_| BLOCK.repeat(200) + &END.repeat(100));
    }
    assert_reads_back(&parts, &bytes);
    // Each true block is read again at most once: no more than a few times the file in all.
    let file = parts.file();
    let size = file.len() as u64;
    let (below, counts) = Counting::volume(nbdserve::source::Memory::volume(file));
    let volume = open_on(&below, &roomy()).unwrap();
    assert!(read_all(&volume) == bytes);
    assert!(counts.read_bytes() <= 4 * size, "{}", counts.read_bytes());
}

#[test]
fn the_end_of_a_stream_within_a_block_does_not_change_the_level() {
    let bytes = text(1_700_000);
    let mut parts = Parts::of(&bzip2(&bytes, &["-9"]));
    assert_eq!(parts.blocks.len(), 2);
    // The header of a stream of level 1 behind it.
    parts.insert(0, |at| {
        let end = END.to_owned() + &"0".repeat(32);
        let padding = (at + end.len()).next_multiple_of(8) - at - end.len();
        end + &"0".repeat(padding) + &bits(b"BZh1")
    });
    assert_reads_back(&parts, &bytes);
}

#[test]
fn a_wrong_check_of_a_block_or_a_stream_is_corrupt() {
    let (_, parts) = three();
    let mut file = bits(&parts.file());
    // The check of the second block, and that of the stream.
    let block = parts.start(1) + 48 + 7;
    let stream = parts.start(3) + 48 + 7;
    for (at, expected) in [
        (block, "is damaged"),
        (stream, "the stream at 0 does not match"),
    ] {
        let old = file[at..=at].to_owned();
        file.replace_range(at..=at, if old == "0" { "1" } else { "0" });
        let error = open(crate::forge::bytes(&file), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        assert!(
            text.contains(expected) || text.contains("does not match its check"),
            "{text}"
        );
        file.replace_range(at..=at, &old);
    }
}

#[test]
fn blocks_that_are_missing_doubled_or_swapped_are_noticed() {
    let changes: [fn(&mut Vec<String>); 4] = [
        |blocks| drop(blocks.remove(1)),
        |blocks| blocks.insert(1, blocks[1].clone()),
        |blocks| blocks.swap(0, 2),
        |blocks| blocks.clear(),
    ];
    for change in changes {
        let (_, mut parts) = three();
        change(&mut parts.blocks);
        let error = open(parts.file(), &roomy()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(
            error.to_string().contains("does not match its check"),
            "{error}"
        );
    }
    // More bits between blocks than none.
    let (_, mut parts) = three();
    parts.blocks[1].push('0');
    let error = open(parts.file(), &roomy()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let at = parts.start(1) / 8;
    assert!(
        error
            .to_string()
            .contains(&format!("the block at byte {at}, bit")),
        "{error}"
    );
}

#[test]
fn a_block_of_a_higher_level_than_its_stream_is_corrupt() {
    let mut file = bzip2(&nbdserve::testing::noise(450_000, 3), &["-9"]);
    for (digit, sound) in [(b'1', false), (b'4', false), (b'5', true), (b'9', true)] {
        file[3] = digit;
        let result = open(file.clone(), &roomy());
        assert_eq!(result.is_ok(), sound, "BZh{}", char::from(digit));
        if let Err(error) = result {
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        }
    }
}

/// No encoder makes a table that goes up and down without end, but a decoder takes it.
#[test]
fn a_block_that_never_ends_is_refused_before_memory_is_taken() {
    let (_, mut parts) = three();
    let cut = parts.blocks[0].len() / 2;
    // A million of selectors, of which most are cut off: the count says so many.
    parts.blocks[0].truncate(cut);
    let mut file = bits(&parts.file()[..cut / 8]);
    file.push_str(&"0".repeat(8 * 3_000_000));
    let cx = roomy();
    let error = open(crate::forge::bytes(&file), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(cx.cache.peak() <= 128 << 20);
}
