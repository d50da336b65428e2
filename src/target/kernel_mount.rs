//! The kernel's own file systems on a device of ours.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nbdserve::{Error, Kind, Result};
use nix::errno::Errno;

use crate::sys::mount::{self, Refusal, Spec, Step};

/// What is mounted, and how.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions<'a> {
    /// The type that was found: `ext4`.
    pub fstype: &'a str,
    /// Neither the mount nor the file system is written.
    pub read_only: bool,
    /// A byte of the device costs the decoding of everything before it: leave alone what is not
    /// needed.
    pub first_pass: bool,
    /// Options of the file system as the user gave them, `a,b=c`.
    pub options: &'a str,
}

/// Mounts `device` on the folder `target`, always nosuid and nodev. No part of `target` may be a
/// symbolic link: it was resolved when it was checked. Gives the mount's number, as in the mount
/// table.
///
/// # Errors
/// `Unsupported` when the kernel has no driver for the type or refuses an option, `Corrupt` when
/// it does not accept the file system, `ReadOnly` when that needs a repair that writes, else what
/// the system says.
pub fn mount_fs(device: &Path, target: &Path, options: &MountOptions<'_>) -> Result<u64> {
    let opened = mount::open_target(target).map_err(|error| {
        let is_link = error.raw_os_error() == Some(libc::ELOOP);
        let what = format!("cannot use {} as a mount point", target.display());
        let error = Error::io(what, error);
        if is_link {
            error.hint("a part of the path is a symbolic link")
        } else {
            error
        }
    })?;
    let mut list = parse_options(options.options);
    add_defaults(&mut list, device, options);
    let spec = Spec {
        fstype: options.fstype,
        source: device,
        read_only: options.read_only,
        options: &list,
    };
    let created = match mount::create(&spec) {
        // Kernels without the old drivers serve ext2 and ext3 with ext4's.
        Err(refusal) if refusal.step == Step::Type && matches!(options.fstype, "ext2" | "ext3") => {
            mount::create(&Spec {
                fstype: "ext4",
                ..spec
            })
        }
        result => result,
    };
    created
        .and_then(|detached| detached.attach(opened.as_fd()))
        .map_err(|refusal| explain(&refusal, device, target, options))
}

/// The name of an option, and its value if it has one.
pub type MountOption = (String, Option<String>);

/// Splits `a,b="c,d",e=f`. What is always so, or said otherwise, is left out.
#[must_use]
pub fn parse_options(text: &str) -> Vec<MountOption> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match (c, parts.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => parts.push(String::new()),
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    let always = ["", "nosuid", "nodev", "ro", "rw", "loop"];
    parts
        .into_iter()
        .filter(|part| !always.contains(&part.as_str()))
        .map(|part| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (part, None),
        })
        .collect()
}

fn add_defaults(list: &mut Vec<MountOption>, device: &Path, options: &MountOptions<'_>) {
    let has = |list: &[MountOption], key: &str| list.iter().any(|(name, _)| name == key);
    match options.fstype {
        // The same image may be mounted twice, or lie on the disk that it is a copy of; the
        // kernel refuses a second file system with the same UUID.
        "xfs" if !has(list, "nouuid") => list.push(("nouuid".to_owned(), None)),
        // A clean journal has nothing to say, and lies in the middle of the device.
        "ext3" | "ext4"
            if options.read_only
                && options.first_pass
                && !has(list, "noload")
                && device_is_clean(device) =>
        {
            list.push(("noload".to_owned(), None));
        }
        _ => {}
    }
}

/// Whether the kernel has to write a journal back before it can show this file system, even
/// read-only, as far as the superblock tells: that of ext3 and ext4 does. `read` fills a buffer from
/// an offset of the device, or says that it cannot.
#[must_use]
pub fn needs_replay(fstype: &str, options: &str, read: impl Fn(u64, &mut [u8]) -> bool) -> bool {
    let list = parse_options(options);
    let skips = |(key, _): &MountOption| key == "noload" || key == "norecovery";
    matches!(fstype, "ext3" | "ext4")
        && !list.iter().any(skips)
        && ext_journal_is_clean(read) == Some(false)
}

/// Whether the superblock says that the journal need not be replayed. What cannot be read is the
/// kernel's to judge.
fn ext_journal_is_clean(read: impl Fn(u64, &mut [u8]) -> bool) -> Option<bool> {
    // Offsets of `struct ext4_super_block`, which is at byte 1024.
    const MAGIC: u64 = 1024 + 0x38;
    const FEATURE_INCOMPAT: u64 = 1024 + 0x60;
    const RECOVER: u32 = 4;
    let mut magic = [0; 2];
    let mut features = [0; 4];
    let found = read(MAGIC, &mut magic)
        && read(FEATURE_INCOMPAT, &mut features)
        && u16::from_le_bytes(magic) == 0xef53;
    found.then(|| u32::from_le_bytes(features) & RECOVER == 0)
}

