//! Folders that names do not lead out of: neither by `..` nor by a symbolic link. A folder is opened
//! once and held; what its path leads to later, when somebody has put a link there, is of no account.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

/// Device and inode.
pub(crate) type FileId = (u64, u64);

/// The kernel gives up on a name with `..` in it while somebody renames; so often it is asked again.
const TRIES: usize = 100;

/// A folder that was opened.
#[derive(Debug)]
pub(crate) struct Folder {
    /// How it was found; absolute where it is compared with others.
    path: PathBuf,
    /// Or why it could not be opened, or is not used.
    dir: Result<OwnedFd, Errno>,
}

/// Which file this is.
pub(crate) fn id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

/// The same of an open file.
pub(crate) fn id_of(file: impl AsFd) -> Result<FileId, Errno> {
    rustix::fs::fstat(file).map(|stat| id(&stat))
}

impl Folder {
    /// The folder at `path`; links are followed. That it cannot be opened is told when it is used.
    pub(crate) fn at(path: PathBuf) -> Self {
        let open = || rustix::fs::openat(CWD, &path, Self::FLAGS, Mode::empty());
        let dir = retry_on_intr(open);
        Self { path, dir }
    }

    /// The folder that `file`, a path, is in: it has to be the file `id` there, at the end of links if
    /// `links` has it so, else by itself. `None` when it is not, since somebody has moved one of the two.
    pub(crate) fn of_file(file: &Path, id: FileId, links: AtFlags) -> Option<Self> {
        let name = file.file_name()?;
        let path = match file.parent()? {
            here if here.as_os_str().is_empty() => Path::new("."),
            parent => parent,
        };
        let folder = Self::at(path.to_owned());
        let stat = rustix::fs::statat(folder.dir.as_ref().ok()?, name, links).ok()?;
        (self::id(&stat) == id).then_some(folder)
    }

    /// One that nothing is found in.
    pub(crate) fn lost(path: PathBuf) -> Self {
        let dir = Err(Errno::STALE);
        Self { path, dir }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is one of [`Self::lost`].
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.dir, Err(Errno::STALE))
    }

    /// Whether both are the same folder, however they are called.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let id = |folder: &Self| folder.dir().and_then(id_of);
        id(self).is_ok_and(|own| id(other) == Ok(own))
    }

    const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

    /// What has this name in it; a link is not followed.
    pub(crate) fn entry(&self, name: &str) -> Result<Stat, Errno> {
        rustix::fs::statat(self.dir()?, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// All names in it.
    pub(crate) fn names(&self) -> Result<impl Iterator<Item = std::ffi::CString> + use<>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(self.dir()?, ".", flags, Mode::empty())?;
        let entries = rustix::fs::Dir::new(dir)?;
        Ok(entries
            .map_while(Result::ok)
            .map(|entry| entry.file_name().to_owned()))
    }

    /// Whether everybody may make files in it, and only their owners remove them, as in `/tmp`.
    pub(crate) fn is_shared(&self) -> Result<bool, Errno> {
        let mode = rustix::fs::fstat(self.dir()?)?.st_mode;
        Ok(is_shared(mode))
    }

    /// Opens `inner` without leaving the folder: `XDEV` where the name does, `LOOP` where it leads
    /// through a link of `/proc` that is none, or in circles.
    pub(crate) fn open(&self, inner: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let dir = self.dir()?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES {
            match rustix::fs::openat2(dir.as_fd(), inner, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // EPERM: a container whose filter does not know the call.
                Err(errno @ (Errno::NOSYS | Errno::PERM)) => {
                    let plain = self.open_plain(inner, flags);
                    return plain.map_err(|why| if why == Errno::NOSYS { errno } else { why });
                }
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The same before Linux 5.6: a file in the folder that is no link, and the folder itself; `NOSYS`
    /// for all else.
    fn open_plain(&self, inner: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut parts = inner.components();
        let name = match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) => name,
            (Some(Component::CurDir), None) => std::ffi::OsStr::new("."),
            _ => return Err(Errno::NOSYS),
        };
        let dir = self.dir()?;
        let flags = flags | OFlags::NOFOLLOW;
        let opened = match retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty())) {
            Err(Errno::LOOP) => return Err(Errno::NOSYS),
            other => other?,
        };
        // With PATH it is the link itself.
        let mode = rustix::fs::fstat(&opened)?.st_mode;
        match FileType::from_raw_mode(mode) {
            FileType::Symlink => Err(Errno::NOSYS),
            _ => Ok(opened),
        }
    }

    fn dir(&self) -> Result<&OwnedFd, Errno> {
        self.dir.as_ref().map_err(|errno| *errno)
    }
}

