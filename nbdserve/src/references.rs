//! Files that an image names: a backing file, the extents of a disk. An image must not make us open
//! whatever it likes, so there is one gate for all of them.
//!
//! A name is followed within the image's own folder (and what lies below it), and within folders that
//! the user has named; never out of them, neither by `..` nor by a symbolic link. Nothing else is
//! opened: no URL, no protocol.

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{escape, quote, shell};
use crate::folder::{self, FileId, Folder, Within};
use crate::source::{File, OpenMode};
use crate::{Error, Kind, Result, Volume};

/// Longest chain of files that name each other.
pub const MOST_FILES: usize = 64;
/// Longest name that is looked at.
const LONGEST_NAME: usize = 4096;

/// What an image may refer to. Cheap to clone.
#[derive(Clone, Default)]
pub struct References {
    /// What names are relative to; `None`: there is nothing.
    place: Option<Arc<Folder>>,
    /// Folders that the user has named, and that of the image.
    allowed: Arc<Vec<Arc<Folder>>>,
    /// How many of them the user has named; they come first.
    named: usize,
    /// Who owns the last of the files.
    owner: u32,
    /// The files from the image to here, the image first.
    trail: Vec<FileId>,
    /// The last part of the name of the last of them.
    name: Option<Arc<str>>,
}

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

    /// For an image that was opened as `opened`, and is at `image`, a local path: files in its folder, and
    /// in `allowed`. Where `image` is a link, its folder is that of the file. When the folder does not
    /// have the opened file in it (somebody has moved one of the two) it counts as nobody's.
    ///
    /// # Errors
    /// When the image cannot be looked at, or there is no current folder that a path could be relative to.
    pub fn of(image: &Path, opened: impl AsFd, allowed: &[PathBuf]) -> Result<Self> {
        let stat = rustix::fs::fstat(opened).map_err(|errno| {
            let image = escape(&image.display().to_string());
            Error::io(format!("cannot look at {image}"), errno)
        })?;
        let id = folder::id(&stat);
        let image = image.canonicalize().or_else(|_| absolute(image))?;
        let lost = || {
            let folder = image.parent().unwrap_or(Path::new("/"));
            Folder::lost(folder.to_owned())
        };
        let place = Folder::of_file(&image, id, AtFlags::SYMLINK_NOFOLLOW).unwrap_or_else(lost);
        let named = allowed.iter().map(|path| absolute(path).map(Folder::at));
        Ok(Self {
            place: Some(Arc::new(place)),
            allowed: Arc::new(
                named
                    .map(|folder| folder.map(Arc::new))
                    .collect::<Result<_>>()?,
            ),
            named: allowed.len(),
            owner: stat.st_uid,
            trail: vec![id],
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
        let path = place.path().join(name);
        let cannot_open = |errno: Errno| match errno {
            // EXDEV: the name leaves the folder. ELOOP: by a link that is none.
            Errno::XDEV | Errno::LOOP => self.outside(place, &path, &named),
            Errno::NOSYS => {
                let text = "cannot be opened safely: that takes Linux 5.6".to_owned();
                named(Kind::Unsupported, text)
            }
            errno => Error::io(format!("cannot open the {what} {shown}"), errno),
        };
        let within = Within {
            own: place,
            allowed: &self.allowed,
        };
        // Opening some kinds of file has effects, so look first.
        let (seen, _) = within
            .open(&path, OFlags::PATH | OFlags::CLOEXEC)
            .map_err(cannot_open)?;
        let stat = rustix::fs::fstat(&seen)
            .map_err(|errno| Error::io(format!("cannot look at the {what} {shown}"), errno))?;
        let id = folder::id(&stat);
        if self.trail.contains(&id) {
            let text = "is the image itself, or a file that refers to it";
            return Err(named(Kind::Corrupt, text.to_owned()));
        }
        let found = FileType::from_raw_mode(stat.st_mode);
        if !matches!(found, FileType::RegularFile | FileType::BlockDevice) {
            return Err(named(Kind::Corrupt, "is no file".to_owned()));
        }
        if let Some(why) = self.needs_consent(within, &path, &stat)? {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            let folder = real.parent().unwrap_or(&real).display().to_string();
            let option = format!("--references {} allows it", shell(&folder));
            return Err(named(Kind::Denied, why).hint(option));
        }
        let file = File::open_by(&path.display().to_string(), mode, |flags| {
            within
                .open(&path, flags)
                .map(|(fd, _)| fd)
                .map_err(cannot_open)
        })?;
        if folder::id_of(&file) != Ok(id) {
            let text = "is another file now than a moment ago";
            return Err(named(Kind::Changed, text.to_owned()));
        }
        let mut trail = self.trail.clone();
        trail.push(id);
        let mut allowed = Vec::clone(&self.allowed);
        let is_place = |folder: &Arc<Folder>| folder.path() == place.path() && folder.is(place);
        if !place.is_lost() && !allowed.iter().any(is_place) {
            // What it names in turn may lie anywhere in the image's folder, too.
            allowed.push(Arc::clone(place));
        }
        Ok(Referred {
            volume: Volume::new(file),
            references: Self {
                place: Some(Arc::new(within.folder_of(&path))),
                allowed: Arc::new(allowed),
                named: self.named,
                owner: stat.st_uid,
                trail,
                name: last_part(&path),
            },
            path,
        })
    }

    /// Why a file in the image's own folder, that it has named and that has this `stat`, is opened only if
    /// the user has named its folder too: the folder then has more in it than what belongs to the image.
    fn needs_consent(
        &self,
        within: Within<'_>,
        path: &Path,
        stat: &Stat,
    ) -> Result<Option<String>> {
        let by_user = Within {
            own: &Folder::lost(PathBuf::new()),
            allowed: self.allowed.get(..self.named).unwrap_or_default(),
        };
        if by_user.open(path, OFlags::PATH | OFlags::CLOEXEC).is_ok() {
            return Ok(None);
        }
        let image = quote(self.name().unwrap_or_default());
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            return Ok(Some("is a disk of this machine".to_owned()));
        }
        let shared = within.folder_of(path).is_shared().map_err(|errno| {
            let path = escape(&path.display().to_string());
            Error::io(format!("cannot look at the folder of {path}"), errno)
        })?;
        Ok((shared && stat.st_uid != self.owner).then(|| {
            format!(
                "belongs to the user {} and {image} to {}, in a folder where everybody may put files",
                stat.st_uid, self.owner
            )
        }))
    }

    /// That the file at `path` may not be referred to.
    fn outside(&self, place: &Folder, path: &Path, named: &dyn Fn(Kind, String) -> Error) -> Error {
        let folder = escape(&place.path().display().to_string());
        if place.is_lost() {
            let image = quote(self.name().unwrap_or_default());
            let text = format!(
                "is not looked for: {image} in {folder} is not the file that was opened, or it is not \
                 there any more"
            );
            return named(Kind::Denied, text).hint("open the image again, where it is now");
        }
        // Where it really is: it may be a link.
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let parent = real.parent().unwrap_or(&real).display().to_string();
        let text = format!("lies outside of the image's folder {folder}");
        let option = format!("--references {} allows it", shell(&parent));
        named(Kind::Denied, text).hint(option)
    }
}

