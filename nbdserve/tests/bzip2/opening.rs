//! What an opening costs: the first one decodes everything once, later ones nothing.

use nbdserve::source::Memory;
use nbdserve::testing::conformance::read_all;
use nbdserve::testing::{Counting, packed};
use nbdserve::{ByteRange, Cx, Kind, Volume};

use crate::tools::{Witness, bzip2, image, noise, open, open_on, roomy};

/// A context that keeps things in `folder`.
pub(crate) fn keeping(folder: &std::path::Path, budget: u64) -> Cx {
    packed::keeping(Cx::new(budget), folder)
}

/// As [`keeping`], with the index that an opening of `file` has kept, but not the decoded bytes.
pub(crate) fn knowing(folder: &std::path::Path, file: &[u8], budget: u64) -> Cx {
    let other = tempfile::tempdir().unwrap();
    let first = keeping(other.path(), budget);
    drop(open(file.to_vec(), &first).unwrap());
    let index = first.place.unwrap().load("bzip2-index-1", 1 << 20).unwrap();
    let cx = keeping(folder, budget);
    cx.place.as_ref().unwrap().save("bzip2-index-1", &index);
    cx
}

#[test]
fn the_first_opening_reads_all_once_and_reading_reads_nothing() {
    let bytes = image(6_000_000);
    let file = bzip2(&bytes, &["-2"]);
    let (below, counts) = Counting::volume(Memory::volume(file.clone()));
    let mut cx = roomy();
    let witness = Witness::watch(&mut cx);
    let volume = open_on(&below, &cx).unwrap();
    let size = file.len() as u64;
    assert!(
        counts.read_bytes() <= size + 4,
        "{} of {size}",
        counts.read_bytes()
    );
    assert_eq!(witness.progress().last(), Some(&(size, size)));
    counts.reset();
    assert!(read_all(&volume) == bytes);
    assert_eq!(counts.reads(), 0);
}

#[test]
fn a_second_opening_decodes_what_is_read_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    // Blocks of 900 kB, one group each.
    let bytes = noise(9_000_000, 5);
    let file = bzip2(&bytes, &[]);
    let cx = knowing(folder.path(), &file, 128 << 20);
    let (below, counts) = Counting::volume(Memory::volume(file));
    let volume = open_on(&below, &cx).unwrap();
    assert_eq!(volume.size(), 9_000_000);
    assert!(counts.read_bytes() <= 4);
    let mut buf = vec![0; 4096];
    volume.read_at(&mut buf, 5_000_000).unwrap();
    assert!(buf == bytes[5_000_000..5_004_096]);
    let few = counts.read_bytes();
    assert!(few < 1 << 20, "{few} bytes for a block");
    assert!(read_all(&volume) == bytes);
}

#[test]
fn a_second_opening_finds_the_bytes_and_decodes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(3_000_000);
    let file = bzip2(&bytes, &[]);
    drop(open(file.clone(), &keeping(folder.path(), 128 << 20)).unwrap());
    let (below, counts) = Counting::volume(Memory::volume(file));
    let volume = open_on(&below, &keeping(folder.path(), 128 << 20)).unwrap();
    assert!(read_all(&volume) == bytes);
    assert_eq!(counts.read_bytes(), 4, "the stream header");
}

