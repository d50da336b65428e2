//! A local file or block device.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{Advice, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::lock;
use crate::error::shell;
use crate::{
    ByteRange, Device, Done, Error, ExtentFlags, Extents, Geometry, Kind, Result, WriteFeatures,
    Writer, ZeroOpts,
};

/// A hint makes the kernel start reading at most this much: it queues the requests before it
/// returns.
const LONGEST_HINT: u64 = 8 << 20;

/// What a source is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading. A regular file must not change meanwhile.
    ReadOnly,
    /// Reading and writing.
    Write,
}

/// A regular file or a block device, opened once. It is locked against a second writer as long as
/// a copy of its descriptor is open, in whatever process.
#[derive(Debug)]
pub struct File {
    fd: OwnedFd,
    /// As the user wrote it.
    name: String,
    mode: OpenMode,
    /// Only [`Writer::grow`] changes it.
    size: AtomicU64,
    /// Set for regular files.
    stamp: Option<Stamp>,
    preferred_block: u32,
    /// One past the last byte that the kernel was told of.
    told: AtomicU64,
    /// Why the file is no longer the one that was opened: every later read fails with it.
    changed: OnceLock<Error>,
    /// Why written data may be lost: the kernel reports it to one fdatasync only.
    unsynced: OnceLock<Error>,
}

/// A file system notes the time of a change in steps of the kernel's clock, so long at most.
const CLOCK_STEP: Duration = Duration::from_millis(20);
/// The steps of file systems that keep whole seconds, or every second one.
const COARSE_STEP: Duration = Duration::from_secs(2);

/// What tells that a file was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: i64,
    mtime: i64,
    mtime_nsec: i64,
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            size: stat.st_size,
            mtime: stat.st_mtime,
            // At most 999 999 999; the type differs between the architectures.
            mtime_nsec: stat.st_mtime_nsec as i64,
        }
    }
}

