//! Files that an image names: a backing file, the extents of a disk. An image must not make us open
//! whatever it likes, so there is one gate for all of them.
//!
//! A name is followed within the image's own folder (and what lies below it), and within folders that
//! the user has named; never out of them, neither by `..` nor by a symbolic link. Nothing else is
//! opened: no URL, no protocol.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{escape, quote, shell};
use crate::source::{File, OpenMode};
use crate::{Error, Kind, Result, Volume};

/// Longest chain of files that name each other.
pub const MOST_FILES: usize = 64;
/// Longest name that is looked at.
const LONGEST_NAME: usize = 4096;

/// What an image may refer to. Cheap to clone.
#[derive(Clone, Default)]
pub struct References {
    /// `None`: nothing.
    place: Option<Arc<Place>>,
    /// Folders that the user has named, and that of the image.
    allowed: Arc<Vec<PathBuf>>,
    /// The files from the image to here, the image first.
    trail: Vec<FileId>,
    /// The last part of the name of the last of them.
    name: Option<Arc<str>>,
}

/// The folder that names are relative to.
struct Place {
    /// As the user wrote it; absolute.
    path: PathBuf,
    dir: OwnedFd,
}

/// Device and inode.
type FileId = (u64, u64);

/// A file that was referred to.
#[derive(Debug)]
pub struct Referred {
    /// Its bytes. Locked like an image that the user has named.
    pub volume: Volume,
    /// Where it is.
    pub path: PathBuf,
    /// What it may refer to itself: names are relative to its own folder then.
    pub references: References,
}

impl References {
    /// An image that may refer to nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// For the image at `image`, a local path: files in its folder, and in `allowed`. Where `image` is a
    /// link, its folder is that of the file.
    ///
    /// # Errors
    /// When a folder cannot be opened.
    pub fn of(image: &Path, allowed: &[PathBuf]) -> Result<Self> {
        let image = image
            .canonicalize()
            .or_else(|_| std::path::absolute(image))
            .map_err(|error| {
                Error::io(format!("cannot tell where {} is", image.display()), error)
            })?;
        let folder = image.parent().unwrap_or(Path::new("/")).to_owned();
        let ids = rustix::fs::stat(&image).map(|stat| (stat.st_dev, stat.st_ino));
        let mut absolute = Vec::new();
        for path in allowed {
            absolute.push(std::path::absolute(path).map_err(|error| {
                Error::io(format!("cannot tell where {} is", path.display()), error)
            })?);
        }
        Ok(Self {
            place: Some(Arc::new(Place::open(folder)?)),
            allowed: Arc::new(absolute),
            trail: ids.into_iter().collect(),
            name: last_part(&image),
        })
    }

