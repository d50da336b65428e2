use std::fs;
use std::sync::Arc;

use super::*;
use crate::store::{Place, Store};
use crate::testing::{Rng, noise};

const MIB: usize = 1 << 20;

fn place(folder: &Path) -> Place {
    Place::new(Store::open(folder).unwrap(), "an image")
}

/// The only file of pages in the store.
fn file_in(folder: &Path) -> PathBuf {
    let images = fs::read_dir(folder.join("images")).unwrap();
    let files = images.flat_map(|image| fs::read_dir(image.unwrap().path()).unwrap());
    let mut files = files.map(|file| file.unwrap().path());
    let found = files.find(|file| file.extension().is_some_and(|ext| ext == "pages"));
    found.unwrap()
}

fn write(pages: &Pages, at: usize, bytes: &[u8]) {
    assert!(at.is_multiple_of(CHUNK));
    for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
        assert!(pages.write((at + number * CHUNK) as u64, chunk));
    }
}

fn read(pages: &Pages, at: usize, len: usize) -> Option<Vec<u8>> {
    let mut found = vec![0xaa; len];
    pages.read(at as u64, &mut found).then_some(found)
}

#[test]
fn what_is_written_is_read_back_in_any_pieces_and_by_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = noise(3 * MIB + 1234, 1);
    bytes[700_000..1_500_000].fill(0);
    // At the end of the file.
    bytes[3 * MIB - 5000..].fill(0);
    // Across the border of a span.
    let base = SPAN_PAGES as usize * PAGE - MIB;
    let pages = place(folder.path()).pages("p").unwrap();
    write(&pages, base, &bytes);
    let again = place(folder.path()).find_pages("p").unwrap();
    let mut rng = Rng::new(7);
    for pages in [&pages, &again] {
        for _ in 0..200 {
            let at = rng.below(bytes.len() as u64) as usize;
            let len = rng.below((bytes.len() - at) as u64) as usize;
            assert!(read(pages, base + at, len).unwrap() == bytes[at..at + len]);
        }
        let end = base + bytes.len();
        // The rest of the last page is zero, behind it is nothing.
        assert!(
            read(pages, end, PAGE - 1234)
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
        assert_eq!(read(pages, end, PAGE), None);
        assert_eq!(read(pages, base - 1, 2), None);
        assert_eq!(read(pages, (LONGEST + 1) as usize, 1), None);
    }
}

#[test]
fn zeroes_take_next_to_no_space_and_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let pages = place(folder.path()).pages("p").unwrap();
    let chunks = 4096;
    for chunk in 0..chunks {
        assert!(pages.write_zero_chunk(chunk * CHUNK_BYTES));
    }
    write(&pages, CHUNK, &[1; PAGE]);
    assert!(read(&pages, 10, 4 * CHUNK).is_some());
    assert_eq!(pages.present(0), u64::MAX);
    let zero = pages.zero_chunks(0, chunks * CHUNK_BYTES);
    assert!(zero.iter().all(|word| *word == u64::MAX));
    use std::os::unix::fs::MetadataExt;
    let taken = fs::metadata(file_in(folder.path())).unwrap().blocks() * 512;
    assert!(taken < 200_000, "{taken} bytes for 1 GiB of zeroes");
}

#[test]
fn every_flipped_bit_is_a_miss_or_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise(CHUNK, 3);
    let pages = place(folder.path()).pages("p").unwrap();
    write(&pages, 0, &bytes);
    pages.mark(CHUNK_BYTES);
    let file = OpenOptions::new()
        .write(true)
        .read(true)
        .open(file_in(folder.path()))
        .unwrap();
    let mut rng = Rng::new(9);
    let mut places: Vec<u64> = (0..2000).map(|_| rng.below(SPAN)).collect();
    places.extend((0..100).map(|at| record_at(at % 66) + at % 8));
    places.extend((0..200).map(|at| data_at(at % 64) + rng.below(4096)));
    let mut missed = 0;
    for at in places {
        let mut byte = [0];
        let _ = file.read_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        match read(&pages, 0, CHUNK) {
            Some(found) => assert!(found == bytes, "byte {at}"),
            None => missed += 1,
        }
        file.write_all_at(&byte, at).unwrap();
        assert!(read(&pages, 0, CHUNK).unwrap() == bytes);
    }
    assert!(missed > 200, "{missed}");
    for len in [data_at(3), record_at(5), 100, 0] {
        file.set_len(len).unwrap();
        assert_eq!(read(&pages, 0, CHUNK), None);
        assert!(!pages.is_marked(CHUNK_BYTES) || len == data_at(3));
    }
    // Made anew by the next one, and the one that is open goes on.
    let next = place(folder.path()).pages("p").unwrap();
    assert_ne!(next.id, pages.id);
    write(&next, 0, &bytes);
    assert!(read(&next, 0, CHUNK).unwrap() == bytes);
    assert_eq!(read(&pages, 0, PAGE), None);
}