fn is_shared(mode: RawMode) -> bool {
    let mode = Mode::from_raw_mode(mode);
    mode.contains(Mode::SVTX | Mode::WOTH)
}

/// The folders that names may lead into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Within<'a> {
    /// The one that names are relative to.
    pub(crate) own: &'a Folder,
    /// Others that are allowed, such as the user has named.
    pub(crate) allowed: &'a [Arc<Folder>],
}

impl<'a> Within<'a> {
    /// Opens `path`, which begins with the path of one of the folders, without leaving it; and says
    /// which one it was. `XDEV` and `LOOP` as [`Folder::open`], when it lies in none.
    pub(crate) fn open(self, path: &Path, flags: OFlags) -> Result<(OwnedFd, &'a Folder), Errno> {
        let mut refused = Errno::XDEV;
        if let Some(inner) = inside(&self.own.path, path).filter(|_| !self.own.is_lost()) {
            match self.own.open(&inner, flags) {
                Err(Errno::XDEV | Errno::LOOP) => {}
                other => return Ok((other?, self.own)),
            }
        }
        for folder in self.allowed {
            let Some(inner) = inside(&folder.path, path) else {
                continue;
            };
            match folder.open(&inner, flags) {
                Err(Errno::XDEV | Errno::LOOP) => {}
                other => return Ok((other?, folder)),
            }
        }
        // A link out of the folder into one that is allowed, or another way into the folder: follow it by
        // hand, once. Only names are made of it: what is opened lies in the folders that are held.
        let Ok(real) = std::fs::canonicalize(path) else {
            return Err(refused);
        };
        let allowed = self.allowed.iter().map(AsRef::as_ref);
        for folder in allowed.chain([self.own]) {
            let place = std::fs::canonicalize(&folder.path).map(Folder::at);
            // Its path may lead to another one by now.
            let Some(place) = place.ok().filter(|place| place.is(folder)) else {
                continue;
            };
            if let Some(inner) = inside(&place.path, &real) {
                match folder.open(&inner, flags) {
                    Err(errno @ (Errno::XDEV | Errno::LOOP)) => refused = errno,
                    other => return Ok((other?, folder)),
                }
            }
        }
        Err(refused)
    }

    /// The folder that what was opened at `path` is in, as it is called there; that of the file at the end of
    /// a link where the link's is not allowed. It lies within the folders as the file does.
    pub(crate) fn folder_of(self, path: &Path) -> Folder {
        let parent = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
        let open = |path: PathBuf| {
            let dir = self.open(&path, Folder::FLAGS).map(|(dir, _)| dir);
            Folder { path, dir }
        };
        let folder = open(parent(path));
        match (&folder.dir, std::fs::canonicalize(path)) {
            (Err(_), Ok(real)) => open(parent(&real)),
            _ => folder,
        }
    }
}

/// `path` as seen from `folder`, both absolute; `None` when it is not below it as it is written. A
/// `..` stays in for the kernel to judge.
fn inside(folder: &Path, path: &Path) -> Option<PathBuf> {
    let inner = path.strip_prefix(folder).ok()?;
    let plain = inner
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    plain.then(|| match inner.components().next() {
        Some(_) => inner.to_owned(),
        None => PathBuf::from("."),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn without_openat2_a_name_is_no_link_and_no_path() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        std::fs::create_dir(path("deep")).unwrap();
        std::fs::write(path("deep/file"), "").unwrap();
        symlink("file", path("link")).unwrap();
        let folder = Folder::at(top.path().to_owned());
        for flags in [OFlags::PATH, OFlags::RDONLY] {
            let open = |name: &str| folder.open_plain(Path::new(name), flags).map(|_| ());
            assert_eq!(open("file"), Ok(()));
            assert_eq!(open("."), Ok(()));
            assert_eq!(open("nothing"), Err(Errno::NOENT));
            for name in ["link", "deep/file", "..", "../file", "/etc/passwd", ""] {
                assert_eq!(open(name), Err(Errno::NOSYS), "{name}");
            }
        }
    }

    #[test]
    fn only_a_folder_that_everybody_writes_to_and_keeps_from_others_is_shared() {
        for (mode, shared) in [
            (0o1777, true),
            (0o1703, true),
            (0o777, false),
            (0o1775, false),
        ] {
            assert_eq!(is_shared(mode), shared, "{mode:o}");
        }
    }
}
