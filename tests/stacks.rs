//! Stacks of layers by the built program: sparse disks stay sparse, discs that are disks too,
//! reading ahead of time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::images::{self, ROOT_SIZE, copy_into, make_sparse};
use common::sandbox::EVERYBODY;
use common::{Sandbox, Who, json, must, require_tool, until};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// `xz` of what `make` writes into a file of so many bytes.
fn xz(sandbox: &Sandbox, name: &str, raw: &Path, options: &[&str]) -> PathBuf {
    let file = sandbox.new_file(name, b"");
    images::xz(raw, &file, options);
    file
}

/// A disk of 100 GiB with an ext4 at its start, compressed: zeroes are streams that are repeated.
fn large_sparse(sandbox: &Sandbox) -> PathBuf {
    let block = "--block-size=16MiB";
    let ext4 = common::images().ext4();
    let head = sandbox.join("head");
    make_sparse(&head, 64 * MIB);
    copy_into(&ext4, &head, 0);
    let head = fs::read(xz(sandbox, "head.xz", &head, &["-0", "-T2", block])).unwrap();
    let gap = sandbox.join("gap");
    make_sparse(&gap, 64 * MIB);
    let gap = fs::read(xz(sandbox, "gap.xz", &gap, &["-0", "-T2", block])).unwrap();
    let file = [head, gap.repeat(1599)].concat();
    sandbox.new_file("disk.raw.xz", file)
}

#[test]
fn a_large_sparse_disk_is_copied_and_counted_as_such() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = large_sparse(&sandbox);
        let shown = sandbox.join("disk.raw");
        sandbox
            .loopmount()
            .arg("--fuse")
            .args([&image, &shown])
            .ok();
        let stat = |format: &str| {
            let out = sandbox.tool("stat").args(["-c", format]).arg(&shown).ok();
            out.out().trim().parse::<u64>().unwrap()
        };
        assert_eq!(stat("%s"), 100 * GIB);
        let allocated = stat("%b") * 512;
        assert!(allocated <= ROOT_SIZE, "{allocated} bytes of du");
        let copy = sandbox.join("copy");
        for sparse in ["auto", "always"] {
            sandbox
                .tool("cp")
                .arg(format!("--sparse={sparse}"))
                .args([&shown, &copy])
                .ok();
            let copied = fs::metadata(&copy).unwrap();
            assert_eq!(copied.len(), 100 * GIB);
            assert!(copied.blocks() * 512 <= ROOT_SIZE, "--sparse={sparse}");
            fs::remove_file(&copy).unwrap();
        }
        let stats = sandbox
            .loopmount()
            .args(["--stats", "--json"])
            .arg(&shown)
            .ok()
            .out();
        let stats = json::parse(&stats);
        let layers = stats[0]["layers"].as_array().unwrap();
        let xz = layers.iter().find(|layer| layer["name"] == "xz").unwrap();
        let decodes = xz["blocks"]["decodes"].as_u64().unwrap();
        assert!(decodes <= 30, "{decodes} blocks were decoded, of 6400");
        sandbox.unmount(&shown);
        sandbox.assert_clean();
    }
}

/// An ISO image with a table in its first sector, as isohybrid makes it, and an ext2 behind it that
/// is its second partition.
fn hybrid(sandbox: &Sandbox) -> PathBuf {
    require_tool("sfdisk", "fdisk");
    let (iso, ext2) = (common::images().iso(), common::images().ext2());
    let start = fs::metadata(&iso).unwrap().len().next_multiple_of(MIB);
    let size = fs::metadata(&ext2).unwrap().len();
    let disk = sandbox.new_file("x.iso", fs::read(&iso).unwrap());
    fs::File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .set_len(start + size)
        .unwrap();
    copy_into(&ext2, &disk, start);
    let table = format!(
        "label: dos\nstart=64, size={}, type=17\nstart={}, size={}, type=83\n",
        start / 512 - 64,
        start / 512,
        size / 512
    );
    let script = sandbox.new_file("table", table);
    must(
        Command::new("sfdisk")
            .args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never"])
            .arg(&disk)
            .stdin(fs::File::open(script).unwrap()),
    );
    disk
}

#[test]
fn a_hybrid_iso_is_an_iso_and_with_a_partition_asked_for_a_disk() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let plain = hybrid(&sandbox);
        let packed = xz(&sandbox, "x.iso.xz", &plain, &["-0", "--block-size=1MiB"]);
        for image in [plain, packed] {
            let info = sandbox
                .loopmount()
                .args(["--info", "--json"])
                .arg(&image)
                .ok()
                .out();
            json::has(&json::parse(&info), &["iso9660", "EYE"]);
            // What the user gets without -P is the disc, byte for byte.
            let whole = sandbox.join("whole");
            sandbox
                .loopmount()
                .arg("--fuse")
                .args([&image, &whole])
                .ok();
            let bytes = sandbox.read(&whole);
            assert_eq!(&bytes[32769..32774], b"CD001");
            sandbox.unmount(&whole);

            let point = sandbox.mount(&["-P", "2"], &image, "mnt");
            let names = sandbox.tool("ls").arg(&point).ok().out();
            assert!(names.contains("lost+found"), "{names}");
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_bare_file_system_is_mounted_without_a_partition_table() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let ext4 = common::images().ext4();
        let plain = sandbox.image(&ext4);
        let packed = xz(
            &sandbox,
            "fs.xz",
            &ext4,
            &["-0", "-T2", "--block-size=4MiB"],
        );
        for image in [plain, packed] {
            let point = sandbox.mount(&[], &image, "mnt");
            let text = sandbox.read_text(point.join("etc/os-release"));
            assert!(text.contains("ID=rich"), "{text}");
            sandbox.unmount(&point);
            fs::remove_dir(point).unwrap();
            sandbox
                .loopmount()
                .args(["-P", "1", "--info"])
                .arg(&image)
                .fails(1)
                .says(&["partition"]);
        }
    }
}

