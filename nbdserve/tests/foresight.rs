//! What is hinted at while a file system is read. mke2fs makes the images, debugfs says where things
//! are.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nbdserve::layer::Args;
use nbdserve::layer::xz::XZ;
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, Counts, Rng, conformance, noise, tools};
use nbdserve::{ByteRange, Cx, Volume, foresight};

/// mke2fs options of all the forms that are read differently, and the block size.
const FORMS: &[(&[&str], u64)] = &[
    (&["-t", "ext4", "-b", "4096"], 4096),
    (&["-t", "ext4", "-b", "1024", "-O", "64bit"], 1024),
    (
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "meta_bg,^resize_inode,^flex_bg",
        ],
        1024,
    ),
    (
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^64bit,sparse_super2",
            "-I",
            "512",
        ],
        1024,
    ),
    (&["-t", "ext3", "-b", "1024", "-I", "128"], 1024),
    (
        &[
            "-t",
            "ext2",
            "-b",
            "1024",
            "-O",
            "^sparse_super,^resize_inode",
        ],
        1024,
    ),
    (&["-t", "ext2", "-b", "2048"], 2048),
];
/// A read of the kernel.
const READ: u64 = 16 << 10;

/// An image, where debugfs finds it too.
struct Image {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    bytes: Vec<u8>,
    block: u64,
}

/// A folder whose blocks are scattered among those of its files, subfolders, files of all lengths.
fn fill(root: &Path) {
    let folder = root.join("folder");
    fs::create_dir(&folder).unwrap();
    for n in 0..400 {
        let name = format!("{n:04}{}", "x".repeat(90));
        fs::write(folder.join(name), noise(1500, n)).unwrap();
    }
    for n in 0..20 {
        fs::create_dir_all(root.join(format!("tree/{n}/inner"))).unwrap();
        fs::write(root.join(format!("tree/{n}/inner/file")), noise(3000, n)).unwrap();
    }
    fs::write(root.join("tree/small"), noise(5000, 7)).unwrap();
    fs::write(root.join("tree/medium"), noise(300_000, 8)).unwrap();
    fs::write(root.join("tree/large"), noise(3_000_000, 9)).unwrap();
}

fn make(options: &[&str], block: u64) -> Image {
    let dir = tempfile::tempdir().unwrap();
    let (root, path) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir(&root).unwrap();
    fill(&root);
    let mut command = tools::command("mke2fs");
    command.args(["-q", "-F"]).args(options);
    tools::run_command(command.arg("-d").arg(&root).arg(&path).arg("24M"));
    let bytes = fs::read(&path).unwrap();
    Image {
        _dir: dir,
        path,
        bytes,
        block,
    }
}

impl Image {
    fn debugfs(&self, request: &str) -> String {
        let mut command = tools::command("debugfs");
        tools::run_command(command.args(["-R", request]).arg(&self.path))
    }

    /// The blocks with contents of a file, in order, and those that list them.
    fn blocks_and_nodes(&self, name: &str) -> (Vec<u64>, Vec<u64>) {
        let stat = self.debugfs(&format!("stat {name}"));
        let listed = stat
            .split("BLOCKS:")
            .chain(stat.split("EXTENTS:"))
            .last()
            .unwrap();
        let (mut blocks, mut nodes) = (Vec::new(), Vec::new());
        // `(0-11):100-111, (IND):112, (ETB0):113`
        for entry in listed.split('(').skip(1) {
            let (label, places) = entry.split_once("):").unwrap();
            let places = places.split([',', '\n']).next().unwrap();
            let mut ends = places.split('-').map(|n| n.trim().parse::<u64>().unwrap());
            let first = ends.next().unwrap();
            let range = first..=ends.next().unwrap_or(first);
            if label.starts_with(|c: char| c.is_ascii_digit()) {
                blocks.extend(range);
            } else {
                nodes.extend(range);
            }
        }
        assert!(!blocks.is_empty(), "{stat}");
        (blocks, nodes)
    }

    fn blocks(&self, name: &str) -> Vec<u64> {
        self.blocks_and_nodes(name).0
    }

