//! Logical volumes and arrays that a Linux kernel made and filled, inside user-mode Linux: what it reads
//! is what we read, and what we write is what it reads.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/common/uml.rs"]
mod uml;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbdserve::plan::{self, Info, LayerSpec, Pick, Plan, Purpose, Request, Resolved};
use nbdserve::source::{File, OpenMode};
use nbdserve::testing::{Rng, conformance, noise};
use nbdserve::{Cx, Kind, Volume};

/// For one test in its kernel.
const LIMIT: Duration = Duration::from_secs(600);
const MIB: u64 = 1 << 20;

/// Runs a shell script to its end; every command must succeed.
#[track_caller]
fn sh(script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]);
    // LVM2 and mdadm without udev.
    command
        .env("LVM_SYSTEM_DIR", "/run/lvm")
        .env("MDADM_NO_UDEV", "1");
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A disk with an MBR and partitions of so many MiB each, of the type `kind`; and a loop device for each
/// partition.
struct Disk {
    path: PathBuf,
    parts: Vec<(u64, u64)>,
}

impl Disk {
    fn new(name: &str, kind: &str, sizes: &[u64]) -> Self {
        let path = Path::new("/tmp").join(name);
        let (mut table, mut parts, mut next) = ("label: dos\n".to_owned(), Vec::new(), 1);
        for size in sizes {
            let (start, size_sectors) = (next * 2048, size * 2048);
            writeln!(table, "start={start}, size={size_sectors}, type={kind}").unwrap();
            parts.push((next * MIB, size * MIB));
            next += size;
        }
        fs::File::create(&path)
            .unwrap()
            .set_len((next + 1) * MIB)
            .unwrap();
        fs::write("/tmp/table", table).unwrap();
        sh(&format!(
            "sfdisk --quiet --no-reread --no-tell-kernel {} < /tmp/table",
            path.display()
        ));
        Self { path, parts }
    }

    /// Loop devices for the partitions.
    fn attach(&self) -> Vec<String> {
        let parts = self.parts.iter().map(|(start, size)| {
            let path = self.path.display();
            let command = format!("losetup -f --show -o {start} --sizelimit {size} {path}");
            sh(&command).trim().to_owned()
        });
        parts.collect()
    }

    fn detach(&self, devices: &[String]) {
        sh(&format!("sync; losetup -d {}", devices.join(" ")));
    }

    fn volume(&self, mode: OpenMode) -> Volume {
        Volume::new(File::open(&self.path, mode).unwrap())
    }

    fn resolve(&self, pick: Pick, mode: OpenMode) -> nbdserve::Result<Resolved> {
        let request = Request {
            layers: Vec::new(),
            pick,
            purpose: Purpose::Bytes,
            ..Request::default()
        };
        plan::resolve(self.volume(mode), "disk", &request, &|_, _| None, &cx())
    }

    fn named(&self, name: &str) -> nbdserve::Result<Resolved> {
        self.resolve(Pick::Partition(name.to_owned()), OpenMode::ReadOnly)
    }

    /// What we read of the volume called `name`.
    #[track_caller]
    fn read(&self, name: &str) -> Vec<u8> {
        let resolved = self
            .named(name)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        conformance::read_all(&resolved.volume)
    }

    #[track_caller]
    fn refuses(&self, name: &str, words: &[&str]) {
        let error = self.named(name).expect_err(name);
        assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
        for word in words {
            assert!(error.to_string().contains(word), "{name}: {error}");
        }
    }

    fn layer(&self, spec: &str, mode: OpenMode) -> nbdserve::Result<Volume> {
        let layer: LayerSpec = spec.parse().unwrap();
        let plan = Plan {
            source: "disk".to_owned(),
            layers: vec![layer],
            partition: None,
            content: plan::Content::Bytes,
        };
        plan::reopen(self.volume(mode), &plan, &cx()).map(|opened| opened.volume)
    }

    fn info(&self) -> String {
        let resolved = plan::inspect(self.volume(OpenMode::ReadOnly), "disk", &[], &cx()).unwrap();
        Info::new(&resolved).to_string()
    }
}

fn cx() -> Cx {
    Cx::new(32 << 20)
}

/// Fills a device of the kernel with noise and returns what it holds.
fn fill(device: &str, seed: u64) -> Vec<u8> {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(device)
        .unwrap();
    let size: u64 = sh(&format!("blockdev --getsize64 {device}"))
        .trim()
        .parse()
        .unwrap();
    let bytes = noise(usize::try_from(size).unwrap(), seed);
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap();
    bytes
}

