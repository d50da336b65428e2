//! What an ext4 tree asks of its volume: how much, and where.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{pattern, sh, sh_apart};
use nbdfuse::tree::{self, FileSystem, FsError};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, Counts, Faulty, Slow};
use nbdserve::{ByteRange, Kind, Volume};

/// An image of `size` MiB with the tree that `fill` makes.
fn image(size: u64, options: &str, fill: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (mnt, image) = (dir.path().join("mnt"), dir.path().join("image"));
    let script = format!(
        r#"mkdir "$1"; truncate -s {size}M "$2"; mke2fs -q -F -t ext4 {options} "$2"
        mount -o loop "$2" "$1"; trap 'cd /; umount "$1"' EXIT; cd "$1"
        {fill}"#
    );
    sh_apart(&script, &[&mnt, &image]);
    fs::read(&image).unwrap()
}

fn open(volume: Volume) -> Arc<dyn FileSystem> {
    tree::open("ext4", volume).unwrap()
}

fn counted(bytes: Vec<u8>) -> (Arc<dyn FileSystem>, Counts) {
    let (volume, counts) = Counting::volume(Memory::volume(bytes));
    (open(volume), counts)
}

fn find(fs: &dyn FileSystem, path: &str) -> u64 {
    let step = |dir, name: &str| fs.lookup(dir, name.as_bytes()).unwrap();
    path.split('/').fold(fs.root(), step)
}

#[test]
fn opening_reads_only_the_start_of_the_image() {
    // The journal is in the middle, backups of the superblock in several places.
    let bytes = image(
        512,
        "-b 4096 -g 8192",
        "mkdir -p etc usr; echo x > etc/file",
    );
    let (fs, counts) = counted(bytes);
    let furthest = counts.read_ranges().iter().map(|read| read.end()).max();
    assert!(furthest.unwrap() <= 64 << 10, "{furthest:?}");
    assert!(counts.reads() <= 3, "{} reads", counts.reads());
    assert!(tree::looks_like_root(&*fs));
}

#[test]
fn a_megabyte_of_a_file_is_one_read() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    let contents = pattern(6 << 20);
    fs::write(&large, &contents).unwrap();
    let fill = format!("cp {} large", large.display());
    for options in ["-b 4096", "-b 1024"] {
        let (fs, counts) = counted(image(32, options, &fill));
        let ino = find(&*fs, "large");
        let mut buf = vec![0; 1 << 20];
        // Once for the metadata.
        fs.read(ino, 0, &mut buf[..1]).unwrap();
        counts.reset();
        assert_eq!(fs.read(ino, 3 << 20, &mut buf).unwrap(), 1 << 20);
        assert!(buf == contents[3 << 20..4 << 20]);
        assert_eq!(counts.reads(), 1, "{options}: {:?}", counts.read_ranges());
        assert_eq!(counts.read_bytes(), 1 << 20);
    }
}

/// A far source, where the volume is watched: what is hinted at is what is read, block by block, and
/// little is read that no hint has named before.
#[test]
fn a_watched_tree_is_read_as_it_was_foretold() {
    let fill = "for d in $(seq 30); do mkdir -p top/$d; \
        for f in $(seq -w 10); do head -c 9000 /dev/urandom > top/$d/$f-$(printf x%.0s $(seq 100)); done; done";
    let bytes = image(64, "-b 4096", fill);
    let (source, counts) = Counting::source(Memory::volume(bytes.clone()));
    let watched = open(nbdserve::foresight::watch(&source, &source));
    let plain = open(Memory::volume(bytes));
    let top = find(&*watched, "top");
    let (mut entries, mut foretold) = (0, 0);
    for d in 1..=30 {
        let dir = watched.lookup(top, d.to_string().as_bytes()).unwrap();
        let mut names = Vec::new();
        let list = |fs: &dyn FileSystem, names: &mut Vec<(u64, Vec<u8>)>| {
            fs.read_dir(dir, 0, &mut |entry| {
                names.push((entry.ino, entry.name.to_vec()));
                true
            })
            .unwrap();
        };
        let before = (counts.hint_sets().concat(), counts.read_ranges().len());
        list(&*watched, &mut names);
        let reads = counts.read_ranges();
        let known = |read: &&ByteRange| before.0.iter().any(|hint| hint.contains(**read));
        foretold += usize::from(reads[before.1..].iter().all(|read| known(&read)));
        let mut expected = Vec::new();
        list(&*plain, &mut expected);
        assert_eq!(names, expected);
        entries += names.len();
        let (ino, _) = names[names.len() / 2];
        let mut both = [vec![0; 9000], vec![0; 9000]];
        watched.read(ino, 0, &mut both[0]).unwrap();
        plain.read(ino, 0, &mut both[1]).unwrap();
        assert!(both[0] == both[1]);
    }
    assert_eq!(entries, 30 * 12);
    assert!(foretold >= 20, "{foretold} of 30 folders");
}

