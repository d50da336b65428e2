//! FUSE requests for an [`Image`] that is the root of its mount.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nbdserve::Result;

use super::buffers::Buffers;
use super::turns::Turns;
use super::{FOREVER, Failures, Opens, Session, configure};
use crate::file::{FileOptions, Image, Whence};

/// The block size that st_blocks counts in, by POSIX.
const STAT_BLOCK: u64 = 512;
/// What stat(2) advises, and what statfs(2) counts in.
const BLOCK_SIZE: u32 = 4096;
/// Longest name, as statfs(2) says it.
const NAME_MAX: u32 = 255;
/// File systems above each other that the kernel lets a file be passed through.
const STACK_DEPTH: u32 = 2;
/// Attributes of a file that may be written change with every write.
const WRITABLE_TTL: Duration = Duration::from_secs(1);

/// The requests of one mounted file.
pub(crate) struct FileServer {
    shared: Arc<Shared>,
    turns: Turns,
    opens: Opens,
}

struct Shared {
    image: Image,
    opts: FileOptions,
    /// Time of last modification, in nanoseconds since 1970.
    mtime: AtomicU64,
    /// Bytes allocated of a file that cannot change, once asked for.
    allocated: OnceLock<u64>,
    buffers: Buffers,
    failures: Failures,
    /// The kernel's handle on [`FileOptions::backing`], asked for by the first open; `None` when
    /// it refused. All opens must agree, so the answer stays.
    passthrough: OnceLock<Option<BackingId>>,
}

impl FileServer {
    pub(crate) fn serve(image: Image, fd: OwnedFd, opts: &FileOptions) -> Result<Session> {
        let loops = Turns::loops_for_this_machine();
        let server = Self {
            shared: Arc::new(Shared {
                image,
                mtime: AtomicU64::new(nanoseconds(opts.mtime)),
                opts: opts.clone(),
                allocated: OnceLock::new(),
                buffers: Buffers::default(),
                failures: Failures::default(),
                passthrough: OnceLock::new(),
            }),
            turns: Turns::new(loops),
            opens: Opens::default(),
        };
        Session::start(server, fd, loops, || vec![INodeNo::ROOT.0])
    }

    fn run(&self, job: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.turns.run(move || job(&shared));
    }
}

impl Shared {
    fn attr(&self) -> FileAttr {
        let writable = self.image.is_writable();
        let allocated = if writable {
            self.image.size()
        } else {
            *self.allocated.get_or_init(|| self.image.allocated())
        };
        let mtime = UNIX_EPOCH + Duration::from_nanos(self.mtime.load(Ordering::Relaxed));
        let forbidden = if writable { 0o7000 } else { 0o7222 };
        FileAttr {
            ino: INodeNo::ROOT,
            size: self.image.size(),
            blocks: allocated.div_ceil(STAT_BLOCK),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind: FileType::RegularFile,
            perm: self.opts.permissions & 0o7777 & !forbidden,
            nlink: 1,
            uid: self.opts.uid,
            gid: self.opts.gid,
            rdev: 0,
            blksize: BLOCK_SIZE,
            flags: 0,
        }
    }

    fn reply_attr(&self, reply: ReplyAttr) {
        let ttl = if self.image.is_writable() && !self.opts.under_device {
            WRITABLE_TTL
        } else {
            FOREVER
        };
        reply.attr(&ttl, &self.attr());
    }

    fn read(&self, offset: u64, size: u32, reply: ReplyData) {
        let len = self.image.clip(offset, size as usize);
        match self.image.lend(offset, len) {
            Ok(Some(lent)) => return reply.data(&lent),
            Ok(None) => {}
            Err(error) => return reply.error(self.report("read", &error)),
        }
        self.buffers
            .with(len, |buf| match self.image.read(buf, offset) {
                Ok(()) => reply.data(buf),
                Err(error) => reply.error(self.report("read", &error)),
            });
    }

