//! The store against a model, and its limit.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::pages::{CHUNK, PAGE};
use super::*;
use crate::Kind;
use crate::testing::{Rng, noise, store_files};

/// Set in a child: what it writes about.
const CHILD: &str = "NBDSERVE_STORE_WRITER";
/// What it says when it has written something.
const READY: &str = "some of it is written";
const ROUNDS: u64 = 250;
/// Chunks of the model's image.
const CHUNKS: u64 = 12;

/// The bytes of a chunk of a version of the model's image: noise, zeroes, and both.
fn truth(version: u64, chunk: u64) -> Vec<u8> {
    let mut bytes = noise(CHUNK, version * 1000 + chunk);
    match (version + chunk) % 4 {
        0 => bytes.fill(0),
        1 => bytes[5 * PAGE..40 * PAGE].fill(0),
        _ => {}
    }
    bytes
}

/// All chunks of a version.
fn truths(version: u64) -> Vec<Vec<u8>> {
    (0..CHUNKS).map(|chunk| truth(version, chunk)).collect()
}

fn index(version: u64) -> Vec<u8> {
    noise(10_000 + version as usize, version)
}

fn place(store: &Arc<Store>, version: u64) -> Place {
    // As an image that was replaced under its name: all but the times stays the same.
    let identity = format!("file\nmodified {version}");
    store.place(&identity, "/images/disk").inside("xz")
}

/// A child that can keep nothing for so long gives up: the disk is full, say.
const FUTILE: Duration = Duration::from_secs(20);
/// No child lives longer: who was to kill it is gone.
const LIFE: Duration = Duration::from_secs(300);

/// The life of a child: writes what is true, until it is killed.
fn write_for_ever(version: u64, seed: u64) -> ! {
    let store = Store::with_limit(Path::new("."), 1 << 30).unwrap();
    let place = place(&store, version);
    let mut rng = Rng::new(seed);
    let truths = truths(version);
    let mut told = false;
    let born = Instant::now();
    let mut worked = born;
    loop {
        assert!(born.elapsed() < LIFE, "nobody has killed this writer");
        let Some(pages) = place.pages("model") else {
            let why = "nothing can be kept: is there space for it?";
            assert!(worked.elapsed() < FUTILE, "{why}");
            continue;
        };
        worked = Instant::now();
        for number in 0..40 {
            if number == 30 && !told {
                told = true;
                println!("{READY}");
            }
            let chunk = rng.below(CHUNKS);
            let at = chunk * CHUNK as u64;
            let bytes = &truths[chunk as usize];
            match rng.below(16) {
                0 => place.save("index", &index(version)),
                1 => pages.forget(at, CHUNK as u64),
                2 => {
                    pages.mark((CHUNKS + chunk) * CHUNK as u64);
                }
                _ if bytes.iter().all(|byte| *byte == 0) => {
                    pages.write_zero_chunk(at);
                }
                _ => {
                    let first = rng.below(64) as usize;
                    let count = 1 + rng.below(64 - first as u64) as usize;
                    let part = &bytes[first * PAGE..(first + count) * PAGE];
                    pages.write(at + (first * PAGE) as u64, part);
                }
            }
        }
    }
}

fn writer(folder: &Path, version: u64, seed: u64) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::tests::whatever_happens_no_byte_is_wrong",
            "--nocapture",
        ])
        .env(CHILD, format!("{version} {seed}"))
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Damage of one sort or another.
fn damage(folder: &Path, store: &Store, rng: &mut Rng) {
    let files = store_files(folder);
    let Some(path) = files.get(rng.below(files.len().max(1) as u64) as usize) else {
        return;
    };
    let Ok(file) = OpenOptions::new().write(true).read(true).open(path) else {
        return;
    };
    let len = file.metadata().unwrap().len();
    match rng.below(16) {
        0 => file.set_len(rng.below(len + 1)).unwrap(),
        1 => drop(fs::remove_file(path)),
        2 => drop(fs::remove_dir_all(path.parent().unwrap())),
        3 => drop(store.clear(|_| true).unwrap()),
        4 => {
            // What another file has left on the disk.
            let from = rng.below(len + 1) / 4096 * 4096;
            let to = rng.below(len + 1) / 4096 * 4096;
            let mut page = [0; 4096];
            let _ = file.read_at(&mut page, from).unwrap();
            file.write_all_at(&page, to).unwrap();
        }
        5 => fs::write(path, noise(rng.below(5000) as usize, len)).unwrap(),
        _ => {
            for _ in 0..50 {
                let at = rng.below(len + 1);
                file.write_all_at(&[rng.below(256) as u8], at).unwrap();
            }
        }
    }
}

