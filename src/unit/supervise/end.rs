//! Taking down what is left, until the last user is gone.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use nbdfuse::mount::Mode;
use nbdserve::{Error, Result};

use super::{Ending, Event, Supervisor};
use crate::sys::process::wait_for_children;
use crate::target::kernel_nbd::{self, NbdDevice};
use crate::unit::events;
use crate::unit::message::{Show, ToServer, Via};
use crate::unit::record::{Stage, Undo};
use crate::unit::undo::{self, Kernel, Server};

/// The server has this long to end once it was told to and nothing uses it.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// One that takes writes writes back what it holds, to a disk that may be slow.
const WRITE_BACK_LIMIT: Duration = Duration::from_secs(10 * 60);
/// What the server has started, and itself, have this long to end when it was killed. What they do
/// until then is undone only afterwards.
const HELPER_LIMIT: Duration = Duration::from_secs(2);
/// A device that others still use is waited for this long before it is left to its last user.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at what is still in use.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Supervisor {
    /// Takes down what is left, waits for the last user, removes the folder.
    pub(super) fn finish(&mut self, ending: &Ending) {
        self.record.stage = Stage::Ending;
        if let Err(error) = self.save() {
            tracing::error!("{error}");
        }
        let server = match ending {
            Ending::Unmounted => {
                tracing::info!("unmounted");
                Server::Answers
            }
            Ending::Asked => {
                tracing::info!("asked to end");
                Server::Answers
            }
            Ending::Broken(how) => {
                tracing::error!("{how}; the mount is detached");
                self.kill_server();
                if !wait_for_children(HELPER_LIMIT) {
                    tracing::warn!("the server or a helper of it does not end");
                }
                Server::Dead
            }
        };
        self.undo_and_wait(server);
        self.wait_for_server();
        if let Err(error) = undo::remove_files(&self.dir, Some(&self.record)) {
            tracing::error!("{}", error.report());
        }
    }

    /// Detaches what is there, again and again until the last holder has let go; then the server
    /// has nothing left to do and ends.
    fn undo_and_wait(&mut self, server: Server) {
        let id = self.dir.id().to_owned();
        let (sender, finished) = mpsc::channel();
        // Our own descriptor would keep the device for ever.
        let hold = self.device.take().and_then(|device| device.hold);
        let work = move || {
            if let Some(device) = hold
                && let Err(error) = let_go(device, &id, server)
            {
                tracing::error!("{}", error.report());
            }
            let mut said = String::new();
            loop {
                if let Err(stayed) = undo::undo_all(&id, Mode::Lazy, server) {
                    let text = Error::from(stayed).report().to_string();
                    if text != said {
                        tracing::error!("{text}");
                        said = text;
                    }
                }
                if Kernel::look().is_ok_and(|kernel| kernel.of(&id).is_empty()) {
                    let _ = sender.send(());
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        };
        if let Err(error) = events::watch("undo", work) {
            tracing::error!("{error}");
        }
        // With the server dead its mounts have no more answers; the devices vanish by themselves.
        let _ = finished.recv();
    }

    /// FUSE users that were there at a lazy unmount keep the server until they are done.
    fn wait_for_server(&mut self) {
        let fuse =
            matches!(self.record.via, Some(Via::Fuse)) || self.record.request.show == Show::File;
        let in_use = fuse && self.record.undo.contains(&Undo::FuseMount);
        let mut deadline = (!in_use).then(|| self.stop_server());
        while self.server_alive {
            let event = match deadline {
                None => Some(self.next()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.events.wait_within(left)
                }
            };
            match event {
                Some(Event::ServerGone(_)) => self.server_alive = false,
                // A second request does not wait for users, but for what they have written.
                Some(Event::Signal) if deadline.is_none() => deadline = Some(self.stop_server()),
                None => {
                    tracing::error!("the server does not end, killing it");
                    self.kill_server();
                    if self.record.request.stores_writes() {
                        self.note_lost();
                    }
                    deadline = Some(Instant::now() + STOP_LIMIT);
                }
                Some(_) => {}
            }
        }
    }

    /// Tells the server to end, and says until when it should have.
    fn stop_server(&self) -> Instant {
        let _ = self.tell(&ToServer::Stop, &[]);
        let limit = if self.record.request.stores_writes() {
            WRITE_BACK_LIMIT
        } else {
            STOP_LIMIT
        };
        Instant::now() + limit
    }

    /// Tells whoever waits for the end that the server was killed while it wrote.
    fn note_lost(&self) {
        let text = format!("the server had not ended after {WRITE_BACK_LIMIT:?} and was killed");
        if let Err(error) = self.dir.note_lost(&text) {
            tracing::error!("{text}; nobody could be told: {}", error.report());
        }
    }
}

/// Gives up our own hold of an NBD device whose mount is gone, or whose server is dead.
fn let_go(device: NbdDevice, id: &str, server: Server) -> Result<()> {
    match server {
        Server::Answers => device.disconnect(id, LET_GO_LIMIT).map(drop),
        Server::Dead => kernel_nbd::sever(device.index, id).map(drop),
    }
}
