//! An OVA: the descriptor says which file is the disk.

use std::fs;

use nbdserve::Kind;
use nbdserve::source::Memory;

use crate::forge::{end, file};
use crate::tools::{cx, ext4, read_all, resolve, tar};

/// A descriptor as VirtualBox and VMware write them.
fn descriptor(files: &[(&str, &str)], disks: &[&str]) -> String {
    let files: String = files
        .iter()
        .map(|(id, href)| format!("<File ovf:href=\"{href}\" ovf:id=\"{id}\"/>\n"))
        .collect();
    let disks: String = disks
        .iter()
        .map(|id| format!("<Disk ovf:capacity=\"1\" ovf:diskId=\"d\" ovf:fileRef=\"{id}\"/>\n"))
        .collect();
    format!(
        "<?xml version=\"1.0\"?>\n\
         <Envelope ovf:version=\"1.0\" xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\n\
         <References>\n{files}</References>\n\
         <DiskSection>\n<Info>disks &amp; more</Info>\n{disks}</DiskSection>\n</Envelope>\n"
    )
}

/// How the choice in an archive of these files ends: the layer, or kind and message.
fn chosen(files: &[(&str, &[u8])]) -> Result<String, (Kind, String)> {
    let mut bytes: Vec<u8> = files
        .iter()
        .flat_map(|(name, bytes)| file(name, bytes))
        .collect();
    bytes.extend(end());
    match resolve(Memory::volume(bytes), &[], &cx()) {
        Ok(found) => Ok(found.plan.layers[0].to_string()),
        Err(error) => Err((error.kind(), error.to_string())),
    }
}

#[test]
fn the_disk_of_the_descriptor_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = ext4(dir, "disk-1.img", 256);
    ext4(dir, "extra.iso", 256);
    let files = [("iso", "extra.iso"), ("f1", "disk-1.img")];
    fs::write(dir.join("box.OVF"), descriptor(&files, &["f1"])).unwrap();
    fs::write(dir.join("box.mf"), "SHA256(box.ovf)= 0\n").unwrap();
    let bytes = tar(
        dir,
        &[
            "--format=ustar",
            "box.OVF",
            "box.mf",
            "extra.iso",
            "disk-1.img",
        ],
    );
    let found = resolve(Memory::volume(bytes), &[], &cx()).unwrap();
    assert!(read_all(&found.volume) == disk);
    assert_eq!(found.plan.layers[0].to_string(), "tar:disk-1.img");
    let note = "the OVF descriptor box.OVF says that it is the disk";
    assert_eq!(found.steps[0].notes, [note]);
}

#[test]
fn references_are_names_to_look_up() {
    let disk: &[u8] = &[7; 3000];
    for (href, name) in [
        ("../../etc/passwd", "../../etc/passwd"),
        ("/etc/passwd", "/etc/passwd"),
        ("./disk", "disk"),
        ("a%20b", "a b"),
        ("a%20b", "a%20b"),
        ("a&amp;b", "a&b"),
    ] {
        let text = descriptor(&[("f", href)], &["f"]);
        let found = chosen(&[
            ("x.ovf", text.as_bytes()),
            ("other", &[8; 3000]),
            (name, disk),
        ]);
        assert_eq!(found, Ok(format!("tar:{name}")));
    }
    for href in [
        "http://host/disk",
        "file:///etc/passwd",
        "/etc/passwd",
        "..",
    ] {
        let text = descriptor(&[("f", href)], &["f"]);
        let (kind, what) = chosen(&[("x.ovf", text.as_bytes()), ("disk", disk)]).unwrap_err();
        assert_eq!(kind, Kind::Corrupt);
        let expected = format!("names \"{href}\", which is not in the archive");
        assert!(what.ends_with(&expected), "{what}");
    }
}

#[test]
fn several_disks_none_and_damage_are_errors() {
    let files = [("a", "a.img"), ("b", "b.img")];
    let with = |text: &str| {
        chosen(&[
            ("x.ovf", text.as_bytes()),
            ("a.img", &[1; 1000]),
            ("b.img", &[2; 2000]),
        ])
    };
    let (kind, what) = with(&descriptor(&files, &["a", "b"])).unwrap_err();
    assert_eq!(kind, Kind::NotThisFormat);
    let expected = "tar: the OVF descriptor x.ovf names 2 disks; there are a.img (1000 B), \
                    b.img (1.9 KiB)";
    assert_eq!(what, expected);
    // Two disks in one file are no choice.
    assert_eq!(
        with(&descriptor(&files, &["b", "b"])),
        Ok("tar:b.img".to_owned())
    );
    let (kind, what) = with(&descriptor(&files, &[])).unwrap_err();
    assert_eq!(
        (kind, &*what),
        (
            Kind::NotThisFormat,
            "tar: the OVF descriptor x.ovf names no disk"
        )
    );
    let (kind, what) = with(&descriptor(&files, &["c"])).unwrap_err();
    assert_eq!(kind, Kind::Corrupt);
    assert!(
        what.contains("a disk in the file \"c\", which it does not list"),
        "{what}"
    );
    let whole = descriptor(&files, &["a"]);
    let (kind, _) = with(whole.split("</Envelope>").next().unwrap()).unwrap_err();
    assert_eq!(kind, Kind::Corrupt);
    let chunks = whole.replace(
        "ovf:href=\"a.img\"",
        "ovf:href=\"a.img\" ovf:chunkSize=\"5\"",
    );
    assert_eq!(with(&chunks).unwrap_err().0, Kind::Unsupported);
    let long = format!("{whole}{}", " ".repeat(5 << 20));
    assert_eq!(with(&long).unwrap_err().0, Kind::Limit);
    // By name it opens all the same.
    let mut bytes = [file("x.ovf", b"<Envelope>"), file("a.img", &[1; 1000])].concat();
    bytes.extend(end());
    let found = resolve(Memory::volume(bytes), &["tar:a.img"], &cx()).unwrap();
    assert_eq!(found.volume.size(), 1000);
}

#[test]
fn another_file_of_that_name_is_no_descriptor() {
    let found = chosen(&[("notes.ovf", b""), ("disk", &[1; 1000])]);
    assert_eq!(found, Ok("tar:disk".to_owned()));
    // Nor is one that is not the first.
    let text = descriptor(&[("f", "b")], &["f"]);
    let found = chosen(&[
        ("a", &[1; 1000]),
        ("x.ovf", text.as_bytes()),
        ("b", &[2; 1000]),
    ]);
    assert_eq!(found.unwrap_err().0, Kind::NotThisFormat);
}
