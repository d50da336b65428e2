//! The kernel's ext4 writes while the server is killed: what was synced is there, and e2fsck finds
//! nothing wrong. One loop of writes and kills, for each layer that is written.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;

use super::common::images::{images, sha256};
use super::common::run::send_signal;
use super::common::system::mount_at;
use super::common::{Sandbox, Who, must, require_tool, until};
use super::{LIMIT, SERVER, assert_is_nbd, assert_nothing_is_left, pid_of, uml, unmount_or_gone};

/// Writes a file on `device`, which is mounted at `point`, and makes it durable, its name too.
fn write_durably(point: &Path, device: u64, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(point.join(name))?;
    if file.metadata()?.dev() != device {
        // The mount is gone with its server, and this is the folder below.
        return Err(std::io::ErrorKind::NotConnected.into());
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::File::open(point)?.sync_all()
}

/// The contents of the file `number`: different ones for each.
fn numbered(number: usize) -> Vec<u8> {
    let len = 1000 + number * 7919 % 150_000;
    (0..len)
        .map(|at| ((at * 31 + number) % 251) as u8)
        .collect()
}

/// What is in the ext4 `raw` that nobody has mounted, after its journal was replayed.
#[track_caller]
fn assert_sound(sandbox: &Sandbox, raw: &Path, files: &[usize]) {
    let replay = Command::new("e2fsck").arg("-p").arg(raw).output().unwrap();
    assert!(matches!(replay.status.code(), Some(0 | 1)), "{replay:?}");
    must(Command::new("e2fsck").arg("-fn").arg(raw));
    let out = sandbox.join("dumped");
    for number in files {
        let dump = format!("dump /f{number} {}", out.display());
        must(Command::new("debugfs").args(["-R", &dump]).arg(raw));
        assert!(
            fs::read(&out).unwrap() == numbered(*number),
            "file {number}"
        );
    }
}

/// An image that is written while its server is killed.
struct Victim<'a> {
    sandbox: &'a Sandbox,
    image: &'a Path,
    /// What it is mounted with, `--via` apart.
    args: &'a [&'a str],
    /// Files that are synced, and those of them that were.
    next: usize,
    synced: Vec<usize>,
    /// Rounds so far.
    round: u64,
}

impl<'a> Victim<'a> {
    fn new(sandbox: &'a Sandbox, image: &'a Path, args: &'a [&'a str]) -> Self {
        Self {
            sandbox,
            image,
            args,
            next: 0,
            synced: Vec::new(),
            round: 0,
        }
    }

    /// Mounts it, writes to it, and kills the server meanwhile, a moment later each time.
    #[track_caller]
    fn kill_while_written(&mut self, via: &str) {
        let sandbox = self.sandbox;
        let folder = format!("mnt{}", self.round);
        let args = [self.args, &["--via", via]].concat();
        let point = sandbox.mount(&args, self.image, &folder);
        if via == "nbd" {
            assert_is_nbd(&point);
        }
        let device = fs::metadata(&point).unwrap().dev();
        let server = pid_of(sandbox, SERVER);
        let after = Duration::from_millis(300 + self.round * 170);
        let (synced, first) = mpsc::channel();
        let killer = std::thread::spawn(move || {
            // However slow the machine is, one file is there to be looked for; without any this ends
            // with an error.
            let _ = first.recv();
            std::thread::sleep(after);
            send_signal(server, Signal::KILL);
        });
        let begun = self.next;
        loop {
            let name = format!("f{}", self.next);
            if write_durably(&point, device, &name, &numbered(self.next)).is_err() {
                break;
            }
            self.synced.push(self.next);
            let _ = synced.send(());
            self.next += 1;
            // Not synced, and not asked for.
            let _ = fs::write(point.join("scratch"), vec![7; 300_000]);
            if self.next - begun >= 40 {
                break;
            }
        }
        self.next += 1;
        self.round += 1;
        drop(synced);
        killer.join().unwrap();
        until("the mount is gone", || mount_at(&point).is_none());
        unmount_or_gone(sandbox, &point);
        assert_nothing_is_left(sandbox);
    }

    /// Kills the server once for each of `vias`. Each time `dump` makes of the image the ext4 that
    /// is in it, as another program sees it.
    #[track_caller]
    fn survives(&mut self, vias: &[&str], dump: impl Fn() -> PathBuf) {
        for via in vias {
            self.kill_while_written(via);
            assert_sound(self.sandbox, &dump(), &self.synced);
        }
        assert!(self.synced.len() >= vias.len(), "{:?}", self.synced);
    }
}