    /// Where the inode of a file is.
    fn inode_at(&self, name: &str) -> u64 {
        let found = self.debugfs(&format!("imap {name}"));
        let block: u64 = after(&found, "located at block ").parse().unwrap();
        block * self.block
    }

    /// Reads the inode of a file, and what else there is in its block.
    fn read_inode(&self, volume: &Volume, counts: &Counts, name: &str) {
        read(volume, self.inode_at(name), self.block);
        // Of the table that it is in, no more.
        let told: u64 = all_hints(counts).iter().map(|hint| hint.len()).sum();
        assert!(told <= 2 * self.block, "{name}: {told}");
        counts.reset();
    }

    /// Watched, with what a mount reads read.
    fn mounted(&self) -> (Volume, Counts) {
        let (source, counts) = Counting::source(Memory::volume(self.bytes.clone()));
        let volume = foresight::watch(&source, &source);
        let stats = tools::run("dumpe2fs", [&self.path]);
        let mut blocks = BTreeSet::from([0]);
        for line in stats.lines() {
            for place in line
                .split("descriptor at ")
                .skip(1)
                .chain(line.split("Group descriptors at ").skip(1))
            {
                let numbers = place.split([',', ' ']).next().unwrap();
                let mut ends = numbers.split('-').map(|n| n.parse::<u64>().unwrap());
                let first = ends.next().unwrap();
                blocks.extend(first..=ends.next().unwrap_or(first));
            }
        }
        assert!(blocks.len() > 1, "{stats}");
        for block in blocks {
            read(&volume, block * self.block, self.block);
        }
        counts.reset();
        (volume, counts)
    }

    fn ranges(&self, blocks: &[u64]) -> Vec<ByteRange> {
        let range = |block: &u64| ByteRange::new(block * self.block, self.block).unwrap();
        blocks.iter().map(range).collect()
    }
}

/// The word behind `mark`, without what cannot belong to a number.
fn after<'a>(text: &'a str, mark: &str) -> &'a str {
    let rest = text
        .split(mark)
        .nth(1)
        .unwrap_or_else(|| panic!("no {mark} in {text}"));
    rest.trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
}

fn read(volume: &Volume, at: u64, len: u64) -> Vec<u8> {
    let len = len.min(volume.size() - at);
    volume.read_vec(at, len as usize).unwrap()
}

fn all_hints(counts: &Counts) -> Vec<ByteRange> {
    counts.hint_sets().concat()
}

fn covered(hints: &[ByteRange], wanted: ByteRange) -> bool {
    hints.iter().any(|hint| hint.contains(wanted))
}

#[test]
fn a_folder_is_hinted_at_whole_when_it_is_begun() {
    let mut with_nodes = BTreeSet::new();
    for (options, block) in FORMS {
        let image = make(options, *block);
        let (volume, counts) = image.mounted();
        image.read_inode(&volume, &counts, "/folder");
        let (blocks, nodes) = image.blocks_and_nodes("/folder");
        let (blocks, nodes) = (image.ranges(&blocks), image.ranges(&nodes));
        assert!(blocks.len() > 9, "{options:?}: {blocks:?}");
        if options[1] != "ext4" || nodes.is_empty() {
            read(&volume, blocks[0].start(), image.block);
            let hints = all_hints(&counts);
            let mut first = blocks.iter().take(12).chain(&nodes);
            assert!(first.all(|range| covered(&hints, *range)), "{options:?}");
        }
        if !nodes.is_empty() {
            with_nodes.insert(options[1]);
        }
        for node in nodes {
            read(&volume, node.start(), image.block);
        }
        let hints = all_hints(&counts);
        let mut all = blocks.iter();
        let missing = all.find(|range| !covered(&hints, **range));
        assert_eq!(missing, None, "{options:?}: {hints:?}");
        // Once.
        let before = counts.hints();
        for range in &blocks {
            read(&volume, range.start(), image.block);
        }
        assert_eq!(counts.hints(), before, "{options:?}");
    }
    assert_eq!(with_nodes, BTreeSet::from(["ext2", "ext3", "ext4"]));
}

