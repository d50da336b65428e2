//! Test images, made at test time by foreign tools, once per build folder.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

#[path = "../../nbdserve/tests/raid/forge.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod raid;

use super::{must, prepare_machine, require_tool, umount, until_no_loop};

const MIB: u64 = 1 << 20;
/// Where the root partition of [`Images::disk`] starts, in bytes.
pub(crate) const ROOT_START: u64 = 9 * MIB;
/// Bytes of the root partition, and of [`Images::ext4`].
pub(crate) const ROOT_SIZE: u64 = 48 * MIB;
/// The UUID of the file system of [`Images::ext4`].
pub(crate) const ROOT_UUID: &str = "c0ffee00-1111-4222-8333-444455556666";

/// The small disk that the project carries.
pub(crate) fn carried() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/two-partitions.raw.xz")
}

/// What `hello` says in an encrypted image.
pub(crate) const HELLO_LOCKED: &str = "hello from behind the lock\n";
/// Opens it. Nothing else in a process looks like this.
pub(crate) const PASSPHRASE: &str = "open-sesame-4711";

/// The text at `usr/share/doc/loopmount/hello.txt` of the carried disk.
pub(crate) const HELLO: &str = "usr/share/doc/loopmount/hello.txt";

/// The set of images. Each is made when it is first asked for.
#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
}

/// The images of this build folder.
pub(crate) fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        prepare_machine();
        // Images made by another version of these recipes do not count.
        let mut recipe = Sha256::new();
        recipe.update(include_bytes!("images.rs"));
        recipe.update(include_bytes!("rich-tree.sh"));
        let mut name = String::from("images-");
        for byte in &recipe.finalize()[..6] {
            write!(name, "{byte:02x}").unwrap();
        }
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = tmp.join(&name);
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(tmp).unwrap().flatten() {
            let other = entry.file_name().into_string().unwrap_or_default();
            if other.starts_with("images-") && other != name {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Images { dir }
    })
}

impl Images {
    /// The image `name`, made by `recipe` (which is given the path to write) when it is not there.
    fn get(&self, name: &str, recipe: impl FnOnce(&Path)) -> PathBuf {
        let path = self.dir.join(name);
        if path.exists() {
            return path;
        }
        // Test programs and threads may want the same one at the same time.
        let lock = fs::File::create(self.dir.join(format!("{name}.lock"))).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        if !path.exists() {
            let unfinished = self.dir.join(format!("{name}.unfinished"));
            let _ = fs::remove_file(&unfinished);
            recipe(&unfinished);
            fs::rename(&unfinished, &path).unwrap();
        }
        path
    }

    /// ext4 with 4 KiB blocks and 256-byte inodes, label `rich`, with one of everything in it.
    pub(crate) fn ext4(&self) -> PathBuf {
        self.get("ext4.raw", |path| {
            require_tool("mkfs.ext4", "e2fsprogs");
            make_sparse(path, ROOT_SIZE);
            let mut mkfs = Command::new("mkfs.ext4");
            mkfs.args([
                "-q", "-b", "4096", "-I", "256", "-L", "rich", "-U", ROOT_UUID,
            ]);
            must(mkfs.arg(path));
            fill(path, "xattr");
        })
    }

    /// A small ext4 with the file `hello` ([`HELLO_LOCKED`]) in it.
    pub(crate) fn hello(&self) -> PathBuf {
        self.get("hello.raw", |path| {
            require_tool("mkfs.ext4", "e2fsprogs");
            let content = tempfile::tempdir().unwrap();
            fs::write(content.path().join("hello"), HELLO_LOCKED).unwrap();
            make_sparse(path, 4 * MIB);
            let mut mkfs = Command::new("mkfs.ext4");
            must(mkfs.arg("-q").arg("-d").arg(content.path()).arg(path));
        })
    }

    /// [`Images::hello`] in LUKS1, opened by [`PASSPHRASE`].
    pub(crate) fn locked(&self) -> PathBuf {
        let plain = self.hello();
        self.get("hello.luks", |path| {
            require_tool("qemu-img", "qemu-utils");
            let mut make = Command::new("qemu-img");
            make.args(["convert", "-q", "-O", "luks", "--object"])
                .arg(format!("secret,id=key,data={PASSPHRASE}"))
                .args(["-o", "key-secret=key,iter-time=10"]);
            must(make.arg(&plain).arg(path));
        })
    }

