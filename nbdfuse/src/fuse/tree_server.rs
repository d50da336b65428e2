//! FUSE requests for a [`FileSystem`]. The kernel's node numbers are the image's inode numbers,
//! but for the root, which is 1.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use nbdserve::Result;

use super::buffers::Buffers;
use super::node_set::NodeSet;
use super::turns::Turns;
use super::{FOREVER, Failures, Opens, Session, configure, file_type, system_time};
use crate::tree::{Attr, DirEntry, FileSystem, FsError, FsResult, Run, TreeOptions};

/// What stat(2) advises; the kernel's own page size is what it reads in.
const BLOCK_SIZE: u32 = 4096;
/// Inode numbers in a read-only image are never used again.
const GENERATION: Generation = Generation(0);
/// Runs looked at in one search for data or a hole, before the answer is cut short: any byte may
/// be called data.
const MAX_SEARCH_STEPS: usize = 1 << 16;

/// The requests of one mounted tree.
pub(crate) struct TreeServer {
    shared: Arc<Shared>,
    turns: Turns,
    opens: Opens,
}

struct Shared {
    fs: Arc<dyn FileSystem>,
    name: String,
    /// Nodes the kernel was told of.
    known: NodeSet,
    buffers: Buffers,
    failures: Failures,
}

impl TreeServer {
    pub(crate) fn serve(
        fs: Arc<dyn FileSystem>,
        fd: OwnedFd,
        opts: &TreeOptions,
    ) -> Result<Session> {
        let loops = Turns::loops_for_this_machine();
        let shared = Arc::new(Shared {
            fs,
            name: opts.name.clone(),
            known: NodeSet::default(),
            buffers: Buffers::default(),
            failures: Failures::default(),
        });
        shared.known.insert(INodeNo::ROOT.0);
        let stale = Arc::clone(&shared);
        let turns = Turns::new(loops);
        let opens = Opens::default();
        let server = Self {
            shared,
            turns,
            opens,
        };
        Session::start(server, fd, loops, move || {
            stale.fs.drop_caches();
            stale.known.to_vec()
        })
    }

    fn run(&self, job: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.turns.run(move || job(&shared));
    }
}

impl Shared {
    /// The image's number of the kernel's node.
    fn ino(&self, node: INodeNo) -> u64 {
        if node == INodeNo::ROOT {
            self.fs.root()
        } else {
            node.0
        }
    }

    /// The attributes of an entry other than `.` and `..`, fit to be a node of the kernel.
    fn entry(&self, ino: u64) -> FsResult<FileAttr> {
        // The first would be a directory within itself, the second the kernel's name for the root.
        if ino == self.fs.root() || ino == INodeNo::ROOT.0 {
            let what = format!("a directory entry leads to inode {ino}, which cannot be in one");
            return Err(FsError::corrupt(what));
        }
        let attr = file_attr(&self.fs.attr(ino)?)?;
        self.known.insert(ino);
        Ok(attr)
    }

    fn errno(&self, what: &str, error: &FsError) -> Errno {
        match error {
            FsError::Image(error) => {
                let what = format!("{}: {what}", self.name);
                self.failures.errno(&what, error)
            }
            other => Errno::from_i32(other.errno()),
        }
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.fs.lookup(self.ino(parent), name.as_bytes());
        match found.and_then(|ino| self.entry(ino)) {
            Ok(attr) => reply.entry(&FOREVER, &attr, GENERATION),
            // Node 0 is "there is none", to be believed as long as any other answer.
            Err(FsError::NotFound) => reply.entry(&FOREVER, &nothing(), GENERATION),
            Err(error) => {
                let shown = nbdserve::error::escape(&name.to_string_lossy());
                reply.error(self.errno(&format!("lookup of {shown}"), &error));
            }
        }
    }