/// More and more of them, while they are read.
#[test]
fn the_folders_within_a_folder_come_with_it_in_few_hints() {
    let image = make(FORMS[0].0, FORMS[0].1);
    let (volume, counts) = image.mounted();
    // As the kernel reads inodes: with those around.
    read(&volume, image.inode_at("/tree"), 128 << 10);
    counts.reset();
    let below = (0..20).flat_map(|n| [format!("/tree/{n}"), format!("/tree/{n}/inner")]);
    for (n, name) in std::iter::once("/tree".to_owned()).chain(below).enumerate() {
        let first = image.ranges(&image.blocks(&name))[0];
        read(&volume, first.start(), first.len());
        let hints = all_hints(&counts);
        assert!(covered(&hints, first), "{name}: {first} not in {hints:?}");
        let sets = counts.hint_sets();
        assert!(sets.len() <= 1 + n / 12, "{name}: {sets:?}");
        assert!(sets.iter().all(|set| set.len() <= 64));
    }
}

/// What was never in use is not had, and no more than the reader is likely to want.
#[test]
fn an_inode_table_is_hinted_at_as_far_as_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (root, path) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir(&root).unwrap();
    for n in 0..5000 {
        fs::write(root.join(n.to_string()), "").unwrap();
    }
    let mut command = tools::command("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-N", "30000", "-d"]);
    tools::run_command(command.arg(&root).arg(&path).arg("24M"));
    let image = Image {
        _dir: dir,
        bytes: fs::read(&path).unwrap(),
        path,
        block: 4096,
    };
    let stats = tools::run("dumpe2fs", [&image.path]);
    let start = after(&stats, "Inode table at ").parse::<u64>().unwrap() * image.block;
    let (_, line) = stats.split_once("Inode table at ").unwrap();
    let free: u64 = after(line, "free blocks, ").parse().unwrap();
    let used = (30_000_u64.next_multiple_of(16) - free).div_ceil(16) * image.block;
    let end = start + used;
    assert!(used > 1200 << 10, "{stats}");

    const STEP: u64 = 128 << 10;
    let (volume, counts) = image.mounted();
    for at in (start..end).step_by(STEP as usize) {
        read(&volume, at, STEP);
        let hints = all_hints(&counts);
        let furthest = hints.iter().map(|hint| hint.end()).max().unwrap();
        // The kernel itself may read beyond.
        assert!(furthest <= end.max(at + STEP), "{furthest} of {end}");
        let done = at + STEP - start;
        assert!(furthest - start <= 3 * done, "{furthest} after {done}");
        assert!(covered(
            &hints,
            ByteRange::new(at, STEP.min(end - at)).unwrap()
        ));
    }
    assert!(counts.hint_sets().len() <= 6, "{:?}", counts.hint_sets());

    // One that begins elsewhere has nothing of what lies between.
    let (volume, counts) = image.mounted();
    read(&volume, start, STEP);
    read(&volume, start + (1 << 20), STEP);
    let bytes: u64 = all_hints(&counts).iter().map(|hint| hint.len()).sum();
    assert!(bytes <= 8 * STEP, "{bytes}");
}

#[test]
fn a_file_is_hinted_at_as_far_as_it_is_likely_to_be_read() {
    for (options, block) in FORMS.iter().filter(|(options, _)| options[1] == "ext4") {
        let image = make(options, *block);
        for (name, first) in [("/tree/medium", 300_000), ("/tree/large", 256 << 10)] {
            let (volume, counts) = image.mounted();
            image.read_inode(&volume, &counts, name);
            let (blocks, nodes) = image.blocks_and_nodes(name);
            assert!(nodes.is_empty(), "{options:?} {name}: {nodes:?}");
            let ranges = image.ranges(&blocks);
            for (n, range) in ranges.iter().enumerate() {
                read(&volume, range.start(), image.block);
                let told: u64 = all_hints(&counts).iter().map(|hint| hint.len()).sum();
                let read = (n as u64 + 1) * image.block;
                let all = blocks.len() as u64 * image.block;
                let extra = image.block * counts.hint_sets().len() as u64;
                assert!(told + image.block > first, "{options:?} {name}: {told}");
                assert!(
                    told >= (read * 3 / 2).min(all),
                    "{options:?} {name}: {told}"
                );
                let most = (read * 4).max(first + image.block);
                assert!(told <= most.min(all) + extra, "{options:?} {name}: {told}");
            }
            let hints = all_hints(&counts);
            assert!(ranges.iter().all(|range| covered(&hints, *range)));
            let of_file = |hint: &ByteRange| {
                let blocks_of = hint.start() / image.block..hint.end() / image.block;
                blocks_of.into_iter().all(|one| blocks.contains(&one))
            };
            assert!(hints.iter().all(of_file), "{options:?} {name}: {hints:?}");
            assert!(counts.hint_sets().len() <= 6, "{options:?} {name}");
        }
    }
}