/// How far the prefetch of the only unit is.
fn prefetched(sandbox: &Sandbox, what: &Path) -> serde_json::Value {
    let out = sandbox
        .loopmount()
        .args(["--stats", "--json"])
        .arg(what)
        .ok()
        .out();
    json::parse(&out)[0]["prefetch"].clone()
}

#[test]
fn a_prefetch_reads_all_of_what_is_served_in_the_background() {
    for who in EVERYBODY {
        let (sandbox, image) = common::sandbox::with_small_disk(who);
        let shown = sandbox.join("disk.raw");
        sandbox
            .loopmount()
            .args(["--prefetch", "--fuse"])
            .args([&image, &shown])
            .ok();
        until("the prefetch has ended", || {
            prefetched(&sandbox, &shown)["ended"] == true
        });
        let end = prefetched(&sandbox, &shown);
        assert_eq!(end["done"], end["total"], "{end}");
        assert_eq!(end["failed"], 0);
        let text = sandbox.loopmount().arg("--stats").arg(&shown).ok().out();
        assert!(text.contains("prefetch: 16 MiB of 16 MiB, done"), "{text}");
        sandbox.unmount(&shown);
        // Without it there is nothing to tell.
        sandbox
            .loopmount()
            .arg("--fuse")
            .args([&image, &shown])
            .ok();
        assert!(prefetched(&sandbox, &shown).is_null());
        sandbox.unmount(&shown);
        sandbox.assert_clean();
    }
}

/// An image that takes long to decode: hours would not do.
fn slow(sandbox: &Sandbox) -> PathBuf {
    let mut state = 1_u64;
    let part: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 60) as u8
    })
    .take((4 * MIB) as usize)
    .collect();
    let raw = sandbox.new_file("part", part);
    let part = fs::read(xz(
        sandbox,
        "part.xz",
        &raw,
        &["-0", "--lzma2=dict=64KiB,mode=fast"],
    ));
    sandbox.new_file("slow.xz", part.unwrap().repeat(30))
}

#[test]
fn unmounting_stops_a_prefetch_at_once() {
    for who in EVERYBODY {
        let sandbox = Sandbox::new(who);
        let image = slow(&sandbox);
        let shown = sandbox.join("shown");
        sandbox
            .loopmount()
            .args(["--prefetch", "--fuse"])
            .args([&image, &shown])
            .ok();
        let mut now = serde_json::Value::Null;
        until("the prefetch has begun", || {
            now = prefetched(&sandbox, &shown);
            now["done"].as_u64() > Some(0)
        });
        assert_eq!(now["total"], 120 * MIB);
        // It runs, so it is stopped.
        assert_eq!(now["ended"], false, "{now}");
        sandbox.unmount(&image);
        sandbox.assert_clean();
    }
}

#[test]
fn without_a_target_all_is_read_now() {
    let (sandbox, image) = common::sandbox::with_small_disk(Who::User);
    sandbox
        .loopmount()
        .arg("--prefetch")
        .arg(&image)
        .ok()
        .says_at_last(&["read 16 MiB"]);
    sandbox
        .loopmount()
        .args(["--prefetch", "-P", "2"])
        .arg(&image)
        .ok()
        .says_at_last(&["read "]);
    // Nothing of a plain file is kept, and that is said.
    let plain = sandbox.new_file("plain", vec![1; 100_000]);
    sandbox
        .loopmount()
        .args(["--prefetch", "--layer=raw"])
        .arg(&plain)
        .ok()
        .says_at_last(&["nothing of it is kept but by the kernel"]);
}

#[test]
fn a_signal_stops_a_prefetch_in_the_foreground() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let sandbox = Sandbox::new(Who::User);
        let image = slow(&sandbox);
        let running = sandbox.loopmount().arg("--prefetch").arg(&image).spawn();
        let pid = running.pid();
        until("it reads", || has_read(pid, 8 * MIB));
        running.signal(signal);
        let outcome = running.wait();
        assert_eq!(outcome.code(), code, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("stopped"), "{}", outcome.stderr);
        sandbox.assert_clean();
    }
}

/// Whether a process, or the one it has become, has read so many bytes.
fn has_read(pid: u32, bytes: u64) -> bool {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.is_some_and(|read| read.parse::<u64>().unwrap() >= bytes)
}
