//! The state folder of a unit: `unit.json`, `lock`, `log`.
//!
//! The record is written before each step that it allows to undo, and replaced atomically. The
//! lock is held with flock(2) while a supervisor (or somebody undoing its work) is alive.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nbdserve::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::message::{Opened, Request, Via};
use super::stats;

/// Ends the name of a private unit's mount point, which begins with the unit's id.
const PRIVATE_SUFFIX: &str = ".root";
/// Ends the name of a folder that will be a unit's.
const UNBORN_SUFFIX: &str = ".new";
/// What was not finished is left alone for this long.
const OLD: Duration = Duration::from_secs(60);
/// What was written and did not reach the image, as a sentence; empty when all did.
const LOST: &str = "lost";
/// A record larger than this was not written by us.
const MAX_RECORD: u64 = 1 << 20;

/// What is known of a unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Format of this file.
    pub version: u32,
    /// What the unit was started with.
    pub request: Request,
    /// What the image turned out to be, once known.
    pub opened: Option<Opened>,
    /// The means, once chosen.
    pub via: Option<Via>,
    /// The loop or NBD device, once there.
    pub device: Option<PathBuf>,
    /// How far it got.
    pub stage: Stage,
    /// Process id of the supervisor; none for a plain loop device.
    pub supervisor: Option<u32>,
    /// Process id of the server.
    pub server: Option<u32>,
    /// Seconds since 1970.
    pub started: u64,
    /// What has to be undone, in the order it was done.
    pub undo: Vec<Undo>,
}

/// How far a unit got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not usable yet.
    Starting,
    /// Usable.
    Mounted,
    /// Being taken down.
    Ending,
}

/// One thing to undo. Each is found by the unit's id, so undoing twice is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undo {
    /// The target was created for the unit.
    RemoveTarget,
    /// A FUSE mount whose source carries the id.
    FuseMount,
    /// A loop device whose backing name carries the id.
    Loop,
    /// An NBD device whose backend identifier carries the id.
    Nbd,
    /// The kernel's file system on the unit's device.
    KernelMount,
}

impl Record {
    /// The record of a unit that has just begun.
    #[must_use]
    pub fn new(request: Request) -> Self {
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        Self {
            version: 1,
            request,
            opened: None,
            via: None,
            device: None,
            stage: Stage::Starting,
            supervisor: None,
            server: None,
            started,
            undo: Vec::new(),
        }
    }
}

/// The folder that holds the state of all units of this user.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// `/run/loopmount` for root, `$XDG_RUNTIME_DIR/loopmount` or `/tmp/loopmount-UID` for others.
    #[must_use]
    pub fn of_user() -> Self {
        let uid = rustix::process::geteuid();
        let path = if uid.is_root() {
            PathBuf::from("/run/loopmount")
        } else if let Some(dir) = runtime_dir() {
            dir.join("loopmount")
        } else {
            PathBuf::from(format!("/tmp/loopmount-{}", uid.as_raw()))
        };
        Self { path }
    }

    /// Makes the folder if it is not there, private to the user.
    ///
    /// # Errors
    /// When it cannot be made, or when somebody else owns it.
    pub fn create(&self) -> Result<()> {
        let shown = self.path.display();
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(
                    Error::io(format!("cannot make the state folder {shown}"), error)
                        .hint("set XDG_RUNTIME_DIR to a folder of your own"),
                );
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(&self.path).map_err(|error| {
            Error::io(format!("cannot look at the state folder {shown}"), error)
        })?;
        let owned = meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_dir() || !owned || meta.mode() & 0o022 != 0 {
            return Err(Error::new(
                Kind::Denied,
                format!("the state folder {shown} is not a folder that only you can write to"),
            )
            .hint("set XDG_RUNTIME_DIR to a folder of your own"));
        }
        Ok(())
    }

    /// The mount point of a unit that no one else is to see.
    #[must_use]
    pub fn private_target(&self, id: &str) -> PathBuf {
        self.path.join(format!("{id}{PRIVATE_SUFFIX}"))
    }

    /// Removes what those have left that were killed before their unit existed: mount points of
    /// private units, and folders that were to become one.
    pub fn sweep(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // Somebody may be about to make the unit.
            if !entry.metadata().is_ok_and(|meta| is_old(&meta)) {
                continue;
            }
            let of = |suffix| name.strip_suffix(suffix).filter(|id| is_id(id));
            if of(PRIVATE_SUFFIX).is_some_and(|id| !self.unit(id).exists()) {
                // It is empty, or it is not one of them.
                let _ = fs::remove_dir(entry.path());
            }
            let unborn = UnitDir { path: entry.path() };
            if of(UNBORN_SUFFIX).is_some() && !unborn.is_locked() {
                let _ = unborn.remove();
            }
        }
    }

    /// The folder of one unit.
    #[must_use]
    pub fn unit(&self, id: &str) -> UnitDir {
        UnitDir {
            path: self.path.join(id),
        }
    }

    /// The folders of all units, by id.
    #[must_use]
    pub fn units(&self) -> Vec<UnitDir> {
        let mut found: Vec<_> = fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(is_id))
            .map(|entry| UnitDir { path: entry.path() })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }
}

