//! File systems.

use std::fs;

use nbdserve::testing::{noise, tools};

use crate::made::{content, made_by};

pub(crate) fn file_systems() -> Vec<Vec<u8>> {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), content()).unwrap();
    let tree = tree.path().to_str().unwrap();
    let into = |program: &str, args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        let file_arg = file.to_str().unwrap();
        let args = args
            .iter()
            .map(|arg| if *arg == "FILE" { file_arg } else { arg });
        tools::run(program, args);
        fs::read(&file).unwrap()
    };
    vec![
        made_by(256 << 10, "mkfs.ext4", &["-q", "-F", "-L", "l"]),
        made_by(256 << 10, "mkfs.vfat", &["-n", "LABEL"]),
        into("mksquashfs", &[tree, "FILE", "-quiet", "-no-progress"]),
        into("mkfs.erofs", &["--quiet", "FILE", tree]),
        into("genisoimage", &["-quiet", "-J", "-R", "-o", "FILE", tree]),
        made_by(64 << 10, "mkswap", &[]),
    ]
}

/// File systems with an extent tree and with a block map, whose folder has nodes.
fn ext_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir_all(root.join("sub/folder")).unwrap();
    for n in 0..100 {
        let name = format!("{n:03}{}", "x".repeat(200));
        fs::write(root.join("sub").join(name), noise(1500, n)).unwrap();
    }
    fs::write(root.join("long"), noise(100_000, 1)).unwrap();
    let forms = [
        &["ext4", "-O", "^has_journal,meta_bg,^resize_inode"][..],
        &["ext2"],
    ];
    let make = |form: &&[&str]| {
        let mut command = tools::command("mke2fs");
        command.args(["-q", "-F", "-b", "1024", "-N", "256", "-t"]);
        command.args(*form).arg("-d").arg(&root);
        tools::run_command(command.arg(&image).arg("600K"));
        let made = fs::read(&image).unwrap();
        fs::remove_file(&image).unwrap();
        made
    };
    forms.iter().map(make).collect()
}

#[test]
fn foresight() {
    fuzz!("foresight", ext_files);
}