/// Writes here and there through `volume` and says what it must hold then.
fn scribble(volume: &Volume, mut bytes: Vec<u8>, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let writer = volume.need_writer().unwrap();
    for step in 0..60 {
        let range = rng.range(volume.size(), 300_000);
        let piece = noise(usize::try_from(range.len()).unwrap(), seed + step);
        writer
            .write_at(&piece, range.start(), step % 5 == 0)
            .unwrap();
        let start = usize::try_from(range.start()).unwrap();
        bytes[start..start + piece.len()].copy_from_slice(&piece);
    }
    writer.flush().unwrap();
    volume.close().unwrap();
    bytes
}

/// The kernel's modules, and the settings of LVM2.
fn prepare(modules: &str) {
    sh(&format!(
        "for m in {modules}; do modprobe -d /run/kmod $m; done
         mkdir -p /run/lvm
         printf 'activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}\ndevices {{ use_devicesfile=0 }}\n\
         global {{ thin_check_executable=\"\" cache_check_executable=\"\" }}\n' > /run/lvm/lvm.conf"
    ));
}

#[test]
fn logical_volumes_are_what_the_kernel_makes_of_them() {
    uml::inside(
        "logical_volumes_are_what_the_kernel_makes_of_them",
        LIMIT,
        || {
            prepare("dm-mod");
            let disk = Disk::new("disk", "8e", &[40, 24, 32]);
            let devices = disk.attach();
            let all = devices.join(" ");
            let (a, b, c) = (&devices[0], &devices[1], &devices[2]);
            sh(&format!(
                "pvcreate -q {all}; vgcreate -q -s 1M my-vg {all}
             lvcreate -y -q -l 5 -n first my-vg {a}
             lvcreate -y -q -l 3 -n gap my-vg {a}
             lvcreate -y -q -i 2 -I 64 -l 8 -n two my-vg {a} {b}
             lvcreate -y -q -i 3 -I 4 -l 9 -n three my-vg
             lvextend -q -l +4 my-vg/first {b}; lvextend -q -l +2 my-vg/first {c}
             lvremove -y -q my-vg/gap; lvextend -q -l +2 my-vg/first {a}
             lvcreate -y -q -l 6 -n shrunk my-vg; lvreduce -q -f -l 2 my-vg/shrunk
             lvrename -q my-vg shrunk re.named-lv
             lvextend -q -i 2 -I 16 -l +4 my-vg/two"
            ));
            let names = ["first", "two", "three", "re.named-lv"];
            let mut expected = Vec::new();
            for (seed, name) in (1..).zip(names) {
                expected.push((name, fill(&format!("/dev/my-vg/{name}"), seed)));
            }
            sh("vgchange -q -an my-vg");
            disk.detach(&devices);

            for (name, bytes) in &expected {
                let mapped = name.replace('-', "--");
                for alias in [
                    format!("my-vg/{name}"),
                    (*name).to_owned(),
                    format!("/dev/my-vg/{name}"),
                    format!("/dev/mapper/my--vg-{mapped}"),
                ] {
                    assert!(disk.read(&alias) == *bytes, "{alias}");
                }
            }
            let info = disk.info();
            for word in [
                "my-vg/first",
                "my-vg/re.named-lv",
                "linear",
                "striped",
                "LVM2 physical volume",
            ] {
                assert!(info.contains(word), "{info}");
            }

            // What we write is what the kernel reads.
            for (seed, (name, bytes)) in (10..).zip(&mut expected) {
                let volume = disk
                    .layer(&format!("lvm:my-vg/{name}"), OpenMode::Write)
                    .unwrap();
                *bytes = scribble(&volume, bytes.clone(), seed);
            }
            let devices = disk.attach();
            sh("vgchange -q -ay my-vg");
            for (name, bytes) in &expected {
                assert!(
                    fs::read(format!("/dev/my-vg/{name}")).unwrap() == *bytes,
                    "{name}"
                );
            }
            // A member goes: volumes that need it are refused, the others stay.
            sh("vgchange -q -an my-vg");
            disk.detach(&devices);
            let file = fs::File::options().write(true).open(&disk.path).unwrap();
            file.write_all_at(&[0; 4096], disk.parts[1].0).unwrap();
            for name in ["my-vg/first", "my-vg/two", "my-vg/three"] {
                disk.refuses(name, &["\"my-vg\" is incomplete", "pv1"]);
            }
            assert!(disk.read("re.named-lv") == expected[3].1);
        },
    );
}