#[test]
fn whatever_happens_no_byte_is_wrong() {
    if let Ok(what) = std::env::var(CHILD) {
        let (version, seed) = what.split_once(' ').unwrap();
        write_for_ever(version.parse().unwrap(), seed.parse().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::with_limit(folder.path(), 1 << 30).unwrap();
    let mut rng = Rng::new(2024);
    let truths = [truths(0), truths(1)];
    // Readers that stay, whatever becomes of their files.
    let mut open: Vec<(u64, Pages)> = Vec::new();
    let (mut hits, mut misses, mut indexes) = (0, 0, 0);
    for round in 0..ROUNDS {
        let versions = 1 + rng.below(2);
        let writers: Vec<_> = (0..1 + rng.below(2))
            .map(|_| writer(folder.path(), rng.below(versions), rng.below(1 << 40)))
            .collect();
        for mut writer in writers {
            // Killed at any moment after it has written something.
            let out = BufReader::new(writer.stdout.as_mut().unwrap());
            let ready = |line: &str| line.contains(READY);
            assert!(out.lines().any(|line| ready(&line.unwrap())));
            std::thread::sleep(Duration::from_micros(rng.below(8000)));
            if rng.below(8) == 0 {
                damage(folder.path(), &store, &mut rng);
            }
            writer.kill().unwrap();
            writer.wait().unwrap();
        }
        if rng.below(4) == 0 {
            damage(folder.path(), &store, &mut rng);
        }
        for version in 0..2 {
            if let Some(found) = place(&store, version).load("index", 1 << 20) {
                assert!(found == index(version), "round {round}: another index");
                indexes += 1;
            }
            if let Some(pages) = place(&store, version).find_pages("model") {
                open.push((version, pages));
            }
        }
        if open.len() > 8 {
            open.drain(..2);
        }
        for (version, pages) in &open {
            for chunk in 0..CHUNKS {
                let bytes = &truths[*version as usize][chunk as usize];
                let first = rng.below(CHUNK as u64) as usize;
                let whole = rng.below(2) == 0;
                let len = if whole { PAGE } else { 3 * PAGE }.min(CHUNK - first);
                let mut found = vec![0xee; len];
                if pages.read(chunk * CHUNK as u64 + first as u64, &mut found) {
                    let right = found == bytes[first..first + len];
                    assert!(
                        right,
                        "round {round}: {len} bytes at {first} of chunk {chunk}"
                    );
                    hits += 1;
                } else {
                    misses += 1;
                }
            }
            let zero = pages.zero_chunks(0, CHUNKS * CHUNK as u64);
            for chunk in (0..CHUNKS).filter(|chunk| zero[0] >> chunk & 1 == 1) {
                let bytes = &truths[*version as usize][chunk as usize];
                assert!(bytes.iter().all(|byte| *byte == 0));
            }
        }
    }
    assert!(
        hits > 5000 && misses > 5000 && indexes > 50,
        "{hits} hits, {misses} misses, {indexes} indexes"
    );
}

#[test]
fn what_a_killed_writer_has_left_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let place = store.place("an image", "disk");
    place.save("index", b"abc");
    let left = store_files(folder.path())[0].with_file_name("new-1-1");
    fs::write(&left, b"half").unwrap();
    assert!(
        Place::new(store.clone(), "an image")
            .load("index", 9)
            .is_some()
    );
    assert!(
        left.exists(),
        "it may be that of a process that has the image open"
    );
    drop(place);
    assert!(Place::new(store, "an image").load("index", 9).is_some());
    assert!(!left.exists());
}

#[test]
fn nothing_is_made_for_an_image_of_which_nothing_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let place = store.place("an image", "disk").inside("xz");
    assert!(place.load("index", 9).is_none() && place.find_pages("p").is_none());
    assert_eq!(store_files(folder.path()), Vec::<PathBuf>::new());
    assert!(store.usage().images.is_empty());
}

#[test]
fn the_folder_is_private_and_belongs_to_the_user() {
    let above = tempfile::tempdir().unwrap();
    let folder = above.path().join("a/b");
    Store::open(&folder).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    let link = above.path().join("link");
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    assert_eq!(Store::open(&link).unwrap_err().kind(), Kind::Denied);
    let file = above.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(Store::open(&file).is_err());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&folder, Some(65534), None).unwrap();
        assert_eq!(Store::open(&folder).unwrap_err().kind(), Kind::Denied);
    }
}

/// Keeps an index of `len` bytes of the image called `name`.
fn keep(store: &Arc<Store>, name: &str, len: usize) -> Place {
    let place = store.place(name, name);
    place.save("index", &noise(len, 1));
    place
}