#[test]
fn a_qcow2_image_is_sound_and_has_all_that_was_synced() {
    require_tool("qemu-img", "qemu-utils");
    let source = images().ext4();
    let name = "crash::a_qcow2_image_is_sound_and_has_all_that_was_synced";
    uml::inside(name, LIMIT, || {
        let sandbox = Sandbox::new(Who::Root);
        let raw = sandbox.image(&source);
        let image = sandbox.join("disk.qcow2");
        // Compressed: every write takes a new cluster.
        let convert = ["convert", "-c", "-O", "qcow2"];
        must(Command::new("qemu-img").args(convert).arg(&raw).arg(&image));
        let mut victim = Victim::new(&sandbox, &image, &["-w"]);
        victim.survives(&["nbd"; 4], || {
            let check = Command::new("qemu-img").arg("check").arg(&image).output();
            let check = check.unwrap();
            // 3: clusters that nobody uses.
            assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
            let raw = sandbox.join("check.raw");
            let convert = ["convert", "-O", "raw"];
            must(Command::new("qemu-img").args(convert).arg(&image).arg(&raw));
            raw
        });
    });
}

/// Runs cryptsetup without a udev to wait for.
fn cryptsetup(args: &[&str], key: &Path) {
    let key = format!("--key-file={}", key.display());
    let mut command = Command::new("cryptsetup");
    must(command.arg(key).args(args).env("DM_DISABLE_UDEV", "1"));
}

#[test]
fn an_encrypted_disk_is_sound_and_has_all_that_was_synced() {
    require_tool("cryptsetup", "cryptsetup-bin");
    let source = images().ext4();
    let name = "crash::an_encrypted_disk_is_sound_and_has_all_that_was_synced";
    uml::inside(name, LIMIT, || {
        for module in ["cbc", "ecb", "xts", "dm-mod", "dm-crypt"] {
            must(Command::new("modprobe").args(["-d", "/run/kmod", module]));
        }
        let cheap = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"];
        for format in [
            // A block of ext4 is one sector, and several.
            ["--type=luks2", "--sector-size=4096"],
            ["--type=luks1", "--hash=sha256"],
        ] {
            let sandbox = Sandbox::new(Who::Root);
            let key = sandbox.new_file("key", b"between the kernel and us");
            let plain = sandbox.image(&source);
            let image = sandbox.new_file("disk.luks", b"");
            let size = fs::metadata(&plain).unwrap().len() + (16 << 20);
            let file = fs::File::options().write(true).open(&image).unwrap();
            file.set_len(size).unwrap();
            let path = image.to_str().unwrap();
            let usual = ["luksFormat", "--batch-mode", path];
            cryptsetup(&[&usual[..], &cheap, &format].concat(), &key);
            cryptsetup(&["open", path, "plain"], &key);
            let copy = |from: &Path, to: &Path| {
                let (from, to) = (from.display(), to.display());
                let paths = [format!("if={from}"), format!("of={to}")];
                must(Command::new("dd").args(paths).args(["bs=1M", "conv=fsync"]));
            };
            let device = Path::new("/dev/mapper/plain");
            copy(&plain, device);
            cryptsetup(&["close", "plain"], &key);
            let args = ["-w", "--key-file", key.to_str().unwrap()];
            let mut victim = Victim::new(&sandbox, &image, &args);
            victim.survives(&["nbd", "loop"], || {
                let raw = sandbox.join("check.raw");
                cryptsetup(&["open", "--readonly", path, "plain"], &key);
                copy(device, &raw);
                cryptsetup(&["close", "plain"], &key);
                raw
            });
        }
    });
}

#[test]
fn what_is_kept_of_a_raw_disk_is_sound_and_has_all_that_was_synced() {
    let source = images().ext4();
    let name = "crash::what_is_kept_of_a_raw_disk_is_sound_and_has_all_that_was_synced";
    uml::inside(name, LIMIT, || {
        let sandbox = Sandbox::new(Who::Root);
        let image = sandbox.image(&source);
        let before = sha256(&image);
        let commit = |image: &Path, kept: &Path| {
            let cow = format!("--cow={}", kept.display());
            let info = sandbox.loopmount().arg("--info").arg(&cow).arg(image);
            let info = info.ok().out();
            assert!(info.contains("written"), "{info}");
            sandbox.loopmount().args(["--commit", &cow]).arg(image).ok();
        };
        let mut victim = Victim::new(&sandbox, &image, &["--cow=kept"]);
        victim.survives(&["nbd", "loop", "nbd", "loop"], || {
            assert_eq!(sha256(&image), before, "only a commit changes the image");
            // A copy is committed: the rounds go on with what was kept.
            let (raw, kept) = (sandbox.join("check.raw"), sandbox.join("check.kept"));
            for (from, to) in [(&image, &raw), (&sandbox.join("kept"), &kept)] {
                let options = ["--sparse=always", "--preserve=timestamps"];
                must(Command::new("cp").args(options).arg(from).arg(to));
            }
            commit(&raw, &kept);
            raw
        });
        commit(&image, &sandbox.join("kept"));
        assert_sound(&sandbox, &image, &victim.synced);
    });
}