#[test]
fn bytes_that_the_cache_on_disk_has_lost_are_decoded_again() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(2_000_000);
    let file = bzip2(&bytes, &["-3"]);
    drop(open(file.clone(), &keeping(folder.path(), 128 << 20)).unwrap());
    let mut damaged = 0;
    let mut folders = vec![folder.path().to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::metadata(&path).unwrap().len() > 1 << 20 {
                let mut stored = std::fs::read(&path).unwrap();
                // Here and there, in what was decoded.
                for at in (600_000..stored.len()).step_by(300_000) {
                    stored[at] ^= 1;
                }
                std::fs::write(&path, stored).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    let volume = open(file, &keeping(folder.path(), 128 << 20)).unwrap();
    assert!(read_all(&volume) == bytes);
}

#[test]
fn an_index_that_is_damaged_or_of_another_file_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(300_000, 6);
    let file = bzip2(&bytes, &["-1"]);
    let cx = knowing(folder.path(), &file, 128 << 20);
    let index = cx.place.unwrap().load("bzip2-index-1", 1 << 20).unwrap();

    // Nonsense: the pass is made again.
    let other = tempfile::tempdir().unwrap();
    let again = keeping(other.path(), 128 << 20);
    let kept = again.place.clone().unwrap();
    kept.save("bzip2-index-1", &index[..index.len() - 1]);
    assert!(read_all(&open(file.clone(), &again).unwrap()) == bytes);
    assert_eq!(kept.load("bzip2-index-1", 1 << 20).as_ref(), Some(&index));

    // Sense, but wrong: an error, never other bytes. (The store has hashes against real damage.)
    for at in 16..index.len() {
        let mut wrong = index.clone();
        wrong[at] ^= 1;
        // A store of its own: with the decoded bytes in it nothing would be decoded and compared.
        let folder = tempfile::tempdir().unwrap();
        let mut cx = keeping(folder.path(), 128 << 20);
        cx.verify = true;
        let place = cx.place.as_ref().unwrap();
        place.save("bzip2-index-1", &wrong);
        match open(file.clone(), &cx).and_then(|volume| {
            let len = volume.size().min(1 << 20) as usize;
            volume.read_vec(0, len)
        }) {
            Ok(found) => assert!(found == bytes, "byte {at}"),
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "byte {at}: {error}"),
        }
    }
}

fn zero_bytes(volume: &Volume) -> u64 {
    let all = ByteRange::between(0, volume.size());
    let extents = volume.extents(all).unwrap();
    let zero = extents.runs().iter().filter(|run| run.flags.zero);
    zero.map(|run| run.range.len()).sum()
}

/// A block of zeroes: 45 MB in some 40 bytes.
#[test]
fn a_bomb_of_zeroes_takes_no_space_and_is_passed_up_as_zero() {
    let folder = tempfile::tempdir().unwrap();
    let zeroes = vec![0; 100_000_000];
    let mut file = bzip2(&zeroes, &[]);
    assert!(file.len() < 200);
    file.extend(bzip2(b"the end", &[]));
    let size = zeroes.len() as u64 + 7;
    let mut cx = Cx::new(32 << 20);
    // Not even one piece of data fits beside the last one.
    cx.temp_limit = 300_000;
    let volume = open(file.clone(), &cx).unwrap();
    assert_eq!(volume.size(), size);
    assert!(zero_bytes(&volume) >= 99_000_000);
    assert_eq!(volume.read_vec(size - 8, 8).unwrap(), b"\0the end");
    assert!(cx.cache.peak() <= 32 << 20);
    drop(volume);

    // From the index.
    let cx = knowing(folder.path(), &file, 256 << 20);
    let volume = open(file, &cx).unwrap();
    assert_eq!(volume.size(), size);
    assert!(zero_bytes(&volume) >= 99_000_000);
    assert_eq!(volume.read_vec(size - 8, 8).unwrap(), b"\0the end");
}

#[test]
fn a_bomb_of_ones_is_stopped_by_the_limit_of_the_temp_file() {
    let file = bzip2(&vec![0xff; 60_000_000], &[]);
    let mut cx = Cx::new(16 << 20);
    let volume = open(file.clone(), &cx).unwrap();
    assert_eq!(volume.size(), 60_000_000);
    assert_eq!(volume.read_vec(59_999_990, 10).unwrap(), [0xff; 10]);
    assert!(cx.cache.peak() <= 16 << 20, "{}", cx.cache.peak());
    cx.temp_limit = 20_000_000;
    let error = open(file, &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
}

#[test]
fn an_opening_can_be_stopped() {
    let cx = roomy();
    cx.cancel.cancel();
    let error = open(bzip2(&image(500_000), &[]), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("stopped"), "{error}");
}
