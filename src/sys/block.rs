//! Block devices: sizes, flushing, nodes, and what `/sys/block` says.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nbdserve::{Error, Kind, Result};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Where nodes go that `/dev` lacks, as in containers. Root's.
const OWN_NODES: &str = "/run/loopmount-dev";
/// Begins the name of a node of ours in `/dev`, where [`OWN_NODES`] is mounted nodev.
const OWN_PREFIX: &str = "loopmount.";
/// How often others may remove a node while it is being opened.
const TRIES: u32 = 8;

mod ioctl {
    //! `linux/fs.h`
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    // The size in the number is that of a size_t, the value is a u64: so it was published.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
}

/// Writes back and drops what the kernel has cached of the device (`BLKFLSBUF`).
///
/// # Errors
/// What the system says; a device that has failed reports it here.
pub fn flush_buffers(device: impl AsFd) -> Result<()> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    unsafe { ioctl::blkflsbuf(device.as_fd().as_raw_fd()) }
        .map(drop)
        .map_err(|errno| Error::io("cannot write back the device's cache", errno))
}

/// Bytes of a block device (`BLKGETSIZE64`).
///
/// # Errors
/// What the system says.
pub fn size(device: impl AsFd) -> Result<u64> {
    let mut size = 0_u64;
    // SAFETY: the kernel writes 64 bits to the pointer, which is valid for a u64; `usize` in the
    // pointer's type only makes the request's number.
    unsafe { ioctl::blkgetsize64(device.as_fd().as_raw_fd(), (&raw mut size).cast()) }
        .map_err(|errno| Error::io("cannot ask for the size of the device", errno))?;
    Ok(size)
}

/// A whole block device by its kernel name, `nbd0` or `loop3`, as `/sys/block` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    name: String,
}

impl BlockDevice {
    /// Names a device; whether it exists is another question.
    ///
    /// # Errors
    /// `Denied` when the name could lead elsewhere.
    pub fn named(name: &str) -> Result<Self> {
        let plain =
            !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        if !plain {
            return Err(Error::new(
                Kind::Denied,
                format!("'{name}' is not the name of a block device"),
            ));
        }
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// All devices whose name is `prefix` and a number, in the order of the numbers.
    ///
    /// # Errors
    /// When `/sys/block` cannot be read.
    pub fn all(prefix: &str) -> Result<Vec<(u32, Self)>> {
        let fail = |error: io::Error| Error::io("cannot list /sys/block", error);
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/block").map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = name
                .strip_prefix(prefix)
                .and_then(|number| number.parse().ok());
            if let Some(number) = number {
                found.push((number, Self::named(name)?));
            }
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        Ok(found)
    }

    /// `nbd0`
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `/sys/block/NAME/ATTRIBUTE` holds, without the newline; `None` when it is not there
    /// (any more).
    #[must_use]
    pub fn attribute(&self, attribute: &str) -> Option<String> {
        let bytes = self.attribute_bytes(attribute)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As [`Self::attribute`]: the name of a file behind a loop device need not be UTF-8.
    #[must_use]
    pub fn attribute_bytes(&self, attribute: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.sys_path(attribute)).ok()?;
        bytes.pop_if(|last| *last == b'\n');
        Some(bytes)
    }

    /// Writes `/sys/block/NAME/ATTRIBUTE`.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_attribute(&self, attribute: &str, value: &str) -> Result<()> {
        let path = self.sys_path(attribute);
        fs::write(&path, value).map_err(|error| {
            Error::io(
                format!("cannot write '{value}' to {}", path.display()),
                error,
            )
        })
    }

    /// Major and minor number; `None` when there is no such device (any more).
    #[must_use]
    pub fn number(&self) -> Option<(u64, u64)> {
        let text = self.attribute("dev")?;
        let (major, minor) = text.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// Bytes, as the kernel has them now; `None` when there is no such device.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.attribute("size")?
            .parse::<u64>()
            .ok()?
            .checked_mul(512)
    }

