//! What a mount costs that knows where the rest of a folder is.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use nbdserve::testing::{noise, tools};
use nbdserve::{ByteRange, Device, Volume, foresight};

use crate::open;
use crate::server::{File, Server};

const BLOCK: u64 = 4096;
/// The kernel reads inodes by so many bytes.
const INODES: u64 = 128 << 10;

/// Folders in folders, some with many files between whose blocks theirs are; what was made.
fn fill(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for top in 0..4 {
        for folder in 0..6 {
            let path = format!("{top}/{folder}/inner");
            fs::create_dir_all(root.join(&path)).unwrap();
            for n in 0..48 {
                let name = format!("{path}/{n:02}{}", "x".repeat(200));
                fs::write(root.join(&name), noise(30_000, n)).unwrap();
                if n == 40 {
                    files.push(name);
                }
            }
        }
    }
    files
}

/// Where the blocks of what debugfs is asked for lie, and where its inode is.
struct Places {
    blocks: HashMap<String, Vec<u64>>,
    inodes: HashMap<String, u64>,
}

fn places(image: &Path, names: &[String]) -> Places {
    let script = image.with_extension("script");
    let asked = |name| format!("blocks \"/{name}\"\nimap \"/{name}\"\n");
    fs::write(&script, names.iter().map(asked).collect::<String>()).unwrap();
    let mut command = tools::command("debugfs");
    let out = tools::run_command(command.arg("-f").arg(&script).arg(image));
    let mut places = Places {
        blocks: HashMap::new(),
        inodes: HashMap::new(),
    };
    let mut name = "";
    for line in out.lines() {
        if let Some(quoted) = line.split('"').nth(1) {
            name = &quoted[1..];
        } else if let Some((_, at)) = line.split_once("located at block ") {
            let block: u64 = at.split(',').next().unwrap().parse().unwrap();
            places.inodes.insert(name.to_owned(), block * BLOCK);
        } else if !line.starts_with("Inode") && !line.trim().is_empty() {
            let blocks = line.split_whitespace();
            let blocks = blocks.map(|n| n.parse::<u64>().unwrap() * BLOCK);
            places.blocks.insert(name.to_owned(), blocks.collect());
        }
    }
    places
}

/// Reads files as the kernel does that has mounted the volume: inodes once, with those around.
fn walk(volume: &Volume, places: &Places, files: &[String]) {
    let mut known = std::collections::HashSet::new();
    let mut read = |at: u64, len: u64| {
        if known.insert(at) {
            let len = len.min(volume.size() - at);
            volume.read_vec(at, len as usize).unwrap();
        }
    };
    // Superblock and group descriptors.
    read(0, 16 << 10);
    for file in files {
        let mut path = String::new();
        for part in std::iter::once("").chain(file.split('/')) {
            let slash = if path.is_empty() { "" } else { "/" };
            path = format!("{path}{slash}{part}");
            read(places.inodes[&path] / INODES * INODES, INODES);
            let blocks = &places.blocks[&path];
            if path == *file {
                // They lie in a row.
                read(blocks[0], blocks.len() as u64 * BLOCK);
                continue;
            }
            for block in blocks {
                read(*block, BLOCK);
            }
        }
    }
}

#[test]
fn a_mount_that_looks_ahead_asks_less_often_and_for_a_third() {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    let files = fill(&root);
    let mut command = tools::command("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-d"]);
    tools::run_command(command.arg(&root).arg(&image).arg("64M"));
    let mut names = vec![String::new()];
    for file in &files {
        for (at, _) in file.match_indices('/') {
            names.push(file[..at].to_owned());
        }
        names.push(file.clone());
    }
    let places = places(&image, &names);
    let bytes = File::new(fs::read(&image).unwrap());

    let run = |looks_ahead: bool| {
        let server = Server::of(&bytes);
        let http = Volume::new(open(&server.url("/disk")).unwrap());
        let volume = if looks_ahead {
            foresight::watch(&http, &http)
        } else {
            http.clone()
        };
        walk(&volume, &places, &files);
        let asked = server.asked();
        let ranges = asked.iter().flat_map(|asked| asked.all_ranges());
        let bytes: usize = ranges.map(|(first, last)| last + 1 - first).sum();
        volume.close().unwrap();
        (asked.len(), bytes)
    };
    let (plain, plain_bytes) = run(false);
    let (ahead, ahead_bytes) = run(true);
    assert!(ahead * 3 <= plain * 2, "{ahead} and {plain}");
    assert!(
        ahead_bytes * 3 <= plain_bytes,
        "{ahead_bytes} and {plain_bytes}"
    );
}

#[test]
fn a_window_with_holes_is_one_request() {
    let bytes = noise(4 << 20, 5);
    let server = Server::of(&File::new(bytes.clone()));
    let http = open(&server.url("/disk")).unwrap();
    let page = |number: u64| ByteRange::new((1 << 20) + number * BLOCK, BLOCK).unwrap();
    // One by one: whoever names several at once knows what lies between, too.
    http.will_need(page(3));
    http.will_need(page(8));
    for number in [3, 8, 5] {
        let at = page(number).start() as usize;
        assert!(crate::read(&http, at, 100) == bytes[at..at + 100]);
    }
    let asked = server.asked();
    let sets: Vec<_> = asked.iter().map(|asked| asked.all_ranges()).collect();
    // The first is that of opening.
    assert_eq!(sets.len(), 4, "{sets:?}");
    let range = |first: u64, end: u64| {
        let (first, end) = (page(first).start(), page(end).start());
        (first as usize, end as usize - 1)
    };
    assert_eq!(sets[3], [range(0, 3), range(4, 8), range(9, 16)]);
}
