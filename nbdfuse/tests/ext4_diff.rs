//! ext2, ext3 and ext4 trees, compared with what the kernel shows of the same image on its own
//! loop device.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::{Mounted, sh, sh_apart};
use nbdserve::source::Memory;

/// Everything that can be seen of a tree, by path.
type Listing = BTreeMap<Vec<u8>, String>;

fn list(top: &Path) -> Listing {
    let mut out = Listing::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = top.join(&relative);
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let contents = if meta.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                todo.push(relative.join(entry.unwrap().file_name()));
            }
            String::new()
        } else if meta.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else if meta.is_file() {
            digest(&path)
        } else {
            format!("device {:#x}", meta.rdev())
        };
        let line = format!(
            "ino {} mode {:o} nlink {} owner {}:{} size {} blocks {} times {}.{} {}.{} {}.{} {contents} {:?}",
            meta.ino(),
            meta.mode(),
            meta.nlink(),
            meta.uid(),
            meta.gid(),
            meta.size(),
            meta.blocks(),
            meta.atime(),
            meta.atime_nsec(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
            xattrs(&path),
        );
        out.insert(relative.into_os_string().into_vec(), line);
    }
    out
}

/// Read in pieces that match nothing of the format.
fn digest(path: &Path) -> String {
    use sha2::Digest;
    use std::io::Read;
    let mut file = fs::File::open(path).unwrap();
    let mut hash = sha2::Sha256::new();
    let mut buf = vec![0; 70_001];
    loop {
        match file.read(&mut buf).unwrap() {
            0 => return hash.finalize().iter().map(|b| format!("{b:02x}")).collect(),
            len => hash.update(&buf[..len]),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut value = vec![0; 65536];
    names[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = std::ffi::OsStr::from_bytes(name);
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name.to_owned(), value[..len].to_vec())
        })
        .collect()
}