impl File {
    /// Opens `path`, which may be a symbolic link. Never waits for a FIFO's other end.
    ///
    /// # Errors
    /// `NotThisFormat` for what cannot hold an image (a directory, a FIFO), `Denied` when the
    /// rights are missing or another process uses the image in a way that does not go together
    /// with `mode`, else `Io`.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self> {
        let name = path.display().to_string();
        Self::open_by(&name, mode, |flags| {
            // A child that another thread has just forked holds a device, as it holds locks.
            let exclusive = flags.contains(OFlags::EXCL);
            lock::repeat(
                || retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())),
                |opened| exclusive && matches!(opened, Err(Errno::BUSY)),
            )
            .map_err(|errno| Self::cannot_open(&name, errno))
        })
    }

    /// Opens what `open` opens with the flags that it is given, each time the same; `name` is for
    /// messages.
    ///
    /// # Errors
    /// As [`Self::open`], and those of `open`.
    pub(crate) fn open_by(
        name: &str,
        mode: OpenMode,
        open: impl Fn(OFlags) -> Result<OwnedFd>,
    ) -> Result<Self> {
        let cannot_open = |errno| Self::cannot_open(name, errno);
        // Opening some kinds of file has effects (a tape is rewound), so look first. What counts
        // is the look at the open file below.
        let seen = open(OFlags::PATH | OFlags::CLOEXEC)?;
        let stat = rustix::fs::fstat(&seen).map_err(cannot_open)?;
        let found = FileType::from_raw_mode(stat.st_mode);
        check_type(found, name)?;
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        flags |= match mode {
            OpenMode::ReadOnly => OFlags::RDONLY,
            // Exclusive: not while it is mounted, or part of something that is.
            OpenMode::Write if found == FileType::BlockDevice => OFlags::RDWR | OFlags::EXCL,
            OpenMode::Write => OFlags::RDWR,
        };
        let fd = open(flags)?;
        // NONBLOCK was for the opening only.
        rustix::fs::fcntl_getfl(&fd)
            .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK))
            .map_err(cannot_open)?;
        Self::from_fd(fd, name, mode)
    }

    /// What the system says when it does not open `name`.
    pub(crate) fn cannot_open(name: &str, errno: Errno) -> Error {
        let error = Error::io(format!("cannot open {name}"), errno);
        match errno {
            Errno::BUSY => {
                let name = shell(name);
                error.hint(format!(
                    "it is mounted or in use; findmnt --source {name} and lsblk {name} show how"
                ))
            }
            _ => error,
        }
    }

    /// Takes over an open file, from another process say; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`]; also `ReadOnly` when the descriptor does not allow what `mode` asks.
    pub fn from_fd(fd: OwnedFd, name: &str, mode: OpenMode) -> Result<Self> {
        let cannot_use = |errno: Errno| Error::io(format!("cannot use {name}"), errno);
        let stat = rustix::fs::fstat(&fd).map_err(cannot_use)?;
        let found = FileType::from_raw_mode(stat.st_mode);
        check_type(found, name)?;
        let access = rustix::fs::fcntl_getfl(&fd).map_err(cannot_use)? & OFlags::RWMODE;
        if mode == OpenMode::Write && access != OFlags::RDWR {
            return Err(Error::new(
                Kind::ReadOnly,
                format!("{name} is not open for writing"),
            ));
        }
        lock::take(fd.as_fd(), name, mode)?;
        let regular = found == FileType::RegularFile;
        let size = if regular {
            u64::try_from(stat.st_size).unwrap_or(0)
        } else {
            rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(cannot_use)?
        };
        let block = u32::try_from(stat.st_blksize).unwrap_or(4096);
        Ok(Self {
            fd,
            name: name.to_owned(),
            mode,
            size: AtomicU64::new(size),
            stamp: regular.then(|| Stamp::of(&stat)),
            preferred_block: block.clamp(512, 1 << 20).next_power_of_two(),
            told: AtomicU64::new(0),
            changed: OnceLock::new(),
            unsynced: OnceLock::new(),
        })
    }

    /// Device, inode, size and times. `None` for a block device, a file that is open for writing,
    /// and one that was changed so lately that a later change might not be told from it.
    fn times_and_place(&self) -> Option<String> {
        let then = self.stamp.filter(|_| self.mode == OpenMode::ReadOnly)?;
        self.identity_now(Some(then))
    }

    /// As [`Device::source_identity`], for a file that is open for writing too: what it is at this
    /// moment, which holds until it is written to.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        self.stamp.and_then(|_| self.identity_now(None))
    }

    /// A file that was changed a moment ago is waited for, so that a later change has another time.
    fn identity_now(&self, then: Option<Stamp>) -> Option<String> {
        for _ in 0..2 {
            let stat = rustix::fs::fstat(&self.fd).ok()?;
            if then.is_some_and(|then| Stamp::of(&stat) != then) {
                return None;
            }
            let whole = stat.st_ctime_nsec == 0 && stat.st_mtime_nsec == 0;
            let step = if whole { COARSE_STEP } else { CLOCK_STEP };
            let changed = Duration::new(
                u64::try_from(stat.st_ctime).ok()?,
                u32::try_from(stat.st_ctime_nsec).ok()?,
            );
            // An error when it is of the future: then times say nothing.
            let age = UNIX_EPOCH.checked_add(changed)?.elapsed().ok()?;
            if age > step {
                return Some(format!(
                    "file\ndevice {}\ninode {}\nsize {}\nmodified {}.{:09}\nchanged {}.{:09}",
                    stat.st_dev,
                    stat.st_ino,
                    stat.st_size,
                    stat.st_mtime,
                    stat.st_mtime_nsec,
                    stat.st_ctime,
                    stat.st_ctime_nsec
                ));
            }
            if step > CLOCK_STEP {
                return None;
            }
            std::thread::sleep(step);
        }
        None
    }

    /// The name it was opened with.
    #[must_use]
    pub fn display_name(&self) -> &str {
        &self.name
    }

    /// Whether it is a block device, not a regular file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.stamp.is_none()
    }

    /// A second handle on the same open file: the same locks, the same rights.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|error| Error::io(format!("cannot duplicate {}", self.name), error))?;
        Self::from_fd(fd, &self.name, self.mode)
    }

    /// The open file, to be passed to another process; its locks go along.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// What it was opened for.
    #[must_use]
    pub fn mode(&self) -> OpenMode {
        self.mode
    }

    fn failed(&self, what: &str, range: ByteRange, cause: impl Into<io::Error>) -> Error {
        let name = &self.name;
        Error::io(format!("cannot {what} {range} of {name}"), cause)
    }

    fn check_not_changed(&self) -> Result<()> {
        self.changed
            .get()
            .map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Looks whether the file is still the one that was opened. Costs one system call that touches
    /// no disk, so it is done after each read: what a reader gets was the old content.
    fn look_for_change(&self) -> Result<()> {
        let (Some(then), OpenMode::ReadOnly) = (self.stamp, self.mode) else {
            return Ok(());
        };
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|errno| Error::io(format!("cannot look at {}", self.name), errno))?;
        let now = Stamp::of(&stat);
        if now == then {
            return Ok(());
        }
        let how = if now.size == then.size {
            "was written to".to_owned()
        } else {
            format!("went from {} to {} bytes", then.size, now.size)
        };
        Err(self.has_changed(&how))
    }

    /// Remembers the first reason and gives it to every later reader.
    fn has_changed(&self, how: &str) -> Error {
        let first = self.changed.get_or_init(|| {
            let error = Error::new(
                Kind::Changed,
                format!("{} {how} after it was opened", self.name),
            )
            .hint("unmount it and mount it again");
            tracing::error!("{error}");
            error
        });
        first.clone()
    }

    /// Makes a range zero or a hole. Declined when the file system or device cannot.
    fn fallocate(&self, what: &str, mode: FallocateFlags, range: ByteRange) -> Result<Done> {
        let mode = mode | FallocateFlags::KEEP_SIZE;
        let call = || rustix::fs::fallocate(&self.fd, mode, range.start(), range.len());
        match retry_on_intr(call) {
            Ok(()) => Ok(Done::Yes),
            // EINVAL: not aligned to the sectors of a block device.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(Done::Declined),
            Err(errno) => Err(self.failed(what, range, errno)),
        }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Device for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn parts(&self) -> Option<usize> {
        Some(1)
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            preferred_block: self.preferred_block,
            ..Geometry::bytes(self.size.load(Ordering::Acquire))
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_not_changed()?;
        let range = ByteRange::of(buf, offset);
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let read = retry_on_intr(|| rustix::io::pread(&self.fd, &mut buf[done..], at))
                .map_err(|errno| self.failed("read", range, errno))?;
            if read == 0 {
                return Err(self.has_changed(&format!("lost the bytes from {at} on")));
            }
            done += read;
        }
        self.look_for_change()
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        self.check_not_changed()?;
        // A block device knows no holes.
        if self.is_block_device() {
            return Ok(());
        }
        while !out.is_full() {
            let at = out.next_offset();
            // The position that this sets is used by nobody.
            let data = match rustix::fs::seek(&self.fd, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => self.size.load(Ordering::Acquire),
                // The file system cannot tell.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(()),
                Err(errno) => return Err(self.failed("find the holes in", range, errno)),
            };
            if data > at {
                out.push_until(data, ExtentFlags::HOLE);
                continue;
            }
            let hole = match rustix::fs::seek(&self.fd, SeekFrom::Hole(at)) {
                Ok(hole) if hole > at => hole,
                // Changed between the two calls, or not told: data up to the end.
                Ok(_) | Err(Errno::NXIO) => range.end(),
                Err(errno) => return Err(self.failed("find the holes in", range, errno)),
            };
            out.push_until(hole, ExtentFlags::DATA);
        }
        self.look_for_change()
    }

    fn writer(&self) -> Option<&dyn Writer> {
        match self.mode {
            OpenMode::ReadOnly => None,
            OpenMode::Write => Some(self),
        }
    }

    fn will_need(&self, range: ByteRange) {
        let end = range.end().min(range.start().saturating_add(LONGEST_HINT));
        // Readers who go forward say again and again what lies before them, and the kernel would look for
        // each of its pages.
        let told = self.told.swap(end, Ordering::Relaxed);
        let start = if (range.start()..=end).contains(&told) {
            told
        } else {
            range.start()
        };
        if let Some(len) = NonZeroU64::new(end.saturating_sub(start)) {
            // A hint: what it cannot do, the read will.
            let _ = rustix::fs::fadvise(&self.fd, start, Some(len), Advice::WillNeed);
        }
    }

    fn source_identity(&self) -> Option<String> {
        self.times_and_place()
    }

    fn close(&self) -> Result<()> {
        match self.mode {
            OpenMode::ReadOnly => Ok(()),
            OpenMode::Write => self.flush(),
        }
    }
}

