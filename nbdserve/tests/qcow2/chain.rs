//! Backing files and data files.

use nbdserve::layer::Args;
use nbdserve::layer::qcow2::QCOW2;
use nbdserve::references::References;
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::conformance::{self, read_all};
use nbdserve::testing::noise;
use nbdserve::{Kind, Volume};

use crate::images::{Folder, MIB, compare_extents, cx};

/// `base` of raw, `middle` on it and `top` on that, each with some clusters of its own.
fn three(folder: &Folder, options: &str) {
    let base = noise(2 * MIB, 5);
    folder.write("base", &base);
    let mut below = ("base", "raw");
    for (name, at, size) in [("middle", 300_000, "3M"), ("top", 900_000, "4M")] {
        let mut args = vec!["create", "-q", "-f", "qcow2", "-b", below.0];
        args.extend(["-F", below.1]);
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([name, size]);
        folder.img(&args);
        let write = format!("write -P 0x77 {at} 200000");
        folder.io(
            name,
            &[&write, "write -z 1500k 100k", "write -P 3 2500k 9k"],
        );
        below = (name, "qcow2");
    }
}

#[test]
fn a_chain_of_three_reads_as_qemu_reads_it() {
    for options in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        let folder = Folder::new();
        three(&folder, options);
        let oracle = folder.oracle("top", &[]);
        assert_eq!(oracle.len(), 4 * MIB);
        let volume = folder.open("top").unwrap();
        assert!(read_all(&volume) == oracle, "{options}");
        compare_extents(&folder, "top", &volume);
        let notes = volume.notes();
        assert!(
            notes.contains(&"backing file \"middle\", qcow2".to_owned()),
            "{notes:?}"
        );
        assert!(
            notes.contains(&"backing file \"base\", raw".to_owned()),
            "{notes:?}"
        );
        volume.close().unwrap();
    }
}

#[test]
fn the_suite_holds_on_a_chain() {
    let folder = Folder::new();
    three(&folder, "extended_l2=on");
    let oracle = folder.oracle("top", &[]);
    conformance::check(|| (folder.open("top").unwrap(), oracle.clone()));
}

#[test]
fn a_backing_file_may_have_any_format_that_qemu_and_we_have() {
    for format in ["vmdk", "vdi", "vhdx", "vpc"] {
        let folder = Folder::new();
        folder.disk(3 * MIB, 4);
        folder.img(&["convert", "-f", "raw", "-O", format, "raw", "base"]);
        folder.img(&[
            "create", "-q", "-f", "qcow2", "-b", "base", "-F", format, "top",
        ]);
        folder.io("top", &["write -P 7 1M 100k"]);
        let volume = folder.open("top").unwrap();
        assert!(read_all(&volume) == folder.oracle("top", &[]), "{format}");
        volume.close().unwrap();
    }
}

#[test]
fn a_format_that_is_not_stated_is_found_and_said() {
    let folder = Folder::new();
    three(&folder, "");
    let oracle = folder.oracle("top", &[]);
    // qemu-img makes no such images any more: a type that nobody knows takes the format's place.
    for name in ["middle", "top"] {
        let mut bytes = folder.read(name);
        let kind = [0xe2, 0x79, 0x2a, 0xca];
        let at = bytes.windows(4).position(|four| four == kind).unwrap();
        bytes[at] ^= 0x55;
        folder.write(name, &bytes);
    }
    let volume = folder.open("top").unwrap();
    assert!(read_all(&volume) == oracle);
    let notes = volume.notes();
    let looks = "the format of the backing file \"middle\" is not stated, it looks like qcow2";
    assert!(notes.contains(&looks.to_owned()), "{notes:?}");
    let looks = "the format of the backing file \"base\" is not stated, it looks like raw";
    assert!(notes.contains(&looks.to_owned()), "{notes:?}");
}

#[test]
fn a_backing_file_may_be_longer_or_shorter() {
    let folder = Folder::new();
    let base = noise(MIB + 300, 8);
    folder.write("base", &base);
    for size in ["512k", "2M", "1G"] {
        folder.img(&[
            "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top", size,
        ]);
        let volume = folder.open("top").unwrap();
        let most = usize::try_from(volume.size()).unwrap().min(3 * MIB);
        let mut expected = base.clone();
        expected.resize(most, 0);
        assert!(volume.read_vec(0, most).unwrap() == expected, "{size}");
        compare_extents(&folder, "top", &volume);
    }
}

