//! Files in the cache that are damaged, cut, exchanged or gone.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nbdserve::store::Store;
use nbdserve::testing::{Rng, noise, store_files};

use crate::tools::{FORMATS, Image, bytes};

/// Damages a file in one way or another.
fn damage(files: &[PathBuf], rng: &mut Rng) {
    let any = |rng: &mut Rng| &files[rng.below(files.len() as u64) as usize];
    let path = any(rng).clone();
    let Ok(file) = OpenOptions::new().write(true).read(true).open(&path) else {
        return;
    };
    let len = file.metadata().unwrap().len();
    match rng.below(12) {
        0 => file.set_len(rng.below(len + 1)).unwrap(),
        1 => fs::remove_file(path).unwrap(),
        2 => fs::write(path, noise(rng.below(9000) as usize, len)).unwrap(),
        // That of another image, version or layer, under this name.
        3 | 4 => drop(fs::copy(any(rng), path).unwrap()),
        5 => {
            let mut page = [0; 4096];
            let from = rng.below(len + 1) / 4096 * 4096;
            let _ = file.read_at(&mut page, from).unwrap();
            file.write_all_at(&page, rng.below(len + 1) / 4096 * 4096)
                .unwrap();
        }
        _ => {
            for _ in 0..1 + rng.below(200) {
                let (mut byte, at) = ([0], rng.below(len.max(1)));
                let _ = file.read_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << rng.below(8))], at)
                    .unwrap();
            }
        }
    }
}

#[test]
fn whatever_lies_in_the_cache_no_layer_gives_a_wrong_byte() {
    for number in 0..FORMATS.len() {
        let folder = tempfile::tempdir().unwrap();
        let images = [0, 1].map(|version| Image::make(number, &bytes(version)));
        let store = Store::with_limit(folder.path(), 1 << 30).unwrap();
        let mut rng = Rng::new(number as u64);
        for round in 0..24 {
            for (version, image) in images.iter().enumerate() {
                let identity = version.to_string();
                let volume = image.open_in(&store, &identity, round % 3 == 0).unwrap();
                if rng.below(3) == 0 {
                    // While it is open.
                    image.check(&volume, &mut rng, 1);
                    damage(&store_files(folder.path()), &mut rng);
                }
                image.check(&volume, &mut rng, 4);
                volume.close().unwrap();
            }
            let files = store_files(folder.path());
            for _ in 0..rng.below(3) {
                damage(&files, &mut rng);
            }
        }
    }
}

#[test]
fn after_damage_the_cache_is_as_good_as_new_two_mounts_later() {
    for (number, format) in FORMATS.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::make(number, &bytes(0));
        let store = Store::with_limit(folder.path(), 1 << 30).unwrap();
        let decodes = || image.decodes(&store, "0");
        decodes();
        let good = decodes();
        let mut rng = Rng::new(number as u64);
        for path in store_files(folder.path()) {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            let len = file.metadata().unwrap().len();
            for _ in 0..3000 {
                file.write_all_at(&[rng.below(256) as u8], rng.below(len))
                    .unwrap();
            }
        }
        decodes();
        decodes();
        assert_eq!(decodes(), good, "{format:?}");
    }
}
