//! Readers that are killed at any moment while they fill the cache.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbdserve::testing::Rng;

use crate::tools::{FORMATS, Image, bytes};

/// Set in a child: what it reads.
const CHILD: &str = "NBDSERVE_CACHE_READER";
const ROUNDS: u64 = 200;

/// The life of a child: opens an image and reads it, again and again, until it is killed.
fn read_for_ever(what: &str) -> ! {
    let numbers: Vec<u64> = what.split(' ').map(|word| word.parse().unwrap()).collect();
    let [number, version, seed] = numbers[..] else {
        panic!("three numbers: {what}");
    };
    let mut rng = Rng::new(seed);
    let image = Image {
        layer: FORMATS[number as usize].0,
        number: number as usize,
        file: fs::read(format!("image-{number}-{version}")).unwrap(),
        bytes: bytes(version),
    };
    loop {
        let identity = version.to_string();
        let volume = image.open(Path::new("cache"), &identity, rng.below(4) == 0);
        let volume = volume.unwrap();
        image.check(&volume, &mut rng, 3);
        volume.close().unwrap();
    }
}

fn reader(folder: &Path, number: usize, version: u64, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "killed::whoever_is_killed_leaves_no_wrong_byte",
            "--nocapture",
        ])
        .env(CHILD, format!("{number} {version} {seed}"))
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn whoever_is_killed_leaves_no_wrong_byte() {
    if let Ok(what) = std::env::var(CHILD) {
        read_for_ever(&what);
    }
    let folder = tempfile::tempdir().unwrap();
    let mut images = Vec::new();
    for number in 0..FORMATS.len() {
        for version in 0..2 {
            let image = Image::make(number, &bytes(version));
            let name = format!("image-{number}-{version}");
            fs::write(folder.path().join(name), &image.file).unwrap();
            images.push(image);
        }
    }
    let cache = folder.path().join("cache");
    let mut rng = Rng::new(77);
    let mut useful = 0;
    for _ in 0..ROUNDS {
        let number = rng.below(FORMATS.len() as u64) as usize;
        // Two at once, of the same image or of the one that has taken its place.
        let mut children: Vec<_> = (0..1 + rng.below(2))
            .map(|_| {
                let version = rng.below(2);
                reader(folder.path(), number, version, rng.below(1 << 40))
            })
            .collect();
        std::thread::sleep(Duration::from_micros(5000 + rng.below(60_000)));
        for child in &mut children {
            let ended = child.try_wait().unwrap();
            assert_eq!(ended, None, "a reader has found something wrong");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for version in 0..2 {
            let image = &images[number * 2 + version as usize];
            let volume = image.open(&cache, &version.to_string(), rng.below(4) == 0);
            let volume = volume.unwrap();
            let stats = |volume: &nbdserve::Volume| volume.stats().blocks.map(|one| one.decodes);
            image.check(&volume, &mut rng, 2);
            useful += u64::from(stats(&volume) == Some(0));
            // Seldom whole, or soon all would be there.
            volume.close().unwrap();
        }
        if rng.below(12) == 0 {
            fs::remove_dir_all(&cache).unwrap();
        }
    }
    assert!(useful > 50, "{useful} times nothing had to be decoded");
}
