//! Files that an image names: chains of them, circles through several formats, what is no file.

use std::os::unix::fs::symlink;

use nbdserve::layer::{Args, LAYERS};
use nbdserve::references::{MOST_FILES, References};
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::{conformance, noise, tools};
use nbdserve::{Cx, Kind, Volume};

use crate::images::{Folder, MIB};

/// Overlays `n00`, `n01`, ... each on the next, the last one on a raw disk.
fn chain(folder: &Folder, overlays: usize) -> Vec<u8> {
    let disk = noise(MIB, 1);
    folder.write("base", &disk);
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-u", "-b", "n99", "-F", "qcow2", "n", "1M",
    ]);
    let image = folder.read("n");
    let at = image.windows(3).position(|name| name == b"n99").unwrap();
    for number in 1..overlays {
        let mut image = image.clone();
        image[at..at + 3].copy_from_slice(format!("n{number:02}").as_bytes());
        folder.write(&format!("n{:02}", number - 1), &image);
    }
    let last = format!("n{:02}", overlays - 1);
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", &last,
    ]);
    disk
}

#[test]
fn a_chain_of_as_many_files_as_there_may_be_is_read_and_a_longer_one_refused() {
    let folder = Folder::new();
    let disk = chain(&folder, MOST_FILES - 1);
    let volume = folder.open("qcow2", "n00").unwrap();
    assert!(conformance::read_all(&volume) == disk);
    let extents = volume
        .extents(nbdserve::ByteRange::between(0, MIB as u64))
        .unwrap();
    assert!(extents.runs().iter().all(|run| !run.flags.zero));
    volume.close().unwrap();
    drop(volume);

    let folder = Folder::new();
    chain(&folder, MOST_FILES);
    let error = folder.open("qcow2", "n00").unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error:?}");
    let report = error.report().to_string();
    assert!(
        report.contains("backing file \"base\" is one too many: 64 files"),
        "{report}"
    );
}

/// A descriptor of VMware with one extent.
fn descriptor(extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\n\n{extent}\n\nddb.adapterType = \"ide\"\n"
    )
}

#[test]
fn a_circle_through_several_formats_is_found() {
    let folder = Folder::new();
    folder.write("disk.vmdk", descriptor("RW 1 FLAT \"image\" 0").as_bytes());
    for (format, name) in [("vmdk", "disk.vmdk"), ("vmdk", "./disk.vmdk")] {
        folder.img(&[
            "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", format, "image", "1M",
        ]);
        let error = folder.open("qcow2", "image").unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        let report = error.report().to_string();
        assert!(
            report.contains("extent \"image\" is the image itself"),
            "{report}"
        );
        // From the other end it is no circle: the extent is bytes, whatever they say.
        assert!(folder.open("vmdk", "disk.vmdk").is_ok());
    }
    // A data file that is the image, and one that is its backing file, to be written.
    for name in ["image", "base"] {
        folder.write("base", &noise(MIB, 1));
        let option = "data_file=data,data_file_raw=off";
        folder.img(&[
            "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "-o", option, "image",
        ]);
        let mut image = folder.read("image");
        let kind = [0x44, 0x41, 0x54, 0x41, 0, 0, 0, 4];
        let at = image.windows(8).position(|part| part == kind).unwrap();
        let field = 8 + name.len().next_multiple_of(8);
        image[at + 4..at + 8].copy_from_slice(&(name.len() as u32).to_be_bytes());
        image[at + 8..at + field].fill(0);
        image[at + 8..at + 8 + name.len()].copy_from_slice(name.as_bytes());
        let path = folder.write("image", &image);
        let file = File::open(&path, OpenMode::Write).unwrap();
        let mut cx = Cx::new(16 << 20);
        cx.references = References::of(&path, &file, &[]).unwrap();
        let below = Volume::new(file);
        let layer = LAYERS.iter().find(|layer| layer.name == "qcow2").unwrap();
        let error = (layer.open)(&below, &Args::new(), &cx).unwrap_err();
        let kinds = [Kind::Corrupt, Kind::Denied];
        assert!(kinds.contains(&error.kind()), "{name}: {error:?}");
    }
}