#[test]
fn other_layouts_are_refused_by_name() {
    uml::inside("other_layouts_are_refused_by_name", LIMIT, || {
        prepare("dm-mod dm-snapshot dm-thin-pool dm-cache dm-cache-smq dm-mirror dm-raid raid1");
        let disk = Disk::new("disk", "8e", &[60, 60]);
        let devices = disk.attach();
        let all = devices.join(" ");
        let (a, b) = (&devices[0], &devices[1]);
        sh(&format!(
            "pvcreate -q {all}; vgcreate -q -s 1M vg {all}
             lvcreate -y -q -l 4 -n origin vg; lvcreate -y -q -s -l 2 -n snap vg/origin
             lvcreate -y -q -l 8 -T vg/pool; lvcreate -y -q -V 20M -n thin -T vg/pool
             lvcreate -y -q --type raid1 -m 1 -l 4 -n raid vg
             lvcreate -y -q --type mirror --mirrorlog core -m 1 -l 4 -n mirror vg
             lvcreate -y -q -l 8 -n slow vg {a}; lvcreate -y -q --type cache-pool -l 10 -n fast vg {b}
             lvconvert -y -q --type cache --cachepool vg/fast vg/slow"
        ));
        let origin = fill("/dev/vg/origin", 1);
        sh("sync; vgchange -q -an vg");
        for (name, words) in [
            ("vg/snap", ["snapshot", "snap"]),
            ("vg/pool", ["thin-pool", "pool"]),
            ("vg/thin", ["\"thin\"", "linear and striped"]),
            ("vg/raid", ["raid1", "raid"]),
            ("vg/mirror", ["mirror", "mirror"]),
            ("vg/slow", ["cache", "slow"]),
        ] {
            disk.refuses(name, &words);
        }
        // The origin of a snapshot can be read; writing would change the snapshot.
        assert!(disk.read("vg/origin") == origin);
        let volume = disk.layer("lvm:vg/origin", OpenMode::Write).unwrap();
        assert!(volume.writer().is_none());
        drop(volume);
        let info = disk.info();
        assert!(info.contains("not opened: vg/thin"), "{info}");
        // Hidden volumes are no choice.
        assert!(
            !info.contains("_tdata") && !info.contains("rimage"),
            "{info}"
        );
        disk.detach(&devices);

        let devices = disk.attach();
        sh("lvremove -y -q vg/snap; vgexport -q vg");
        disk.detach(&devices);
        disk.refuses("vg/origin", &["exported"]);
    });
}

/// An array of the kernel on a disk, filled and stopped; and what it held.
fn array(name: &str, sizes: &[u64], options: &str, seed: u64) -> (Disk, Vec<u8>) {
    let disk = Disk::new(name, "fd", sizes);
    let devices = disk.attach();
    let (count, all) = (devices.len(), devices.join(" "));
    sh(&format!(
        "mdadm --create /dev/md9 --name=arr --homehost=box --run --raid-devices={count} {options} {all} 2>&1"
    ));
    let bytes = fill("/dev/md9", seed);
    // A mirror is copied first.
    sh("mdadm --wait /dev/md9 || true; mdadm --stop /dev/md9 2>&1");
    disk.detach(&devices);
    (disk, bytes)
}

/// The mirror /dev/md9 runs with all members, nothing is being copied, and they are the same.
#[track_caller]
fn assert_in_sync(options: &str) {
    let detail = sh("mdadm --detail /dev/md9");
    let state = detail.lines().find_map(|line| line.split_once("State : "));
    let state = state.map_or("", |(_, state)| state.trim());
    assert!(["clean", "active"].contains(&state), "{options}: {detail}");
    // Read-only until somebody writes, where it was not copied before.
    sh("mdadm --readwrite /dev/md9 || true");
    sh("echo check > /sys/block/md9/md/sync_action; mdadm --wait /dev/md9 || true");
    let differ = sh("cat /sys/block/md9/md/mismatch_cnt");
    assert_eq!(differ.trim(), "0", "{options}");
}