impl Writer for File {
    fn features(&self) -> WriteFeatures {
        WriteFeatures {
            fua: false,
            zero: true,
            trim: true,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let written = retry_on_intr(|| rustix::io::pwrite(&self.fd, &buf[done..], at))
                .map_err(|errno| self.failed("write", range, errno))?;
            if written == 0 {
                let nothing = io::Error::from(io::ErrorKind::WriteZero);
                return Err(self.failed("write", range, nothing));
            }
            done += written;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if let Some(error) = self.unsynced.get() {
            return Err(error.clone());
        }
        retry_on_intr(|| rustix::fs::fdatasync(&self.fd)).map_err(|errno| {
            let what = format!("cannot store what was written to {}", self.name);
            self.unsynced.get_or_init(|| Error::io(what, errno)).clone()
        })
    }

    fn zero(&self, range: ByteRange, opts: ZeroOpts) -> Result<Done> {
        if opts.may_trim && self.fallocate("zero", FallocateFlags::PUNCH_HOLE, range)? == Done::Yes
        {
            return Ok(Done::Yes);
        }
        // On a block device this may be carried out by writing zeroes.
        if opts.fast_only && self.is_block_device() {
            return Ok(Done::Declined);
        }
        self.fallocate("zero", FallocateFlags::ZERO_RANGE, range)
    }

    fn grow(&self, size: u64) -> Result<Done> {
        if self.is_block_device() {
            return Ok(Done::Declined);
        }
        lock::take_resize(self.fd.as_fd(), &self.name)?;
        let failed = |errno: Errno| {
            let what = format!("cannot make {} {size} bytes long", self.name);
            Error::io(what, errno)
        };
        // Somebody else may have made it longer, behind the lock: nothing is cut off.
        let stat = rustix::fs::fstat(&self.fd).map_err(failed)?;
        if u64::try_from(stat.st_size).unwrap_or(0) < size {
            retry_on_intr(|| rustix::fs::ftruncate(&self.fd, size)).map_err(failed)?;
        }
        self.size.store(size, Ordering::Release);
        Ok(Done::Yes)
    }

    fn trim(&self, range: ByteRange, _fua: bool) -> Result<()> {
        // Not being able to give space back is no failure.
        let _ = self.fallocate("trim", FallocateFlags::PUNCH_HOLE, range)?;
        Ok(())
    }
}

/// Refuses what cannot hold an image, by name.
fn check_type(found: FileType, name: &str) -> Result<()> {
    let what = match found {
        FileType::RegularFile | FileType::BlockDevice => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO, which has no positions to read at",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        _ => "no file",
    };
    Err(Error::new(
        Kind::NotThisFormat,
        format!("{name} is {what}; an image is a regular file or a block device"),
    ))
}
