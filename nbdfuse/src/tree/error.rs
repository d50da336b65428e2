//! Why a file system cannot answer.

use std::fmt;

use nbdserve::{Error, Kind};

/// `Result` with [`FsError`].
pub type FsResult<T> = Result<T, FsError>;

/// The answers that are no success: questions about something that is not there or not of that
/// type, and failures of the image.
#[derive(Clone, Debug)]
pub enum FsError {
    /// No entry of that name.
    NotFound,
    /// A directory was needed.
    NotADirectory,
    /// A directory was given where none can be.
    IsADirectory,
    /// No entry can have a name of that length.
    NameTooLong,
    /// No attribute of that name.
    NoData,
    /// Not possible with an inode of this type.
    Invalid,
    /// The image is damaged, uses an unknown feature, or cannot be read.
    Image(Error),
}

impl FsError {
    /// A breach of the format's rules; `what` is one sentence with the values.
    #[must_use]
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::Image(Error::new(Kind::Corrupt, what))
    }

    /// The errno that the caller of the file system gets.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::NotADirectory => libc::ENOTDIR,
            Self::IsADirectory => libc::EISDIR,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::NoData => libc::ENODATA,
            Self::Invalid => libc::EINVAL,
            Self::Image(error) => error.errno(),
        }
    }
}

impl From<Error> for FsError {
    fn from(error: Error) -> Self {
        Self::Image(error)
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such entry"),
            Self::NotADirectory => f.write_str("not a directory"),
            Self::IsADirectory => f.write_str("is a directory"),
            Self::NameTooLong => f.write_str("name too long"),
            Self::NoData => f.write_str("no such attribute"),
            Self::Invalid => f.write_str("not possible with this type of inode"),
            Self::Image(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Image(error) => error.source(),
            _ => None,
        }
    }
}
