//! Who uses a mount: found in /proc without touching the mount itself.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nbdserve::error::escape;

use crate::sys::mountinfo::Mount;

/// A process that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of the program.
    pub name: String,
    /// How: `working folder`, `open file /mnt/x`.
    pub how: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (process {}): {}",
            escape(&self.name),
            self.pid,
            escape(&self.how)
        )
    }
}

/// The processes that use `mount`, as far as the caller may see them.
#[must_use]
pub fn holders(mount: &Mount) -> Vec<Holder> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<_> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| holder(pid, mount))
        .collect();
    found.sort_by_key(|holder| holder.pid);
    found
}

fn holder(pid: u32, mount: &Mount) -> Option<Holder> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let how = by_folder(&proc, mount)
        .or_else(|| by_file(&proc, mount))
        .or_else(|| by_map(&proc, mount))?;
    let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
    Some(Holder {
        pid,
        name: name.trim_end().to_owned(),
        how,
    })
}

fn by_folder(proc: &Path, mount: &Mount) -> Option<String> {
    [
        ("cwd", "working folder"),
        ("root", "root folder"),
        ("exe", "running program"),
    ]
    .into_iter()
    .find(|(link, _)| fs::read_link(proc.join(link)).is_ok_and(|to| to.starts_with(&mount.target)))
    .map(|(_, how)| how.to_owned())
}

/// An open descriptor says in fdinfo on which mount it is, whatever is mounted over it.
fn by_file(proc: &Path, mount: &Mount) -> Option<String> {
    let wanted = format!("mnt_id:\t{}", mount.id);
    let fds = fs::read_dir(proc.join("fd")).ok()?.flatten();
    fds.map(|entry| entry.file_name()).find_map(|fd| {
        let info = fs::read_to_string(proc.join("fdinfo").join(&fd)).ok()?;
        info.lines().any(|line| line == wanted).then(|| {
            let path = fs::read_link(proc.join("fd").join(&fd)).unwrap_or_default();
            format!("open file {}", path.display())
        })
    })
}

fn by_map(proc: &Path, mount: &Mount) -> Option<String> {
    let maps = fs::read(proc.join("maps")).ok()?;
    let device = format!(" {:02x}:{:02x} ", mount.device.0, mount.device.1);
    maps.split(|b| *b == b'\n')
        .any(|line| {
            line.windows(device.len())
                .any(|part| part == device.as_bytes())
        })
        .then(|| {
            format!(
                "mapped file of {}",
                Path::new(std::ffi::OsStr::from_bytes(
                    mount.target.as_os_str().as_bytes()
                ))
                .display()
            )
        })
}
