//! ext2, ext3 and ext4, read-only.
//!
//! Crate `fs_ext4` (rust-fs-ext4) reads the superblock, the group descriptors and the inodes,
//! checks their checksums, and replays a journal that needs it, in memory. Its reading of files
//! goes block by block and its listing of directories knows no ext2, so what lies behind an inode
//! is read here: block runs (`map`), directories (`dir`), extended attributes (`xattr`).

mod device;
mod dir;
mod inode;
mod map;
mod statfs;
mod xattr;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fs_ext4::block_io::BlockDevice;
use nbdserve::{Error, Kind, Volume};

use super::cache::Cache;
use super::{Attr, DirEntry, FileSystem, FsError, FsResult, Run, StatFs};
use device::Device;
use inode::Node;

/// Inode of the top directory.
const ROOT: u64 = 2;
/// Longest target of a symbolic link.
const LINK_MAX: u64 = 4096;
/// Inodes that are kept for sure; twice as many at most: some 2 MiB.
const NODES_KEPT: usize = 1536;
/// An open file system of the ext family.
pub struct Ext4 {
    inner: fs_ext4::Filesystem,
    device: Arc<Device>,
    nodes: Cache<u64, Arc<Node>>,
    /// Whether replayed blocks are held in memory, which win over what the volume has.
    replayed: bool,
}

impl Ext4 {
    /// Opens the file system on `volume`. A journal that needs it is replayed in memory; the
    /// volume is never written. Only superblock, group descriptors and, for that replay, the
    /// journal are read.
    ///
    /// # Errors
    /// `NotThisFormat`, `Unsupported` for features that cannot be read, `Corrupt`, or that of the
    /// volume.
    pub fn open(volume: Volume) -> nbdserve::Result<Self> {
        let device = Arc::new(Device::open(volume)?);
        let shared: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
        // No cache of the crate's: ours is below it.
        let mount = AssertUnwindSafe(|| fs_ext4::Filesystem::mount_with_cache(shared, 0));
        let mounted = catch_unwind(mount).unwrap_or(Err(PANICKED));
        let inner = mounted.map_err(error)?;
        device.lift_budget();
        let replayed = inner.cache_pinned_blocks() > 0;
        Ok(Self {
            inner,
            device,
            nodes: Cache::new(NODES_KEPT),
            replayed,
        })
    }

    fn block_size(&self) -> u64 {
        self.inner.sb.block_size().into()
    }

    fn blocks_count(&self) -> u64 {
        self.inner.sb.blocks_count
    }

    fn node(&self, ino: u64) -> FsResult<Arc<Node>> {
        let read = || Node::read(self, ino).map(Arc::new);
        self.nodes.get_or_try(ino, read)
    }

    /// Bytes of file contents at `offset` of the volume.
    fn read_data(&self, offset: u64, buf: &mut [u8]) -> FsResult<()> {
        if self.replayed {
            // With data=journal, a replayed block may hold contents.
            Ok(self.inner.dev.read_at(offset, buf).map_err(error)?)
        } else {
            Ok(self.device.volume().read_at(buf, offset)?)
        }
    }

