//! The parts that lie beside the first one. Whoever made the image may own its folder, and may not make
//! us open anything else: no link is followed out of it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, Stat};
use rustix::io::Errno;

use super::{Look, MOST_PARTS, Series, missing, too_many};
use crate::error::{escape, shell};
use crate::folder::{self, Folder, Within};
use crate::source::{File, OpenMode};
use crate::{Error, Kind, Result};

/// Most entries of a folder that are looked at for parts behind a gap.
const MOST_ENTRIES: usize = 100_000;

/// Where the parts of an image are, and what they are called.
#[derive(Debug)]
pub(super) struct Beside {
    /// The first part's name, as messages have it.
    first: PathBuf,
    /// Who owns the first part.
    owner: u32,
    folder: Folder,
    series: Series,
    /// Folders into which a link may lead.
    allowed: Vec<Arc<Folder>>,
}

impl Beside {
    /// For a first part that was opened as `file`, and is at `first`; `None` when it does not have the
    /// name of one.
    ///
    /// # Errors
    /// `Changed` when it is no longer there.
    pub(super) fn find(first: &Path, file: &File, allowed: &[PathBuf]) -> Result<Option<Self>> {
        let stat = rustix::fs::fstat(file)
            .map_err(|errno| Error::io(format!("cannot look at {}", file.display_name()), errno))?;
        let is_link = std::fs::symlink_metadata(first).is_ok_and(|meta| meta.is_symlink());
        let real = is_link.then(|| first.canonicalize().ok()).flatten();
        let places = real
            .map(|real| (real, AtFlags::SYMLINK_NOFOLLOW))
            .into_iter()
            .chain([(first.to_owned(), AtFlags::empty())]);
        let mut found: Option<Self> = None;
        for (first, links) in places {
            let name = first.file_name().and_then(|name| name.to_str());
            let Some(series) = name.and_then(Series::of) else {
                continue;
            };
            let Some(folder) = Folder::of_file(&first, folder::id(&stat), links) else {
                let what = format!("{} is another file now than a moment ago", first.display());
                return Err(Error::new(Kind::Changed, what));
            };
            let this = Self {
                first,
                owner: stat.st_uid,
                folder,
                series,
                allowed: Vec::new(),
            };
            if this.has_later() {
                found = Some(this);
                break;
            }
            found = found.or(Some(this));
        }
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let named = allowed
            .iter()
            .map(|path| Arc::new(Folder::at(absolute(path))));
        Ok(found.map(|found| Self {
            allowed: named.collect(),
            ..found
        }))
    }

    /// Whether there is any other part.
    fn has_later(&self) -> bool {
        let second = self.series.name(1);
        second.is_some_and(|name| self.folder.entry(&name).is_ok()) || self.behind(0).is_some()
    }

    /// The names of the parts behind the first, as many as `look` wants.
    ///
    /// # Errors
    /// When one is missing that has to be there, or there are too many.
    pub(super) fn names(&self, look: Look) -> Result<Vec<String>> {
        let mut names = Vec::new();
        loop {
            let index = names.len() + 1;
            if look == Look::Exactly(index) {
                break;
            }
            let Some(name) = self.series.name(index) else {
                break;
            };
            // What is there and cannot be looked at fails when it is opened.
            if self.folder.entry(&name).is_err() {
                let path = self.path(&name);
                if matches!(look, Look::Exactly(_)) {
                    let what = format!("there is no part {}", path.display());
                    return Err(Error::new(Kind::NotThisFormat, what));
                }
                if let Some(later) = self.behind(index) {
                    return Err(missing(&path.display().to_string(), &later));
                }
                break;
            }
            if index >= MOST_PARTS {
                return Err(too_many());
            }
            names.push(name);
        }
        Ok(names)
    }

    /// The first part that is there after the part `index`.
    fn behind(&self, index: usize) -> Option<String> {
        let names = self.folder.names().ok()?.take(MOST_ENTRIES);
        let later = names.filter_map(|name| {
            let at = self.series.index(name.to_str().ok()?)?;
            // A number of eight digits is a date.
            (at > index && at < MOST_PARTS).then_some(at)
        });
        self.series.name(later.min()?)
    }

    /// As messages have it.
    fn path(&self, name: &str) -> PathBuf {
        self.first.with_file_name(name)
    }

    /// Opens the part `name`; `before` parts come before it.
    ///
    /// # Errors
    /// `Denied` when it is not in the folder, or may have been put there by somebody else; as
    /// [`File::open`].
    pub(super) fn open(&self, name: &str, before: usize, mode: OpenMode) -> Result<File> {
        let shown = self.path(name).display().to_string();
        let within = Within {
            own: &self.folder,
            allowed: &self.allowed,
        };
        let path = self.folder.path().join(name);
        let open = |flags: OFlags| -> Result<OwnedFd> {
            let opened = within.open(&path, flags);
            opened.map(|(fd, _)| fd).map_err(|errno| match errno {
                // EXDEV: a link leaves the folder. ELOOP: it is one of /proc, or leads to itself.
                Errno::XDEV | Errno::LOOP => self.outside(&path, &shown, before),
                Errno::NOSYS => {
                    let what = format!("the part {shown} is a link, and no other file");
                    Error::new(
                        Kind::Unsupported,
                        format!("{what}: following it takes Linux 5.6"),
                    )
                }
                errno => File::cannot_open(&shown, errno),
            })
        };
        let file = File::open_by(&shown, mode, open)?;
        self.check_owner(name, &shown, &file)?;
        Ok(file)
    }