impl fmt::Debug for References {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.as_ref().map(|place| place.path());
        f.debug_struct("References")
            .field("place", &place)
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        let path = escape(&path.display().to_string());
        Error::io(format!("cannot tell where {path} is"), error)
    })
}

/// The last part of a path, as text.
fn last_part(path: &Path) -> Option<Arc<str>> {
    path.file_name().map(|name| name.to_string_lossy().into())
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
        let references = of(&top.path().join("in/image"), &[]);
        (top, references)
    }

    /// For the image at `image`, opened now.
    fn of(image: &Path, allowed: &[PathBuf]) -> References {
        let opened = std::fs::File::open(image).unwrap();
        References::of(image, opened, allowed).unwrap()
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
        let references = of(&top.path().join("in/image"), &allowed);
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
    fn a_file_of_another_user_in_a_folder_of_everybody_takes_the_users_consent() {
        use std::os::unix::fs::PermissionsExt;
        let (top, _) = folders();
        let path = |name: &str| top.path().join(name);
        let of_other = |allowed: &[PathBuf]| {
            let mut references = of(&path("in/image"), allowed);
            references.owner ^= 1;
            references
        };
        assert_eq!(kind(&of_other(&[]), "base").unwrap(), "in/base");
        let mode = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(path("in"), mode).unwrap();
        let own = of(&path("in/image"), &[]);
        assert_eq!(kind(&own, "base").unwrap(), "in/base");
        let refused = of_other(&[]).open(b"base", "backing file", OpenMode::ReadOnly);
        let report = refused.unwrap_err().report();
        let words = format!(
            "belongs to the user {} and \"image\" to {}",
            own.owner,
            own.owner ^ 1
        );
        assert!(report.to_string().contains(&words), "{report}");
        let folder = path("in").canonicalize().unwrap();
        let hint = format!("--references {} allows it", folder.display());
        assert_eq!(report.hint, Some(hint));
        assert_eq!(kind(&of_other(&[path("in")]), "base").unwrap(), "in/base");
        assert_eq!(kind(&of_other(&[path("out")]), "base"), Err(Kind::Denied));
        // Below it they are somebody's.
        assert_eq!(kind(&of_other(&[]), "deep/base").unwrap(), "in/deep/base");
    }

    #[test]
    fn a_disk_of_the_machine_takes_the_users_consent() {
        let (top, _) = folders();
        let path = |name: &str| top.path().canonicalize().unwrap().join(name);
        let mut stat = rustix::fs::stat(path("in/base")).unwrap();
        stat.st_mode = FileType::BlockDevice.as_raw_mode() | 0o660;
        for (allowed, refused) in [(vec![], true), (vec![path("in")], false)] {
            let references = of(&path("in/image"), &allowed);
            let within = Within {
                own: references.place.as_ref().unwrap(),
                allowed: &references.allowed,
            };
            let why = references.needs_consent(within, &path("in/base"), &stat);
            assert_eq!(why.unwrap().is_some(), refused);
        }
    }

    #[test]
    fn the_folder_of_an_image_is_where_the_file_is() {
        let (top, _) = folders();
        let path = |name: &str| top.path().join(name);
        // A link to the image, and one to its folder.
        std::os::unix::fs::symlink("../in/image", path("out/link")).unwrap();
        std::os::unix::fs::symlink("in", path("way")).unwrap();
        for image in ["out/link", "way/image", "in/image"] {
            let references = of(&path(image), &[]);
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
    /// Where a folder was, there is a link to another one now.
    fn swap(top: &tempfile::TempDir, folder: &str, other: &str) {
        let path = top.path().join(folder);
        std::fs::rename(&path, top.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(top.path().join(other), path).unwrap();
    }

    #[test]
    fn a_folder_that_is_another_one_now_is_not_that_of_the_image() {
        let (top, _) = folders();
        let image = top.path().join("in/image");
        let opened = std::fs::File::open(&image).unwrap();
        // The server knows the image by its path and by the file that the command has opened.
        swap(&top, "in", "out");
        for there in [false, true] {
            if there {
                std::fs::write(top.path().join("out/image"), "another").unwrap();
            }
            let references = References::of(&image, &opened, &[]).unwrap();
            assert_eq!(references.depth(), 1);
            for name in ["base", image.with_file_name("base").to_str().unwrap()] {
                let refused = references.open(name.as_bytes(), "backing file", OpenMode::ReadOnly);
                let error = refused.map(|_| ()).unwrap_err();
                assert_eq!(error.kind(), Kind::Denied);
                let text = error.to_string();
                assert!(
                    text.contains("\"image\"") && text.contains("is not the file"),
                    "{text}"
                );
            }
            // What the user has named is allowed all the same.
            let named = [top.path().join("moved")];
            let references = References::of(&image, &opened, &named).unwrap();
            let absolute = top.path().join("moved/base");
            assert_eq!(
                kind(&references, absolute.to_str().unwrap()).unwrap(),
                "in/base"
            );
            assert_eq!(kind(&references, "base"), Err(Kind::Denied));
        }
    }

    #[test]
    fn a_folder_that_was_opened_stays_the_same_whatever_its_name_leads_to() {
        let (top, references) = folders();
        let next = references
            .open(b"deep/base", "backing file", OpenMode::ReadOnly)
            .unwrap();
        let absolute = top.path().join("in/base");
        std::fs::write(top.path().join("in/deep/next"), "in/deep/next").unwrap();
        std::fs::write(top.path().join("out/next"), "out/next").unwrap();
        swap(&top, "in", "out");
        assert_eq!(kind(&references, "base").unwrap(), "in/base");
        assert_eq!(
            kind(&references, absolute.to_str().unwrap()).unwrap(),
            "in/base"
        );
        assert_eq!(kind(&references, "next"), Err(Kind::Io));
        assert_eq!(kind(&next.references, "next").unwrap(), "in/deep/next");
        assert_eq!(kind(&next.references, "../base").unwrap(), "in/base");
        let out = top.path().join("out/base");
        for references in [&references, &next.references] {
            assert_eq!(kind(references, out.to_str().unwrap()), Err(Kind::Denied));
        }
    }

    #[test]
    fn a_folder_below_that_is_another_one_now_is_not_followed() {
        let (top, references) = folders();
        let next = references
            .open(b"deep/base", "backing file", OpenMode::ReadOnly)
            .unwrap();
        std::fs::write(top.path().join("out/next"), "out/next").unwrap();
        swap(&top, "in/deep", "out");
        assert_eq!(kind(&next.references, "next"), Err(Kind::Io));
    }

    #[test]
    fn a_link_to_the_image_s_folder_does_not_open_the_folder_of_the_link() {
        let (top, references) = folders();
        std::os::unix::fs::symlink("../in/base", top.path().join("out/link")).unwrap();
        std::fs::write(top.path().join("out/secret"), "secret").unwrap();
        let link = top.path().join("out/link");
        let next = references
            .open(
                link.as_os_str().as_bytes(),
                "backing file",
                OpenMode::ReadOnly,
            )
            .unwrap();
        assert_eq!(kind(&next.references, "secret"), Err(Kind::Io));
        let absolute = top.path().join("out/secret");
        assert_eq!(
            kind(&next.references, absolute.to_str().unwrap()),
            Err(Kind::Denied)
        );
        // Its own folder is the image's.
        assert_eq!(kind(&next.references, "deep/base").unwrap(), "in/deep/base");
    }
}
