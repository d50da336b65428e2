//! A file system, read in this process, as a mounted tree.

mod cache;
mod error;
pub mod ext4;

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nbdserve::{Error, Kind, Volume};

use crate::Session;
use crate::fuse::TreeServer;
pub use error::{FsError, FsResult};

/// A read-only file system, addressed by its own inode numbers.
///
/// Calls come from many threads at once. An implementation takes every byte below it for hostile:
/// no call may panic, run without end, or take memory that only the image asked for. The answers
/// for one inode never change, so that callers may keep them.
pub trait FileSystem: Send + Sync + Debug {
    /// The inode of the top directory.
    fn root(&self) -> u64;

    /// The inode called `name` in directory `dir`. `.` and `..` are not asked for.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or that of the image.
    fn lookup(&self, dir: u64, name: &[u8]) -> FsResult<u64>;

    /// The attributes of inode `ino`, as the image has them.
    ///
    /// # Errors
    /// That of the image.
    fn attr(&self, ino: u64) -> FsResult<Attr>;

    /// The entries of directory `dir` from position `from` on, `.` and `..` among them, until
    /// `each` says `false` or they end. 0 is the first position; [`DirEntry::next`] are the
    /// others, which stay valid for the life of the file system.
    ///
    /// # Errors
    /// `NotADirectory`, or that of the image. Entries before the damage are given first.
    fn read_dir(
        &self,
        dir: u64,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> FsResult<()>;

    /// The target of symbolic link `ino`.
    ///
    /// # Errors
    /// `Invalid` when it is none, or that of the image.
    fn read_link(&self, ino: u64) -> FsResult<Vec<u8>>;

    /// Fills `buf` from byte `offset` of regular file `ino` and says how many bytes that were:
    /// all, unless the file ends before.
    ///
    /// # Errors
    /// `IsADirectory`, `Invalid`, or that of the image; `buf` is then undefined.
    fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> FsResult<usize>;

    /// What lies at byte `offset` of regular file `ino`: stored data or a hole, and where that
    /// ends (at most the file's size). `None` at the end of the file and beyond.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn run_at(&self, ino: u64, offset: u64) -> FsResult<Option<Run>>;

    /// The full names of the extended attributes of `ino`.
    ///
    /// # Errors
    /// That of the image.
    fn list_xattr(&self, ino: u64) -> FsResult<Vec<Vec<u8>>>;

    /// The value of the extended attribute `name` of `ino`, in the form that getxattr(2) gives.
    ///
    /// # Errors
    /// `NoData`, or that of the image.
    fn get_xattr(&self, ino: u64, name: &[u8]) -> FsResult<Vec<u8>>;

    /// Figures of the whole.
    fn statfs(&self) -> StatFs;

    /// Forgets what was read for speed: bytes below have turned out to be wrong.
    fn drop_caches(&self);
}

/// What stat(2) says of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The number in the image.
    pub ino: u64,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the encoding of `new_encode_dev` of the kernel: minor
    /// in bits 0..8 and 20..32, major in bits 8..20.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated, in units of 512 bytes.
    pub blocks: u64,
    /// Time of last access.
    pub atime: Time,
    /// Time of last modification.
    pub mtime: Time,
    /// Time of last change of the inode.
    pub ctime: Time,
}

/// A time, counted from 1970 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds to be added.
    pub nanoseconds: u32,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// What it names.
    pub ino: u64,
    /// Any bytes but NUL and `/`.
    pub name: &'a [u8],
    /// The position behind it.
    pub next: u64,
}

/// A part of a file that is stored or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it ends, in bytes from the start of the file.
    pub end: u64,
    /// Nothing is stored; it reads as zeroes.
    pub hole: bool,
}

/// What statfs(2) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks for data.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Free ones that ordinary users may take.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub files_free: u64,
    /// Longest name, in bytes.
    pub name_max: u32,
}

/// How a tree is served.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// What it is called in the log.
    pub name: String,
}

/// Serves `fs` over `fd`, a connection mounted read-only on a directory. Returns when the tree is
/// usable.
///
/// Whoever the kernel lets in may read everything: owners and modes are shown, not enforced.
///
/// # Errors
/// When the connection ends at once, or threads cannot be started.
pub fn serve_tree(
    fs: Arc<dyn FileSystem>,
    fd: OwnedFd,
    opts: &TreeOptions,
) -> nbdserve::Result<Session> {
    TreeServer::serve(fs, fd, opts)
}

/// What works with every file system.
const OTHER_WAYS: &str = "show the image as one file with --fuse, or mount it as root";

/// Opens the file system of `kind`, as probing names it (`ext4`, `xfs`), on `volume`.
///
/// # Errors
/// `Unsupported` for a kind that cannot be read here, else what opening it says.
pub fn open(kind: &str, volume: Volume) -> nbdserve::Result<Arc<dyn FileSystem>> {
    match kind {
        "ext2" | "ext3" | "ext4" => match ext4::Ext4::open(volume) {
            Ok(fs) => Ok(Arc::new(fs)),
            Err(error) if error.kind() == Kind::Unsupported => Err(error.hint(OTHER_WAYS)),
            Err(error) => Err(error),
        },
        other => Err(Error::new(
            Kind::Unsupported,
            format!("{other} cannot be read without the kernel yet: only ext2, ext3 and ext4"),
        )
        .hint(OTHER_WAYS)),
    }
}

/// Whether the top directory looks like that of an operating system: it has `etc` and `usr`.
#[must_use]
pub fn looks_like_root(fs: &dyn FileSystem) -> bool {
    let is_dir = |name: &[u8]| {
        let found = fs.lookup(fs.root(), name).and_then(|ino| fs.attr(ino));
        found.is_ok_and(|attr| attr.mode & libc::S_IFMT == libc::S_IFDIR)
    };
    is_dir(b"etc") && is_dir(b"usr")
}