    /// How many files there are from the image to here, the image among them; zero for an image
    /// that may refer to nothing.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.trail.len()
    }

    /// What the file is called that may refer to others, for a message: the image, or what it referred
    /// to. `None` for an image that may refer to nothing.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Opens the file that is called `name` in the image; `what` it is to the image (`backing file`)
    /// is for messages.
    ///
    /// # Errors
    /// `Denied` for a name outside of what is allowed, with the option that allows it; `Unsupported`
    /// for what is no plain file name; `Corrupt` for a file that names itself, by whatever way;
    /// `Limit` for too long a chain; else what opening it says.
    pub fn open(&self, name: &[u8], what: &str, mode: OpenMode) -> Result<Referred> {
        let shown = quote(&String::from_utf8_lossy(name));
        let named = |kind, text: String| Error::new(kind, format!("{what} {shown} {text}"));
        if name.is_empty() || name.contains(&0) || name.len() > LONGEST_NAME {
            return Err(named(Kind::Corrupt, "is no file name".to_owned()));
        }
        if has_protocol(name) {
            let text = "is not a plain file name, and only such are followed";
            let hint = "qemu-img convert -O qcow2 IMAGE NEW makes one image of all";
            return Err(named(Kind::Unsupported, text.to_owned()).hint(hint));
        }
        if self.trail.len() >= MOST_FILES {
            let text = format!("is one too many: {MOST_FILES} files name each other");
            return Err(named(Kind::Limit, text));
        }
        let Some(place) = &self.place else {
            let text = "lies beside the image, and where that is has no such files: only images on \
                        this machine may refer to others";
            return Err(named(Kind::Unsupported, text.to_owned()));
        };
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        let path = place.path.join(name);
        let fd = self
            .open_within(place, &path, mode)
            .map_err(|error| match error {
                // EXDEV: the name leaves the folder. ELOOP: by a link that is none.
                Errno::XDEV | Errno::LOOP => {
                    let folder = place.path.display().to_string();
                    // Where it really is: it may be a link.
                    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
                    let parent = real.parent().unwrap_or(&real).display().to_string();
                    let text = format!("lies outside of the image's folder {}", escape(&folder));
                    let option = format!("--references {} allows it", shell(&parent));
                    named(Kind::Denied, text).hint(option)
                }
                Errno::NOSYS => {
                    let text = "cannot be opened safely: that takes Linux 5.6".to_owned();
                    named(Kind::Unsupported, text)
                }
                errno => Error::io(format!("cannot open the {what} {shown}"), errno),
            })?;
        let stat = rustix::fs::fstat(&fd)
            .map_err(|errno| Error::io(format!("cannot look at the {what} {shown}"), errno))?;
        let id = (stat.st_dev, stat.st_ino);
        if self.trail.contains(&id) {
            let text = "is the image itself, or a file that refers to it";
            return Err(named(Kind::Corrupt, text.to_owned()));
        }
        let found = FileType::from_raw_mode(stat.st_mode);
        if !matches!(found, FileType::RegularFile | FileType::BlockDevice) {
            return Err(named(Kind::Corrupt, "is no file".to_owned()));
        }
        let file = File::from_fd(fd, &path.display().to_string(), mode)?;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut trail = self.trail.clone();
        trail.push(id);
        let mut allowed = Vec::clone(&self.allowed);
        if !allowed.contains(&place.path) {
            // What it names in turn may lie anywhere in the image's folder, too.
            allowed.push(place.path.clone());
        }
        Ok(Referred {
            volume: Volume::new(file),
            references: Self {
                place: Some(Arc::new(Place::open(folder)?)),
                allowed: Arc::new(allowed),
                trail,
                name: last_part(&path),
            },
            path,
        })
    }

    /// Opens `path`, which is absolute, without leaving the folder or one that is allowed.
    fn open_within(&self, place: &Place, path: &Path, mode: OpenMode) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let flags = flags
            | match mode {
                OpenMode::ReadOnly => OFlags::RDONLY,
                OpenMode::Write => OFlags::RDWR,
            };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let beneath = |dir: &OwnedFd, inner: &Path| {
            rustix::fs::openat2(dir.as_fd(), inner, flags, Mode::empty(), resolve)
        };
        let mut refused = Errno::XDEV;
        if let Some(inner) = inside(&place.path, path) {
            match beneath(&place.dir, &inner) {
                Err(Errno::XDEV | Errno::LOOP) => refused = Errno::XDEV,
                other => return other,
            }
        }
        for folder in self.allowed.iter() {
            let Some(inner) = inside(folder, path) else {
                continue;
            };
            let dir = Place::open_dir(folder)?;
            match beneath(&dir, &inner) {
                Err(Errno::XDEV | Errno::LOOP) => {}
                other => return other,
            }
        }
        // A link out of the folder into one that is allowed, or another way into the folder: follow it by
        // hand, once.
        let real = std::fs::canonicalize(path).ok();
        for folder in self.allowed.iter().chain([&place.path]) {
            let Some((real, folder)) = real.as_deref().zip(std::fs::canonicalize(folder).ok())
            else {
                continue;
            };
            if let Some(inner) = inside(&folder, real) {
                let dir = Place::open_dir(&folder)?;
                match beneath(&dir, &inner) {
                    Err(errno @ (Errno::XDEV | Errno::LOOP)) => refused = errno,
                    other => return other,
                }
            }
        }
        Err(refused)
    }
}

impl fmt::Debug for References {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.as_ref().map(|place| &place.path);
        f.debug_struct("References")
            .field("place", &place)
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

impl Place {
    fn open(path: PathBuf) -> Result<Self> {
        let dir = Self::open_dir(&path)
            .map_err(|errno| Error::io(format!("cannot open {}", path.display()), errno))?;
        Ok(Self { path, dir })
    }

    fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
    }
}

/// The last part of a path, as text.
fn last_part(path: &Path) -> Option<Arc<str>> {
    path.file_name().map(|name| name.to_string_lossy().into())
}

/// `path` as seen from `folder`, both absolute; `None` when it is not below it as it is written. A
/// `..` stays in for the kernel to judge.
fn inside(folder: &Path, path: &Path) -> Option<PathBuf> {
    let inner = path.strip_prefix(folder).ok()?;
    let plain = inner
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    (plain && inner.components().next().is_some()).then(|| inner.to_owned())
}