#[test]
fn a_file_outside_of_the_folder_is_refused_with_the_option_that_allows_it() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("in")).unwrap();
    folder.write("base", &noise(MIB, 1));
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-b", "../base", "-F", "raw", "in/top",
    ]);
    let error = folder.open("in/top").unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    let report = error.report().to_string();
    assert!(
        report.contains("backing file \"../base\"") && report.contains("--references"),
        "{report}"
    );
    let path = folder.path("in/top");
    let file = File::open(&path, OpenMode::ReadOnly).unwrap();
    let mut cx = cx();
    cx.references = References::of(&path, &file, &[folder.path("")]).unwrap();
    let below = Volume::new(file);
    let volume = (QCOW2.open)(&below, &Args::new(), &cx).unwrap();
    assert!(read_all(&volume) == noise(MIB, 1));
    // As over http, where there is no folder.
    cx.references = References::none();
    let error = (QCOW2.open)(&below, &Args::new(), &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
fn a_backing_file_that_is_the_image_itself_is_found() {
    let folder = Folder::new();
    folder.write("b", &noise(MIB, 1));
    folder.img(&["create", "-q", "-f", "qcow2", "-b", "b", "-F", "raw", "a"]);
    folder.img(&["rebase", "-u", "-b", "a", "-F", "qcow2", "a"]);
    let error = folder.open("a").unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("is the image itself"), "{error}");
    // By a detour.
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-u", "-b", "a", "-F", "qcow2", "c", "1M",
    ]);
    folder.img(&["rebase", "-u", "-b", "c", "-F", "qcow2", "a"]);
    let error = folder.open("a").unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let report = error.report().to_string();
    assert!(report.contains("a file that refers to it"), "{report}");
}

#[test]
fn formats_and_names_that_cannot_be_followed_are_named() {
    let folder = Folder::new();
    folder.write("base", &noise(MIB, 1));
    for (name, format, message) in [
        ("base", "parallels", "format \"parallels\""),
        ("base", "bochs", "format \"bochs\""),
        (
            "json:{\"driver\":\"raw\"}",
            "raw",
            "is not a plain file name",
        ),
        ("nbd://localhost/x", "raw", "is not a plain file name"),
    ] {
        folder.img(&[
            "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", format, "top", "1M",
        ]);
        let error = folder.open("top").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{name} {format}");
        assert!(error.to_string().contains(message), "{error}");
    }
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-u", "-b", "gone", "-F", "raw", "top", "1M",
    ]);
    let error = folder.open("top").unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(
        error.to_string().contains("backing file \"gone\""),
        "{error}"
    );
    // A backing file that is not what was said.
    folder.img(&[
        "create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", "top", "1M",
    ]);
    let error = folder.open("top").unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    assert!(
        error.to_string().contains("backing file \"base\""),
        "{error}"
    );
}

#[test]
fn clusters_in_a_data_file() {
    for options in [
        "",
        ",data_file_raw=on",
        ",extended_l2=on",
        ",cluster_size=4k",
    ] {
        let folder = Folder::new();
        let options = format!("data_file=data{options}");
        folder.create("image", "3M", &options);
        folder.io(
            "image",
            &[
                "write -P 1 0 70k",
                "write -P 2 1M 100k",
                "write -z 1060k 20k",
                "write -P 3 2M 5k",
            ],
        );
        let oracle = folder.oracle("image", &[]);
        let volume = folder.open("image").unwrap();
        assert!(read_all(&volume) == oracle, "{options}");
        compare_extents(&folder, "image", &volume);
        let note = "clusters are in the data file \"data\"".to_owned();
        assert!(volume.notes().contains(&note), "{:?}", volume.notes());
        drop(volume);
        if options.contains("raw") {
            assert!(folder.read("data") == oracle);
        }
        std::fs::rename(folder.path("data"), folder.path("elsewhere")).unwrap();
        let error = folder.open("image").unwrap_err();
        assert!(error.to_string().contains("data file \"data\""), "{error}");
        assert_eq!(error.kind(), Kind::Io);
    }
    let folder = Folder::new();
    folder.create("image", "2M", "data_file=data");
    folder.io("image", &["write -P 1 0 70k"]);
    conformance::check(|| {
        let mut expected = vec![1; 70 << 10];
        expected.resize(2 * MIB, 0);
        (folder.open("image").unwrap(), expected)
    });
}
