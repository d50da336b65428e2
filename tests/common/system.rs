//! What the kernel says: mounts, loop devices, processes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A line of the mount table.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) options: String,
    pub(crate) kind: String,
    pub(crate) source: OsString,
    /// Major and minor number, `0:44`.
    pub(crate) device: String,
}

/// The mount table, oldest first.
pub(crate) fn mounts() -> Vec<Mount> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    table
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
            let dash = fields.iter().position(|field| field == b"-").unwrap();
            Mount {
                point: unescape(fields[4]).into(),
                options: String::from_utf8_lossy(fields[5]).into_owned(),
                device: String::from_utf8_lossy(fields[2]).into_owned(),
                kind: String::from_utf8_lossy(fields[dash + 1]).into_owned(),
                source: unescape(fields[dash + 2]),
            }
        })
        .collect()
}

/// The topmost mount at exactly `point`.
pub(crate) fn mount_at(point: &Path) -> Option<Mount> {
    mounts().into_iter().rfind(|mount| mount.point == point)
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| first == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

/// Loop devices in use, with the file behind each as it was named to the kernel.
pub(crate) fn loops() -> Vec<(PathBuf, OsString)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let Ok(mut backing) = fs::read(entry.path().join("loop/backing_file")) else {
            continue;
        };
        backing.pop_if(|byte| *byte == b'\n');
        found.push((
            Path::new("/dev").join(entry.file_name()),
            OsString::from_vec(backing),
        ));
    }
    found
}

/// A process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) args: Vec<OsString>,
}

impl Process {
    /// `argv[1]`: our own processes say there what they are.
    pub(crate) fn role(&self) -> &str {
        self.args
            .get(1)
            .and_then(|arg| arg.to_str())
            .unwrap_or_default()
    }
}

/// Processes that inherited `NAME=VALUE` in their environment, zombies excluded.
pub(crate) fn processes_with_env(setting: &str) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Gone meanwhile, or a kernel thread.
        let Ok(environ) = fs::read(entry.path().join("environ")) else {
            continue;
        };
        if !environ
            .split(|&byte| byte == 0)
            .any(|line| line == setting.as_bytes())
        {
            continue;
        }
        let args = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        found.push(Process {
            pid,
            args: args
                .split(|&byte| byte == 0)
                .map(|arg| OsStr::from_bytes(arg).to_owned())
                .collect(),
        });
    }
    found
}

/// The state letter of a process (`S`, `D`, `Z`), or `None` when it is gone.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// What /proc says of the threads of a process (`/proc/PID`) that are in uninterruptible sleep.
pub(crate) fn threads_in_d_state(process: &Path) -> Vec<String> {
    // It may end meanwhile.
    let threads = fs::read_dir(process.join("task")).into_iter().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok())
        .filter(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('D'))
        })
        .collect()
}

/// [`threads_in_d_state`] of all processes.
pub(crate) fn tasks_in_d_state() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .flat_map(|process| threads_in_d_state(&process.path()))
        .collect()
}
