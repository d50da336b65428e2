//! The image on its way to the server: an open file, or an address with what it takes to read it.
//! It is passed from process to process and never recorded, since an address can hold credentials.

use std::fmt;
use std::fs::File as StdFile;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nbdserve::source::http::{Http, HttpOptions};
use nbdserve::source::{File, OpenMode};
use nbdserve::{Cx, Error, Kind, Result, Volume};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

/// The fetched parts of a remote image get one part in this many of the memory for decoded blocks.
const REMOTE_PART: u64 = 8;

/// Where the bytes are.
#[derive(Debug)]
pub enum Image {
    /// Opened by the launcher with the caller's rights.
    File(OwnedFd),
    /// To be opened by the server.
    Remote(Remote),
}

/// An image on a web server.
#[derive(Clone, Serialize, Deserialize)]
pub struct Remote {
    /// As the user gave it, credentials included.
    pub url: String,
    /// Header fields for that host.
    pub headers: Vec<(String, String)>,
    /// Certificates that are trusted in place of the system's.
    pub ca: Option<PathBuf>,
    /// Fetch it whole first.
    pub download: bool,
}

/// Without what may be secret.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.shown())
    }
}

impl Remote {
    /// The address without what may be secret.
    #[must_use]
    pub fn shown(&self) -> String {
        Http::shown(&self.url).unwrap_or_else(|_| "an address".to_owned())
    }

    /// Opens it here. `memory` bytes are for decoded blocks and fetched parts together.
    ///
    /// # Errors
    /// What the server or the network says.
    pub fn open(&self, memory: u64, cx: &Cx) -> Result<Volume> {
        let options = HttpOptions {
            headers: self.headers.clone(),
            ca: self.ca.clone(),
            memory: memory / REMOTE_PART,
            ..HttpOptions::default()
        };
        if self.download {
            let file: StdFile = Http::download(&self.url, &options, cx)?;
            return File::from_fd(file.into(), &self.shown(), OpenMode::ReadOnly).map(Volume::new);
        }
        Http::open(&self.url, &options, cx).map(Volume::new)
    }
}

impl Image {
    /// What goes into a message, and the descriptors that go with it.
    #[must_use]
    pub fn parts(&self) -> (Option<Remote>, Vec<BorrowedFd<'_>>) {
        match self {
            Self::File(fd) => (None, vec![fd.as_fd()]),
            Self::Remote(remote) => (Some(remote.clone()), Vec::new()),
        }
    }

    /// A second handle on a local regular file, for a kernel that can read it by itself.
    #[must_use]
    pub fn regular_file(&self) -> Option<Arc<OwnedFd>> {
        let Self::File(fd) = self else {
            return None;
        };
        let mode = rustix::fs::fstat(fd).ok()?.st_mode;
        let regular = FileType::from_raw_mode(mode) == FileType::RegularFile;
        // Without it the bytes go through us.
        let second = regular.then(|| fd.try_clone().ok()).flatten()?;
        Some(Arc::new(second))
    }

    /// From a message and its descriptors.
    ///
    /// # Errors
    /// When there is neither an address nor a descriptor.
    pub fn from_parts(remote: Option<Remote>, mut fds: Vec<OwnedFd>) -> Result<Self> {
        match remote {
            Some(remote) => Ok(Self::Remote(remote)),
            None => fds
                .pop()
                .map(Self::File)
                .ok_or_else(|| Error::new(Kind::Io, "no image came with the request")),
        }
    }
}
