//! What an image is, and what the user says that it is.

use crate::disks::{disk_files, qcow2_files, simg_files};
use crate::file_systems::file_systems;
use crate::luks::luks_files;
use crate::made::{compressed, xz};
use crate::packed::{bzip2_files, gzip_files, xz_files};
use crate::volumes::{gpt_disks, lvm_images, mbr_disks, md_disks};

#[test]
fn probe() {
    fuzz!("probe", || {
        let disks = [gpt_disks(), mbr_disks(), file_systems()].concat();
        let packed = [
            xz_files(),
            gzip_files(),
            bzip2_files(),
            simg_files(),
            qcow2_files(),
        ]
        .concat();
        let made = [
            disk_files("vmdk", &["zeroed_grain=on"]),
            disk_files("vpc", &["force_size=on"]),
        ];
        [packed, disks, made.concat(), luks_files()].concat()
    });
}

#[test]
fn resolve() {
    fuzz!("resolve", || {
        let dir = tempfile::tempdir().unwrap();
        let mut seeds = [gpt_disks(), mbr_disks(), file_systems()].concat();
        // Wrappings in wrappings.
        let inner: Vec<_> = seeds
            .iter()
            .map(|seed| xz(dir.path(), seed, &["-0"]))
            .collect();
        seeds.push(xz(dir.path(), &inner[0], &["-0"]));
        seeds.push(compressed("gzip", dir.path(), &inner[1], &["-1"]));
        seeds.extend(inner);
        seeds.extend(lvm_images());
        seeds.extend(md_disks());
        seeds
    });
}

#[test]
fn layer_spec() {
    let seeds = [
        "xz",
        "raw",
        "partition:2",
        "offset:offset=1M,size=4G",
        "offset:1,,2,size=3",
        "64M",
    ];
    fuzz!("layer_spec", || {
        seeds.map(|seed| seed.as_bytes().to_vec()).to_vec()
    });
}
