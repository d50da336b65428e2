//! Which unit the user means: a mount point, an image, a device or an id, found without touching
//! the mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nbdserve::Result;
use nbdserve::source::http::Http;

use super::dir::UnitDir;
use super::processes;
use super::record::{Record, is_id};
use super::state::StateDir;
use super::undo::{Kernel, Traces};

/// More symbolic links in a row than this are not followed, as the kernel has it.
const MAX_LINKS: usize = 40;

/// A unit as far as it can be seen.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Its id.
    pub id: String,
    /// Its state folder, if it is where we look; it may be gone by now.
    pub dir: Option<UnitDir>,
    /// What its supervisor has written, if that is there.
    pub record: Option<Record>,
    /// What the kernel has of it.
    pub traces: Traces,
    /// Whether somebody looks after it.
    pub alive: bool,
    /// The process that answers the kernel for it.
    pub server: Option<u32>,
}

impl Unit {
    fn look(id: String, dir: Option<UnitDir>, kernel: &Kernel) -> Result<Self> {
        let (alive, server, record);
        if let Some(dir) = &dir {
            record = dir.read().unwrap_or(None);
            alive = dir.is_locked();
            server = record.as_ref().and_then(|record| record.server);
        } else {
            // Its state is where we do not look: it was started with another XDG_RUNTIME_DIR. The
            // command line of a supervisor in the foreground is the user's; a server ends with it.
            let found = processes::of_unit(&id);
            record = None;
            alive = found.supervisor.or(found.server).is_some();
            server = found.server;
        }
        let mut traces = kernel.of(&id);
        if (!alive || dir.is_none()) && !traces.is_empty() {
            // It may have ended, and in good order, since the kernel was looked at.
            traces = Kernel::look()?.of(&id);
        }
        Ok(Self {
            id,
            dir,
            record,
            traces,
            alive,
            server,
        })
    }

    /// Whether anything of it is there at all.
    #[must_use]
    pub fn is_there(&self) -> bool {
        (self.alive && self.dir.is_some()) || !self.traces.is_empty()
    }

    /// What the user sees of it: the mount point, now or as it was asked for.
    #[must_use]
    pub fn target(&self) -> Option<PathBuf> {
        let mounted = self.traces.kernel.first().or(self.traces.fuse.first());
        mounted.map(|mount| mount.target.clone()).or_else(|| {
            self.record
                .as_ref()
                .map(|record| record.request.target.clone())
        })
    }

    fn is_called(&self, what: &OsStr, path: Option<&Path>) -> bool {
        if what == &*self.id {
            return true;
        }
        let address = what.to_str().and_then(|text| Http::shown(text).ok());
        let image = self.record.as_ref().map(|record| &record.request.image);
        if address.is_some_and(|address| image.is_some_and(|image| *image == Path::new(&address))) {
            return true;
        }
        let Some(path) = path else { return false };
        let mounted = self
            .traces
            .kernel
            .iter()
            .chain(&self.traces.fuse)
            .any(|m| m.target == path);
        let device = self
            .traces
            .loops
            .iter()
            .chain(&self.traces.nbds)
            .any(|device| device.path == path);
        let recorded = self.record.as_ref().is_some_and(|record| {
            record.request.target == path
                || record.request.image == path
                || record.device.as_deref() == Some(path)
        });
        mounted || device || recorded
    }
}

/// All units of this user: those with a state folder and those that only the kernel remembers.
///
/// # Errors
/// When the mount table cannot be read.
pub fn all() -> Result<Vec<Unit>> {
    all_of(&Kernel::look()?)
}

/// All units of this user: those with a state folder and those that only the kernel remembers.
/// Folders of units of which nothing is left are removed.
///
/// # Errors
/// When the mount table cannot be read.
fn all_of(kernel: &Kernel) -> Result<Vec<Unit>> {
    let state = StateDir::of_user();
    let mut dirs: BTreeMap<String, Option<UnitDir>> = state
        .units()
        .into_iter()
        .map(|dir| (dir.id().to_owned(), Some(dir)))
        .collect();
    for id in kernel.ids() {
        dirs.entry(id.clone()).or_insert_with(|| state.find(&id));
    }
    let mut units = Vec::new();
    for (id, dir) in dirs {
        let unit = Unit::look(id, dir, kernel)?;
        if unit.is_there() {
            units.push(unit);
        } else {
            prune(&unit);
        }
    }
    state.sweep();
    Ok(units)
}

/// Removes what a unit of which nothing is left has left on disk.
fn prune(unit: &Unit) {
    let Some(dir) = &unit.dir else { return };
    // Between the look at the kernel and now somebody may have begun to look after it.
    let Some(_locks) = dir.try_lock_to_remove() else {
        return;
    };
    if Kernel::look().is_ok_and(|kernel| kernel.of(&unit.id).is_empty()) {
        let record = dir.read().unwrap_or(None);
        if let Err(error) = super::undo::remove_files(dir, record.as_ref()) {
            tracing::warn!("{}", error.report());
        }
    }
}

/// The units that `what` names: usually one; an image can be mounted several times. Those that
/// read what another one of them shows come first, and those that cover another one.
///
/// # Errors
/// When the mount table cannot be read.
pub fn named(what: &OsStr) -> Result<Vec<Unit>> {
    let path = absolute_without_touching(Path::new(what));
    let kernel = Kernel::look()?;
    let mut found: Vec<_> = all_of(&kernel)?
        .into_iter()
        .filter(|unit| unit.is_called(what, path.as_deref()))
        .collect();
    // An id is exact, whatever else has that name.
    if what.to_str().is_some_and(is_id)
        && let Some(exact) = found.iter().position(|unit| what == &*unit.id)
    {
        found = vec![found.swap_remove(exact)];
    }
    // A mount point may be the image of other mounts, which are taken down before it.
    let place = |unit: &Unit| {
        let all = kernel.mounts.iter();
        all.rev().position(|mount| unit.traces.has_mount(mount.id))
    };
    found.sort_by_key(|unit| (unit.target() == path, place(unit)));
    Ok(found)
}

/// The absolute form of a path whose last part is not looked at, since it may be a mount point
/// whose server does not answer.
#[must_use]
pub fn absolute_without_touching(path: &Path) -> Option<PathBuf> {
    let mut absolute = std::path::absolute(path).ok()?;
    // Asking whether a folder is a symbolic link is answered by the kernel alone.
    for _ in 0..MAX_LINKS {
        let Ok(link) = std::fs::read_link(&absolute) else {
            break;
        };
        absolute = absolute.parent()?.join(link);
    }
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
            Some(parent.join(name))
        }
        _ => Some(absolute),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mountinfo::Mount;

    #[test]
    fn a_unit_that_ended_after_the_look_at_the_kernel_is_gone_and_not_dead() {
        let id = "0123abcd";
        let state = tempfile::tempdir().unwrap();
        let mount = Mount {
            source: super::super::undo::source_of(id).into(),
            super_options: format!("rw,user_id={}", rustix::process::geteuid().as_raw()).into(),
            ..Mount::default()
        };
        let before = Kernel::with_mounts(vec![mount]);
        assert!(!before.of(id).is_empty());
        let gone = UnitDir::new(state.path().join(id));
        for dir in [Some(gone), None] {
            let unit = Unit::look(id.to_owned(), dir, &before).unwrap();
            assert!(!unit.is_there(), "{unit:?}");
        }
    }
}
