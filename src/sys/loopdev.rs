//! Loop devices by their ioctls (`drivers/block/loop.c`, `linux/loop.h`).

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbdserve::{Error, Kind, Result};
use nix::errno::Errno;

use super::block::{BlockDevice, Options};

/// Bytes of `lo_file_name`, the terminating zero included.
pub const NAME_SIZE: usize = 64;
/// Others take loop devices too: how often we may find that the free one is no longer free.
const TRIES: u32 = 64;

mod ioctl {
    nix::ioctl_none_bad!(clr_fd, 0x4c01);
    nix::ioctl_read_bad!(get_status64, 0x4c05, super::Info64);
    nix::ioctl_write_ptr_bad!(configure, 0x4c0a, super::Configure);
    nix::ioctl_none_bad!(ctl_get_free, 0x4c82);
}

/// `LO_FLAGS_*`
mod flag {
    pub(super) const READ_ONLY: u32 = 1;
    pub(super) const AUTOCLEAR: u32 = 4;
    pub(super) const DIRECT_IO: u32 = 16;
}

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
struct Info64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_SIZE],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Info64 {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_SIZE],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config`
#[repr(C)]
struct Configure {
    fd: u32,
    block_size: u32,
    info: Info64,
    reserved: [u64; 8],
}

/// How a file becomes a loop device.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// A regular file or block device, open for writing unless `read_only`.
    pub file: BorrowedFd<'a>,
    /// Kept by the kernel with the device, so that it can be found again. At most 63 bytes,
    /// without zero bytes.
    pub name: &'a str,
    /// First byte of the file that is shown. A multiple of `block_size`.
    pub offset: u64,
    /// Bytes shown; zero: up to the end of the file.
    pub size: u64,
    /// Refuse writes.
    pub read_only: bool,
    /// Read past the page cache of the file, where the file system can; else this is ignored.
    pub direct_io: bool,
    /// Logical block size in bytes, a power of two from 512 to the page size; zero: the kernel's
    /// choice.
    pub block_size: u32,
}

/// A loop device in use.
#[derive(Debug)]
pub struct Attached {
    /// N of `/dev/loopN`.
    pub number: u32,
    /// Its node.
    pub path: PathBuf,
    /// Keeps it: the kernel detaches the file when the last descriptor is closed and the last
    /// mount is gone.
    pub device: File,
}

/// Attaches a file to a free loop device, to be detached by its last user (autoclear).
///
/// # Errors
/// `Denied` without the right to, `Unsupported` where there is no loop driver, `Limit` when the
/// name is too long, else what the system says.
pub fn attach(config: &Config<'_>) -> Result<Attached> {
    let control = open_control()?;
    let mut configure = configuration(config)?;
    // Before Linux 6.16 the device gets the size that the kernel remembers of the file. Of a FUSE file
    // that is zero until somebody asks; a file system on it would lose what it keeps in the device's
    // own pages, without an error.
    rustix::fs::fstat(config.file)
        .map_err(|errno| Error::io("cannot ask for the size of the file", errno))?;
    for attempt in 0..TRIES {
        if attempt > 0 {
            // Whoever was faster is done soon.
            std::thread::sleep(Duration::from_millis(u64::from(attempt.min(20))));
        }
        // SAFETY: the request takes no argument.
        let number = unsafe { ioctl::ctl_get_free(control.as_raw_fd()) }
            .map_err(|errno| Error::io("cannot find a free loop device", errno))?;
        // Numbers of devices are not negative.
        let number = u32::try_from(number).unwrap_or_default();
        let block = BlockDevice::named(&format!("loop{number}"))?;
        let options = Options {
            write: !config.read_only,
            exclusive: false,
        };
        let (device, path) = match block.open(&options) {
            Ok(opened) => opened,
            // Removed again in between.
            Err(_) if block.number().is_none() => continue,
            Err(error) => return Err(error),
        };
        // SAFETY: the structure has the kernel's layout and outlives the call; the descriptor in
        // it is borrowed for as long.
        match unsafe { ioctl::configure(device.as_raw_fd(), &raw const configure) } {
            Ok(_) => {
                return Ok(Attached {
                    number,
                    path,
                    device,
                });
            }
            Err(Errno::EBUSY) => {}
            Err(Errno::EINVAL) if configure.info.flags & flag::DIRECT_IO != 0 => {
                configure.info.flags &= !flag::DIRECT_IO;
            }
            Err(errno) => {
                let what = format!(
                    "cannot attach {} bytes from {} on to {}",
                    size_text(config.size),
                    config.offset,
                    path.display()
                );
                return Err(Error::io(what, errno));
            }
        }
    }
    Err(Error::new(
        Kind::Limit,
        format!("other programs took {TRIES} loop devices before we could"),
    )
    .hint("try again, or losetup --list to see who has them"))
}

fn size_text(size: u64) -> String {
    if size == 0 {
        "all".to_owned()
    } else {
        size.to_string()
    }
}

fn open_control() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let error = Error::io("cannot open /dev/loop-control", error);
            if missing {
                error.hint("load the loop driver (modprobe loop), or use --via fuse")
            } else {
                error.hint("loop devices need root; --via fuse does not")
            }
        })
}

fn configuration(config: &Config<'_>) -> Result<Configure> {
    let name = config.name.as_bytes();
    if name.len() >= NAME_SIZE || name.contains(&0) {
        return Err(Error::new(
            Kind::Limit,
            format!("the loop device name '{}' is too long", config.name),
        ));
    }
    let mut info = Info64::EMPTY;
    info.offset = config.offset;
    info.size_limit = config.size;
    info.file_name[..name.len()].copy_from_slice(name);
    info.flags = flag::AUTOCLEAR;
    if config.read_only {
        info.flags |= flag::READ_ONLY;
    }
    if config.direct_io {
        info.flags |= flag::DIRECT_IO;
    }
    Ok(Configure {
        // File descriptors in use are never negative.
        fd: u32::try_from(config.file.as_raw_fd()).unwrap_or(u32::MAX),
        block_size: config.block_size,
        info,
        reserved: [0; 8],
    })
}

/// What the kernel knows of a loop device in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// N of `/dev/loopN`.
    pub number: u32,
    /// The name it was attached with; other programs put the file's path here.
    pub name: Vec<u8>,
    /// Device number of the file system that holds the file.
    pub device: u64,
    /// Inode number of the file.
    pub inode: u64,
    /// First byte of the file that is shown.
    pub offset: u64,
    /// Bytes shown; zero: up to the end of the file.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Detached by its last user.
    pub autoclear: bool,
}

/// Asks for the state of an open loop device; `None` when no file is attached.
///
/// # Errors
/// What the system says.
pub fn status(device: impl AsFd) -> Result<Option<Status>> {
    let mut info = Info64::EMPTY;
    // SAFETY: the structure has the kernel's layout and outlives the call.
    match unsafe { ioctl::get_status64(device.as_fd().as_raw_fd(), &raw mut info) } {
        Ok(_) => {}
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(Error::io("cannot ask for a loop device's state", errno)),
    }
    let name = info.file_name.split(|byte| *byte == 0).next();
    Ok(Some(Status {
        number: info.number,
        name: name.unwrap_or_default().to_vec(),
        device: info.device,
        inode: info.inode,
        offset: info.offset,
        size: info.size_limit,
        read_only: info.flags & flag::READ_ONLY != 0,
        autoclear: info.flags & flag::AUTOCLEAR != 0,
    }))
}

/// The loop devices in use that are detached by their last user (all of ours are), that we may open
/// and that `ask` picks by their number and the path of the file behind them. To ask a device for its
/// state may hang with the file system of that file; what `ask` is told does not.
///
/// # Errors
/// When `/sys/block` cannot be read.
pub fn list(ask: impl Fn(u32, &Path) -> bool) -> Result<Vec<Status>> {
    let mut found = Vec::new();
    for (number, block) in BlockDevice::all("loop")? {
        let Some(file) = block.attribute_bytes("loop/backing_file") else {
            continue;
        };
        let kept = block.attribute("loop/autoclear").as_deref() == Some("0");
        if kept || !ask(number, Path::new(OsStr::from_bytes(&file))) {
            continue;
        }
        // One that is gone by now, or not for us, is no reason to fail.
        let Ok((device, _)) = block.open(&Options::default()) else {
            continue;
        };
        found.extend(status(&device).ok().flatten());
    }
    Ok(found)
}

/// Detaches the file, at once or, when the device is in use, with its last user (`LOOP_CLR_FD`).
/// False when no file was attached.
///
/// # Errors
/// What the system says.
pub fn detach(device: impl AsFd) -> Result<bool> {
    // SAFETY: the request takes no argument.
    match unsafe { ioctl::clr_fd(device.as_fd().as_raw_fd()) } {
        Ok(_) => Ok(true),
        Err(Errno::ENXIO) => Ok(false),
        Err(errno) => Err(Error::io("cannot detach a loop device", errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_size() {
        assert_eq!(size_of::<Info64>(), 232);
        assert_eq!(size_of::<Configure>(), 304);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let name = "x".repeat(NAME_SIZE);
        let config = |name| Config {
            file: file.as_fd(),
            name,
            offset: 0,
            size: 0,
            read_only: true,
            direct_io: false,
            block_size: 0,
        };
        let error = configuration(&config(&name)).err().unwrap();
        assert_eq!(error.kind(), Kind::Limit);
        assert!(configuration(&config(&name[1..])).is_ok());
        assert!(configuration(&config("a\0b")).is_err());
    }
}
