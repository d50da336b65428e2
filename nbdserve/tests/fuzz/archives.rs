//! Archives.

use std::fs;

use nbdserve::testing::{noise, tools};

use crate::made::content;

/// Archives of all formats, with long names, links and holes.
fn tar_files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let long = "long".repeat(30);
    fs::write(dir.join("file"), &content()[..3000]).unwrap();
    fs::write(dir.join(&long), "text").unwrap();
    fs::hard_link(dir.join("file"), dir.join("link")).unwrap();
    let holes = fs::File::create(dir.join("holes")).unwrap();
    holes.set_len(200_000).unwrap();
    for n in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"data", n * 4096).unwrap();
    }
    let made = |options: &[&str]| {
        let mut command = tools::command("tar");
        command.args(["-cf", "out.tar"]).args(options);
        command.args(["file", "link", "holes"]).current_dir(dir);
        tools::run_command(&mut command);
        fs::read(dir.join("out.tar")).unwrap()
    };
    let long = long.as_str();
    vec![
        made(&["--format=v7"]),
        made(&["--format=ustar"]),
        made(&["-S", "--format=gnu", long]),
        made(&["-S", "--format=posix", "--sparse-version=0.0", long]),
        made(&["-S", "--format=posix", "--sparse-version=0.1", long]),
        made(&["-S", "--format=posix", "--sparse-version=1.0", long]),
    ]
}

#[test]
fn tar_open() {
    fuzz!("tar_open", tar_files);
}

#[test]
fn tar_headers() {
    fuzz!("tar_headers", tar_files);
}

#[test]
fn ova() {
    let text = "<?xml version='1.0'?><Envelope xmlns:ovf='x'><References>\
                <File ovf:id='f' ovf:href='disk%2eimg'/><!-- c --></References>\
                <DiskSection><Info>&amp;<![CDATA[<]]></Info><Disk ovf:fileRef=\"&#102;\"/>\
                </DiskSection></Envelope>";
    fuzz!("ova", || vec![text.as_bytes().to_vec()]);
}

#[test]
fn zip_open() {
    fuzz!("zip_open", || {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::write(dir.join("file"), &content()[..3000]).unwrap();
        fs::write(dir.join("more"), content()).unwrap();
        let made = |options: &[&str]| {
            let _ = fs::remove_file(dir.join("out.zip"));
            let mut command = tools::command("zip");
            command
                .arg("-q")
                .args(options)
                .args(["out.zip", "file", "more"]);
            tools::run_command(command.current_dir(dir));
            fs::read(dir.join("out.zip")).unwrap()
        };
        vec![
            made(&["-0"]),
            made(&["-0", "-X", "-fz"]),
            made(&["-9"]),
            made(&["-Z", "bzip2"]),
            [noise(999, 1), made(&["-0"])].concat(),
        ]
    });
}