    /// Opens the node with `options` and says where it is. Where `/dev` has none (containers),
    /// one is made, see [`Self::remove_own_node`].
    ///
    /// # Errors
    /// What the system says.
    pub fn open(&self, options: &Options) -> Result<(File, PathBuf)> {
        let mut last = Error::new(
            Kind::Io,
            format!("there is no block device {} in /sys/block", self.name),
        );
        let Some((major, minor)) = self.number() else {
            return Err(last);
        };
        let device = makedev(major, minor);
        let usual = Path::new("/dev").join(&self.name);
        let places = [(usual, false)]
            .into_iter()
            .chain(self.own_nodes().map(|path| (path, true)));
        for (path, make) in places {
            match open_or_make(&path, make, device, options) {
                Ok(file) => return Ok((file, path)),
                // Busy is an answer; a node elsewhere would give the same.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    return Err(Error::io(format!("{} is in use", path.display()), error));
                }
                Err(error) => {
                    let verb = if make { "make and open" } else { "open" };
                    last = Error::io(format!("cannot {verb} {}", path.display()), error);
                }
            }
        }
        Err(last)
    }

    /// Removes what [`Self::open`] has made, if anything.
    pub fn remove_own_node(&self) {
        for path in self.own_nodes() {
            // Usually it is not there; and if it stays, it names a device that is gone.
            let _ = fs::remove_file(path);
        }
        // Stays while there are others.
        let _ = fs::remove_dir(OWN_NODES);
    }

    fn own_nodes(&self) -> impl Iterator<Item = PathBuf> {
        [
            Path::new(OWN_NODES).join(&self.name),
            Path::new("/dev").join(format!("{OWN_PREFIX}{}", self.name)),
        ]
        .into_iter()
    }

    fn sys_path(&self, attribute: &str) -> PathBuf {
        Path::new("/sys/block").join(&self.name).join(attribute)
    }
}

/// How a node is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// For writing too.
    pub write: bool,
    /// Fail with `EBUSY` when the device is mounted or held by another such opener (`O_EXCL`).
    pub exclusive: bool,
}

/// Opens `path` when it is the node of `device`.
fn open_device(path: &Path, device: libc::dev_t, options: &Options) -> io::Result<File> {
    let flags = libc::O_CLOEXEC | if options.exclusive { libc::O_EXCL } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .write(options.write)
        .custom_flags(flags)
        .open(path)?;
    let found = file.metadata()?;
    if found.file_type().is_block_device() && found.rdev() == device {
        Ok(file)
    } else {
        Err(io::Error::other("it is the node of another device"))
    }
}

/// [`open_device`], of a node that is made first if `make` says so.
fn open_or_make(
    path: &Path,
    make: bool,
    device: libc::dev_t,
    options: &Options,
) -> io::Result<File> {
    if !make {
        return open_device(path, device, options);
    }
    let mut tries = 0..TRIES;
    loop {
        let opened = make_node(path, device).and_then(|()| open_device(path, device, options));
        match opened {
            // Another command has just removed the node, or its folder: its own device is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries.next().is_some() => {}
            other => return other,
        }
    }
}

/// Makes sure that `path` is the node of `device`. Others may do so at the same time, and what they
/// have made is never taken away under them.
fn make_node(path: &Path, device: libc::dev_t) -> io::Result<()> {
    if is_node_of(path, device) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    // One left from an earlier device of this name may have another number: it is replaced.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}-{next}", std::process::id()));
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    mknod(&new, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device)?;
    fs::rename(&new, path).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// Whether `path` is the node of `device`. Does not open it.
fn is_node_of(path: &Path, device: libc::dev_t) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_sys_block() {
        for name in ["", "..", "nbd0/..", "/etc", "nbd0\n", "a b"] {
            assert!(BlockDevice::named(name).is_err(), "{name:?}");
        }
        assert_eq!(BlockDevice::named("dm-0").unwrap().name(), "dm-0");
    }

    #[test]
    fn a_node_is_made_or_replaced_and_never_missing_meanwhile() {
        // As root; that /tmp may be mounted nodev does not matter, since nothing is opened.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes/loop4711");
        let (old, new) = (makedev(7, 4711), makedev(7, 4712));
        make_node(&path, old).unwrap();
        assert!(is_node_of(&path, old) && !is_node_of(&path, new));
        let inode = || fs::symlink_metadata(&path).unwrap().ino();
        let first = inode();
        make_node(&path, old).unwrap();
        assert_eq!(inode(), first, "one that is right stays");
        std::thread::scope(|scope| {
            let look = scope.spawn(|| (0..10_000).all(|_| path.symlink_metadata().is_ok()));
            for round in 0..200 {
                make_node(&path, if round % 2 == 0 { new } else { old }).unwrap();
            }
            assert!(look.join().unwrap(), "it was missing");
        });
        let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1);
    }

    #[test]
    fn a_device_that_is_not_there_has_no_attributes() {
        let device = BlockDevice::named("nbd4711").unwrap();
        assert_eq!(device.number(), None);
        assert_eq!(device.size(), None);
        assert!(device.open(&Options::default()).is_err());
    }
}
