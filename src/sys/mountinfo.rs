//! The mount table (`/proc/self/mountinfo`, `proc_pid_mountinfo(5)`) and waiting for it to change.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbdserve::{Error, Result};
use nix::poll::PollFlags;

use super::process::wait_for;

const PATH: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Number of this mount; used again after it is gone.
    pub id: u64,
    /// Number of the mount it is on.
    pub parent: u64,
    /// Device number of the file system: major, minor.
    pub device: (u64, u64),
    /// The folder of the file system that is shown.
    pub root: PathBuf,
    /// Where, seen from our root.
    pub target: PathBuf,
    /// Options of this mount: `ro,nosuid`.
    pub options: String,
    /// Type: `ext4`, `fuse.loopmount`.
    pub fstype: OsString,
    /// What was mounted: `/dev/loop0`, or any text of the file system's.
    pub source: OsString,
    /// Options of the file system.
    pub super_options: OsString,
}

/// The mounts of this process's namespace, in the kernel's order: a later mount on the same target
/// covers an earlier one.
///
/// # Errors
/// What the system says.
pub fn mounts() -> Result<Vec<Mount>> {
    let bytes = fs::read(PATH).map_err(|error| Error::io("cannot read the mount table", error))?;
    Ok(parse(&bytes))
}

/// Takes the table apart. Lines that are not as documented are left out.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = path(fields.next()?);
    let target = path(fields.next()?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    // Any number of tagged fields (`shared:1`) up to a lone hyphen.
    fields.find(|field| *field == b"-")?;
    Some(Mount {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        target,
        options,
        fstype: OsString::from_vec(unescape(fields.next()?)),
        source: OsString::from_vec(unescape(fields.next()?)),
        super_options: OsString::from_vec(unescape(fields.next().unwrap_or_default())),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// The kernel writes space, tab, newline, backslash (and `#`) as a backslash and three octal
/// digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'\\').then(|| octal(tail)).flatten();
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// The byte that the first three characters name.
fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.get(..3)?;
    let mut value = 0_u16;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value * 8 + u16::from(digit);
    }
    u8::try_from(value).ok()
}

/// The mount that is on top at `target`, an absolute path without symbolic links.
#[must_use]
pub fn at_target<'m>(mounts: &'m [Mount], target: &Path) -> Option<&'m Mount> {
    mounts.iter().rev().find(|mount| mount.target == target)
}

/// Tells of changes of the mount table. The descriptor has `POLLPRI` set when there was one.
#[derive(Debug)]
pub struct MountWatch {
    file: File,
}

impl MountWatch {
    /// Changes from now on are seen.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> Result<Self> {
        let file =
            File::open(PATH).map_err(|error| Error::io("cannot watch the mount table", error))?;
        Ok(Self { file })
    }

    /// Waits for the table to change since the last call; false when it has not within `limit`.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        // The kernel reports POLLERR beside POLLPRI; it is always polled for.
        wait_for(self.file.as_fd(), PollFlags::POLLPRI, limit)
            .map_err(|error| Error::io("cannot watch the mount table", error))
    }
}

impl AsFd for MountWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn the_example_of_the_manual_is_understood() {
        let line =
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";
        let expected = Mount {
            id: 36,
            parent: 35,
            device: (98, 0),
            root: "/mnt1".into(),
            target: "/mnt2".into(),
            options: "rw,noatime".into(),
            fstype: "ext3".into(),
            source: "/dev/root".into(),
            super_options: "rw,errors=continue".into(),
        };
        assert_eq!(parse(line), [expected]);
    }

    #[test]
    fn odd_names_come_back_as_they_are() {
        let line = b"1 2 0:5 / /a\\040b\\012c\\134d\\011\\043\xff rw shared:1 master:2 - fuse.x loop\\040mount rw";
        let all = parse(line);
        assert_eq!(all[0].target.as_os_str().as_bytes(), b"/a b\nc\\d\t#\xff");
        assert_eq!(all[0].source, "loop mount");
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\089"), b"\\089");
        assert_eq!(unescape(b"\\777"), b"\\777");
        assert_eq!(unescape(b"a\\0401"), b"a 1");
    }

    #[test]
    fn broken_lines_are_left_out() {
        for line in [
            &b""[..],
            b"36",
            b"x 35 98:0 / / rw - a b c",
            b"36 35 98 / / rw - a b c",
            b"36 35 98:0 / / rw shared:1",
            b"36 35 98:0 / / rw - ext4",
        ] {
            assert_eq!(parse(line), [], "{line:?}");
        }
    }

    #[test]
    fn the_last_mount_on_a_target_is_on_top() {
        let table = b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /m rw - ext4 b rw\n3 2 8:3 / /m rw - xfs c rw\n";
        let all = parse(table);
        assert_eq!(at_target(&all, Path::new("/m")).unwrap().id, 3);
        assert!(at_target(&all, Path::new("/n")).is_none());
    }

    #[test]
    fn our_own_table_has_a_root() {
        assert!(at_target(&mounts().unwrap(), Path::new("/")).is_some());
    }

    #[test]
    fn a_table_that_stays_the_same_is_no_event() {
        // Other tests may mount meanwhile: their events are drained until it is quiet.
        let watch = MountWatch::new().unwrap();
        let quiet = (0..1000).any(|_| !watch.wait(Duration::ZERO).unwrap());
        assert!(quiet);
    }
}