    /// ext2 with 1 KiB blocks, 128-byte inodes and block maps instead of extents.
    pub(crate) fn ext2(&self) -> PathBuf {
        self.get("ext2.raw", |path| {
            require_tool("mkfs.ext2", "e2fsprogs");
            make_sparse(path, 32 * MIB);
            let mut mkfs = Command::new("mkfs.ext2");
            mkfs.args(["-q", "-b", "1024", "-I", "128", "-L", "old"]);
            must(mkfs.arg(path));
            fill(path, "no-xattr");
        })
    }

    /// ext4 with the features that newer systems turn on: inline data, 64 bit, metadata checksums,
    /// large directories.
    pub(crate) fn ext4_modern(&self) -> PathBuf {
        self.get("ext4-modern.raw", |path| {
            require_tool("mkfs.ext4", "e2fsprogs");
            make_sparse(path, ROOT_SIZE);
            let features = "inline_data,64bit,metadata_csum,metadata_csum_seed,large_dir";
            let mut mkfs = Command::new("mkfs.ext4");
            mkfs.args([
                "-q", "-b", "4096", "-I", "512", "-L", "modern", "-O", features,
            ]);
            must(mkfs.arg(path));
            fill(path, "xattr");
        })
    }

    /// A GPT disk: partition 1 `esp` (vfat, type EFI system), partition 2 `system` (type Linux root
    /// x86-64), which holds [`Images::ext4`].
    pub(crate) fn disk(&self) -> PathBuf {
        self.get("disk.raw", |path| {
            require_tool("sgdisk", "gdisk");
            require_tool("mkfs.vfat", "dosfstools");
            make_sparse(path, ROOT_START + ROOT_SIZE + MIB);
            let sector = |bytes: u64| bytes / 512;
            let root_end = sector(ROOT_START + ROOT_SIZE) - 1;
            let mut sgdisk = Command::new("sgdisk");
            sgdisk
                .arg(format!("--new=1:2048:{}", sector(ROOT_START) - 1))
                .args(["--typecode=1:ef00", "--change-name=1:esp"])
                .arg(format!("--new=2:{}:{root_end}", sector(ROOT_START)))
                .args(["--typecode=2:8304", "--change-name=2:system"]);
            must(sgdisk.arg(path));
            let esp = path.with_extension("esp");
            make_sparse(&esp, ROOT_START - MIB);
            must(Command::new("mkfs.vfat").args(["-n", "ESP"]).arg(&esp));
            copy_into(&esp, path, MIB);
            fs::remove_file(esp).unwrap();
            copy_into(&self.ext4(), path, ROOT_START);
        })
    }

    /// ext2 with a file of noise, 20 MiB: nobody's root.
    pub(crate) fn data(&self) -> PathBuf {
        self.get("data.raw", |path| {
            require_tool("mkfs.ext2", "e2fsprogs");
            make_sparse(path, 32 * MIB);
            let dir = tempfile::tempdir().unwrap();
            let mut noise = vec![0; 20 << 20];
            let mut state = 1_u64;
            for byte in &mut noise {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *byte = state.to_le_bytes()[7];
            }
            fs::write(dir.path().join("noise"), noise).unwrap();
            let mut mkfs = Command::new("mkfs.ext2");
            must(
                mkfs.args(["-q", "-L", "data", "-d"])
                    .arg(dir.path())
                    .arg(path),
            );
        })
    }

