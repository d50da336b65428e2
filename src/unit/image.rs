//! The image on its way to the server: an open file, or an address with what it takes to read it.
//! It is passed from process to process and never recorded, since an address can hold credentials.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nbdserve::source::http::{Http, HttpOptions};
use nbdserve::source::split::{Joined, Look, Series};
use nbdserve::source::{File, OpenMode};
use nbdserve::{Cx, Error, Kind, Result, Volume};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

/// The fetched parts of a remote image get one part in this many of the memory for decoded blocks.
const REMOTE_PART: u64 = 8;

/// Where the bytes are.
#[derive(Debug)]
pub enum Image {
    /// Opened by the launcher with the caller's rights; of a split image all parts, in order.
    Files(Vec<OwnedFd>),
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

    /// Opens it here, with the parts that follow if `look` wants them. `memory` bytes are for
    /// decoded blocks and fetched parts together.
    ///
    /// # Errors
    /// What the server or the network says.
    pub fn open(&self, look: Look, memory: u64, cx: &Cx) -> Result<Volume> {
        let options = HttpOptions {
            headers: self.headers.clone(),
            ca: self.ca.clone(),
            memory: memory / REMOTE_PART,
            ..HttpOptions::default()
        };
        if self.download {
            let files = Http::download_split(&self.url, &options, look, cx)?;
            let fds = files.into_iter().map(OwnedFd::from).collect();
            return open_files(fds, &self.shown(), OpenMode::ReadOnly);
        }
        Http::open_split(&self.url, &options, look, cx).map(Volume::new)
    }
}

/// Takes over the open files of an image, of which `name` is the first, as one volume.
///
/// # Errors
/// As [`File::from_fd`] and [`Joined::volume`].
pub fn open_files(fds: Vec<OwnedFd>, name: &str, mode: OpenMode) -> Result<Volume> {
    let (folder, first) = match name.rsplit_once('/') {
        Some((folder, first)) => (format!("{folder}/"), first),
        None => (String::new(), name),
    };
    let series = Series::of(first);
    let named = |index| match series.as_ref().and_then(|series| series.name(index)) {
        Some(part) => format!("{folder}{part}"),
        None if index == 0 => name.to_owned(),
        None => format!("part {} of {name}", index + 1),
    };
    let fds = fds.into_iter().enumerate();
    let files = fds.map(|(index, fd)| File::from_fd(fd, &named(index), mode));
    Joined::volume(files.collect::<Result<_>>()?)
}

impl Image {
    /// What goes into a message, and the descriptors that go with it.
    #[must_use]
    pub fn parts(&self) -> (Option<Remote>, Vec<BorrowedFd<'_>>) {
        match self {
            Self::Files(fds) => (None, fds.iter().map(AsFd::as_fd).collect()),
            Self::Remote(remote) => (Some(remote.clone()), Vec::new()),
        }
    }

    /// A second handle on the same image.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Files(fds) => Self::Files(
                fds.iter()
                    .map(OwnedFd::try_clone)
                    .collect::<Result<_, _>>()?,
            ),
            Self::Remote(remote) => Self::Remote(remote.clone()),
        })
    }

    /// A second handle on a local regular file, for a kernel that can read it by itself.
    #[must_use]
    pub fn regular_file(&self) -> Option<Arc<OwnedFd>> {
        let Self::Files(fds) = self else {
            return None;
        };
        let [fd] = &fds[..] else {
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
    pub fn from_parts(remote: Option<Remote>, fds: Vec<OwnedFd>) -> Result<Self> {
        match remote {
            Some(remote) => Ok(Self::Remote(remote)),
            None if fds.is_empty() => Err(Error::new(Kind::Io, "no image came with the request")),
            None => Ok(Self::Files(fds)),
        }
    }
}