/// Beyond the pointers in its inode: when the block with more of them is read.
#[test]
fn a_file_with_a_block_map_is_hinted_at_from_pointer_block_to_pointer_block() {
    let (options, block) = FORMS[4];
    let image = make(options, block);
    let (volume, counts) = image.mounted();
    read(&volume, image.inode_at("/tree/large"), image.block);
    let (blocks, nodes) = image.blocks_and_nodes("/tree/large");
    let ranges = image.ranges(&blocks);
    // Single, double, and those below the double one.
    assert!(nodes.len() > 3, "{nodes:?}");
    let per_node = block as usize / 4;
    for (n, node) in image.ranges(&nodes).iter().enumerate() {
        counts.reset();
        read(&volume, node.start(), image.block);
        let hints = all_hints(&counts);
        let first = match n {
            0 => 12,
            // It lists pointer blocks only.
            1 => continue,
            _ => 12 + (n - 1) * per_node,
        };
        let part = &ranges[first..ranges.len().min(first + per_node)];
        assert!(
            part.iter().all(|range| covered(&hints, *range)),
            "{n}: {hints:?}"
        );
    }
}

#[test]
fn what_is_lent_is_looked_at_as_what_is_read() {
    let image = make(FORMS[0].0, FORMS[0].1);
    let packed = tools::filter("xz", &["-0", "-c", "--block-size=256KiB"], &image.bytes);
    let watched = || {
        let below = Memory::volume(packed.clone());
        let xz = (XZ.open)(&below, &Args::new(), &Cx::new(64 << 20)).unwrap();
        let (source, counts) = Counting::source(xz);
        (foresight::watch(&source, &source), counts)
    };
    let mut places = vec![(0, 128 << 10), (image.inode_at("/folder"), image.block)];
    let blocks = image.ranges(&image.blocks("/folder"));
    places.extend(blocks.iter().map(|range| (range.start(), range.len())));
    // In order, until it is a copy; some reads lie across two blocks of the xz file.
    let steps = (1 << 20..11 << 20).step_by(100 << 10);
    places.extend(steps.map(|at| (at, 100 << 10)));
    places.push((image.inode_at("/tree"), 64 << 10));
    places.push((image.inode_at("/tree/large"), image.block));
    let large = image.ranges(&image.blocks("/tree/large"));
    places.extend(large.iter().map(|range| (range.start(), range.len())));
    let ((one, of_reads), (other, of_lent)) = (watched(), watched());
    let (mut lent, mut declined) = (0, 0);
    for (at, len) in places {
        let expected = read(&one, at, len);
        let found = other
            .lend(at, len as usize)
            .unwrap()
            .map(|lent| lent.to_vec());
        match &found {
            Some(_) => lent += 1,
            None => declined += 1,
        }
        let found = found.unwrap_or_else(|| read(&other, at, len));
        assert!(found == expected, "{len} at {at}");
        assert_eq!(of_reads.hint_sets(), of_lent.hint_sets(), "{len} at {at}");
    }
    assert!(lent > 99 && declined > 9, "{lent} {declined}");
    assert!(of_lent.hints() > 9, "{}", of_lent.hints());
}

#[test]
fn a_small_file_is_left_to_the_source() {
    let image = make(FORMS[0].0, FORMS[0].1);
    let (volume, counts) = image.mounted();
    image.read_inode(&volume, &counts, "/tree/small");
    let ranges = image.ranges(&image.blocks("/tree/small"));
    assert_eq!(ranges.len(), 2);
    read(&volume, ranges[0].start(), 2 * image.block);
    assert_eq!(all_hints(&counts), []);
}

