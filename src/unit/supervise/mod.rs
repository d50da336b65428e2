//! The supervisor: starts the server, makes the image appear, watches both ends, takes all down.
//!
//! It touches no image data. Everything that can block (mounting, unmounting, talking to devices)
//! runs in a thread of its own, so the main thread can always react.
//!
//! ```text
//!  start.rs  from the request to a usable target       choose.rs  by which means
//!  watch.rs  while it is usable
//!  end.rs    until the last user is gone
//! ```

mod choose;
mod end;
mod start;
mod watch;

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use nbdserve::error::Report;
use nbdserve::{Error, Kind, Result};

use super::channel::Channel;
use super::device::Device;
use super::dir::{Lock, UnitDir};
use super::events::{self, Inbox};
use super::front::Front;
use super::image::Image;
use super::message::{FromServer, Request, ToServer};
use super::processes;
use super::record::{Record, Undo};
use super::state::StateDir;
use super::target;
use super::undo::Stayed;
use crate::sys::process::adopt_orphans;

/// The end of a dead server's channel is seen within this time, unless a child of its holds it.
const LAST_WORDS: Duration = Duration::from_secs(2);

enum Event {
    Server(FromServer),
    /// The server's end of the channel is closed.
    ServerSilent,
    /// The server has ended, like this.
    ServerGone(String),
    LauncherGone,
    MountsChanged,
    Signal,
    /// The thread that makes the target appear is done.
    Attached(Result<Device>),
    /// The thread that takes the mount away is done.
    Unmounted(Result<(), Stayed>),
    /// A connection of this NBD device, ours or another's.
    LinkDead(u32),
}

/// Why a running unit ends.
enum Ending {
    /// Its mount is gone.
    Unmounted,
    /// The server or the link to it is dead.
    Broken(String),
    /// It was asked to, and the mount was detached.
    Asked,
}

/// The life of a unit, from the request to the removal of its state folder. `asker` is the socket by
/// which the server asks for keys; it is only passed on. `launcher` is watched:
/// its end stops a unit that is not ready yet, and a private one at any time.
///
/// # Errors
/// When the unit could not be started; nothing is left behind and `front` has been told.
pub fn supervise(
    request: Request,
    image: Image,
    asker: OwnedFd,
    front: &Arc<dyn Front>,
    launcher: Option<&Arc<Channel>>,
) -> Result<()> {
    let begun = Supervisor::begin(request, Arc::clone(front), launcher);
    let mut supervisor = match begun {
        Ok(supervisor) => supervisor,
        Err(error) => {
            front.failed(&error.report());
            return Err(error);
        }
    };
    match supervisor.start(image, asker) {
        Ok(via) => {
            front.ready(via);
            let ending = supervisor.run();
            front.ending();
            supervisor.finish(&ending);
            Ok(())
        }
        Err(error) => {
            tracing::error!("{}", error.report());
            // Everything is gone before the launcher speaks.
            supervisor.finish(&Ending::Broken(error.to_string()));
            front.failed(&error.report());
            Err(error)
        }
    }
}

struct Supervisor {
    dir: UnitDir,
    _lock: Lock,
    /// The state folder is old and in use.
    _kept: Option<File>,
    record: Record,
    front: Arc<dyn Front>,
    sender: Sender<Event>,
    events: Inbox<Event>,
    server: Option<Arc<Channel>>,
    server_alive: bool,
    /// Everything that the server has said was heard.
    server_silent: bool,
    /// Names the process even after it has been reaped.
    server_pidfd: Option<OwnedFd>,
    device: Option<Device>,
    /// Sockets of the NBD device.
    connections: usize,
}

impl Supervisor {
    fn begin(
        request: Request,
        front: Arc<dyn Front>,
        launcher: Option<&Arc<Channel>>,
    ) -> Result<Self> {
        let state = StateDir::of_user();
        state.create()?;
        let dir = state.unit(&request.id);
        let mut record = Record::new(request);
        record.supervisor = Some(std::process::id());
        record.supervisor_began = processes::began(std::process::id());
        if record.request.create_target {
            record.undo.push(Undo::RemoveTarget);
        }
        let lock = dir.create(|dir| dir.write(&record))?;
        let kept = state.keep_from_cleaners();
        crate::log::to_file(&dir.join("log"), record.request.verbosity);
        if let Err(error) = target::create(&record.request) {
            dir.remove()?;
            return Err(error);
        }
        // A server that is killed may leave a fusermount3 behind that is about to mount.
        adopt_orphans().map_err(|error| Error::io("cannot look after children", error))?;
        let (sender, events) = mpsc::channel();
        events::watch_signals(&sender, || Event::Signal)?;
        if let Some(launcher) = launcher {
            // The launcher sends nothing more; only its end is of interest.
            let ignore = |(): (), _| Event::LauncherGone;
            events::watch_channel(launcher, &sender, ignore, Event::LauncherGone)?;
        }
        Ok(Self {
            dir,
            _lock: lock,
            _kept: kept,
            record,
            front,
            sender,
            events: Inbox::new(events),
            server: None,
            server_alive: false,
            server_silent: false,
            server_pidfd: None,
            device: None,
            connections: 0,
        })
    }

    fn save(&self) -> Result<()> {
        self.dir.write(&self.record)
    }

    /// Notes what will have to be undone, before it is done.
    fn will_undo(&mut self, step: Undo) -> Result<()> {
        self.record.undo.push(step);
        self.save()
    }

    fn tell(&self, order: &ToServer, fds: &[BorrowedFd<'_>]) -> Result<()> {
        match &self.server {
            Some(channel) => channel.send(order, fds),
            None => Err(Error::new(Kind::Io, "the server is not running")),
        }
    }

    fn next(&mut self) -> Event {
        // self.sender lives as long as self, so the queue cannot end.
        self.events.wait().unwrap_or(Event::ServerSilent)
    }

    /// The failure that a server which has ended reported last: its end may be known sooner than
    /// its last words. Somebody waits for what else comes meanwhile.
    fn last_words(&mut self) -> Option<Report> {
        if self.server_silent {
            return None;
        }
        let said = self.events.find(LAST_WORDS, |event| match event {
            Event::Server(FromServer::Failed(report)) => Ok(Some(report)),
            Event::ServerSilent => Ok(None),
            other => Err(other),
        });
        let report = said.flatten();
        self.server_silent = report.is_none();
        report
    }

    fn kill_server(&self) {
        if let Some(pidfd) = &self.server_pidfd {
            // An error means that it is dead already.
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }
}
