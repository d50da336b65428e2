//! What a cow file is kept on: a file, or in tests something that forgets what was not synced.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};
use rustix::io::Errno;

use crate::error::shell;
use crate::{ByteRange, Error, Kind, Result};

/// A lock that is held for longer is somebody's.
const PATIENCE: Duration = Duration::from_millis(300);

/// Bytes that grow, with holes. Called by many threads at once.
pub trait Medium: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only where it ends.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;

    /// Makes `range` a hole, where that is possible.
    fn punch(&self, range: ByteRange);

    /// The first byte from `offset` on that is not in a hole; `None` when there is none.
    ///
    /// # Errors
    /// What the system says.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
}

/// A file on disk, locked against other users of it as long as it is open.
#[derive(Debug)]
pub(super) struct OnDisk(File);

impl OnDisk {
    /// Opens the file, making an empty one where there is none and `create` says so.
    ///
    /// # Errors
    /// `Denied` when it is in use or the rights are missing, `NotThisFormat` when it is no regular
    /// file, else what the system says.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self> {
        let shown = path.display();
        // Not waiting for a FIFO's other end; a regular file does not care.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
            .map_err(|error| Error::io(format!("cannot open {shown}"), error))?;
        let meta = file.metadata();
        let meta = meta.map_err(|error| Error::io(format!("cannot look at {shown}"), error))?;
        if !meta.is_file() {
            let what = format!("{shown} is no regular file");
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        match lock(&file) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let what = format!("{shown} is in use by another mount");
                return Err(Error::new(Kind::Denied, what).hint(format!(
                    "loopmount --list shows what is mounted; fuser -v {} names the process",
                    shell(&shown.to_string())
                )));
            }
            // A file system without locks.
            Err(error) => tracing::info!("{shown}: opened without a lock: {error}"),
        }
        if meta.len() == 0 {
            sync_folder(path);
        }
        Ok(Self(file))
    }
}

/// Takes the lock. A process that is just being started has a copy of every open file for a moment.
fn lock(file: &File) -> Result<(), Errno> {
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Makes the name of a new file durable, as far as the file system can.
fn sync_folder(path: &Path) {
    let parent = path.parent().filter(|path| !path.as_os_str().is_empty());
    if let Ok(folder) = File::open(parent.unwrap_or(Path::new("."))) {
        let _ = folder.sync_all();
    }
}

impl Medium for OnDisk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match self.0.read_at(rest, at) {
                Ok(0) => break,
                Ok(read) => done = done.saturating_add(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        // With the length, which is needed to read it back.
        self.0.sync_data()
    }

    fn punch(&self, range: ByteRange) {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // A file system without holes keeps the space.
        let _ = rustix::fs::fallocate(&self.0, mode, range.start(), range.len());
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // The file system cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }
}
