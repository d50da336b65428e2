//! Who uses a mount: found in /proc, /sys and the mount table, without touching the mount itself.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nbdserve::error::escape;

use super::processes;
use super::respawn::Role;
use crate::sys::block::BlockDevice;
use crate::sys::mountinfo::Mount;

/// What keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A process.
    Process {
        /// Process id.
        pid: u32,
        /// Name of the program.
        name: String,
        /// How: `working folder`, `open file /mnt/x`.
        how: String,
    },
    /// Another mount on a folder of it.
    Mount(PathBuf),
    /// A loop device over a file of it.
    Loop {
        /// `loop0`.
        device: String,
        /// The file.
        file: PathBuf,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| escape(&path.to_string_lossy());
        match self {
            Self::Process { pid, name, how } => {
                write!(f, "{} (process {pid}): {}", escape(name), escape(how))
            }
            Self::Mount(target) => write!(f, "the mount on {}", shown(target)),
            Self::Loop { device, file } => write!(f, "/dev/{device}: file {}", shown(file)),
        }
    }
}

/// What uses `mount`, one of `all`, as far as the caller may see it: other mounts, loop devices,
/// processes.
#[must_use]
pub fn holders(mount: &Mount, all: &[Mount]) -> Vec<Holder> {
    let below = all.iter().filter(|other| other.parent == mount.id);
    let mut found: Vec<_> = below
        .map(|other| Holder::Mount(other.target.clone()))
        .collect();
    found.extend(loops(mount));
    let own = std::process::id();
    let pids = processes::all().into_iter().filter(|pid| *pid != own);
    found.extend(pids.filter_map(|pid| process(pid, mount)));
    found
}

fn loops(mount: &Mount) -> Vec<Holder> {
    let devices = BlockDevice::all("loop").unwrap_or_default();
    devices
        .into_iter()
        .filter_map(|(number, block)| {
            let file = block.attribute("loop/backing_file")?;
            let file = PathBuf::from(file);
            file.starts_with(&mount.target).then(|| Holder::Loop {
                device: format!("loop{number}"),
                file,
            })
        })
        .collect()
}

fn process(pid: u32, mount: &Mount) -> Option<Holder> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let how = by_folder(&proc, mount)
        .or_else(|| by_file(&proc, mount))
        .or_else(|| by_map(&proc, mount))?;
    let name = match processes::role_of(pid) {
        Some((Role::Serve, id)) => format!("the mount {id} of loopmount"),
        _ => fs::read_to_string(proc.join("comm")).unwrap_or_default(),
    };
    Some(Holder::Process {
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