#[test]
fn listing_a_large_directory_reads_each_block_once() {
    let fill = "mkdir many; cd many; seq -f 'a-name-of-some-length-%g' 5000 | xargs touch";
    let (fs, counts) = counted(image(32, "-b 4096", fill));
    let dir = find(&*fs, "many");
    counts.reset();
    let mut entries = 0;
    let mut next = 0;
    // In parts, as the kernel asks.
    loop {
        let mut part = 0;
        fs.read_dir(dir, next, &mut |entry| {
            part += 1;
            next = entry.next;
            fs.attr(entry.ino).unwrap();
            part < 100
        })
        .unwrap();
        entries += part;
        if part < 100 {
            break;
        }
    }
    assert_eq!(entries, 5002);
    // 5000 inodes of 256 bytes and some 200 KiB of names, in chunks of 32 KiB.
    assert!(counts.reads() <= 60, "{} reads", counts.reads());
}

#[test]
fn a_name_in_a_large_directory_is_found_by_its_hash() {
    let fill = "mkdir many; cd many; seq -f 'a-name-of-some-length-%g' 20000 | xargs touch";
    let (fs, counts) = counted(image(64, "-b 1024 -N 30000", fill));
    let dir = find(&*fs, "many");
    let mut space = Vec::new();
    fs.read_dir(dir, 0, &mut |entry| {
        space.push((entry.name.to_vec(), entry.ino));
        true
    })
    .unwrap();
    assert_eq!(space.len(), 20_002);
    counts.reset();
    let named: Vec<_> = space.iter().filter(|(name, _)| name.len() > 2).collect();
    for (name, ino) in named.iter().step_by(501) {
        assert_eq!(fs.lookup(dir, name).unwrap(), *ino);
    }
    assert!(matches!(fs.lookup(dir, b"absent"), Err(FsError::NotFound)));
    assert!(matches!(
        fs.lookup(dir, &[b'x'; 256]),
        Err(FsError::NameTooLong)
    ));
}

#[test]
fn many_threads_read_at_the_same_time() {
    const READERS: usize = 32;
    let fill = format!("for i in $(seq {READERS}); do head -c 100000 /dev/urandom > $i; done");
    let (volume, gate) = Slow::volume(Memory::volume(image(32, "-b 4096", &fill)));
    let fs = open(volume);
    let files: Vec<u64> = (1..=READERS).map(|i| find(&*fs, &i.to_string())).collect();
    gate.shut();
    std::thread::scope(|scope| {
        for ino in &files {
            let fs = &fs;
            scope.spawn(move || fs.read(*ino, 0, &mut [0; 4096]).unwrap());
        }
        let all_wait = gate.wait_in_flight(READERS, common::PATIENCE);
        gate.open();
        assert!(all_wait, "{} in flight", gate.most_in_flight());
    });
}

