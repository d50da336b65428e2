//! Partitions, logical volumes, arrays.

use std::fs;

use nbdserve::testing::{noise, tools};

use crate::made::made_by;
use crate::raid_forge;

fn sfdisk(len: usize, script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (file, lines) = (dir.path().join("disk"), dir.path().join("script"));
    fs::write(&file, vec![0; len]).unwrap();
    fs::write(&lines, script).unwrap();
    let mut command = tools::command("sfdisk");
    command
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&file);
    tools::run_command(command.stdin(fs::File::open(&lines).unwrap()));
    fs::read(&file).unwrap()
}

pub(crate) fn gpt_disks() -> Vec<Vec<u8>> {
    let two = [
        "--new=1:64:127",
        "--typecode=1:ef00",
        "--new=2:128:191",
        "--change-name=2:root",
    ];
    vec![
        made_by(
            256 << 10,
            "sgdisk",
            &[&["--set-alignment=1"], &two[..]].concat(),
        ),
        sfdisk(
            2 << 20,
            "label: gpt\nsector-size: 4096\nfirst-lba: 8\nsize=64, name=a\n",
        ),
    ]
}

pub(crate) fn mbr_disks() -> Vec<Vec<u8>> {
    vec![
        sfdisk(
            1 << 20,
            "label: dos\nstart=1, size=100, type=83\nsize=200, type=c, bootable\n",
        ),
        sfdisk(
            4 << 20,
            "label: dos\nstart=64, size=64, type=83\nstart=128, size=7000, type=5\n\
             start=192, size=500, type=83\nstart=800, size=500, type=82\nstart=1500, size=9\n",
        ),
    ]
}

/// The text of a group with volumes of several sorts.
fn lvm_texts() -> Vec<Vec<u8>> {
    use crate::lvm_forge::{group, logical, segment};
    let volumes = [
        logical(
            "lv",
            50,
            &[
                segment(1, 0, 2, &[(0, 1)], 0),
                segment(2, 2, 2, &[(0, 5), (1, 0)], 8),
            ],
        ),
        logical("st", 51, &[segment(1, 0, 2, &[(0, 6), (0, 7)], 1)]),
        logical(
            "thin",
            52,
            &[segment(1, 0, 1, &[(1, 3)], 0).replace("striped", "thin")],
        ),
    ];
    let text = group("vg", 1, &[(0, 8), (1, 4)], &volumes.concat());
    let other = text.replace(
        "stripes = [",
        "origin = \"lv\"\ncow_store = \"st\"\nstripes = [",
    );
    vec![
        other
            .replacen("type = \"striped\"", "type = \"snapshot\"", 1)
            .into_bytes(),
        text.into_bytes(),
    ]
}

/// Physical volumes, alone and as partitions.
pub(crate) fn lvm_images() -> Vec<Vec<u8>> {
    use crate::lvm_forge::{disk, physical};
    let mut images = Vec::new();
    for text in lvm_texts() {
        let text = String::from_utf8(text).unwrap();
        let both = [physical(0, 8, &text), physical(1, 4, &text)];
        images.push(disk(&both));
        images.extend(both);
    }
    images
}

/// Members of arrays of all sorts.
fn md_members(level: i32, version: &'static str) -> [Vec<u8>; 2] {
    use crate::raid_forge::Member;
    [0, 1].map(|number| {
        let len = 16384 + 8192 * number as usize;
        let mut member = Member::new(version, level, number, 2, noise(len, u64::from(number)));
        member.layout = 2;
        member.size = 32;
        member.image()
    })
}

const MD_VERSIONS: [&str; 4] = ["0.90", "1.0", "1.1", "1.2"];

fn md_superblocks() -> Vec<Vec<u8>> {
    let members = MD_VERSIONS.map(|version| {
        let member = raid_forge::Member::new(version, 1, 0, 2, noise(16384, 1));
        let mut image = member.image();
        image.resize(image.len() + 4096, 0);
        image[member.superblock_at()..][..4096].to_vec()
    });
    members.to_vec()
}

pub(crate) fn md_disks() -> Vec<Vec<u8>> {
    let mut disks = Vec::new();
    for version in MD_VERSIONS {
        for level in [-1, 0, 1] {
            disks.push(raid_forge::disk(&md_members(level, version), 0xfd));
        }
    }
    disks.push(md_members(1, "1.2")[0].clone());
    disks
}

#[test]
fn lvm_text() {
    fuzz!("lvm_text", lvm_texts);
}

#[test]
fn lvm_open() {
    fuzz!("lvm_open", lvm_images);
}

#[test]
fn md_superblock() {
    fuzz!("md_superblock", md_superblocks);
}

#[test]
fn raid_open() {
    fuzz!("raid_open", md_disks);
}

#[test]
fn gpt() {
    fuzz!("gpt", gpt_disks);
}

#[test]
fn mbr() {
    fuzz!("mbr", mbr_disks);
}
