//! The folder of one image in a store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Store, folder, hex};

/// The file that says which image a folder is about.
const ABOUT: &str = "about.json";
/// Somebody who takes the folder away holds its lock for a moment: so often it is tried again.
const TRIES: u32 = 50;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(4);

/// Which image a folder is about, for people.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct About {
    /// What it was called when it was last opened.
    pub(super) name: String,
    /// What tells it from others.
    pub(super) identity: String,
}

impl About {
    /// What is written in `folder`.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(ABOUT)).ok()?).ok()
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        folder::replace(&folder.join(ABOUT), |file| file.write_all(&text))
    }
}

/// One image. Its folder is made when something is kept, and locked (shared) from its first use
/// on, so that nobody takes it away to make room.
#[derive(Debug)]
pub(super) struct Image {
    store: Arc<Store>,
    folder: PathBuf,
    about: About,
    /// The locked folder.
    lock: Mutex<Option<File>>,
}

impl Image {
    pub(super) fn new(store: Arc<Store>, identity: &str, name: &str) -> Self {
        Self {
            folder: store.images().join(hex(identity)),
            store,
            about: About {
                name: name.to_owned(),
                identity: identity.to_owned(),
            },
            lock: Mutex::new(None),
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// The folder, if it is there.
    pub(super) fn enter(&self) -> Option<&Path> {
        let mut lock = self.current();
        if lock.is_none() {
            *lock = Some(open_locked(&self.folder)?);
            self.note_use();
        }
        Some(&self.folder)
    }

    /// The folder, which is made if it is not there. `None` when that cannot be; the log says why.
    pub(super) fn make(&self) -> Option<&Path> {
        let mut lock = self.current();
        if lock.is_some() {
            return Some(&self.folder);
        }
        for _ in 0..TRIES {
            if let Err(error) = folder::private(&self.folder) {
                let shown = self.folder.display();
                tracing::warn!("nothing is kept of this image: cannot make {shown}: {error}");
                return None;
            }
            if let Some(file) = open_locked(&self.folder) {
                *lock = Some(file);
                self.note_use();
                return Some(&self.folder);
            }
        }
        tracing::warn!("nothing is kept of this image: its folder in the cache is locked");
        None
    }

    /// Whether `more` bytes may be kept of this image, after others have made room for them.
    pub(super) fn may_grow(&self, more: u64, later: u64) -> bool {
        self.store.make_room(&self.folder, more, later)
    }

    fn note_use(&self) {
        if About::read(&self.folder).is_none_or(|about| about.name != self.about.name)
            && let Err(error) = self.about.write(&self.folder)
        {
            tracing::debug!("cannot say what {} is: {error}", self.folder.display());
        }
        touch(&self.folder);
    }

    /// The locked folder, unless somebody has cleared the cache meanwhile.
    fn current(&self) -> MutexGuard<'_, Option<File>> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.as_ref().is_some_and(|file| !is_at(file, &self.folder)) {
            *lock = None;
        }
        lock
    }
}

/// Makes the folder the one that was used last: its time of modification tells.
fn touch(folder: &Path) {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    let flags = rustix::fs::AtFlags::empty();
    // Where this fails, it goes earlier than it should.
    let _ = rustix::fs::utimensat(rustix::fs::CWD, folder, &times, flags);
}

/// Opens and locks a folder that is there, and still is when it is locked.
fn open_locked(folder: &Path) -> Option<File> {
    for _ in 0..TRIES {
        let file = File::open(folder).ok()?;
        if is_alone(&file) {
            // What a killed writer has left.
            sweep(folder);
        }
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) if is_at(&file, folder) => return Some(file),
            Ok(()) | Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            // A file system without locks: it works, and others may take it away.
            Err(_) => return Some(file),
        }
    }
    None
}

/// Takes the lock for ourselves, if nobody else has it.
pub(super) fn is_alone(folder: &File) -> bool {
    flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Whether `file` is what the path leads to.
pub(in crate::store) fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(folder::NEW) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