/// What statfs(2) says: blocks, free, available, inodes, free, length of names, size of a block.
fn figures(top: &Path) -> String {
    sh(r#"stat -f -c '%b %f %a %c %d %l %S' "$1""#, &[top])
}

/// Makes an image of `size` (as truncate(1) has it) by mkfs with `options`, runs `fill` in its
/// root (the kernel's mount), and compares the kernel's view of the result with ours.
fn compare(size: &str, options: &str, fill: &str) {
    let dir = tempfile::tempdir().unwrap();
    let image = make_image(dir.path(), size, options, fill);
    compare_image(dir.path(), &image, "ro");
}

fn make_image(dir: &Path, size: &str, options: &str, fill: &str) -> PathBuf {
    let (image, mnt) = (dir.join("image"), dir.join("kernel"));
    fs::create_dir(&mnt).unwrap();
    let script = format!(
        r#"truncate -s {size} "$1"
        mke2fs -q -F {options} "$1"
        mount -o loop,acl,user_xattr "$1" "$2"
        trap 'cd /; umount "$2"' EXIT
        cd "$2"
        {fill}"#
    );
    sh_apart(&script, &[&image, &mnt]);
    image
}

/// `options` are the kernel's.
fn compare_image(dir: &Path, image: &Path, options: &str) {
    let (kernel, ours) = (dir.join("kernel"), dir.join("ours"));
    fs::create_dir_all(&ours).unwrap();
    // Before the kernel sees it: a replay by the kernel writes.
    let bytes = fs::read(image).unwrap();
    let mount = format!(r#"mount -o loop,{options},noatime "$1" "$2""#);
    sh(&mount, &[image, &kernel]);
    let wanted = std::panic::catch_unwind(|| (list(&kernel), figures(&kernel)));
    nbdserve::testing::tools::umount(&kernel);
    let wanted = wanted.unwrap();
    let mounted = Mounted::tree(Memory::volume(bytes), &ours);
    let (found, figures) = (list(&ours), figures(&ours));
    mounted.unmount();
    let (wanted, wanted_figures) = wanted;
    assert_eq!(figures, wanted_figures);
    for (path, line) in &wanted {
        let shown = String::from_utf8_lossy(path);
        assert_eq!(found.get(path), Some(line), "{shown}");
    }
    let extra: Vec<_> = found
        .keys()
        .filter(|path| !wanted.contains_key(*path))
        .collect();
    assert!(extra.is_empty(), "{extra:?}");
    assert!(wanted.len() > 20, "only {} paths", wanted.len());
}

/// Some of everything that every ext can hold.
const USUAL: &str = r#"
    mkdir -p etc usr/bin "dir with space" deep/a/b/c/d/e/f
    echo hello > etc/hostname
    head -c 3000000 /dev/urandom > usr/bin/large
    head -c 60 /dev/urandom > sixty; head -c 61 /dev/urandom > sixty-one
    for i in 0 1 59 60 61 1023 1024 1025 4095 4096 4097 12288 49152 49153 300000; do
        head -c $i /dev/urandom > "size-$i"
    done
    truncate -s 40M sparse; printf x | dd of=sparse bs=1 seek=13000000 conv=notrunc status=none
    printf y | dd of=sparse bs=1 seek=30000001 conv=notrunc status=none
    truncate -s 5M all-hole
    ln -s short link-short; ln usr/bin/large hard; ln hard deep/hard2
    ln -s "$(printf '%059d' 0)" link-59; ln -s "$(printf '%060d' 0)" link-60
    ln -s "$(printf '%061d' 0)" link-61; ln -s "$(printf '%01000d' 0)" link-1000
    ln -s "$(printf '%04000d' 0)" link-4000 || ln -s "$(printf '%01020d' 0)" link-1020
    mknod null c 1 3; mknod disk b 8 17; mknod big-minor c 259 70000; mkfifo pipe
    mknod big-major c 511 255
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")' 2>/dev/null || mkfifo pipe2
    chmod 4755 etc/hostname; chmod 1777 deep; chmod 000 sixty
    chown 1000:2000 sixty-one; chown 4000000000:3999999999 size-0
    touch -d '1960-02-03 04:05:06.789012345 UTC' size-1
    touch -d '2040-02-03 04:05:06.123456789 UTC' size-59
    touch -d '2400-12-31 23:59:59.999999999 UTC' size-61
    printf 'newline\nname' > 'a
b'; printf x > "$(printf '\377\376bytes')"; printf x > "$(printf '%0255d' 7)"
    setfattr -n user.small -v value etc/hostname; setfattr -n user.empty etc/hostname
    setfattr -n user.long -v "$(printf '%0800d' 5)" etc/hostname
    setfattr -n trusted.secret -v t etc/hostname; setfattr -n security.thing -v s etc/hostname
    setfattr -n trusted.onlink -v t -h link-short
    setfattr -n user.on.dir -v d deep
    setfacl -m u:1234:rwx,g:99:r-x,m::rx etc/hostname; setfacl -d -m u:77:rwx deep; mkdir deep/acl
    echo x > deep/acl/inherits
    mkdir many; cd many; seq -f 'entry-number-%g-with-a-name-of-some-length' 3000 | xargs touch
    seq -f 'entry-number-%g-with-a-name-of-some-length' 100 3 900 | xargs rm; cd ..
    mkdir frag; for i in $(seq 60); do head -c 8192 /dev/urandom > frag/$i; done
    for i in $(seq 1 2 60); do rm frag/$i; done; head -c 400000 /dev/urandom > frag/pieces
"#;

#[test]
fn ext4_with_blocks_of_4_kib() {
    compare("96M", "-t ext4 -b 4096", USUAL);
}

#[test]
fn ext4_with_blocks_of_1_kib() {
    compare("96M", "-t ext4 -b 1024", USUAL);
}

#[test]
fn ext2() {
    compare("96M", "-t ext2 -b 1024", USUAL);
    compare(
        "96M",
        "-t ext2 -b 4096 -I 128",
        &USUAL.replace("touch -d '2", "true '2"),
    );
}

#[test]
fn ext3() {
    compare("96M", "-t ext3 -b 1024", USUAL);
    compare("96M", "-t ext3 -b 4096", USUAL);
}

#[test]
fn ext4_with_inline_data() {
    let fill = format!(
        "{USUAL}
        mkdir tiny tiny2; touch tiny/a tiny/b; for i in 1 2 3 4 5 6; do echo $i > tiny2/file$i; done
        head -c 150 /dev/urandom > inline-150; setfattr -n user.x -v y inline-150
        ln -s \"$(printf '%0100d' 0)\" inline-link"
    );
    compare("96M", "-t ext4 -b 4096 -I 512 -O inline_data", &fill);
    compare("96M", "-t ext4 -b 1024 -I 256 -O inline_data", &fill);
}

#[test]
fn ext4_of_other_features() {
    compare(
        "96M",
        "-t ext4 -b 4096 -O ^metadata_csum,uninit_bg,^64bit",
        USUAL,
    );
    compare(
        "160M",
        "-t ext4 -b 4096 -O bigalloc -C 16384 -N 8192",
        USUAL,
    );
    compare("96M", "-t ext4 -b 1024 -O meta_bg,^resize_inode", USUAL);
    compare(
        "96M",
        "-t ext4 -b 4096 -O ^flex_bg,^has_journal,^extent,^64bit",
        USUAL,
    );
    compare("96M", "-t ext2 -b 4096 -O ^filetype,^dir_index", USUAL);
    let large =
        format!("{USUAL}\nsetfattr -n user.huge -v \"$(printf '%030000d' 5)\" etc/hostname");
    compare(
        "96M",
        "-t ext4 -b 4096 -O ea_inode,large_dir,sparse_super2",
        &large,
    );
}

#[test]
fn files_of_many_extents_and_of_written_and_unwritten_ones() {
    let fill = format!(
        r#"{USUAL}
        fallocate -l 3M unwritten; printf z | dd of=unwritten bs=1 seek=1500000 conv=notrunc status=none
        fallocate -l 3M kept; truncate -s 100 kept
        for i in $(seq 0 8 8000); do
            printf x | dd of=holes bs=4096 seek=$i conv=notrunc status=none
        done"#
    );
    compare("96M", "-t ext4 -b 4096", &fill);
    compare("96M", "-t ext4 -b 1024", &fill);
}

#[test]
fn a_directory_of_many_levels_of_hash_tree() {
    let fill = format!(
        r#"{USUAL}
        mkdir huge; cd huge
        seq -f '%g-{}' 20000 | xargs touch; cd .."#,
        "n".repeat(200)
    );
    compare("256M", "-t ext4 -b 1024 -N 40000", &fill);
}

/// Changes an image under the kernel and takes it as a crash would leave it: what changed last is
/// in the journal only.
fn crashed_image(dir: &Path, options: &str, mount: &str) -> PathBuf {
    let image = make_image(dir, "96M", options, USUAL);
    let copy = dir.join("crashed");
    sh_apart(
        &format!(
            r#"mount -o loop,{mount} "$1" "$2"
        trap 'cd /; umount "$2"' EXIT
        cd "$2"; mkdir late; for i in $(seq 300); do echo $i > late/file-$i; done
        rm etc/hostname sixty; mv size-59 late/; chmod 700 deep; ln -s target late/link
        setfattr -n user.late -v 1 size-60; sync late/file-1 late/file-300
        cp "$1" "$3""#
        ),
        &[&image, &dir.join("kernel"), &copy],
    );
    let features = sh(r#"dumpe2fs -h "$1" 2>/dev/null | grep features"#, &[&copy]);
    assert!(features.contains("needs_recovery"), "{features}");
    // Without the journal, the last changes are not there: the replay is what is tested.
    let without = sh(r#"debugfs -c -R "stat /late" "$1" 2>&1 || :"#, &[&copy]);
    assert!(without.contains("File not found"), "{without}");
    copy
}

#[test]
fn a_journal_that_was_not_replayed_is_replayed_in_memory() {
    for (options, mount) in [
        ("-t ext4 -b 4096", "data=ordered"),
        ("-t ext4 -b 1024", "data=ordered"),
        ("-t ext4 -b 4096 -O ^metadata_csum,^64bit", "data=ordered"),
        ("-t ext3 -b 4096", "data=ordered"),
        // Contents of files are in the journal too.
        ("-t ext4 -b 4096", "data=journal"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let image = crashed_image(dir.path(), options, mount);
        let before = fs::read(&image).unwrap();
        // Read-write, as the kernel replays nothing on a read-only device.
        compare_image(dir.path(), &image, "rw");
        assert!(
            fs::read(&image).unwrap() != before,
            "the kernel had nothing to replay"
        );
    }
}
