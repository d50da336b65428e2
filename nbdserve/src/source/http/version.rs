//! Whether an answer is of the version of the file that was opened. Pure.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use super::address::Address;
use super::failure::Failure;
use super::headers::{Same, Validator};
use crate::{Error, Kind};

/// The version of the file that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Number of bytes.
    pub(super) size: u64,
    /// What every further answer is compared with.
    pub(super) validator: Validator,
}

impl Source {
    /// Whether an answer with these fields is of this version.
    pub(super) fn same_version(&self, from: &Address, headers: &HeaderMap) -> Result<(), Failure> {
        let now = Validator::of(headers);
        let (was, is) = (self.validator.describe(), now.describe());
        match self.validator.compare(&now) {
            Same::Yes => Ok(()),
            Same::No => Err(changed(format!(
                "{from} has changed while it was read: it was opened with {was}, now it has {is}"
            ))),
            Same::Unproven => Err(Failure::Final(Error::new(
                Kind::Io,
                format!("{from} was opened with {was}; an answer with {is} cannot be checked"),
            ))),
        }
    }

    /// As [`same_length`] with its length.
    pub(super) fn same_length(&self, from: &Address, total: Option<u64>) -> Result<(), Failure> {
        same_length(from, total, self.size)
    }

    /// The server says that it has this version no longer.
    pub(super) fn gone(&self, from: &Address, status: StatusCode) -> Failure {
        let version = self.validator.describe();
        changed(format!(
            "{from} is no longer the file with {version}: the server answers {status}"
        ))
    }
}

/// Whether a file of `size` bytes can be meant by a range of one of `total`.
pub(super) fn same_length(from: &Address, total: Option<u64>, size: u64) -> Result<(), Failure> {
    match total {
        Some(total) if total != size => Err(changed(format!(
            "{from} has changed while it was read: it had {size} bytes, now it has {total}"
        ))),
        _ => Ok(()),
    }
}

fn changed(what: String) -> Failure {
    Failure::Changed(Error::new(Kind::Changed, what).hint("unmount it and open it again"))
}
