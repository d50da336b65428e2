//! An unlinked temp file for decoded bytes that are too many for memory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::{Error, Kind, Result};

/// How the user gives temp files another place.
const HINT: &str = "give another folder with --temp-dir=DIR or TMPDIR=DIR";
/// Of a file system, one part in this many is left to others.
const LEAVE_PART: u64 = 20;
/// No more than this is left to others.
const LEAVE_MOST: u64 = 1 << 30;
/// Free space is looked at each time this much was written.
const LOOK_EACH: u64 = 4 << 20;

/// A sparse file without a name, mode 0600, that grows up to a limit and always leaves some of
/// its file system free.
#[derive(Debug)]
pub(crate) struct TempFile {
    file: File,
    folder: PathBuf,
    limit: u64,
    written: AtomicU64,
}

impl TempFile {
    /// Creates a file in `folder` that takes at most `limit` bytes of stored (not zero) data.
    ///
    /// # Errors
    /// What the operating system says, with a hint.
    pub(crate) fn create(folder: &Path, limit: u64) -> Result<Self> {
        let file = open_unlinked(folder).map_err(|error| {
            let what = format!("cannot create a temp file in {}", folder.display());
            Error::io(what, error).hint(HINT)
        })?;
        Ok(Self {
            file,
            folder: folder.to_owned(),
            limit,
            written: AtomicU64::new(0),
        })
    }

    /// Bytes that may be stored in addition to those that are.
    ///
    /// # Errors
    /// When the file system does not say.
    pub(crate) fn room(&self) -> Result<u64> {
        let within = self.limit.saturating_sub(self.written());
        Ok(self.free()?.min(within))
    }

    /// The file itself, for whoever keeps to [`Self::room`] without help.
    pub(crate) fn as_file(&self) -> &File {
        &self.file
    }

    /// The file itself, of which no more account is kept.
    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Bytes that the file system has for us.
    fn free(&self) -> Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.file).map_err(|error| {
            let what = format!("cannot see the free space of {}", self.folder.display());
            Error::io(what, error)
        })?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let leave = (total / LEAVE_PART).min(LEAVE_MOST);
        Ok(free.saturating_sub(leave))
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The error for data that does not fit.
    pub(crate) fn no_space(&self, what: &str) -> Error {
        Error::new(
            Kind::NoSpace,
            format!("{what}: no space in {}", self.folder.display()),
        )
        .hint(HINT)
    }

    /// Stores `bytes` at `offset`.
    ///
    /// # Errors
    /// `NoSpace` before the limit is passed or the file system is full.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let len = bytes.len() as u64;
        let before = self.written.fetch_add(len, Ordering::Relaxed);
        let look = before / LOOK_EACH != before.saturating_add(len) / LOOK_EACH || before == 0;
        let refused = before.saturating_add(len) > self.limit || (look && self.free()? < len);
        let result = if refused {
            Err(self.no_space(&format!("{before} decoded bytes are stored, more must be")))
        } else {
            self.file.write_all_at(bytes, offset).map_err(|error| {
                let folder = self.folder.display();
                let what = format!("cannot store decoded bytes at {offset} in {folder}");
                Error::io(what, error).hint(HINT)
            })
        };
        if result.is_err() {
            self.written.fetch_sub(len, Ordering::Relaxed);
        }
        result
    }

    /// Reads back what was stored.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| {
            let folder = self.folder.display();
            let what = format!("cannot read decoded bytes at {offset} back from {folder}");
            Error::io(what, error)
        })
    }
}

fn open_unlinked(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(File::from(fd)),
        // Not every file system has unnamed files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            open_then_unlink(folder)
        }
        Err(error) => Err(error.into()),
    }
}

/// In a private folder with a name that was not there before, so that the file's name can be
/// removed without a race with anyone.
fn open_then_unlink(folder: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..100 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let private = folder.join(format!("nbdserve-{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&private) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        }
        let path = private.join("decoded");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir(&private);
        return file;
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn both_ways_give_a_private_file_without_a_name() {
        let folder = tempfile::tempdir().unwrap();
        for open in [open_unlinked, open_then_unlink] {
            let file = open(folder.path()).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!((meta.nlink(), meta.mode() & 0o777), (0, 0o600));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn the_limit_refuses_and_keeps_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = TempFile::create(folder.path(), 8).unwrap();
        file.write_at(b"abcdef", 1 << 30).unwrap();
        let error = file.write_at(b"ghi", 0).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(file.room().unwrap(), 2);
        let mut back = [0; 6];
        file.read_at(&mut back, 1 << 30).unwrap();
        assert_eq!(&back, b"abcdef");
    }

    #[test]
    fn a_full_file_system_is_no_space_and_not_an_io_error() {
        let full = TempFile {
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            folder: PathBuf::from("/dev"),
            limit: u64::MAX,
            written: AtomicU64::new(0),
        };
        let error = full.write_at(b"abc", 0).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.report().hint.is_some());
        assert_eq!(full.written(), 0);
    }

    #[test]
    fn a_missing_folder_is_named_with_a_hint() {
        let error = TempFile::create(Path::new("/nonexistent/folder"), 8).unwrap_err();
        let report = error.report();
        assert!(report.what.contains("/nonexistent/folder"), "{report}");
        assert!(report.hint.is_some());
    }
}
