//! Images with wrong bytes: every answer is an answer or an error, never a panic, a hang, or more
//! memory than allowed.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Once;

use common::{Mounted, sh, sh_apart, try_sh};
use nbdfuse::tree::{self, FileSystem, FsError};
use nbdserve::source::Memory;
use nbdserve::testing::Rng;
use nbdserve::{Device, Geometry, Kind, Volume};

/// Mutated images per make of image.
const ROUNDS: u64 = 2000;
/// What a walk may cost before it counts as endless: inodes visited and bytes read. The images
/// hold some 300 inodes.
const MAX_ENTRIES: usize = 20_000;
const MAX_READ: usize = 64;

fn image(options: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (image, mnt) = (dir.path().join("image"), dir.path().join("mnt"));
    let script = format!(
        r#"mkdir "$2"; truncate -s 8M "$1"; mke2fs -q -F {options} "$1"
        mount -o loop "$1" "$2"; trap 'cd /; umount "$2"' EXIT; cd "$2"
        mkdir -p a/b/c many; echo x > a/file; head -c 100000 /dev/urandom > a/b/large
        truncate -s 20M sparse; echo y >> sparse; ln -s target a/link
        ln -s "$(printf '%0200d' 0)" long; mknod null c 1 3
        setfattr -n user.name -v "$(printf '%0300d' 1)" a/file
        setfacl -m u:1:r a/file; setfattr -n trusted.x -v y a
        cd many; seq -f 'entry-with-a-long-name-so-that-there-are-blocks-%g' 250 | xargs touch
        cd ..; for i in $(seq 0 4 200); do
            printf x | dd of=pieces bs=1024 seek=$i conv=notrunc status=none; done"#
    );
    sh_apart(&script, &[&image, &mnt]);
    fs::read(&image).unwrap()
}

/// Looks at everything; stops early rather than never.
fn walk(fs: &dyn FileSystem) {
    let mut todo = vec![fs.root()];
    let mut budget = MAX_ENTRIES;
    while let Some(ino) = todo.pop() {
        let Some(left) = budget.checked_sub(1) else {
            return;
        };
        budget = left;
        let Ok(attr) = fs.attr(ino) else { continue };
        for name in fs.list_xattr(ino).unwrap_or_default() {
            let _ = fs.get_xattr(ino, &name);
        }
        match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => {
                let mut last = 0;
                let _ = fs.read_dir(ino, 0, &mut |entry| {
                    assert!(entry.next > last, "positions must grow");
                    last = entry.next;
                    assert!(!entry.name.contains(&b'/') && !entry.name.is_empty());
                    if entry.name != b"." && entry.name != b".." {
                        todo.push(entry.ino);
                    }
                    todo.len() < MAX_ENTRIES
                });
                let _ = fs.lookup(ino, b"entry-with-a-long-name-so-that-there-are-blocks-77");
                let _ = fs.lookup(ino, b"absent");
            }
            libc::S_IFLNK => {
                let _ = fs.read_link(ino);
            }
            libc::S_IFREG => read_some(fs, ino, attr.size),
            _ => {}
        }
    }
}

fn read_some(fs: &dyn FileSystem, ino: u64, size: u64) {
    let mut buf = vec![0; 100_000];
    let mut at = 0;
    for _ in 0..MAX_READ {
        match fs.read(ino, at, &mut buf) {
            Ok(0) | Err(_) => break,
            Ok(len) => at += len as u64,
        }
    }
    let _ = fs.read(ino, size.saturating_sub(10), &mut buf);
    let _ = fs.read(ino, u64::MAX - 5, &mut buf);
    let mut at = 0;
    for _ in 0..MAX_READ {
        match fs.run_at(ino, at) {
            Ok(Some(run)) => {
                assert!(run.end > at && run.end <= size, "{run:?} at {at} of {size}");
                at = run.end;
            }
            Ok(None) | Err(_) => break,
        }
    }
    let _ = fs.run_at(ino, u64::MAX);
}

/// A panic inside the reader becomes an error; it would still be a defect of ours or of the
/// crate, so it is counted by the panic hook.
fn count_panics() -> &'static std::sync::atomic::AtomicUsize {
    static PANICS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A failing test panics too, and says so by itself.
            if info
                .location()
                .is_none_or(|at| !at.file().contains("tests/"))
            {
                PANICS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            usual(info);
        }));
    });
    &PANICS
}