#[test]
fn what_is_copied_as_a_whole_is_not_hinted_at() {
    let image = make(FORMS[0].0, FORMS[0].1);
    let (volume, counts) = image.mounted();
    for at in (0..volume.size()).step_by(128 << 10) {
        read(&volume, at, 128 << 10);
    }
    let late = all_hints(&counts).len();
    read(&volume, 0, 8 << 20);
    read(&volume, 8 << 20, 8 << 20);
    counts.reset();
    for at in (16 << 20..volume.size()).step_by(READ as usize) {
        read(&volume, at, READ);
    }
    assert_eq!(all_hints(&counts), [], "{late}");
}

#[test]
fn other_volumes_and_sources_that_cannot_gather_are_left_alone() {
    let (other, counts) = Counting::source(Memory::volume(noise(1 << 20, 3)));
    let volume = foresight::watch(&other, &other);
    assert!(conformance::read_all(&volume) == noise(1 << 20, 3));
    assert_eq!(counts.hints(), 0);

    let image = make(FORMS[0].0, FORMS[0].1);
    let single = Memory::volume(image.bytes.clone());
    let (below, counts) = Counting::source(single.clone());
    let volume = foresight::watch(&below, &single);
    read(&volume, 0, 128 << 10);
    read(&volume, image.inode_at("/tree"), 128 << 10);
    read(
        &volume,
        image.ranges(&image.blocks("/tree"))[0].start(),
        image.block,
    );
    assert_eq!(counts.hints(), 0);
}

#[test]
fn the_bytes_and_all_else_are_those_below() {
    let image = make(FORMS[0].0, FORMS[0].1);
    let open = || {
        let bytes = image.bytes[..2 << 20].to_vec();
        let (source, _) = Counting::source(Memory::volume(bytes.clone()));
        (foresight::watch(&source, &source), bytes)
    };
    conformance::check(open);
    conformance::check_writer(open);
    let (source, _) = Counting::source(Memory::volume(image.bytes.clone()));
    conformance::check_hint_set(&source, |below| foresight::watch(below, &source));
    let open = |below: &Volume| Ok(foresight::watch(below, &source));
    conformance::check_errors("faulty", &image.bytes, open);
}

/// Whatever the image says: each read is answered with a bounded number of hints within the volume,
/// and all of its blocks together with no more than a few times what an honest one takes.
#[test]
fn an_image_that_lies_costs_a_bounded_number_of_hints() {
    for (options, block) in [FORMS[0], FORMS[1], FORMS[4]] {
        let image = make(options, block);
        let table = image.inode_at("/folder");
        let mut rng = Rng::new(block);
        for _ in 0..20 {
            let mut bytes = image.bytes.clone();
            // Inodes and superblock mostly, and everything else now and then.
            for _ in 0..200 {
                let at = match rng.below(8) {
                    0 => 1024 + rng.below(1024),
                    1 => rng.below(bytes.len() as u64),
                    _ => table + rng.below(64 << 10),
                };
                bytes[at as usize] = rng.below(256) as u8;
            }
            bytes[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
            let (source, counts) = Counting::source(Memory::volume(bytes.clone()));
            let volume = foresight::watch(&source, &source);
            for _ in 0..2 {
                for at in (0..volume.size()).step_by(READ as usize) {
                    // Backwards: not a copy.
                    let at = volume.size() - READ - at;
                    counts.reset();
                    let found = read(&volume, at, READ);
                    assert!(found == bytes[at as usize..(at + READ) as usize]);
                    let sets = counts.hint_sets();
                    assert!(sets.iter().all(|set| set.len() <= 64));
                    let hinted: u64 = sets.concat().iter().map(|range| range.len()).sum();
                    // Each of its blocks may be the first of a folder, or list one's blocks.
                    let most = READ / block * (1 << 20) * 2 + (1 << 20);
                    assert!(hinted <= most, "{hinted} at {at}");
                }
            }
        }
    }
}
