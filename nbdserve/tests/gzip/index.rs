//! What the index promises: one span for a cold read, no second pass, little memory and disk.

use std::sync::Arc;

use nbdserve::{Access, ByteRange, Cx, Kind};

use crate::tools::{
    MIB, Witness, bgzip, blocks, counted, decodes, gzip, image, indexes, keeping, member, noise,
    open, packed, read, roomy, stored, try_read_all,
};

#[test]
fn a_cold_read_decodes_one_span_and_reads_no_more_than_that() {
    let bytes = image(40 * MIB, 1);
    for file in [gzip(&bytes), packed("pigz", &bytes, &["-1"]), bgzip(&bytes)] {
        for at in [0, 9_999_999, 23 * MIB + 5, 40 * MIB - 4096] {
            let (volume, counts) = counted(&file, &roomy());
            assert_eq!(decodes(&volume), 0, "the pass is no decode of a span");
            counts.reset();
            assert!(read(&volume, at, 4096).unwrap() == bytes[at..at + 4096]);
            assert!(decodes(&volume) <= 1, "{}", decodes(&volume));
            // A span of noise is no shorter than what it decodes to.
            assert!(counts.read_bytes() < 5 << 20, "{}", counts.read_bytes());
            assert!(counts.reads() <= 6, "{}", counts.reads());
        }
    }
}

#[test]
fn the_pass_reads_each_byte_once_in_order_in_large_requests() {
    let bytes = noise(9 * MIB, 2);
    for file in [gzip(&bytes), bgzip(&bytes)] {
        let (_, counts) = counted(&file, &roomy());
        let ranges = counts.read_ranges();
        // The magic is looked at before.
        assert_eq!(ranges[0], ByteRange::between(0, 4));
        let mut at = 0;
        for range in &ranges[1..] {
            assert_eq!(range.start(), at);
            at = range.end();
        }
        assert_eq!(at, file.len() as u64);
        assert!(ranges.len() <= file.len() / MIB + 2, "{}", ranges.len());
    }
}

#[test]
fn a_second_opening_makes_no_pass() {
    let bytes = image(30 * MIB, 3);
    for file in [gzip(&bytes), bgzip(&bytes)] {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = counted(&file, &keeping(roomy(), folder.path()));
        assert!(try_read_all(&first).unwrap() == bytes);
        let (second, counts) = counted(&file, &keeping(roomy(), folder.path()));
        assert_eq!((counts.reads(), counts.read_bytes()), (1, 4));
        assert_eq!(second.geometry(), first.geometry());
        assert!(try_read_all(&second).unwrap() == bytes);
    }
}

#[test]
fn padding_is_read_once_and_never_again() {
    let bytes = image(5 * MIB, 13);
    for mut file in [gzip(&bytes), bgzip(&bytes)] {
        let end = file.len() as u64;
        file.resize(file.len() + 20 * MIB, 0);
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let (volume, counts) = counted(&file, &keeping(roomy(), folder.path()));
            counts.reset();
            assert!(try_read_all(&volume).unwrap() == bytes);
            assert!(!counts.has_read(ByteRange::between(end, u64::MAX)));
        }
    }
}

#[test]
fn the_index_takes_less_than_one_percent_on_disk() {
    // Noise is the worst: its windows cannot be packed.
    for bytes in [noise(32 * MIB, 4), image(32 * MIB, 5)] {
        for file in [gzip(&bytes), bgzip(&bytes)] {
            let folder = tempfile::tempdir().unwrap();
            open(file, &keeping(roomy(), folder.path())).unwrap();
            let size = stored(folder.path());
            println!("{size} bytes");
            assert!(size > 0 && size < bytes.len() as u64 / 100, "{size}");
        }
    }
}

#[test]
fn an_index_that_grows_too_large_is_thinned_out() {
    let bytes = noise(48 * MIB, 6);
    let file = gzip(&bytes);
    let folder = tempfile::tempdir().unwrap();
    // Of 2 MiB an eighth: seven windows of noise.
    let volume = open(file, &keeping(Cx::new(2 << 20), folder.path())).unwrap();
    assert!(stored(folder.path()) < 270_000, "{}", stored(folder.path()));
    let Access::Block(longest) = volume.geometry().access else {
        panic!("spans are still shorter than what counts as a pass");
    };
    assert!((8 << 20..9 << 20).contains(&longest), "{longest}");
    assert!(try_read_all(&volume).unwrap() == bytes);
}

#[test]
fn an_index_of_a_mount_with_more_memory_is_used_with_less() {
    let bytes = noise(40 * MIB, 12);
    let file = gzip(&bytes);
    let folder = tempfile::tempdir().unwrap();
    open(file.clone(), &keeping(roomy(), folder.path())).unwrap();
    let kept = stored(folder.path());
    // Of 2 MiB an eighth, and at most four times that for what was kept.
    let (volume, counts) = counted(&file, &keeping(Cx::new(2 << 20), folder.path()));
    assert_eq!(counts.read_bytes(), 4);
    assert_eq!(stored(folder.path()), kept);
    let Access::Block(longest) = volume.geometry().access else {
        panic!("spans are still shorter than what counts as a pass");
    };
    assert!((8 << 20..9 << 20).contains(&longest), "{longest}");
    assert!(try_read_all(&volume).unwrap() == bytes);
    // Too much: found out anew, and kept in the place of the other.
    let (_, counts) = counted(&file, &keeping(Cx::new(256 << 10), folder.path()));
    assert!(counts.read_bytes() > file.len() as u64);
    assert!(stored(folder.path()) < kept);
}