fn names(store: &Store) -> Vec<String> {
    store
        .usage()
        .images
        .into_iter()
        .map(|kept| kept.name)
        .collect()
}

/// Makes `name` the one that was used `seconds` ago.
fn age(store: &Store, name: &str, seconds: u64) {
    let folder = File::open(store.images().join(hex(name))).unwrap();
    let then = std::time::SystemTime::now() - Duration::from_secs(seconds);
    folder.set_modified(then).unwrap();
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_in_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::with_limit(folder.path(), 1 << 20).unwrap();
    for (name, seconds) in [("a", 500), ("b", 400), ("c", 300)] {
        drop(keep(&store, name, 300_000));
        age(&store, name, seconds);
    }
    assert_eq!(names(&store), ["c", "b", "a"]);
    // Its use makes it the latest.
    assert!(store.place("a", "a").load("index", 1 << 20).is_some());
    assert_eq!(names(&store), ["a", "c", "b"]);
    let using = store.place("b", "b");
    assert!(using.load("index", 1 << 20).is_some());
    age(&store, "b", 600);
    let new = keep(&store, "d", 300_000);
    let mut left = names(&store);
    left.sort();
    assert_eq!(left, ["a", "b", "d"]);
    let usage = store.usage();
    assert!(
        usage.used <= usage.limit && usage.used > 800_000,
        "{usage:?}"
    );
    let busy = |name: &str| {
        usage
            .images
            .iter()
            .any(|kept| kept.name == name && kept.in_use)
    };
    assert!(busy("b") && busy("d") && !busy("a"));
    drop((using, new));
}

#[test]
fn no_more_is_kept_than_the_limit_allows_while_all_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::with_limit(folder.path(), 1 << 20).unwrap();
    let using = keep(&store, "a", 700_000);
    let second = keep(&store, "b", 700_000);
    assert!(second.load("index", 1 << 20).is_none());
    assert!(using.load("index", 1 << 20).is_some());
    let pages = using.pages("p").unwrap();
    let mut kept = 0;
    for chunk in 0..1000_u64 {
        kept += u64::from(pages.write(chunk * CHUNK as u64, &noise(CHUNK, chunk)));
    }
    // The limit is looked at each 32 MiB.
    assert!(pages.is_full() && kept <= 260, "{kept} chunks");
}

#[test]
fn no_more_is_kept_than_the_limit_allows_while_somebody_else_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::with_limit(folder.path(), 1 << 20).unwrap();
    let using = keep(&store, "a", 700_000);
    // As another process that makes room, and takes long.
    let lock = File::create(folder.path().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // What fits needs nobody's leave.
    using.save("small", &noise(100_000, 2));
    assert!(using.load("small", 1 << 20).is_some());
    let second = keep(&store, "b", 700_000);
    assert!(second.load("index", 1 << 20).is_none());
    let pages = using.pages("p").unwrap();
    let write = |chunk: u64| pages.write(chunk * CHUNK as u64, &noise(CHUNK, chunk));
    let kept = (0..1000).filter(|chunk| write(*chunk)).count();
    let used = store.usage().used;
    assert!(
        pages.is_full() && used <= 1 << 20,
        "{kept} chunks, {used} bytes"
    );
    drop((using, pages, lock));
    // It is waited for, for a moment.
    let waited = (0..20).any(|_| {
        let lock = File::create(folder.path().join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let soon = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(lock);
        });
        let third = keep(&store, "c", 700_000);
        soon.join().unwrap();
        third.load("index", 1 << 20).is_some()
    });
    assert!(waited);
}

#[test]
fn what_is_cleared_is_gone_for_others_and_stays_for_who_has_it_open() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (a, _b) = (keep(&store, "a", 1000), keep(&store, "b", 1000));
    let pages = a.pages("p").unwrap();
    assert!(pages.write(0, &[7; PAGE]));
    assert!(store.clear(|kept| kept.name == "a").unwrap() > 0);
    assert_eq!(names(&store), ["b"]);
    let mut found = [0; PAGE];
    assert!(pages.read(0, &mut found) && found == [7; PAGE]);
    assert!(a.load("index", 9999).is_none());
    // And keeps what it learns from now on.
    a.save("index", b"new");
    assert_eq!(a.load("index", 9999).as_deref(), Some(&b"new"[..]));
    assert_eq!(names(&store), ["a", "b"]);
    store.clear(|_| true).unwrap();
    assert_eq!(names(&store), Vec::<String>::new());
    assert!(keep(&store, "a", 1000).load("index", 9999).is_some());
}
