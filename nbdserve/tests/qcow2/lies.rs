//! One test for each way an image can lie.

use nbdserve::layer::qcow2::QCOW2;
use nbdserve::layer::{Sample, Verdict};
use nbdserve::testing::conformance::{self, read_all};
use nbdserve::{Cx, Error, Kind};

use crate::forge::{
    CLUSTER, CLUSTERS, COPIED, DATA, L1, L2, disk, extensions, get64, image, open, put32, put64,
};
use crate::images::{Folder, MIB, cx};

/// The kind and the message of the error when it is opened, or all of it is read.
fn refused(file: &[u8]) -> (Kind, String) {
    let error = whole(file).expect_err("it must not be read");
    (error.kind(), error.report().to_string())
}

fn whole(file: &[u8]) -> Result<Vec<u8>, Error> {
    let volume = open(file)?;
    let len = volume.size().min(64 << 20);
    volume.read_vec(0, usize::try_from(len).unwrap())
}

/// The image with a change is refused, as `kind`, with `message`.
#[track_caller]
fn check(kind: Kind, message: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut file = image();
    change(&mut file);
    let (found, text) = refused(&file);
    assert_eq!(found, kind, "{text}");
    assert!(text.contains(message), "{text}");
}

#[test]
fn the_forged_image_is_a_good_one() {
    assert!(whole(&image()).unwrap() == disk());
    let folder = Folder::new();
    folder.write("image", &image());
    assert!(folder.oracle("image", &[]) == disk());
    folder.img(&["check", "image"]);
    conformance::check(|| (open(&image()).unwrap(), disk()));
    conformance::check_errors("qcow2", &image(), |below| {
        (QCOW2.open)(below, &nbdserve::layer::Args::new(), &cx())
    });
}

/// Fields of the header: where, how many bytes, and whether zero, one, the most but one and the most
/// are no lies.
const FIELDS: &[(usize, usize, [bool; 4])] = &[
    // magic
    (0, 4, [false; 4]),
    // version
    (4, 4, [false; 4]),
    // backing_file_offset: none; within the header; beyond.
    (8, 8, [true, false, false, false]),
    // backing_file_size, without a backing file
    (16, 4, [true; 4]),
    // cluster_bits
    (20, 4, [false; 4]),
    // size: an empty disk, one of a byte
    (24, 8, [true, true, false, false]),
    // crypt_method
    (32, 4, [true, false, false, false]),
    // l1_size: more entries are where other things are
    (36, 4, [false, true, false, false]),
    // l1_table_offset
    (40, 8, [false; 4]),
    // refcount_table_offset, which reading does without: but clusters are none of its
    (48, 8, [true, false, false, false]),
    // refcount_table_clusters
    (56, 4, [true, true, false, false]),
    // nb_snapshots: a table at zero, which is the header
    (60, 4, [true, true, true, true]),
    // snapshots_offset, without snapshots
    (64, 8, [true; 4]),
    // incompatible_features: dirty
    (72, 8, [true, true, false, false]),
    // compatible_features
    (80, 8, [true; 4]),
    // autoclear_features
    (88, 8, [true; 4]),
    // refcount_order
    (96, 4, [true, true, false, false]),
    // header_length
    (100, 4, [false; 4]),
    // compression_type: 8 bits, and reserved ones
    (104, 1, [true, false, false, false]),
];