#[test]
fn a_mirror_that_was_left_in_the_middle_is_made_the_same_by_the_kernel() {
    let name = "a_mirror_that_was_left_in_the_middle_is_made_the_same_by_the_kernel";
    uml::inside(name, LIMIT, || {
        prepare("md-mod raid1");
        for (seed, options) in (1..).zip([
            "--metadata=1.2 --bitmap=none",
            "--metadata=1.2 --bitmap=internal",
            "--metadata=1.0 --bitmap=internal",
            "--metadata=0.90 --bitmap=none",
            "--metadata=0.90 --bitmap=internal",
        ]) {
            let (disk, mut bytes) = array("md", &[4, 4], &format!("--level=1 {options}"), seed);
            let name = match options.contains("0.90") {
                true => "md9",
                false => "arr",
            };
            let spec = disk.named(name).unwrap().plan.layers[0].to_string();
            let volume = disk.layer(&spec, OpenMode::Write).unwrap();
            let piece = noise(100_000, seed + 50);
            let writer = volume.need_writer().unwrap();
            writer.write_at(&piece, 5000, true).unwrap();
            bytes[5000..105_000].copy_from_slice(&piece);
            // As if the server were killed: what else it would do is not in this copy. The second
            // member misses what the first one has.
            let killed = Disk {
                path: "/tmp/killed".into(),
                parts: disk.parts.clone(),
            };
            fs::copy(&disk.path, &killed.path).unwrap();
            volume.close().unwrap();
            drop(volume);
            let lost = fs::File::options().write(true).open(&killed.path).unwrap();
            let start = disk.parts[1].0;
            let member = fs::read(&disk.path).unwrap();
            let member = &member[usize::try_from(start).unwrap()..];
            let at = (0..member.len() - 4096)
                .step_by(512)
                .find(|&at| member[at..at + 4096] == bytes[8192..8192 + 4096])
                .expect("the second member has it");
            lost.write_all_at(&[7; 4096], start + at as u64).unwrap();
            let info = killed.info();
            assert!(info.contains("was not stopped"), "{options}: {info}");
            let volume = killed.layer(&spec, OpenMode::Write).unwrap();
            let why = volume.read_only_because().unwrap();
            assert!(why.contains("was not stopped"), "{options}: {why}");
            drop(volume);

            let devices = killed.attach();
            let all = devices.join(" ");
            sh(&format!(
                "mdadm --assemble /dev/md9 --run {all} 2>&1; mdadm --readwrite /dev/md9 || true
                 mdadm --wait /dev/md9 || true"
            ));
            assert_in_sync(options);
            assert!(fs::read("/dev/md9").unwrap() == bytes, "{options}");
            sh("mdadm --stop /dev/md9 2>&1");
            killed.detach(&devices);
            let volume = killed.layer(&spec, OpenMode::Write).unwrap();
            assert!(volume.writer().is_some(), "{options}");
            assert!(conformance::read_all(&volume) == bytes, "{options}");
        }
    });
}

#[test]
fn arrays_are_what_the_kernel_makes_of_them() {
    uml::inside("arrays_are_what_the_kernel_makes_of_them", LIMIT, || {
        prepare("md-mod raid0 raid1 linear");
        // mdadm makes no RAID 0 with a superblock 0.90 any more.
        let cases: &[(&[u64], &str, &str)] = &[
            (&[5, 5], "--level=0 --chunk=64", "RAID 0"),
            (
                &[5, 8, 6],
                "--level=0 --chunk=4 --layout=alternate",
                "RAID 0",
            ),
            (
                &[5, 8, 7],
                "--level=0 --chunk=64 --layout=original",
                "RAID 0",
            ),
            (
                &[8, 5, 6, 8],
                "--level=0 --chunk=512 --layout=original --metadata=1.0",
                "RAID 0",
            ),
            (
                &[5, 7],
                "--level=0 --metadata=1.1 --chunk=12 --layout=alternate",
                "RAID 0",
            ),
            (&[5, 5], "--level=1 --metadata=1.2 --bitmap=none", "RAID 1"),
            (
                &[5, 5],
                "--level=1 --metadata=1.0 --bitmap=internal",
                "RAID 1",
            ),
            (
                &[4, 4, 4],
                "--level=1 --metadata=1.1 --bitmap=none",
                "RAID 1",
            ),
            (&[4, 4], "--level=1 --metadata=0.90 --bitmap=none", "RAID 1"),
            (&[4, 5, 4], "--level=linear --metadata=1.2", "linear"),
            (
                &[3, 4],
                "--level=linear --metadata=0.90 --rounding=64",
                "linear",
            ),
        ];
        for (seed, (sizes, options, level)) in (1..).zip(cases) {
            let (disk, mut bytes) = array("md", sizes, options, seed);
            let info = disk.info();
            assert!(
                info.contains(level) && info.contains("Linux RAID member"),
                "{options}: {info}"
            );
            let name = match options.contains("0.90") {
                true => "md9",
                false => "arr",
            };
            let resolved = disk
                .named(name)
                .unwrap_or_else(|error| panic!("{options}: {error:?}"));
            assert_eq!(resolved.volume.size(), bytes.len() as u64, "{options}");
            let read = conformance::read_all(&resolved.volume);
            let differs = read.iter().zip(&bytes).position(|(one, two)| one != two);
            assert_eq!(differs, None, "{options}");
            let spec = resolved.plan.layers[0].to_string();
            assert!(spec.starts_with("raid:"), "{spec}");
            drop(resolved);
            let volume = disk.layer(&spec, OpenMode::Write).unwrap();
            bytes = scribble(&volume, bytes, seed + 100);
            let devices = disk.attach();
            sh(&format!(
                "mdadm --assemble /dev/md9 --run {} 2>&1",
                devices.join(" ")
            ));
            if *level == "RAID 1" {
                assert_in_sync(options);
            }
            let read = fs::read("/dev/md9").unwrap();
            let differs = read.iter().zip(&bytes).position(|(one, two)| one != two);
            assert_eq!((differs, read.len()), (None, bytes.len()), "{options}");
            sh("mdadm --stop /dev/md9 2>&1");
            disk.detach(&devices);
        }
    });
}

