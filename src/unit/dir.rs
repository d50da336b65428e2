//! The state folder of a unit: `unit.json`, `lock`, `log`.
//!
//! The record is replaced atomically. The lock is held with flock(2) while a supervisor (or somebody
//! undoing its work) is alive. The folder itself comes and goes by rename.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbdserve::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat, open};
use rustix::io::Errno;

use super::record::Record;
use super::stats;

/// Ends the name of a folder that will be a unit's.
pub(super) const UNBORN_SUFFIX: &str = ".new";
/// A new folder that vanishes before its lock is in it is made again, so often at most.
const MANY: usize = 100;
/// Held while somebody looks after the unit.
const LOCK: &str = "lock";
/// The same, before it is held.
const NEW_LOCK: &str = "lock.new";
/// What was written and did not reach the image, as a sentence; empty when all did.
const LOST: &str = "lost";
/// A record larger than this was not written by us.
const MAX_RECORD: u64 = 1 << 20;

/// The state folder of one unit.
#[derive(Clone, Debug)]
pub struct UnitDir {
    path: PathBuf,
}

/// A lock that is taken and has no name yet; `None` where the file system has no such files.
fn nameless_lock(folder: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = File::from(open(folder, flags, Mode::RUSR | Mode::WUSR).ok()?);
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// Held while a unit is looked after. Released by drop, and by the death of the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// How waiting for a lock ended.
#[derive(Debug)]
pub enum Waited {
    /// It is ours now.
    Locked(Lock),
    /// The whole folder is gone.
    Gone,
    /// Somebody still has it.
    Held,
}

impl UnitDir {
    /// The folder at `path`, which need not be there. Its name is the id.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The unit's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    /// Makes the folder, with its lock taken and what `fill` writes into it: whoever sees the folder
    /// sees that somebody looks after it, and after what.
    ///
    /// # Errors
    /// When it cannot be made or is there already, and those of `fill`.
    pub fn create(&self, fill: impl FnOnce(&Self) -> Result<()>) -> Result<Lock> {
        let fail = |error| {
            let what = format!("cannot make the folder {}", self.path.display());
            Error::io(what, error)
        };
        let unborn = self.unborn();
        let made = || {
            let lock = unborn.make_locked().map_err(fail)?;
            fill(&unborn)?;
            fs::rename(&unborn.path, &self.path).map_err(fail)?;
            Ok(lock)
        };
        made().inspect_err(|_| {
            let _ = unborn.empty();
        })
    }

    /// Makes the folder with its lock. An empty one is anybody's to remove.
    fn make_locked(&self) -> std::io::Result<Lock> {
        let nameless = self.path.parent().and_then(nameless_lock);
        for _ in 0..MANY {
            DirBuilder::new().mode(0o700).create(&self.path)?;
            let made = match &nameless {
                Some(lock) => self.name_lock(lock),
                None => self.make_lock(),
            };
            match made {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        Err(Errno::NOENT.into())
    }

    fn name_lock(&self, nameless: &File) -> std::io::Result<Lock> {
        let from = format!("/proc/self/fd/{}", nameless.as_raw_fd());
        let file = nameless.try_clone()?;
        linkat(CWD, &*from, CWD, self.join(LOCK), AtFlags::SYMLINK_FOLLOW)?;
        Ok(Lock { _file: file })
    }

    /// The folder's name while there is no unit of it, yet or any more.
    fn unborn(&self) -> Self {
        let mut path = self.path.clone().into_os_string();
        path.push(UNBORN_SUFFIX);
        Self { path: path.into() }
    }

    /// Makes the file in which the server says at its end what could not be written. It is there from
    /// the start on, so that whoever waits for the end can hold it open.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_lost(&self) -> Result<File> {
        let path = self.join(LOST);
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).write(true).mode(0o600);
        file.open(&path)
            .map_err(|error| Error::io(format!("cannot make {}", path.display()), error))
    }

    /// Writes to the file of [`Self::make_lost`], which somebody may hold open.
    ///
    /// # Errors
    /// When it is not there, or cannot be written.
    pub fn note_lost(&self, text: &str) -> Result<()> {
        let path = self.join(LOST);
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
    }

    /// The file of [`Self::make_lost`], if there is one.
    #[must_use]
    pub fn open_lost(&self) -> Option<File> {
        File::open(self.join(LOST)).ok()
    }

    /// A path inside the folder.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether the folder is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Takes the lock, or `None` when it is held.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        let path = self.join(LOCK);
        let fail = |error| Error::io(format!("cannot open {}", path.display()), error);
        let file = match OpenOptions::new().write(true).open(&path) {
            // Something that cleans up has taken it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.exists() => {
                return self.make_lock().map(Some).map_err(fail);
            }
            other => other.map_err(fail)?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::io(format!("cannot lock {}", path.display()), errno)),
        }
    }

    /// As [`Self::try_lock`], for somebody who only removes what is left: nobody else can do that or take
    /// the lock meanwhile, but to others the unit is not one that is looked after. `None` also when the
    /// folder is gone.
    pub(super) fn try_lock_to_remove(&self) -> Option<(Lock, Lock)> {
        let folder = File::open(&self.path).ok()?;
        flock(&folder, FlockOperation::NonBlockingLockExclusive).ok()?;
        let file = File::open(self.join(LOCK)).or_else(|_| {
            // Something that cleans up has taken it.
            self.make_lock()?;
            File::open(self.join(LOCK))
        });
        let file = file.ok()?;
        flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        Some((Lock { _file: folder }, Lock { _file: file }))
    }

    /// Makes the lock, taken: whoever finds it free knows that nobody looks after the folder.
    fn make_lock(&self) -> std::io::Result<Lock> {
        let new = self.join(NEW_LOCK);
        let mut options = OpenOptions::new();
        let file = options
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        fs::rename(new, self.join(LOCK))?;
        Ok(Lock { _file: file })
    }

    /// Whether there is a lock and nobody has it.
    #[must_use]
    pub(super) fn is_abandoned(&self) -> bool {
        self.join(LOCK).exists() && matches!(self.try_lock(), Ok(Some(_)))
    }

    /// Takes the lock as soon as it is free, and waits for that at most `limit`.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn lock_within(&self, limit: Duration) -> Result<Waited> {
        let deadline = Instant::now() + limit;
        loop {
            match self.try_lock() {
                Ok(Some(lock)) => return Ok(Waited::Locked(lock)),
                Ok(None) => {}
                // Whoever held the lock was the last and has removed the folder.
                Err(_) if !self.exists() => return Ok(Waited::Gone),
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Ok(Waited::Held);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether somebody looks after the unit.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        let Ok(file) = File::open(self.join(LOCK)) else {
            return false;
        };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Reads the record; `None` when there is none yet or no more.
    ///
    /// # Errors
    /// When it is there but not readable.
    pub fn read(&self) -> Result<Option<Record>> {
        let path = self.join("unit.json");
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other
                .map_err(|error| Error::io(format!("cannot open {}", path.display()), error))?,
        };
        let mut text = Vec::new();
        file.take(MAX_RECORD)
            .read_to_end(&mut text)
            .map_err(|error| Error::io(format!("cannot read {}", path.display()), error))?;
        serde_json::from_slice(&text).map(Some).map_err(|cause| {
            Error::new(
                Kind::Corrupt,
                format!("{} is not a record of ours", path.display()),
            )
            .caused_by(cause)
        })
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// When it cannot be written; the old one is then still there.
    pub fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|cause| Error::new(Kind::Io, "cannot encode the record").caused_by(cause))?;
        self.replace("unit.json", "unit.json.new", &text)
            .map_err(|error| {
                let path = self.join("unit.json");
                Error::io(format!("cannot write {}", path.display()), error)
            })
    }

    /// Writes the file `new` and gives it the name `name`.
    ///
    /// # Errors
    /// What the system says; the old file is then still there.
    pub fn replace(&self, name: &str, new: &str, text: &[u8]) -> std::io::Result<()> {
        let new = self.join(new);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text)?;
        fs::rename(&new, self.join(name))
    }

    /// Removes the folder with everything in it that is ours. Does not enter mount points. Nobody
    /// sees a part of it.
    ///
    /// # Errors
    /// When something is left.
    pub fn remove(&self) -> Result<()> {
        let unborn = self.unborn();
        match fs::rename(&self.path, &unborn.path) {
            Ok(()) => unborn.empty(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(_) => self.empty(),
        }
    }

    /// Removes what is in the folder, and it.
    pub(super) fn empty(&self) -> Result<()> {
        let files = [
            "unit.json.new",
            "unit.json",
            stats::NEW_FILE,
            stats::FILE,
            LOST,
            "disk",
            "log",
            NEW_LOCK,
            LOCK,
        ];
        for name in files {
            let _ = fs::remove_file(self.join(name));
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
                format!("cannot remove {}", self.path.display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_held_by_one_and_seen_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let unit = UnitDir {
            path: dir.path().join("0123abcd"),
        };
        let lock = unit.create(|_| Ok(())).unwrap();
        assert!(unit.is_locked());
        assert!(unit.try_lock().unwrap().is_none());
        drop(lock);
        assert!(!unit.is_locked());
        assert!(unit.try_lock().unwrap().is_some());
        unit.remove().unwrap();
        assert!(!unit.exists());
        unit.remove().unwrap();
    }

    #[test]
    fn who_removes_what_is_left_is_alone_and_does_not_look_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let unit = UnitDir::new(dir.path().join("0badcafe"));
        let lock = unit.create(|_| Ok(())).unwrap();
        assert!(unit.try_lock_to_remove().is_none(), "it is looked after");
        drop(lock);
        let locks = unit.try_lock_to_remove().unwrap();
        assert!(!unit.is_locked());
        assert!(unit.try_lock().unwrap().is_none());
        assert!(unit.try_lock_to_remove().is_none(), "one is enough");
        drop(locks);
        // Also where something that cleans up has taken the lock.
        fs::remove_file(unit.join(LOCK)).unwrap();
        assert!(unit.try_lock_to_remove().is_some());
        unit.remove().unwrap();
        assert!(unit.try_lock_to_remove().is_none());
    }
}