#[test]
fn what_is_no_file_is_not_opened_as_one() {
    let folder = Folder::new();
    folder.write("image", b"");
    tools::run("mkfifo", [folder.path("pipe")]);
    let _socket = std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
    std::fs::create_dir(folder.path("folder")).unwrap();
    symlink("nowhere", folder.path("dangling")).unwrap();
    symlink("round", folder.path("round")).unwrap();
    symlink("/proc/self/fd/0", folder.path("descriptor")).unwrap();
    symlink("/dev/zero", folder.path("device")).unwrap();
    let path = folder.path("image");
    let file = File::open(&path, OpenMode::ReadOnly).unwrap();
    let inside = References::of(&path, &file, &[]).unwrap();
    let anywhere = References::of(&path, &file, &["/".into()]).unwrap();
    for (name, kinds, with_all) in [
        ("pipe", Kind::Corrupt, Kind::Corrupt),
        ("socket", Kind::Corrupt, Kind::Corrupt),
        ("folder", Kind::Corrupt, Kind::Corrupt),
        ("dangling", Kind::Io, Kind::Io),
        ("round", Kind::Denied, Kind::Denied),
        ("device", Kind::Denied, Kind::Corrupt),
        ("/dev/zero", Kind::Denied, Kind::Corrupt),
        ("/dev/null", Kind::Denied, Kind::Corrupt),
    ] {
        for (references, kind) in [(&inside, kinds), (&anywhere, with_all)] {
            let opened = references.open(name.as_bytes(), "backing file", OpenMode::ReadOnly);
            let error = opened.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), kind, "{name}: {error:?}");
            let text = error.to_string();
            assert!(text.contains(&format!("backing file \"{name}\"")), "{text}");
        }
    }
    // What a process has open is nobody's file.
    for references in [&inside, &anywhere] {
        let opened = references.open(b"descriptor", "backing file", OpenMode::ReadOnly);
        opened.map(|_| ()).unwrap_err();
    }
}

/// Whatever an image names: outside of its folder it is refused, and opens with the option that the
/// message gives.
#[test]
fn the_option_of_the_message_opens_what_lies_elsewhere() {
    for what in ["backing file", "data file", "extent", "parent"] {
        let folder = Folder::new();
        let disk = noise(MIB, 7);
        folder.write("out side/raw", &disk);
        std::fs::create_dir(folder.path("in")).unwrap();
        let (layer, name) = match what {
            "backing file" => {
                let create = ["create", "-q", "-f", "qcow2", "-F", "raw"];
                folder.img(&[&create[..], &["-b", "../out side/raw", "in/image"]].concat());
                ("qcow2", "in/image")
            }
            "data file" => {
                let options = "data_file=out side/data";
                folder.img(&[
                    "create", "-q", "-f", "qcow2", "-o", options, "in/image", "1M",
                ]);
                folder.img(&["convert", "-n", "-O", "qcow2", "out side/raw", "in/image"]);
                let absolute = folder.path("out side/data");
                let option = format!("data_file={}", absolute.display());
                folder.img(&["amend", "-f", "qcow2", "-o", &option, "in/image"]);
                ("qcow2", "in/image")
            }
            "extent" => {
                let text = descriptor("RW 2048 FLAT \"../out side/raw\" 0");
                folder.write("in/disk.vmdk", text.as_bytes());
                ("vmdk", "in/disk.vmdk")
            }
            _ => {
                folder.img(&[
                    "convert",
                    "-O",
                    "vmdk",
                    "out side/raw",
                    "out side/base.vmdk",
                ]);
                let create = ["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b"];
                let base = folder.path("out side/base.vmdk");
                folder.img(&[&create[..], &[base.to_str().unwrap(), "in/disk.vmdk"]].concat());
                ("vmdk", "in/disk.vmdk")
            }
        };
        let path = folder.path(name);
        let open = |allowed: &[std::path::PathBuf]| {
            let file = File::open(&path, OpenMode::ReadOnly).unwrap();
            let mut cx = Cx::new(16 << 20);
            cx.references = References::of(&path, &file, allowed).unwrap();
            let below = Volume::new(file);
            let layer = LAYERS.iter().find(|known| known.name == layer).unwrap();
            (layer.open)(&below, &Args::new(), &cx)
        };
        let report = open(&[]).unwrap_err().report();
        let text = report.to_string();
        assert!(
            text.contains("lies outside of the image's folder"),
            "{what}: {text}"
        );
        let hint = report.hint.unwrap();
        let option = hint.strip_prefix("--references '").unwrap();
        let option = option.strip_suffix("' allows it").unwrap();
        let volume = open(&[option.into()]).unwrap();
        assert!(conformance::read_all(&volume) == disk, "{what}");
    }
}