    /// A GPT disk with a group of LVM2: partition 1 a small ext2, partitions 2 and 3 the physical volumes
    /// of `vg`, on which `root` holds [`Images::ext4`], `data` (striped) [`Images::data`], and `swap`
    /// swap space.
    pub(crate) fn lvm(&self) -> PathBuf {
        self.get("lvm.raw", |path| {
            require_tool("sgdisk", "gdisk");
            require_tool("lvcreate", "lvm2");
            let mut starts = Vec::new();
            let (mut sgdisk, mut next) = (Command::new("sgdisk"), MIB);
            let sizes = [4 * MIB, ROOT_SIZE + 32 * MIB, 24 * MIB];
            for (number, (size, kind)) in (1..).zip(sizes.iter().zip(["8300", "8e00", "8e00"])) {
                let (first, last) = (next / 512, (next + size) / 512 - 1);
                sgdisk.arg(format!("--new={number}:{first}:{last}"));
                sgdisk.arg(format!("--typecode={number}:{kind}"));
                starts.push(next);
                next += size;
            }
            make_sparse(path, next + MIB);
            must(sgdisk.arg(path));
            let boot = path.with_extension("boot");
            make_sparse(&boot, sizes[0]);
            must(
                Command::new("mkfs.ext2")
                    .args(["-q", "-L", "boot"])
                    .arg(&boot),
            );
            copy_into(&boot, path, starts[0]);
            fs::remove_file(boot).unwrap();
            let extents = [ROOT_SIZE, 32 * MIB, 4 * MIB].map(|size| size / MIB);
            let script = format!(
                "set -eu; attach() {{ losetup -f --show -o $1 --sizelimit $2 \"$IMAGE\"; }}
                 a=$(attach {} {}); b=$(attach {} {})
                 trap 'losetup -d $a $b' EXIT
                 lvm() {{ command=$1; shift; \"$command\" -q --driverloaded n --devices $a,$b \\
                     --config 'backup {{ backup=0 archive=0 }}' \"$@\" 2>&1; }}
                 create() {{ lvm lvcreate -y -an -Zn -Wn \"$@\"; }}
                 lvm pvcreate -y $a $b; lvm vgcreate -s 1M vg $a $b
                 create -l {} -n root vg $a; create -l {} -i 2 -I 64 -n data vg $a $b
                 create -l {} -n swap vg $a",
                starts[1], sizes[1], starts[2], sizes[2], extents[0], extents[1], extents[2]
            );
            must(Command::new("sh").args(["-c", &script]).env("IMAGE", path));
            // Extents begin 1 MiB behind the start of a physical volume, in the order of their making.
            let (first, second) = (starts[1] + MIB, starts[2] + MIB);
            copy_into(&self.ext4(), path, first);
            let data = fs::read(self.data()).unwrap();
            let file = fs::File::options().write(true).open(path).unwrap();
            for (number, chunk) in (0..).zip(data.chunks(64 << 10)) {
                let column = if number % 2 == 0 {
                    first + ROOT_SIZE
                } else {
                    second
                };
                file.write_all_at(chunk, column + number / 2 * (64 << 10))
                    .unwrap();
            }
            let swap = path.with_extension("swap");
            make_sparse(&swap, 4 * MIB);
            must(
                Command::new("mkswap")
                    .args(["-q", "-L", "swapped"])
                    .arg(&swap),
            );
            copy_into(&swap, path, first + ROOT_SIZE + 16 * MIB);
            fs::remove_file(swap).unwrap();
        })
    }

    /// [`Images::lvm`] as xz in blocks of 1 MiB.
    pub(crate) fn lvm_xz(&self) -> PathBuf {
        let from = self.lvm();
        self.get("lvm.raw.xz", |path| {
            xz(&from, path, &["-0", "-T2", "--block-size=1MiB"]);
        })
    }

    /// A disk with a mirror of MD called `box:forged` on two partitions, which holds [`Images::ext4`]; its
    /// superblocks are at the end of its members.
    pub(crate) fn mirror(&self) -> PathBuf {
        self.get("mirror.raw", |path| {
            let data = fs::read(self.ext4()).unwrap();
            let members =
                [0, 1].map(|number| raid::Member::new("1.0", 1, number, 2, data.clone()).image());
            fs::write(path, raid::disk(&members, 0xfd)).unwrap();
        })
    }

    /// [`Images::disk`] as xz in blocks of 1 MiB.
    pub(crate) fn disk_xz(&self) -> PathBuf {
        let from = self.disk();
        self.get("disk.raw.xz", |path| {
            xz(&from, path, &["-1", "-T2", "--block-size=1MiB"]);
        })
    }

    /// [`Images::disk`] as xz in one block: any byte costs the decoding of all before it.
    pub(crate) fn disk_single_block(&self) -> PathBuf {
        let from = self.disk();
        self.get("single.raw.xz", |path| xz(&from, path, &["-1", "-T1"]))
    }

    /// [`Images::disk`] as several xz streams with other checks and filters and padding between.
    pub(crate) fn disk_streams(&self) -> PathBuf {
        let from = self.disk();
        self.get("streams.raw.xz", |path| {
            let whole = fs::read(&from).unwrap();
            let mut out = fs::File::create(path).unwrap();
            let styles: [&[&str]; 4] = [
                &["-1", "--check=crc32", "--block-size=700KiB"],
                &["-1", "--check=sha256", "-T1"],
                &["--delta=dist=4", "--lzma2=preset=0", "--check=none"],
                &["--x86", "--lzma2=preset=1", "--block-size=3MiB"],
            ];
            // Not a multiple of anything.
            for (part, style) in whole
                .chunks(whole.len() / 3 - 777)
                .zip(styles.iter().cycle())
            {
                let piece = path.with_extension("piece");
                fs::write(&piece, part).unwrap();
                let packed = path.with_extension("packed");
                xz(&piece, &packed, style);
                out.write_all(&fs::read(&packed).unwrap()).unwrap();
                out.write_all(&[0; 64]).unwrap();
                fs::remove_file(piece).unwrap();
                fs::remove_file(packed).unwrap();
            }
        })
    }

    /// An MBR disk: primary 1 (ext2, [`Images::ext2`]), extended 2 with logical 5 (ext4, label
    /// `logic`) and 6 (swap type, empty).
    pub(crate) fn mbr(&self) -> PathBuf {
        self.get("mbr.raw", |path| {
            require_tool("sfdisk", "fdisk");
            make_sparse(path, 64 * MIB);
            let script = "label: dos\n\
                 start=2048, size=65536, type=83\n\
                 start=67584, type=5\n\
                 start=69632, size=32768, type=83\n\
                 start=104448, size=8192, type=82\n";
            run_with_stdin(Command::new("sfdisk").arg("-q").arg(path), script);
            copy_into(&self.ext2(), path, 2048 * 512);
            let logical = path.with_extension("logical");
            make_sparse(&logical, 16 * MIB);
            must(
                Command::new("mkfs.ext4")
                    .args(["-q", "-L", "logic"])
                    .arg(&logical),
            );
            with_mounted(&logical, &[], |dir| {
                fs::write(dir.join("which"), "the logical partition\n").unwrap();
            });
            copy_into(&logical, path, 69632 * 512);
            fs::remove_file(logical).unwrap();
        })
    }

    /// xfs, label `xee`, with a small tree.
    pub(crate) fn xfs(&self) -> PathBuf {
        self.get("xfs.raw", |path| {
            require_tool("mkfs.xfs", "xfsprogs");
            make_sparse(path, 320 * MIB);
            must(Command::new("mkfs.xfs").args(["-q", "-L", "xee"]).arg(path));
            // Made by one tool for all: two of them may be mounted at the same time.
            with_mounted(path, &["-o", "nouuid"], small_tree);
        })
    }

    /// btrfs, label `bee`, with a small tree.
    pub(crate) fn btrfs(&self) -> PathBuf {
        self.get("btrfs.raw", |path| {
            require_tool("mkfs.btrfs", "btrfs-progs");
            make_sparse(path, 128 * MIB);
            must(
                Command::new("mkfs.btrfs")
                    .args(["-q", "-L", "bee"])
                    .arg(path),
            );
            with_mounted(path, &[], small_tree);
        })
    }

    /// squashfs with a small tree.
    pub(crate) fn squashfs(&self) -> PathBuf {
        self.get("squash.raw", |path| {
            require_tool("mksquashfs", "squashfs-tools");
            let tree = tempfile::tempdir().unwrap();
            small_tree(tree.path());
            let mut tool = Command::new("mksquashfs");
            must(
                tool.arg(tree.path())
                    .arg(path)
                    .args(["-quiet", "-noappend"]),
            );
        })
    }

    /// erofs with a small tree.
    pub(crate) fn erofs(&self) -> PathBuf {
        self.get("erofs.raw", |path| {
            require_tool("mkfs.erofs", "erofs-utils");
            let tree = tempfile::tempdir().unwrap();
            small_tree(tree.path());
            must(Command::new("mkfs.erofs").arg(path).arg(tree.path()));
        })
    }

    /// An ISO 9660 image, volume `EYE`, with a small tree.
    pub(crate) fn iso(&self) -> PathBuf {
        self.get("disc.iso", |path| {
            require_tool("genisoimage", "genisoimage");
            let tree = tempfile::tempdir().unwrap();
            small_tree(tree.path());
            let mut tool = Command::new("genisoimage");
            tool.args(["-quiet", "-R", "-V", "EYE", "-o"]).arg(path);
            must(tool.arg(tree.path()));
        })
    }
}

/// Makes the checksum of a superblock of MD of version 1 right.
pub(crate) fn mend_superblock(bytes: &mut [u8]) {
    raid::mend_new(bytes);
}

/// A file of `size` bytes without data.
pub(crate) fn make_sparse(path: &Path, size: u64) {
    fs::File::create(path).unwrap().set_len(size).unwrap();
}

/// Writes the bytes of `from` at `offset` of `to`, leaving holes where there are zeroes.
pub(crate) fn copy_into(from: &Path, to: &Path, offset: u64) {
    let mut from = fs::File::open(from).unwrap();
    let to = fs::File::options().write(true).open(to).unwrap();
    let mut at = offset;
    let mut block = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut block).unwrap();
        if count == 0 {
            break;
        }
        if block[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&block[..count], at).unwrap();
        }
        at += u64::try_from(count).unwrap();
    }
}

/// Mounts a raw file system with the kernel, lets `change` write to it, and unmounts: the image is free
/// then, and nothing that was written is missing in it.
pub(crate) fn with_mounted<T>(image: &Path, args: &[&str], change: impl FnOnce(&Path) -> T) -> T {
    let point = tempfile::Builder::new()
        .prefix("lm-kernel-")
        .tempdir()
        .unwrap();
    let mut mount = Command::new("mount");
    must(
        mount
            .args(["-o", "loop"])
            .args(args)
            .arg(image)
            .arg(point.path()),
    );
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(point.path())));
    umount(point.path());
    until_no_loop(image);
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn fill(image: &Path, xattrs: &str) {
    require_tool("setfattr", "attr");
    require_tool("setfacl", "acl");
    require_tool("openssl", "openssl");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/rich-tree.sh");
    with_mounted(image, &[], |dir| {
        must(Command::new("bash").arg(script).arg(dir).arg(xattrs));
    });
}

/// A few files, for file systems of which only the wrapping is under test.
fn small_tree(dir: &Path) {
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/os-release"), "ID=small\n").unwrap();
    let numbers: String = (0..50_000).map(|n| format!("{n}\n")).collect();
    fs::write(dir.join("numbers"), numbers).unwrap();
    std::os::unix::fs::symlink("etc/os-release", dir.join("link")).unwrap();
}

/// Compresses `from` to `to` with xz.
pub(crate) fn xz(from: &Path, to: &Path, options: &[&str]) {
    require_tool("xz", "xz-utils");
    let out = fs::File::create(to).unwrap();
    let mut command = Command::new("xz");
    must_status(command.arg("-c").args(options).arg(from).stdout(out));
}

fn must_status(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn run_with_stdin(command: &mut Command, input: &str) {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let status = child.wait().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// SHA-256 of a file, in hex.
pub(crate) fn sha256(path: &Path) -> String {
    let mut file = fs::File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut block).unwrap();
        if count == 0 {
            break;
        }
        hash.update(&block[..count]);
    }
    hex(&hash.finalize())
}

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// Bytes `offset..offset + length` of a file.
pub(crate) fn read_range(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