/// As [`ext_journal_is_clean`], of a device.
fn device_is_clean(device: &Path) -> bool {
    let Ok(file) = File::open(device) else {
        return false;
    };
    let read = |offset, buf: &mut [u8]| file.read_exact_at(buf, offset).is_ok();
    ext_journal_is_clean(read) == Some(true)
}

/// Puts a refusal into words.
fn explain(refusal: &Refusal, device: &Path, target: &Path, options: &MountOptions<'_>) -> Error {
    let fstype = options.fstype;
    let device = device.display();
    let cause = cause(refusal);
    match &refusal.step {
        Step::Type => Error::new(
            Kind::Unsupported,
            format!("this kernel has no driver for the file system {fstype}"),
        )
        .caused_by(cause)
        .hint("--fuse shows the decoded disk as a file, for tools that read it"),
        Step::Option(key) => Error::new(
            Kind::Unsupported,
            format!("the kernel's {fstype} does not take the option '{key}'"),
        )
        .caused_by(cause),
        Step::Attach => Error::new(
            refusal.kind(),
            format!("cannot mount on {}", target.display()),
        )
        .caused_by(cause),
        Step::Create => {
            let what = format!("the kernel does not accept the {fstype} file system on {device}");
            match refusal.errno {
                Errno::EROFS => unclean(fstype, &cause),
                Errno::EBUSY => {
                    Error::new(Kind::Io, format!("{device} is in use")).caused_by(cause)
                }
                Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG => Error::new(Kind::Corrupt, what)
                    .caused_by(cause)
                    .hint("the kernel's log says why: dmesg | tail"),
                _ => Error::new(refusal.kind(), what)
                    .caused_by(cause)
                    .hint("the kernel's log says more: dmesg | tail"),
            }
        }
    }
}

/// The file system was not unmounted cleanly and cannot be repaired without writing.
fn unclean(fstype: &str, cause: &io::Error) -> Error {
    let skip = match fstype {
        "ext3" | "ext4" => Some("noload"),
        "xfs" => Some("norecovery"),
        "btrfs" => Some("rescue=nologreplay"),
        _ => None,
    };
    let error = Error::new(
        Kind::ReadOnly,
        format!(
            "the {fstype} file system was not unmounted cleanly: its journal has to be written back first, and the image is read-only"
        ),
    )
    .caused_by(io::Error::new(cause.kind(), cause.to_string()));
    match skip {
        Some(option) => error.hint(format!(
            "-o {option} shows it as it is, without the last changes; -w repairs the image"
        )),
        None => error.hint("-w lets the kernel repair it in the image"),
    }
}

/// The errno, and what the file system says in words.
fn cause(refusal: &Refusal) -> io::Error {
    let system = io::Error::from(refusal.errno);
    if refusal.messages.is_empty() {
        return system;
    }
    let mut text = refusal.messages.join("; ");
    // Writing to a String cannot fail.
    let _ = write!(text, " ({system})");
    io::Error::new(system.kind(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_outside_of_quotes() {
        let expected = [
            ("noload".to_owned(), None),
            ("context".to_owned(), Some("a,b:c=d".to_owned())),
            ("data".to_owned(), Some("journal".to_owned())),
        ];
        let text = "noload,nosuid,context=\"a,b:c=d\",,ro,data=journal";
        assert_eq!(parse_options(text), expected);
        assert_eq!(parse_options(""), []);
    }

    #[test]
    fn noload_only_where_the_superblock_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let mut bytes = vec![0; 4096];
        bytes[1024 + 0x38..1024 + 0x3a].copy_from_slice(&0xef53_u16.to_le_bytes());
        std::fs::write(&image, &bytes).unwrap();
        assert!(device_is_clean(&image));
        bytes[1024 + 0x60] = 4;
        std::fs::write(&image, &bytes).unwrap();
        assert!(!device_is_clean(&image));
        let read = |offset: u64, buf: &mut [u8]| {
            let start = offset as usize;
            buf.copy_from_slice(&bytes[start..start + buf.len()]);
            true
        };
        assert!(needs_replay("ext4", "discard", read));
        assert!(!needs_replay("ext4", "ro,noload", read));
        assert!(!needs_replay("ext2", "", read));
        std::fs::write(&image, vec![0; 4096]).unwrap();
        assert!(!device_is_clean(&image));
        assert!(!device_is_clean(&dir.path().join("none")));
    }

    #[test]
    fn a_dirty_journal_is_explained_with_the_option_that_helps() {
        let refusal = Refusal {
            step: Step::Create,
            errno: Errno::EROFS,
            messages: Vec::new(),
        };
        for (fstype, option) in [("ext4", "-o noload"), ("xfs", "-o norecovery")] {
            let options = MountOptions {
                fstype,
                read_only: true,
                first_pass: false,
                options: "",
            };
            let error = explain(&refusal, Path::new("/dev/x"), Path::new("/m"), &options);
            assert_eq!(error.kind(), Kind::ReadOnly);
            assert!(error.report().hint.unwrap().contains(option));
        }
    }
}
