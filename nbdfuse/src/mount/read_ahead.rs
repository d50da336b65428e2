//! How far the kernel reads ahead on a mount.

use std::fs;
use std::path::PathBuf;

use nbdserve::{Error, Kind, Result};

/// The mount table of this process; proc(5) describes its fields.
const MOUNT_TABLE: &str = "/proc/self/mountinfo";
/// Fields of a line before the optional ones.
const FIELDS_BEFORE: usize = 6;

/// Lets the kernel read `bytes` ahead on the mount whose source is `source`. It offers 128 KiB at
/// first, and more only to root; 1 MiB, the largest request, doubles the speed of long reads. To
/// be called when the mount is served.
///
/// # Errors
/// `Denied` for ordinary users, `Io` when there is no such mount or no sysfs.
pub fn set_read_ahead(source: &str, bytes: u64) -> Result<()> {
    let table =
        fs::read(MOUNT_TABLE).map_err(|cause| Error::io("cannot read the mount table", cause))?;
    let table = String::from_utf8_lossy(&table);
    let device = table
        .lines()
        .find_map(|line| device_of(line, source))
        .ok_or_else(|| Error::new(Kind::Io, format!("{source} is not in the mount table")))?;
    let file: PathBuf = ["/sys/class/bdi", device, "read_ahead_kb"].iter().collect();
    fs::write(&file, (bytes / 1024).to_string())
        .map_err(|cause| Error::io(format!("cannot set {}", file.display()), cause))
}

/// The device number, `0:53`, in a line of the mount table, if it is that of `source`.
fn device_of<'a>(line: &'a str, source: &str) -> Option<&'a str> {
    let fields: Vec<&str> = line.split(' ').collect();
    let optional = fields.get(FIELDS_BEFORE..)?;
    // Optional fields end with a lone dash; type and source follow.
    let dash = optional.iter().position(|field| *field == "-")?;
    (*optional.get(dash + 2)? == source).then_some(fields[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_source_and_not_by_its_mount_point() {
        let line = "36 35 0:53 / /mnt/loopmount:2 ro,nosuid shared:1 master:2 - fuse.loopmount loopmount:1 ro";
        assert_eq!(device_of(line, "loopmount:1"), Some("0:53"));
        assert_eq!(device_of(line, "loopmount:2"), None);
        assert_eq!(device_of("36 35", "loopmount:1"), None);
    }
}
