//! Every path of a tree with all that can be known of it, to be compared with another tree.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::Sandbox;
use super::images::{hex, sha256};

/// Path below the root -> one line that says type, mode, owner, size, links, device number,
/// modification time, link target, extended attributes and SHA-256.
pub(crate) type Walk = BTreeMap<OsString, String>;

/// Which extended attributes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Xattrs {
    /// All; needs root on both sides.
    All,
    /// All but `trusted.*`, which only root can see.
    Untrusted,
}

const WALK: &str = "LOOPMOUNT_WALK";
const WALK_OUT: &str = "LOOPMOUNT_WALK_OUT";

/// Walks the tree at `root`.
///
/// # Panics
/// When anything in it cannot be read.
pub(crate) fn walk(root: &Path, xattrs: Xattrs) -> Walk {
    let mut found = Walk::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path)
            .unwrap_or_else(|error| panic!("stat {}: {error}", path.display()));
        if meta.is_dir() {
            let mut names = BTreeSet::new();
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                assert!(names.insert(entry.file_name()), "{entry:?} is listed twice");
                todo.push(entry.path());
            }
        }
        let name = path.strip_prefix(root).unwrap().as_os_str().to_owned();
        found.insert(name, describe(&path, &meta, xattrs));
    }
    found
}

fn describe(path: &Path, meta: &fs::Metadata, xattrs: Xattrs) -> String {
    let kind = meta.file_type();
    let letter = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_file() => 'f',
        () if kind.is_symlink() => 'l',
        () if kind.is_fifo() => 'p',
        () if kind.is_socket() => 's',
        () if kind.is_char_device() => 'c',
        () if kind.is_block_device() => 'b',
        () => '?',
    };
    let mut line = format!(
        "{letter} mode={:o} uid={} gid={} size={} nlink={} rdev={:x} mtime={}.{:09}",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        meta.size(),
        meta.nlink(),
        meta.rdev(),
        meta.mtime(),
        meta.mtime_nsec(),
    );
    if kind.is_symlink() {
        write!(line, " target={:?}", fs::read_link(path).unwrap()).unwrap();
    }
    for (name, value) in read_xattrs(path, xattrs) {
        write!(line, " {}={}", name.display(), hex(&value)).unwrap();
    }
    if kind.is_file() {
        write!(line, " sha256={}", sha256(path)).unwrap();
    }
    line
}

fn read_xattrs(path: &Path, which: Xattrs) -> BTreeMap<OsString, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let count = rustix::fs::llistxattr(path, &mut list[..])
        .unwrap_or_else(|error| panic!("listxattr {}: {error}", path.display()));
    let mut found = BTreeMap::new();
    for name in list[..count].split(|&byte| byte == 0) {
        let name = OsStr::from_bytes(name);
        let trusted = name.as_bytes().starts_with(b"trusted.");
        if name.is_empty() || (trusted && which == Xattrs::Untrusted) {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let count = rustix::fs::lgetxattr(path, name, &mut value[..])
            .unwrap_or_else(|error| panic!("getxattr {} {name:?}: {error}", path.display()));
        value.truncate(count);
        found.insert(name.to_owned(), value);
    }
    found
}

/// Fails with the paths that differ, and how.
#[track_caller]
pub(crate) fn assert_same(ours: &Walk, kernel: &Walk) {
    let mut report = String::new();
    let mut differences = 0;
    let paths: BTreeSet<&OsString> = ours.keys().chain(kernel.keys()).collect();
    for path in &paths {
        let (left, right) = (ours.get(*path), kernel.get(*path));
        if left == right {
            continue;
        }
        differences += 1;
        if differences <= 20 {
            let show = |line: Option<&String>| line.map_or("(not there)", |line| line).to_owned();
            let (left, right) = (show(left), show(right));
            writeln!(report, "{path:?}\n  ours   {left}\n  kernel {right}").unwrap();
        }
    }
    assert!(
        differences == 0,
        "{differences} of {} paths differ\n{report}",
        paths.len()
    );
    assert!(ours.len() > 1, "an empty tree proves nothing");
}

/// Walks `root` as the one to whom `sandbox` belongs, by running this test program again as that
/// user. `test` is the full name of the calling test, which must begin with
/// `if diff_walk::is_child() { return; }`.
///
/// Also for root in another process: files opened in this one are inherited by every child that a
/// neighbouring test forks, and would make the mount busy at times.
pub(crate) fn walk_as(sandbox: &Sandbox, root: &Path, test: &str) -> Walk {
    let program = sandbox.reachable(&std::env::current_exe().unwrap());
    let out = sandbox.new_file("walk", "");
    sandbox
        .tool(program)
        .args(["--exact", test, "--nocapture"])
        .env(WALK, root)
        .env(WALK_OUT, &out)
        .ok();
    let bytes = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    let mut fields = bytes.split(|&byte| byte == 0);
    let mut found = Walk::new();
    while let (Some(path), Some(line)) = (fields.next(), fields.next()) {
        let line = String::from_utf8(line.to_vec()).unwrap();
        found.insert(OsString::from_vec(path.to_vec()), line);
    }
    found
}

/// In the program that [`walk_as`] has started: walks and says true. Else says false.
pub(crate) fn is_child() -> bool {
    let (Some(root), Some(out)) = (std::env::var_os(WALK), std::env::var_os(WALK_OUT)) else {
        return false;
    };
    let mut bytes = Vec::new();
    let xattrs = if rustix::process::geteuid().is_root() {
        Xattrs::All
    } else {
        Xattrs::Untrusted
    };
    for (path, line) in walk(Path::new(&root), xattrs) {
        bytes.extend_from_slice(path.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(0);
    }
    fs::write(out, bytes).unwrap();
    true
}
