//! A file as a loop device: the kernel's own way, nothing of ours in the data path.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nbdserve::Result;

use crate::sys::block::BlockDevice;
use crate::sys::loopdev::{self, Config, NAME_SIZE};

use super::{NAME_PREFIX, id_in_name};

/// How a file is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopOptions<'a> {
    /// The unit's id, by which the device is found again. At most 40 bytes, without blanks.
    pub id: &'a str,
    /// For the reader of `losetup --list`; cut when it is too long.
    pub label: &'a str,
    /// First byte shown.
    pub offset: u64,
    /// Bytes shown; zero: all from `offset` on. The kernel leaves out what does not fill a last
    /// sector of 512 bytes: pad such an image first.
    pub size: u64,
    /// Refuse writes.
    pub read_only: bool,
    /// Do not cache twice, where the file's own file system can.
    pub direct_io: bool,
    /// Logical block size in bytes; zero: 512.
    pub block_size: u32,
}

/// A loop device of ours. It lives as long as this value or a mount of it.
#[derive(Debug)]
pub struct LoopDevice {
    /// N of `/dev/loopN`.
    pub number: u32,
    /// Its node.
    pub path: PathBuf,
    device: File,
}

impl LoopDevice {
    /// The open node.
    #[must_use]
    pub fn device(&self) -> &File {
        &self.device
    }
}

/// Shows `file`, open for writing unless `read_only`, as a loop device that the kernel takes down
/// with its last user.
///
/// # Errors
/// As [`loopdev::attach`].
pub fn attach(file: BorrowedFd<'_>, options: &LoopOptions<'_>) -> Result<LoopDevice> {
    let name = name(options.id, options.label);
    let attached = loopdev::attach(&Config {
        file,
        name: &name,
        offset: options.offset,
        size: options.size,
        read_only: options.read_only,
        direct_io: options.direct_io,
        block_size: options.block_size,
    })?;
    Ok(LoopDevice {
        number: attached.number,
        path: attached.path,
        device: attached.device,
    })
}

/// A loop device of ours, found by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The unit's id.
    pub id: String,
    /// What the kernel knows.
    pub status: loopdev::Status,
}

/// All loop devices of ours that we may look at, of those that `ask` picks ([`loopdev::list`]).
///
/// # Errors
/// When `/sys/block` cannot be read.
pub fn find(ask: impl Fn(u32, &Path) -> bool) -> Result<Vec<Found>> {
    let found = loopdev::list(ask)?.into_iter().filter_map(|status| {
        let name = String::from_utf8_lossy(&status.name).into_owned();
        let id = id_in_name(&name)?.to_owned();
        Some(Found { id, status })
    });
    Ok(found.collect())
}

/// The file behind device `number`, as the kernel names it now; it asks no file system.
#[must_use]
pub fn backing_file(number: u32) -> Option<Vec<u8>> {
    let block = BlockDevice::named(&format!("loop{number}")).ok()?;
    block.attribute_bytes("loop/backing_file")
}

/// Whether device `number`, which was that of unit `id` over the file `before`, is nobody's or somebody
/// else's by now. On doubt it is not.
#[must_use]
pub fn is_anothers(number: u32, id: &str, before: Option<&[u8]>) -> bool {
    let now = backing_file(number);
    // A file may have been renamed: the device is asked then.
    now.as_deref() != before
        && (now.is_none()
            || BlockDevice::named(&format!("loop{number}"))
                .and_then(|block| block.open(&crate::sys::block::Options::default()))
                .and_then(|(device, _)| loopdev::status(&device))
                .is_ok_and(|status| {
                    let name = status.map(|status| status.name).unwrap_or_default();
                    id_in_name(&String::from_utf8_lossy(&name)) != Some(id)
                }))
}

/// Detaches device `number` if it is still the one of unit `id`: at once, or with its last user.
/// False when it is not (any more).
///
/// # Errors
/// What the system says.
pub fn detach(number: u32, id: &str) -> Result<bool> {
    let block = BlockDevice::named(&format!("loop{number}"))?;
    if block.attribute("loop/backing_file").is_none() {
        return Ok(false);
    }
    let device = match block.open(&crate::sys::block::Options::default()) {
        Ok((device, _)) => device,
        Err(error) if BlockDevice::was_going(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let ours = loopdev::status(&device)?
        .is_some_and(|status| id_in_name(&String::from_utf8_lossy(&status.name)) == Some(id));
    if !ours {
        return Ok(false);
    }
    loopdev::detach(&device)
}

/// `loopmount:ID LABEL`, cut to what the kernel keeps.
fn name(id: &str, label: &str) -> String {
    let mut name = format!("{NAME_PREFIX}{id} ");
    for c in label.chars().filter(|c| !c.is_control()) {
        if name.len() + c.len_utf8() >= NAME_SIZE {
            break;
        }
        name.push(c);
    }
    name.truncate(name.trim_end().len());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_label_is_cut_between_characters_and_the_id_stays() {
        let name = name("abc", &"ä".repeat(100));
        assert!(name.len() < NAME_SIZE && name.len() >= NAME_SIZE - 2);
        assert_eq!(id_in_name(&name), Some("abc"));
    }

    #[test]
    fn only_our_names_have_an_id() {
        assert_eq!(id_in_name("/home/me/loopmount:x"), None);
        assert_eq!(id_in_name("loopmount:"), None);
        assert_eq!(id_in_name(&name("x", "a\0b\nc")), Some("x"));
        assert_eq!(name("x", ""), "loopmount:x");
    }
}