#[test]
fn pages_of_another_file_do_not_agree() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path());
    let one = place.pages("one").unwrap();
    write(&one, 0, &noise(CHUNK, 4));
    // The same bytes at another place, and of another file at the same place.
    let mut pages = noise(CHUNK, 4);
    pages.copy_within(0..PAGE, PAGE);
    one.file.write_all_at(&pages, data_at(0)).unwrap();
    assert!(read(&one, 0, PAGE).is_some());
    assert_eq!(read(&one, PAGE, PAGE), None);
    let two = place.pages("two").unwrap();
    let mut records = vec![0; 512];
    assert_eq!(one.load(&mut records, record_at(0)), 512);
    two.file.write_all_at(&records, record_at(0)).unwrap();
    two.file.write_all_at(&pages, data_at(0)).unwrap();
    assert_eq!(read(&two, 0, PAGE), None);
}

#[test]
fn what_is_forgotten_is_gone_and_its_neighbours_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let pages = place(folder.path()).pages("p").unwrap();
    let bytes = noise(4 * CHUNK, 5);
    write(&pages, 0, &bytes);
    pages.write_zero_chunk(4 * CHUNK_BYTES);
    pages.forget(CHUNK_BYTES, CHUNK_BYTES + 3 * PAGE_BYTES);
    assert!(read(&pages, 0, CHUNK).is_some());
    for page in 64..131 {
        assert_eq!(read(&pages, page * PAGE, PAGE), None, "{page}");
    }
    assert!(read(&pages, 131 * PAGE, 2 * CHUNK - 3 * PAGE).is_some());
    assert_eq!(pages.present(2 * CHUNK_BYTES), !0b111);
    pages.forget(4 * CHUNK_BYTES, CHUNK_BYTES);
    assert_eq!(pages.present(4 * CHUNK_BYTES), 0);
}

#[test]
fn a_mark_is_found_where_it_was_left() {
    let folder = tempfile::tempdir().unwrap();
    let pages = place(folder.path()).pages("p").unwrap();
    assert!(!pages.is_marked(5 * CHUNK_BYTES));
    assert!(pages.mark(5 * CHUNK_BYTES));
    assert!(pages.is_marked(5 * CHUNK_BYTES) && !pages.is_marked(6 * CHUNK_BYTES));
    assert_eq!(read(&pages, 5 * CHUNK, PAGE), None);
}

#[test]
fn a_full_disk_ends_the_keeping_and_not_the_reading() {
    let folder = tempfile::tempdir().unwrap();
    let pages = place(folder.path()).pages("p").unwrap();
    let bytes = noise(CHUNK, 6);
    write(&pages, 0, &bytes);
    let image = Arc::clone(&pages.image);
    let full = Pages {
        file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
        path: pages.path.clone(),
        image,
        id: 1,
        written: AtomicU64::new(0),
        full: AtomicBool::new(false),
    };
    assert!(!full.write(0, &bytes) && full.is_full());
    assert!(!full.write_zero_chunk(0) && !full.mark(0));
    assert!(read(&pages, 0, CHUNK).unwrap() == bytes);
    pages.discard();
    assert!(!file_exists(&pages) && pages.is_full());
    assert!(read(&pages, 0, CHUNK).unwrap() == bytes);
}

fn file_exists(pages: &Pages) -> bool {
    pages.path.exists()
}

#[test]
fn a_page_of_zeroes_is_zero_whatever_lies_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let pages = place(folder.path()).pages("p").unwrap();
    let mut bytes = noise(CHUNK, 7);
    bytes[5 * PAGE..9 * PAGE].fill(0);
    write(&pages, 0, &bytes);
    // Nothing is written there, so nothing that is written again would mend it.
    pages.file.write_all_at(&[1; 2 * PAGE], data_at(6)).unwrap();
    assert!(read(&pages, 0, CHUNK).unwrap() == bytes);
    assert!(read(&pages, 7 * PAGE - 3, 20).unwrap() == [0; 20]);
    pages.file.write_all_at(&[1], data_at(9)).unwrap();
    assert_eq!(read(&pages, 8 * PAGE, 2 * PAGE), None);
}

/// As many as like make the same file at once, and share it.
fn made_at_once(folder: &Path) {
    let store = Store::open(folder).unwrap();
    let start = std::sync::Barrier::new(8);
    let make = || {
        let place = Place::new(store.clone(), "an image");
        start.wait();
        place.pages("p").expect("it is made or shared")
    };
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let ids: Vec<_> = made.iter().map(Pages::id).collect();
    assert_eq!(ids, [ids[0]; 8]);
    assert_eq!(
        place(folder).find_pages("p").map(|one| one.id()),
        Some(ids[0])
    );
}

#[test]
fn all_who_make_the_same_pages_at_once_share_them() {
    for _ in 0..30 {
        let folder = tempfile::tempdir().unwrap();
        made_at_once(folder.path());
        // And where a damaged file lies.
        fs::write(file_in(folder.path()), b"damaged").unwrap();
        made_at_once(folder.path());
    }
}

#[test]
fn who_has_seen_a_damaged_file_leaves_the_good_one_that_took_its_place() {
    let folder = tempfile::tempdir().unwrap();
    drop(place(folder.path()).pages("p").unwrap());
    let path = file_in(folder.path());
    fs::write(&path, b"damaged").unwrap();
    let damaged = File::open(&path).unwrap();
    let good = place(folder.path()).pages("p").unwrap();
    remove_damaged(&damaged, &path).unwrap();
    assert!(place(folder.path()).find_pages("p").unwrap().id() == good.id());
    // A file that is still in its place goes, and one that is gone is no error.
    let there = File::open(&path).unwrap();
    for _ in 0..2 {
        remove_damaged(&there, &path).unwrap();
        assert!(!path.exists());
    }
}
