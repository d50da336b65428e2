//! Mounting and unmounting by descriptors (`fsopen(2)` and its like, Linux 5.2): the target is
//! opened once and cannot be swapped afterwards, and the file system says in words what it
//! refuses.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nbdfuse::mount::{mount_id, open_resolved};
use nbdserve::{Error, Kind};
use nix::errno::Errno;
use rustix::fs::OFlags;

/// `FSOPEN_CLOEXEC`, `FSMOUNT_CLOEXEC`
const CLOEXEC: libc::c_uint = 1;
/// `enum fsconfig_command`
mod config {
    pub(super) const SET_FLAG: libc::c_uint = 0;
    pub(super) const SET_STRING: libc::c_uint = 1;
    pub(super) const CMD_CREATE: libc::c_uint = 6;
}
/// `MOUNT_ATTR_*`
mod attribute {
    pub(super) const RDONLY: libc::c_uint = 1;
    pub(super) const NOSUID: libc::c_uint = 2;
    pub(super) const NODEV: libc::c_uint = 4;
    /// Words among the options that are for the mount and not for the file system; what is so
    /// anyway has no bit.
    pub(super) const NAMED: [(&str, libc::c_uint); 10] = [
        ("exec", 0),
        ("noexec", 8),
        ("atime", 0),
        ("relatime", 0),
        ("noatime", 0x10),
        ("strictatime", 0x20),
        ("diratime", 0),
        ("nodiratime", 0x80),
        ("symfollow", 0),
        ("nosymfollow", 0x20_0000),
    ];
}
/// `MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH`
const MOVE_BY_DESCRIPTORS: libc::c_uint = 0x04 | 0x40;
/// The longest message of a file system that we read.
const MESSAGE_SIZE: usize = 4096;
/// The most messages that we read; the kernel keeps eight.
const MESSAGES: usize = 16;

/// What is to be mounted. Always nosuid and nodev: an image may hold anything.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// Type: `ext4`.
    pub fstype: &'a str,
    /// The block device.
    pub source: &'a Path,
    /// Neither the mount nor the file system is written.
    pub read_only: bool,
    /// Options of the file system, or of the mount (`noexec`): a name, or a name and a value.
    pub options: &'a [(String, Option<String>)],
}

/// Why a mount was refused.
#[derive(Debug)]
pub struct Refusal {
    /// The step that failed.
    pub step: Step,
    /// Why, as a number.
    pub errno: Errno,
    /// Why, in the file system's words; often none.
    pub messages: Vec<String>,
}

/// The steps of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The kernel does not know the file system.
    Type,
    /// An option was refused.
    Option(String),
    /// The file system was not accepted.
    Create,
    /// The target was not accepted.
    Attach,
}

/// A file system that is not yet in the mount table.
#[derive(Debug)]
pub struct Detached {
    mount: OwnedFd,
}

/// Makes a file system of a device ready to be attached.
///
/// # Errors
/// [`Refusal`], for the caller to put into words.
pub fn create(spec: &Spec<'_>) -> std::result::Result<Detached, Refusal> {
    let refuse = |step: Step, messages: Vec<String>| {
        move |errno: Errno| Refusal {
            step,
            errno,
            messages,
        }
    };
    let fstype = c_string(spec.fstype.as_bytes()).map_err(refuse(Step::Type, Vec::new()))?;
    // SAFETY: the string outlives the call.
    let context = adopt(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), CLOEXEC) })
        .map_err(refuse(Step::Type, Vec::new()))?;
    let set = |key: &str, value: Option<&[u8]>| {
        set_option(&context, key, value).map_err(|errno| Refusal {
            step: Step::Option(key.to_owned()),
            errno,
            messages: read_messages(&context),
        })
    };
    set("source", Some(spec.source.as_os_str().as_bytes()))?;
    set(if spec.read_only { "ro" } else { "rw" }, None)?;
    let mut attributes = attribute::NOSUID | attribute::NODEV;
    if spec.read_only {
        attributes |= attribute::RDONLY;
    }
    for (key, value) in spec.options {
        let mut named = attribute::NAMED.iter();
        match named.find(|(name, _)| key == name && value.is_none()) {
            Some((_, bit)) => attributes |= bit,
            None => set(key, value.as_deref().map(str::as_bytes))?,
        }
    }
    let created = fsconfig(&context, config::CMD_CREATE, None, None);
    created.map_err(|errno| refuse(Step::Create, read_messages(&context))(errno))?;
    // SAFETY: integers only.
    let mount =
        unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, attributes) };
    let mount =
        adopt(mount).map_err(|errno| refuse(Step::Create, read_messages(&context))(errno))?;
    Ok(Detached { mount })
}

impl Detached {
    /// Puts it onto `target`, a descriptor of the folder (`O_PATH` will do). Gives the mount's
    /// number, as in the mount table.
    ///
    /// # Errors
    /// [`Refusal`], for the caller to put into words.
    pub fn attach(self, target: BorrowedFd<'_>) -> std::result::Result<u64, Refusal> {
        let refuse = |errno| Refusal {
            step: Step::Attach,
            errno,
            messages: Vec::new(),
        };
        let empty = c"";
        // SAFETY: the strings are static; the descriptors are open for as long as the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.mount.as_raw_fd(),
                empty.as_ptr(),
                target.as_raw_fd(),
                empty.as_ptr(),
                MOVE_BY_DESCRIPTORS,
            )
        };
        Errno::result(result).map_err(refuse)?;
        mount_id(self.mount.as_fd())
            .map_err(|error| refuse(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
    }
}

/// Opens a mount point for [`Detached::attach`]: a path that was resolved once, so that a symbolic
/// link on it was put there since and is refused.
///
/// # Errors
/// What the system says.
pub fn open_target(target: &Path) -> io::Result<OwnedFd> {
    open_resolved(target, OFlags::PATH | OFlags::DIRECTORY)
}

fn set_option(
    context: &OwnedFd,
    key: &str,
    value: Option<&[u8]>,
) -> std::result::Result<(), Errno> {
    let key = c_string(key.as_bytes())?;
    match value {
        Some(value) => {
            let value = c_string(value)?;
            fsconfig(context, config::SET_STRING, Some(&key), Some(&value))
        }
        None => fsconfig(context, config::SET_FLAG, Some(&key), None),
    }
}

fn fsconfig(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> std::result::Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings outlive the call, null stands for none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// What the file system has to say, one message per read: `e text`, `w text` or `i text`.
fn read_messages(context: &OwnedFd) -> Vec<String> {
    let Ok(clone) = context.try_clone() else {
        return Vec::new();
    };
    let mut file = File::from(clone);
    let mut buffer = vec![0; MESSAGE_SIZE];
    let mut messages = Vec::new();
    while messages.len() < MESSAGES {
        // ENODATA when there are no more.
        let Ok(len) = file.read(&mut buffer) else {
            break;
        };
        let text = String::from_utf8_lossy(&buffer[..len]);
        let text = text.trim();
        if text.is_empty() {
            break;
        }
        if let Some(error) = text.strip_prefix("e ") {
            messages.push(error.to_owned());
        }
    }
    messages
}

fn c_string(bytes: &[u8]) -> std::result::Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// Takes over the descriptor that a call has returned.
fn adopt(result: libc::c_long) -> std::result::Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // The kernel's descriptors are ints; syscall(2) widens them.
    let fd = fd as RawFd;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Refusal {
    /// What sort of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Error::io("", self.errno).kind()
    }
}