    /// That a link leads to where nothing may be opened.
    fn outside(&self, path: &Path, shown: &str, before: usize) -> Error {
        let parent = self
            .first
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let folder = parent.unwrap_or(Path::new(".")).display().to_string();
        let folder = escape(&folder);
        let first_only = format!("--layer split:parts={before} takes what comes before it");
        let Ok(real) = path.canonicalize() else {
            let what =
                format!("the part {shown} is a link that leads nowhere in the folder {folder}");
            return Error::new(Kind::Denied, what).hint(first_only);
        };
        let target = escape(&real.display().to_string());
        let what =
            format!("the part {shown} is a link out of the image's folder {folder}, to {target}");
        let place = real.parent().unwrap_or(&real).display().to_string();
        let place = shell(&place);
        Error::new(Kind::Denied, what).hint(format!("--references {place} allows it, {first_only}"))
    }

    /// In a folder like `/tmp` anybody may put a file where a part would be.
    fn check_owner(&self, name: &str, shown: &str, file: &File) -> Result<()> {
        let cannot = |errno| Error::io(format!("cannot look at {shown}"), errno);
        let folder = &self.folder;
        let consent = self.allowed.iter().any(|allowed| allowed.is(folder));
        if consent || !folder.is_shared().map_err(cannot)? {
            return Ok(());
        }
        let entry = folder.entry(name).map_err(cannot)?;
        let opened = rustix::fs::fstat(file).map_err(cannot)?;
        let Some(stranger) = stranger(self.owner, &entry, &opened) else {
            return Ok(());
        };
        let place = folder.path().canonicalize();
        let place = place.unwrap_or_else(|_| folder.path().to_owned());
        let place = place.display().to_string();
        let what = format!(
            "the part {shown} belongs to the user {stranger} and the first part to {}, in {}, where everybody \
             may put files",
            self.owner,
            escape(&place)
        );
        Err(Error::new(Kind::Denied, what).hint(format!(
            "--references {} takes it all the same, --layer split:parts=1 the first only",
            shell(&place)
        )))
    }
}

/// Who has had a hand in the part that is in the folder as `entry` and was opened as `file`, beside
/// `owner`, who owns the first part, and root.
fn stranger(owner: u32, entry: &Stat, file: &Stat) -> Option<u32> {
    const ROOT: u32 = 0;
    let others = |stat: &Stat| (stat.st_uid != owner && stat.st_uid != ROOT).then_some(stat.st_uid);
    let is_link = folder::id(entry) != folder::id(file);
    // What root keeps there is not for whoever makes a link to it.
    let taken = is_link && entry.st_uid != ROOT && file.st_uid != owner;
    others(entry)
        .or_else(|| others(file))
        .or(taken.then_some(file.st_uid))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_that_is_another_one_now_is_not_that_of_the_first_part() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        for folder in ["in", "out"] {
            fs::create_dir(path(folder)).unwrap();
            for part in ["disk.001", "disk.002"] {
                fs::write(path(folder).join(part), folder).unwrap();
            }
        }
        let first = path("in/disk.001");
        let file = File::open(&first, OpenMode::ReadOnly).unwrap();
        let beside = Beside::find(&first, &file, &[]).unwrap().unwrap();
        fs::rename(path("in"), path("moved")).unwrap();
        symlink("out", path("in")).unwrap();
        // One that was found stays the same.
        assert_eq!(beside.names(Look::Auto).unwrap(), ["disk.002"]);
        let second = beside.open("disk.002", 1, OpenMode::ReadOnly).unwrap();
        let moved = fs::File::open(path("moved/disk.002")).unwrap();
        assert_eq!(folder::id_of(&second), folder::id_of(&moved));
        // Between the opening of the first part and the look for others.
        let error = Beside::find(&first, &file, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Changed);
    }

    #[test]
    fn a_stranger_is_who_has_neither_the_first_part_nor_the_machine() {
        let top = tempfile::tempdir().unwrap();
        let stat = rustix::fs::stat(top.path()).unwrap();
        let of = |uid, inode| {
            let mut stat = stat;
            (stat.st_uid, stat.st_ino) = (uid, inode);
            stat
        };
        let (root, owner, other) = (0, 1000, 1001);
        // A file by itself.
        for (uid, expected) in [(root, None), (owner, None), (other, Some(other))] {
            assert_eq!(stranger(owner, &of(uid, 1), &of(uid, 1)), expected);
        }
        // A link, and the file it leads to.
        for (link, file, expected) in [
            (owner, owner, None),
            (root, owner, None),
            (root, root, None),
            (owner, root, Some(root)),
            (owner, other, Some(other)),
            (root, other, Some(other)),
            (other, owner, Some(other)),
            (other, root, Some(other)),
        ] {
            let found = stranger(owner, &of(link, 1), &of(file, 2));
            assert_eq!(found, expected, "{link} {file}");
        }
        assert_eq!(stranger(root, &of(other, 1), &of(other, 1)), Some(other));
    }
}