    fn getattr(&self, node: INodeNo, reply: ReplyAttr) {
        let ino = self.ino(node);
        match self.fs.attr(ino).and_then(|attr| file_attr(&attr)) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(error) => reply.error(self.errno(&format!("inode {ino}"), &error)),
        }
    }

    fn read_link(&self, node: INodeNo, reply: ReplyData) {
        let ino = self.ino(node);
        match self.fs.read_link(ino) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.errno(&format!("inode {ino}: link"), &error)),
        }
    }

    fn read(&self, node: INodeNo, offset: u64, size: u32, reply: ReplyData) {
        let ino = self.ino(node);
        self.buffers
            .with(size as usize, |buf| match self.fs.read(ino, offset, buf) {
                Ok(len) => reply.data(&buf[..len]),
                Err(error) => {
                    let what = format!("inode {ino}: read of {size} bytes at {offset}");
                    reply.error(self.errno(&what, &error));
                }
            });
    }

    fn read_dir(&self, node: INodeNo, from: u64, mut reply: ReplyDirectory) {
        let ino = self.ino(node);
        let mut added = false;
        let result = self.fs.read_dir(ino, from, &mut |entry| {
            let kind = self.fs.attr(entry.ino).ok();
            let kind = kind.and_then(|attr| file_type(attr.mode));
            let kind = kind.unwrap_or(FileType::RegularFile);
            let name = OsStr::from_bytes(entry.name);
            let full = reply.add(INodeNo(entry.ino), entry.next, kind, name);
            added |= !full;
            !full
        });
        match result {
            Err(error) if !added => reply.error(self.errno(&format!("directory {ino}"), &error)),
            _ => reply.ok(),
        }
    }

    fn read_dir_plus(&self, node: INodeNo, from: u64, mut reply: ReplyDirectoryPlus) {
        let ino = self.ino(node);
        let mut added = false;
        let result = self.fs.read_dir(ino, from, &mut |entry| {
            let (attr, ttl) = self.plus(entry);
            let name = OsStr::from_bytes(entry.name);
            let full = reply.add(attr.ino, entry.next, name, &ttl, &attr, GENERATION);
            added |= !full;
            !full
        });
        match result {
            // What was read before the damage is given; the damage is met by the next request.
            Err(error) if !added => reply.error(self.errno(&format!("directory {ino}"), &error)),
            _ => reply.ok(),
        }
    }

    /// What to tell of an entry along with its name. An inode that cannot be read does not hide
    /// its name: it is shown with attributes that expire at once, so that whoever wants them asks
    /// and gets the error.
    fn plus(&self, entry: DirEntry<'_>) -> (FileAttr, Duration) {
        let mut unknown = nothing();
        unknown.ino = INodeNo(entry.ino);
        if entry.name == b"." || entry.name == b".." {
            // The kernel takes only number and type from these.
            unknown.kind = FileType::Directory;
            return (unknown, Duration::ZERO);
        }
        match self.entry(entry.ino) {
            Ok(attr) => (attr, FOREVER),
            Err(_) => (unknown, Duration::ZERO),
        }
    }

    fn seek(&self, node: INodeNo, offset: u64, hole: bool) -> FsResult<Option<u64>> {
        let ino = self.ino(node);
        let mut at = offset;
        for _ in 0..MAX_SEARCH_STEPS {
            match self.fs.run_at(ino, at)? {
                Some(run) if run.hole == hole => return Ok(Some(at)),
                Some(Run { end, .. }) if end > at => at = end,
                // The end of the file counts as a hole, but not when asked from there.
                _ => return Ok((hole && at > offset).then_some(at)),
            }
        }
        Ok(Some(if hole { self.fs.attr(ino)?.size } else { at }))
    }

    /// Whether the caller may know of this attribute: trusted ones are root's alone.
    fn may_see(&self, request_uid: u32, name: &[u8]) -> bool {
        request_uid == 0 || !name.starts_with(b"trusted.")
    }

    fn xattr_value(&self, ino: u64, uid: u32, name: &[u8]) -> FsResult<Vec<u8>> {
        if !self.may_see(uid, name) {
            return Err(FsError::NoData);
        }
        self.fs.get_xattr(ino, name)
    }

    fn xattr_names(&self, ino: u64, uid: u32) -> FsResult<Vec<u8>> {
        let mut list = Vec::new();
        for name in self.fs.list_xattr(ino)? {
            if self.may_see(uid, &name) {
                list.extend_from_slice(&name);
                list.push(0);
            }
        }
        Ok(list)
    }

    fn reply_xattr(&self, ino: u64, value: FsResult<Vec<u8>>, size: u32, reply: ReplyXattr) {
        match value {
            // A value longer than u32 says does not come out of an image's blocks.
            Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
            Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(error) => {
                reply.error(self.errno(&format!("inode {ino}: extended attributes"), &error));
            }
        }
    }
}

/// An entry without a node.
fn nothing() -> FileAttr {
    let epoch = system_time(0, 0);
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn file_attr(attr: &Attr) -> FsResult<FileAttr> {
    let kind = file_type(attr.mode).ok_or_else(|| {
        FsError::corrupt(format!(
            "inode {}: mode {:#o} has no type",
            attr.ino, attr.mode
        ))
    })?;
    Ok(FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime.seconds, attr.atime.nanoseconds),
        mtime: system_time(attr.mtime.seconds, attr.mtime.nanoseconds),
        ctime: system_time(attr.ctime.seconds, attr.ctime.nanoseconds),
        crtime: system_time(0, 0),
        kind,
        // Masked to 12 bits.
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    })
}

impl Filesystem for TreeServer {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Attributes come with every listing: what reads a tree (tar, ls -lR, find -newer, cp)
        // asks for them next. Not the automatic choice of the kernel, which stops giving them
        // after the first part of a large directory.
        configure(
            config,
            InitFlags::FUSE_DO_READDIRPLUS
                | InitFlags::FUSE_PARALLEL_DIROPS
                | InitFlags::FUSE_CACHE_SYMLINKS,
        );
        self.opens = Opens::of(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.run(move |shared| shared.lookup(parent, &name, reply));
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(move |shared| shared.getattr(node, reply));
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        self.run(move |shared| shared.read_link(node, reply));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.opens.reply_file(reply);
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(move |shared| shared.read(node, offset, size, reply));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.opens.reply_dir(reply);
    }

    fn readdir(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.run(move |shared| shared.read_dir(node, offset, reply));
    }

    fn readdirplus(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.run(move |shared| shared.read_dir_plus(node, offset, reply));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let stat = self.shared.fs.statfs();
        reply.statfs(
            stat.blocks,
            stat.free,
            stat.available,
            stat.files,
            stat.files_free,
            stat.block_size,
            stat.name_max,
            stat.block_size,
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let (uid, name) = (request.uid(), name.to_owned());
        self.run(move |shared| {
            let ino = shared.ino(node);
            let value = shared.xattr_value(ino, uid, name.as_bytes());
            shared.reply_xattr(ino, value, size, reply);
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let uid = request.uid();
        self.run(move |shared| {
            let ino = shared.ino(node);
            let names = shared.xattr_names(ino, uid);
            shared.reply_xattr(ino, names, size, reply);
        });
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // Everyone whom the kernel lets in may do everything that a read-only mount allows.
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.run(move |shared| match shared.seek(node, offset, hole) {
            // Beyond i64::MAX there are no files.
            Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(shared.errno(&format!("seek in node {node}"), &error)),
        });
    }
}
