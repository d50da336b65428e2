//! Disks of other machines, made by qemu-img and mounted by the built program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::images;
use common::sandbox::{EVERYBODY, with_small_disk};
use common::{Sandbox, Who, must, require_tool};

/// The carried disk, decoded, in a sandbox.
fn raw_disk(who: Who) -> (Sandbox, PathBuf) {
    require_tool("qemu-img", "qemu-utils");
    let (sandbox, packed) = with_small_disk(who);
    let raw = sandbox.new_file("disk.raw", b"");
    must(
        Command::new("sh")
            .args(["-c", "xz -dc \"$0\" > \"$1\""])
            .args([&packed, &raw]),
    );
    (sandbox, raw)
}

/// `qemu-img convert` to an image that the sandbox's user may read.
fn convert(sandbox: &Sandbox, raw: &Path, name: &str, format: &str, options: &str) -> PathBuf {
    let image = sandbox.new_file(name, b"");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", format]);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    must(command.arg(raw).arg(&image));
    image
}

fn mounts(sandbox: &Sandbox, image: &Path) {
    let name = image.file_name().unwrap().to_str().unwrap();
    let point = sandbox.mount(&[], image, &format!("on-{name}"));
    let hello = sandbox.read_text(point.join(images::HELLO));
    assert!(hello.starts_with("If you can read this"), "{hello}");
    sandbox.unmount(&point);
}

#[test]
fn every_format_is_mounted() {
    for who in EVERYBODY {
        let (sandbox, raw) = raw_disk(who);
        for (name, format, options) in [
            ("disk.vdi", "vdi", ""),
            ("fixed.vdi", "vdi", "static=on"),
            ("disk.vhd", "vpc", "force_size=on"),
            ("fixed.vhd", "vpc", "subformat=fixed,force_size=on"),
            ("disk.vhdx", "vhdx", "block_size=1M"),
            ("sparse.vmdk", "vmdk", "subformat=monolithicSparse"),
            ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
            ("flat.vmdk", "vmdk", "subformat=monolithicFlat"),
            ("parts.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
        ] {
            let image = convert(&sandbox, &raw, name, format, options);
            for extent in ["flat-flat.vmdk", "parts-s001.vmdk"] {
                // Made by us, to be read by the user.
                let path = sandbox.join(extent);
                if path.exists() {
                    must(Command::new("chmod").arg("a+r").arg(&path));
                }
            }
            mounts(&sandbox, &image);
        }
        sandbox.assert_clean();
    }
}

/// Whether a disk was cut off is seen in its tables, which have to be decoded when it is packed.
#[test]
fn info_reads_the_tables_of_what_is_packed() {
    require_tool("qemu-img", "qemu-utils");
    let sandbox = Sandbox::new(Who::User);
    // Numbers in some order, of which packing leaves some MiB.
    let number = |n: u32| {
        n.wrapping_mul(0x9e37_79b1)
            .rotate_left(n % 31)
            .to_le_bytes()
    };
    let bytes: Vec<u8> = (0..2 << 20).flat_map(number).collect();
    let raw = sandbox.new_file("disk.raw", bytes);
    let options = "subformat=streamOptimized";
    let image = convert(&sandbox, &raw, "disk.vmdk", "vmdk", options);
    for program in ["gzip", "xz"] {
        let packed = must(Command::new(program).args(["-1", "-c"]).arg(&image));
        let packed = sandbox.new_file(format!("disk.{program}"), packed);
        let info = sandbox.loopmount().arg("--info").arg(&packed).ok().out();
        assert!(info.contains("vmdk"), "{info}");
        assert!(!info.contains("cannot be read"), "{info}");
    }
}

#[test]
fn the_disk_in_an_ova_is_mounted() {
    for who in EVERYBODY {
        let (sandbox, raw) = raw_disk(who);
        let stream = "subformat=streamOptimized";
        let disk = convert(&sandbox, &raw, "box-disk1.vmdk", "vmdk", stream);
        let descriptor = "<?xml version=\"1.0\"?>\n\
             <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
             xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\n\
             <References><File ovf:href=\"box-disk1.vmdk\" ovf:id=\"file1\"/></References>\n\
             <DiskSection><Disk ovf:capacity=\"1\" ovf:diskId=\"d\" ovf:fileRef=\"file1\"/>\
             </DiskSection></Envelope>\n";
        let ovf = sandbox.new_file("box.ovf", descriptor.as_bytes());
        let ova = sandbox.new_file("box.ova", b"");
        let folder = ovf.parent().unwrap();
        let mut command = Command::new("tar");
        command
            .arg("--format=ustar")
            .arg("-C")
            .arg(folder)
            .arg("-cf");
        must(command.arg(&ova).args(["box.ovf", "box-disk1.vmdk"]));
        fs::remove_file(&disk).unwrap();
        mounts(&sandbox, &ova);
        let info = sandbox.loopmount().arg("--info").arg(&ova).ok().out();
        assert!(info.contains("vmdk"), "{info}");
        sandbox.assert_clean();
    }
}

#[test]
fn an_extent_elsewhere_takes_the_option_that_the_message_gives() {
    for who in EVERYBODY {
        let (sandbox, raw) = raw_disk(who);
        let flat = "subformat=monolithicFlat";
        let image = convert(&sandbox, &raw, "disk.vmdk", "vmdk", flat);
        let far = sandbox.new_file("far.img", b"");
        fs::rename(sandbox.join("disk-flat.vmdk"), &far).unwrap();
        must(Command::new("chmod").arg("a+r").arg(&far));
        let inner = sandbox.new_dir("inner");
        let moved = inner.join("disk.vmdk");
        let text = fs::read_to_string(&image).unwrap();
        let text = text.replace("disk-flat.vmdk", "../far.img");
        fs::write(&moved, text).unwrap();
        must(Command::new("chmod").arg("a+r").arg(&moved));
        let point = sandbox.new_dir("point");
        let said = sandbox.loopmount().arg(&moved).arg(&point).fails(1);
        said.says(&["--references"]);
        let folder = sandbox.join(".");
        let folder = folder.to_str().unwrap();
        let mounted = sandbox.mount(&["--references", folder], &moved, "mnt");
        let hello = sandbox.read_text(mounted.join(images::HELLO));
        assert!(hello.starts_with("If you can read this"), "{hello}");
        sandbox.unmount(&mounted);
        sandbox.assert_clean();
    }
}