fn runtime_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    (dir.is_absolute() && dir.is_dir()).then_some(dir)
}

/// Whether `text` has the form of a unit's id.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() == 8
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether something was made so long ago that nobody is still at it.
fn is_old(meta: &fs::Metadata) -> bool {
    let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age >= OLD)
}

/// An id that no unit has.
///
/// # Errors
/// When the system gives no random numbers.
pub fn new_id() -> Result<String> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::io("cannot read /dev/urandom", error))?;
    Ok(format!("{:08x}", u32::from_le_bytes(bytes)))
}

/// The state folder of one unit.
#[derive(Clone, Debug)]
pub struct UnitDir {
    path: PathBuf,
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
    /// The unit's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    /// Makes the folder, with its lock taken: whoever sees the folder sees that somebody looks after
    /// it.
    ///
    /// # Errors
    /// When it cannot be made or is there already.
    pub fn create(&self) -> Result<Lock> {
        let fail = |error| {
            let what = format!("cannot make the folder {}", self.path.display());
            Error::io(what, error)
        };
        let mut path = self.path.clone().into_os_string();
        path.push(UNBORN_SUFFIX);
        let unborn = Self { path: path.into() };
        DirBuilder::new()
            .mode(0o700)
            .create(&unborn.path)
            .map_err(fail)?;
        let lock = unborn.try_lock()?.ok_or_else(|| {
            let what = format!("unit {} is locked by somebody else", self.id());
            Error::new(Kind::Denied, what)
        })?;
        fs::rename(&unborn.path, &self.path).map_err(|error| {
            let _ = unborn.remove();
            fail(error)
        })?;
        Ok(lock)
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
        let path = self.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io(format!("cannot open {}", path.display()), error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::io(format!("cannot lock {}", path.display()), errno)),
        }
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
        // Opening for writing would create the lock file of a folder that is being removed.
        let Ok(file) = File::open(self.join("lock")) else {
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

    /// Removes the folder with everything in it that is ours. Does not enter mount points.
    ///
    /// # Errors
    /// When something is left.
    pub fn remove(&self) -> Result<()> {
        let files = [
            "unit.json.new",
            "unit.json",
            stats::NEW_FILE,
            stats::FILE,
            LOST,
            "disk",
            "log",
            "lock",
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
        let lock = unit.create().unwrap();
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
    fn what_was_never_finished_is_swept_away_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir {
            path: dir.path().to_owned(),
        };
        let _lock = state.unit("0123abcd").create().unwrap();
        let folders = [
            state.private_target("0123abcd"),
            state.private_target("deadbeef"),
            dir.path().join("cafecafe.new"),
        ];
        for folder in &folders {
            fs::create_dir(folder).unwrap();
        }
        fs::write(folders[2].join("lock"), "").unwrap();
        state.sweep();
        assert!(folders.iter().all(|folder| folder.exists()), "all are new");
        let old = SystemTime::now() - 2 * OLD;
        for folder in &folders {
            File::open(folder).unwrap().set_modified(old).unwrap();
        }
        state.sweep();
        assert!(folders[0].exists(), "its unit is there");
        assert!(!folders[1].exists() && !folders[2].exists());
    }

    #[test]
    fn a_unit_is_never_seen_without_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir {
            path: dir.path().to_owned(),
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for unit in state.units() {
                        // Gone meanwhile, or locked.
                        assert!(unit.is_locked() || !unit.exists());
                    }
                }
            });
            for n in 0..500 {
                let unit = state.unit(&format!("{n:08x}"));
                let _lock = unit.create().unwrap();
                fs::rename(&unit.path, dir.path().join("gone")).unwrap();
                fs::remove_dir_all(dir.path().join("gone")).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn only_eight_hexadecimal_digits_are_an_id() {
        assert!(is_id(&new_id().unwrap()));
        for other in ["", "0123abcde", "0123ABCD", "..", "0123abc/"] {
            assert!(!is_id(other), "{other}");
        }
    }
}