/// Opens and walks `bytes` with these of them changed; whether it could be opened. The image is kept where that
/// panics, since no other run makes the same one.
fn try_mutated(name: &str, bytes: &[u8], changes: &[(usize, u8)]) -> bool {
    let panics = count_panics();
    let damaged = || {
        let mut damaged = bytes.to_vec();
        for (at, byte) in changes {
            damaged[*at] = *byte;
        }
        damaged
    };
    let before = panics.load(std::sync::atomic::Ordering::SeqCst);
    let outcome = std::panic::catch_unwind(|| {
        let opened = tree::open("ext4", Memory::volume(damaged()));
        opened.map(|fs| walk(&*fs)).is_ok()
    });
    // Or in another test at the same time.
    let panicked = panics.load(std::sync::atomic::Ordering::SeqCst) > before;
    if outcome.is_err() || panicked {
        let path = std::env::temp_dir().join(format!("nbdfuse-ext4-hostile-{name}"));
        fs::write(&path, damaged()).unwrap();
        eprintln!("the image is in {}", path.display());
    }
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The first file system block of the journal and its length in blocks, by debugfs.
fn journal(image: &Path) -> (u64, u64) {
    let bmap = |block: u64| {
        let script = format!(r#"debugfs -R "bmap <8> {block}" "$1" 2>/dev/null"#);
        sh(&script, &[image]).trim().parse().unwrap()
    };
    let (first, later): (u64, u64) = (bmap(0), bmap(500));
    assert_eq!(later, first + 500, "the journal is in one piece");
    (first, 500)
}

#[test]
fn a_mutated_journal_that_must_be_replayed() {
    let panics = count_panics();
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    sh_apart(
        r#"mkdir "$2"; truncate -s 16M "$1"; mke2fs -q -F -t ext4 -b 1024 "$1"
        mount -o loop "$1" "$2"; trap 'cd /; umount "$2"' EXIT; cd "$2"
        for i in 1 2 3 4 5; do mkdir d$i; echo x > d$i/file; sync d$i/file; rm d$i/file; sync .; done
        cp "$1" "$3""#,
        &[&path("image"), &path("mnt"), &path("crashed")],
    );
    let bytes = fs::read(path("crashed")).unwrap();
    let (first, len) = journal(&path("crashed"));
    let start = first as usize * 1024;
    let used: Vec<usize> = (0..len as usize)
        .map(|block| start + block * 1024)
        .filter(|at| bytes[*at..at + 4] == [0xc0, 0x3b, 0x39, 0x98])
        .collect();
    assert!(used.len() > 10, "only {} journal headers", used.len());
    let mut rng = Rng::new(6);
    let mut opened = 0;
    for _ in 0..ROUNDS {
        let changes: Vec<_> = (0..=rng.below(4))
            .map(|_| {
                // Headers, the superblock of the journal among them, and their first fields.
                let at = used[rng.below(used.len() as u64) as usize] + rng.below(120) as usize;
                (at, rng.next_u64() as u8)
            })
            .collect();
        opened += u64::from(try_mutated("journal", &bytes, &changes));
    }
    assert!(opened > 0);
    assert_eq!(panics.load(std::sync::atomic::Ordering::SeqCst), 0);
}

/// The parts of an image that hold metadata: changing file contents would test nothing.
fn metadata(bytes: &[u8]) -> Vec<usize> {
    let blocks = bytes.chunks(1024).enumerate();
    let interesting = blocks.filter(|(_, block)| {
        let zeroes = block.iter().filter(|b| **b == 0).count();
        zeroes < 1024 && zeroes > 200
    });
    interesting.map(|(at, _)| at * 1024).collect()
}

fn mutate(options: &str, seed: u64) {
    let panics = count_panics();
    let bytes = image(options);
    let blocks = metadata(&bytes);
    let mut rng = Rng::new(seed);
    let mut opened = 0;
    for _ in 0..ROUNDS {
        let changes: Vec<_> = (0..=rng.below(12))
            .map(|_| {
                let block = blocks[rng.below(blocks.len() as u64) as usize];
                let at = block + rng.below(1024) as usize;
                let byte = match rng.below(4) {
                    0 => 0xff,
                    1 => 0,
                    2 => bytes[at] ^ (1 << rng.below(8)),
                    _ => rng.next_u64() as u8,
                };
                (at, byte)
            })
            .collect();
        opened += u64::from(try_mutated(&seed.to_string(), &bytes, &changes));
    }
    assert!(opened > ROUNDS / 4, "only {opened} images could be opened");
    assert_eq!(panics.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn mutated_ext4_without_checksums() {
    // Without checksums the damage gets through to the code behind them.
    mutate("-t ext4 -b 1024 -O ^metadata_csum", 1);
    mutate(
        "-t ext4 -b 4096 -I 512 -O ^metadata_csum,inline_data,ea_inode",
        2,
    );
}

#[test]
fn mutated_ext2_and_ext3() {
    mutate("-t ext2 -b 1024", 3);
    mutate("-t ext3 -b 1024", 4);
}

#[test]
fn mutated_ext4_with_checksums() {
    mutate("-t ext4 -b 1024", 5);
}

/// Sets the bytes of `path`'s inode by debugfs.
fn with_inode(path: &str, changes: &str) -> Box<dyn Fn() -> std::sync::Arc<dyn FileSystem>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    fs::write(&file, image("-t ext4 -b 1024 -O ^metadata_csum")).unwrap();
    for change in changes.split(';') {
        let script = format!(r#"debugfs -w -R "sif {path} {change}" "$1" 2>&1"#);
        sh(&script, &[&file]);
    }
    let bytes = fs::read(&file).unwrap();
    Box::new(move || tree::open("ext4", Memory::volume(bytes.clone())).unwrap())
}

#[test]
fn a_directory_that_claims_2_to_the_32_bytes_ends() {
    let fs = with_inode("/many", "size 0xfffff000")();
    let dir = fs.lookup(fs.root(), b"many").unwrap();
    let mut entries = 0;
    let result = fs.read_dir(dir, 0, &mut |_| {
        entries += 1;
        true
    });
    assert!(entries >= 252 || result.is_err());
    assert!(matches!(
        fs.lookup(dir, b"absent"),
        Err(FsError::NotFound | FsError::Image(_))
    ));
}

#[test]
fn a_file_that_claims_2_to_the_62_bytes_takes_no_memory_and_has_an_end_for_its_hole() {
    let fs = with_inode("/sparse", "size 0x4000000000000000")();
    let ino = fs.lookup(fs.root(), b"sparse").unwrap();
    assert_eq!(fs.attr(ino).unwrap().size, 1 << 62);
    let mut buf = [1; 100];
    assert_eq!(fs.read(ino, 1 << 61, &mut buf).unwrap(), 100);
    assert_eq!(buf, [0; 100]);
    let run = fs.run_at(ino, 1 << 61).unwrap().unwrap();
    assert_eq!((run.end, run.hole), (1 << 62, true));
}

#[test]
fn an_extent_tree_that_leads_to_itself_ends() {
    // Depth 1; the only child is the block that holds it.
    let changes = [
        "block[0] 0x0001f30a",
        "block[1] 0x00010004",
        "block[3] 0",
        "block[4] 100",
        "block[5] 0",
    ];
    let fs = with_inode("/pieces", &changes.join(";"))();
    let ino = fs.lookup(fs.root(), b"pieces").unwrap();
    let error = fs.read(ino, 0, &mut [0; 10]).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
}

#[test]
fn a_symbolic_link_of_a_gigabyte_is_corrupt() {
    let fs = with_inode("/long", "size 0x40000000")();
    let ino = fs.lookup(fs.root(), b"long").unwrap();
    assert_eq!(fs.read_link(ino).unwrap_err().errno(), libc::EIO);
}

#[test]
fn directories_that_lead_to_themselves_end_in_the_kernel_too() {
    let dir = tempfile::tempdir().unwrap();
    let (file, target) = (dir.path().join("image"), dir.path().join("tree"));
    fs::create_dir(&target).unwrap();
    fs::write(&file, image("-t ext4 -b 1024 -O ^metadata_csum")).unwrap();
    let script = r#"for l in "ln <2> /a/root" "ln /a /a/b/c/up" "ln <8> /journal" "ln <1> /one"
        do debugfs -w -R "$l" "$1" 2>&1; done"#;
    sh(script, &[&file]);
    let mounted = Mounted::tree(Memory::volume(fs::read(&file).unwrap()), &target);
    for bad in ["a/root", "journal", "one"] {
        let error = fs::metadata(target.join(bad)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{bad}");
    }
    // Complains, ends, and shows what is sound; names whose inode is unsound as well.
    let found = try_sh(r#"timeout 60 find "$1" | sort"#, &[&target]);
    assert!(found.status.success());
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    for name in ["/a/b/large", "/a/root", "/long", "/journal"] {
        assert!(
            found.lines().any(|line| line.ends_with(name)),
            "{name}: {found}"
        );
    }
    assert!(found.lines().count() < 400, "{found}");
    mounted.unmount();
}

#[test]
fn a_superblock_of_a_billion_groups_takes_no_memory() {
    /// The image at the start of a petabyte of zeroes.
    #[derive(Debug)]
    struct Petabyte(Vec<u8>);
    impl Device for Petabyte {
        fn name(&self) -> &'static str {
            "petabyte"
        }
        fn geometry(&self) -> Geometry {
            Geometry::bytes(1 << 50)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> nbdserve::Result<()> {
            for (at, byte) in (offset..).zip(buf) {
                *byte = self.0.get(at as usize).copied().unwrap_or(0);
            }
            Ok(())
        }
    }
    let mut bytes = image("-t ext4 -b 1024 -O ^metadata_csum");
    let mut set = |at: usize, value: u32| {
        bytes[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
    };
    // s_blocks_count_lo and _hi, s_blocks_per_group, s_clusters_per_group
    set(0x4, 0);
    set(0x150, 8);
    set(0x20, 32);
    set(0x24, 32);
    let refused = tree::open("ext4", Volume::new(Petabyte(bytes))).unwrap_err();
    assert_eq!(refused.kind(), Kind::Limit, "{refused}");
}
