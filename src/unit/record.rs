//! What is known of a unit, as it is written to disk before each step that it allows to undo.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use nbdserve::{Error, Result};
use serde::{Deserialize, Serialize};

use super::message::{Opened, Request, Via};

/// What is known of a unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Format of this file.
    pub version: u32,
    /// What the unit was started with.
    pub request: Request,
    /// What the image turned out to be, once known.
    pub opened: Option<Opened>,
    /// The means, once chosen.
    pub via: Option<Via>,
    /// The loop or NBD device, once there.
    pub device: Option<PathBuf>,
    /// How far it got.
    pub stage: Stage,
    /// Process id of the supervisor; none for a plain loop device.
    pub supervisor: Option<u32>,
    /// When that process began, as /proc has it: another one may get its number.
    #[serde(default)]
    pub supervisor_began: Option<u64>,
    /// Process id of the server.
    pub server: Option<u32>,
    /// Seconds since 1970.
    pub started: u64,
    /// What has to be undone, in the order it was done.
    pub undo: Vec<Undo>,
}

/// How far a unit got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not usable yet.
    Starting,
    /// Usable.
    Mounted,
    /// Being taken down.
    Ending,
}

/// One thing to undo. Each is found by the unit's id, so undoing twice is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undo {
    /// The target was created for the unit.
    RemoveTarget,
    /// A FUSE mount whose source carries the id.
    FuseMount,
    /// A loop device whose backing name carries the id.
    Loop,
    /// An NBD device whose backend identifier carries the id.
    Nbd,
    /// The kernel's file system on the unit's device.
    KernelMount,
}

impl Record {
    /// The record of a unit that has just begun.
    #[must_use]
    pub fn new(request: Request) -> Self {
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        Self {
            version: 1,
            request,
            opened: None,
            via: None,
            device: None,
            stage: Stage::Starting,
            supervisor: None,
            supervisor_began: None,
            server: None,
            started,
            undo: Vec::new(),
        }
    }
}

/// Whether `text` has the form of a unit's id.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() == 8
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// An id that no unit has.
///
/// # Errors
/// When the system gives no random numbers.
pub fn new_id() -> Result<String> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::io("cannot read /dev/urandom", error))?;
    Ok(format!("{:08x}", u32::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_eight_hexadecimal_digits_are_an_id() {
        assert!(is_id(&new_id().unwrap()));
        for other in ["", "0123abcde", "0123ABCD", "..", "0123abc/"] {
            assert!(!is_id(other), "{other}");
        }
    }
}