#[test]
fn a_mirror_with_a_member_missing_is_refused_until_that_is_asked_for() {
    uml::inside(
        "a_mirror_with_a_member_missing_is_refused_until_that_is_asked_for",
        LIMIT,
        || {
            prepare("md-mod raid1");
            let (disk, _) = array("md", &[10, 10], "--level=1 --bitmap=none", 1);
            // The second fails, and the first goes on without it.
            let devices = disk.attach();
            let all = devices.join(" ");
            sh(&format!(
                "mdadm --assemble /dev/md9 {all} 2>&1
                 mdadm --fail /dev/md9 {0} 2>&1; mdadm --remove /dev/md9 {0} 2>&1",
                devices[1]
            ));
            let bytes = fill("/dev/md9", 2);
            sh("mdadm --stop /dev/md9 2>&1");
            disk.detach(&devices);
            disk.refuses("arr", &["\"box:arr\"", "degraded", "place 1 of 2"]);
            let error = disk.named("arr").unwrap_err();
            let report = error.report().to_string();
            assert!(report.contains("degraded=yes"), "{report}");
            let volume = disk
                .layer("raid:arr,degraded=yes", OpenMode::Write)
                .unwrap();
            assert!(conformance::read_all(&volume) == bytes);
            assert!(volume.writer().is_none());
            drop(volume);
            let info = disk.info();
            assert!(
                info.contains("partition 1: place 0, partition 2: faulty")
                    || info.contains("stale"),
                "{info}"
            );
        },
    );
}

#[test]
fn a_group_on_an_array_is_found_from_the_disk() {
    uml::inside("a_group_on_an_array_is_found_from_the_disk", LIMIT, || {
        prepare("dm-mod md-mod raid1");
        let disk = Disk::new("disk", "fd", &[16, 16]);
        let devices = disk.attach();
        let all = devices.join(" ");
        // Its members begin like the physical volume: the superblock is at the end.
        sh(&format!(
            "mdadm --create /dev/md9 --run --level=1 --metadata=1.0 --bitmap=none --raid-devices=2 \
                 {all} 2>&1
             pvcreate -q /dev/md9; vgcreate -q -s 1M vg /dev/md9; lvcreate -y -q -l 8 -n root vg"
        ));
        let bytes = fill("/dev/vg/root", 3);
        sh("vgchange -q -an vg; mdadm --wait /dev/md9 || true; mdadm --stop /dev/md9 2>&1");
        disk.detach(&devices);
        let resolved = disk.named("vg/root").unwrap();
        let layers: Vec<_> = resolved.plan.layers.iter().map(LayerSpec::name).collect();
        assert_eq!(layers, ["raid", "lvm"]);
        assert!(conformance::read_all(&resolved.volume) == bytes);
        let again = plan::reopen(disk.volume(OpenMode::ReadOnly), &resolved.plan, &cx()).unwrap();
        assert!(conformance::read_all(&again.volume) == bytes);
    });
}