#[test]
fn zeroes_are_known_from_the_index_without_decoding() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 128 * MIB];
    bytes[77 * MIB] = 1;
    let files = [gzip(&bytes), bgzip(&bytes)];
    for (number, file) in [&files[0], &files[0], &files[1], &files[1]]
        .iter()
        .enumerate()
    {
        println!("{number}");
        let (volume, counts) = counted(file, &keeping(roomy(), folder.path()));
        counts.reset();
        let extents = volume.extents(ByteRange::between(0, volume.size()));
        let extents = extents.unwrap();
        let zero = extents.runs().iter().filter(|run| run.flags.zero);
        let zero: u64 = zero.map(|run| run.range.len()).sum();
        assert!(zero > 110 << 20, "{zero}");
        assert!(read(&volume, 100 * MIB, MIB).unwrap() == vec![0; MIB]);
        assert_eq!((counts.reads(), decodes(&volume)), (0, 0));
        assert!(read(&volume, 77 * MIB - 1, 3).unwrap() == [0, 1, 0]);
    }
}

#[test]
fn members_of_a_megabyte_are_entered_without_a_window() {
    let parts: Vec<_> = (0..12).map(|n| noise(MIB + 1000, n)).collect();
    let file: Vec<_> = parts.iter().flat_map(|part| gzip(part)).collect();
    let folder = tempfile::tempdir().unwrap();
    let volume = open(file, &keeping(roomy(), folder.path())).unwrap();
    assert_eq!(volume.geometry().access, Access::Block((1 << 20) + 1000));
    assert!(stored(folder.path()) < 1000, "{}", stored(folder.path()));
    assert!(try_read_all(&volume).unwrap() == parts.concat());
}

#[test]
fn an_index_in_the_cache_that_is_damaged_or_of_another_file_costs_a_pass() {
    let (one, two) = (image(12 * MIB, 7), image(13 * MIB, 8));
    let (file, other) = (gzip(&one), gzip(&two));
    let folder = tempfile::tempdir().unwrap();
    open(file.clone(), &keeping(roomy(), folder.path())).unwrap();
    // Another file under the same name.
    let volume = open(other.clone(), &keeping(roomy(), folder.path())).unwrap();
    assert!(try_read_all(&volume).unwrap() == two);
    let volume = open(file.clone(), &keeping(roomy(), folder.path())).unwrap();
    assert!(try_read_all(&volume).unwrap() == one);
    for path in indexes(folder.path()) {
        let mut kept = std::fs::read(&path).unwrap();
        let last = kept.len() - 1;
        kept[last] ^= 1;
        std::fs::write(&path, kept).unwrap();
    }
    let (volume, counts) = counted(&file, &keeping(roomy(), folder.path()));
    assert!(counts.read_bytes() >= file.len() as u64);
    assert!(try_read_all(&volume).unwrap() == one);
}

#[test]
fn a_file_that_changed_under_its_index_is_an_error_and_never_other_bytes() {
    let bytes = image(16 * MIB, 9);
    let file = gzip(&bytes);
    let folder = tempfile::tempdir().unwrap();
    open(file.clone(), &keeping(roomy(), folder.path())).unwrap();
    // Same length, so that only checksums can tell: in the middle of the second span.
    let mut changed = file.clone();
    let at = file.len() / 3;
    changed[at] ^= 0x10;
    let mut cx = keeping(roomy(), folder.path());
    cx.verify = true;
    let (volume, counts) = counted(&changed, &cx);
    assert_eq!(counts.reads(), 1, "the index was used");
    let mut failed = 0;
    for start in (0..bytes.len()).step_by(MIB) {
        match read(&volume, start, MIB) {
            Ok(found) => assert!(found == bytes[start..start + MIB]),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt);
                failed += 1;
            }
        }
    }
    assert!((1..=6).contains(&failed), "{failed} MiB of one span");
}

#[test]
fn the_user_is_told_of_the_pass_and_can_end_it() {
    let file = gzip(&image(8 * MIB, 10));
    let witness = Arc::new(Witness::default());
    let mut cx = roomy();
    cx.observer = witness.clone();
    open(file.clone(), &cx).unwrap();
    let told = witness.0.lock().unwrap().clone();
    let (what, done, total) = told.last().unwrap();
    assert!(what.starts_with("gzip: decoding once"), "{what}");
    assert_eq!((*done, *total), (file.len() as u64, file.len() as u64));

    for file in [file, bgzip(&noise(MIB, 1)), member(8, &[b'n'; MIB], &[])] {
        let cx = roomy();
        cx.cancel.cancel();
        let error = open(file, &cx).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.to_string().contains("stopped"), "{error}");
    }
}

#[test]
fn a_bgzip_file_is_opened_without_decoding_it() {
    let bytes = image(5 * MIB, 11);
    let mut file = bgzip(&bytes);
    let starts = blocks(&file);
    // What decoding would find is found when it is read, in its span.
    let wrong = starts[starts.len() / 2];
    file[wrong + 30] ^= 0xff;
    let volume = open(file, &roomy()).unwrap();
    assert_eq!(volume.size(), bytes.len() as u64);
    assert_eq!(try_read_all(&volume).unwrap_err().kind(), Kind::Corrupt);
    assert!(read(&volume, 0, MIB).unwrap() == bytes[..MIB]);
}