    /// Fills `buf`, which lies within the file's size.
    fn read_range(&self, node: &Node, offset: u64, buf: &mut [u8]) -> FsResult<()> {
        if node.inode.has_inline_data() {
            let all = self.inline_data(node)?;
            let part = usize::try_from(offset).ok();
            let part = part.and_then(|from| all.get(from..)?.get(..buf.len()));
            let part = part.ok_or_else(|| node.corrupt("inline data shorter than the file"))?;
            buf.copy_from_slice(part);
            return Ok(());
        }
        let block_size = self.block_size();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (block, skip) = (at / block_size, at % block_size);
            let run = map::run_at(self, node, block)?;
            let run_bytes = run.len.saturating_mul(block_size) - skip;
            let left = (buf.len() - done) as u64;
            // At most the rest of buf.
            let len = run_bytes.min(left) as usize;
            let part = &mut buf[done..done + len];
            match run.start {
                // Within the blocks of the file system, which fit the volume.
                Some(start) => self.read_data(start * block_size + skip, part)?,
                None => part.fill(0),
            }
            done += len;
        }
        Ok(())
    }

    fn inline_data(&self, node: &Node) -> FsResult<Vec<u8>> {
        let superblock = &self.inner.sb;
        let (inode_size, block_size) = (superblock.inode_size, superblock.block_size());
        let dev = self.inner.dev.as_ref();
        let read = fs_ext4::inline_data::read_all;
        Ok(read(dev, &node.inode, &node.raw, inode_size, block_size).map_err(error)?)
    }

    /// A regular file whose contents can be read.
    fn regular(&self, ino: u64) -> FsResult<Arc<Node>> {
        let node = self.node(ino)?;
        if node.inode.is_dir() {
            return Err(FsError::IsADirectory);
        }
        if !node.inode.is_file() {
            return Err(FsError::Invalid);
        }
        fs_ext4::file_io::refuse_encrypted(&node.inode).map_err(error)?;
        Ok(node)
    }

    fn read_link_of(&self, ino: u64) -> FsResult<Vec<u8>> {
        let node = self.node(ino)?;
        if !node.inode.is_symlink() {
            return Err(FsError::Invalid);
        }
        fs_ext4::file_io::refuse_encrypted(&node.inode).map_err(error)?;
        let size = node.size(self);
        if size == 0 || size > LINK_MAX {
            return Err(node.corrupt(format!("symbolic link of {size} bytes")));
        }
        // Checked against LINK_MAX.
        let mut target = vec![0; size as usize];
        // Short targets are where the block map would be.
        if let Some(short) = node.inode.block.get(..target.len())
            && target.len() < node.inode.block.len()
        {
            target.copy_from_slice(short);
        } else {
            self.read_range(&node, 0, &mut target)?;
        }
        // The kernel gives what is before the first NUL.
        let end = target.iter().position(|byte| *byte == 0);
        target.truncate(end.unwrap_or(target.len()));
        Ok(target)
    }

    fn run_of(&self, ino: u64, offset: u64) -> FsResult<Option<Run>> {
        let node = self.regular(ino)?;
        let size = node.size(self);
        if offset >= size {
            return Ok(None);
        }
        if node.inode.has_inline_data() {
            let (end, hole) = (size, false);
            return Ok(Some(Run { end, hole }));
        }
        let block = offset / self.block_size();
        let run = map::run_at(self, &node, block)?;
        let end = block
            .saturating_add(run.len)
            .saturating_mul(self.block_size());
        Ok(Some(Run {
            end: end.min(size),
            hole: run.start.is_none(),
        }))
    }
}

impl FileSystem for Ext4 {
    fn root(&self) -> u64 {
        ROOT
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> FsResult<u64> {
        guarded(|| dir::find(self, &*self.node(dir)?, name))
    }

    fn attr(&self, ino: u64) -> FsResult<Attr> {
        guarded(|| Ok(self.node(ino)?.attr(self)))
    }

    fn read_dir(
        &self,
        dir: u64,
        from: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> FsResult<()> {
        guarded(|| dir::list(self, &*self.node(dir)?, from, each))
    }

    fn read_link(&self, ino: u64) -> FsResult<Vec<u8>> {
        guarded(|| self.read_link_of(ino))
    }

    fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        guarded(|| {
            let node = self.regular(ino)?;
            let left = node.size(self).saturating_sub(offset);
            let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
            self.read_range(&node, offset, &mut buf[..len])?;
            Ok(len)
        })
    }

    fn run_at(&self, ino: u64, offset: u64) -> FsResult<Option<Run>> {
        guarded(|| self.run_of(ino, offset))
    }

    fn list_xattr(&self, ino: u64) -> FsResult<Vec<Vec<u8>>> {
        guarded(|| xattr::names(self, &*self.node(ino)?))
    }

    fn get_xattr(&self, ino: u64, name: &[u8]) -> FsResult<Vec<u8>> {
        guarded(|| xattr::value(self, &*self.node(ino)?, name))
    }

    fn statfs(&self) -> StatFs {
        statfs::of(&self.inner.sb, &self.inner.groups)
    }

    fn drop_caches(&self) {
        self.device.drop_cache();
        self.nodes.clear();
    }
}

impl std::fmt::Debug for Ext4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {:?}", self.inner.flavor.name(), self.device)
    }
}

/// What a panic of the crate counts as: it met bytes that it did not expect.
const PANICKED: fs_ext4::Error =
    fs_ext4::Error::Corrupt("the image holds values on which the ext4 reader gave up");

/// Runs what reads the image. A panic in there becomes damage of the image.
fn guarded<T>(read: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
    // Nothing half-done is left behind: what is shared is filled whole or not at all.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(error(PANICKED).into()))
}

/// The crate's error in our terms. What came up from the volume keeps its kind and its trail.
fn error(error: fs_ext4::Error) -> Error {
    let kind = match &error {
        fs_ext4::Error::Io(_) => Kind::Io,
        fs_ext4::Error::BadMagic { .. } => Kind::NotThisFormat,
        fs_ext4::Error::UnsupportedIncompat(_)
        | fs_ext4::Error::UnsupportedRoCompat(_)
        | fs_ext4::Error::Unsupported(_) => Kind::Unsupported,
        _ => Kind::Corrupt,
    };
    let what = error.to_string();
    let ours = match error {
        fs_ext4::Error::Io(io) => match io.downcast::<Error>() {
            Ok(ours) => ours,
            Err(io) => Error::io("cannot read", io),
        },
        _ => Error::new(kind, what),
    };
    ours.in_layer("ext4")
}
