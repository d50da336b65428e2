//! While the target is usable.

use std::time::Duration;

use nbdfuse::mount::Mode;
use nbdserve::Result;
use nbdserve::error::Report;

use super::{Ending, Event, Supervisor};
use crate::sys::mountinfo;
use crate::target::cached;
use crate::unit::events;
use crate::unit::message::FromServer;
use crate::unit::undo::{self, Kernel, Stayed, source_of};

/// Pause before the next try to unmount what is below another mount.
const COVERED_PAUSE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Watches both ends until one of them is gone.
    pub(super) fn run(&mut self) -> Ending {
        let mut asked = false;
        let (mut dead_links, mut covered) = (0, false);
        if !self.is_mounted() {
            return Ending::Unmounted;
        }
        loop {
            match self.next() {
                Event::MountsChanged if !self.is_mounted() => {
                    return if asked {
                        Ending::Asked
                    } else {
                        Ending::Unmounted
                    };
                }
                Event::ServerGone(how) => {
                    self.server_alive = false;
                    // The kernel closes the connection of a FUSE file that nobody has mounted.
                    if !self.is_mounted() {
                        return Ending::Unmounted;
                    }
                    return Ending::Broken(format!("the server ended: {how}"));
                }
                Event::LinkDead(index) if self.is_nbd(index) => {
                    dead_links += 1;
                    tracing::error!("connection {dead_links} of nbd{index} is dead");
                    if dead_links >= self.connections {
                        return Ending::Broken("the kernel has lost its NBD server".to_owned());
                    }
                }
                Event::Signal | Event::Server(FromServer::StopWanted) => {
                    asked = true;
                    self.unmount_in_thread(Mode::Normal);
                }
                Event::LauncherGone if self.record.request.private => {
                    asked = true;
                    self.unmount_in_thread(Mode::Lazy);
                }
                // Asked to go and still in use: it goes when the last user does.
                Event::Unmounted(Err(Stayed::Busy(error))) => {
                    tracing::warn!("{error}; detached");
                    self.unmount_in_thread(Mode::Lazy);
                }
                // It goes when the mount above it does.
                Event::Unmounted(Err(Stayed::Covered(error))) => {
                    if !covered {
                        tracing::warn!("{error}");
                        covered = true;
                    }
                    self.unmount_in_thread(Mode::Lazy);
                }
                Event::Unmounted(Err(Stayed::Failed(error))) => {
                    tracing::error!("{}", error.report());
                }
                Event::Server(FromServer::Poisoned(report)) => self.drop_cached(&report),
                _ => {}
            }
        }
    }

    /// Whether what the user sees is still in the mount table. On doubt it is.
    fn is_mounted(&self) -> bool {
        let Ok(mounts) = mountinfo::mounts() else {
            return true;
        };
        match &self.device {
            Some(device) => device.is_mounted(self.dir.id(), &mounts),
            None => mounts.iter().any(|m| m.source == *source_of(self.dir.id())),
        }
    }

    fn is_nbd(&self, index: u32) -> bool {
        let device = self.device.as_ref();
        device.is_some_and(|device| device.hold.as_ref().is_some_and(|hold| hold.index == index))
    }

    fn unmount_in_thread(&self, mode: Mode) {
        let (id, device) = (self.dir.id().to_owned(), self.device.is_some());
        let work = move || {
            let kernel = Kernel::look().map_err(Stayed::Failed)?;
            let traces = kernel.of(&id);
            let mounts = if device { &traces.kernel } else { &traces.fuse };
            let outcome = mounts.iter().rev().try_for_each(|m| undo::unmount(m, mode));
            if matches!(outcome, Err(Stayed::Covered(_))) {
                std::thread::sleep(COVERED_PAUSE);
            }
            outcome
        };
        if let Err(error) = events::job("unmount", &self.sender, work, Event::Unmounted) {
            tracing::error!("{error}");
        }
    }

    /// Bytes that the kernel may have cached are wrong.
    fn drop_cached(&self, report: &Report) {
        tracing::error!("{report}");
        let Some(device) = &self.device else { return };
        let path = device.path.clone();
        let work = move || cached::drop_cached(&path);
        let done = |result: Result<()>| {
            if let Err(error) = result {
                tracing::error!("{}", error.report());
            }
            Event::MountsChanged
        };
        if let Err(error) = events::job("drop-cached", &self.sender, work, done) {
            tracing::error!("{error}");
        }
    }
}