#[test]
fn a_scratch_layer_is_gone_with_its_server_and_the_image_is_as_it_was() {
    let source = images().ext4();
    let name = "crash::a_scratch_layer_is_gone_with_its_server_and_the_image_is_as_it_was";
    uml::inside(name, LIMIT, || {
        let sandbox = Sandbox::new(Who::Root);
        let image = sandbox.image(&source);
        let before = sha256(&image);
        let files = || {
            let names = fs::read_dir(sandbox.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.collect();
            names.retain(|name| !name.to_string_lossy().starts_with("mnt"));
            names.sort();
            names
        };
        let had = files();
        let mut victim = Victim::new(&sandbox, &image, &["--cow"]);
        for via in ["nbd", "loop"] {
            victim.kill_while_written(via);
            assert!(!victim.synced.is_empty(), "it was written through {via}");
            victim.synced.clear();
            assert_eq!(sha256(&image), before);
            assert_eq!(files(), had);
        }
        // Nothing of the others is there.
        let point = sandbox.mount(&["--cow", "--via", "nbd"], &image, "again");
        for number in 0..victim.next {
            assert!(!point.join(format!("f{number}")).exists());
        }
        sandbox.unmount(&point);
    });
}

/// Runs a shell script to its end; every command must succeed.
#[track_caller]
fn sh(script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).env("MDADM_NO_UDEV", "1");
    String::from_utf8(must(&mut command)).unwrap()
}

#[test]
fn a_mirror_is_made_the_same_by_the_kernel_and_has_all_that_was_synced() {
    require_tool("mdadm", "mdadm");
    let source = images().ext4();
    let name = "crash::a_mirror_is_made_the_same_by_the_kernel_and_has_all_that_was_synced";
    uml::inside(name, LIMIT, || {
        sh("modprobe -d /run/kmod md-mod; modprobe -d /run/kmod raid1");
        let sandbox = Sandbox::new(Who::Root);
        let image = sandbox.new_file("disk", b"");
        let member = fs::metadata(&source).unwrap().len() + (4 << 20);
        let file = fs::File::options().write(true).open(&image).unwrap();
        file.set_len(2 * member + (2 << 20)).unwrap();
        let path = image.display().to_string();
        let sectors = member / 512;
        sh(&format!(
            "printf 'label: dos\nstart=2048, size={sectors}, type=fd\nsize={sectors}, type=fd\n' |
             sfdisk --quiet --no-reread --no-tell-kernel {path}"
        ));
        // Runs a script with the members as loop devices, on which it has an array.
        let with_members = |script: &str| {
            sh(&format!(
                "a=$(losetup -f --show -o 1M --sizelimit {member} {path})
                 b=$(losetup -f --show -o $((1048576 + {member})) --sizelimit {member} {path})
                 {script}
                 mdadm --stop /dev/md9 2>&1; sync; losetup -d $a $b"
            ))
        };
        with_members(&format!(
            "mdadm --create /dev/md9 --name=arr --homehost=box --run --raid-devices=2 --level=1 \
                 --metadata=1.2 --bitmap=internal --assume-clean $a $b 2>&1
             dd if={} of=/dev/md9 bs=1M conv=fsync status=none",
            source.display()
        ));
        let refused = std::cell::Cell::new(0);
        let mut victim = Victim::new(&sandbox, &image, &["-w", "-P", "arr"]);
        victim.survives(&["nbd", "loop", "nbd"], || {
            // Killed while it wrote, what one member has another may not have; killed a moment
            // later, they are the same.
            let point = sandbox.join("again");
            let again = sandbox.loopmount().args(["-w", "-P", "arr"]);
            let again = again.arg(&image).arg(&point).run();
            if again.code() == 0 {
                sandbox.unmount(&point);
            } else {
                again.says(&["raid", "was not stopped", "mdadm --assemble", "--cow"]);
                refused.set(refused.get() + 1);
            }
            let raw = sandbox.join("check.raw");
            let differ = with_members(&format!(
                "mdadm --assemble /dev/md9 --run $a $b 2>&1; mdadm --readwrite /dev/md9 || true
                 mdadm --wait /dev/md9 || true
                 echo check > /sys/block/md9/md/sync_action; mdadm --wait /dev/md9 || true
                 echo differ: $(cat /sys/block/md9/md/mismatch_cnt)
                 dd if=/dev/md9 of={} bs=1M status=none",
                raw.display()
            ));
            assert!(differ.contains("differ: 0\n"), "{differ}");
            raw
        });
        assert!(refused.get() > 0, "once it was killed in the middle");
    });
}