/// Whether a name begins as `json:`, `nbd:` or `file:` do: letters and a colon before any slash.
fn has_protocol(name: &[u8]) -> bool {
    let Some(at) = name.iter().position(|&byte| byte == b':') else {
        return false;
    };
    let before = name.get(..at).unwrap_or_default();
    !before.is_empty()
        && before
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with `in/image`, `in/base`, `in/deep/base`, `out/base`.
    fn folders() -> (tempfile::TempDir, References) {
        let top = tempfile::tempdir().unwrap();
        for name in ["in/image", "in/base", "in/deep/base", "out/base"] {
            let path = top.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let references = References::of(&top.path().join("in/image"), &[]).unwrap();
        (top, references)
    }

    fn kind(references: &References, name: &str) -> Result<String, Kind> {
        let referred = references
            .open(name.as_bytes(), "backing file", OpenMode::ReadOnly)
            .map_err(|error| error.kind())?;
        let len = referred.volume.size().try_into().unwrap();
        Ok(String::from_utf8(referred.volume.read_vec(0, len).unwrap()).unwrap())
    }

    #[test]
    fn names_stay_in_the_folder_of_the_image() {
        let (top, references) = folders();
        assert_eq!(kind(&references, "base").unwrap(), "in/base");
        assert_eq!(kind(&references, "deep/base").unwrap(), "in/deep/base");
        assert_eq!(kind(&references, "deep/../base").unwrap(), "in/base");
        let absolute = top.path().join("in/base");
        assert_eq!(
            kind(&references, absolute.to_str().unwrap()).unwrap(),
            "in/base"
        );
        for name in ["../out/base", "/etc/passwd", "deep/../../out/base"] {
            assert_eq!(kind(&references, name), Err(Kind::Denied), "{name}");
        }
        std::os::unix::fs::symlink("../out/base", top.path().join("in/link")).unwrap();
        assert_eq!(kind(&references, "link"), Err(Kind::Denied));
        std::os::unix::fs::symlink("base", top.path().join("in/near")).unwrap();
        assert_eq!(kind(&references, "near").unwrap(), "in/base");
    }

    #[test]
    fn the_message_names_the_option_that_allows_a_folder() {
        let (top, references) = folders();
        let out = top.path().canonicalize().unwrap().join("out");
        std::os::unix::fs::symlink("../out/base", top.path().join("in/link")).unwrap();
        for name in ["../out/base", "link"] {
            let refused = references.open(name.as_bytes(), "backing file", OpenMode::ReadOnly);
            // Where it is, not where the link is.
            let option = format!("--references {} allows it", out.display());
            assert_eq!(refused.unwrap_err().report().hint, Some(option), "{name}");
        }
        // A name is a word of that command, and no command of its own.
        let refused = references.open(b"/x'; id; '/base", "backing file", OpenMode::ReadOnly);
        let hint = refused.map(|_| ()).unwrap_err().report().hint.unwrap();
        assert_eq!(hint, r"--references '/x'\''; id; '\''' allows it");
        let allowed = [out];
        let references = References::of(&top.path().join("in/image"), &allowed).unwrap();
        let absolute = top.path().join("out/base");
        assert_eq!(
            kind(&references, absolute.to_str().unwrap()).unwrap(),
            "out/base"
        );
        assert_eq!(kind(&references, "../out/base").unwrap(), "out/base");
        assert_eq!(kind(&references, "link").unwrap(), "out/base");
        assert_eq!(kind(&references, "/etc/passwd"), Err(Kind::Denied));
    }

    #[test]
    fn the_folder_of_an_image_is_where_the_file_is() {
        let (top, _) = folders();
        let path = |name: &str| top.path().join(name);
        // A link to the image, and one to its folder.
        std::os::unix::fs::symlink("../in/image", path("out/link")).unwrap();
        std::os::unix::fs::symlink("in", path("way")).unwrap();
        for image in ["out/link", "way/image", "in/image"] {
            let references = References::of(&path(image), &[]).unwrap();
            assert_eq!(kind(&references, "base").unwrap(), "in/base", "{image}");
            for name in ["in/base", "way/base", "way/deep/../base"] {
                let absolute = path(name);
                let name = absolute.to_str().unwrap();
                assert_eq!(
                    kind(&references, name).unwrap(),
                    "in/base",
                    "{image} {name}"
                );
            }
            assert_eq!(kind(&references, "image"), Err(Kind::Corrupt), "{image}");
            for name in ["out/base", "way/../out/base"] {
                let absolute = path(name);
                let name = absolute.to_str().unwrap();
                assert_eq!(kind(&references, name), Err(Kind::Denied), "{image} {name}");
            }
        }
    }

    #[test]
    fn what_is_no_plain_name_is_not_followed() {
        let (top, references) = folders();
        for name in ["json:{}", "nbd://host/x", "file:base", "http://host/base"] {
            assert_eq!(kind(&references, name), Err(Kind::Unsupported), "{name}");
        }
        assert_eq!(kind(&references, ""), Err(Kind::Corrupt));
        assert_eq!(kind(&references, "deep"), Err(Kind::Corrupt));
        assert_eq!(kind(&references, "nothing"), Err(Kind::Io));
        assert_eq!(kind(&References::none(), "base"), Err(Kind::Unsupported));
        std::fs::write(top.path().join("in/a:b"), "colon").unwrap();
        assert_eq!(kind(&references, "./a:b").unwrap(), "colon");
    }

    #[test]
    fn a_chain_that_comes_back_is_found() {
        let (top, references) = folders();
        assert_eq!(kind(&references, "image"), Err(Kind::Corrupt));
        let next = references
            .open(b"deep/base", "backing file", OpenMode::ReadOnly)
            .unwrap();
        // Relative to its own folder; what it may not leave is that of the image.
        assert_eq!(kind(&next.references, "../base").unwrap(), "in/base");
        assert_eq!(kind(&next.references, "../../out/base"), Err(Kind::Denied));
        std::fs::hard_link(top.path().join("in/image"), top.path().join("in/deep/same")).unwrap();
        assert_eq!(kind(&next.references, "same"), Err(Kind::Corrupt));
    }
}
