//! The folder that holds the state folders of a user's units.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use nbdserve::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};

use super::dir::{UNBORN_SUFFIX, UnitDir};
use super::record::is_id;

/// Ends the name of a private unit's mount point, which begins with the unit's id.
const PRIVATE_SUFFIX: &str = ".root";
/// What was not finished is left alone for this long.
const OLD: Duration = Duration::from_secs(60);

/// The folder that holds the state of all units of this user.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// `/run/loopmount` for root, `$XDG_RUNTIME_DIR/loopmount` or `/tmp/loopmount-UID` for others.
    #[must_use]
    pub fn of_user() -> Self {
        let path = if rustix::process::geteuid().is_root() {
            PathBuf::from("/run/loopmount")
        } else if let Some(dir) = runtime_dir() {
            dir.join("loopmount")
        } else {
            without_runtime_dir()
        };
        Self { path }
    }

    /// [`Self::of_user`], if nobody else can have written what is in it.
    ///
    /// # Errors
    /// When it is not there, or somebody else's.
    pub fn trusted() -> Result<Self> {
        let state = Self::of_user();
        state.check().map(|()| state)
    }

    /// Keeps systemd-tmpfiles(8) away while the result lives: it removes from /tmp what nobody has written
    /// for ten days, but not from a folder with a lock. `None` where that cannot be had.
    #[must_use]
    pub fn keep_from_cleaners(&self) -> Option<File> {
        let folder = File::open(&self.path).ok()?;
        let locked = flock(&folder, FlockOperation::NonBlockingLockShared);
        locked.is_ok().then_some(folder)
    }

    /// Where the state of this user's other units may be: a login has an `XDG_RUNTIME_DIR`, a job of
    /// cron or a command under su(1) has none.
    fn others(&self) -> Vec<Self> {
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            return Vec::new();
        }
        let of_login = format!("/run/user/{}/loopmount", uid.as_raw());
        [PathBuf::from(of_login), without_runtime_dir()]
            .into_iter()
            .filter(|path| *path != self.path)
            .map(|path| Self { path })
            .filter(|state| state.check().is_ok())
            .collect()
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
        self.check()
    }

    /// Whether the folder is there and nobody else can have written what is in it.
    fn check(&self) -> Result<()> {
        let shown = self.path.display();
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

    /// [`Self::check`], of a folder that may be missing. What is wrong is logged.
    fn is_ours(&self) -> bool {
        if fs::symlink_metadata(&self.path).is_err() {
            return false;
        }
        let checked = self.check();
        if let Err(error) = &checked {
            tracing::warn!("{}", error.report());
        }
        checked.is_ok()
    }

    /// Removes what those have left that were killed before their unit existed: mount points of
    /// private units, and folders that were to become one.
    pub fn sweep(&self) {
        if self.check().is_err() {
            return;
        }
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let of = |suffix| name.strip_suffix(suffix).filter(|id| is_id(id));
            // Somebody may be about to make the unit.
            let old = entry.metadata().is_ok_and(|meta| is_old(&meta));
            if old && of(PRIVATE_SUFFIX).is_some_and(|id| !self.unit(id).exists()) {
                // It is empty, or it is not one of them.
                let _ = fs::remove_dir(entry.path());
            }
            let unborn = UnitDir::new(entry.path());
            // An empty one goes at once: who is making it makes it again.
            if of(UNBORN_SUFFIX).is_some()
                && fs::remove_dir(entry.path()).is_err()
                && (unborn.is_abandoned() || (old && !unborn.is_locked()))
            {
                let _ = unborn.empty();
            }
        }
    }

    /// The folder of one unit.
    #[must_use]
    pub fn unit(&self, id: &str) -> UnitDir {
        UnitDir::new(self.path.join(id))
    }

    /// The folder of a unit that the kernel knows: here, or where else this user has one.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<UnitDir> {
        let own = self.check().is_ok().then(|| self.unit(id));
        let others = self.others().into_iter().map(|state| state.unit(id));
        own.into_iter().chain(others).find(UnitDir::exists)
    }

    /// The folders of all units, by id; none when somebody else can write to the folder.
    #[must_use]
    pub fn units(&self) -> Vec<UnitDir> {
        if !self.is_ours() {
            return Vec::new();
        }
        let mut found: Vec<_> = fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(is_id))
            .map(|entry| UnitDir::new(entry.path()))
            .collect();
        found.sort_by(|a, b| a.path().cmp(b.path()));
        found
    }
}

/// The folder of a user without a runtime folder.
fn without_runtime_dir() -> PathBuf {
    let uid = rustix::process::geteuid();
    PathBuf::from(format!("/tmp/loopmount-{}", uid.as_raw()))
}

fn runtime_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    (dir.is_absolute() && dir.is_dir()).then_some(dir)
}

/// Whether something was made so long ago that nobody is still at it.
fn is_old(meta: &fs::Metadata) -> bool {
    let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age >= OLD)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_was_never_finished_is_swept_away_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir {
            path: dir.path().to_owned(),
        };
        let _lock = state.unit("0123abcd").create(|_| Ok(())).unwrap();
        let folders = [
            state.private_target("0123abcd"),
            state.private_target("deadbeef"),
            dir.path().join("cafecafe.new"),
        ];
        for folder in &folders {
            fs::create_dir(folder).unwrap();
        }
        // Where a lock cannot be made before its folder.
        fs::write(folders[2].join("lock.new"), "").unwrap();
        let empty = dir.path().join("cafe0001.new");
        fs::create_dir(&empty).unwrap();
        // Its maker was killed, or its remover: nobody has the lock.
        let abandoned = dir.path().join("cafe0000.new");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("lock"), "").unwrap();
        state.sweep();
        assert!(!abandoned.exists() && !empty.exists());
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
    fn a_folder_in_use_has_a_lock_that_cleaners_respect() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir {
            path: dir.path().to_owned(),
        };
        let cleaner = File::open(dir.path()).unwrap();
        let try_lock = || flock(&cleaner, FlockOperation::NonBlockingLockExclusive);
        // Several units have it at the same time.
        let kept = [state.keep_from_cleaners(), state.keep_from_cleaners()];
        assert!(kept.iter().all(Option::is_some));
        assert!(try_lock().is_err());
        drop(kept);
        assert!(try_lock().is_ok());
        assert!(state.keep_from_cleaners().is_none());
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
                    // Who looks also cleans up.
                    state.sweep();
                    for unit in state.units() {
                        // Gone meanwhile, or locked.
                        assert!(unit.is_locked() || !unit.exists());
                    }
                }
            });
            for n in 0..500 {
                let unit = state.unit(&format!("{n:08x}"));
                let _lock = unit.create(|_| Ok(())).unwrap();
                fs::rename(unit.path(), dir.path().join("gone")).unwrap();
                fs::remove_dir_all(dir.path().join("gone")).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