#[test]
fn a_second_walk_of_a_mounted_tree_asks_nothing() {
    let fill = "for d in 1 2 3 4 5 6; do mkdir $d; for f in $(seq 50); do
        echo $f > $d/$f; ln -s $f $d/link-$f; done; done";
    let (volume, counts) = Counting::volume(Memory::volume(image(32, "-b 4096", fill)));
    let dir = tempfile::tempdir().unwrap();
    let mounted = common::Mounted::tree(volume, dir.path());
    let walk = || sh(r#"ls -lR "$1"; cat "$1"/*/[0-9]*"#, &[dir.path()]);
    let first = walk();
    counts.reset();
    assert_eq!(walk(), first);
    assert_eq!(counts.reads(), 0);
    mounted.unmount();
}

#[test]
fn an_invalidation_of_a_mounted_tree_drops_its_data() {
    let fill = "mkdir dir; echo contents-old > dir/file";
    let bytes = image(16, "-b 4096 -O ^metadata_csum", fill);
    let at = bytes
        .windows(12)
        .position(|w| w == b"contents-old")
        .unwrap();
    let volume = Memory::volume(bytes);
    let dir = tempfile::tempdir().unwrap();
    let mounted = common::Mounted::tree(volume.clone(), dir.path());
    let file = dir.path().join("dir/file");
    assert_eq!(fs::read(&file).unwrap(), b"contents-old\n");
    let writer = volume.writer().unwrap();
    writer.write_at(b"contents-new", at as u64, false).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"contents-old\n");
    mounted.session.invalidate_all();
    let deadline = std::time::Instant::now() + common::PATIENCE;
    while fs::read(&file).unwrap() != b"contents-new\n" {
        assert!(std::time::Instant::now() < deadline, "old contents");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    mounted.unmount();
}

#[test]
fn what_was_cached_of_an_inode_is_read_again_after_a_drop() {
    let bytes = image(
        16,
        "-b 4096 -O ^metadata_csum",
        "echo x > file; chmod 640 file",
    );
    let volume = Memory::volume(bytes);
    let fs = open(volume.clone());
    let ino = find(&*fs, "file");
    let attr = fs.attr(ino).unwrap();
    assert_eq!(attr.mode & 0o777, 0o640);
    // Found by its first fields, mode, owner and size; the journal has a copy.
    let wanted = [0xa0, 0x81, 0, 0, 2, 0, 0, 0];
    let all = volume.read_vec(0, volume.size() as usize).unwrap();
    let writer = volume.writer().unwrap();
    for at in (0..all.len() - 8).filter(|at| all[*at..].starts_with(&wanted)) {
        writer.write_at(&[0xa4], at as u64, false).unwrap();
    }
    assert_eq!(fs.attr(ino).unwrap(), attr);
    fs.drop_caches();
    assert_eq!(fs.attr(ino).unwrap().mode & 0o777, 0o644);
}

#[test]
fn an_error_of_the_volume_keeps_its_kind_and_is_not_kept() {
    let bytes = image(16, "-b 4096", "mkdir dir; echo contents > dir/file");
    for (kind, errno) in [
        (Kind::Corrupt, libc::EIO),
        (Kind::TimedOut, libc::ETIMEDOUT),
    ] {
        let (volume, faults) = Faulty::volume(Memory::volume(bytes.clone()));
        let fs = open(volume);
        faults.fail_all(kind);
        let error = fs.lookup(fs.root(), b"dir").unwrap_err();
        assert_eq!(error.errno(), errno);
        let FsError::Image(error) = error else {
            panic!("{error}");
        };
        assert_eq!(error.kind(), kind);
        faults.clear();
        find(&*fs, "dir/file");
    }
}

#[test]
fn an_image_that_is_no_ext4_is_told_from_one_that_is_cut() {
    let refused = tree::open("ext4", Memory::volume(vec![0; 1 << 20])).unwrap_err();
    assert_eq!(refused.kind(), Kind::NotThisFormat);
    let refused = tree::open("ext4", Memory::volume(vec![0; 100])).unwrap_err();
    assert_eq!(refused.kind(), Kind::NotThisFormat);
    let mut bytes = image(16, "-b 4096", "echo x > file");
    bytes.truncate(5 << 20);
    let refused = tree::open("ext4", Memory::volume(bytes)).unwrap_err();
    assert_eq!(refused.kind(), Kind::Corrupt);
    let refused = tree::open("xfs", Memory::volume(vec![0; 1 << 20])).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unsupported);
    let report = refused.report();
    assert!(report.what.contains("xfs"), "{report}");
    assert!(report.hint.unwrap().contains("--fuse"));
}

#[test]
fn a_wrong_checksum_is_corrupt_where_it_is_and_nowhere_else() {
    let bytes = image(16, "-b 4096", "mkdir a b; echo 1 > a/file; echo 2 > b/file");
    let fs = open(Memory::volume(bytes.clone()));
    let inode_a = find(&*fs, "a");
    // Found by their contents: the directory's block, and its copy in the journal.
    let mut damaged = bytes;
    for block in damaged.chunks_mut(4096) {
        if block.starts_with(&(inode_a as u32).to_le_bytes())
            && block.windows(4).any(|name| name == b"file")
        {
            block[2000] ^= 1;
        }
    }
    let fs = open(Memory::volume(damaged));
    let error = fs.lookup(inode_a, b"file").unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(error.errno(), libc::EIO);
    find(&*fs, "b/file");
}

#[test]
fn a_range_of_the_journal_is_read_only_where_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    sh_apart(
        r#"truncate -s 64M "$1"; mke2fs -q -F -t ext4 -b 4096 "$1"; mkdir "$2"
        mount -o loop "$1" "$2"; trap 'umount "$2"' EXIT
        echo x > "$2/late"; sync "$2/late"; cp "$1" "$3""#,
        &[&image, &dir.path().join("mnt"), &dir.path().join("crashed")],
    );
    let journal = journal_block(&image);
    for (name, dirty) in [("image", false), ("crashed", true)] {
        let bytes = fs::read(dir.path().join(name)).unwrap();
        let (fs, counts) = counted(bytes);
        let first = ByteRange::between(journal * 4096, (journal + 1) * 4096);
        assert_eq!(counts.has_read(first), dirty, "{name}");
        find(&*fs, "late");
    }
}

/// The first block of the journal, as debugfs says it.
fn journal_block(image: &Path) -> u64 {
    let said = sh(r#"debugfs -R "bmap <8> 0" "$1" 2>/dev/null"#, &[image]);
    said.trim().parse().unwrap()
}
