//! How much a store holds, and what goes when that is too much.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::image::{About, is_alone};
use super::{Store, hex};
use crate::{Error, Result};

/// When room is made, this part of the limit is left free, so that it is not made each time.
const SLACK: u64 = 16;
/// Of a file system, one part in this many is left to others.
const LEAVE_PART: u64 = 20;
/// No more than this is left to others.
const LEAVE_MOST: u64 = 1 << 30;

/// So long a writer waits while another one makes room.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(4);

/// What a store holds.
#[derive(Debug, Serialize)]
pub struct Usage {
    /// Where it is.
    pub folder: PathBuf,
    /// Most bytes of disk that it takes.
    pub limit: u64,
    /// Bytes of disk that it takes now.
    pub used: u64,
    /// Used last comes first.
    pub images: Vec<Kept>,
}

/// What is kept of one image.
#[derive(Debug, Serialize)]
pub struct Kept {
    /// What the image was called when it was last opened.
    pub name: String,
    /// What tells it from others.
    #[serde(skip)]
    pub identity: String,
    /// Bytes of disk, of which:
    pub bytes: u64,
    /// indexes and other tables,
    pub indexes: u64,
    /// decoded bytes,
    pub decoded: u64,
    /// fetched bytes.
    pub fetched: u64,
    /// When it was last opened, in seconds since 1970.
    pub last_use: u64,
    /// Whether a process has it open.
    pub in_use: bool,
    #[serde(skip)]
    folder: PathBuf,
    #[serde(skip)]
    used_at: Option<SystemTime>,
}

impl Kept {
    /// What is in `folder`, if it is there.
    fn of(folder: &Path) -> Option<Self> {
        let meta = fs::metadata(folder).ok()?;
        let used_at = meta.modified().ok();
        let since = used_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let about = About::read(folder);
        let (name, identity) = about.map_or_else(
            || ("?".to_owned(), String::new()),
            |about| (about.name, about.identity),
        );
        let mut kept = Self {
            name,
            identity,
            bytes: 0,
            indexes: 0,
            decoded: 0,
            fetched: 0,
            last_use: since.map_or(0, |since| since.as_secs()),
            in_use: false,
            folder: folder.to_owned(),
            used_at,
        };
        for entry in fs::read_dir(folder).ok()?.flatten() {
            // It may be gone by now.
            let Ok(meta) = entry.metadata() else { continue };
            let bytes = meta.blocks().saturating_mul(512);
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let part = if name.ends_with(".http.pages") {
                &mut kept.fetched
            } else if name.ends_with(".pages") {
                &mut kept.decoded
            } else {
                &mut kept.indexes
            };
            *part = part.saturating_add(bytes);
            kept.bytes = kept.bytes.saturating_add(bytes);
        }
        Some(kept)
    }
}

impl Store {
    /// What it holds.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut images = self.kept();
        for image in &mut images {
            image.in_use = File::open(&image.folder).is_ok_and(|folder| !is_alone(&folder));
        }
        images.reverse();
        Usage {
            folder: self.folder.clone(),
            limit: self.limit,
            used: images.iter().map(|image| image.bytes).sum(),
            images,
        }
    }

    /// Takes away what is kept of the images that `which` names, of those in use too: they go on
    /// without. Bytes of disk that this gives back.
    ///
    /// # Errors
    /// `Io` when something cannot be removed.
    pub fn clear(&self, which: impl Fn(&Kept) -> bool) -> Result<u64> {
        let _alone = self.lock();
        let mut bytes = 0;
        for image in self.kept().iter().filter(|image| which(image)) {
            remove(&image.folder).map_err(|error| {
                Error::io(format!("cannot remove {}", image.folder.display()), error)
            })?;
            bytes += image.bytes;
        }
        Ok(bytes)
    }

    /// Whether `image` is the one with this identity.
    #[must_use]
    pub fn is_about(image: &Kept, identity: &str) -> bool {
        image.folder.ends_with(hex(identity))
    }

    /// Sees to it that there is space for `more` bytes in the folder `mine`, and that the store stays
    /// within its limit with `later` bytes, which are no less: takes away the images that were used
    /// least recently and that nobody uses. False when that is not enough.
    pub(super) fn make_room(&self, mine: &Path, more: u64, later: u64) -> bool {
        let used_by = |images: &[Kept]| {
            let used: u64 = images.iter().map(|image| image.bytes).sum();
            used.saturating_add(later)
        };
        if used_by(&self.kept()) <= self.limit && self.has_space(more) {
            return true;
        }
        // Whoever else makes room now does it for us too, and that is seen when it is done.
        let alone = self.lock_soon();
        let images = self.kept();
        let mut used = used_by(&images);
        if used <= self.limit && self.has_space(more) {
            return true;
        }
        if alone.is_none() {
            return false;
        }
        let wanted = self.limit - self.limit / SLACK;
        for image in &images {
            if used <= wanted && self.has_space(more) {
                break;
            }
            if image.folder == mine {
                continue;
            }
            // The lock is held until the folder is gone: who opens it now looks again.
            let Ok(folder) = File::open(&image.folder) else {
                continue;
            };
            if is_alone(&folder) && remove(&image.folder).is_ok() {
                tracing::debug!("the cache is full: what was kept of {} goes", image.name);
                used = used.saturating_sub(image.bytes);
            }
        }
        used <= self.limit && self.has_space(more)
    }

    /// Whether the file system has `more` bytes for us, and leaves some to others.
    pub(super) fn has_space(&self, more: u64) -> bool {
        let Ok(stat) = rustix::fs::statvfs(&self.folder) else {
            return false;
        };
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        free.saturating_sub((total / LEAVE_PART).min(LEAVE_MOST)) > more
    }

    /// All images, used last comes last.
    fn kept(&self) -> Vec<Kept> {
        let Ok(entries) = fs::read_dir(self.images()) else {
            return Vec::new();
        };
        let folders = entries.flatten().map(|entry| entry.path());
        let mut kept: Vec<_> = folders.filter_map(|folder| Kept::of(&folder)).collect();
        kept.sort_by_key(|image| image.used_at);
        kept
    }

    fn lock_file(&self) -> io::Result<File> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.folder.join("lock"))
    }

    fn lock(&self) -> Option<File> {
        let file = self.lock_file().ok()?;
        flock(&file, FlockOperation::LockExclusive).ok()?;
        Some(file)
    }

    /// As [`Self::lock`], if nobody else has it for longer than a moment.
    fn lock_soon(&self) -> Option<File> {
        let file = self.lock_file().ok()?;
        let began = Instant::now();
        while !is_alone(&file) {
            if began.elapsed() >= LOCK_PATIENCE {
                return None;
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Some(file)
    }
}

/// A folder that others still write to is tried to be removed this often.
const RETRIES: u32 = 100;

/// Removes the folder of an image. Who has files of it open goes on with them, and who makes new ones
/// makes a new folder.
fn remove(folder: &Path) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let gone = folder.with_file_name(format!("gone-{}-{number}", std::process::id()));
    // Who was on the way into the folder when its name went may still make a file in it.
    let mut tries = 0..RETRIES;
    let mut empty = || loop {
        match fs::remove_dir_all(&gone) {
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries.next().is_some() => {}
            other => return other,
        }
    };
    match fs::rename(folder, &gone).and_then(|()| empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