    fn write(&self, offset: u64, data: &[u8], reply: ReplyWrite) {
        match self.image.write(data, offset) {
            Ok(written) => {
                self.touch(SystemTime::now());
                // At most data.len(), which came from a u32.
                reply.written(written as u32);
            }
            Err(error) => reply.error(self.report("write", &error)),
        }
    }

    fn reply_empty(&self, what: &str, result: Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.report(what, &error)),
        }
    }

    /// The file that the kernel may read by itself, registered with it at the first call.
    fn backing(&self, reply: &ReplyOpen) -> Option<&BackingId> {
        let file = self.opts.backing.as_ref()?;
        let id = self
            .passthrough
            .get_or_init(|| match reply.open_backing(file) {
                Ok(id) => Some(id),
                Err(error) => {
                    tracing::debug!("{}: no passthrough: {error}", self.opts.name);
                    None
                }
            });
        id.as_ref()
    }

    fn touch(&self, now: SystemTime) {
        self.mtime.store(nanoseconds(now), Ordering::Relaxed);
    }

    fn report(&self, what: &str, error: &nbdserve::Error) -> Errno {
        let what = format!("{}: {what}", self.opts.name);
        self.failures.errno(&what, error)
    }
}

impl Filesystem for FileServer {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let backed = self.shared.opts.backing.is_some() && !self.shared.image.is_writable();
        let supported = config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH);
        if backed && supported {
            configure(config, InitFlags::FUSE_PASSTHROUGH);
            // The most there is: the backing may itself lie on an overlay.
            let _ = config.set_max_stack_depth(STACK_DEPTH);
        } else {
            configure(config, InitFlags::empty());
            let _ = self.shared.passthrough.set(None);
        }
        self.opens = Opens::of(config);
        Ok(())
    }

    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        // Counting allocated bytes asks the image.
        self.run(move |shared| shared.reply_attr(reply));
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // An image has one size and one owner. A program that opens its target with O_TRUNC is
        // told so here, before it has lost anything.
        let resizes = size.is_some_and(|size| size != self.shared.image.size());
        if resizes || mode.is_some() || uid.is_some() || gid.is_some() {
            reply.error(Errno::EPERM);
            return;
        }
        match mtime {
            Some(TimeOrNow::SpecificTime(time)) => self.shared.touch(time),
            Some(TimeOrNow::Now) => self.shared.touch(SystemTime::now()),
            None => {}
        }
        self.run(move |shared| shared.reply_attr(reply));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.shared.image.is_writable() {
            let flags = FopenFlags::FOPEN_KEEP_CACHE
                | FopenFlags::FOPEN_NOFLUSH
                | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            reply.opened(FileHandle(0), flags);
        } else if let Some(id) = self.shared.backing(&reply) {
            reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, id);
        } else {
            self.opens.reply_file(reply);
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(move |shared| shared.read(offset, size, reply));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let shared = Arc::clone(&self.shared);
        if let Some(turn) = self.turns.enter() {
            turn.run(|| shared.write(offset, data, reply));
        } else {
            let data = data.to_vec();
            let job = move || shared.write(offset, &data, reply);
            self.turns.hand_over(Box::new(job));
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back that close(2) could report: every write was answered with its
        // result. ENOSYS spares the next ones.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.run(move |shared| {
            let result = shared.image.sync();
            shared.reply_empty("sync", result, reply);
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.run(move |shared| {
            let result = shared.image.allocate(offset, length, mode);
            if result.is_ok() {
                shared.touch(SystemTime::now());
            }
            shared.reply_empty("fallocate", result, reply);
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.run(move |shared| match shared.image.seek(offset, whence) {
            // Beyond i64::MAX there are no files.
            Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(shared.report("seek", &error)),
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.shared.image.size().div_ceil(u64::from(BLOCK_SIZE));
        reply.statfs(blocks, 0, 0, 1, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &std::ffi::OsStr,
        _: u32,
        reply: fuser::ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

/// Nanoseconds since 1970, at least 0; the range ends in 2554.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