#[test]
fn each_field_of_the_header_at_its_ends() {
    for (at, len, good) in FIELDS {
        let most = u64::MAX >> (64 - 8 * len);
        for (value, good) in [0, 1, most - 1, most].into_iter().zip(good) {
            let mut file = image();
            file[*at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            let found = whole(&file);
            match found {
                Ok(bytes) => {
                    assert!(*good, "{value:#x} at {at} is taken");
                    assert!(bytes == disk()[..bytes.len()], "{value:#x} at {at}");
                }
                Err(error) => {
                    assert!(!good, "{value:#x} at {at}: {error:?}");
                    assert!(
                        matches!(
                            error.kind(),
                            Kind::Corrupt | Kind::Unsupported | Kind::Limit | Kind::NotThisFormat
                        ),
                        "{value:#x} at {at}: {error:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_never_read_wrong() {
    let file = image();
    for len in (0..200).chain((200..file.len()).step_by(509)) {
        let file = &file[..len];
        let volume = match open(file) {
            Ok(volume) => volume,
            Err(error) => {
                assert!(len < L1 + 8, "{len}");
                // Without the magic it is another format.
                let hint = error.report().hint.unwrap_or_default();
                assert!(
                    len < 4 || hint.contains("download it again"),
                    "{len}: {error:?}"
                );
                continue;
            }
        };
        assert!(len >= L1 + 8, "{len}");
        let lost = (0..16).any(|number| {
            let at = number * CLUSTER;
            volume.read_vec(at as u64, CLUSTER).is_err()
        });
        let notes = volume.notes().join("; ");
        assert_eq!(notes.contains("was cut off"), lost, "{len}: {notes}");
        for number in 0..16 {
            let at = number * CLUSTER;
            let found = volume.read_vec(at as u64, CLUSTER);
            let data = DATA + at;
            let cut = number < CLUSTERS && data >= len;
            match found {
                Ok(found) => {
                    // What is missing of a cluster that is there in part is zero, as in QEMU.
                    let mut expected = disk()[at..at + CLUSTER].to_vec();
                    if number < CLUSTERS {
                        expected[(len - data).min(CLUSTER)..].fill(0);
                    }
                    assert!(found == expected, "cluster {number} of a file of {len}");
                }
                Err(error) => {
                    assert!(cut || len < L2 + CLUSTER, "{len}: {error:?}");
                    assert_eq!(error.kind(), Kind::Corrupt);
                    let hint = error.report().hint.unwrap_or_default();
                    assert!(hint.contains("download it again"), "{len}: {error:?}");
                }
            }
        }
    }
    // The rest of the last cluster was never written.
    let cut = &file[..file.len() - 100];
    let folder = Folder::new();
    folder.write("image", cut);
    assert!(folder.oracle("image", &[]) == whole(cut).unwrap());
}

#[test]
fn the_magic_the_version_and_the_cluster_size() {
    check(Kind::NotThisFormat, "magic", |file| file[3] = 0xfa);
    check(Kind::Unsupported, "version 4", |file| put32(file, 4, 4));
    check(Kind::Corrupt, "clusters of 2^8", |file| put32(file, 20, 8));
    check(Kind::Corrupt, "clusters of 2^22", |file| {
        put32(file, 20, 22);
    });
    check(Kind::Corrupt, "a header of 108 bytes", |file| {
        put32(file, 100, 108);
    });
    check(Kind::Corrupt, "a header of 8192 bytes", |file| {
        put32(file, 100, 8192);
    });
    check(Kind::Corrupt, "refcounts of 2^7", |file| put32(file, 96, 7));
}

#[test]
fn unknown_features_are_refused_by_the_name_that_the_image_gives() {
    check(
        Kind::Unsupported,
        "unknown features: bit 7, bit 63",
        |file| {
            put64(file, 72, 1 << 7 | 1 << 63);
        },
    );
    check(
        Kind::Unsupported,
        "\"time travel\\u{1b}\" (bit 7)",
        |file| {
            put64(file, 72, 1 << 7);
            let mut entry = vec![0, 7];
            entry.extend(b"time travel\x1b");
            entry.resize(48, 0);
            // A compatible feature of the same bit is another one.
            let mut other = vec![1, 7];
            other.extend(b"something else");
            other.resize(48, 0);
            other.extend(entry);
            extensions(file, &[(0x6803_f857, other)]);
        },
    );
    // Features that need not be known.
    let mut file = image();
    put64(&mut file, 80, u64::MAX);
    put64(&mut file, 88, u64::MAX);
    assert!(whole(&file).unwrap() == disk());
}

#[test]
fn encryption_is_refused_by_its_name() {
    check(Kind::Unsupported, "AES", |file| put32(file, 32, 1));
    check(Kind::Corrupt, "LUKS", |file| put32(file, 32, 2));
    check(Kind::Unsupported, "method 3", |file| put32(file, 32, 3));
    let folder = Folder::new();
    folder.create_encrypted("image", "1M", "x", "encrypt.format=aes");
    let error = folder.open("image").unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("AES"), "{error}");
}

#[test]
fn compression_must_be_as_its_feature_bit_says() {
    check(Kind::Corrupt, "compression zstd", |file| file[104] = 1);
    check(Kind::Corrupt, "compression zlib", |file| put64(file, 72, 8));
    check(Kind::Unsupported, "compression type 2", |file| {
        file[104] = 2;
        put64(file, 72, 8);
    });
}

#[test]
fn dirty_and_corrupt_are_told_and_read_all_the_same() {
    let mut file = image();
    put64(&mut file, 72, 3);
    let volume = open(&file).unwrap();
    assert!(read_all(&volume) == disk());
    let notes = volume.notes().join("; ");
    assert!(
        notes.contains("marked as corrupt") && notes.contains("was not closed"),
        "{notes}"
    );
    assert!(volume.writer().is_none());
}

#[test]
fn sizes_that_the_tables_do_not_cover() {
    check(
        Kind::Corrupt,
        "has 1 entries, the disk's size takes 2",
        |file| {
            put64(file, 24, (512 << 12) + 1);
        },
    );
    check(Kind::Limit, "2^63", |file| put64(file, 24, 1 << 63));
    check(Kind::Corrupt, "the file has only", |file| {
        put64(file, 24, 1 << 50);
        put32(file, 36, u32::MAX);
    });
}

#[test]
fn a_table_that_memory_does_not_take_is_refused_before_it_is_read() {
    // 2^19 entries, in a file that has room for them.
    let mut file = image();
    let at = file.len().next_multiple_of(CLUSTER);
    file.resize(at + (4 << 20), 0);
    put64(&mut file, 24, 1 << (21 + 19));
    put32(&mut file, 36, 1 << 19);
    put64(&mut file, 40, at as u64);
    let below = nbdserve::source::Memory::read_only(file.clone());
    let error =
        (QCOW2.open)(&below, &nbdserve::layer::Args::new(), &Cx::new(32 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(
        error.report().to_string().contains("--cache-size="),
        "{error}"
    );
    // Nothing is allocated in it.
    let volume = open(&file).unwrap();
    assert_eq!(volume.size(), 1 << 40);
    let extents = volume
        .extents(nbdserve::ByteRange::between(0, 1 << 40))
        .unwrap();
    assert_eq!(extents.runs().len(), 1);
    assert!(extents.runs()[0].flags.hole);
}

#[test]
fn tables_and_clusters_in_places_that_are_none() {
    for (at, message) in [
        (0, "no place for it"),
        (L1 as u64 + 8, "no place for it"),
        (1 << 40, "the file has only"),
    ] {
        check(Kind::Corrupt, message, |file| put64(file, 40, at));
    }
    for (entry, message) in [
        (L2 as u64 | 1, "L1 entry 0 is"),
        (L2 as u64 | 1 << 57, "L1 entry 0 is"),
        (L2 as u64 + 512, "L1 entry 0 is"),
        (1 << 40, "has ended"),
        // The L2 table is the L1 table, or the refcount table.
        (L1 as u64, "where the L1 table is"),
        (CLUSTER as u64, "where the refcount table is"),
    ] {
        check(Kind::Corrupt, message, |file| {
            put64(file, L1, entry | COPIED);
        });
    }
    for (entry, message) in [
        (DATA as u64 | 2, "reserved bits"),
        (DATA as u64 | 1 << 58, "reserved bits"),
        (DATA as u64 + 512, "no cluster of 4096 bytes"),
        (1 << 40, "has ended"),
        (L1 as u64, "where the L1 table is"),
        (CLUSTER as u64, "where the refcount table is"),
    ] {
        check(Kind::Corrupt, message, |file| {
            put64(file, L2 + 16, entry | COPIED);
        });
        // The others can still be read.
        let mut file = image();
        put64(&mut file, L2 + 16, entry | COPIED);
        let volume = open(&file).unwrap();
        assert!(volume.read_vec(0, 2 * CLUSTER).unwrap() == disk()[..2 * CLUSTER]);
        let at = 3 * CLUSTER;
        assert!(volume.read_vec(at as u64, CLUSTER).unwrap() == disk()[at..at + CLUSTER]);
    }
    // Version 2 has no zero flag.
    check(Kind::Corrupt, "zero flag", |file| {
        put32(file, 4, 2);
        put64(file, L2 + 16, DATA as u64 | 1);
    });
}

#[test]
fn an_l2_table_twice_is_read_twice() {
    // No harm is done by an L1 table whose entries are all the same: nothing is written.
    let mut file = image();
    put64(&mut file, 24, 2 * (512 << 12));
    put32(&mut file, 36, 2);
    let entry = get64(&file, L1);
    put64(&mut file, L1 + 8, entry);
    let volume = open(&file).unwrap();
    assert!(volume.read_vec(512 << 12, 16 * CLUSTER).unwrap() == disk());
}

/// An image with subclusters whose first entry has these words.
fn subclusters(entry: u64, bitmap: u64) -> Vec<u8> {
    let big = 16 << 10;
    let mut file = vec![0; 6 * big];
    file[..112].copy_from_slice(&image()[..112]);
    put32(&mut file, 20, 14);
    put64(&mut file, 24, 4 * big as u64);
    put64(&mut file, 40, 3 * big as u64);
    put64(&mut file, 48, big as u64);
    put64(&mut file, 72, 16);
    put64(&mut file, 3 * big, (4 * big as u64) | COPIED);
    put64(&mut file, 4 * big, entry);
    put64(&mut file, 4 * big + 8, bitmap);
    file[5 * big..].fill(7);
    file
}

#[test]
fn subclusters_that_contradict_themselves() {
    let host = (5 * (16 << 10)) | COPIED;
    let good = subclusters(host, 0b101 | 0b10 << 32);
    let bytes = whole(&good).unwrap();
    assert!(bytes[..512] == [7; 512] && bytes[512..1024] == [0; 512]);
    assert!(bytes[1024..1536] == [7; 512] && bytes[1536..2048] == [0; 512]);
    for (entry, bitmap, message) in [
        (host, 1 | 1 << 32, "allocated and zero"),
        (0, 1, "allocated nowhere"),
        (host | 1, 1, "zero flag"),
        (1 << 62 | 5 << 14, 1, "reserved then"),
    ] {
        let (kind, text) = refused(&subclusters(entry, bitmap));
        assert_eq!(kind, Kind::Corrupt);
        assert!(text.contains(message), "{text}");
    }
    let mut file = good;
    put32(&mut file, 20, 13);
    let (kind, text) = refused(&file);
    assert_eq!(kind, Kind::Corrupt);
    assert!(text.contains("subclusters in clusters of 2^13"), "{text}");
}

#[test]
fn compressed_clusters_that_cannot_be_decoded() {
    let compressed = |at: u64, sectors: u64| 1 << 62 | at | sectors << (70 - 12);
    for (entry, message) in [
        (compressed(DATA as u64, 0), "cannot be decoded"),
        (compressed(1 << 40, 0), "has ended"),
        (compressed(L1 as u64 + 3, 0), "where the L1 table is"),
        (compressed(L1 as u64 - 3, 1), "where the L1 table is"),
        (compressed(DATA as u64, 0) | COPIED, "reserved then"),
    ] {
        check(Kind::Corrupt, message, |file| put64(file, L2 + 8, entry));
    }
    // Data that ends too early: an empty stored block, the last one.
    check(
        Kind::Corrupt,
        "0 bytes come out of it, 4096 were to",
        |file| {
            put64(file, L2 + 8, compressed(DATA as u64, 0));
            file[DATA..DATA + 5].copy_from_slice(&[1, 0, 0, 0xff, 0xff]);
        },
    );
    // And data that would go on for ever.
    let folder = Folder::new();
    let big = vec![0x41; MIB];
    folder.write("raw", &big);
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        folder.img(&[
            "convert", "-c", "-O", "qcow2", "-o", &option, "raw", "image",
        ]);
        let mut file = folder.read("image");
        assert!(whole(&file).unwrap() == big);
        let l1 = usize::try_from(get64(&file, 40)).unwrap();
        let l2 = usize::try_from(get64(&file, l1) & !COPIED).unwrap();
        let at = usize::try_from(get64(&file, l2) & 0xffff_ffff).unwrap();
        for byte in at..at + 12 {
            let good = file[byte];
            for value in [0, 0xff, good ^ 1, good ^ 0x80] {
                file[byte] = value;
                // Deflate has no check: other bytes may come out. But never fewer or more.
                if let Ok(found) = whole(&file) {
                    assert_eq!(found.len(), MIB);
                }
            }
            file[byte] = good;
        }
    }
}

#[test]
fn a_compressed_cluster_at_the_end_of_a_huge_disk_takes_no_more_memory_than_others() {
    // Zeroes: a bit is kept for it, and that bit has a number of 38 bits.
    let big = 2 << 20;
    let mut file = vec![0; 4 * big];
    file[..112].copy_from_slice(&image()[..112]);
    put32(&mut file, 20, 21);
    let entries = 1 << 17;
    let size = entries << (21 + 18);
    put64(&mut file, 24, size);
    put32(&mut file, 36, entries as u32);
    put64(&mut file, 40, big as u64);
    put64(&mut file, 48, 0);
    put32(&mut file, 56, 0);
    let last = big + (entries as usize - 1) * 8;
    put64(&mut file, last, (2 * big as u64) | COPIED);
    let data = 3 * big as u64;
    put64(&mut file, 3 * big - 8, 1 << 62 | data | 9 << (70 - 21));
    let zeroes = crate::forge::deflate(&vec![0; big]);
    file[3 * big..3 * big + zeroes.len()].copy_from_slice(&zeroes);
    let volume = open(&file).unwrap();
    for _ in 0..2 {
        let found = volume.read_vec(size - 4096, 4096).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
    }
    let stats = volume.stats().blocks.unwrap();
    assert_eq!(stats.decodes, 1, "{stats:?}");
}

#[test]
fn header_extensions_that_lie() {
    check(
        Kind::Corrupt,
        "header extension 0x12345678 has 4294967295 bytes",
        |file| {
            put32(file, 112, 0x1234_5678);
            put32(file, 116, u32::MAX);
        },
    );
    check(Kind::Corrupt, "for encryption has 8 bytes", |file| {
        extensions(file, &[(0x0537_be77, vec![0; 8])]);
    });
    check(Kind::Corrupt, "for bitmaps has 8 bytes", |file| {
        extensions(file, &[(0x2385_2875, vec![0; 8])]);
    });
    check(
        Kind::Corrupt,
        "a data file, whose name is not there",
        |file| {
            put64(file, 72, 4);
        },
    );
    // Not known, and none of our business.
    let mut file = image();
    extensions(
        &mut file,
        &[(0x1234_5678, vec![1; 77]), (0x9999_9999, vec![])],
    );
    assert!(whole(&file).unwrap() == disk());
}

#[test]
fn names_of_backing_files_that_lie() {
    for (at, len, message) in [
        (200_u64, 1024, "a backing file name of 1024 bytes"),
        (4090, 10, "not within the 4096 bytes"),
        (u64::MAX - 3, 10, "not within the 4096 bytes"),
        (20, 10, "not within the 4096 bytes"),
    ] {
        check(Kind::Corrupt, message, |file| {
            put64(file, 8, at);
            put32(file, 16, len);
        });
    }
    // One that takes extensions away.
    let mut file = image();
    put64(&mut file, 8, 112);
    put32(&mut file, 16, 1);
    file[112] = b'x';
    let (kind, text) = refused(&file);
    assert_eq!(kind, Kind::Unsupported);
    assert!(text.contains("backing file \"x\""), "{text}");
}

#[test]
fn snapshot_tables_that_lie() {
    let snapshot = |file: &[u8]| {
        let below = nbdserve::source::Memory::read_only(file.to_vec());
        let args = [("snapshot".to_owned(), "a".to_owned())].into();
        (QCOW2.open)(&below, &args, &cx())
    };
    let mut file = image();
    let at = file.len();
    file.resize(at + CLUSTER, 0);
    put32(&mut file, 60, 1);
    put64(&mut file, 64, at as u64);
    put64(&mut file, at, L1 as u64);
    put32(&mut file, at + 8, 1);
    file[at + 13] = 1;
    file[at + 15] = 1;
    put32(&mut file, at + 36, 16);
    put64(&mut file, at + 48, 2 * CLUSTER as u64);
    file[at + 56] = b'7';
    file[at + 57] = b'a';
    let good = file.clone();
    assert!(read_all(&snapshot(&good).unwrap()) == disk()[..2 * CLUSTER]);
    for (field, value, message) in [
        (0, L1 as u64 + 1, "no place for it"),
        (0, 1 << 50, "the file has only"),
        (8, 0, "has 0 entries"),
        (48, 1 << 63, "2^63"),
        (48, 1 << 40, "entries, the disk's size takes"),
        (32, u64::from(u32::MAX), "ends within number 0"),
    ] {
        let mut file = good.clone();
        if field == 8 {
            put32(&mut file, at + 8, 0);
        } else {
            put64(&mut file, at + field, value);
        }
        let error = snapshot(&file).unwrap_err();
        assert!(error.to_string().contains(message), "{field}: {error}");
        // The disk itself is as good as before.
        assert!(whole(&file).unwrap() == disk());
    }
    for count in [1000, MIB as u32, u32::MAX] {
        let mut file = good.clone();
        put32(&mut file, 60, count);
        let error = snapshot(&file).unwrap_err();
        assert!(matches!(
            error.kind(),
            Kind::Corrupt | Kind::Limit | Kind::OutOfRange
        ));
    }
}

#[test]
fn probing_knows_the_magic_and_tells_more() {
    let probe = |file: &[u8]| {
        let sample = Sample {
            head: file,
            tail: None,
            size: file.len() as u64,
        };
        (QCOW2.probe)(&sample)
    };
    let Verdict::Yes { evidence, .. } = probe(&image()) else {
        panic!("not recognised");
    };
    assert_eq!(
        evidence,
        "magic 51 46 49 fb at 0, version 3, clusters of 4096"
    );
    let mut file = image();
    put32(&mut file, 20, 3);
    let Verdict::Yes { evidence, .. } = probe(&file) else {
        panic!("not recognised");
    };
    assert!(evidence.contains("but clusters of 2^3 bytes"), "{evidence}");
    // The first version has another layout.
    put32(&mut file, 4, 1);
    assert_eq!(probe(&file), Verdict::No);
    file[0] = 0;
    assert_eq!(probe(&file), Verdict::No);
}

/// Whatever is wrong with its tables, an image that is written to is refused or written: no panic, no
/// end of memory, no error that blames the disk, and what was written and not refused is read again.
#[test]
fn damaged_images_are_written_or_refused() {
    use nbdserve::testing::{Recorder, Rng, noise};
    let kinds = [
        Kind::Corrupt,
        Kind::Unsupported,
        Kind::NotThisFormat,
        Kind::Limit,
        Kind::NoSpace,
    ];
    let mut written = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut file = image();
        for _ in 0..=rng.below(3) {
            let place = match rng.below(4) {
                0 => rng.below(112),
                1 => CLUSTER as u64 + rng.below(16),
                2 => 2 * CLUSTER as u64 + rng.below(40),
                _ => L1 as u64 + rng.below(2) * CLUSTER as u64 + rng.below(64),
            } as usize;
            file[place] = match rng.below(4) {
                0 => 0,
                1 => 0xff,
                2 => file[place] ^ (1 << rng.below(8)),
                _ => rng.below(256) as u8,
            };
        }
        let (below, _) = Recorder::volume(file);
        let what = |error: &Error| format!("seed {seed}: {error:?}");
        let volume = match (QCOW2.open)(&below, &nbdserve::layer::Args::new(), &cx()) {
            Ok(volume) => volume,
            Err(error) => {
                assert!(kinds.contains(&error.kind()), "{}", what(&error));
                continue;
            }
        };
        let Some(writer) = volume.writer() else {
            continue;
        };
        let size = volume.size().min(16 * CLUSTER as u64);
        for step in 0..12 {
            let range = rng.range(size, 3 * CLUSTER as u64);
            let bytes = noise(range.len() as usize, step);
            let done = match rng.below(5) {
                0 => writer.flush(),
                1 => writer.trim(range, false),
                _ => writer.write_at(&bytes, range.start(), false).map(|()| {
                    let found = volume.read_vec(range.start(), bytes.len());
                    assert!(found.unwrap() == bytes, "seed {seed}, {range}");
                    written += 1;
                }),
            };
            if let Err(error) = done {
                assert!(kinds.contains(&error.kind()), "{}", what(&error));
            }
        }
        if let Err(error) = volume.close() {
            assert!(kinds.contains(&error.kind()), "{}", what(&error));
        }
    }
    assert!(written > 250, "{written}");
}
